"""Prediction files: a model's replies, question by question, with everything that scoring needs.

A run leaves a folder with `predictions.jsonl`, one row per question in the benchmark's order, and `run.json`, which
records how they were made. `read_predictions` also reads files published by others: a JSON list, JSON lines or parquet
with the reply under `model_output`, `model_prediction`, `answer_prediction`, `prediction`, `response` or `reply`. All
rows are read with one key, the first of these in the file; if another key has different values, `warnings` says so.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .instruction_checks import check_of
from .load_checks import (
    FIELD,
    Row,
    RowFault,
    choices_of,
    groups_of,
    id_key,
    id_of,
    object_of,
    optional_text_of,
    read_rows,
)
from .load_mmau_pro import GROUPS as MMAU_PRO_GROUPS
from .load_mmau_pro import WITHOUT_OPTIONS, check_in
from .load_parquet import is_parquet, plain_rows
from .questions import spelled_id


PREDICTIONS = "predictions.jsonl"
RUN = "run.json"
ANSWERED, FAILED, MISSING = "answered", "failed", "missing"


@dataclass(frozen=True)
class Prediction:
    """
    One question with its reply.

    Attributes:
        id, question, choices, answer, groups, description, check, references: as in `Question`.
        audio: the clips' names.
        status: "answered"; "failed" if the model or the audio raised an error (see `error`); "missing" if a published
            file has a row without a reply.
        reply: the model's full reply, even if empty; `None` unless answered.
        error: what went wrong, for a failed row.
        finish_reason: "length" if the reply was cut at the limit of tokens, "stop" if the model ended it; `None` if it
            is not known.
        prompt: the text given to the model.
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
    finish_reason: str | None = None
    prompt: str | None = None
    check: dict[str, Any] | None = None
    references: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether no rule can judge the reply: the question has neither options nor a check."""
        return not self.choices and self.check is None


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        rows: in the file's order.
        provenance: the content of `run.json`; empty for a file from elsewhere.
        path: the file that was read.
        sha256: its digest (hex).
        key: the key of the replies; `None` for a file without any.
        warnings: what a reader of the score must know about the replies, one sentence each.
    """

    rows: tuple[Prediction, ...]
    provenance: dict[str, Any]
    path: str
    sha256: str
    key: str | None = None
    warnings: tuple[str, ...] = ()


# The key of the reply in published files: MMAU's two, MMAR's, AIR-Bench's; the last is our own.
REPLY_KEYS = ("model_output", "model_prediction", "answer_prediction", "prediction", "response", "reply")
ANSWER_KEYS = ("answer", "answer_gt")
# The keys of groups in published files.
GROUP_KEYS = (
    *("task", "category", "sub-category", "sub-sub-category", "difficulty", "modality", "language"),
    *("task_name", "dataset_name", "linguistics_sub_discipline", *MMAU_PRO_GROUPS[1:]),
)
CLIP_KEYS = ("audio_id", "audio_path", "path", "audio")


def read_predictions(path: str | Path, key: str | None = None) -> Predictions:
    """
    A run's folder, its `predictions.jsonl`, or a file published by others (see the module).

    Args:
        key: key of the replies; by default the first of `REPLY_KEYS` that any row has.

    Raises:
        `ValueError`: no such file, not JSON, a key that no row has, two rows with the same id, or a row that is not an
            object, has no id, or has a value of the wrong type.
    """
    path = Path(path)
    path = path / PREDICTIONS if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"{path} does not exist; `falcon3-audio evaluate` writes it when all questions are asked.")
    content, sha256 = plain_rows(path) if is_parquet(path) else read_rows(path)
    found, others = _reply_key(content, key, path)
    rows = tuple(_checked(row, found, f"{path}, {place}") for place, row in content)
    first: dict[str, str] = {}
    for (place, _), row in zip(content, rows):
        identity = spelled_id(row.id)
        if first.setdefault(identity, place) != place:
            raise ValueError(f"{path}: {first[identity]} and {place} have the same id {identity!r}.")
    provenance = _provenance(path.parent / RUN) if path.name == PREDICTIONS else {}
    return Predictions(rows, provenance, str(path), sha256[path.name], found, (*others, *_cut(rows)))


def _cut(rows: Sequence[Prediction]) -> list[str]:
    """A warning if replies were cut, whose answer may have come later."""
    cut = sum(row.finish_reason == "length" for row in rows)
    return [f"{cut} of {len(rows)} replies were cut at the limit of new tokens; raise --max-new-tokens"] if cut else []


def _reply_key(content: list[Row], key: str | None, path: Path) -> tuple[str | None, tuple[str, ...]]:
    """The key of the replies, and a warning for each other known key with different values."""
    rows = [row for _, row in content if isinstance(row, dict)]
    present = dict.fromkeys(name for row in rows for name in row)
    known = [name for name in REPLY_KEYS if name in present]
    if key is not None and key not in present:
        raise ValueError(f"no row of {path} has the key {key!r}; they have {', '.join(map(str, present)) or 'none'}.")
    if key in ANSWER_KEYS:
        raise ValueError(f"{key!r} is the key of the right answers, not of replies.")
    if key is None and any(map(_is_ours, rows)):
        key = "reply"
    key = key or next(iter(known), None)
    differing = {name: sum(name in row and row[name] != row.get(key) for row in rows) for name in known if name != key}
    return key, tuple(
        f"replies are read from {key!r}; {name!r} differs in {count} of {len(rows)} rows; --key chooses another"
        for name, count in differing.items()
        if count
    )


