"""MMSU (github.com/dingdongwang/MMSU, ddwang2000/MMSU on the Hub) as published: 5,000 questions on speech in 47 tasks.

On the Hub it is parquet files with embedded audio; in JSON lines, the format in which the published scripts keep
predictions, the clips are separate files. Each question has two to four options, and the answer is the text of one.
Run: `load_mmsu("MMSU/data")`
"""

from pathlib import Path
from typing import Any

from .load_checks import (
    OnError,
    Source,
    answer_among,
    clip_of,
    collect,
    groups_of,
    id_of,
    lettered_choices,
    read_rows,
    text_of,
)
from .load_parquet import clip_in, is_parquet, open_parquet, table_rows
from .questions import Question, QuestionSet


QUESTIONS, TASKS = 5_000, 47
AUDIO = "audio"  # the parquet files' column with the clips
COLUMNS = (AUDIO, "id", "task_name", "question", "choice_a", "choice_b", "answer_gt")
GROUPS = ("category", "sub-category", "sub-sub-category", "linguistics_sub_discipline")


def load_mmsu(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    MMSU's questions, in the groups `task`, `category`, `sub-category`, `sub-sub-category` and `linguistics_sub_discipline`.

    Args:
        path: a parquet file, a folder of parquet files, JSON lines or a JSON list with `audio_path`.
        audio_root: root of the paths in the JSON; by default its folder. Parquet files contain their audio.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: files that cannot be read, or faulty rows, see `load_checks.collect`.
    """
    path = Path(path)
    rows, clip, sha256 = _parquet(path, audio_root) if is_parquet(path) else _json(path, audio_root)

    def to_question(row: dict[str, Any]) -> Question:
        choices = lettered_choices(row)
        return Question(
            id=id_of(row),
            audio=(clip(row),),
            question=text_of(row, "question"),
            choices=choices,
            answer=answer_among(text_of(row, "answer_gt"), choices),
            groups={"task": text_of(row, "task_name"), **groups_of(row, GROUPS)},
        )

    return collect("mmsu", path, rows, to_question, sha256, on_error)


def _parquet(path: Path, audio_root: Path | None) -> Source:
    table, sha256 = open_parquet(path, COLUMNS, "MMSU", audio_root)
    # The paths may not be unique, but every question has its own clip.
    return list(table_rows(table, AUDIO)), lambda row: clip_in(table, AUDIO, row, id_of(row)), sha256


def _json(path: Path, audio_root: Path | None) -> Source:
    rows, sha256 = read_rows(path)
    return rows, lambda row: clip_of(audio_root or path.parent, text_of(row, "audio_path")), sha256
