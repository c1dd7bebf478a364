"""The training order: a pure function of (seed, epoch), so step n of a run always has the same questions.

A resumed run therefore continues at the exact example, and skipping to it reads no data. Sets are mixed by weight, which
is the number of passes over a set per epoch: an endless sequence of reshuffled passes is cut into stretches of
`weight * size`, one per epoch, so that a weight of 0.5 gives the other half in the next epoch.

Questions about one clip stay together, so that they can share its audio (see collator.py). Their order, their division
into groups if there are more than a row can have, and the order of the groups are random. Groups are put whole into
steps wherever they fit, and dealt to the batches of a step so that all have about the same number of clips; only
groups that fit nowhere are split. So the questions of a step do not depend on the number of devices. With several
devices, accelerate fills the last round of an epoch with that epoch's first examples.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler


# How many groups are searched for one that fits into the rest of a step.
LOOK_AHEAD = 64
PASS = "pass"  # in examples: how many times their set was read before


class Place(int):
    """An index into a training set, and `turn`: how many times its set was passed over before."""

    turn: int

    def __new__(cls, index: int, turn: int):
        place = super().__new__(cls, index)
        place.turn = turn
        return place

    def __reduce__(self):  # for the loader's workers: that of `int` leaves out `turn`
        return Place, (int(self), self.turn)


class WithPass(Dataset):
    """The examples of a `datasets.Dataset`, each with the `pass` of the `Place` that asks for it."""

    def __init__(self, examples: Any):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, places: list[Place]) -> list[dict[str, Any]]:
        return [example | {PASS: place.turn} for place, example in zip(places, self.examples.__getitems__(places))]


def examples_per_epoch(size: int, weight: float, name: str) -> int:
    """The examples of a set in an epoch. Raises a `ValueError` that names the set if there are none."""
    count = round(weight * size)
    if count < 1:
        raise ValueError(
            f"{name} has {size} examples and the weight {weight}, which gives {count} examples per epoch; an epoch "
            "needs at least one. Raise the weight or leave the set out."
        )
    return count


class MixtureSampler(Sampler[int]):
    """
    Indices into several concatenated sets (each a `Place`), each set as often as its weight says, all shuffled
    together.

    Args:
        sizes: examples of each set.
        weights: passes over each set per epoch, above 0.
        seed: 0 or more.
        clips: for each set, the number of examples of each clip, `(clips,)` of integers, in the order of the set.
        questions_per_row: maximum number of examples about one clip that stay together; `None` for all, 1 for none.
        step_size: examples per step, which groups are fitted into; by default there are no steps.
        batch_size: examples that a device takes at a time, a part of a step; by default the whole step.

    Raises a `ValueError` if a set is empty, or a weight is so small that an epoch has no example of a set.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        seed: int = 0,
        clips: Sequence[np.ndarray] | None = None,
        questions_per_row: int | None = 1,
        step_size: int | None = None,
        batch_size: int | None = None,
    ):
        self.sizes, self.seed, self.epoch = list(sizes), seed, 0
        self._size = sum(self.sizes)
        self.clips = clips
        self.questions_per_row = 1 if clips is None else questions_per_row
        self.counts = [
            examples_per_epoch(size, weight, f"Training set {number}")
            for number, (size, weight) in enumerate(zip(sizes, weights))
        ]
        self.step_size = step_size or sum(self.counts)
        self.batch_size = batch_size or self.step_size

    def set_epoch(self, epoch: int):
        """Called by the trainer at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        offset, parts = 0, []
        groups: list[torch.Tensor] = []
        for number, (size, count) in enumerate(zip(self.sizes, self.counts)):
            indices, group = self._stretch(number, size, self.epoch * count, count)
            parts.append(indices + offset)
            groups.append(group + (groups[-1][-1] + 1 if groups else 0))
            offset += size
        generator = self._generator(len(self.sizes), self.epoch)
        order, lengths = _shuffle_groups(torch.cat(groups), generator)
        mixed = torch.cat(parts)[order]
        if self.questions_per_row == 1:
            return self._in_chunks(mixed)
        return self._by_step(mixed, lengths)

    def _in_chunks(self, indices: torch.Tensor) -> Iterator[int]:
        for chunk in indices.split(1 << 16):  # a list of ten million Python integers would take 400 MB
            yield from self._places(chunk)

    def _by_step(self, indices: torch.Tensor, lengths: torch.Tensor) -> Iterator[int]:
        ends = lengths.cumsum(0).numpy()
        groups = zip((ends - lengths.numpy()).tolist(), ends.tolist())
        for step in _fit(groups, self.step_size):
            for batch in _deal(step, self.batch_size):
                for start, end in batch:
                    yield from self._places(indices[start:end])

    def _places(self, indices: torch.Tensor) -> Iterator[Place]:
        return (Place(number % self._size, number // self._size) for number in indices.tolist())

    def _stretch(self, number: int, size: int, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        `count` indices from position `start` of the endless sequence of reshuffled passes over a set, each with the
        number of its pass times the size of all sets added, and the number of the group that each belongs to,
        increasing from 0.
        """
        turns = range(start // size, (start + count - 1) // size + 1)
        passes = [self._pass(number, size, turn) for turn in turns]
        begin = start - turns[0] * size
        numbers = [indices + turn * self._size for turn, (indices, _) in zip(turns, passes)]
        indices = torch.cat(numbers)[begin : begin + count]
        ends = torch.cat([group.diff(prepend=group[:1] - 1) for _, group in passes])[begin : begin + count]
        return indices, ends.clamp(max=1).cumsum(0) - ends[:1].clamp(max=1)

    def _pass(self, number: int, size: int, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All indices of a set, shuffled, and their groups, increasing from 0."""
        generator = self._generator(number, turn)
        order = torch.randperm(size, generator=generator)
        counts = torch.ones(1) if self.clips is None else torch.as_tensor(self.clips[number])
        if self.questions_per_row == 1 or (counts == 1).all():
            return order, torch.arange(size)
        clip = torch.repeat_interleave(torch.arange(len(counts)), counts)
        by_clip = order[torch.argsort(clip[order], stable=True)]
        place = torch.arange(size) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        limit = self.questions_per_row or size
        begins = place % limit == 0
        order, lengths = _shuffle_groups(begins.cumsum(0) - 1, generator)
        return by_clip[order], torch.repeat_interleave(torch.arange(len(lengths)), lengths)

    def _generator(self, *key: int) -> torch.Generator:
        # Mixes the numbers into one that no other key gives: randperm is seeded by a single integer.
        mixed = self.seed
        for number in key:
            mixed = (mixed * 1_000_003 + number + 1) % (1 << 61)
        return torch.Generator().manual_seed(mixed)


def _shuffle_groups(groups: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A random order of the places in which runs of equal numbers stay together, and the lengths of the runs."""
    lengths = torch.unique_consecutive(groups, return_counts=True)[1]
    order = torch.randperm(len(lengths), generator=generator)
    if len(lengths) == len(groups):
        return order, lengths
    starts = (lengths.cumsum(0) - lengths)[order]
    lengths = lengths[order]
    within = torch.arange(len(groups)) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    return torch.repeat_interleave(starts, lengths) + within, lengths


def _fit(groups: Iterator[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """
    Groups as (start, end) in lists of `size` examples each (the last can have fewer), in an order in which they seldom
    have to be split.
    """
    waiting = list(_take(groups, LOOK_AHEAD))
    fitted, room = [], size
    while waiting:
        lengths = [end - start for start, end in waiting]
        fits = (place for place, length in enumerate(lengths) if length <= room)
        start, end = waiting.pop(lengths.index(room) if room in lengths else next(fits, 0))
        taken = min(end - start, room)
        fitted.append((start, start + taken))
        if start + taken < end:
            waiting.insert(0, (start + taken, end))
        else:
            waiting.extend(_take(groups, 1))
        room -= taken
        if not room:
            yield fitted
            fitted, room = [], size
    if fitted:
        yield fitted


def _deal(groups: list[tuple[int, int]], size: int) -> list[list[tuple[int, int]]]:
    """
    Deals the groups of a step to lists of `size` examples (the last can have fewer): the largest first, each to the
    list with the most room, so that the many small ones are spread over all lists. Audio is most of the cost of a
    group, and this gives all devices about the same amount of it.
    """
    total = sum(end - start for start, end in groups)
    room = [min(size, total - begin) for begin in range(0, total, size)]
    dealt: list[list[tuple[int, int]]] = [[] for _ in room]
    for start, end in sorted(groups, key=lambda group: group[0] - group[1]):
        while start < end:
            fits = [place for place, left in enumerate(room) if left >= end - start]
            chosen = max(fits, key=lambda place: (room[place], -len(dealt[place])), default=room.index(max(room)))
            taken = min(end - start, room[chosen])
            dealt[chosen].append((start, start + taken))
            room[chosen] -= taken
            start += taken
    return dealt


def _take(groups: Iterator[tuple[int, int]], count: int) -> Iterator[tuple[int, int]]:
    return (group for _, group in zip(range(count), groups))
