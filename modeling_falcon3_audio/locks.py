"""One process at a time in a folder: a file in it is locked until that process exits, for whatever reason.

Without support for such locks (Windows, some network disks) everything works unlocked.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO, wait: bool = False) -> bool:
    """
    Whether this process now holds the lock of the file, open for writing, until it is closed here and in processes
    that inherited it. With `wait`, it returns when no other process holds the lock.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_at(path: Path, file: IO) -> bool:
    """Whether another process has left the file in its place since it was opened."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """
    Whether `lock` gets the lock of a file, which is created if missing. It is released at the end, even if other
    processes inherited it.
    """
    with open(path, "ab") as file:
        is_ours = lock(file, wait) and _is_at(path, file)
        try:
            yield is_ours
        finally:
            if is_ours and fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
