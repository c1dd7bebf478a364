"""The training order of streamed sets: endless, split among the readers of a run, and the same after a run is resumed.

A reader is a data loader worker in one process. In each pass over a set, the shards are shuffled and dealt to the
readers; if there are fewer shards than readers, n readers share a shard and each keeps every n-th of its rows. A
reader shuffles `buffer_size` rows of a pass at a time, and reads the next ones while it yields these. The next set is
drawn at random, by weight. A set that is exhausted starts over, in another order. Questions about one clip are
consecutive; those that do not fit into a batch start the next one.

All this depends only on the seed and on the reader's position, which is a few numbers: for each set the pass, the
shard, the row where its shuffled rows start, and how many of their questions are done. So a run resumes at the exact
question, at the cost of reading a shard up to there, and the shuffled rows again. (`IterableDataset.shuffle` of
`datasets` loses its buffer when it is resumed, and `repeat` gives the same order again.)
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, islice
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import get_worker_info

from .open_stream import FIRST_ROWS, Shard, first_rows, open_shards
from .reading import Reading
from .sampler import PASS
from .sources import DataSource
from .training_sets import WHOLE_ROW, index_sets, read_example, understand


POSITION = "position"  # in examples: the reader, and where it continues after them
Question = tuple["Row", int]


@dataclass(frozen=True)
class StreamedSet:
    """A streamed set: its entry, its shards, how it is read, and the columns of its first rows."""

    source: DataSource
    shards: Sequence[Shard]
    reading: Reading
    columns: Sequence[str]


@dataclass(frozen=True)
class Row:
    """
    A row for a reader.

    Attributes:
        at: pass, place of its shard in the reader's order, and place in the shard.
        window: rows with the same window are shuffled together.
        number: in its file, or in its set if `shard` is empty.
        shard: the name of its shard, see `TextShard`.
        values: of its columns.
    """

    at: tuple[int, int, int]
    window: tuple[int, int]
    number: int
    shard: str
    values: dict[str, Any]


def open_streams(
    sources: Sequence[DataSource], rows: int = FIRST_ROWS
) -> tuple[list[StreamedSet], tuple[Dataset, list[int]]]:
    """
    Sets to stream, and the result of `load_training_data` for the first `rows` rows of each.

    Raises:
        `ValueError`: as in `load_training_data`, and if a set cannot be streamed.
    """
    sets, opened = [], []
    for source in sources:
        shards = open_shards(source.path, source.name, source.split)
        opened.append(understand(source, first_rows(source.path, shards, rows)))
        _, first, reading = opened[-1]
        sets.append(StreamedSet(source, shards, reading, first.column_names))
    return sets, index_sets(opened)


class TrainingStream(torch.utils.data.IterableDataset):
    """
    The endless examples of some sets for a data loader: as in `load_training_data`, with `position` and `pass`.

    Args:
        sets: from `open_streams`.
        seed: of the order.
        buffer_size: rows of a set that a reader shuffles at a time.
        questions_per_row: maximum number of questions of a row that stay together, `None` for all.
        process, processes: the number of this process, and how many there are.
        workers: of the data loader; 0 counts as 1.

    Attributes:
        batches: number of batches that the loader has returned.
        positions: of this process's readers, by number, after these batches.
    """

    def __init__(
        self,
        sets: Sequence[StreamedSet],
        seed: int = 0,
        buffer_size: int = 1,
        questions_per_row: int | None = 1,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        self.sets, self.seed, self.buffer_size, self.limit = list(sets), seed, buffer_size, questions_per_row
        self.process, self.processes, self.workers = process, processes, max(1, workers)
        self.batches = 0
        self.positions: dict[int, Any] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        # A loader asks its workers in turn, starting with the first.
        own = ((worker.id if worker else 0) + self.batches) % self.workers
        return self._read(own, self.positions.get(own))

    def passed(self, position: tuple[int, Any]):
        """Records the position of the last example of a batch that was returned."""
        self.batches += 1
        self.positions[position[0]] = position[1]

    def state(self) -> dict[str, Any]:
        """The positions of this process's readers, as JSON values."""
        return {
            "processes": self.processes,
            "workers": self.workers,
            "batches": self.batches,
            "positions": {str(own): position for own, position in self.positions.items()},
        }

    def go_on(self, state: dict[str, Any]):
        """Resumes from a `state`. Raises a `ValueError` if it has another number of readers."""
        for name in ("processes", "workers"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The run was read by {state['processes']} process(es) with {state['workers']} worker(s) each, "
                    f"which share the streams; now there are {self.processes} with {self.workers}. Resume with the "
                    "same numbers (dataloader_num_workers)."
                )
        self.batches = state["batches"]
        self.positions = {int(own): position for own, position in state["positions"].items()}

    def _read(self, own: int, position: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        reader = self.process * self.workers + own
        drawn, places = (position["drawn"], position["sets"]) if position else (0, [[0, 0, 0, 0] for _ in self.sets])
        parts = [_Part(self, number, reader, place) for number, place in enumerate(places)]
        examples = [part.examples() for part in parts]
        weights = [one.source.weight for one in self.sets]
        while True:
            chosen = random.Random(f"{self.seed} {reader} {drawn}").choices(range(len(parts)), weights)[0]
            is_last = False
            while not is_last:
                example, is_last = next(examples[chosen])
                drawn += is_last
                behind = {"drawn": drawn, "sets": [list(part.place) for part in parts]}
                yield example | {POSITION: (own, behind)}


class _Part:
    """A set for one reader. `place`: the start of its shuffled rows (see `Row.at`) and how many questions are done."""

    def __init__(self, stream: TrainingStream, number: int, reader: int, place: Sequence[int]):
        self.stream, self.set, self.place = stream, stream.sets[number], tuple(place)
        self.number, self.reader, self.readers = number, reader, stream.processes * stream.workers

    def examples(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each example from `place` on, and whether it is the last of its group."""
        *start, done = self.place  # done: questions already yielded, only of the first window
        windows = (rows for _, rows in groupby(self._rows(*start), key=lambda row: row.window))
        window, asked = list(next(windows)), start[0]
        for upcoming in windows:
            first, groups = window[0].at, self._groups(window)
            coming: list[Row] = []
            given = 0
            self._check_asked(first[0] - asked)
            for number, group in enumerate(groups, 1):
                coming += islice(upcoming, self.stream.buffer_size * number // len(groups) - len(coming))
                for left, (row, question) in enumerate(group, 1 - len(group)):
                    asked, given = row.at[0], given + 1
                    if given > done:
                        self.place = (*first, given)
                        yield self._example(row, question), not left
            window, done = [*coming, *upcoming], 0

    def _rows(self, first: int, start: int, begin: int) -> Iterator[Row]:
        """The rows of this reader, pass after pass."""
        empty = 0
        for turn in count(first):
            taken = 0
            for place, (shard, own, sharers) in enumerate(self._shards(turn)[start:], start):
                for number, values in enumerate(shard.rows(begin), begin):
                    if number % sharers == own:
                        window = turn, taken // self.stream.buffer_size
                        yield Row((turn, place, number), window, shard.first + number, shard.name, values)
                        taken += 1
                begin = 0
            start, empty = 0, 0 if taken else empty + 1
            if empty > len(self.set.shards):
                raise ValueError(
                    f"{self.set.source} has fewer rows than there are readers ({self.readers}: workers of all processes), so that some have "
                    "nothing to read. Lower dataloader_num_workers, or leave out `streaming`."
                )

    def _shards(self, turn: int) -> list[tuple[Shard, int, int]]:
        """In a pass: this reader's shards, its number among the readers that share each, and how many share it."""
        order = list(self.set.shards)
        self._chance(turn).shuffle(order)
        if len(order) >= self.readers:
            return [(shard, 0, 1) for shard in order[self.reader :: self.readers]]
        sharers = range(self.reader % len(order), self.readers, len(order))
        return [(order[self.reader % len(order)], sharers.index(self.reader), len(sharers))]

    def _groups(self, window: Sequence[Row]) -> list[list[Question]]:
        """The questions of some rows in random order; each list holds questions that stay together."""
        chance = self._chance(self.reader, *window[0].at)
        groups: list[list[Question]] = []
        for row in window:
            parts = self._parts(row)
            if self.stream.buffer_size > 1:
                chance.shuffle(parts)
            limit = self.stream.limit or len(parts)
            groups += [[(row, part) for part in parts[start:][:limit]] for start in range(0, len(parts), limit or 1)]
        if self.stream.buffer_size > 1:
            chance.shuffle(groups)
        return groups

    def _parts(self, row: Row) -> list[int]:
        """The questions of a row, as `read_example` takes them."""
        several = self.set.reading.several
        if several is None:
            return [WHOLE_ROW]
        given = row.values.get(several)
        if given is not None and not isinstance(given, list):
            return [WHOLE_ROW]
        return list(range(len(given or ()))) or ([] if self.set.reading.format.may_be_empty else [0])

    def _example(self, row: Row, question: int) -> dict[str, Any]:
        values = dict.fromkeys(self.set.columns) | row.values
        example = read_example(
            self.set.source, self.set.reading, values, row.number, question, f"{row.shard}row {row.number}"
        )
        return example | {PASS: row.at[0]}

    def _chance(self, *key: int) -> random.Random:
        return random.Random(f"{self.stream.seed} {self.number} {key}")

    def _check_asked(self, passes: int):
        if passes > 1:
            raise ValueError(f"The training set {str(self.set.source)!r} holds no questions.")
