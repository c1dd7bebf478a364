"""MMAU and MMAR as published: multiple-choice questions about speech, sounds and music, one clip each.

MMAU (github.com/Sakshi113/MMAU) comes as `mmau-test-mini.json` (1,000 questions), as `mmau-test.json` (9,000, without
answers) and as parquet files with embedded audio (gamma-lab-umd/MMAU-test-mini on the Hub). Its content has changed
under the same name, so every file's SHA-256 is kept. MMAR (github.com/ddlBoJack/MMAR) is `MMAR-meta.jsonl`.
Run: `load_mmau("MMAU/mmau-test-mini.json")`, with the clips in `MMAU/test-mini-audios/`.
"""

import json
from pathlib import Path
from typing import Any

from .load_checks import (
    FIELD,
    OnError,
    Row,
    RowFault,
    answer_among,
    choices_of,
    clip_of,
    collect,
    groups_of,
    id_of,
    read_rows,
    text_of,
)
from .load_parquet import clip_in, is_parquet, open_parquet, table_rows
from .option_labels import without_label, without_labels
from .questions import Question, QuestionSet


MMAU_GROUPS = ("task", "category", "sub-category", "difficulty")
MMAR_GROUPS = ("modality", "category", "sub-category", "language")
AUDIO = "context"  # the column with the clips
COLUMNS = (AUDIO, "instruction", "choices", "other_attributes")


def load_mmau(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMAU's questions, in the groups `task`, `category`, `sub-category` and `difficulty`.

    Args:
        path: the JSON file, a parquet file, or a folder of parquet files.
        audio_root: root of the paths in the JSON; by default its folder. Parquet files contain their audio.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: files that cannot be read, or faulty rows, see `load_checks.collect`. If any row has an answer,
            rows without one cannot be used.
    """
    path = Path(path)
    if is_parquet(path):
        return _load_parquet(path, audio_root, on_error)
    return _load_json("mmau", path, "audio_id", MMAU_GROUPS, audio_root, on_error)


def load_mmar(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMAR's questions, in the groups `modality`, `category`, `sub-category` and, if words are spoken, `language`.

    Arguments and errors are those of `load_mmau`, for JSON lines or a JSON list.
    """
    return _load_json("mmar", Path(path), "audio_path", MMAR_GROUPS, audio_root, on_error)


def _load_json(
    benchmark: str, path: Path, audio_key: str, groups: tuple[str, ...], audio_root: Path | None, on_error: OnError
) -> QuestionSet:
    rows, sha256 = read_rows(path)
    answered = _are_answered(rows)

    def to_question(row: dict[str, Any]) -> Question:
        choices = choices_of(row.get("choices"))
        return Question(
            id=id_of(row),
            audio=(clip_of(audio_root or path.parent, text_of(row, audio_key)),),
            question=text_of(row, "question"),
            choices=choices,
            answer=answer_among(text_of(row, "answer"), choices) if answered else None,
            groups=groups_of(row, groups),
        )

    return collect(benchmark, path, rows, to_question, sha256, on_error)


def _are_answered(rows: list[Row]) -> bool:
    """False for MMAU's test, whose answers are all empty."""
    return any(isinstance(row, dict) and row.get("answer") for _, row in rows)


def _load_parquet(path: Path, audio_root: Path | None, on_error: OnError) -> QuestionSet:
    table, sha256 = open_parquet(path, COLUMNS, "MMAU", audio_root)
    rows = [(place, {**_attributes(row["other_attributes"]), **row}) for place, row in table_rows(table, AUDIO)]
    answered = _are_answered(rows)

    def to_question(row: dict[str, Any]) -> Question:
        if "id" not in row:
            raise RowFault(FIELD, f"no 'id' in 'other_attributes', which is {row['other_attributes']!r}")
        identity = id_of(row)
        # Every clip has one question, so the question's id can name it; the paths in `context` may not be unique.
        clip = clip_in(table, AUDIO, row, identity)
        labelled = choices_of(row["choices"])
        choices = choices_of(without_labels(labelled))
        return Question(
            id=identity,
            audio=(clip,),
            question=text_of(row, "instruction"),
            choices=choices,
            answer=answer_among(without_label(text_of(row, "answer"), labelled), choices) if answered else None,
            groups=groups_of(row, MMAU_GROUPS),
        )

    return collect("mmau", path, rows, to_question, sha256, on_error)


def _attributes(text: Any) -> dict[str, Any]:
    """The content of a JSON object; empty for anything else."""
    try:
        attributes = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return attributes if isinstance(attributes, dict) else {}
