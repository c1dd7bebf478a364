"""Opens data sets: one function for everything that `datasets` can read, and for our own prepared shards.

Training (training_sets.py) and voice instructions (../prepare/text_instructions.py) open their sets here. Rows stay
memory-mapped and are not read. The set and the split are never guessed silently: files whose names contain `test` are
not part of `train`, and a split that a set does not have is an error.
Run: `rows = open_dataset("chats.jsonl")`
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from datasets import (
    Audio,
    Dataset,
    DatasetBuilder,
    DatasetDict,
    IterableDataset,
    LargeList,
    List,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.data_files import FILES_TO_IGNORE, SPLIT_KEYWORDS
from datasets.exceptions import DatasetsError

from .files import as_pattern, find_files
from .shards import REPORT, read_shards
from .tables import DELIMITERS
from .text_rows import FOLDER_KEYS, JSON, TAR, open_rows
from .text_rows import METADATA as TEXT_METADATA


# File endings and how they are read: builders of `datasets`, or the kinds of text_rows.py.
KINDS = {".jsonl": JSON, ".json": JSON, ".parquet": "parquet", ".arrow": "arrow"}
# Files that often accompany a set without being part of it. They are the set if a folder has none of the kinds above.
BESIDE: tuple[dict[str, str], ...] = (DELIMITERS, {".tar": TAR})
ALL = KINDS | BESIDE[0] | BESIDE[1]
BY_DATASETS = ("parquet", "arrow")
SAVED = ("state.json", "dataset_dict.json")  # in folders that `save_to_disk` wrote
METADATA = "metadata.parquet"  # of an audiofolder; its other kinds are read in text_rows.py
HUB_ID = r"\w[\w.-]*(/[\w.-]+)?"
WHOLE = "train"  # the split of a set without splits
Rows = TypeVar("Rows", Dataset, IterableDataset)
Part = TypeVar("Part")


def open_dataset(path: str, name: str | None = None, split: str = WHOLE) -> Dataset:
    """
    A set as it is stored: memory-mapped, with encoded audio.

    Args:
        path: folder of prepared shards, folder of `Dataset.save_to_disk`, .jsonl/.json/.parquet/.arrow/.csv/.tsv file,
            WebDataset .tar, folder of such files, folder of audio files with `metadata.jsonl`, `.csv` or `.parquet`
            (audiofolder), or Hub id.
        name: configuration of a Hub set.
        split: as in `datasets`, including `"train[:1000]"`; sets without splits are `"train"`. Prepared and saved
            folders cannot be sliced. Files of a folder are assigned to splits by the words in their names.

    Raises:
        `ValueError`: if the set does not exist, cannot be read, is empty, or lacks the split.
    """
    with told_of(path):
        rows = _open_local(Path(path), name, split) if is_here(path) else _open_hub(path, name, split)
        if len(rows) == 0:
            raise IndexError("no rows")
    leave_encoded(rows.info.features)
    return rows


def is_here(path: str) -> bool:
    """Whether a set is a local file or folder, or else on the Hub. Raises a `ValueError` if it can be neither."""
    here = Path(path).exists()
    if not here and (not re.fullmatch(HUB_ID, path) or Path(path).suffix.lower() in ALL):
        raise ValueError("there is no such file or folder.")
    return here


@contextmanager
def told_of(path: str) -> Iterator[None]:
    """Turns errors from opening a set into a `ValueError` that names it."""
    try:
        yield
    except (StopIteration, IndexError) as error:  # a file or a saved set without rows
        raise ValueError(f"The set {path!r} is empty.") from error
    except (OSError, ValueError, RuntimeError, ImportError, DatasetsError) as error:  # some builders need torchcodec
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        raise ValueError(f"The set {path!r} cannot be read: {error}{cause}") from error


def leave_encoded(feature: Any):
    """Keeps audio at any depth of a set's features encoded. (`cast_column` would copy a set with lists of clips.)"""
    if isinstance(feature, Audio):
        feature.decode = False
    elif isinstance(feature, (List, LargeList)):
        leave_encoded(feature.feature)
    elif isinstance(feature, dict):
        for part in feature.values():
            leave_encoded(part)


