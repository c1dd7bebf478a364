"""Intervals of shares and of differences when clips have several questions, or models several seeds.

The bootstrap draws clips, and seeds as well if there are several. For one question per clip and one seed, wilson.py
has Wilson's interval, which does not need numpy. All intervals are 95 %.
"""

from collections.abc import Sequence
from math import fsum

import numpy as np

from .wilson import FEWEST_DIFFERING, Interval, wilson


TAIL = 0.025  # on either side of the 95 % interval
RESAMPLES = 10_000


def accuracy_interval(
    right: Sequence[Sequence[bool]] | np.ndarray, clips: Sequence[int] | np.ndarray
) -> Interval | None:
    """
    Interval of the share of right answers. If this share is the same for all clips (all or none, say), a bootstrap has
    nothing to draw, so it is Wilson's with each clip as one question. `None` for fewer than `FEWEST_DIFFERING` clips,
    unless there is one seed and one question per clip.

    Args:
        right: `(seeds, questions)`, 0 or 1.
        clips: int `(questions,)`: the clip of each question, by any numbering.
    """
    found = np.asarray(right, int)
    sums, sizes = by_clip(found.T, np.asarray(clips))
    if len(found) == 1 and len(sizes) == found.size or alike(sums, sizes) and len(sizes) >= FEWEST_DIFFERING:
        return wilson(round(float(found.mean()) * len(sizes)), len(sizes))
    return bootstrap_interval(sums, sizes, RESAMPLES, seed=0) if len(sizes) >= FEWEST_DIFFERING else None


def mean_interval(
    groups: Sequence[tuple[Sequence[bool], Sequence[int]]], resamples: int = RESAMPLES
) -> Interval | None:
    """
    Interval of the mean of the groups' shares of right answers, when groups share clips (`intervals.mean_of_shares`):
    percentiles over draws of clips. Draws in which a group has no question are left out. `None` if all draws are
    alike.
    """
    numbers, which = np.unique(np.concatenate([clips for _, clips in groups]), return_inverse=True)
    group = np.repeat(np.arange(len(groups)), [len(clips) for _, clips in groups])
    sums, sizes = np.zeros((2, len(numbers), len(groups)))
    np.add.at(sums, (which, group), np.concatenate([np.asarray(right, float) for right, _ in groups]))
    np.add.at(sizes, (which, group), 1)
    # Clips with the same numbers are interchangeable, so it is enough to draw how many of each kind come up.
    kinds, often = np.unique(np.hstack([sums, sizes]), axis=0, return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(numbers), often / len(numbers), size=resamples) @ kinds
    rights, counts = drawn[:, : len(groups)], drawn[:, len(groups) :]
    whole = (counts > 0).all(1)
    low, high = np.quantile((rights[whole] / counts[whole]).mean(1), (TAIL, 1 - TAIL))
    return (float(low), float(high)) if low < high else None


def difference_interval(
    differences: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """
    Interval of `sum(differences) / sum(sizes)`, arguments as in `bootstrap_interval`; `None` if fewer than
    `FEWEST_DIFFERING` clips differ. If the difference is the same for all clips, a bootstrap has nothing to draw: each
    clip counts as won, and Wilson's interval says how many could be lost.
    """
    by_seed = differences.reshape(len(sizes), -1)
    if np.count_nonzero(by_seed.any(1)) < FEWEST_DIFFERING:
        return None
    if not alike(by_seed, sizes):
        return bootstrap_interval(differences, sizes, resamples, seed)
    mean = float(by_seed.sum() / sizes.sum() / by_seed.shape[1])
    least = mean * (2 * wilson(len(sizes), len(sizes))[0] - 1)
    return (least, mean) if mean > 0 else (mean, least)


def bootstrap_interval(differences: np.ndarray, sizes: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """
    The 95 % percentile interval of `sum(differences) / sum(sizes)` when clips are drawn with replacement. With several
    seeds it is the interval of their mean, and seeds are drawn too, independently of the clips (Owen, The pigeonhole
    bootstrap, 2007).

    Of n seeds, n - 1 are drawn: with so few seeds, drawing n would make the variance too small, by the factor
    (n - 1) / n (Rao and Wu, Resampling inference with complex survey data, 1988).

    Args:
        differences: int `(clips,)` or `(clips, seeds)`: how many more questions of a clip B gets right.
        sizes: int `(clips,)`: how many questions each clip has.
    """
    by_seed = differences.reshape(len(sizes), -1)
    seeds = by_seed.shape[1]
    # Clips with the same numbers are interchangeable, so it is enough to draw how many of each kind come up.
    kinds, counts = np.unique(np.column_stack([by_seed, sizes]), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    sums = generator.multinomial(len(sizes), counts / len(sizes), size=resamples) @ kinds
    weights = np.ones((resamples, 1))
    if seeds > 1:
        weights = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples) / (seeds - 1)
    low, high = np.quantile((sums[:, :-1] * weights).sum(1) / sums[:, -1], (TAIL, 1 - TAIL))
    return float(low), float(high)


def by_clip(values: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Sums over each clip's questions, and the number of questions: int `(clips, ...)` and `(clips,)`.

    Args:
        values: int `(questions, ...)`.
        clips: int `(questions,)`: the clip of each question, by any numbering.
    """
    which, sizes = np.unique(clips, return_inverse=True, return_counts=True)[1:]
    sums = np.zeros((len(sizes), *values.shape[1:]), int)
    np.add.at(sums, which, values)
    return sums, sizes


def alike(sums: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether sums, int `(clips, seeds)`, are the same share of the sizes, int `(clips,)`, for all clips and seeds."""
    return bool((sums * sizes[0] == sums[0, 0] * sizes[:, None]).all())


def standard_error(differences: np.ndarray, sizes: np.ndarray) -> float:
    """
    Standard error of `sum(differences) / sum(sizes)`, both `(clips,)`, over two or more clips: the ratio estimator of
    cluster sampling, linearised (Cochran, Sampling Techniques, 1977, chapter 9A).
    """
    residuals = differences - sizes * (differences.sum() / sizes.sum())
    squares = fsum(residuals * residuals)  # exact, so that the last digit does not depend on the order of the clips
    return float(np.sqrt(squares * len(sizes) / (len(sizes) - 1)) / sizes.sum())
