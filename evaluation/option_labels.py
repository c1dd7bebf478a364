"""Options that carry their labels: "(A) Man", "A. Man", "A - Man" or "1) Man" for "Man"."""

import re
from collections.abc import Sequence
from string import ascii_uppercase


# Full-width characters, and their plain ones.
PLAIN_WIDTH = {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}
_PLAIN_BUT_MARKS = {full: plain for full, plain in PLAIN_WIDTH.items() if chr(full) not in "（）："}
# A label without a space behind it needs a mark that no text has there: "A:maj/1" is a chord, "A-flat" a note, "1:30" a
# time. Nor is one what reads on as a number, a range or an abbreviation: "1.5 s", "1: 2", "1 - 2", "A - E", "A.M.".
_LABEL = re.compile(
    r"(?:(?:option|choice)\s)?[(\[{（【]?(?P<label>[a-z]|[1-9]\d?)(?:"
    r"[)\]}](?:\s|(?=[^\W\d_a-z]))"
    r"|[）】、：]\s?(?=[^\W\d_])"
    r"|\.(?:\s|(?=[^\W\d_](?!\.)))"
    r"|:\s(?!(?<=\d:\s)\d)"
    r"|\s?[|=]\s|\t"
    r"|\s[-–—]\s(?=\S*[^\W\d_]{2}|[^\W\d_a-z]))",
    re.IGNORECASE,
)


def without_labels(choices: Sequence[str]) -> tuple[str, ...]:
    """
    The choices without their labels, if all start with one and these are A, B, C, ... or 1, 2, 3, ...; otherwise as
    they are.

    Only one label is removed, and only then: "A" and the chord "B:maj/1" are options in themselves. So are numbers if
    nothing else tells the choices apart.
    """
    labels = [_LABEL.match(choice.translate(_PLAIN_BUT_MARKS)) for choice in choices]
    texts = tuple(choice[label.end() :] for choice, label in zip(choices, labels) if label)
    said = [label["label"].upper() if label else None for label in labels]
    in_letters = said == list(ascii_uppercase[: len(choices)])
    in_numbers = said == [str(number) for number, _ in enumerate(choices, 1)] and len(set(texts)) == len(texts)
    return texts if choices and (in_letters or in_numbers) else tuple(choices)


def are_numbered(choices: Sequence[str]) -> bool:
    """Whether the choices carry labels that are numbers."""
    label = _LABEL.match(choices[0].translate(_PLAIN_BUT_MARKS)) if without_labels(choices) != tuple(choices) else None
    return label is not None and label["label"] == "1"


def without_label(answer: str, choices: Sequence[str]) -> str:
    """The text of an answer that is written like one of the labelled choices; any other answer as it is."""
    texts = {choice.strip(): text for choice, text in zip(choices, without_labels(choices))}
    return texts.get(answer.strip(), answer)


__all__ = ["PLAIN_WIDTH", "are_numbered", "without_label", "without_labels"]
