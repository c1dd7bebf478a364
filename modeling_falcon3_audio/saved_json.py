"""Turns transformers' errors about a missing checkpoint or wrong JSON into one error that names the file or folder."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError


# JSON files of a checkpoint; each contains an object.
SAVED = (
    *("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "adapter_config.json"),
)


@contextmanager
def readable_json(folder: str | Path) -> Iterator[None]:
    """
    Wraps only a `from_pretrained` of a folder or a Hub id.

    Raises:
        `ValueError`: if `folder` is a file, if one of its JSON files contains no JSON object, or if transformers fails
            on the contents of one, or misses a processor.
        `OSError`: if there is no such folder, and no such model on the Hub, whose client does not name it.
    """
    if Path(folder).is_file():
        raise ValueError(f"{folder} is a file; expected the folder of a checkpoint, or a Hub id.")
    for path in (Path(folder) / name for name in SAVED):
        if path.is_file():
            read_object(path)
    try:
        yield
    except (KeyError, AttributeError, TypeError, IndexError, StrictDataclassError) as error:
        if "is not an instance of `ProcessorMixin`" in str(error):  # but a tokenizer, for example
            raise ValueError(
                f"{folder} has no processor, which an audio-language model needs; it is probably a model of text alone."
            ) from error
        raise ValueError(
            f"{folder} cannot be loaded: one of its JSON files has unexpected contents, or this release of transformers "
            f"does not take them ({error!r:.200})."
        ) from error
    except OSError as error:
        if Path(folder).exists():
            raise
        raise OSError(f"{folder} is not a local folder. {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """Raises a `ValueError` if a file contains no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Save it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must contain a JSON object, got {type(content).__name__}. Save it again.")
    return content


__all__ = ["read_object", "readable_json"]
