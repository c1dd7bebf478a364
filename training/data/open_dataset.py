"""Data sets from wherever they are: one function that opens what `datasets` can read, and our own prepared shards.

Training (training_sets.py) and voice instructions (../prepare/text_instructions.py) open their sets here. Rows stay memory-mapped and are
not looked at. Which set and which split was meant is never guessed in silence: files whose names say `test` are not
part of `train`, and a split that a set does not have is an error.
Run: `rows = open_dataset("chats.jsonl")`
"""

import os
import re
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, LargeList, List, load_dataset, load_dataset_builder, load_from_disk
from datasets.data_files import SPLIT_KEYWORDS
from datasets.exceptions import DatasetsError

from .shards import REPORT, read_shards
from .tables import DELIMITERS
from .text_rows import FOLDER_KEYS, JSON, TAR, open_rows


# File endings and how they are read: builders of `datasets`, or the kinds of text_rows.py.
KINDS = {".jsonl": JSON, ".json": JSON, ".parquet": "parquet", ".arrow": "arrow"}
# Files that often lie beside a set without being part of it. They are one where a folder has none of those before.
BESIDE: tuple[dict[str, str], ...] = (DELIMITERS, {".tar": TAR})
ALL = KINDS | BESIDE[0] | BESIDE[1]
BY_DATASETS = ("parquet", "arrow")
SAVED = ("state.json", "dataset_dict.json")  # in folders that `save_to_disk` wrote
METADATA = "metadata.parquet"  # of an audiofolder; its other kinds are read in text_rows.py
HUB_ID = r"\w[\w.-]*(/[\w.-]+)?"
WHOLE = "train"  # the split of what has no splits


def open_dataset(path: str, name: str | None = None, split: str = WHOLE) -> Dataset:
    """
    A set as it is stored, memory-mapped, its audio encoded.

    Args:
        path: folder of prepared shards, folder of `Dataset.save_to_disk`, .jsonl/.json/.parquet/.arrow/.csv/.tsv file, .tar of
            WebDataset, folder of such files, folder of sounds with `metadata.jsonl`, `.csv` or `.parquet` (audiofolder), or Hub id.
        name: configuration of a Hub set.
        split: as `datasets` knows it, `"train[:1000]"` included; sets without splits are `"train"`, and of folders
            that were prepared or saved there are no parts. Files of a folder are divided by the words in their names.

    Raises:
        `ValueError`: for a set that is not there, cannot be read, is empty, or lacks the split.
    """
    here = Path(path).exists()
    if not here and (not re.fullmatch(HUB_ID, path) or Path(path).suffix in ALL):
        raise ValueError(f"The set {path!r} cannot be read: there is no such file or folder here.")
    try:
        rows = _open_local(Path(path), name, split) if here else _open_hub(path, name, split)
    except (StopIteration, IndexError) as error:  # for a file, a saved set without rows
        raise ValueError(f"The set {path!r} is empty.") from error
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        raise ValueError(f"The set {path!r} cannot be read: {error}{cause}") from error
    if len(rows) == 0:
        raise ValueError(f"The set {path!r} is empty.")
    _leave_encoded(rows.info.features)
    return rows


def _leave_encoded(feature: Any):
    """Audio, however deep in a set's features, is read as bytes. (`cast_column` would copy a set with lists of clips.)"""
    if isinstance(feature, Audio):
        feature.decode = False
    elif isinstance(feature, (List, LargeList)):
        _leave_encoded(feature.feature)
    elif isinstance(feature, dict):
        for part in feature.values():
            _leave_encoded(part)


def _open_hub(path: str, name: str | None, split: str) -> Dataset:
    builder = load_dataset_builder(path, name)
    kinds = {"json": JSON, "csv": getattr(builder.config, "sep", ""), "webdataset": TAR}
    if builder.name in kinds:
        return open_rows(builder.config.data_files, split, builder.config.name, kinds[builder.name])
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _open_local(path: Path, name: str | None, split: str) -> Dataset:
    if name is not None:
        raise ValueError(f"got the configuration {name!r}, which only sets on the Hub have")
    if (path / REPORT).exists():
        return _split({WHOLE: read_shards(path)}, split)
    if any((path / name).is_file() for name in SAVED):
        saved = load_from_disk(os.fspath(path))
        return _split(
            saved if isinstance(saved, DatasetDict) else {str(saved.split or WHOLE): saved, WHOLE: saved}, split
        )
    files = {WHOLE: [path]} if path.is_file() else _files_of(path)
    kinds = {ALL.get(file.suffix) for parts in files.values() for file in parts}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise ValueError(f"expected files of one kind that end in {', '.join(ALL)}")
    data_files = {part: [os.fspath(file) for file in files[part]] for part in files}
    if kind not in BY_DATASETS:
        return open_rows(data_files, split, kind=kind)
    rows = load_dataset(kind, data_files=data_files, split=split)
    return _with_clips(rows, path, {file for parts in files.values() for file in parts if file.name == METADATA})


def _with_clips(rows: Dataset, path: Path, metadata: set[Path]) -> Dataset:
    """Rows of an audiofolder with its sounds under the names of their columns. (`datasets` would decode and copy them.)"""
    given = {name: column for name, column in FOLDER_KEYS.items() if metadata and name in rows.column_names}
    elsewhere = [file.parent for file in metadata if file.parent != (path if path.is_dir() else path.parent)]
    if given and elsewhere:
        raise ValueError(f"sounds lie beside their {METADATA} in {elsewhere[0]}; give that folder as a set of its own")
    return rows.rename_columns(given)


def _split(parts: dict[str, Dataset] | DatasetDict, split: str) -> Dataset:
    if split not in parts:
        raise ValueError(f"got the split {split!r}; expected one of {', '.join(parts)}")
    return parts[split]


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """The data files in a folder by split, told by the words that `datasets` goes by on the Hub."""
    found = [path for path in folder.rglob("*") if path.suffix in ALL]
    endings = next((kinds for kinds in (KINDS, *BESIDE) if any(path.suffix in kinds for path in found)), {})
    files: dict[str, list[Path]] = {}
    for file in sorted(path for path in found if path.suffix in endings):
        words = set(re.split(r"[^a-z]+", str(file.relative_to(folder)).lower()))
        part = next((str(split) for split, known in SPLIT_KEYWORDS.items() if words & set(known)), WHOLE)
        files.setdefault(part, []).append(file)
    return files
