"""How each program of this package ends: one line for what the user can mend or has stopped, and the exit status.

    with user_errors("falcon3-audio merge") as end:
        merge(...)
    return end.status

Anything else is a fault of ours and keeps its traceback.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


try:
    from safetensors import SafetensorError
except ImportError:  # scores are computed where neither it nor torch is installed
    SafetensorError = OSError  # type: ignore[misc, assignment]


# A value, a file, a package that is missing, or weights that are cut off. Most of what the Hub's client raises is an OSError.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, SafetensorError)
# How to go on after a break.
BEGINS_AGAIN = "The same command begins again."
GOES_ON = "The same command goes on."
CONTINUES = "The same command continues where this one stopped."
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@dataclass
class End:
    """How a program ended."""

    status: int = 0


@contextmanager
def user_errors(
    program: str,
    *others: type[Exception],
    breaks: tuple[type[Exception], ...] = (),
    goes_on: str = BEGINS_AGAIN,
    explain: Callable[[Exception], str] = str,
    join_lines: bool = True,
) -> Iterator[End]:
    """
    Ends the user's errors in here with `program: message` on stderr and the status 1, and Ctrl-C with a line and 130.

    Args:
        others: exceptions that are the user's, beside `USER_ERRORS`.
        breaks: those among all of these that come from outside, after which the same command may go on.
        goes_on: how to go on after such a break, or after Ctrl-C; may be empty.
        explain: makes the message of an error.
        join_lines: whether a message of several lines becomes one.
    """
    end = End()
    try:
        yield end
    except KeyboardInterrupt:
        end.status = INTERRUPTED
        _say(program, "stopped.", goes_on)
    except USER_ERRORS + others + breaks as error:
        if isinstance(error, ImportError) and (error.name or "").startswith("falcon3_audio"):
            raise
        end.status = 1
        message = explain(error)
        if join_lines:
            message = " ".join(line.strip() for line in message.splitlines() if line.strip())
        if isinstance(error, breaks):
            _say(program, message if message.endswith(".") else f"{message}.", goes_on)
        else:
            _say(program, message)


def _say(program: str, message: str, advice: str = ""):
    print(f"{program}: {message} {advice}".rstrip(), file=sys.stderr)
