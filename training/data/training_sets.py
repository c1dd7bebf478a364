"""Training data of any kind as chats with sound: one `datasets.Dataset` of small index rows, read when asked for.

A set holds chats (`messages`) or clips with all their questions in one row (`questions`, as `falcon3-audio open-asqa prepare` writes
them); each question becomes an example of its own. Only (set, row, question) is held in memory; rows are looked up in the
memory-mapped sets by the data loader's workers, and audio is decoded there, in the collator. Examples are
`{"messages": [...], "origin": "set, row 7, question 2", "clip": "set, row 7"}`, every audio item with its source in it. The
set is called by its path, and by its configuration and split where the recipe names them: rows of another split are
other clips. `clip` is `None` for chats, which need not be about one clip alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Audio, Dataset, LargeList, List

from ..arguments import DataSource
from .chats import TAG, audio_items, check_all_is_read, check_has_sound, check_sound_is_read, clips_of, fill_in
from .open_dataset import open_dataset


WHOLE_ROW = -1  # in the place of a question's number, where the row itself is the chat


def load_training_data(sources: Sequence[DataSource]) -> tuple[Dataset, list[int]]:
    """
    All examples of some sets, end to end in the order given, and how many each set has (for the sampler).

    Raises:
        `ValueError`: a set that cannot be found or read, is empty, has neither `messages` nor `questions`, or has no sound
            and is not said to be of texts alone. Rows that are wrong raise one when they are read.
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
        _check_sound(source, rows)
        return np.stack([np.arange(len(rows)), np.full(len(rows), WHOLE_ROW)], axis=1)
    if "questions" not in rows.column_names:
        other = "conversations" in rows.column_names
        hint = " ShareGPT's `conversations` of `from` and `value` are not read: make them `messages`." if other else ""
        raise ValueError(
            f"The training set {str(source)!r} has the columns {rows.column_names}; expected `messages` (chats) or "
            f"`questions` (clips with their questions, as `falcon3-audio open-asqa prepare` writes them).{hint}"
        )
    counts = np.array(list(_question_counts(rows)))
    if counts.sum() == 0:
        raise ValueError(f"The training set {str(source)!r} holds no questions.")
    first = np.cumsum(counts) - counts
    return np.stack(
        [np.repeat(np.arange(len(rows)), counts), np.arange(counts.sum()) - np.repeat(first, counts)], axis=1
    )


def _check_sound(source: DataSource, rows: Dataset):
    """Looks at rows until one has sound; a set whose every row has none is seldom what was meant."""
    if not source.sound or any(_may_have_sound(row) for row in rows):
        return
    _Reader([(replace(source, sound="some"), rows)])._read(0, 0, WHOLE_ROW)  # which may say what is wrong
    raise ValueError(
        f"No row of the training set {str(source)!r} has sound. Clips are read from `audio`, `audios` and the audio items of "
        "`messages`. To train on texts alone, set `sound: false` in the set's entry."
    )


def _may_have_sound(row: dict[str, Any]) -> bool:
    try:
        return bool(clips_of(row) or audio_items(row["messages"]))
    except ValueError:
        return True  # and is named when the row is read


def _question_counts(rows: Dataset) -> Iterator[int]:
    if rows.format["type"] == "custom":  # JSON
        for batch in rows.select_columns("questions").iter(batch_size=1_000):
            yield from (len(questions) if isinstance(questions, list) else 0 for questions in batch["questions"])
        return
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
            chat = example["messages"] if question == WHOLE_ROW else _as_chat(example["questions"][question])
            check_all_is_read(example, chat)
            if source.sound:
                check_sound_is_read(example, chat)
            messages = fill_in(chat, clips_of(example), folder, tags=bool(source.sound))
            check_has_sound(messages, source.sound)
            return {"messages": messages, "origin": origin, "clip": clip}
        except ValueError as error:
            raise ValueError(f"{origin}: {error}") from error


def _as_chat(question: Any) -> list[dict[str, Any]]:
    texts = [question.get(name) for name in ("instruction", "output")] if isinstance(question, dict) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"a question needs the texts `instruction` and `output`, got {question}")
    # The audio item is filled in; the clip's transcript (the row's `input`) is not shown, it would give answers away.
    asked = question["instruction"]
    if question.get("input"):
        raise ValueError(f"a question's `input` is not read; write it into `instruction`, got {question}")
    return [
        {"role": "user", "content": asked if TAG in asked else [{"type": "audio"}, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": question["output"]},
    ]
