"""95 % confidence intervals for what scores report: shares of right answers, their mean over groups, and error rates.

Questions about one clip are not independent: a model that mishears the clip gets all of them wrong. Clips are
therefore the unit of resampling. If each clip has one question, the interval is Wilson's, in plain Python, since
scores are also computed without numpy; otherwise it is a bootstrap over clips (clip_intervals.py). `score`,
`compare`, studies and model cards take their intervals from these two modules and wilson.py.
"""

import math
import random
from collections.abc import Sequence

from .wilson import FEWEST_DIFFERING, Interval, wilson


def clip_numbers(names: Sequence[Sequence[str]]) -> list[int]:
    """
    A number for each question, given the names of its clips. Questions have the same number if they share a clip,
    directly or through others: (a, b) - (b, c). A question without clip names has its own number.
    """
    parents = list(range(len(names)))

    def first(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    owners: dict[str, int] = {}
    for number, own in enumerate(names):
        for name in own:
            one, other = sorted((first(number), first(owners.setdefault(name, number))))
            parents[other] = one
    return [first(number) for number in range(len(names))]


def share_interval(right: Sequence[bool], clips: Sequence[int]) -> Interval | None:
    """
    Interval of the share of right answers; `None` if clips have several questions and there are too few clips.

    Args:
        right: for each question, whether its answer is right.
        clips: the clip of each question, by any numbering.

    Raises:
        `ValueError`: no questions, or not one clip per question.
    """
    if len(right) != len(clips):
        raise ValueError(f"got {len(clips)} clips for {len(right)} questions; expected one per question.")
    if len(set(clips)) == len(clips):
        return wilson(sum(right), len(right))
    from .clip_intervals import accuracy_interval  # only this needs numpy

    return accuracy_interval([right], clips)


def mean_of_shares(groups: Sequence[tuple[Sequence[bool], Sequence[int]]]) -> tuple[float, Interval | None]:
    """
    The mean of shares of right answers, each group with the same weight, and its interval.

    The interval combines the groups' intervals by their distances from the shares (MOVER: Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095), so that small groups and shares of 0 or 1 keep their uncertainty. It treats
    groups as independent; if groups share clips, it is a bootstrap over clips. `None` if a group has no interval.

    Args:
        groups: `right` and `clips` of each, as in `share_interval`, with one numbering for all.

    Raises:
        `ValueError`: no groups, or as in `share_interval`.
    """
    if not groups:
        raise ValueError("got no groups to average over; expected one or more.")
    limits = [share_interval(right, clips) for right, clips in groups]
    shares = [sum(right) / len(right) for right, _ in groups]
    mean = sum(shares) / len(shares)
    known = [pair for pair in limits if pair is not None]
    if len(known) < len(limits):
        return mean, None
    if len(set().union(*(clips for _, clips in groups))) < sum(len(set(clips)) for _, clips in groups):
        from .clip_intervals import mean_interval

        return mean, mean_interval(groups)
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, known))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, known))) / len(shares)
    return mean, (mean - below, mean + above)


def bootstrap_rate(
    errors: Sequence[int],
    sizes: Sequence[int],
    clips: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval | None:
    """
    Percentile bootstrap interval for sum(errors) / sum(sizes), such as a word error rate; whole clips are resampled.
    `None` for fewer than `FEWEST_DIFFERING` clips, or if all draws are alike.

    Args:
        errors, sizes: one per row, of equal length; every size is at least 1.
        clips: the clip of each row, by any numbering; by default each row has its own.
        resamples, seed: the same seed gives the same interval.

    Raises:
        `ValueError`: no rows, unequal lengths, or a size below 1.
    """
    if len(errors) != len(sizes) or not sizes or min(sizes) < 1:
        raise ValueError(
            f"got {len(errors)} error counts for {len(sizes)} rows; expected one per row, and sizes of 1 or more."
        )
    sums: dict[int, tuple[int, int]] = {}
    for clip, error, size in zip(range(len(errors)) if clips is None else clips, errors, sizes):
        before = sums.get(clip, (0, 0))
        sums[clip] = (before[0] + error, before[1] + size)
    rows = list(sums.values())
    if len(rows) < FEWEST_DIFFERING:
        return None
    draw, rates = random.Random(seed), []
    for _ in range(resamples):
        drawn = draw.choices(rows, k=len(rows))
        rates.append(sum(error for error, _ in drawn) / sum(size for _, size in drawn))
    rates.sort()
    last = resamples - 1
    low, high = rates[round(0.025 * last)], rates[round(0.975 * last)]
    return (low, high) if low < high else None
