"""95 % confidence intervals for what scores report: shares of right answers, their mean over groups, and error rates.

In plain Python, since scores are computed where numpy is not installed. Intervals take questions as independent draws; for the
difference between two models on the same questions see paired.py.
"""

import math
import random
from collections.abc import Sequence


Z = 1.959963984540054  # two-sided 95 % of the normal distribution
Interval = tuple[float, float]


def wilson(right: int, n: int) -> Interval:
    """
    Wilson's score interval (Wilson 1927) for `right` of `n`; it stays within 0 and 1, and is not empty at either.

    Raises:
        `ValueError`: unless 0 <= right <= n and n >= 1.
    """
    if not 0 <= right <= n or n == 0:
        raise ValueError(f"got {right} right of {n}; expected 0 <= right <= n and n >= 1.")
    share, scale = right / n, 1 + Z * Z / n
    center = (share + Z * Z / (2 * n)) / scale
    half = Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n)) / scale
    # At 0 and n the formula gives 0 and 1 but for rounding.
    return (0.0 if right == 0 else center - half), (1.0 if right == n else center + half)


def mean_of_shares(counts: Sequence[tuple[int, int]]) -> tuple[float, Interval]:
    """
    The mean of independent shares, each group with the same weight, and its interval.

    The interval joins the groups' Wilson limits by their distances from the shares (MOVER: Zou and Donner 2008,
    https://doi.org/10.1002/sim.3095), so that small groups and shares of 0 or 1 keep their uncertainty.

    Args:
        counts: (right, n) for each group.

    Raises:
        `ValueError`: no groups, or counts as in `wilson`.
    """
    if not counts:
        raise ValueError("got no groups to average over; expected one or more.")
    shares = [right / n for right, n in counts]
    limits = [wilson(right, n) for right, n in counts]
    mean = sum(shares) / len(shares)
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, limits))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, limits))) / len(shares)
    return mean, (mean - below, mean + above)


def bootstrap_rate(errors: Sequence[int], sizes: Sequence[int], resamples: int = 1000, seed: int = 0) -> Interval:
    """
    Percentile bootstrap interval for sum(errors) / sum(sizes), such as a word error rate; whole rows are redrawn.

    Args:
        errors, sizes: of each row, of equal length; every size is at least 1.
        resamples, seed: the same seed gives the same interval.

    Raises:
        `ValueError`: no rows, unequal lengths, or a size below 1.
    """
    if len(errors) != len(sizes) or not sizes or min(sizes) < 1:
        raise ValueError(
            f"got {len(errors)} error counts for {len(sizes)} rows; expected as many, and sizes of 1 or more."
        )
    draw = random.Random(seed)
    rows = list(zip(errors, sizes))
    rates = []
    for _ in range(resamples):
        drawn = draw.choices(rows, k=len(rows))
        rates.append(sum(error for error, _ in drawn) / sum(size for _, size in drawn))
    rates.sort()
    last = resamples - 1
    return rates[round(0.025 * last)], rates[round(0.975 * last)]
