"""Reads YAML files that a user may have written: one mapping, without duplicate keys."""

from pathlib import Path
from typing import Any

import yaml


MERGE = "tag:yaml.org,2002:merge"  # of the key <<, whose mapping is inserted


def read_yaml(path: str | Path) -> dict[str, Any]:
    """
    The mapping in a file.

    Raises:
        `OSError`: if the file cannot be read.
        `ValueError`: if it is not YAML, not a mapping, or has a key twice.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a YAML mapping, got {type(content).__name__}.")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """Rejects duplicate keys, of which PyYAML silently takes the last."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != MERGE]
        keys = [self.construct_object(key) for key in scalars]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.composer.ComposerError(None, None, f"{twice!r} is given twice", node.start_mark)
        return node


__all__ = ["read_yaml"]
