"""Files and folders that are there whole or not at all: written under a temporary name, and renamed when they are complete."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write, which gets the name `path` when it is complete and on the disk, or not at all."""
    # With the process in the name: a worker that outlives its killed run cannot write into the next run's file.
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
    """Raises a `FileExistsError` if `path` holds anything already; before minutes of work, where `whole_folder` comes after them."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder; choose another name or remove it.")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` in the end, or is removed. Errors as of `check_new_folder`."""
    check_new_folder(path)
    unfinished = path.with_name(path.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        # safetensors (0.8) writes files that only their owner can read; as the folder, they are to be as the umask says.
        for file in unfinished.rglob("*.safetensors"):
            file.chmod(unfinished.stat().st_mode & 0o666)
        if path.exists():
            path.rmdir()
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def as_json(content: Any) -> bytes:
    """As `write_json` writes it."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Write JSON, all of it or nothing."""
    with whole_file(path) as file:
        file.write(as_json(content))
