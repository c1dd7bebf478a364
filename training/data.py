"""Training data of any kind as chats with sound: one `datasets.Dataset` of small index rows, read when asked for.

A set holds chats (`messages`) or clips with all their questions in one row (`questions`, as `open_asqa prepare` writes
them); each question becomes an example of its own. Only (set, row, question) is held in memory; rows are looked up in the
memory-mapped sets by the data loader's workers, and audio is decoded there, in the collator. Examples are
`{"messages": [...], "origin": "set, row 7, question 2", "clip": "set, row 7"}`, every audio item with its source in it. The
set is called by its path, and by its configuration and split where the recipe names them: rows of another split are
other clips. `clip` is `None` for chats, which need not be about one clip alone.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset, LargeList, List

from .arguments import DataSource
from .open_dataset import open_dataset


WHOLE_ROW = -1  # in the place of a question's number, where the row itself is the chat
ROLES = ("system", "user", "assistant", "tool")
SOURCE_KEYS = ("audio", "path", "url")


def load_training_data(sources: Sequence[DataSource]) -> tuple[Dataset, list[int]]:
    """
    All examples of some sets, end to end in the order given, and how many each set has (for the sampler).

    Raises:
        `ValueError`: a set that cannot be found or read, is empty, or has neither `messages` nor `questions`.
    """
    sets = [(source, _open(source)) for source in sources]
    parts = [_index(source, rows) for source, rows in sets]
    columns = {
        "set": np.repeat(np.arange(len(parts), dtype=np.int16), [len(part) for part in parts]),
        "row": np.concatenate([part[:, 0] for part in parts]),
        "question": np.concatenate([part[:, 1] for part in parts]).astype(np.int32),
    }
    examples = Dataset.from_dict(columns).with_transform(_Reader(sets))
    return examples, [len(part) for part in parts]


def questions_per_clip(examples: Dataset, sizes: Sequence[int]) -> list[np.ndarray]:
    """How many examples each row of each set has, `(rows with any,)` for each set, in the order of the set."""
    rows = examples.with_format("numpy")["row"][:]
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return [np.diff(np.flatnonzero(np.diff(part, prepend=-1, append=-1))) for part in parts]


def _open(source: DataSource) -> Dataset:
    """The set as it is stored, memory-mapped, with its audio left encoded."""
    rows = open_dataset(source.path, source.name, source.split)
    _leave_encoded(rows.info.features)
    return rows


def _leave_encoded(feature: Any):
    """Audio, however deep in a set's features, is read as bytes. (`cast_column` would copy a set with lists of clips.)"""
    if isinstance(feature, Audio):
        feature.decode = False
    elif isinstance(feature, (List, LargeList)):
        _leave_encoded(feature.feature)
    elif isinstance(feature, dict):
        for part in feature.values():
            _leave_encoded(part)


def _index(source: DataSource, rows: Dataset) -> np.ndarray:
    """(row, question) of every example of a set, `(examples, 2)`."""
    if "messages" in rows.column_names:
        return np.stack([np.arange(len(rows)), np.full(len(rows), WHOLE_ROW)], axis=1)
    if "questions" not in rows.column_names:
        raise ValueError(
            f"The training set {str(source)!r} has the columns {rows.column_names}; expected `messages` (chats) or "
            "`questions` (clips with their questions, as `open_asqa prepare` writes them)."
        )
    counts = np.array(list(_question_counts(rows)))
    if counts.sum() == 0:
        raise ValueError(f"The training set {str(source)!r} holds no questions.")
    first = np.cumsum(counts) - counts
    return np.stack(
        [np.repeat(np.arange(len(rows)), counts), np.arange(counts.sum()) - np.repeat(first, counts)], axis=1
    )


def _question_counts(rows: Dataset) -> Iterator[int]:
    # Arrow's own lengths: no row becomes Python objects.
    for batch in rows.select_columns("questions").with_format("arrow").iter(batch_size=10_000):
        yield from batch["questions"].combine_chunks().value_lengths().fill_null(0).to_pylist()


