"""Shards: the files of prepared training data, and how they are written and read back.

A set is a folder of Arrow (or parquet) files and a report.json, which says how the set was made, which shards belong
to it with how many rows each, and whether it is finished. Arrow shards are memory-mapped, so a set can be far larger
than memory, with fast access to any row. Audio is stored as FLAC bytes and stays bytes here: the reader decodes it
with `falcon3_audio.processing.load_audio`. A file gets its name only when it is complete, so a killed run leaves no
partial file; only one process at a time can prepare a set in a folder, see `begin_set`. open_asqa.py and
voice_instructions.py in ../prepare write sets; readers call `read_shards(folder)`.
"""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from datasets import Audio, Dataset, Features, concatenate_datasets

from falcon3_audio.locks import locked
from falcon3_audio.processing import SAMPLING_RATE
from falcon3_audio.whole_files import whole_file, write_json

from .files import as_pattern


# One stored clip: {"bytes": FLAC, "path": name or None}.
AUDIO = Audio(sampling_rate=SAMPLING_RATE, decode=False)
REPORT = "report.json"
LOCK = "set.lock"
SUFFIXES = (".arrow", ".parquet")
ROWS_PER_BATCH = 100  # rows of a record batch (Arrow) or row group (parquet, which is read by whole row groups)
FULL_SCALE = 2**15  # of 16-bit samples

Job = TypeVar("Job")
Result = TypeVar("Result")


