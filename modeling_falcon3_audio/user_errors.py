"""How each program of this package exits: one line if the user can fix the error or stopped it, and the exit status.

    with user_errors("falcon3-audio merge") as end:
        merge(...)
    return end.status

Anything else is a bug and keeps its traceback.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


try:
    from safetensors import SafetensorError
except ImportError:  # scoring works without safetensors and torch
    SafetensorError = OSError  # type: ignore[misc, assignment]


# A wrong value, a file, a missing package, or truncated weights. Most errors of the Hub's client are OSErrors.
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, SafetensorError)
# What to do after an interruption.
BEGINS_AGAIN = "Run the same command again to start over."
GOES_ON = "Run the same command again to resume."
INTERRUPTED = 130  # 128 + SIGINT, as in shells


@dataclass
class End:
    """How a program exited."""

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
    Reports user errors raised inside as `program: message` on stderr with status 1, and Ctrl-C as one line with 130.

    Args:
        others: exceptions that are user errors, besides `USER_ERRORS`.
        breaks: exceptions with an external cause, after which the same command can resume.
        goes_on: what to do after such an exception, or after Ctrl-C; can be empty.
        explain: turns an error into its message.
        join_lines: whether a message of several lines is joined into one.
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
            _say(program, message if message.endswith((".", "?")) else f"{message}.", goes_on)
        else:
            _say(program, message)


def _say(program: str, message: str, advice: str = ""):
    print(f"{program}: {message} {advice}".rstrip(), file=sys.stderr)