def _open_hub(path: str, name: str | None, split: str) -> Dataset:
    builder, kind = hub_builder(path, name)
    if kind is not None:
        return open_rows(builder.config.data_files, split, builder.config.name, kind)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def hub_builder(path: str, name: str | None) -> tuple[DatasetBuilder, str | None]:
    """The builder of a Hub set, and the `kind` of its files for `open_rows`, or `None` if `datasets` reads them."""
    builder = load_dataset_builder(path, name)
    kinds = {"json": JSON, "csv": getattr(builder.config, "sep", ""), "webdataset": TAR}
    return builder, kinds.get(builder.name)


def _open_local(path: Path, name: str | None, split: str) -> Dataset:
    mapped = open_mapped(path, name, split)
    if mapped is not None:
        return mapped
    kind, files = files_in(path)
    patterns = as_patterns(files)
    if kind not in BY_DATASETS:
        return open_rows(patterns, split, kind=kind)
    return with_clips(load_dataset(kind, data_files=patterns, split=split), path, files)


def open_mapped(path: Path, name: str | None, split: str) -> Dataset | None:
    """A set of prepared shards or of `save_to_disk`; `None` if it is neither."""
    if name is not None:
        raise ValueError(f"got the configuration {name!r}, which only sets on the Hub have")
    if (path / REPORT).exists():
        return part_of({WHOLE: read_shards(path)}, split)
    if any((path / name).is_file() for name in SAVED):
        saved = load_from_disk(os.fspath(path))
        return part_of(
            saved if isinstance(saved, DatasetDict) else {str(saved.split or WHOLE): saved, WHOLE: saved}, split
        )
    return None


def files_in(path: Path) -> tuple[str, dict[str, list[str]]]:
    """The kind of a set's data files, and the files by split. Raises a `ValueError` unless all are of one kind."""
    files = {WHOLE: [path]} if path.is_file() else _files_of(path)
    kinds = {ALL.get(file.suffix.lower()) for parts in files.values() for file in parts}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f"expected files of one kind that end in {', '.join(ALL)}")
    return kind, {part: [os.fspath(file) for file in files[part]] for part in files}


def as_patterns(files: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Files by split, in the form that `datasets` takes."""
    return {part: [as_pattern(file) for file in files[part]] for part in files}


def other_folders(path: str, split: str) -> tuple[Path, ...]:
    """Subfolders of a set that hold files of the split, except metadata files, whose clips are next to them."""
    folder = Path(path)
    parts = _files_of(folder) if folder.is_dir() else {}
    files = [file for part in parts if part in re.findall(r"\w+", split) for file in parts[part]]
    return tuple(
        sorted({file.parent for file in files if file.name.lower() not in (*TEXT_METADATA, METADATA)} - {folder})
    )


def with_clips(rows: Rows, path: Path, files: Mapping[str, Sequence[str]]) -> Rows:
    """Renames an audiofolder's file columns to columns of clips. (`datasets` would decode and copy the audio.)"""
    metadata = {Path(file) for parts in files.values() for file in parts if Path(file).name == METADATA}
    given = {name: column for name, column in FOLDER_KEYS.items() if metadata and name in rows.column_names}
    elsewhere = [file.parent for file in metadata if file.parent != (path if path.is_dir() else path.parent)]
    if given and elsewhere:
        raise ValueError(f"the audio files of {METADATA} are in {elsewhere[0]}; give that folder as a separate set")
    return rows.rename_columns(given) if given else rows


def part_of(parts: Mapping[str, Part], split: str) -> Part:
    """The part of a set that is called `split`. Raises a `ValueError` if there is none."""
    if split not in parts:
        raise ValueError(f"got the split {split!r}; expected one of {', '.join(parts)}")
    return parts[split]


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """The data files in a folder by split, recognised by the words that `datasets` uses on the Hub."""
    found = [path for path in find_files(folder, ALL) if path.name not in FILES_TO_IGNORE]
    endings = next((kinds for kinds in (KINDS, *BESIDE) if any(path.suffix.lower() in kinds for path in found)), {})
    files: dict[str, list[Path]] = {}
    for file in (path for path in found if path.suffix.lower() in endings):
        words = set(re.split(r"[^a-z]+", str(file.relative_to(folder)).lower()))
        part = next((str(split) for split, known in SPLIT_KEYWORDS.items() if words & set(known)), WHOLE)
        files.setdefault(part, []).append(file)
    return files
