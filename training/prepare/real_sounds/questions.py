"""Training questions: each fact is asked with options, openly, or both, in one of its wordings."""

import bisect
from collections import defaultdict
from collections.abc import Iterable
from random import Random
from typing import Any

from .clips import Clip, Fact
from .tables import are_alike


QUESTIONS_PER_CLIP = 6
OPTIONS = 4
TRIES = 80  # to draw options that can be told apart
REACH = 8  # answers on either side of the right one, which have about its length
OPEN_SHARE, SPEECH_SHARE = 0.5, 0.3  # of facts that are also asked openly; of clips with "Is there speech?"


class Pools:
    """The answers to each kind of question, each as often as it was given, or `once` each."""

    def __init__(self, clips: Iterable[Clip], once: bool = False):
        answers: dict[str, list[str]] = defaultdict(list)
        for clip in clips:
            for fact in clip.facts:
                if fact.pool:
                    answers[fact.pool].append(fact.answer)
        self.by_length = {pool: sorted(set(given), key=_by_length) for pool, given in answers.items()}
        self.answers = self.by_length if once else dict(answers)

    def options(self, fact: Fact, draw: Random) -> list[str] | None:
        """The answer and three others in random order, or None if there are not enough."""
        if fact.options:
            return draw.sample(fact.options, OPTIONS) if len(fact.options) >= OPTIONS else None
        if fact.pool == "speaker":
            return self._speakers(fact, draw)
        pool = self._near(fact) if fact.by_length else self.answers[fact.pool]
        chosen = [fact.answer, fact.beside] if fact.beside else [fact.answer]
        for _ in range(TRIES):
            candidate = draw.choice(pool)
            if not any(_are_same(candidate, one) for one in chosen):
                chosen.append(candidate)
            if len(chosen) == OPTIONS:
                return draw.sample(chosen, OPTIONS)
        return None

    def _near(self, fact: Fact) -> list[str]:
        """Answers of similar length, half of them longer."""
        pool = self.by_length[fact.pool]
        place = bisect.bisect_left(pool, _by_length(fact.answer), key=_by_length)
        return pool[max(place - REACH, 0) : place + REACH + 1]

    def _speakers(self, fact: Fact, draw: Random) -> list[str] | None:
        """Both sexes with the language and with another one."""
        language = _language(fact.answer)
        others = sorted({name for answer in self.answers["speaker"] if (name := _language(answer)) != language})
        if not others:
            return None
        names = (language, draw.choice(others))
        options = [f"a {sex} speaking {name}" for sex in ("man", "woman") for name in names]
        return draw.sample(options, OPTIONS)


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def _language(speaker: str) -> str:
    return speaker.partition(" speaking ")[2]


def _are_same(one: str, other: str) -> bool:
    return are_alike(one, other) or one.lower().strip(".! ") == other.lower().strip(".! ")


def training_row(clip: Clip, pools: Pools, draw: Random) -> dict[str, Any]:
    """The row of a training file; it can have no questions."""
    questions: list[tuple[Fact, str]] = []
    for fact in clip.facts:
        options = pools.options(fact, draw) if fact.pool or fact.options else None
        if options:
            questions.append((fact, f"{draw.choice(fact.wordings)} Choose one: {', '.join(options)}."))
        if fact.is_open and (not options or draw.random() < OPEN_SHARE):
            questions.append((fact, draw.choice(fact.wordings)))
    drawn = draw.sample(questions, min(len(questions), QUESTIONS_PER_CLIP))
    asked = [{"instruction": text, "output": fact.answer} for fact, text in drawn if fact.is_sure]
    if draw.random() < SPEECH_SHARE:
        is_spoken = clip.domain == "speech" or clip.labels.get("composite") == "sound behind speech"
        asked.append({"instruction": "Is there speech in this clip?", "output": "yes" if is_spoken else "no"})
    return {"audio": clip.path, "questions": asked}


def training_rows(clips: Iterable[Clip], draw: Random) -> list[tuple[Clip, dict[str, Any]]]:
    """Clips that have questions, with their rows."""
    clips = list(clips)
    pools = Pools(clips)
    rows = ((clip, training_row(clip, pools, draw)) for clip in clips)
    return [(clip, row) for clip, row in rows if row["questions"]]
