"""Columns that `datasets` stores as `Json`, its feature for values of several types, such as texts and lists.

It stores a text that is valid JSON as if it were that JSON: `0` comes back as a number, `"yes"` without its quotes, and
nothing tells them from others. JSON files themselves are read without `datasets` (text_rows.py).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Features, Json, LargeList, List


TEXTS = ("content", "value", "text", "instruction", "output", "input")  # keys of messages, turns, items and questions
OF_LISTS = ("messages", "questions", "conversations")  # stored as JSON of the whole list, which keeps its texts
CALLS = "tool_calls"  # not texts: any JSON
EACH = "[]"  # after a list's name: its elements


def check_texts_are_kept(features: Features, columns: Mapping[str, str]):
    """
    Raises a `ValueError` if texts are stored as `Json`. The message continues a sentence that starts with the set's
    name.

    Args:
        columns: the column of each value that is read, such as `messages`.
    """
    changed = [
        place
        for role, column in columns.items()
        for place in json_places(features[column], column)
        if role not in OF_LISTS or place.rpartition(".")[2] in TEXTS
    ]
    if changed:
        raise ValueError(
            f"has texts of the type `Json` in {', '.join(f'`{place}`' for place in changed)}. `datasets` reads a text "
            "there as JSON: '0' becomes a number, and '\"yes\"' loses its quotes. Give the JSON file that the set was "
            "made from, or make the set of values of one type: only texts, or only lists of items"
        )


def json_places(feature: Any, name: str) -> Iterator[str]:
    """Where a feature is `Json`, such as `messages[].content`."""
    if isinstance(feature, Json):
        yield name
    elif isinstance(feature, (List, LargeList)):
        yield from json_places(feature.feature, f"{name}{EACH}")
    elif isinstance(feature, dict):
        for key, part in feature.items():
            yield from () if key == CALLS else json_places(part, f"{name}.{key}")
