"""Rows of a training batch in which all questions about a clip share its audio.

A unit is everything about one clip: a prefix (the chat up to where the questions differ) and the branches after it,
each a question with its answer. Several short units share a row. Positions restart after a prefix, and `segment_ids` /
`prefix_ids` say which tokens see which (`falcon3_audio.shared_prefix_falcon3_audio`), so each token's loss is the same
as in a row with only its own question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence


IGNORED = -100  # the label of tokens that are not learned, as in torch's cross entropy
STEPS = 8  # row lengths that are tried
# The row length at which attention is assumed to take as long as the products with weights: a guess. By FLOPs it is
# 15,000 (1B) to 39,000 (7B), but attention with a mask runs at a lower rate.
AS_MUCH_ATTENTION = 4096
Row = TypeVar("Row")


@dataclass
class Unit:
    """
    Everything about one clip, as 1-D tensors of one length.

    Attributes:
        input_ids, labels, position_ids: of prefix and branches, concatenated.
        segments: 1 for the prefix, 2 and so on for the branches.
        audio: `input_features` and `input_features_mask` of its clips, in order.
        asked: what the collator records for each branch, in order, if chats are evaluated.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    segments: torch.Tensor
    audio: list[dict[str, torch.Tensor]] = field(default_factory=list)
    asked: list[torch.Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)


def join_branches(chats: Sequence[dict[str, torch.Tensor]], audio_token_id: int) -> Unit:
    """
    Joins chats about one clip into one unit. A single chat is a prefix and a branch. If an answer comes before the
    audio, there is no prefix: each branch is a whole chat with its own audio.

    Args:
        chats: each with 1-D `input_ids` and `labels` and optionally `asked`, and all with the same audio tokens and
            features.
        audio_token_id: of the audio tokens.

    Raises a `ValueError` if the chats differ before their audio.
    """
    first = chats[0]
    shared = _common_length([chat["input_ids"] for chat in chats])
    if (first["input_ids"][shared:] == audio_token_id).any():
        raise ValueError(
            "The text before the audio differs between the questions, so the audio cannot be shared; set "
            "questions_per_row: 1."
        )
    for chat in chats:
        # The token before an answer predicts its first token: it has to be in the branch.
        answer = int((chat["labels"] != IGNORED).int().argmax())
        shared = max(0, min(shared, answer - 1))
    audio = [{name: value for name, value in first.items() if name.startswith("input_features")}]
    if (first["input_ids"][shared:] == audio_token_id).any():
        shared, audio = 0, audio * len(chats)  # learned answers cannot be in a prefix
    prefix = first["input_ids"][:shared]
    branches = [chat["input_ids"][shared:] for chat in chats]
    labels = [chat["labels"][shared:] for chat in chats]
    parts = [prefix, *branches]
    return Unit(
        input_ids=torch.cat(parts),
        labels=torch.cat([torch.full_like(prefix, IGNORED), *labels]),
        position_ids=torch.cat([torch.arange(shared), *(shared + torch.arange(len(branch)) for branch in branches)]),
        segments=torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts, 1)]),
        audio=[features for features in audio if features],
        asked=[chat["asked"] for chat in chats if "asked" in chat],
    )


def _common_length(sequences: Sequence[torch.Tensor]) -> int:
    """The number of first tokens that all sequences share."""
    length = min(len(sequence) for sequence in sequences)
    differs = torch.stack([sequence[:length] != sequences[0][:length] for sequence in sequences]).any(0)
    return int(differs.int().argmax()) if differs.any() else length


def pack_units(units: Sequence[Unit], tokens: int | None = None) -> list[list[list[Unit]]]:
    """
    Packs units into rows, and rows into micro-batches.

    Args:
        units: in any order.
        tokens: maximum number of tokens, padding included (rows times the longest row), of a micro-batch; a longer
            unit has its own. `None`: one micro-batch.

    The cheapest row length of one to two times the longest unit is used: longer rows need less padding, but the cost
    of attention with a mask is quadratic in the row length.
    """
    if not units:
        return [[]]
    longest = max(map(len, units))
    lengths = {longest * (STEPS + step) // STEPS for step in range(STEPS + 1)}
    fitting = sorted(length for length in lengths if tokens is None or length <= max(tokens, longest))
    packings = [split_rows(_fill_rows(units, length), _row_length, tokens) for length in fitting]
    return min(packings, key=_cost)


def split_rows(rows: Sequence[Row], length: Callable[[Row], int], tokens: int | None) -> list[list[Row]]:
    """Rows in micro-batches of at most `tokens` tokens, padding included, or of one row; longest rows first."""
    if tokens is None or not rows:
        return [list(rows)]
    batches: list[list[Row]] = []
    for row in sorted(rows, key=length, reverse=True):
        if not batches or (len(batches[-1]) + 1) * length(batches[-1][0]) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _fill_rows(units: Sequence[Unit], length: int) -> list[list[Unit]]:
    """Packs units into rows of at most `length` tokens by first fit, longest first."""
    rows: list[list[Unit]] = []
    room: list[int] = []
    for unit in sorted(units, key=len, reverse=True):
        place = next((place for place, left in enumerate(room) if len(unit) <= left), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(unit)
        room[place] -= len(unit)
    return rows


def _row_length(row: Sequence[Unit]) -> int:
    return sum(map(len, row))


def _cost(packing: Sequence[Sequence[Sequence[Unit]]]) -> int:
    """The cost of products with weights, per token, and of attention, which grows with the row length."""
    lengths = [(len(rows), max(map(_row_length, rows))) for rows in packing]
    return sum(rows * length * (AS_MUCH_ATTENTION + length) for rows, length in lengths)


def pad_rows(rows: Sequence[Sequence[Unit]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """
    `input_ids`, `labels`, `attention_mask`, `position_ids`, `segment_ids` and `prefix_ids`, each `(rows, tokens)`, padded
    on the right; segments are numbered within a row, 0 is padding.
    """
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in ("segment_ids", "prefix_ids")}
    for row in rows:
        starts = [0]
        for unit in row:
            starts.append(starts[-1] + int(unit.segments[-1]))
        columns["segment_ids"].append(torch.cat([unit.segments + start for unit, start in zip(row, starts)]))
        columns["prefix_ids"].append(
            torch.cat([torch.full((len(unit),), start + 1) for unit, start in zip(row, starts)])
        )
    for name in ("input_ids", "labels", "position_ids"):
        columns[name] = [torch.cat([getattr(unit, name) for unit in row]) for row in rows]
    columns["attention_mask"] = [torch.ones_like(ids) for ids in columns["input_ids"]]
    padding = {"input_ids": pad_token_id, "labels": IGNORED}
    return {
        name: pad_sequence(values, batch_first=True, padding_value=padding.get(name, 0))
        for name, values in columns.items()
    }
