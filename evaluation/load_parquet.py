"""Parquet files with embedded audio, as in the Hub's datasets: a column of structs with `bytes` and `path`.

`datasets` converts the files once into its cache, one row group at a time, and memory-maps the cache: reading one clip
from the parquet itself would read its whole row group, which can be the whole file. Rows are read without their audio.
Run: `table, sha256 = open_parquet(path, ("audio", "question"), "MMSU")`, then `table_rows(table, "audio")`
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .load_checks import AUDIO_MISSING, Row, RowFault
from .questions import Clip, file_sha256


if TYPE_CHECKING:
    from datasets import Dataset


# For the conversion from parquet. The default is the length of a row group, and fails for a file without rows.
ROWS_PER_BATCH = 100
# Keys that `table_rows` adds to a row: its number from 0, and the size of its audio in bytes.
NUMBER, AUDIO_BYTES = "row number", "audio bytes"


def is_parquet(path: Path) -> bool:
    """Whether a path is a folder (of parquet files), or a parquet file by its name."""
    return path.is_dir() or path.suffix == ".parquet"


def split_of(file: Path) -> str:
    """The split in the name of a file of the Hub: without "-00000-of-00001"."""
    return re.sub(r"-\d{5}-of-\d{5}$", "", file.stem)


def open_parquet(
    path: Path, columns: Sequence[str], benchmark: str, audio_root: Path | None = None
) -> tuple["Dataset", dict[str, str]]:
    """
    The rows of a parquet file, or of those in a folder (in alphabetical order), as Arrow; and each file's SHA-256 by
    name.

    Args:
        columns: those that the files must have.
        benchmark: name of the benchmark, for messages.
        audio_root: must be `None`, since the audio is in the files.

    Raises:
        `ValueError`: no such files, damaged ones, missing columns, or an `audio_root`.
    """
    if audio_root is not None:
        raise ValueError(f"got the audio folder {audio_root}, but {path} holds its audio itself; leave it out.")
    from datasets import Dataset  # not at the top: scoring does not need it

    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise ValueError(f"{path} is not a parquet file or a folder of them; give one, or {benchmark}'s other file.")
    sha256 = {file.name: file_sha256(file) for file in files}
    # By itself `datasets` recognises a file by its name and time, even if another file has replaced it.
    content = hashlib.sha256("".join(sha256.values()).encode()).hexdigest()
    try:
        table = Dataset.from_parquet([str(file) for file in files], batch_size=ROWS_PER_BATCH, config_name=content)
    except Exception as error:  # pyarrow and datasets raise many kinds for a damaged file; all mean the same here
        raise ValueError(
            f"{', '.join(map(str, files))}: no parquet rows can be read: {error.__cause__ or error}"
        ) from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{files[0]} has the columns {table.column_names}; {benchmark}'s parquet form also has {missing}."
        )
    # As Arrow, columns of audio stay bytes, and rows become Python objects only on request.
    return table.with_format("arrow"), sha256


def table_rows(table: "Dataset", audio: str) -> Iterator[Row]:
    """The rows without the column `audio`, for which only the number of bytes is looked up (see `AUDIO_BYTES`)."""
    import pyarrow.compute as pc

    number = 0
    for part in table.iter(batch_size=1000):
        sizes = pc.binary_length(pc.struct_field(part[audio], "bytes")).to_pylist()
        for row, size in zip(part.drop_columns(audio).to_pylist(), sizes):
            yield f"row {number + 1}", {**row, NUMBER: number, AUDIO_BYTES: size}
            number += 1


def clip_in(table: "Dataset", audio: str, row: dict[str, Any], name: str) -> Clip:
    """The clip of a row of `table_rows`, under a name. Raises `RowFault` if it has no bytes."""
    if not row[AUDIO_BYTES]:
        raise RowFault(AUDIO_MISSING, f"no bytes in {audio!r}")
    return Clip(name, partial(_read_bytes, table, audio, row[NUMBER]))


def _read_bytes(table: "Dataset", audio: str, number: int) -> bytes:
    return table[number][audio][0].as_py()["bytes"]


def plain_rows(path: Path) -> tuple[list[Row], dict[str, str]]:
    """
    All rows of a parquet file without audio, and the file's SHA-256 by its name.

    Raises:
        `ValueError`: no such file, or no rows that can be read.
    """
    import pyarrow
    import pyarrow.parquet as pq

    if not path.is_file():
        raise ValueError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}; expected a parquet file.")
    try:
        rows = pq.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: no parquet rows can be read: {error}") from None
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)], {path.name: file_sha256(path)}


__all__ = ["clip_in", "is_parquet", "open_parquet", "plain_rows", "split_of", "table_rows"]