def encode_flac(samples: np.ndarray) -> bytes:
    """
    A 16-bit mono FLAC file of float samples at 16 kHz with the shape `(samples,)`.

    16-bit sources are kept bit for bit. A clip that exceeds [-1, 1] (resampling and lossy codecs overshoot) is scaled
    down as a whole, so that nothing is clipped.

    Raises:
        `ValueError`: if samples have another shape, are empty, or are not finite.
    """
    if samples.ndim != 1 or samples.size == 0 or not np.isfinite(samples).all():
        raise ValueError(f"got samples of the shape {samples.shape}; expected finite ones of the shape (samples,)")
    peak = np.abs(samples).max()
    scaled = np.rint(samples * (FULL_SCALE / max(peak, 1.0))).clip(-FULL_SCALE, FULL_SCALE - 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, scaled, SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def write_shard(path: Path, rows: Sequence[Mapping[str, Any]], features: Features) -> None:
    """
    Write rows to `path`, an Arrow stream (`.arrow`) or a parquet file (`.parquet`); the same rows give the same bytes.

    Raises:
        `ValueError`: another suffix, no rows, or a row whose columns are not those of `features`.
        `pyarrow.ArrowException`: for values that do not fit `features`.
        `OSError`: the disk is full; no file is left behind.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"got the shard name {path.name}; expected one that ends in .arrow or .parquet")
    if not rows:
        raise ValueError(f"got no rows for the shard {path.name}")
    for number, row in enumerate(rows):
        if row.keys() != features.keys():
            raise ValueError(f"row {number} of {path.name} has the columns {sorted(row)}; expected {sorted(features)}")
    schema = features.arrow_schema
    open_writer = pa.ipc.new_stream if path.suffix == ".arrow" else pq.ParquetWriter
    with whole_file(path) as file, open_writer(file, schema) as writer:
        for start in range(0, len(rows), ROWS_PER_BATCH):
            batch = list(rows[start : start + ROWS_PER_BATCH])
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))


def run_jobs(function: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """
    `map(function, jobs)` in `workers` processes, with results in the order of the jobs; in this process if there is
    only one worker or one job.

    The first error of a job stops the map: jobs that have not started are dropped. Workers exit with this process,
    even if it is killed.

    Raises:
        `concurrent.futures.process.BrokenProcessPool`: if a worker died, most likely because it ran out of memory.
    """
    if min(workers, len(jobs)) <= 1:
        yield from map(function, jobs)
        return
    # Not forked from this process, whose libraries run threads; the server loads the heavy modules once for all.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_end_with_parent) as pool:
        yield from pool.map(function, jobs)


def _end_with_parent() -> None:
    """Without this, workers whose parent was killed would wait for jobs forever."""

    def watch() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def begin_set(folder: Path, parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """
    The report of the set in `folder`: of one that was started with the same parameters, or else of a new, unfinished
    one. In this context no other process can prepare a set in the folder.

    `parameters` are all values that decide the shards' bytes, as JSON values. The folder is created if it is missing,
    and partial files of a killed run are removed. The parameters can change until the first shard is written.

    Raises:
        `ValueError`: if another process is preparing a set in the folder, or it holds files without a set's report, or
            shards made with other parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_no_others(folder)
    with locked(folder / LOCK) as is_ours:
        if not is_ours:
            raise ValueError(
                f"another process is preparing the set in {folder}; wait until it finishes, or stop it and run this "
                "command again; or pass another folder"
            )
        for left in folder.glob("*.tmp"):
            left.unlink()
        yield _begun_report(folder, parameters)


def _check_no_others(folder: Path) -> None:
    """Raises a `ValueError` if the folder holds files that no preparation of a set wrote."""
    others = (path for path in folder.iterdir() if path.name != LOCK and not path.match(f"{REPORT}.*.tmp"))
    # In this order: another process may write the report in the meantime.
    if any(others) and not (folder / REPORT).exists():
        raise ValueError(f"got the folder {folder}, which holds files but no {REPORT}; pass an empty folder")


def _begun_report(folder: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    new = {"finished": False, "parameters": json.loads(json.dumps(parameters)), "versions": _versions()}
    if (folder / REPORT).exists():
        found = read_report(folder)
        if found["parameters"] == new["parameters"]:
            return found
        if any(path.suffix in SUFFIXES for path in folder.iterdir()):
            raise ValueError(
                f"got the folder {folder}, which holds a set made with {found['parameters']}, but "
                f"{new['parameters']} was asked for; pass another folder, or delete that one"
            )
    write_json(folder / REPORT, new)
    return new


def finish_set(folder: Path, report: Mapping[str, Any], shards: Mapping[str, int]) -> dict[str, Any]:
    """Write and return the report of a complete set; `shards` are their file names in order, with the rows of each."""
    finished = {**report, "finished": True, "shards": dict(shards)}
    write_json(folder / REPORT, finished)
    return finished


def read_report(folder: Path) -> dict[str, Any]:
    """
    The set's report.json, finished or not.

    Raises:
        `ValueError`: if there is none, or it is not a JSON object, or belongs to something else (such as a study).
    """
    path = folder / REPORT
    if not path.is_file():
        raise ValueError(f"got the folder {folder}, which holds no {REPORT}; expected a folder of prepared shards")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}; prepare the set again in another folder") from error
    if not isinstance(report, dict):
        raise ValueError(f"{path} holds a {type(report).__name__}; expected a JSON object; prepare the set again")
    if "parameters" not in report:
        raise ValueError(f"{path} is not a report of a prepared set: it has no `parameters`; pass the folder of a set")
    return report


def is_set(folder: Path) -> bool:
    """Whether the folder has the report of a set, finished or not."""
    try:
        return "parameters" in read_report(folder)
    except ValueError:
        return False


def read_shards(folder: str | os.PathLike) -> Dataset:
    """
    All rows of a finished set in order, memory-mapped, audio as {"bytes", "path"}.

    Arrow shards are mapped in place. Parquet shards are converted once, into the cache of `datasets`.

    Raises:
        `ValueError`: if the folder has no set, the set is unfinished, or a shard is missing, unreadable or has
            another number of rows than the report says.
    """
    folder = Path(folder)
    report = read_report(folder)
    shards = report.get("shards")
    if not report.get("finished") or not shards:
        raise ValueError(
            f"the set in {folder} is not finished ({report.get('failed', 'its preparation stopped')}); run the command "
            "that prepares it again: it continues where it stopped"
        )
    return concatenate_datasets([_read_shard(folder / name, rows) for name, rows in shards.items()])


def _read_shard(path: Path, rows: int) -> Dataset:
    if not path.is_file():
        raise ValueError(f"the shard {path} is missing; copy or prepare the set again")
    try:
        dataset = Dataset.from_file(str(path)) if path.suffix == ".arrow" else Dataset.from_parquet(as_pattern(path))
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file; all mean the same here
        raise ValueError(f"the shard {path} is unreadable: {error}; copy or prepare the set again") from error
    if len(dataset) != rows:
        raise ValueError(f"the shard {path} holds {len(dataset)} rows, its report says {rows}; prepare the set again")
    return dataset


def _versions() -> dict[str, str]:
    """Of the packages that decide the bytes: decoders, resampler, FLAC encoder and Arrow."""
    packages = {name: version(name) for name in ("falcon3-audio", "datasets", "numpy", "pyarrow", "soundfile", "soxr")}
    return {**packages, "libsndfile": soundfile.__libsndfile_version__}
