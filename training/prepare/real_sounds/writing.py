"""How a set's files are written: under a temporary name first, and as JSON lines.

Clips are not flushed to the disk one by one, which would take longer than creating them: the next run rewrites the
clips of a run that stopped early.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from falcon3_audio.whole_files import whole_file

from .clips import MIXED, Clip


@contextmanager
def _placed(path: Path) -> Iterator[Path]:
    """A temporary name that is renamed to `path`, or removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> None:
    """16-bit wav of mono samples within -1 and 1."""
    buffer = io.BytesIO()  # libsndfile flushes each file that it writes to the disk
    soundfile.write(buffer, samples, rate, subtype="PCM_16", format="WAV")
    with _placed(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def copy_recordings(clips: Iterable[Clip], folders: Mapping[str, Path], out: Path) -> None:
    """Copy the packages' files unchanged into the set; clips of a split are read from there afterwards."""
    for clip in clips:
        clip.path = recording_path(clip, folders[clip.source])
        if clip.split == MIXED:
            continue
        with _placed(out / clip.path) as temporary:
            shutil.copyfile(clip.file, temporary)
        clip.file = out / clip.path


def recording_path(clip: Clip, folder: Path) -> str:
    """Where a recording is in the set; the digest distinguishes files of the same name, wherever the cache is."""
    parts = ("debs", "unpacked", folder.name, *clip.file.relative_to(folder).parts)
    name = re.sub(r"[^\w.+-]+", "_", "_".join(parts[-3:]))
    digest = hashlib.sha256(str(parts[-6:]).encode()).hexdigest()[:6]
    return f"audio/{clip.split}/{clip.source}/{digest}-{name}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with whole_file(path) as file:
        for row in rows:
            file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def write_benchmark(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON list; no file if there are no questions, since no loader takes an empty list."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    with whole_file(path) as file:
        file.write(json.dumps(rows, indent=1, ensure_ascii=False).encode())


def clip_row(clip: Clip) -> dict[str, Any]:
    """A line of clips.jsonl."""
    row = {
        "path": clip.path,
        "domain": clip.domain,
        "labels": clip.labels,
        "source": clip.source,
        "licence": clip.licence,
        "seconds": clip.seconds,
        "split": clip.split,
        "voice": clip.voice,
    }
    return row | ({"made_of": clip.made_of} if clip.made_of else {})


def remove_others(folder: Path, clips: Iterable[Clip]) -> None:
    """Delete clips left by an earlier run with other packages or another seed, and partial files."""
    kept = {clip.file for clip in clips}
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file() and path not in kept:
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
