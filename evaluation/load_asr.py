"""Recordings with transcripts, for word and character error rates: any set of transcribed clips, in splits.

Four formats are read. LibriSpeech as published (openslr.org/12): folders with a `*.trans.txt` next to the clips.
Parquet files with embedded audio, as in the Hub's LibriSpeech and the sets of the Open ASR leaderboard. JSON lines or
a JSON list with `audio` (or `audio_filepath`). Parquet and JSON files can also be in a folder. The transcript is the
first of `text`, `sentence`, `normalized_text`, `transcript` and `transcription` that a row has.
Run: `load_asr("LibriSpeech")`
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .load_checks import FIELD, OnError, Row, RowFault, Source, clip_of, collect, groups_of, id_of, read_rows, text_of
from .load_parquet import clip_in, open_parquet, split_of, table_rows
from .questions import Clip, Question, QuestionSet, file_sha256


ASK = "Write down what is said, word for word."
TEXTS = ("text", "sentence", "normalized_text", "transcript", "transcription")  # those of the Open ASR leaderboard
AUDIO, AUDIO_PATHS = "audio", ("audio", "audio_filepath")  # the second is NeMo's
# Of the clips in a LibriSpeech folder, and of copies in other formats.
SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus")
GROUPS = ("dataset", "language")  # besides the split
SPLIT = "split of the file"


def load_asr(path: str | Path, audio_root: Path | None = None, on_error: OnError = "raise") -> QuestionSet:
    """
    A question for each recording, with the transcript as its answer, in the groups `split`, `dataset` and `language`.

    If several recordings have the same id, the id is the file's name and the place there. The split is the row's own,
    or else the name of its file without "-00000-of-00001", or of LibriSpeech's folder.

    Args:
        path: a folder of LibriSpeech or of one of its splits; a parquet, JSON or JSON lines file, or a folder of those.
        audio_root: where paths in JSON start; each file's folder by default.
        on_error: "raise", or "skip" to leave out rows that cannot be used.

    Raises:
        `ValueError`: files that cannot be read, or faulty rows, see `load_checks.collect`, such as an empty
            transcript.
    """
    path = Path(path)
    rows, clip, sha256 = _source(path, audio_root)
    ids = Counter(str(row.get("id")) for _, row in rows if isinstance(row, dict))
    if max(ids.values(), default=0) > 1:  # as in FLEURS, whose ids are of sentences that several people read
        rows = [(place, row | {"id": place} if isinstance(row, dict) else row) for place, row in rows]

    def to_question(row: dict[str, Any]) -> Question:
        key = next((key for key in TEXTS if row.get(key) is not None), None)
        if key is None:
            raise RowFault(FIELD, f"no transcript (looked for {', '.join(TEXTS)})")
        return Question(
            id=id_of(row),
            audio=(clip(row),),
            question=ASK,
            answer=text_of(row, key),
            groups={"split": row[SPLIT], **groups_of(row, ("split", *GROUPS))},
        )

    return collect("asr", path, rows, to_question, sha256, on_error)


def _source(path: Path, audio_root: Path | None) -> Source:
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected a file of transcripts, or a folder of them.")
    for suffix, read in ((".parquet", _parquet), (".jsonl", _json), (".json", _json)):
        files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else [path] if path.suffix == suffix else []
        if files:
            return read(files, audio_root)
    files = sorted(path.rglob("*.trans.txt")) if path.is_dir() else []
    if not files:
        raise ValueError(
            f"{path} holds no transcripts; expected parquet, .json or .jsonl files, or LibriSpeech's folders of .trans.txt."
        )
    return _librispeech(files, audio_root)


def _parquet(files: list[Path], audio_root: Path | None) -> Source:
    rows: list[Row] = []
    tables = {}
    sha256: dict[str, str] = {}
    for file in files:
        tables[str(file)], digest = open_parquet(file, (AUDIO,), "an ASR set", audio_root)
        sha256 |= digest
        rows += _named(file, files, table_rows(tables[str(file)], AUDIO))
    return rows, lambda row: clip_in(tables[row["file"]], AUDIO, row, id_of(row)), sha256


def _json(files: list[Path], audio_root: Path | None) -> Source:
    rows: list[Row] = []
    sha256: dict[str, str] = {}
    for file in files:
        content, digest = read_rows(file)
        sha256 |= digest
        rows += _named(file, files, iter(content))

    def clip(row: dict[str, Any]) -> Clip:
        key = next((key for key in AUDIO_PATHS if key in row), AUDIO)
        return clip_of(audio_root or Path(row["file"]).parent, text_of(row, key))

    return rows, clip, sha256


def _named(file: Path, files: list[Path], rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of one of several files, each with its file and split; a row without an id gets its place as its id."""
    split = split_of(file)
    alone = [split_of(other) for other in files].count(split) == 1
    for place, row in rows:
        if isinstance(row, dict):
            identity = f"{split if alone else file.stem}, {place}" if row.get("id") is None else row["id"]
            row = row | {"id": identity, SPLIT: split, "file": str(file)}
        yield f"{file.name}, {place}", row


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, numbered from 1."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from None
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _librispeech(files: list[Path], audio_root: Path | None) -> Source:
    """`SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt`: each line has an id and its transcript."""
    if audio_root is not None:
        raise ValueError(
            f"got the audio folder {audio_root}, but LibriSpeech's clips are next to {files[0]}; leave it out."
        )
    rows: list[Row] = []
    digests: dict[str, list[str]] = {}
    for file in files:
        split = file.absolute().parents[2].name
        digests.setdefault(split, []).append(f"{file_sha256(file)}  {file.name}\n")
        for number, line in _lines(file):
            identity, _, text = line.partition(" ")
            row = {"id": identity, "text": text, SPLIT: split, "folder": file.parent}
            rows.append((f"{file.name}, line {number}", row))

    def clip(row: dict[str, Any]) -> Clip:
        names = [f"{id_of(row)}{suffix}" for suffix in SUFFIXES]
        name = next((name for name in names if (row["folder"] / name).is_file()), names[0])
        return clip_of(row["folder"], name)

    # One digest per split, of the lines that `sha256sum` prints for its transcripts.
    return rows, clip, {split: hashlib.sha256("".join(lines).encode()).hexdigest() for split, lines in digests.items()}
