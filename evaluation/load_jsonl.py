"""Your own questions: one JSON object per line (or a JSON list of them), with

    id           a text or an integer that no other row has
    audio        path of the clip, or a list of paths in the order in which they are heard
    question     the text, without options and instructions
    choices      optional: the options, a list of texts without labels such as "(A)"; without them the question is open
    answer       optional: one of the choices as it is written there, or the reference of an open question
    description  optional: the audio described in text, for a judge that cannot hear
    any other    optional: a text; scores are broken down by it

    {"id": 1, "audio": "dog.wav", "question": "What barks?", "choices": ["a dog", "a seal"], "answer": "a dog", "place": "city"}

Paths are relative to the file's folder, or to `audio_root`, and must stay in it. Run: `load_jsonl("mine.jsonl")`
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
    The questions of a file in the format above, grouped by its other keys. A null value counts as missing.

    Raises:
        `ValueError`: a file that cannot be read, or faulty rows, see `load_checks.collect`, including those with a
            number or a list under another key, which can be a misspelt one.
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
