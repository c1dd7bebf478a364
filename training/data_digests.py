"""Digests of the files of a run's sets: a run resumes only with the data it was started with.

Text files are hashed in full. Other files can contain the audio and be larger than memory: of these the size and both
ends are hashed, where the sizes of their parts are stored. Separate audio files, streamed sets and sets on the Hub
are not covered.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from falcon3_audio.evaluation.questions import file_sha256

from .arguments import DataArguments
from .data.open_dataset import ALL, BY_DATASETS, SAVED, files_in
from .data.shards import REPORT
from .data.sources import DataSource
from .data.text_rows import TAR
from .run_folder import DATA_SHA256


END = 2**20  # bytes


def data_digests(data: DataArguments) -> dict[str, dict[str, list[str | None]]]:
    """For a run's recipe: the digest of each set of `train_data` and `eval_data`, `None` if it is not covered."""
    return {
        DATA_SHA256: {
            "train_data": [set_digest(source) for source in data.train_data],
            "eval_data": [set_digest(source) for source in data.eval_data],
        }
    }


def set_digest(source: DataSource) -> str | None:
    """Digest of the files with a set's rows, and of their names in its folder. For sets that can be opened."""
    path = Path(source.path)
    if source.streaming or not path.exists():
        return None
    files = [(os.path.relpath(file, path), _digest(file)) for file in sorted(_files_of(path))]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _files_of(path: Path) -> Sequence[Path]:
    if (path / REPORT).exists():  # which names the shards
        return [path / REPORT]
    if any((path / name).is_file() for name in SAVED):
        return [file for ending in ("arrow", "json") for file in path.rglob(f"*.{ending}")]
    return [Path(file) for file in itertools.chain(*files_in(path)[1].values())]


def _digest(file: Path) -> str:
    if ALL.get(file.suffix.lower()) not in (*BY_DATASETS, TAR):
        return file_sha256(file)
    size = file.stat().st_size
    with open(file, "rb") as opened:
        start = opened.read(END)
        opened.seek(max(END, size - END))
        return hashlib.sha256(f"{size} ".encode() + start + opened.read()).hexdigest()
