"""Prediction files: what a model replied, question by question, with all that scoring needs.

A run leaves a folder: `predictions.jsonl`, one row a question in the benchmark's order, and `run.json`, how they were
made. `read_predictions` also takes the files that others publish: a JSON list or JSON lines with the reply under
`model_output`, `model_prediction`, `answer_prediction`, `prediction` or `response`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .load_checks import groups_of, read_rows


PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
ANSWERED, FAILED, MISSING = "answered", "failed", "missing"


@dataclass(frozen=True)
class Prediction:
    """
    One question with its reply.

    Attributes:
        id, question, choices, answer, groups, description: as in `Question`.
        audio: the clips' names.
        status: "answered"; "failed" where the model or the audio raised an error (see `error`); "missing" where a
            published file has a row without a reply.
        reply: the model's own words, whole, also where they are empty; `None` unless answered.
        error: what went wrong, for a failed row.
        prompt: the text that was put to the model.
    """

    id: str
    status: str
    reply: str | None
    question: str = ""
    choices: tuple[str, ...] = ()
    answer: str | None = None
    audio: tuple[str, ...] = ()
    groups: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    error: str | None = None
    prompt: str | None = None


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        rows: in the file's order.
        provenance: the content of `run.json`; empty for a file from elsewhere.
        path: the file that was read.
        sha256: its digest (hex).
    """

    rows: tuple[Prediction, ...]
    provenance: dict[str, Any]
    path: str
    sha256: str


# Under which name others publish the reply, by benchmark: MMAU's two, MMAR's, AIR-Bench's.
REPLY_KEYS = ("model_output", "model_prediction", "answer_prediction", "prediction", "response")
# What tells groups apart in published files.
GROUP_KEYS = ("task", "category", "sub-category", "difficulty", "modality", "language", "task_name", "dataset_name")


def read_predictions(path: str | Path) -> Predictions:
    """
    A run's folder, its `predictions.jsonl`, or a file published by others (see the module).

    Raises:
        `ValueError`: no such file, not JSON, a row that is no object or has no id, two rows with one id.
    """
    path = Path(path)
    path = path / PREDICTIONS if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} does not exist; `falcon3-audio evaluate` writes it when all questions are asked.")
    content, sha256 = read_rows(path)
    rows = tuple(_prediction(row, f"{path}, {place}") for place, row in content)
    first: dict[str, str] = {}
    for (place, _), row in zip(content, rows):
        if first.setdefault(row.id, place) != place:
            raise ValueError(f"{path}: {first[row.id]} and {place} have the same id {row.id!r}.")
    run = path.parent / RUN
    provenance = json.loads(run.read_text(encoding="utf-8")) if path.name == PREDICTIONS and run.exists() else {}
    return Predictions(rows, provenance, str(path), sha256[path.name])


def _prediction(row: Any, where: str) -> Prediction:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    if "status" in row and "reply" in row:  # written by `evaluate`
        known = {name: row[name] for name in Prediction.__dataclass_fields__ if name in row}
        known |= {name: tuple(row.get(name, ())) for name in ("choices", "audio")}
        return Prediction(**known)
    identity = row.get("id", row.get("uniq_id"))
    if identity is None:
        raise ValueError(f"{where}: no id (looked for 'id' and 'uniq_id' among {sorted(row)}).")
    key = next((key for key in REPLY_KEYS if key in row), None)
    choices = row.get("choices") or [row[f"choice_{letter}"] for letter in "abcd" if row.get(f"choice_{letter}")]
    if key is not None and not isinstance(row[key], (str, type(None))):
        raise ValueError(f"{where}: {key!r} is {row[key]!r}; expected the reply's text.")
    reply = None if key is None else row[key]
    # AIR-Bench's tasks use the same file names for other clips.
    folder = f"{row['task_name']}_{row['dataset_name']}/" if row.get("task_name") and row.get("dataset_name") else ""
    return Prediction(
        id=str(identity),
        status=MISSING if reply is None else ANSWERED,
        reply=reply,
        question=row.get("question", ""),
        choices=tuple(choices),
        answer=row.get("answer", row.get("answer_gt")),
        audio=tuple(folder + str(row[name]) for name in ("audio_id", "audio_path", "path") if row.get(name))[:1],
        groups=groups_of(row, GROUP_KEYS),
        description=row.get("meta_info"),
    )


__all__ = [
    "ANSWERED",
    "FAILED",
    "MISSING",
    "PREDICTIONS",
    "RUN",
    "Prediction",
    "Predictions",
    "read_predictions",
]
