"""Folders in which one run works at a time, and cleaning up after killed runs."""

import glob
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from falcon3_audio.locks import locked


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Another run that needs the same folder waits; the lock is released when the process exits."""
    with locked(folder / ".lock", wait=True):
        yield


def temporary_prefix(name: str) -> str:
    """The prefix of the name of a temporary folder in which `name` is created; its suffix is `.tmp`."""
    return f".{name}."


def remove_left_overs(folder: Path, name: str) -> None:
    """Removes partial results of a killed run for `name`. Call it only while no other run is in `folder`."""
    for left in folder.glob(f"{glob.escape(temporary_prefix(name))}*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
