"""Options that carry their labels: "(A) Man", "A. Man" or "A) Man" for "Man"."""

import re
from collections.abc import Sequence
from string import ascii_uppercase


_LABELLED = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[.:)])\s")


def without_labels(choices: Sequence[str]) -> tuple[str, ...]:
    """
    The choices without their labels, if all start with one and these are in alphabetical order; otherwise as they are.

    Only one label is removed, and only then: "A" and the chord "B:maj/1" are options in themselves.
    """
    labels = [_LABELLED.match(choice) for choice in choices]
    letters = "".join((label[1] or label[2]).upper() for label in labels if label)
    if not choices or None in labels or letters != ascii_uppercase[: len(choices)]:
        return tuple(choices)
    return tuple(choice[label.end() :] for choice, label in zip(choices, labels) if label)


def without_label(answer: str, choices: Sequence[str]) -> str:
    """The text of an answer that is written like one of the labelled choices; any other answer as it is."""
    texts = {choice.strip(): text for choice, text in zip(choices, without_labels(choices))}
    return texts.get(answer.strip(), answer)


__all__ = ["without_label", "without_labels"]
