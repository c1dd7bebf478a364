"""Runs code in a fork of the test process, so that it can be killed, limited or measured."""

from collections.abc import Callable
from multiprocessing import get_context


def in_child(function: Callable[[], None], seconds: float = 60) -> int | None:
    """Runs `function` in a fork of this process; returns the exit code, -9 after SIGKILL."""
    process = get_context("fork").Process(target=function)
    process.start()
    process.join(seconds)
    return process.exitcode
