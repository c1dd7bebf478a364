"""AudioCaps (github.com/cdjkim/audiocaps), Clotho (zenodo.org/records/4783391) as published: several captions a clip.

A clip is one question, and all its captions are references for the reply (caption_metrics.py). AudioCaps' `test.csv`
has a row for each caption; its clips come from YouTube, so their file names differ between copies: `ID.wav`, `YID.wav`
and `ID_START.wav` are recognised, with START in seconds as in the file. Clotho's `clotho_captions_evaluation.csv` has
five captions a row, and its clips are in `evaluation/`.
Run: `load_audiocaps("audiocaps/test.csv")`, `load_clotho("clotho/clotho_captions_evaluation.csv")`
"""

from pathlib import Path
from typing import Any

from .load_asr import SUFFIXES
from .load_checks import AUDIO_MISSING, FIELD, OnError, Row, RowFault, clip_of, collect, read_csv, text_of
from .questions import Clip, Question, QuestionSet, file_sha256


ASK = "Describe what is heard in one sentence."
AUDIOCAPS = ("audiocap_id", "youtube_id", "start_time", "caption")
CLOTHO_CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
CLOTHO_PREFIX = "clotho_captions_"  # followed by the split, which is also the name of the clips' folder


def load_audiocaps(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    A question for each clip, under its YouTube id.

    Args:
        path: `test.csv`, or a file with the same columns.
        audio_root: the folder of the clips; by default the file's.
        on_error: "raise", or "skip" to leave out clips that cannot be used.

    Raises:
        `ValueError`: a file that cannot be read or lacks columns, or faulty clips, see `load_checks.collect`,
            including clips with an empty caption or with different starts in two rows.
    """
    path = Path(path)
    rows = read_csv(path, AUDIOCAPS, "AudioCaps")

    def to_question(row: dict[str, Any]) -> Question:
        if len(row["starts"]) > 1:
            raise RowFault(FIELD, f"'start_time' is {' and '.join(map(repr, row['starts']))} in rows of one clip")
        identity = text_of(row, "youtube_id")
        return _question(identity, _audiocaps_clip(audio_root or path.parent, identity, row["starts"][0]), row)

    return collect("audiocaps", path, _by_clip(rows), to_question, {path.name: file_sha256(path)}, on_error)


def load_clotho(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    A question for each clip, under its file name.

    Args:
        path: `clotho_captions_evaluation.csv`, or that of another split.
        audio_root: the folder of the clips; by default `evaluation` (or the other split) next to the file.
        on_error: "raise", or "skip" to leave out clips that cannot be used.

    Raises:
        `ValueError`: a file that cannot be read or lacks columns, or faulty rows, see `load_checks.collect`.
    """
    path = Path(path)
    rows = read_csv(path, ("file_name", *CLOTHO_CAPTIONS), "Clotho")
    folder = audio_root or path.parent / path.stem.removeprefix(CLOTHO_PREFIX)

    def to_question(row: dict[str, Any]) -> Question:
        name = text_of(row, "file_name")
        captions = {"captions": [row[key] for key in CLOTHO_CAPTIONS]}
        return _question(name, clip_of(folder, name), captions)

    return collect("clotho", path, rows, to_question, {path.name: file_sha256(path)}, on_error)


def _question(identity: str, clip: Clip, row: dict[str, Any]) -> Question:
    for caption in row["captions"]:
        text_of({"caption": caption}, "caption")
    captions = tuple(caption.strip() for caption in row["captions"])
    return Question(identity, (clip,), ASK, answer=captions[0], references=captions)


def _by_clip(rows: list[Row]) -> list[Row]:
    """One row per clip with all its captions, in order of first occurrence; rows without an id stay as they are."""
    clips: dict[str, dict[str, Any]] = {}
    found: list[Row] = []
    for place, row in rows:
        identity = row["youtube_id"] or place
        if identity not in clips:
            clips[identity] = {"id": identity, "youtube_id": row["youtube_id"], "captions": [], "starts": []}
            found.append((place, clips[identity]))
        clips[identity]["captions"].append(row["caption"])
        if row["start_time"] not in clips[identity]["starts"]:
            clips[identity]["starts"].append(row["start_time"])
    return found


def _audiocaps_clip(folder: Path, identity: str, start: str) -> Clip:
    stems = (identity, f"Y{identity}", f"{identity}_{start}")
    found = [name for suffix in SUFFIXES for stem in stems if (folder / (name := f"{stem}{suffix}")).is_file()]
    if not found:
        raise RowFault(AUDIO_MISSING, f"none of {', '.join(stems)} with {', '.join(SUFFIXES)} in {folder}")
    return clip_of(folder, found[0], identity)


__all__ = ["load_audiocaps", "load_clotho"]
