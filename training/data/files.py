"""Files here, or where a URL says: those of a set that is streamed are opened where they lie.

Run: `open_file("hf://datasets/owner/name/rows.jsonl")`
"""

import os
from typing import IO, Any

import fsspec


REMOTE = "://"


def open_file(file: str | os.PathLike, mode: str = "rb", **options: Any) -> IO[Any]:
    """A file as `open` has it; one that a URL of fsspec names is read as far as it is asked for, and unpacked where it ends in `.gz`."""
    name = os.fspath(file)
    if REMOTE not in name:
        return open(name, mode, **options)
    return fsspec.open(name, mode, compression="infer", **options).open()
