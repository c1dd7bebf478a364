"""What a program says when the user stops it (Ctrl-C): one line, and the exit status that a shell gives then."""

import sys


INTERRUPTED = 130  # 128 + SIGINT


def stopped(program: str, advice: str = "") -> int:
    """Prints that the program was stopped, and how to go on; returns the exit status."""
    print(f"{program}: stopped. {advice}".rstrip(), file=sys.stderr)
    return INTERRUPTED
