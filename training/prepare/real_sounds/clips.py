"""What a clip is, and what can be asked about it.

A reader creates clips from a package's files; each clip has facts, from which questions are created later. The split
of a clip is that of its group (held_out.py): a voice, a game, a drum kit or the like that is heard in only one split.
"""

from dataclasses import dataclass, field
from pathlib import Path


TRAIN, VALIDATION, TEST = "train", "validation", "test"
# A composite of both training and validation recordings, which is in no split.
MIXED = "mixed"


@dataclass(frozen=True)
class Fact:
    """
    One thing that can be asked about a clip.

    Args:
        kind: of question, such as `"language"`.
        wordings: of the question.
        answer: the right one.
        pool: wrong options are drawn from the answers of the same pool; if empty, the question has `options`.
        options: all of them, of which four are offered if there are more. The answer is among them.
        beside: a wrong option that is always offered.
        by_length: wrong options are about as long as the answer.
        in_test: whether validation and test ask it, too.
        is_open: whether it can be asked without options.
        is_sure: if not, it takes part in the draws but is not asked, so that other questions stay the same.
    """

    kind: str
    wordings: tuple[str, ...]
    answer: str
    pool: str = ""
    options: tuple[str, ...] = ()
    beside: str = ""
    by_length: bool = False
    in_test: bool = True
    is_open: bool = True
    is_sure: bool = True


@dataclass
class Clip:
    """
    A recording, a composite of several, or a played phrase.

    Args:
        file: where it is read from.
        source: the package it is from.
        domain: "speech", "sound" or "music".
        labels: what is known about it.
        voice: who is heard, as it is written to clips.jsonl.
        group: what decides the split, see held_out.tsv.
        path: in the set, once it is written.
        made_of: paths of the clips that a composite is made of.
    """

    file: Path
    source: str
    licence: str
    domain: str
    labels: dict
    voice: str
    group: str
    facts: list[Fact] = field(default_factory=list)
    split: str = TRAIN
    seconds: float = 0.0
    path: str = ""
    made_of: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of what is heard, for sounds and music."""
        return self.labels.get("sound") or self.labels["instrument"]

    @property
    def is_tested(self) -> bool:
        return self.split == TEST
