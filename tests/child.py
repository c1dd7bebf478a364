"""A copy of the test's process, for what must be killed, limited or measured."""

from collections.abc import Callable
from multiprocessing import get_context


def in_child(function: Callable[[], None], seconds: float = 60) -> int | None:
    """Run it in a fork of this process; returns the exit code, -9 after SIGKILL."""
    process = get_context("fork").Process(target=function)
    process.start()
    process.join(seconds)
    return process.exitcode
