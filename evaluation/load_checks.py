"""Shared by all loaders of questions: reading and checking rows, and reporting which cannot be used and why.

No faulty row is skipped silently: by default loading stops with a list of what is wrong and where; with
`on_error="skip"` the row's id is kept in `QuestionSet.left_out`. Each row is counted under the first fault found.
Audio files are looked for but not read. Paths in a benchmark's file must not lead out of the audio folder, since the
files that they name can be sent to an endpoint; links inside that folder are the user's own and are followed.
"""

import csv
import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from falcon3_audio.strict_json import parse_json

from .questions import Clip, Question, QuestionSet, spelled_id


OnError = Literal["raise", "skip"]
# ("row 7", its content): rows are numbered from 1, JSON lines by their line in an editor.
Row = tuple[str, Any]
# The rows of a set, the clip of each, the file digests.
Source = tuple[list[Row], Callable[[dict[str, Any]], Clip], dict[str, str]]
Fault = tuple[str, str, str]  # the row's id, or its place if it has none; its place; what is wrong

FIELD = "field missing or malformed"
AUDIO_MISSING = "audio file missing"
OUTSIDE = "path outside the audio folder"
NOT_A_CHOICE = "answer not among the choices"
DUPLICATE = "id already used"
EXAMPLES = 3  # rows that an error names, per reason


class RowFault(Exception):
    """A row cannot be used: the `reason`, shared by all rows with this fault, and the `detail` of this row."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_rows(path: Path) -> tuple[list[Row], dict[str, str]]:
    """
    The rows of a JSON list or of JSON lines, and the file's SHA-256 by its name.

    Raises:
        `ValueError`: no such file, or one that is neither.
        `OSError`: for a file that cannot be opened.
    """
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a JSON file.")
    content = path.read_bytes()
    sha256 = {path.name: hashlib.sha256(content).hexdigest()}
    where = ""
    try:
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return [(f"row {number}", row) for number, row in enumerate(parse_json(text), 1)], sha256
        rows = []
        for number, line in enumerate(text.split("\n"), 1):
            where = f" in line {number}"
            if line.strip():
                rows.append((f"line {number}", parse_json(line)))
        return rows, sha256
    except (ValueError, RecursionError) as error:  # invalid JSON or UTF-8, or lists nested too deeply
        raise ValueError(f"{path} is neither a JSON list nor JSON lines{where}: {error}") from None


def read_csv(path: Path, columns: Iterable[str], benchmark: str) -> list[Row]:
    """
    The rows of a CSV file with a header, by column; "line 7" is the line where a row ends.

    Args:
        columns: those that the file must have.
        benchmark: name of the benchmark, for messages.

    Raises:
        `ValueError`: no such file, not a CSV in UTF-8, or missing columns.
    """
    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected {benchmark}'s CSV.")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows: list[Row] = [(f"line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    missing = [name for name in columns if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"{path} has the columns {reader.fieldnames}; {benchmark}'s file also has {missing}.")
    return rows


def collect(
    benchmark: str,
    path: Path,
    rows: Iterable[Row],
    to_question: Callable[[dict[str, Any]], Question],
    sha256: dict[str, str],
    on_error: OnError,
) -> QuestionSet:
    """
    The questions of all rows.

    Args:
        benchmark, sha256: as in `QuestionSet`.
        path: what was read, for messages.
        to_question: turns a row into a question, or raises `RowFault`.
        on_error: "raise", or "skip" to leave faulty rows out. Of rows with the same id the first is kept.

    Raises:
        `ValueError`: no rows, none that can be used, or, unless they are skipped, any faulty row.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f'got on_error={on_error!r}; expected "raise" or "skip".')
    questions: dict[str, Question] = {}
    faults: dict[str, list[Fault]] = {}
    count = 0
    for place, row in rows:
        count += 1
        try:
            question = to_question(object_of(row))
            identity = spelled_id(question.id)
            if identity in questions:
                raise RowFault(DUPLICATE, "an earlier row has it")
            questions[identity] = question
        except RowFault as fault:
            faults.setdefault(fault.reason, []).append((_id_or_place(row, place), place, fault.detail))
    if count == 0:
        raise ValueError(f"{path} holds no rows; expected one for each question.")
    if faults and (on_error == "raise" or not questions):
        raise ValueError(_message(path, count, faults))
    left_out = {reason: [identity for identity, _, _ in found] for reason, found in faults.items()}
    return QuestionSet(benchmark, tuple(questions.values()), sha256, left_out)


def _id_or_place(row: Any, place: str) -> str:
    key = id_key(row) if isinstance(row, dict) else None
    return place if key is None else str(row[key])


