"""Submissions to benchmarks whose authors withhold the answers: their own rows, each with the model's reply.

Run: `falcon3-audio score OUT --data mmau-test.json --submission FILE`
"""

from collections.abc import Sequence
from pathlib import Path

from falcon3_audio.strict_json import parse_json
from falcon3_audio.whole_files import write_json

from .load_checks import id_key
from .predictions import Prediction
from .questions import some, spelled_id


def write_submission(rows: Sequence[Prediction], data: Path, path: Path) -> None:
    """
    Writes MMAU's submission format: the benchmark's own rows, each with the unchanged reply under `model_prediction`.

    Args:
        rows: of `scored_rows.questions_of`, one for each question in `data`.

    Raises:
        `ValueError`: `data` is not a JSON list, or a question has no reply.
    """
    questions = parse_json(data.read_text(encoding="utf-8-sig"))
    if not isinstance(questions, list):
        raise ValueError(f"{data} is not a JSON list of questions; a submission is based on MMAU's JSON file.")
    unanswered = [row.id for row in rows if row.reply is None]
    if unanswered:
        raise ValueError(f"{some(unanswered)} have no reply; run the model on them first.")
    replies = {row.id: row.reply for row in rows}
    write_json(
        path,
        [
            question | {"model_prediction": replies[spelled_id(str(question[id_key(question)]))]}
            for question in questions
        ],
    )


__all__ = ["write_submission"]
