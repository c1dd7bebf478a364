"""One process at a time in a folder: a file in it is locked until that process ends, however it does.

Where a system or a disk has no such locks (Windows, some network disks) everything goes on without.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(file: IO) -> bool:
    """
    Whether the file, open for writing, is now this process's, until it is closed here and in processes that inherited it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """`lock` of a file that is made if it is missing. It is free behind, whatever inherited it."""
    with open(path, "ab") as file:
        is_ours = lock(file)
        try:
            yield is_ours
        finally:
            if is_ours and fcntl is not None:
                with suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_UN)
