"""Files here, or where a URL says: those of a set that is streamed are opened where they lie.

Run: `open_file("hf://datasets/owner/name/rows.jsonl")`
"""

import glob
import os
from collections.abc import Container
from pathlib import Path, PurePath
from typing import IO, Any

import fsspec


REMOTE = "://"


def open_file(file: str | os.PathLike, mode: str = "rb", **options: Any) -> IO[Any]:
    """A file as `open` has it; one that a URL of fsspec names is read as far as it is asked for, and unpacked where it ends in `.gz`."""
    name = os.fspath(file)
    if REMOTE not in name:
        return open(name, mode, **options)
    return fsspec.open(name, mode, compression="infer", **options).open()


def as_pattern(file: str | os.PathLike) -> str:
    """A file's name for `datasets`, which takes names for patterns of glob. Raises a `ValueError` for one that it cannot open."""
    path = os.path.abspath(file)
    if "::" in path:
        raise ValueError(f"{path} has `::` in its name, which to `datasets` is a file in an archive; rename it")
    return glob.escape(path)


def is_hidden(path: PurePath) -> bool:
    """Whether a part of a relative path is: what systems and editors leave beside files, such as `._a.wav` or `.ipynb_checkpoints`."""
    return any(part.startswith(".") and part != ".." for part in path.parts)


def find_files(folder: Path, endings: Container[str]) -> list[Path]:
    """The files in a folder and those in it, in order, that end so in either case and are not hidden."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)) and path.is_file())
