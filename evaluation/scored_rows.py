"""The rows that are scored or compared: those of a prediction file, or one for each question of the benchmark's own file."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .benchmarks import BENCHMARKS
from .load_air_bench import FOUNDATION
from .load_checks import read_rows
from .load_jsonl import KEYS
from .option_labels import without_label, without_labels
from .predictions import MISSING, Prediction, Predictions, read_predictions
from .questions import file_sha256, some, spelled_id


NO_GROUP = "(none)"


def questions_of(
    predictions: Predictions, benchmark: str, data: str | Path | None
) -> tuple[list[Prediction], dict[str, str] | None]:
    """
    The rows to score: those of the prediction file, or one for each question in `data`, with the digests of its files.

    Raises:
        `ValueError`: no rows, predictions for questions that `data` does not have, or that are worded differently
            there.
    """
    if not predictions.rows:
        raise ValueError(f"{predictions.path} holds no rows.")
    said = [tidy(row) for row in predictions.rows]
    if data is None:
        return said, None
    asked, sha256 = _read_questions(Path(data), benchmark)
    replies = {row.id: row for row in said}
    unknown = replies.keys() - {question.id for question in asked}
    if unknown:
        raise ValueError(f"{predictions.path} has {some(sorted(unknown))} that {data} does not have.")
    other = [question.id for question in asked if question.id in replies and _differ(question, replies[question.id])]
    if other:
        raise ValueError(
            f"{some(other)} in {predictions.path} have another question, other options or another answer than in "
            f"{data}: the predictions are for another version of the benchmark. Score them with that version, or "
            "without --data."
        )
    return [_join(question, replies.get(question.id)) for question in asked], sha256


def _read_questions(path: Path, benchmark: str) -> tuple[list[Prediction], dict[str, str]]:
    """A benchmark's questions as rows without a reply. Clips are needed only if rows are incomplete, see `plain`."""
    if path.suffix not in BENCHMARKS[benchmark].plain:
        loaded = BENCHMARKS[benchmark].load(path)
        shared = ("id", "question", "choices", "answer", "groups", "check", "references")
        values = [
            {name: getattr(question, name) for name in shared} | {"audio": tuple(clip.name for clip in question.audio)}
            for question in loaded.questions
        ]
        return [tidy(Prediction(status=MISSING, reply=None, **row)) for row in values], loaded.sha256
    rows = [tidy(replace(row, status=MISSING, reply=None)) for row in read_predictions(path).rows]
    if benchmark == "jsonl":  # the groups are the user's own
        content, _ = read_rows(path)
        groups = [
            {key: row[key] for key in row if key not in KEYS and isinstance(row[key], str)} for _, row in content
        ]
        rows = [replace(row, groups=own) for row, own in zip(rows, groups)]
    return rows, {path.name: file_sha256(path)}


def tidy(row: Prediction) -> Prediction:
    """
    A row as the loaders would create it: no white space around id, options and answer, no empty options (MMAR has
    some), and AIR-Bench's `task_name` as `task` and `domain`. Ids are in one Unicode spelling.
    """
    choices = tuple(choice.strip() for choice in row.choices if choice.strip())
    task = row.groups.get("task_name")
    groups = {"task": task, "domain": FOUNDATION.get(task, NO_GROUP)} | row.groups if task else row.groups
    answer = row.answer and row.answer.strip()
    return replace(row, id=spelled_id(row.id), choices=choices, answer=answer, groups=groups)


def _differ(question: Prediction, row: Prediction) -> bool:
    pairs = (
        (_spelled(question.question.strip()), _spelled(row.question.strip())),
        (options_of(question), options_of(row)),
        (answer_of(question), answer_of(row)),
    )
    return any(asked and said and asked != said for asked, said in pairs)


def options_of(row: Prediction) -> tuple[str, ...]:
    """The options in the form in which rows are compared: without labels, in one Unicode spelling."""
    return tuple(map(_spelled, without_labels(row.choices)))


def answer_of(row: Prediction) -> str | None:
    """The answer, in the form of `options_of`."""
    return None if row.answer is None else _spelled(without_label(row.answer, row.choices))


def _spelled(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _join(question: Prediction, row: Prediction | None) -> Prediction:
    if row is None:
        return question
    said = {name: getattr(row, name) for name in ("status", "reply", "error", "prompt")}
    return replace(question, **said, audio=row.audio or question.audio, groups=row.groups | question.groups)


def check_answers(rows: Sequence[Prediction]) -> None:
    """Raises `ValueError` if any row has no answer."""
    hidden = [row.id for row in rows if not row.answer and row.check is None]
    if hidden:
        raise ValueError(
            f"{some(hidden)} of {len(rows)} have no answer, so they cannot be scored here. For a test set with "
            "withheld answers, --submission FILE --data QUESTIONS writes what its authors score; if you have the "
            "answers, give them with --data."
        )


__all__ = ["NO_GROUP", "answer_of", "check_answers", "options_of", "questions_of", "tidy"]
