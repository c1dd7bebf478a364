"""What a verb says when the user stops it (Ctrl-C): one line, and the exit status that a shell gives then."""

import sys


INTERRUPTED = 130  # 128 + SIGINT


def stopped(verb: str, advice: str) -> int:
    """Prints that `falcon3-audio VERB` was stopped, and how to go on; returns the exit status."""
    print(f"falcon3-audio {verb}: stopped. {advice}", file=sys.stderr)
    return INTERRUPTED
