"""Streamed sets: read in place from their start, without being loaded or converted first.

A set is a list of shards, which are read one after another and split among the readers of a run (stream.py): its
files, or the shards that `datasets` streams. JSON, tables and tars are read by the code that reads loaded sets
(text_rows.py), so a row is the same in both. The first rows of a set are opened as a small loaded set, which decides
how its columns are read.
Run: `shards = open_shards("big.jsonl")`, `for row in shards[0].rows(): ...`
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from datasets.table import InMemoryTable

from .files import REMOTE, open_file
from .json_features import json_places
from .open_dataset import (
    BY_DATASETS,
    WHOLE,
    as_patterns,
    files_in,
    hub_builder,
    is_here,
    leave_encoded,
    open_mapped,
    part_of,
    told_of,
    with_clips,
)
from .text_rows import as_stored, read_rows


FIRST_ROWS = 100  # that decide how a set is read
PARTS = 64  # of a memory-mapped set, so that many readers share it evenly
AT_ONCE = 10  # rows that `datasets` returns at a time


@dataclass(frozen=True)
class TextShard:
    """
    A file, or the URL of one.

    Attributes:
        kind: as in `read_rows`.
        name: its name in errors, empty if it is the whole set.
        first: the number of its first row.
    """

    file: str
    kind: str
    name: str = ""
    first: int = 0

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows from number `start` on."""
        return (row for _, row in islice(read_rows(self.file, self.kind), start, None))


@dataclass(frozen=True)
class DatasetShard:
    """A shard that `datasets` streams; `name` and `first` as in `TextShard`."""

    stream: IterableDataset
    name: str = ""
    first: int = 0

    def rows(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """The rows from number `start` on."""
        # In batches: iterated by rows, `datasets` would split this shard among a data loader's workers again.
        batches = (self.stream.skip(start) if start else self.stream).iter(batch_size=AT_ONCE)
        for batch in batches:
            for values in zip(*batch.values()):
                yield {name: _fetched(value) for name, value in zip(batch, values)}


Shard = TextShard | DatasetShard


def open_shards(path: str, name: str | None = None, split: str = WHOLE) -> list[Shard]:
    """
    The shards of a set. Arguments as in `open_dataset`, except that splits cannot be sliced.

    Raises a `ValueError` if the set does not exist, lacks the split, or cannot be streamed.
    """
    with told_of(path):
        return _shards_here(Path(path), name, split) if is_here(path) else _shards_of_hub(path, name, split)


def first_rows(path: str, shards: Sequence[Shard], count: int = FIRST_ROWS) -> Dataset:
    """
    The first rows of a set's shards as a loaded set.

    Raises a `ValueError` if the set has none or cannot be read.
    """
    with told_of(path):
        rows = list(islice(chain.from_iterable(shard.rows() for shard in shards), count))
        if not rows:
            raise IndexError("no rows")
        if isinstance(shards[0], TextShard):
            return as_stored(rows)
        # Not `Dataset.from_list`, which would encode audio again.
        features = shards[0].stream.features
        as_json = list(json_places(dict(features), "")) if features else []
        if as_json:
            raise ValueError(
                f"it has values of the type `Json` of `datasets` ({', '.join(place[1:] for place in as_json)}), which "
                "are not streamed. Give the JSON file that it was made from, or leave out `streaming`."
            )
        found = Dataset(InMemoryTable.from_pylist(rows, schema=features.arrow_schema if features else None))
    leave_encoded(found.info.features)
    return found


def _shards_here(path: Path, name: str | None, split: str) -> list[Shard]:
    mapped = open_mapped(path, name, split)
    if mapped is not None:
        return _mapped_shards(mapped)
    kind, files = files_in(path)
    if kind not in BY_DATASETS:
        return _text_shards(part_of(files, split), kind)
    encoded = load_dataset(kind, data_files=as_patterns(files), split=split, streaming=True).decode(False)
    return _shards(with_clips(encoded, path, files))


def _shards_of_hub(path: str, name: str | None, split: str) -> list[Shard]:
    builder, kind = hub_builder(path, name)
    if kind is not None:
        return _text_shards(part_of(builder.config.data_files, split), kind)
    return _shards(builder.as_streaming_dataset(split=split).decode(False))


def _text_shards(files: Sequence[str], kind: str) -> list[Shard]:
    folder = os.path.commonpath(os.path.dirname(file) for file in files)
    names = [f"{os.path.relpath(file, folder)}, " if len(files) > 1 else "" for file in files]
    return [TextShard(file, kind, name) for file, name in zip(files, names)]


def _mapped_shards(rows: Dataset) -> list[Shard]:
    parts = [rows.shard(min(PARTS, len(rows)), number) for number in range(min(PARTS, len(rows)))]
    firsts = accumulate(map(len, parts), initial=0)
    return [DatasetShard(part.to_iterable_dataset().decode(False), "", first) for part, first in zip(parts, firsts)]


def _shards(stream: IterableDataset) -> list[Shard]:
    count = stream.num_shards
    return [
        DatasetShard(stream.shard(count, number), f"shard {number} of {count}, " if count > 1 else "")
        for number in range(count)
    ]


def _fetched(value: Any) -> Any:
    """The value itself; for audio that `datasets` left on the Hub (in an audiofolder), its bytes."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        path = value["path"]
        if isinstance(path, str) and REMOTE in path:
            with open_file(path) as file:
                return {"bytes": file.read(), "path": path}
    return value
