"""MMAU-Pro (github.com/sonalkum/MMAUPro, gamma-lab-umd/MMAU-Pro on the Hub) as published: `test.parquet`.

5,305 questions about one to three clips each, of up to ten minutes, which are in `data/` (data.zip). As in the
published script, there are three kinds by `category`: "open" questions need a judge, those of "instruction following"
are about the form of the reply and have a check (instruction_checks.py), and all others have options. For a few of
the latter, the published answer is none of the options.
Run: `load_mmau_pro("MMAU-Pro/test.parquet")`
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from .instruction_checks import check_of
from .load_checks import (
    OnError,
    choices_of,
    clips_of,
    collect,
    groups_of,
    id_of,
    position_of,
    read_rows,
    text_of,
)
from .load_parquet import is_parquet, plain_rows
from .questions import Question, QuestionSet


OPEN, INSTRUCTIONS = WITHOUT_OPTIONS = ("open", "instruction following")
# The published categories. A file with other ones is not MMAU-Pro's own.
CATEGORIES = (
    *("sound", "music", "speech", "sound_music", "sound_speech", "music_speech", "sound_music_speech"),
    *("spatial_audio", "voice_chat", "multi", OPEN, INSTRUCTIONS),
)
QUESTIONS = 5_305
# `sub-cat` is the column's own spelling.
GROUPS = ("category", "length_type", "sub-cat", "perceptual_skills", "reasoning_skills", "task_identifier")


def load_mmau_pro(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMAU-Pro's questions, in the groups `category`, `length_type`, `sub-cat`, the two kinds of skills and, for
    instructions, `task_identifier`. Open questions have no options, even if the file has some: the published script
    does not use them.

    Args:
        path: `test.parquet`, or its rows as JSON lines or a JSON list.
        audio_root: root of the paths; by default the file's folder.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: a file that cannot be read, or faulty rows, see `load_checks.collect`.
    """
    path = Path(path)
    rows, sha256 = plain_rows(path) if is_parquet(path) else read_rows(path)

    def to_question(row: dict[str, Any]) -> Question:
        category = text_of(row, "category")
        choices = () if category in WITHOUT_OPTIONS else choices_of(row.get("choices"))
        answer = None if category == INSTRUCTIONS else text_of(row, "answer")
        return Question(
            id=id_of(row),
            audio=clips_of(Path(audio_root or path.parent), row, "audio_path"),
            question=text_of(row, "question"),
            choices=choices,
            # Kept as it is: for some published questions it is none of the options, see `rules.mmau_pro`.
            answer=answer if answer is None or (place := position_of(answer, choices)) is None else choices[place],
            groups=groups_of(row, GROUPS),
            check=check_in(row),
        )

    return collect("mmau-pro", path, rows, to_question, sha256, on_error)


def check_in(row: dict[str, Any]) -> dict[str, Any] | None:
    """The check of a row of the category "instruction following", see `check_of`; `None` for other rows."""
    if row.get("category") != INSTRUCTIONS:
        return None
    parameters = row.get("kwargs")
    if isinstance(parameters, str):  # rewritten parquet can contain JSON
        with suppress(ValueError):  # `check_of` reports it
            parameters = json.loads(parameters)
    return check_of(row.get("task_identifier"), parameters, text_of(row, "question"))
