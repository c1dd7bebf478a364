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
        `ValueError`: if it is not UTF-8, not YAML, not a mapping, or has a key twice.
    """
    try:
        with open(path, encoding="utf-8") as file:  # whose name is in errors
            content = yaml.load(file, _UniqueKeys)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save the file as UTF-8.") from error
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
        twice = next((number for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            where = scalars[twice].start_mark
            raise yaml.composer.ComposerError(None, None, f"{keys[twice]!r} is given twice", where)
        return node


__all__ = ["read_yaml"]
