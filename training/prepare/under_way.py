"""Folders in which one run works at a time, and what a killed run left half-made there."""

import fcntl
import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Another run that wants the same folder waits; the lock ends with the process."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def temporary_prefix(name: str) -> str:
    """What the name of a temporary folder begins with in which `name` is made; it ends in `.tmp`."""
    return f".{name}."


def remove_left_overs(folder: Path, name: str) -> None:
    """What a killed run was about to make under `name`; nobody else's, so only while no other run is in `folder`."""
    for left in folder.glob(f"{glob.escape(temporary_prefix(name))}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
