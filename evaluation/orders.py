"""The same questions with their options in other orders: does a model choose an option, or a place in the list?

A question is asked as published and in up to K different shuffled orders, drawn from one seed, the number of the order
and the question's id; two options have only one other order. The consistency rate is that of López et al. 2025
(Robustness Assessment of Large Audio Language Models in Multiple-choice Evaluation, arXiv 2510.04584): the share of
pairs of orders in which the replies mean the same option. Accuracy over all orders is their correctness rate. Together
with `--control text-only`, both show how much of a score comes from hearing (All That Glitters Is Not Audio, arXiv
2604.24401).
Run: `falcon3-audio evaluate ... --shuffle-choices 3`
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from .intervals import share_interval
from .predictions import Prediction
from .questions import Question, QuestionSet
from .read_option import resolve


# The groups of a question that is asked in several ways.
ORDER, WORDING = "order of the options", "wording of the question"
PUBLISHED = "as published"  # the first of these ways


def in_orders(questions: QuestionSet, shuffled: int, seed: int) -> QuestionSet:
    """
    Each question with options as it is and in up to `shuffled` other orders, with ids "ID#1", "ID#2", ...; questions
    without options appear once. All have the group `ORDER`.

    Raises:
        `ValueError`: `shuffled` is below 1, or no question has options.
    """
    if shuffled < 1 or not any(question.choices for question in questions.questions):
        raise ValueError(f"got {shuffled} orders; expected 1 or more, of questions that have options.")
    orders = (
        order
        for question in questions.questions
        for order in as_variants(question, _shuffled(question, shuffled, seed), ORDER)
    )
    return replace(questions, questions=tuple(orders))


def _shuffled(question: Question, shuffled: int, seed: int) -> Iterator[Question]:
    places = list(range(len(question.choices)))
    seen = {tuple(places)}
    for number in range(1, min(shuffled + 1, math.factorial(len(places)))):
        draw = random.Random(f"{seed} {number} {question.id}")
        while tuple(places) in seen:
            draw.shuffle(places)
        seen.add(tuple(places))
        yield replace(question, choices=tuple(question.choices[place] for place in places))


def as_variants(question: Question, others: Iterable[Question], group: str) -> Iterator[Question]:
    """A question as published, then the others as "ID#1", "ID#2", ...; the group is "as published" or the number."""
    yield replace(question, groups=question.groups | {group: PUBLISHED})
    for number, other in enumerate(others, 1):
        yield replace(other, id=f"{question.id}#{number}", groups=question.groups | {group: str(number)})


def published_id(row: Prediction) -> str:
    """The id of the published question that a row is a variant of."""
    way = row.groups.get(ORDER, row.groups.get(WORDING))
    return row.id.removesuffix(f"#{way}")


def consistency(rows: Sequence[Prediction], clips: Sequence[int]) -> dict[str, Any]:
    """
    How consistent replies are across orders or wordings.

    Replies that mean no option agree with none. If all questions have the same number of variants, the rate is the
    paper's; otherwise questions are weighted by their pairs.

    Args:
        rows: of `in_orders` or `wordings.in_wordings`.
        clips: the number of each row's clip, see `intervals.clip_numbers`.

    Returns:
        the numbers of `questions` and of `pairs` of variants, the `rate` (`None` without pairs), and its 95 %
        `interval` over clips.
    """
    questions: dict[str, list[tuple[str | None, int]]] = {}
    for row, clip in zip(rows, clips):
        if row.choices:
            meant = resolve(row.reply, row.choices) if row.reply else None
            questions.setdefault(published_id(row), []).append((meant, clip))
    pairs = [pair for replies in questions.values() for pair in combinations(replies, 2)]
    agree = [one is not None and one == other for (one, _), (other, _) in pairs]
    rate, interval = None, None
    if pairs:
        rate, interval = sum(agree) / len(agree), share_interval(agree, [clip for (_, clip), _ in pairs])
    return {"questions": len(questions), "pairs": len(pairs), "rate": rate, "interval": interval}


__all__ = ["ORDER", "PUBLISHED", "WORDING", "as_variants", "consistency", "in_orders", "published_id"]
