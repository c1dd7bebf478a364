"""Files and folders that exist complete or not at all: written under a temporary name, and renamed when complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .locks import locked


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which is renamed to `path` once it is complete and on disk; otherwise it is removed."""
    # With the process id in the name: a worker that outlives its killed run cannot write into the next run's file.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_new_folder(path: Path) -> None:
    """Raises a `FileExistsError` if `path` already contains anything; call it before work that takes minutes."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder; choose another name or remove it.")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """
    A folder to fill, which is renamed to `path` at the end, or removed.

    Raises the errors of `check_new_folder`, and a `FileExistsError` if another process is filling that folder.
    """
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_writer(path):
        check_new_folder(path)  # again: another process can have finished it
        unfinished = path.with_name(path.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run
        unfinished.mkdir()
        try:
            yield unfinished
            # safetensors (0.8) writes files that only their owner can read; they should follow the umask.
            for file in unfinished.rglob("*.safetensors"):
                file.chmod(unfinished.stat().st_mode & 0o666)
            if path.exists():
                path.rmdir()
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    """Holds a lock next to `path`, in a file that is removed at the end."""
    file = path.with_name(path.name + ".unfinished.lock")
    with locked(file) as is_ours:
        if not is_ours:
            raise FileExistsError(
                f"Another process is writing {path}; wait until it finishes, or stop it; or choose another name."
            )
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                file.unlink()


def as_json(content: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON completely or not at all."""
    with whole_file(path) as file:
        file.write(as_json(content))
