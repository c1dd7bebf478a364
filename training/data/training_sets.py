"""Training data of any format as chats with audio: one `datasets.Dataset` of small index rows, read on demand.

A set is in one of the formats of formats.py. If a row holds several questions (as `falcon3-audio open-asqa prepare`
writes them) or captions, each becomes an example. Only (set, row, question) is held in memory; rows are looked up in
the memory-mapped sets by the data loader's workers, and audio is decoded there, in the collator. Examples are
`{"messages": [...], "origin": "set, row 7, question 2", "clip": "set, row 7"}`, with a source in every audio item. The
set is named by its path, and by its configuration and split if the recipe gives them: rows of another split are other
clips, as are other columns of one row. `clip` is `None` for chats, which can be about several clips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, LargeList, List

from .chats import (
    audio_items,
    check_all_is_read,
    check_has_sound,
    check_is_answered,
    check_sound_is_read,
    check_times_are_used,
    fill_in,
)
from .formats import AUDIO, SEGMENT
from .json_features import check_texts_are_kept
from .open_dataset import open_dataset, other_folders
from .reading import Reading, choose
from .sampler import examples_per_epoch
from .sources import DataSource


WHOLE_ROW = -1  # instead of a question's number, if the row itself is the chat


def load_training_data(sources: Sequence[DataSource]) -> tuple[Dataset, list[int]]:
    """
    All examples of some sets, concatenated in the given order, and how many each set has (for the sampler).

    Raises:
        `ValueError`: if a set cannot be found or read, is empty, is in no known format, has no audio and is not
            declared as text-only, or has too small a weight. Invalid rows raise one when they are read.
    """
    streamed = next((source for source in sources if source.streaming), None)
    if streamed is not None:
        raise ValueError(
            f"{streamed} has `streaming: true`, but only `train_data` of `falcon3-audio train` can be streamed; leave "
            "out `streaming`."
        )
    examples, sizes = index_sets([_open(source) for source in sources])
    for source, size in zip(sources, sizes):
        examples_per_epoch(size, source.weight, str(source))
    return examples, sizes


def index_sets(sets: Sequence["OpenSet"]) -> tuple[Dataset, list[int]]:
    """`load_training_data` of sets that are already open."""
    parts = [_index(*opened) for opened in sets]
    columns = {
        "set": np.repeat(np.arange(len(parts), dtype=np.int16), [len(part) for part in parts]),
        "row": np.concatenate([part[:, 0] for part in parts]),
        "question": np.concatenate([part[:, 1] for part in parts]).astype(np.int32),
    }
    examples = Dataset.from_dict(columns).with_transform(_Reader(sets))
    return examples, [len(part) for part in parts]


def describe_sets(examples: Dataset) -> list[str]:
    """How each set of some training data is read, one line per set, in the order of the sets."""
    return [
        f"{source}: a stream of unknown length; by its first {counted(len(rows), 'row')}, read as {reading}"
        if source.streaming
        else f"{source}: {counted(len(rows), 'row')}, read as {reading}"
        for source, rows, reading in sets_of(examples)
    ]


def counted(count: int, what: str) -> str:
    """`1 row`, `1,000 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def set_of(examples: Dataset) -> "OpenSet":
    """The one set of some training data: its entry, its rows as they are stored, and how it is read."""
    (only,) = sets_of(examples)
    return only


def sets_of(examples: Dataset) -> list["OpenSet"]:
    """The sets of some training data, in order."""
    return examples.format["format_kwargs"]["transform"].sets


def questions_per_clip(examples: Dataset, sizes: Sequence[int]) -> list[np.ndarray]:
    """The number of examples of each row, `(rows with any,)` for each set, in the order of the set."""
    rows = examples.with_format("numpy")["row"][:]
    parts = np.split(rows, np.cumsum(sizes)[:-1])
    return [np.diff(np.flatnonzero(np.diff(part, prepend=-1, append=-1))) for part in parts]


def _open(source: DataSource) -> "OpenSet":
    return understand(source, open_dataset(source.path, source.name, source.split))


def understand(source: DataSource, rows: Dataset) -> "OpenSet":
    """
    A set as it is stored, and how it is read.

    Raises a `ValueError` that names the set if it fits no format, or several, or if its texts were changed.
    """
    try:
        reading = choose(rows, source.columns, source.prompt, source.sound)
        check_texts_are_kept(rows.features, reading.columns)
    except ValueError as error:
        raise ValueError(f"The training set {str(source)!r} {error}.") from error
    return source, rows, replace(reading, elsewhere=other_folders(source.path, source.split))


def _index(source: DataSource, rows: Dataset, reading: Reading) -> np.ndarray:
    """(row, question) of every example of a set, `(examples, 2)`."""
    if reading.several is None:
        _check_sound(source, rows, reading)
        return np.stack([np.arange(len(rows)), np.full(len(rows), WHOLE_ROW)], axis=1)
    lengths = np.array(list(_lengths(rows, reading.several)))
    if not reading.format.may_be_empty:
        lengths[lengths == 0] = 1  # an error when it is read
    counts = np.where(lengths == WHOLE_ROW, 1, lengths)
    if counts.sum() == 0:
        raise ValueError(f"The training set {str(source)!r} holds no questions.")
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    whole = np.repeat(lengths == WHOLE_ROW, counts)
    return np.stack([np.repeat(np.arange(len(rows)), counts), np.where(whole, WHOLE_ROW, number)], axis=1)


def _check_sound(source: DataSource, rows: Dataset, reading: Reading):
    """Looks at rows until one has audio; a set without any audio is seldom intended."""
    if (
        not source.sound
        or source.streaming
        and source.sound == "some"
        or any(_may_have_sound(row, reading) for row in rows)
    ):
        return
    _Reader([(replace(source, sound="some"), rows, reading)])._read(0, 0, WHOLE_ROW)  # which can say what is wrong
    raise ValueError(
        f"No row of the training set {str(source)!r} has audio. Clips are read from `audio`, `audios` and the audio "
        "items of `messages`. To train only on texts, set `sound: false` in the set's entry."
    )


def _may_have_sound(row: dict[str, Any], reading: Reading) -> bool:
    try:
        return bool(reading.clips_of(row) or audio_items(reading.chat(row, 0)))
    except ValueError:
        return True  # the error is raised when the row is read


def _lengths(rows: Dataset, column: str) -> Iterator[int]:
    """The length of each row's list in a column; `WHOLE_ROW` if it is not a list."""
    column_rows = rows.select_columns(column)
    if rows.format["type"] == "custom":  # JSON and tables
        for batch in column_rows.iter(batch_size=1_000):
            yield from (0 if v is None else len(v) if isinstance(v, list) else WHOLE_ROW for v in batch[column])
    elif isinstance(rows.features[column], (List, LargeList)):
        # Arrow's own lengths: no row becomes Python objects.
        for batch in column_rows.with_format("arrow").iter(batch_size=10_000):
            yield from batch[column].combine_chunks().value_lengths().fill_null(0).to_pylist()
    else:
        yield from [WHOLE_ROW] * len(rows)


OpenSet = tuple[DataSource, Dataset, Reading]


class _Reader:
    """Turns index rows into examples; given to `Dataset.with_transform`, so it runs where rows are read."""

    def __init__(self, sets: Sequence[OpenSet]):
        self.sets = list(sets)

    def __call__(self, index: dict[str, list[int]]) -> dict[str, list[Any]]:
        examples = [self._read(*key) for key in zip(index["set"], index["row"], index["question"])]
        return {name: [example[name] for example in examples] for name in ("messages", "origin", "clip")}

    def _read(self, number: int, row: int, question: int) -> dict[str, Any]:
        source, rows, reading = self.sets[number]
        return read_example(source, reading, rows[row], row, question, f"row {row}")


def read_example(
    source: DataSource, reading: Reading, row: dict[str, Any], number: int, question: int, place: str
) -> dict[str, Any]:
    """
    One example of a row, which is the only one if `question` is `WHOLE_ROW`.

    Args:
        number: of the row, from which the prompt is drawn.
        place: the row's name within its set, in errors.

    Raises a `ValueError` that names the row if it is invalid.
    """
    place = f"{source}, {place}"
    part = None if question == WHOLE_ROW else question
    origin = place if part is None else f"{place}, {reading.format.part} {part}"
    clip = None if part is None else ", ".join([place, *_columns_of_sound(source)])
    try:
        messages = _as_messages(row, number, part, reading, source.sound, source.folder)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return {"messages": messages, "origin": origin, "clip": clip}


def _columns_of_sound(source: DataSource) -> list[str]:
    """The ones that a set's entry names: with others, the same row is about another clip."""
    return [f"{name} {column}" for name, column in (source.columns or {}).items() if name in (AUDIO, *SEGMENT)]


def _as_messages(
    example: dict[str, Any], row: int, part: int | None, reading: Reading, sound: bool | str, folder: Path
) -> list[dict[str, Any]]:
    chat, clips = reading.chat(example, row, part), reading.clips_of(example)
    check_all_is_read(example, chat, reading.read)
    check_times_are_used(chat, reading.times_of(example))
    if sound:
        check_sound_is_read(example, chat, clips, reading.read)
    messages = fill_in(chat, clips, folder, tags=bool(sound), elsewhere=reading.elsewhere)
    check_has_sound(messages, sound)
    check_is_answered(messages)
    return messages
