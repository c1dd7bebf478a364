"""Your own questions: one JSON object a line (or a JSON list of them), with

    id           a text or an integer that no other row has
    audio        path of the clip, or a list of paths in the order in which they are heard
    question     the words, without options and instructions
    choices      optional: the options, a list of texts without labels such as "(A)"; without them the question is open
    answer       optional: one of the choices as it is written there, or the reference of an open question
    description  optional: what is heard, in words, for a judge that cannot hear
    any other    optional: a text; scores are broken down by it

    {"id": 1, "audio": "dog.wav", "question": "What barks?", "choices": ["a dog", "a seal"], "answer": "a dog", "place": "city"}

Paths start at the file's folder, or at `audio_root`, and stay in it. Run: `load_jsonl("mine.jsonl")`
"""

from pathlib import Path
from typing import Any

from .load_checks import (
    FIELD,
    OnError,
    RowFault,
    answer_among,
    choices_of,
    clips_of,
    collect,
    id_of,
    read_rows,
    text_of,
)
from .questions import Question, QuestionSet


KEYS = ("id", "audio", "question", "choices", "answer", "description")


def load_jsonl(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    The questions of a file in the format above, in the groups that its other keys make. A key that is null is not there.

    Raises:
        `ValueError`: a file that cannot be read, and rows as in `load_checks.collect`; among them those with a number or
            a list under another key, which may be a misspelt one.
    """
    path = Path(path)
    rows, sha256 = read_rows(path)

    def to_question(row: dict[str, Any]) -> Question:
        row = {key: value for key, value in row.items() if value is not None}
        choices = choices_of(row["choices"]) if "choices" in row else ()
        answer = text_of(row, "answer") if "answer" in row else None
        return Question(
            id=id_of(row),
            audio=clips_of(Path(audio_root or path.parent), row, "audio"),
            question=text_of(row, "question"),
            choices=choices,
            answer=answer_among(answer, choices) if answer is not None and choices else answer,
            groups={key: _group(row, key) for key in row if key not in KEYS},
            description=text_of(row, "description") if "description" in row else None,
        )

    return collect("jsonl", path, rows, to_question, sha256, on_error)


def _group(row: dict[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise RowFault(FIELD, f"{key!r} is {row[key]!r}, expected a text, or one of the keys {', '.join(KEYS)}")
    return row[key]
