"""What transformers raises where there is no checkpoint, or its JSON is no configuration, as one error that names the place."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError


# Of a checkpoint; each holds an object.
SAVED = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "adapter_config.json"),
)


@contextmanager
def readable_json(folder: str | Path) -> Iterator[None]:
    """
    For the time of a `from_pretrained`, of a folder or a Hub id, and of nothing else.

    Raises:
        `ValueError`: a file in the place of a folder, one of the folder's that holds no JSON object, and where transformers
            stumbles over what is in one.
        `OSError`: there is no such folder, nor such a model on the Hub, whose client does not say what it was asked for.
    """
    if Path(folder).is_file():
        raise ValueError(f"{folder} is a file; expected the folder of a checkpoint, or a Hub id.")
    for path in (Path(folder) / name for name in SAVED):
        if path.is_file():
            read_object(path)
    try:
        yield
    except (KeyError, AttributeError, TypeError, IndexError, StrictDataclassError) as error:
        raise ValueError(
            f"{folder} cannot be loaded: one of its JSON files is not what was saved ({error!r:.200})."
        ) from error
    except OSError as error:
        if Path(folder).exists():
            raise
        raise OSError(f"{folder} is no folder here. {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Raises a `ValueError` for a file that holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. Save it again.")
    return content


__all__ = ["read_object", "readable_json"]
