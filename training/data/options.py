"""The options of a question, in the columns and forms in which sets have them."""

import json
from typing import Any


OPTIONS = ("choices", "options")  # columns


def listed(given: Any) -> tuple[str, ...] | None:
    """
    Options given as a list of texts or numbers, directly, under `text` (next to their labels, as in ARC) or as JSON;
    `None` for anything else.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    given = given.get("text") if isinstance(given, dict) else given
    if not isinstance(given, (list, tuple)):
        return None
    options = [one.get("text") if isinstance(one, dict) else one for one in given]
    return tuple(map(str, options)) if all(isinstance(option, (str, int, float)) for option in options) else None


__all__ = ["OPTIONS", "listed"]
