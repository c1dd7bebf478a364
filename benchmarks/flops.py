"""The exact FLOPs of the matrix products in a training step, from the batches that a model gets.

A product counts 2 x m x k x n, in the forward and in the backward. Frozen weights need only the gradient of their
input (the encoder's first layer not even that), adapters and projector also that of their weights. The head, TRL's
fused one, computes its logits a second time in the backward. There are two counts: `padded` is what is computed on the
batch's rectangles, with all pairs of positions in attention; the other is what the method needs, without padding and
only for pairs that see each other.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from falcon3_audio.training.data.packing import IGNORED

from .batches import MASKS, WINDOW
from .models import OURS, QWEN
from .shapes import Shape


PARTS = ("encoder", "projector", "language model", "head")
FRAMES_PER_POSITION, POSITIONS_PER_TOKEN = 2, 2


class StepFlops:
    """
    Counts for one kind of model.

    Args:
        kind, shape: of the model.
        rank: of LoRA on all linear layers of both towers.
        recompute: whether layers are computed again in the backward (activation checkpointing).
        all_positions: whether the head computes logits of prompts too.
    """

    def __init__(self, kind: str, shape: Shape, rank: int = 8, recompute: bool = False, all_positions: bool = True):
        self.kind, self.shape, self.rank = kind, shape, rank
        self.recompute, self.all_positions = recompute, all_positions

    def count(self, batches: Sequence[Mapping[str, torch.Tensor]], padded: bool) -> dict[str, int]:
        """FLOPs by part, forward and backward, of micro-batches as the model's forward gets them."""
        total = dict.fromkeys(PARTS, 0)
        for batch in batches:
            frames = batch[MASKS.get(self.kind, "input_features_mask")].sum(-1).tolist()
            tokens, pairs = self._tokens(batch, padded)
            scored = self._scored(batch, padded)
            parts = [self._encoder(frames), self._projector(frames), self._text(tokens, pairs), self._head(scored)]
            for name, count in zip(PARTS, parts):
                total[name] += count
        return total

    def _encoder(self, frames: list[int]) -> int:
        audio = self.shape.audio
        width, inner = audio["hidden_size"], audio["intermediate_size"]
        windows = [-(-count // FRAMES_PER_POSITION) if self.kind == OURS else WINDOW // 2 for count in frames]
        seen = [min(FRAMES_PER_POSITION * positions + 1, WINDOW) for positions in windows]
        convolved = [(count - 1) // FRAMES_PER_POSITION + 1 for count in seen]
        convolutions = 2 * 3 * width * (audio["num_mel_bins"] * sum(seen) + width * sum(convolved))
        positions, pairs = sum(windows), sum(count**2 for count in windows)
        scores = np.array([4, 8]) * width * pairs
        # With checkpointing the gradient of the convolutions is computed: PEFT makes inputs require one.
        first = 3 * self._adapted(positions, width, width, first=not self.recompute)
        convolutions += self.recompute * 2 * 3 * width**2 * sum(convolved)
        later = 3 * self._adapted(positions, width, width)
        rest = self._adapted(positions, width, width)
        rest = rest + self._adapted(positions, width, inner) + self._adapted(positions, inner, width) + scores
        layers = audio["num_hidden_layers"]
        return convolutions + self._both(first + (layers - 1) * later + layers * rest, layers * positions * width)

    def _projector(self, frames: list[int]) -> int:
        width, hidden = self.shape.audio["hidden_size"], self.shape.text["hidden_size"]
        window = WINDOW // FRAMES_PER_POSITION // POSITIONS_PER_TOKEN
        per_token = FRAMES_PER_POSITION * POSITIONS_PER_TOKEN
        # Ours projects only real tokens; the peers project whole windows and then select.
        tokens = sum(-(-count // per_token) for count in frames) if self.kind == OURS else window * len(frames)
        weights = width * hidden + (0 if self.kind == QWEN else hidden**2)
        return 3 * 2 * tokens * weights  # trained in full

    def _text(self, tokens: int, pairs: int) -> int:
        text = self.shape.text
        hidden, inner = text["hidden_size"], text["intermediate_size"]
        queries = text["num_attention_heads"] * text["head_dim"]
        keys = text["num_key_value_heads"] * text["head_dim"]
        layers = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        layers += [(hidden, inner), (hidden, inner), (inner, hidden)]
        products = sum(self._adapted(tokens, *sizes) for sizes in layers)
        count = text["num_hidden_layers"]
        return self._both(count * (products + np.array([4, 8]) * queries * pairs), count * tokens * hidden)

    def _head(self, positions: int) -> int:
        return 3 * 2 * positions * self.shape.head_weights

    def _adapted(self, count: int, inputs: int, outputs: int, first: bool = False) -> np.ndarray:
        """(forward, backward) of a frozen linear layer with LoRA; `first`: nothing before it is trained."""
        base, down, up = 2 * count * inputs * outputs, 2 * count * inputs * self.rank, 2 * count * self.rank * outputs
        backward = down + 2 * up + (0 if first else base + down)
        return np.array([base + down + up, backward])

    def _both(self, flops: np.ndarray, outputs: int) -> int:
        """Total FLOPs of layers with that many output values; the last product, an adapter's, is not recomputed."""
        forward, backward = (int(part) for part in flops)
        again = forward - 2 * self.rank * outputs
        return forward + self.recompute * again + backward

    def _tokens(self, batch: Mapping[str, torch.Tensor], padded: bool) -> tuple[int, int]:
        """Positions in the language model, and pairs of them in attention."""
        rows, width = batch["input_ids"].shape
        if padded:
            return rows * width, rows * width**2
        mask = batch.get("attention_mask")
        lengths = mask.sum(-1) if mask is not None else torch.full((rows,), width)
        if batch.get("segment_ids") is None:
            return int(lengths.sum()), int((lengths * (lengths + 1) // 2).sum())
        return int((batch["segment_ids"] > 0).sum()), visible_pairs(batch["segment_ids"], batch["prefix_ids"])

    def _scored(self, batch: Mapping[str, torch.Tensor], padded: bool) -> int:
        labels = batch["labels"][:, 1:]
        return labels.numel() if padded and self.all_positions else int((labels != IGNORED).sum())


def visible_pairs(segment_ids: torch.Tensor, prefix_ids: torch.Tensor) -> int:
    """Pairs (query, key) of rows `(rows, tokens)` where the query sees the key: its own segment and its prefix so far."""
    total = 0
    for segments, prefixes in zip(segment_ids, prefix_ids):
        sees = (segments[None] == segments[:, None]) | (segments[None] == prefixes[:, None])
        total += int((sees & (segments[:, None] > 0)).tril().sum())
    return total
