"""Does a score reflect the answers or their length? Means with intervals, and the score at equal length.

The method follows Length-Controlled AlpacaEval (Dubois et al. 2024, arXiv 2404.04475): regress the judge's score on
the difference in length between answer and reference, and evaluate the regression at a difference of zero. Three
things differ. Scores are regressed, not preferences, so the regression is linear. Length is the logarithm of 1 +
words: AlpacaEval's tanh of a standardised difference saturates, and so carries no information, for a model whose
answers are all much shorter. And the reference's length replaces AlpacaEval's question difficulty.
Everything that correlates with length is removed, even if longer answers do say more: read it next to the plain score.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats


RESAMPLES = 2000
TAILS = (2.5, 97.5)  # percentiles of a 95 % interval
FEWEST_CLIPS = 10  # with fewer, bootstrap intervals are far too narrow
SINGULAR = 1e10  # condition number above which a matrix is singular up to rounding

Interval = tuple[float, float]


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval (bootstrap over clips); `None` with fewer than `FEWEST_CLIPS` clips."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Controlled:
    """
    Attributes:
        value, interval: the mean score if each answer were as long as its reference, and its 95 % interval.
        per_doubling, per_doubling_interval: change in points associated with twice the words.
        near: share of answers with half to twice as many words as their reference. If it is small, `value` is an
            extrapolation.
        reason: why there is no value, otherwise `None`.
    """

    value: float | None = None
    interval: Interval | None = None
    per_doubling: float | None = None
    per_doubling_interval: Interval | None = None
    near: float | None = None
    reason: str | None = None


def count_words(text: str) -> int:
    """Length of an answer in words: runs of characters without white space."""
    return len(text.split())


def mean(values: np.ndarray, clips: np.ndarray) -> Mean:
    """The mean of float `(answers,)`; `clips`, int `(answers,)`, is each answer's clip. The bootstrap draws clips."""
    _, draws = _regress(np.ones((len(values), 1)), values, clips)
    return Mean(float(np.mean(values)), None if draws is None else _interval(draws[:, 0]))


def at_equal_length(
    scores: np.ndarray, words: np.ndarray, reference_words: np.ndarray, clips: np.ndarray
) -> Controlled:
    """
    The length-controlled score (see the module).

    Args:
        scores: float `(answers,)`, scores or differences of scores.
        words, reference_words: int `(answers,)`, of the answers and of their references.
        clips: int `(answers,)`, the clip of each answer, in any numbering. The bootstrap draws clips.
    """
    if len(np.unique(clips)) < FEWEST_CLIPS:
        return Controlled(reason=f"answers about {len(np.unique(clips))} clips; at least {FEWEST_CLIPS} are needed")
    own, reference = np.log1p(words), np.log1p(reference_words)
    design = [np.ones(len(scores)), own - reference]
    if np.ptp(reference):
        design.append(reference - reference.mean())
    estimate, draws = _regress(np.stack(design, axis=1), scores, clips)
    if estimate is None or draws is None:
        return Controlled(reason="too few answers differ in length to estimate its effect")
    doubling = np.log(2)
    return Controlled(
        value=float(estimate[0]),
        interval=_interval(draws[:, 0]),
        per_doubling=float(estimate[1] * doubling),
        per_doubling_interval=_interval(draws[:, 1] * doubling),
        near=float(np.mean((reference_words <= 2 * words) & (words <= 2 * reference_words))),
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    """Rank correlation; `None` if either does not vary."""
    if len(a) < 2 or not np.ptp(a) or not np.ptp(b):
        return None
    return float(stats.spearmanr(a, b).statistic)


def _regress(design: np.ndarray, values: np.ndarray, clips: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """
    Least squares on all clips and on resamples of them: `(columns,)` and `(RESAMPLES, columns)`. The second is `None`
    if any resample has no unique solution; both are `None` if all clips together have none, or are too few.

    Least squares needs only sums of products, so these are summed once per clip, and a resample is a weighted sum.
    """
    table = np.concatenate([design, values[:, None]], axis=1)
    groups = np.unique(clips, return_inverse=True)[1]
    products = np.zeros((groups.max() + 1, table.shape[1], table.shape[1]))
    np.add.at(products, groups, table[:, :, None] * table[:, None, :])
    estimate = _solve(products.sum(axis=0, keepdims=True))
    if estimate is None or len(products) < FEWEST_CLIPS:
        return None, None
    drawn = np.random.default_rng(0).multinomial(len(products), np.full(len(products), 1 / len(products)), RESAMPLES)
    return estimate[0], _solve(np.tensordot(drawn, products, axes=1))


def _solve(products: np.ndarray) -> np.ndarray | None:
    """The coefficients `(n, columns)` of n regressions of the last column on the others; `None` if one has none."""
    squares, with_values = products[:, :-1, :-1], products[:, :-1, -1:]
    if (np.linalg.cond(squares) > SINGULAR).any():
        return None
    return np.linalg.solve(squares, with_values)[..., 0]


def _interval(draws: np.ndarray) -> Interval:
    low, high = np.percentile(draws, TAILS)
    return float(low), float(high)


__all__ = ["Controlled", "Interval", "Mean", "at_equal_length", "count_words", "mean", "spearman"]
