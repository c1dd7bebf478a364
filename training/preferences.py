"""Preference sets with audio: questions about clips, each with a better and a worse answer, in TRL's format.

    {"prompt": "What is it?", "chosen": "A dog barks.", "rejected": "A bell.", "audio": "dog.wav"}
    {"prompt": [{"role": "user", "content": [{"type": "audio", "path": "dog.wav"}, {"type": "text", "text": "What is it?"}]}],
     "chosen": [{"role": "assistant", "content": "A dog barks."}], "rejected": [{"role": "assistant", "content": "A bell."}]}

Clips are found as in other training sets (data/chats.py). Rows stay as stored and are read on access.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from .data.chats import (
    COLUMNS,
    SOURCE_KEYS,
    audio_items,
    check_all_is_read,
    check_answers,
    check_has_sound,
    check_sound_is_read,
    clips_of,
    fill_in,
)
from .data.formats import SEGMENT
from .data.json_features import check_texts_are_kept
from .data.open_dataset import open_dataset
from .data.signs_of_sound import is_given
from .data.sources import DataSource


NEEDED = ("prompt", "chosen", "rejected")
READ = (*NEEDED, *COLUMNS)
SHOWN = 5  # bad rows in an error


def load_preferences(sources: Sequence[DataSource]) -> tuple[Dataset, list[int]]:
    """
    All rows of some sets, with `prompt`, a chat with the sources of its clips; `chosen` and `rejected`, one assistant message
    each; `origin`; and an empty `images`, by which TRL recognises rows that a collator prepares. Also the size of
    each set.

    Raises a `ValueError` for a set that cannot be read, has other columns, or has a weight, `columns` or `prompt`;
    and on reading, for a row that is not a preference or whose audio contradicts the set's `sound`.
    """
    sets = [(source, _open(source)) for source in sources]
    sizes = [len(rows) for _, rows in sets]
    index = {"set": np.repeat(np.arange(len(sets)), sizes), "row": np.concatenate([np.arange(size) for size in sizes])}
    return Dataset.from_dict(index).with_transform(_Reader(sets)), sizes


def _open(source: DataSource) -> Dataset:
    if source.streaming:
        raise ValueError(f"Preferences of {source} cannot be streamed; leave out `streaming`.")
    if source.weight != 1 or source.columns or source.prompt:
        raise ValueError(
            f"Preferences of {source} are used once per epoch, unchanged; leave out weight, columns and prompt."
        )
    rows = open_dataset(source.path, source.name, source.split)
    missing = [name for name in NEEDED if name not in rows.column_names]
    if missing:
        raise ValueError(
            f"The preference set {str(source)!r} has no {', '.join(missing)}; its columns are {', '.join(rows.column_names)}. Each row needs "
            "a `prompt` and two answers to it: `chosen`, the better one, and `rejected`."
        )
    try:
        check_texts_are_kept(rows.features, {name: name for name in NEEDED})
    except ValueError as error:
        raise ValueError(f"The preference set {str(source)!r} {error}.") from error
    return rows


class _Reader:
    """Turns index rows into preferences; given to `Dataset.with_transform`, so it runs where rows are read."""

    def __init__(self, sets: Sequence[tuple[DataSource, Dataset]]):
        self.sets = sets

    def __call__(self, index: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [self._read(*key) for key in zip(index["set"], index["row"])]
        return {name: [row[name] for row in rows] for name in (*NEEDED, "origin", "images")}

    def _read(self, number: int, row: int) -> dict[str, Any]:
        source, rows = self.sets[number]
        origin = f"{source}, row {row}"
        try:
            chats = _as_chats(rows[row], source.sound, source.folder)
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error
        return chats | {"origin": origin, "images": []}


def check_preferences(rows: Dataset):
    """
    Reads all rows of `load_preferences`, without decoding clips.

    Raises a `ValueError` that lists those that cannot be used: a training would stop at the first of them.
    """
    bad = []
    for number in range(len(rows)):
        try:
            row = rows[number]  # whose errors name it
        except ValueError as error:
            bad.append(str(error))
            continue
        try:
            for name in NEEDED[1:]:
                check_preference(row["prompt"], row[name], name)
            for place in map(_place, audio_items(row["prompt"])):
                if place and not place.exists():
                    raise ValueError(f"there is no file '{place}'")
        except ValueError as error:
            bad.append(f"{row['origin']}: {error}")
    if bad:
        more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise ValueError(
            f"{len(bad)} of {len(rows)} preferences cannot be used: {'; '.join(bad[:SHOWN])}{more}. Mend or remove them."
        )


def check_preference(prompt: Sequence[dict[str, Any]], reply: Sequence[dict[str, Any]], name: str):
    """Raises a `ValueError` unless `reply`, the answer called `name`, is a text that answers the prompt."""
    if [message["role"] for message in [*prompt[-1:], *reply]] != ["user", "assistant"]:
        raise ValueError(f"`prompt` must end with a user's message and `{name}` be one assistant message, got {reply}")
    check_answers(reply)
    if audio_items(reply):
        raise ValueError(f"`{name}` must be text, got {reply}")


def _place(item: dict[str, Any]) -> Path | None:
    """The local file of an audio item, if it is one."""
    source = next((item[key] for key in SOURCE_KEYS if item.get(key) is not None), None)
    return Path(source) if isinstance(source, str) and "://" not in source and not source.startswith("data:") else None


def _as_chats(row: Mapping[str, Any], sound: bool | str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    prompt, clips = _chat(row["prompt"], "user"), clips_of(row)
    check_all_is_read(row, prompt, READ)
    if is_given(row.get(SEGMENT[0])):
        raise ValueError(f"the row has `{SEGMENT[0]}`, which is not read in preferences. Cut the file")
    if sound:
        check_sound_is_read(row, prompt, clips, READ)
    prompt = fill_in(prompt, clips, folder, tags=bool(sound))
    check_has_sound(prompt, sound)
    answers = {name: _chat(row[name], "assistant") for name in NEEDED[1:]}
    for name, answer in answers.items():
        if [isinstance(message, dict) and message.get("role") for message in answer] != ["assistant"]:
            raise ValueError(
                f"`{name}` must be a text or one assistant message, got {row[name]!r:.200}; what comes before it is the `prompt`"
            )
    if answers["chosen"] == answers["rejected"]:
        raise ValueError("`chosen` and `rejected` are the same, so there is nothing to prefer. Leave the row out")
    return {"prompt": prompt, **answers}


def _chat(value: Any, role: str) -> list[Any]:
    """A text as a message of that role; a chat unchanged."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    return value if isinstance(value, list) else [value]
