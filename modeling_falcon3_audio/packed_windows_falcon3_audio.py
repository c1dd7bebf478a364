# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How the windows of a batch, each of a length of its own, lie end to end in one sequence, and attend to themselves alone.

With flash attention by cumulative lengths and with flex attention by a block mask, in one call for all; with other attention
in at most `MAX_GROUPS` calls, each for windows of about one length, padded to the longest of them behind a mask. So the number
of operations does not grow with the number of clips. Everything is computed on the host and copied to the device
once. Travels with every saved checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested


try:
    from torch.nn.attention.flex_attention import BlockMask
except ImportError:  # a torch without flex attention, which nobody can ask for then
    BlockMask = None


# With six, a batch of 64 lengths takes less than twice the operations of one clip (benchmarks/encoder_operations.py), and
# padding costs less than the smaller calls do.
MAX_GROUPS = 6
BLOCK = 128  # positions of a side of flex attention's blocks


class PackedWindows:
    """
    The windows of a batch, shortest first, in groups of about one length.

    Args:
        positions (`Sequence[int]`): encoder positions of each audio of the batch, at least one of them over 0.
        limit (`int`): positions of a full window.
        device: of the tensors.

    Attributes:
        lengths (`np.ndarray` of shape `(windows,)`): positions of each window.
        per_audio (`int`): windows of the longest audio.
        groups (`list[tuple[int, int]]`): (windows, positions of the longest) of each group.
        are_even (`list[bool]`): of each group whether all of it is of one length.
        rows (`tuple[torch.Tensor, ...]`): of each group `(windows,)`, which windows they are: audio x `per_audio` + number.
        places (`torch.Tensor` of shape `(total positions,)`): where each position lies in `(audios, longest)`, flat.
        padded (`torch.Tensor`, *optional*): of shape `(sum of windows x longest)`, what stands in each place of the groups,
            by its number in the sequence. `None` where nothing is padded.
        unpadded (`torch.Tensor` of shape `(total positions,)`, *optional*): the way back.
        is_padding (`torch.Tensor`, *optional*): of the shape of `padded`.
    """

    padded: torch.Tensor | None
    unpadded: torch.Tensor | None
    is_padding: torch.Tensor | None

    def __init__(self, positions: Sequence[int], limit: int, device: torch.device | str):
        longest = max(positions)
        self.per_audio = -(-longest // limit)
        windows = [
            (min(limit, count - start), audio * self.per_audio + start // limit, audio * longest + start)
            for audio, count in enumerate(positions)
            for start in range(0, count, limit)
        ]
        self.lengths, rows, starts = np.array(sorted(windows, key=lambda window: window[0])).T
        parts = [self.lengths[start:stop] for start, stop in group_lengths(self.lengths)]
        self.groups = [(len(part), int(part[-1])) for part in parts]
        self.are_even = [bool(part[0] == part[-1]) for part in parts]
        width = np.repeat([length for _, length in self.groups], [count for count, _ in self.groups])
        arrays = [rows, self._count_from(starts)]
        if width.sum() > self.lengths.sum():
            bases = np.cumsum(width) - width
            steps = np.arange(width.sum()) - np.repeat(bases, width)
            last = np.repeat(self.lengths - 1, width)
            # Padding repeats the last position of its window.
            first = np.repeat(np.cumsum(self.lengths) - self.lengths, width)
            arrays += [self._count_from(bases), first + np.minimum(steps, last), steps > last]
        rows, self.places, *others = _upload(arrays, device)
        self.rows = rows.split([count for count, _ in self.groups])
        self.unpadded, self.padded, self.is_padding = others or (None, None, None)

    def _count_from(self, starts: np.ndarray) -> np.ndarray:
        """For each position of the sequence its number in its window, plus what its window starts at."""
        return np.arange(self.lengths.sum()) + np.repeat(starts - np.cumsum(self.lengths) + self.lengths, self.lengths)

    @property
    def is_even(self) -> bool:
        """Whether all windows have one length; then they are a batch, and not packed."""
        return len(self.groups) == 1 and self.padded is None

    def split(self, states: torch.Tensor) -> list[torch.Tensor]:
        """`(total positions, ...)` to `(windows, positions, ...)` for each group, padded."""
        if self.padded is not None:
            states = states.index_select(0, self.padded.to(states.device))
        parts = states.split([count * length for count, length in self.groups])
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups)]

    def join(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`."""
        states = torch.cat([part.flatten(0, 1) for part in parts])
        return states if self.unpadded is None else states.index_select(0, self.unpadded.to(states.device))

    def masks(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        """What is added to the scores of each group: `(windows, 1, 1, positions)`, or `None` where nothing is padded."""
        if self.is_padding is None:
            return [None] * len(self.groups)
        zeros = torch.zeros(self.is_padding.shape, dtype=dtype, device=self.is_padding.device)
        mask = zeros.masked_fill(self.is_padding.bool(), torch.finfo(dtype).min)
        parts = mask.split([count * length for count, length in self.groups])
        return [
            None if even else part.view(count, 1, 1, length)
            for part, even, (count, length) in zip(parts, self.are_even, self.groups)
        ]

    def attention_arguments(self, config: PreTrainedConfig, states: torch.Tensor) -> dict[str, Any]:
        """What the layers get besides the sequence `states`, by the attention that `config` chooses."""
        if self.is_even:
            return {}
        if is_flash_attention_requested(config):
            ends = torch.from_numpy(np.cumsum([0, *self.lengths], dtype=np.int32)).to(states.device)
            longest = int(self.lengths[-1])
            lengths = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
            return lengths | {"attention_mask": None}
        if config._attn_implementation == "flex_attention":
            return {"attention_mask": make_block_mask(self.lengths, states.device)}
        return {"attention_mask": None, "windows": self, "masks": self.masks(states.dtype)}


def group_lengths(lengths: np.ndarray, most: int = MAX_GROUPS) -> list[tuple[int, int]]:
    """
    Sorted lengths in at most so many groups, as [(start, stop), ...].

    Each is split where that saves most pairs of positions, of those that are computed when all are padded to the longest of
    their group; at most `most` lengths are not padded at all.
    """
    changes = np.flatnonzero(np.diff(lengths)) + 1
    bounds = [(0, len(lengths))]
    while len(bounds) < min(most, len(changes) + 1):
        splits = []
        for start, stop in bounds:
            inside = changes[(changes > start) & (changes < stop)]
            saved = (inside - start) * (lengths[stop - 1] ** 2 - lengths[inside - 1] ** 2)
            if len(inside):
                splits.append((int(saved.max()), int(inside[saved.argmax()]), (start, stop)))
        _, place, bound = max(splits)
        bounds.remove(bound)
        bounds += [(bound[0], place), (place, bound[1])]
    return sorted(bounds)


def make_block_mask(lengths: np.ndarray, device: torch.device) -> "BlockMask":
    """
    Flex attention's mask of windows that lie end to end and attend to themselves.

    From the lengths alone: torch's `create_block_mask` looks at all pairs of positions.
    """
    stops = np.cumsum(lengths)
    total = int(stops[-1])
    blocks = -(-total // BLOCK)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    # A block of queries sees the blocks from where its first window starts to where its last one ends.
    first, last = owner[::BLOCK], owner[np.minimum(np.arange(1, blocks + 1) * BLOCK, total) - 1]
    begins, ends = (stops - lengths)[first] // BLOCK, -(-stops[last] // BLOCK)
    counts = torch.from_numpy((ends - begins).astype(np.int32)).to(device)[None, None]
    indices = (begins[:, None] + np.arange(blocks)) % blocks
    windows = torch.from_numpy(np.pad(owner, (0, blocks * BLOCK - total), constant_values=-1)).to(device)

    def is_same_window(batch, head, query, key):
        return windows[query] == windows[key]

    return BlockMask.from_kv_blocks(
        counts,
        torch.from_numpy(indices.astype(np.int32)).to(device)[None, None],
        BLOCK_SIZE=BLOCK,
        mask_mod=is_same_window,
        seq_lengths=(total, total),
    )


def _upload(arrays: Sequence[np.ndarray], device: torch.device | str) -> tuple[torch.Tensor, ...]:
    """Arrays of integers on the device, in one transfer."""
    return torch.from_numpy(np.concatenate(arrays)).to(device).split([len(array) for array in arrays])


__all__ = ["PackedWindows"]