def _message(path: Path, count: int, faults: dict[str, list[Fault]]) -> str:
    """On one line: how many rows are faulty, and for each reason how many and the first few."""
    parts = []
    for reason, found in faults.items():
        examples = [f"{place} ({identity}): {detail}" for identity, place, detail in found[:EXAMPLES]]
        more = [f"and {len(found) - EXAMPLES} more"] if len(found) > EXAMPLES else []
        parts.append(f"{reason} in {len(found)} [{'; '.join(examples + more)}]")
    total = sum(map(len, faults.values()))
    advice = "Correct the file, or skip them (--on-error skip)."
    if total == count:
        paths = "Is --audio-root the folder where the paths start?"
        advice = paths if list(faults) == [AUDIO_MISSING] else "Is it a file of this benchmark?"
    return f"{path}: {total} of {count} rows cannot be used: {', '.join(parts)}. {advice}"


def text_of(row: dict[str, Any], key: str) -> str:
    """A required text. Raises `RowFault` if it is missing, empty or of another type."""
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(FIELD, f"{key!r} is {value!r}, expected a text" if key in row else f"no {key!r}")
    return value


def object_of(row: Any) -> dict[str, Any]:
    """A row that is a JSON object. Raises a `RowFault` for anything else."""
    if not isinstance(row, dict):
        raise RowFault(FIELD, f"expected a JSON object, got {type(row).__name__}")
    return row


def id_key(row: dict[str, Any]) -> str | None:
    """The key of a published row's id; `None` if it has none."""
    return next((name for name in ("id", "uniq_id") if row.get(name) is not None), None)


def id_of(row: dict[str, Any], key: str = "id") -> str:
    """The row's id, a text or an integer. Raises `RowFault` for anything else."""
    value = row.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else text_of(row, key)


def optional_text_of(row: dict[str, Any], key: str) -> str | None:
    """A text, possibly empty; `None` if it is null or missing. Raises `RowFault` for any other type."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowFault(FIELD, f"{key!r} is {value!r}, expected a text")
    return value


def groups_of(row: dict[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """
    The groups among `keys` that the row has; an empty text or list does not count, the number 0 does. Some MMAU rows
    have a list of one category. Raises `RowFault` for a value that is not a text, a number or a list of these.
    """
    values = {key: row[key] for key in keys if row.get(key) not in (None, "", [])}
    for key, value in values.items():
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, (str, int, float)) for part in parts):
            raise RowFault(FIELD, f"{key!r} is {value!r}, expected a text")
        values[key] = ", ".join(map(str, parts))
    return values


def choices_of(options: Any) -> tuple[str, ...]:
    """
    The options' texts as they are, without empty ones at the end (MMAR has some; they cannot be chosen).

    Raises:
        `RowFault`: fewer than two, an empty one before others, or one that is not a text.
    """
    if not isinstance(options, (list, tuple)) or not all(isinstance(option, str) for option in options):
        raise RowFault(FIELD, f"the options are {options!r}, expected a list of texts")
    texts = list(options)
    while texts and not texts[-1].strip():
        texts.pop()
    if len(texts) < 2 or not all(text.strip() for text in texts):
        raise RowFault(FIELD, f"the options are {options!r}, expected two or more, none empty")
    return tuple(texts)


def lettered_choices(row: dict[str, Any]) -> tuple[str, ...]:
    """The options under `choice_a` to `choice_d`, see `choices_of`; none can follow a missing or null one."""
    return choices_of([row.get(f"choice_{letter}") or "" for letter in "abcd"])


def position_of(answer: str, choices: tuple[str, ...]) -> int | None:
    """The position of the first choice that equals the answer, or else that differs only in outer white space."""
    if answer in choices:
        return choices.index(answer)
    return next((number for number, choice in enumerate(choices) if choice.strip() == answer.strip()), None)


def answer_among(answer: str, choices: tuple[str, ...]) -> str:
    """The answer as it is written among the choices. Raises `RowFault` if it is not there."""
    position = position_of(answer, choices)
    if position is None:
        raise RowFault(NOT_A_CHOICE, f"{answer!r} is none of {list(choices)}")
    return choices[position]


def clip_of(root: Path, path: str, name: str | None = None) -> Clip:
    """
    A clip in the folder `root`, named `name`, or by default its path as written.

    Raises:
        `RowFault`: a path that leads out of the folder, or to no file.
    """
    folder = os.path.abspath(root)
    file = os.path.abspath(os.path.join(folder, path))  # resolves "..", but does not follow links
    if os.path.commonpath([folder, file]) != folder:
        raise RowFault(OUTSIDE, f"{path!r} is not in {root}")
    if not os.path.isfile(file):
        raise RowFault(AUDIO_MISSING, f"no file {file}")
    return Clip.from_file(file, path if name is None else name)


def clips_of(root: Path, row: dict[str, Any], key: str) -> tuple[Clip, ...]:
    """The clips of a row's path or list of paths, in order. Raises `RowFault` for neither, or as `clip_of` does."""
    paths = row.get(key)
    several = paths if isinstance(paths, list) else [text_of(row, key)]
    if not several or not all(isinstance(path, str) and path for path in several):
        raise RowFault(FIELD, f"{key!r} is {paths!r}, expected a path or a list of paths")
    return tuple(clip_of(root, path) for path in several)
