"""Paired statistics against hand-computed cases, enumeration of every outcome, and plain loops."""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations_with_replacement, product
from math import comb, factorial, prod, sqrt
from random import Random

import numpy as np
import pytest

from falcon3_audio.evaluation.clip_intervals import bootstrap_interval, standard_error
from falcon3_audio.evaluation.paired import compare_pairs, mcnemar_p, swap_p


def answers(both, only_a, only_b, neither):
    """Whether A and B are right, for each question, and the question's clip."""
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return a, b, np.arange(len(a))


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (1, 0), (5, 5), (4, 9), (6, 16), (0, 6), (40, 71)])
def test_mcnemar_is_the_binomial_added_up_by_hand(only_a, only_b):
    flipped = only_a + only_b
    tail = sum(comb(flipped, k) for k in range(min(only_a, only_b) + 1))
    expected = min(Fraction(1), Fraction(2 * tail, 2**flipped))
    assert mcnemar_p(only_a, only_b) == pytest.approx(float(expected), rel=1e-9)
    # The swap test gives the same if each clip has one question.
    differences = np.repeat([-1, 0, 1], [only_a, 7, only_b])
    assert swap_p(differences) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(
    "differences", [[3, 1, -1, 2], [2, 2, -1, 0, -3, 5, 1], [4] * 5 + [-1] * 5, [-3, -3, -1], [0]]
)
def test_the_swap_test_counts_every_outcome(differences):
    sums = [sum(s * d for s, d in zip(signs, differences)) for signs in product((1, -1), repeat=len(differences))]
    expected = sum(abs(total) >= abs(sum(differences)) for total in sums) / len(sums)
    assert swap_p(np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_a_table_by_hand():
    """n = 100 with 50, 6, 16 and 28: p = 2 * (1 + 22 + 231 + 1540 + 7315 + 26334 + 74613) / 2**22."""
    result = compare_pairs(*answers(50, 6, 16, 28))
    counts = (result.n, result.clips, result.both_right, result.only_a, result.only_b, result.both_wrong)
    assert counts == (100, 100, 50, 6, 16, 28)
    assert (result.accuracy_a, result.accuracy_b, result.difference) == (0.56, 0.66, 0.1)
    assert result.p == pytest.approx(2 * 110056 / 2**22) == pytest.approx(result.mcnemar_p)
    # Sum of squares 22 and mean 0.1 over 100: variance (22 - 100 * 0.01) / 99, a hundredth of it for the mean.
    assert result.standard_error == pytest.approx(sqrt(21 / 99 / 100))
    assert result.detectable == pytest.approx((1.959964 + 0.841621) * sqrt(21 / 9900), rel=1e-6)
    low, high = result.interval
    assert low == pytest.approx(0.1 - 1.96 * sqrt(21 / 9900), abs=0.011)
    assert high == pytest.approx(0.1 + 1.96 * sqrt(21 / 9900), abs=0.011)


def test_both_the_test_and_the_interval_must_show_a_difference():
    assert compare_pairs(*answers(500, 20, 60, 420)).better == "B"
    assert compare_pairs(*answers(500, 60, 20, 420)).better == "A"
    assert compare_pairs(*answers(500, 60, 58, 382)).better is None
    # p is 0.0525 and the interval is above zero.
    close = compare_pairs(*answers(50, 6, 16, 28))
    assert close.p > 0.05 and close.interval[0] > 0 and close.better is None
    assert replace(compare_pairs(*answers(500, 20, 60, 420)), interval=(-0.001, 0.08)).better is None
    # Exchanging A and B changes only the sign.
    mirrored = compare_pairs(*answers(500, 60, 20, 420))
    assert mirrored.difference == -0.04 and mirrored.p == compare_pairs(*answers(500, 20, 60, 420)).p
    assert mirrored.interval[1] < 0


def test_the_interval_is_that_of_all_possible_draws():
    """Six clips of unequal size: the exact distribution over all 6**6 draws, each with its probability."""
    differences, sizes = np.array([2, 1, -1, 3, 1, -2]), np.array([4, 1, 2, 3, 6, 2])
    shares, weights = [], []
    for drawn in combinations_with_replacement(range(6), 6):
        times = [drawn.count(clip) for clip in range(6)]
        shares.append(sum(differences[clip] for clip in drawn) / sum(sizes[clip] for clip in drawn))
        weights.append(factorial(6) / prod(factorial(count) for count in times) / 6**6)
    order = np.argsort(shares)
    cumulated = np.cumsum(np.array(weights)[order])
    expected = [np.array(shares)[order][np.searchsorted(cumulated, level)] for level in (0.025, 0.975)]
    assert cumulated[-1] == pytest.approx(1)
    found = bootstrap_interval(differences, sizes, 200_000, seed=1)
    assert found == pytest.approx(expected, abs=0.01)


def several_questions_a_clip(clips=60, seed=3):
    """Clips with 1 to 9 questions, on which one of the models is better or both are equal."""
    random = Random(seed)
    rows = []
    for clip in range(clips):
        leaning = random.choice([0.2, 0.5, 0.9])
        for _ in range(random.randint(1, 9)):
            rows.append((random.random() < 0.5, random.random() < leaning, clip))
    random.shuffle(rows)
    return [np.array(column) for column in zip(*rows)]


def test_the_interval_is_that_of_a_plain_loop():
    a, b, clips = several_questions_a_clip()
    by_clip = {}
    for right_a, right_b, clip in zip(a.tolist(), b.tolist(), clips.tolist()):
        by_clip.setdefault(clip, []).append(right_b - right_a)
    random, shares = Random(11), []
    for _ in range(6000):
        drawn = [flip for clip in random.choices(list(by_clip), k=len(by_clip)) for flip in by_clip[clip]]
        shares.append(sum(drawn) / len(drawn))
    shares.sort()
    result = compare_pairs(a, b, clips, resamples=40_000)
    assert result.interval == pytest.approx((shares[150], shares[-151]), abs=0.006)
    assert result.difference == pytest.approx(sum(b.tolist()) / len(b) - sum(a.tolist()) / len(a))
    # The formula of the standard error agrees with the spread of the loop's draws.
    assert result.standard_error == pytest.approx(np.std(shares), rel=0.06)


def test_the_numbering_of_clips_and_the_order_do_not_matter():
    a, b, clips = several_questions_a_clip()
    order = np.random.default_rng(0).permutation(len(a))
    assert compare_pairs(a, b, clips) == compare_pairs(a[order], b[order], 1000 - 7 * clips[order])


def test_without_clips_the_interval_would_be_too_narrow():
    """Ten questions per clip that all agree are one piece of evidence: the interval is sqrt(10) times as wide."""
    a, b, clips = (np.repeat(column, 10) for column in answers(20, 4, 12, 24))
    clustered = compare_pairs(a, b, clips)
    single = compare_pairs(a, b, np.arange(len(a)))
    assert (clustered.n, clustered.clips, single.clips) == (600, 60, 600)

    def width(result):
        return result.interval[1] - result.interval[0]

    assert width(clustered) / width(single) == pytest.approx(sqrt(10), rel=0.1)
    assert clustered.standard_error / single.standard_error == pytest.approx(sqrt(10), rel=0.01)
    # 4 against 12 clips: 2 * (1 + 16 + 120 + 560 + 1820) / 2**16; with 40 against 120 questions it would look certain.
    assert clustered.p == pytest.approx(2 * 2517 / 2**16) and clustered.mcnemar_p < 1e-9
    assert (clustered.better, single.better) == (None, "B")


def test_alike_models_are_called_different_in_one_of_twenty_at_most():
    """On clips with five questions that agree; treating the questions as independent would fail."""
    random = np.random.default_rng(5)
    called, naive = 0, 0
    for _ in range(400):
        a, b = (np.repeat(random.random(60) < 0.5, 5) for _ in "ab")
        result = compare_pairs(a, b, np.repeat(np.arange(60), 5), resamples=500)
        called += result.p < 0.05
        naive += result.mcnemar_p < 0.05
    assert called / 400 < 0.07 and naive / 400 > 0.2


def test_the_detectable_difference_is_found_in_four_of_five():
    """With 10 % only A and 10 % only B at n = 1000: 2.8016 * sqrt(0.2 / 999)."""
    detectable = compare_pairs(*answers(500, 100, 100, 300)).detectable
    assert detectable == pytest.approx(2.8016 * sqrt(0.2 / 999), rel=1e-4)
    random = np.random.default_rng(2)
    draws = random.multinomial(1000, [0.1 - detectable / 2, 0.1 + detectable / 2, 0.8], size=1000)
    assert np.mean([mcnemar_p(only_a, only_b) < 0.05 for only_a, only_b, _ in draws]) == pytest.approx(0.8, abs=0.04)


def test_the_standard_error_by_hand():
    """Shares 3 of 6; residuals 1 - 1, 0 - 1, 2 - 1: squares 0 + 1 + 1, times 3/2, root, over 6."""
    assert standard_error(np.array([1, 0, 2]), np.array([2, 2, 2])) == pytest.approx(sqrt(3) / 6)
    # Sizes 1, 2, 3 and share 3 of 6: residuals 0.5, -1, 0.5.
    assert standard_error(np.array([1, 0, 2]), np.array([1, 2, 3])) == pytest.approx(sqrt(1.5 * 1.5) / 6)


def test_too_few_clips_that_differ_give_no_interval():
    for result in (compare_pairs(*answers(50, 0, 5, 45)), compare_pairs(*answers(1, 0, 0, 0))):
        assert (result.interval, result.standard_error, result.detectable, result.better) == (None,) * 4
    assert compare_pairs(*answers(50, 0, 5, 45)).p == pytest.approx(0.0625)
    assert compare_pairs(*answers(50, 0, 6, 45)).better == "B"
    # Fifty questions that flipped, all about one clip.
    a, b, _ = answers(0, 0, 50, 0)
    result = compare_pairs(a, b, np.zeros(50, int))
    assert (result.difference, result.interval, result.p) == (1.0, None, 1.0)


def test_the_seed_decides():
    first, again, other = (compare_pairs(*several_questions_a_clip(), resamples=300, seed=seed) for seed in (4, 4, 5))
    assert first == again and first.interval != other.interval
    assert first.p == other.p


def test_what_cannot_be_compared():
    a, b, clips = answers(3, 3, 3, 3)
    with pytest.raises(ValueError, match=r"shapes \(12,\), \(11,\) and \(12,\); expected"):
        compare_pairs(a, b[1:], clips)
    with pytest.raises(ValueError, match=r"shapes \(0,\)"):
        compare_pairs(a[:0], b[:0], clips[:0])
    with pytest.raises(ValueError, match="99 resamples; the ends of a 95 % interval need 100"):
        compare_pairs(a, b, clips, resamples=99)


def test_seeds_are_drawn_besides_clips():
    """If all clips agree, only seeds vary: one of two is drawn, and two of three, so that the variance is right."""
    sizes = np.full(50, 2)
    two = np.tile([2, 1], (50, 1))  # all and half of each clip's questions
    assert bootstrap_interval(two, sizes, 2000, seed=0) == (0.5, 1.0)
    three = np.tile([0, 1, 2], (50, 1))
    drawn = np.random.default_rng(1).choice([0, 0.5, 1], (100_000, 2)).mean(1)
    assert drawn.var() == pytest.approx(np.var([0, 0.5, 1], ddof=1) / 3, rel=0.02)
    expected = np.quantile(drawn, (0.025, 0.975))
    assert bootstrap_interval(three, sizes, 4000, seed=0) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("deviation", [0, 0.02, 0.05])
def test_intervals_over_three_seeds_are_not_too_narrow(deviation):
    """
    300 studies of two equal arms, whose seeds differ by a standard deviation of accuracy, with 400 questions of varying
    difficulty: 100, 99 and 95 % of the intervals of the difference contain 0.
    """
    draw = np.random.default_rng(7)
    questions, seeds, within = 400, 3, 0
    for _ in range(300):
        difficulty = draw.random((questions, 1))
        right = [
            draw.random((questions, seeds)) < difficulty + draw.normal(0, deviation, seeds).clip(-0.5, 0.5)
            for _ in "AB"
        ]
        low, high = bootstrap_interval(np.subtract(*map(np.int64, right)), np.ones(questions, int), 400, seed=0)
        within += low <= 0 <= high
    assert within >= 0.93 * 300


def test_one_seed_in_a_column_is_as_none():
    draw = np.random.default_rng(3)
    sizes = draw.integers(1, 4, 60)
    differences = draw.integers(-sizes, sizes + 1)
    expected = bootstrap_interval(differences, sizes, 1000, seed=5)
    assert bootstrap_interval(differences[:, None], sizes, 1000, seed=5) == expected
