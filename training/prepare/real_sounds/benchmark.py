"""Test and validation questions in MMAU's format: the same number per domain, with the kinds of question in turn.

Every answer was trained often enough to be known, answers come in turn, and the right one is equally often at each
position. At most two questions are about one clip.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, NamedTuple

from .clips import Clip, Fact
from .questions import OPTIONS, Pools


DOMAINS = ("speech", "sound", "music")
DATASET = "real-sounds"
PER_CLIP = 2
TRAINED = 3  # times that an answer must occur in training to be asked
# Kinds and pools whose answers must have been trained; a phrase or a number of notes need not.
NAMES = ("language", "sound", "instrument")
EASY = {"language", "sound", "instrument", "sound category", "family"}
REASONING = {
    *("chord", "melody", "strummed chord", "meaning", "speaker count"),
    *("note count", "number count", "sound order", "instrument order"),
}


class Asked(NamedTuple):
    clip: Clip
    fact: Fact
    options: list[str]


def trained_answers(clips: Iterable[Clip]) -> set[str]:
    seen = Counter(fact.answer for clip in clips for fact in clip.facts)
    return {answer for answer, times in seen.items() if times >= TRAINED}


def benchmark_rows(
    clips: Iterable[Clip], trained: set[str], split: str, wanted: int, draw: Random
) -> list[dict[str, Any]]:
    """
    Up to `wanted` questions for each domain about held-out clips.

    Names that were not trained are neither asked nor offered, except the other one of two that are heard.
    """
    known = [replace(clip, facts=[fact for fact in clip.facts if _is_known(fact, trained)]) for clip in clips]
    pools = Pools(known, once=True)
    rows: list[dict[str, Any]] = []
    for domain in DOMAINS:
        chosen = _choose([clip for clip in known if clip.domain == domain], pools, trained, wanted, draw)
        for asked in _balanced(chosen, draw):
            rows.append(_mmau_row(len(rows), asked, split, draw))
    return rows


def _is_known(fact: Fact, trained: set[str]) -> bool:
    return fact.pool not in NAMES or fact.answer in trained


def _choose(clips: Iterable[Clip], pools: Pools, trained: set[str], wanted: int, draw: Random) -> list[Asked]:
    by_kind: dict[str, list[tuple[Clip, Fact]]] = defaultdict(list)
    for clip in clips:
        for fact in clip.facts:
            if fact.in_test and (fact.kind not in NAMES or fact.answer in trained):
                by_kind[fact.kind].append((clip, fact))
    for kind in by_kind:
        by_kind[kind] = _answers_in_turn(by_kind[kind], draw)
    used: Counter[str] = Counter()
    chosen: list[Asked] = []
    while len(chosen) < wanted and any(by_kind.values()):
        for kind in sorted(kind for kind in by_kind if by_kind[kind]):
            clip, fact = by_kind[kind].pop()
            options = pools.options(fact, draw)
            if used[clip.path] < PER_CLIP and options and fact.is_sure and len(chosen) < wanted:
                used[clip.path] += 1
                chosen.append(Asked(clip, fact, options))
    return chosen


def _answers_in_turn(asked: list[tuple[Clip, Fact]], draw: Random) -> list[tuple[Clip, Fact]]:
    """Ordered so that, taken from the end, all answers come equally often while they last."""
    draw.shuffle(asked)
    turns: list[tuple[int, float, int]] = []
    times: Counter[str] = Counter()
    for _, fact in asked:
        turns.append((times[fact.answer], draw.random(), len(turns)))
        times[fact.answer] += 1
    return [asked[index] for _, _, index in sorted(turns, reverse=True)]


def _balanced(chosen: Sequence[Asked], draw: Random) -> list[Asked]:
    """The right answer equally often at each position."""
    places = [index % OPTIONS for index in range(len(chosen))]
    draw.shuffle(places)
    return [asked._replace(options=_with_answer_at(place, asked)) for asked, place in zip(chosen, places)]


def _with_answer_at(place: int, asked: Asked) -> list[str]:
    others = [option for option in asked.options if option != asked.fact.answer]
    return [*others[:place], asked.fact.answer, *others[place:]]


def _mmau_row(number: int, asked: Asked, split: str, draw: Random) -> dict[str, Any]:
    clip, fact = asked.clip, asked.fact
    return {
        "id": f"{clip.domain}-{fact.kind.replace(' ', '-')}-{number:05d}",
        "audio_id": f"./{clip.path}",
        "question": draw.choice(fact.wordings),
        "choices": asked.options,
        "answer": fact.answer,
        "dataset": DATASET,
        "task": clip.domain,
        "split": split,
        "category": "Reasoning" if fact.kind in REASONING else "Information Extraction",
        "sub-category": fact.kind.capitalize(),
        "difficulty": "easy" if fact.kind in EASY else "medium",
    }