class _Reader:
    """Turns index rows into examples; given to `Dataset.with_transform`, so it runs where rows are read."""

    def __init__(self, sets: Sequence[tuple[DataSource, Dataset]]):
        self.sets = list(sets)

    def __call__(self, index: dict[str, list[int]]) -> dict[str, list[Any]]:
        examples = [self._read(*key) for key in zip(index["set"], index["row"], index["question"])]
        return {name: [example[name] for example in examples] for name in ("messages", "origin", "clip")}

    def _read(self, number: int, row: int, question: int) -> dict[str, Any]:
        source, rows = self.sets[number]
        place = f"{source}, row {row}"
        origin, clip = (place, None) if question == WHOLE_ROW else (f"{place}, question {question}", place)
        example = rows[row]
        folder = Path(source.path)
        folder = folder if folder.is_dir() else folder.parent
        try:
            messages = example["messages"] if question == WHOLE_ROW else _as_chat(example["questions"][question])
            return {"messages": fill_in(messages, clips_of(example), folder), "origin": origin, "clip": clip}
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error


def _as_chat(question: dict[str, str]) -> list[dict[str, Any]]:
    if not (question.get("instruction") and question.get("output")):
        raise ValueError(f"a question needs the texts `instruction` and `output`, got {question}")
    # The audio item is filled in; the clip's transcript (`input`) is not shown, it would give answers away.
    return [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": question["instruction"]}]},
        {"role": "assistant", "content": question["output"]},
    ]


def clips_of(example: dict[str, Any]) -> list[Any]:
    """The clips of a row's own columns: `audios` (several) or `audio` (one)."""
    if example.get("audios") is not None:
        return list(example["audios"])
    return [example["audio"]] if example.get("audio") is not None else []


def fill_in(messages: Sequence[dict[str, Any]], clips: Sequence[Any], folder: Path) -> list[dict[str, Any]]:
    """
    The chat with a source in every audio item: its own, or the row's clips in order. Clips of a chat that has no audio
    item open its first user message. Relative paths start at the set's folder.
    """
    said = [str(message["role"]) for message in messages or [] if isinstance(message, dict) and message.get("role")]
    strangers = set(said) - set(ROLES)
    if strangers:
        raise ValueError(f"got messages with the role {sorted(strangers)}; expected {', '.join(ROLES)}")
    if not messages or not all(isinstance(message, dict) and message.get("role") for message in messages):
        raise ValueError(f"`messages` must be a list of objects with `role` and `content`, got {messages}")
    filled = [dict(message) for message in messages]
    items = [_items(message) for message in filled]
    places = [item for content in items for item in content if item.get("type") == "audio"]
    if clips and not places:
        user = next((number for number, message in enumerate(filled) if message["role"] == "user"), None)
        if user is None:
            raise ValueError("there are clips, but no user message to put them in")
        places = [{"type": "audio"} for _ in clips]
        items[user] = [*places, *items[user]]
    empty = [item for item in places if all(item.get(key) is None for key in SOURCE_KEYS)]
    if len(empty) != len(clips):
        raise ValueError(
            f"the messages have {len(empty)} audio items without a source, but the row has {len(clips)} clips in `audio` or "
            "`audios`; they must match"
        )
    for item, clip in zip(empty, clips):
        item["audio"] = clip
    for item in places:
        _resolve(item, folder)
    for message, content in zip(filled, items):
        message["content"] = content
    return filled


def _items(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [dict(item) for item in content or []]


def _resolve(item: dict[str, Any], folder: Path):
    for key in SOURCE_KEYS:
        item[key] = _from_folder(item.get(key), folder)
    clip = item["audio"]
    if isinstance(clip, dict) and clip.get("bytes") is None and clip.get("path"):
        item["audio"] = _from_folder(clip["path"], folder)


def _from_folder(source: Any, folder: Path) -> Any:
    if not isinstance(source, str) or "://" in source or source.startswith("data:"):
        return source
    return os.fspath(folder / source)  # an absolute path stays as it is
