"""Which clips are for testing, which for choosing a rate or a mix, and which for training.

held_out.tsv lists groups: whole voices, games, drum kits, guitar roots, decks of a game's levels or of a keyboard's
keys, instruments of a soundfont. A group includes all groups below it (`widelands-data` includes
`widelands-data/a duck`); groups that are not listed are for training. A sound is not listed if training would keep too
few recordings to learn it.
"""

from collections.abc import Iterable, Mapping

from .clips import TRAIN, VALIDATION, Clip
from .tables import read_table


Splits = Mapping[str, str]  # group -> split


def read_splits(validation: bool) -> dict[str, str]:
    """The table; without `validation` its clips are for training."""
    rows = read_table("held_out.tsv")
    return {row["group"]: row["split"] for row in rows if validation or row["split"] != VALIDATION}


def split_of(group: str, splits: Splits) -> str:
    """The split of the narrowest listed group that contains this one."""
    while group not in splits and "/" in group:
        group = group.rpartition("/")[0]
    return splits.get(group, TRAIN)


def assign_splits(clips: Iterable[Clip], splits: Splits) -> None:
    for clip in clips:
        clip.split = split_of(clip.group, splits)
