"""The order of training: a pure function of (seed, epoch), so that step n of a run is always the same questions.

A resumed run therefore continues at the exact example, and skipping to it reads no data. Sets are mixed by weight, which
is the number of passes over a set per epoch: an endless sequence of reshuffled passes is cut into stretches of
`weight * size`, one per epoch, so that half weights see the other half in the next epoch.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class MixtureSampler(Sampler[int]):
    """
    Indices into several sets laid end to end, each set as often as its weight says, all shuffled together.

    Args:
        sizes: examples of each set.
        weights: passes over each set per epoch, above 0.
        seed: 0 or more.

    Raises a `ValueError` for an empty set, or a weight so small that an epoch takes nothing of a set.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int = 0):
        self.sizes, self.seed, self.epoch = list(sizes), seed, 0
        self.counts = [round(weight * size) for weight, size in zip(weights, sizes)]
        for number, (size, count) in enumerate(zip(self.sizes, self.counts)):
            if count < 1:
                raise ValueError(
                    f"Training set {number} has {size} examples and the weight {weights[number]}, which gives "
                    f"{count} examples per epoch; an epoch needs at least one. Raise the weight or leave the set out."
                )

    def set_epoch(self, epoch: int):
        """Called by the trainer at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[int]:
        offset, parts = 0, []
        for number, (size, count) in enumerate(zip(self.sizes, self.counts)):
            parts.append(self._stretch(number, size, self.epoch * count, count) + offset)
            offset += size
        mixed = torch.cat(parts)
        order = torch.randperm(len(mixed), generator=self._generator(len(self.sizes), self.epoch))
        for chunk in mixed[order].split(1 << 16):  # a list of ten million Python integers would take 400 MB
            yield from chunk.tolist()

    def _stretch(self, number: int, size: int, start: int, count: int) -> torch.Tensor:
        """`count` indices from position `start` of the endless sequence of reshuffled passes over a set."""
        first, last = start // size, (start + count - 1) // size
        passes = [torch.randperm(size, generator=self._generator(number, turn)) for turn in range(first, last + 1)]
        begin = start - first * size
        return torch.cat(passes)[begin : begin + count]

    def _generator(self, *key: int) -> torch.Generator:
        # A mix of the numbers that no other key gives: randperm is seeded by one integer only.
        mixed = self.seed
        for number in key:
            mixed = (mixed * 1_000_003 + number + 1) % (1 << 61)
        return torch.Generator().manual_seed(mixed)
