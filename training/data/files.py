"""Local and remote files: those of a streamed set are opened in place.

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
    """Like `open`; a file at an fsspec URL is read only as far as needed, and decompressed if it ends in `.gz`."""
    name = os.fspath(file)
    if REMOTE not in name:
        return open(name, mode, **options)
    return fsspec.open(name, mode, compression="infer", **options).open()


def as_pattern(file: str | os.PathLike) -> str:
    """A file's name for `datasets`, which takes names as glob patterns. Raises a `ValueError` if it cannot open it."""
    path = os.path.abspath(file)
    if "::" in path:
        raise ValueError(f"{path} has `::` in its name, which `datasets` takes for a file in an archive; rename it")
    return glob.escape(path)


def is_hidden(path: PurePath) -> bool:
    """Whether part of a relative path is hidden, such as `._a.wav` or `.ipynb_checkpoints` of systems and editors."""
    return any(part.startswith(".") and part != ".." for part in path.parts)


def find_files(folder: Path, endings: Container[str]) -> list[Path]:
    """The files in a folder and its subfolders with these endings in either case, sorted, without hidden ones."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in found if not is_hidden(path.relative_to(folder)) and path.is_file())
