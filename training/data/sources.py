"""The entries of a recipe's `train_data` and `eval_data`, which validate themselves and say what to write instead.

Run: `read_sources([{"path": "clips.csv", "columns": {"audio": "path"}}], "train_data")`
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .formats import ROLES


@dataclass
class DataSource:
    """
    One training set: an entry of `train_data` in a recipe. A bare string is its `path`.

    Args:
        path, name, split: see `open_dataset`.
        weight: passes over this set per epoch: 0.5 is a different half of it each epoch, 2 is twice. For streamed
            sets, how often one is drawn compared with the others.
        sound: whether all rows have audio (`True`), only some do (`"some"`), or none does (`False`, a text-only set).
            A row or set that differs is an error.
        prompt: the question about each clip, for sets that only have transcripts, captions or labels. If there are
            several, one is drawn for each row, the same in each epoch.
        columns: which column holds what (`{audio: path, text: utterance}`), if its name does not say so; see
            formats.py.
        streaming: whether rows are read as they are needed, so the set can be larger than the disk; see stream.py.
    """

    path: str
    name: str | None = None
    split: str = "train"
    weight: float = 1.0
    sound: bool | Literal["some"] = True
    prompt: str | list[str] | None = None
    columns: dict[str, str] | None = None
    streaming: bool = False

    def __post_init__(self):
        if not self.path or not isinstance(self.path, str):
            raise ValueError(f"A data source needs a `path` (a folder, a file or a Hub id), got {self.path!r}.")
        if not self.split or not isinstance(self.split, str):
            raise ValueError(f"`split` of {self.path} must be a text such as train, got {self.split!r}.")
        if type(self.weight) not in (int, float) or not 0 < self.weight < math.inf:
            raise ValueError(
                f"The weight of {self.path} must be a number above 0, got {self.weight!r}; to train without it, leave "
                "the set out."
            )
        if not isinstance(self.sound, bool) and self.sound != "some":
            raise ValueError(
                f"`sound` of {self.path} must be true, some (if some chats have no audio) or false (text only), got "
                f"{self.sound!r}."
            )
        if not isinstance(self.streaming, bool):
            raise ValueError(f"`streaming` of {self.path} must be true or false, got {self.streaming!r}.")
        self._check_prompt()
        self._check_columns()

    def _check_prompt(self):
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if self.prompt is not None and not (
            prompts and all(isinstance(text, str) and text.strip() for text in prompts)
        ):
            raise ValueError(f"`prompt` of {self.path} must be a text or a list of texts, got {self.prompt!r}.")

    def _check_columns(self):
        columns = {} if self.columns is None else self.columns
        if not isinstance(columns, dict) or not all(
            isinstance(name, str) and name for pair in columns.items() for name in pair
        ):
            raise ValueError(
                f"`columns` of {self.path} must say which column is what, such as {{audio: path, text: sentence}}; got "
                f"{self.columns!r}."
            )
        unknown = columns.keys() - set(ROLES)
        if unknown:
            raise ValueError(
                f"`columns` of {self.path} has {', '.join(sorted(unknown))}; a column can be {', '.join(ROLES)}. The column's own "
                "name comes second: {text: sentence}."
            )

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the set start from: the set itself, or the folder of its file."""
        path = Path(self.path)
        return path if path.is_dir() else path.parent

    def __str__(self) -> str:
        """The set's name in errors: its path, with configuration and split if they are not the defaults."""
        name = "" if self.name is None else f", configuration {self.name}"
        split = "" if self.split == type(self).split else f", split {self.split}"
        return f"{self.path}{name}{split}"


def read_sources(given: Any, option: str) -> list[DataSource]:
    """
    The sets that an option of a recipe names: a path, a mapping of the arguments of `DataSource`, or a list of these.

    Raises a `ValueError` that names the option for anything else.
    """
    if given is None:
        return []
    return [_source(entry, option) for entry in (given if isinstance(given, list) else [given])]


def _source(entry: Any, option: str) -> DataSource:
    if isinstance(entry, DataSource):
        return entry
    if isinstance(entry, str):
        return DataSource(entry)
    if not isinstance(entry, dict):
        raise ValueError(f"An entry of `{option}` is a path or a mapping with a path, got {entry!r}.")
    unknown = set(entry) - set(DataSource.__dataclass_fields__)
    if unknown or "path" not in entry:
        wrong = f"has {', '.join(map(str, sorted(unknown)))}" if unknown else "has no path"
        raise ValueError(
            f"An entry of `{option}` {wrong}; it takes {', '.join(DataSource.__dataclass_fields__)}, and needs the "
            f"path. Got {entry}."
        )
    return DataSource(**entry)
