"""Two models on the same questions: is one better, by how much, and what is the smallest detectable difference?

Questions about one clip are not independent: a model that mishears the clip gets all of them wrong. The unit is
therefore the clip: the bootstrap draws clips (clip_intervals.py), and the exact test swaps the two models clip by
clip. If each clip has one question, that test is McNemar's. Plain numpy and scipy; differences are B - A, as shares
from -1 to 1.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from .clip_intervals import TAIL, alike, by_clip, difference_interval, standard_error
from .wilson import FEWEST_DIFFERING


POWER = 0.8
FEWEST_RESAMPLES = 100


@dataclass(frozen=True)
class Paired:
    """
    Attributes:
        n, clips: questions, and how many clips they are about.
        both_right, only_a, only_b, both_wrong: numbers of questions; they add up to `n`.
        accuracy_a, accuracy_b, difference: shares; `difference` is B - A.
        interval: 95 %, of the difference. Like the next two, `None` if fewer than `FEWEST_DIFFERING` clips differ.
        standard_error: of the difference; also `None` if all clips differ alike, which leaves no spread to estimate.
        detectable: the true difference that four of five sets like this one would show (p < 0.05).
        p: exact, two-sided, clip by clip (`swap_p`).
        mcnemar_p: exact McNemar, which treats questions as independent; equal to `p` if each clip has one question.
    """

    n: int
    clips: int
    both_right: int
    only_a: int
    only_b: int
    both_wrong: int
    accuracy_a: float
    accuracy_b: float
    difference: float
    interval: tuple[float, float] | None
    standard_error: float | None
    detectable: float | None
    p: float
    mcnemar_p: float

    @property
    def better(self) -> str | None:
        """ "A" or "B" if both the test and the interval show a difference, otherwise `None`."""
        if self.interval is None or self.p >= 2 * TAIL or self.interval[0] <= 0 <= self.interval[1]:
            return None
        return "B" if self.difference > 0 else "A"


def compare_pairs(a: np.ndarray, b: np.ndarray, clips: np.ndarray, resamples: int = 10_000, seed: int = 0) -> Paired:
    """
    Compares two models.

    Args:
        a, b: bool `(questions,)`: whether A and B are right.
        clips: int `(questions,)`: the clip of each question, in any numbering.
        resamples, seed: of the bootstrap.

    Raises:
        `ValueError`: no questions, arrays of different shapes, or too few resamples.
    """
    if len({a.shape, b.shape, clips.shape}) > 1 or a.ndim != 1 or not len(a):
        raise ValueError(f"got arrays of the shapes {a.shape}, {b.shape} and {clips.shape}; expected (questions,)")
    if resamples < FEWEST_RESAMPLES:
        raise ValueError(f"got {resamples} resamples; the ends of a 95 % interval need {FEWEST_RESAMPLES} or more")
    a, b = a.astype(bool), b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    differences, sizes = by_clip(b.astype(int) - a, clips)
    enough = np.count_nonzero(differences) >= FEWEST_DIFFERING and not alike(differences[:, None], sizes)
    error = standard_error(differences, sizes) if enough else None
    return Paired(
        n=len(a),
        clips=len(sizes),
        both_right=int((a & b).sum()),
        only_a=only_a,
        only_b=only_b,
        both_wrong=int((~a & ~b).sum()),
        accuracy_a=float(a.mean()),
        accuracy_b=float(b.mean()),
        difference=(only_b - only_a) / len(a),
        interval=difference_interval(differences, sizes, resamples, seed),
        standard_error=error,
        detectable=None if error is None else error * float(stats.norm.ppf(1 - TAIL) + stats.norm.ppf(POWER)),
        p=swap_p(differences),
        mcnemar_p=mcnemar_p(only_a, only_b),
    )


def mcnemar_p(only_a: int, only_b: int) -> float:
    """McNemar's exact test, two-sided: under the null, each model has half of the questions that only one gets."""
    return float(stats.binomtest(only_b, only_a + only_b).pvalue) if only_a + only_b else 1.0


def swap_p(differences: np.ndarray) -> float:
    """
    Exact two-sided p of a sum of differences, int `(clips,)`, if each clip's sign is a coin toss: A and B are equal.

    All 2**clips outcomes count: clips with differences of the same size add up to a binomial, and there are few sizes.
    """
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    chance = np.ones(1)  # of each sum, from the lowest to the highest
    for size, count in zip(sizes, counts):
        tosses = np.zeros(2 * size * count + 1)
        tosses[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chance = np.convolve(chance, tosses)
    sums = np.arange(len(chance)) - len(chance) // 2
    return min(1.0, float(chance[np.abs(sums) >= abs(differences.sum())].sum()))


def points(share: float) -> str:
    """A difference in percentage points; never "-0.0"."""
    return f"{round(100 * share, 1) + 0.0:.1f}"


def interval_text(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"[{points(interval[0])}, {points(interval[1])}]"


def p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def verdict_line(result: Paired) -> str:
    """The result in one line; the difference is stated as positive for the better model."""
    if result.better == "A" and result.interval:
        low, high = result.interval
        return f"A is better by {points(-result.difference)} points {interval_text((-high, -low))}, {p_text(result.p)}"
    if result.better == "B":
        return (
            f"B is better by {points(result.difference)} points {interval_text(result.interval)}, {p_text(result.p)}"
        )
    found = f"no difference can be shown at n = {result.n}: B - A is {points(result.difference)} points"
    if result.interval is None:
        return (
            f"{found}, {p_text(result.p)}; they differ on fewer than {FEWEST_DIFFERING} clips, too few for an interval"
        )
    return f"{found} {interval_text(result.interval)}, {p_text(result.p)}"
