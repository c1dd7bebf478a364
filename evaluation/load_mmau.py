"""MMAU and MMAR as they are published: multiple-choice questions about speech, sounds and music, one clip each.

MMAU (github.com/Sakshi113/MMAU) comes as `mmau-test-mini.json` (1,000 questions), as `mmau-test.json` (9,000, the answers
kept back) and as parquet files with the audio in them (gamma-lab-umd/MMAU-test-mini on the Hub). Its content has
changed under one name, so every file's SHA-256 is kept. MMAR (github.com/ddlBoJack/MMAR) is `MMAR-meta.jsonl`.
Run: `load_mmau("MMAU/mmau-test-mini.json")`, with the clips in `MMAU/test-mini-audios/`.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from .load_checks import (
    AUDIO_MISSING,
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
    position_of,
    read_rows,
    text_of,
)
from .questions import Clip, Question, QuestionSet, file_sha256


if TYPE_CHECKING:
    from datasets import Dataset


MMAU_GROUPS = ("task", "category", "sub-category", "difficulty")
MMAR_GROUPS = ("modality", "category", "sub-category", "language")
# Of the conversion from parquet; by default it is the length of a row group, and a file without rows an error.
ROWS_PER_BATCH = 100
COLUMNS = ("context", "instruction", "choices", "other_attributes")


def load_mmau(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMAU's questions, in the groups `task`, `category`, `sub-category` and `difficulty`.

    Args:
        path: the JSON file, a parquet file, or a folder of parquet files.
        audio_root: where the paths in the JSON start; its folder by default. Parquet files hold their audio.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: files that cannot be read, and rows as in `load_checks.collect`. Where any row has an answer,
            one without an answer cannot be used.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".parquet":
        if audio_root is not None:
            raise ValueError(f"got the audio folder {audio_root}, but {path} holds its audio itself; leave it out.")
        return _load_parquet(path, on_error)
    return _load_json("mmau", path, "audio_id", MMAU_GROUPS, audio_root, on_error)


def load_mmar(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMAR's questions, in the groups `modality`, `category`, `sub-category` and, where words are spoken, `language`.

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


def _load_parquet(path: Path, on_error: OnError) -> QuestionSet:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise ValueError(f"{path} is no parquet file, nor a folder of them; give those, or MMAU's JSON file.")
    sha256 = {file.name: file_sha256(file) for file in files}
    table = _open_parquet(files, sha256)
    rows = list(_parquet_rows(table))
    answered = _are_answered(rows)

    def to_question(row: dict[str, Any]) -> Question:
        if "id" not in row:
            raise RowFault(FIELD, f"no 'id' in 'other_attributes', which is {row['other_attributes']!r}")
        identity = id_of(row)
        if not row["audio bytes"]:
            raise RowFault(AUDIO_MISSING, "no bytes in 'context'")
        labelled = choices_of(row["choices"])
        choices = choices_of(without_labels(labelled))
        return Question(
            id=identity,
            # As every clip has one question, its id can name it; the paths in `context` are not known to differ.
            audio=(Clip(identity, partial(_read_bytes, table, row["number"])),),
            question=text_of(row, "instruction"),
            choices=choices,
            answer=answer_among(_without_label(text_of(row, "answer"), labelled), choices) if answered else None,
            groups=groups_of(row, MMAU_GROUPS),
        )

    return collect("mmau", path, rows, to_question, sha256, on_error)


def _open_parquet(files: list[Path], sha256: dict[str, str]) -> "Dataset":
    """
    The rows as Arrow. `datasets` converts them once into its cache, a row group at a time, and maps that into memory;
    to read one clip from the parquet itself is to read its whole row group, which may be the whole file.
    """
    from datasets import Dataset  # not at the top: scoring does without

    # `datasets` itself would know a file again by its name and time, also where another has taken its place.
    content = hashlib.sha256("".join(sha256.values()).encode()).hexdigest()
    try:
        table = Dataset.from_parquet([str(file) for file in files], batch_size=ROWS_PER_BATCH, config_name=content)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file; all mean the same here
        raise ValueError(
            f"{', '.join(map(str, files))}: no parquet rows can be read: {error.__cause__ or error}"
        ) from error
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise ValueError(f"{files[0]} has the columns {table.column_names}; MMAU's parquet form also has {missing}.")
    # As Arrow, columns of audio stay bytes and no row becomes Python objects unasked.
    return table.with_format("arrow")


def _parquet_rows(table: "Dataset") -> Iterator[Row]:
    """Everything but the audio, of which only the number of bytes is looked up; `other_attributes` are spread out."""
    import pyarrow.compute as pc

    number = 0
    for part in table.iter(batch_size=1000):
        sizes = pc.binary_length(pc.struct_field(part["context"], "bytes")).to_pylist()
        for row, size in zip(part.drop_columns("context").to_pylist(), sizes):
            own = {"number": number, "audio bytes": size}
            yield f"row {number + 1}", {**_attributes(row["other_attributes"]), **row, **own}
            number += 1


def _read_bytes(table: "Dataset", number: int) -> bytes:
    return table[number]["context"][0].as_py()["bytes"]


def _attributes(text: Any) -> dict[str, Any]:
    """What a JSON object holds; nothing for anything else."""
    try:
        attributes = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def without_labels(choices: tuple[str, ...]) -> tuple[str, ...]:
    """
    The choices without "(A) ", "(B) ", ... if all of them begin so, in order.

    Once, and only then: "A" and the chord "B:maj/1" are options in themselves.
    """
    labels = [f"({letter}) " for letter in ascii_uppercase[: len(choices)]]
    if len(labels) < len(choices) or not all(map(str.startswith, choices, labels)):
        return choices
    return tuple(map(str.removeprefix, choices, labels))


def _without_label(answer: str, labelled: tuple[str, ...]) -> str:
    """The text of an answer that is written as the labelled choices are; another answer as it is."""
    position = position_of(answer, labelled)
    return answer if position is None else without_labels(labelled)[position]