def _provenance(path: Path) -> dict[str, Any]:
    """The content of run.json; empty if there is none. Raises `ValueError` for one that no run has written."""
    if not path.exists():
        return {}
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(run, dict):
        raise ValueError(
            f"{path} is not what `falcon3-audio evaluate` writes; expected a JSON object, got {run!r:.100}."
        )
    for name, (is_fine, expected) in OF_RUN.items():
        if run.get(name) is not None and not is_fine(run[name]):
            raise ValueError(
                f"{path} is not what `falcon3-audio evaluate` writes: {name!r} is {run[name]!r:.100}, expected {expected}."
            )
    return {name: {} if name == "left_out" and value is None else value for name, value in run.items()}


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _are_lists(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(part, list) and all(map(_is_text, part)) for part in parts)


# The keys of run.json that are read here and in model cards; each can be null.
OF_RUN: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        (
            "benchmark",
            "model",
            "model_commit",
            "model_commit_is",
            "model_dtype",
            "prompt",
            "prompt_example",
            "control",
        ),
        (_is_text, "a text"),
    ),
    **dict.fromkeys(("data_sha256", "paraphrases_sha256", "versions"), (_are_texts, "texts by name")),
    "left_out": (_are_lists, "lists of ids by reason"),
}


def _checked(row: Any, key: str | None, where: str) -> Prediction:
    try:
        row = object_of(row)
        return _of_run(row) if _is_ours(row) and key == "reply" else _published(row, key)
    except RowFault as fault:
        raise ValueError(f"{where}: {fault.detail}.") from None


def _is_ours(row: dict[str, Any]) -> bool:
    return "status" in row and "reply" in row


def _of_run(row: dict[str, Any]) -> Prediction:
    """A row as `evaluate` writes it."""
    status, reply = row["status"], optional_text_of(row, "reply")
    if status not in (ANSWERED, FAILED, MISSING):
        raise RowFault(FIELD, f"'status' is {status!r}, expected {ANSWERED!r}, {FAILED!r} or {MISSING!r}")
    if (reply is not None) != (status == ANSWERED):
        raise RowFault(
            FIELD, f"'status' is {status!r}, but 'reply' is {reply!r}; only answered questions have a reply"
        )
    groups = row.get("groups") or {}
    if not isinstance(groups, dict):
        raise RowFault(FIELD, f"'groups' is {groups!r}, expected a JSON object")
    return Prediction(
        id=id_of(row),
        status=status,
        reply=reply,
        question=optional_text_of(row, "question") or "",
        choices=_choices(row.get("choices")),
        answer=optional_text_of(row, "answer"),
        audio=_clips(row.get("audio")),
        groups=groups_of(groups, groups),
        check=_check(row.get("check")),
        references=_references(row.get("references")),
        **{name: optional_text_of(row, name) for name in ("description", "error", "finish_reason", "prompt")},
    )


def _references(references: Any) -> tuple[str, ...]:
    if not isinstance(references, (list, type(None))) or not all(isinstance(text, str) for text in references or ()):
        raise RowFault(FIELD, f"'references' is {references!r}, expected a list of texts")
    return tuple(references or ())


def _check(check: Any) -> dict[str, Any] | None:
    if check is None:
        return None
    if not isinstance(check, dict):
        raise RowFault(FIELD, f"'check' is {check!r}, expected a JSON object")
    parameters = {name: value for name, value in check.items() if name != "task"}
    return check_of(check.get("task"), parameters, parameters.get("question", ""))


def _published(row: dict[str, Any], key: str | None) -> Prediction:
    identity = id_key(row)
    if identity is None:
        raise RowFault(FIELD, f"no id (looked for 'id' and 'uniq_id' among {sorted(row)})")
    # Only MMAU-Pro has this key; categories of other benchmarks can have the same names.
    no_options = "task_identifier" in row and row.get("category") in WITHOUT_OPTIONS
    letters = [row.get(f"choice_{letter}") or "" for letter in "abcd"]
    if key is not None and not isinstance(row.get(key), (str, type(None))):
        raise RowFault(FIELD, f"{key!r} is {row[key]!r}; expected the reply's text")
    reply = None if key is None else row.get(key)
    if reply is not None and row.get("status") in (FAILED, MISSING):
        raise RowFault(FIELD, f"'status' is {row['status']!r}, but {key!r} is {reply!r}; remove one of the two")
    groups = groups_of(row, GROUP_KEYS)
    # AIR-Bench's tasks reuse file names for different clips.
    task, dataset = groups.get("task_name"), groups.get("dataset_name")
    folder = f"{task}_{dataset}/" if task and dataset else ""
    clips = next((clips for name in CLIP_KEYS if (clips := _clips(row.get(name)))), ())
    return Prediction(
        id=id_of(row, identity),
        status=MISSING if reply is None else ANSWERED,
        reply=reply,
        question=optional_text_of(row, "question") or "",
        choices=() if no_options else _choices(row.get("choices") or letters),
        check=check_in(row) if no_options else None,
        answer=optional_text_of(row, "answer" if row.get("answer") is not None else "answer_gt"),
        audio=tuple(folder + clip for clip in clips),
        groups=groups,
        description=optional_text_of(row, "description" if row.get("description") is not None else "meta_info"),
    )


def _choices(options: Any) -> tuple[str, ...]:
    return () if options in (None, [], [""] * 4) else choices_of(options)


def _clips(audio: Any) -> tuple[str, ...]:
    """The names of a row's clips: one, a list of them, or none."""
    names = [audio] if isinstance(audio, str) and audio else audio or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RowFault(FIELD, f"the audio is {audio!r}, expected a path or a list of paths")
    return tuple(names)


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
