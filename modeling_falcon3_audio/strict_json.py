"""JSON that users wrote: a duplicate key in an object is an error; `json.loads` silently keeps the last value."""

import json
from collections import Counter
from typing import Any


def parse_json(text: str) -> Any:
    """Raises a `ValueError` for invalid JSON, and for a key that appears twice in one object."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} appears twice in one object; keep one")
    return found
