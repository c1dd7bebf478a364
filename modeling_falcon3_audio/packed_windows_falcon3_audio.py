# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Packs the windows of a batch, which differ in length, end to end into one sequence; each attends only to itself.

Flash attention uses cumulative lengths and flex attention a block mask, in one call for all windows. Other attention
takes at most `MAX_GROUPS` calls, each for windows of similar length, padded to the longest of them and masked. So the
number of operations does not grow with the number of clips. Everything is computed on the host and copied to the
device once. Travels with every saved checkpoint.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.generic import is_flash_attention_requested


try:
    from torch.nn.attention.flex_attention import BlockMask
except ImportError:  # torch without flex attention, which cannot be selected then
    BlockMask = None


# With six, a batch of 64 lengths takes less than twice the operations of one clip (benchmarks/encoder_operations.py),
# and padding costs less than smaller calls would.
MAX_GROUPS = 6
BLOCK = 128  # positions per side of flex attention's blocks


class PackedWindows:
    """
    The windows of a batch, shortest first, in groups of similar length.

    Args:
        positions (`Sequence[int]`): encoder positions of each audio of the batch, at least one of them greater than 0.
        limit (`int`): positions of a full window.
        device: device of the tensors.

    Attributes:
        lengths (`list[int]`): positions of each window.
        per_audio (`int`): windows of the longest audio.
        groups (`list[tuple[int, int]]`): (windows, positions of the longest) of each group.
        are_even (`list[bool]`): for each group, whether all its windows have the same length.
        rows (`tuple[torch.Tensor, ...]`): for each group, `(windows,)`: its windows, as
            audio x `per_audio` + number.
        places (`torch.Tensor` of shape `(total positions,)`, *optional*): flat index of each position in
            `(audios, longest)`. `None` if they are already in that order.
        padded (`torch.Tensor`, *optional*): of shape `(sum of windows x longest)`: for each place of the groups, its
            index in the sequence. `None` if nothing is padded.
        unpadded (`torch.Tensor` of shape `(total positions,)`, *optional*): the inverse of `padded`.
        is_padding (`torch.Tensor`, *optional*): of the shape of `padded`.
    """

    places: torch.Tensor | None
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
        windows.sort(key=lambda window: window[0])
        self.lengths = [length for length, _, _ in windows]
        parts = [self.lengths[start:stop] for start, stop in group_lengths(self.lengths)]
        self.groups = [(len(part), part[-1]) for part in parts]
        self.are_even = [part[0] == part[-1] for part in parts]
        # As plain integers, so that windows without a mask compile.
        self.rows = torch.tensor([row for _, row, _ in windows], device=device).split([len(part) for part in parts])
        self.places = self.padded = self.unpadded = self.is_padding = None
        if min(positions) < longest or not self.is_even:
            self._find_places(np.array([start for _, _, start in windows]), device)

    def _find_places(self, starts: np.ndarray, device: torch.device | str):
        lengths = np.array(self.lengths)
        before = np.cumsum(lengths) - lengths  # where each window starts in the sequence
        inside = np.arange(lengths.sum()) - np.repeat(before, lengths)  # index of each position in its window
        arrays = [np.repeat(starts, lengths) + inside]
        if not all(self.are_even):
            widths = np.repeat([length for _, length in self.groups], [count for count, _ in self.groups])
            bases = np.cumsum(widths) - widths
            steps = np.arange(widths.sum()) - np.repeat(bases, widths)
            last = np.repeat(lengths - 1, widths)
            # Padding repeats the last position of its window.
            arrays += [np.repeat(before, widths) + np.minimum(steps, last), np.repeat(bases, lengths) + inside]
            arrays += [steps > last]
        # In one transfer.
        index = torch.from_numpy(np.concatenate(arrays)).to(device).split([len(array) for array in arrays])
        self.places = index[0]
        if len(index) > 1:
            self.padded, self.unpadded, self.is_padding = index[1:]

    @property
    def is_even(self) -> bool:
        """Whether all windows have the same length; then they are a batch, not packed."""
        return self.are_even == [True]

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
        """Mask to add to the scores of each group: `(windows, 1, 1, positions)`, or `None` if nothing is padded."""
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
        """Arguments of the layers besides the sequence `states`, for the attention implementation in `config`."""
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


def group_lengths(lengths: Sequence[int], most: int = MAX_GROUPS) -> list[tuple[int, int]]:
    """
    Splits sorted lengths into at most `most` groups, as [(start, stop), ...].

    Each split is where it saves the most pairs of positions, if all windows are padded to the longest of their group.
    With at most `most` different lengths, nothing is padded.
    """
    changes = [place for place in range(1, len(lengths)) if lengths[place - 1] < lengths[place]]
    bounds = [(0, len(lengths))]
    while len(bounds) < min(most, len(changes) + 1):
        splits = [
            ((place - start) * (lengths[stop - 1] ** 2 - lengths[place - 1] ** 2), place, (start, stop))
            for start, stop in bounds
            for place in changes
            if start < place < stop
        ]
        _, place, (start, stop) = max(splits)
        bounds.remove((start, stop))
        bounds += [(start, place), (place, stop)]
    return sorted(bounds)


def make_block_mask(lengths: Sequence[int], device: torch.device) -> "BlockMask":
    """
    Flex attention's mask for windows that lie end to end and attend only to themselves.

    Built from only the lengths: torch's `create_block_mask` looks at all pairs of positions.
    """
    stops = np.cumsum(lengths)
    total = int(stops[-1])
    blocks = -(-total // BLOCK)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    # A block of queries sees the blocks from where its first window starts to where its last one ends.
    first, last = owner[::BLOCK], owner[np.minimum(np.arange(1, blocks + 1) * BLOCK, total) - 1]
    begins, ends = (stops - np.array(lengths))[first] // BLOCK, -(-stops[last] // BLOCK)
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


__all__ = ["PackedWindows"]
