"""Rows of a training batch in which all questions about a clip share its audio.

A unit is what belongs to one clip: a prefix (the chat up to where the questions part) and the branches behind it, each a
question with its answer. Several short units lie in one row. Positions restart behind a prefix, and
`segment_ids` / `prefix_ids` say who sees whom (`falcon3_audio.shared_prefix_falcon3_audio`), so that each token's loss is what
it would be in a row with its own question alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence


IGNORED = -100  # the label of what is not learned, as in torch's cross entropy
STEPS = 8  # row lengths that are tried
# The row length at which attention is taken to need as long as the products with weights: a guess. By FLOPs it is 15,000
# (1B) to 39,000 (7B), but attention with a mask runs at a lower rate.
AS_MUCH_ATTENTION = 4096
Row = TypeVar("Row")


@dataclass
class Unit:
    """
    What belongs to one clip, as 1-D tensors of one length.

    Attributes:
        input_ids, labels, position_ids: of prefix and branches end to end.
        segments: 1 for the prefix, 2 and so on for the branches.
        audio: `input_features` and `input_features_mask` of the clips in it, in order.
        asked: what the collator notes of each branch, in order, of chats that are evaluated.
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
    Chats about one clip as one unit. One alone is a prefix and a branch.

    Args:
        chats: each with 1-D `input_ids` and `labels` and perhaps `asked`, and all with the same audio tokens and features.
        audio_token_id: of the audio's places.

    Raises a `ValueError` for chats that part before their audio.
    """
    shared = _common_length([chat["input_ids"] for chat in chats])
    for chat in chats:
        # The token before an answer predicts its first token: it has to be the branch's own.
        answer = int((chat["labels"] != IGNORED).int().argmax())
        shared = max(0, min(shared, answer - 1))
    first = chats[0]
    if (first["input_ids"][shared:] == audio_token_id).any():
        if len(chats) > 1:
            raise ValueError(
                "Words that differ between the questions stand before the audio, so it cannot be shared; set "
                "questions_per_row: 1."
            )
        shared = 0  # a chat alone, with sounds behind its first answer: a branch without a prefix
    prefix = first["input_ids"][:shared]
    branches = [chat["input_ids"][shared:] for chat in chats]
    labels = [chat["labels"][shared:] for chat in chats]
    parts = [prefix, *branches]
    audio = {name: value for name, value in first.items() if name.startswith("input_features")}
    return Unit(
        input_ids=torch.cat(parts),
        labels=torch.cat([torch.full_like(prefix, IGNORED), *labels]),
        position_ids=torch.cat([torch.arange(shared), *(shared + torch.arange(len(branch)) for branch in branches)]),
        segments=torch.cat([torch.full((len(part),), number) for number, part in enumerate(parts, 1)]),
        audio=[audio] if audio else [],
        asked=[chat["asked"] for chat in chats if "asked" in chat],
    )


def _common_length(sequences: Sequence[torch.Tensor]) -> int:
    """How many tokens all sequences begin with alike."""
    length = min(len(sequence) for sequence in sequences)
    differs = torch.stack([sequence[:length] != sequences[0][:length] for sequence in sequences]).any(0)
    return int(differs.int().argmax()) if differs.any() else length


def pack_units(units: Sequence[Unit], tokens: int | None = None) -> list[list[list[Unit]]]:
    """
    Units in rows, and rows in micro-batches.

    Args:
        units: in any order.
        tokens: the most places (rows times the longest row) of a micro-batch; a unit that is longer has one of its
            own. `None`: one micro-batch.

    Of rows that are one to two times as long as the longest unit the cheapest are taken: longer ones have fewer empty
    places, but attention with a mask pays for the square of a row.
    """
    if not units:
        return [[]]
    longest = max(map(len, units))
    lengths = {longest * (STEPS + step) // STEPS for step in range(STEPS + 1)}
    fitting = sorted(length for length in lengths if tokens is None or length <= max(tokens, longest))
    packings = [split_rows(_fill_rows(units, length), _row_length, tokens) for length in fitting]
    return min(packings, key=_cost)


def split_rows(rows: Sequence[Row], length: Callable[[Row], int], tokens: int | None) -> list[list[Row]]:
    """Rows in micro-batches of at most `tokens` places or of one row; the longest rows together, in the first ones."""
    if tokens is None or not rows:
        return [list(rows)]
    batches: list[list[Row]] = []
    for row in sorted(rows, key=length, reverse=True):
        if not batches or (len(batches[-1]) + 1) * length(batches[-1][0]) > tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def _fill_rows(units: Sequence[Unit], length: int) -> list[list[Unit]]:
    """Units in rows of at most `length`, as few as first fit makes of them, longest first."""
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
    """In products with weights per place, and those of attention, which grow with the row."""
    lengths = [(len(rows), max(map(_row_length, rows))) for rows in packing]
    return sum(rows * length * (AS_MUCH_ATTENTION + length) for rows, length in lengths)


def pad_rows(rows: Sequence[Sequence[Unit]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """
    `input_ids`, `labels`, `attention_mask`, `position_ids`, `segment_ids` and `prefix_ids`, each `(rows, tokens)`, padded
    on the right; segments are numbered through a row, 0 is padding.
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
