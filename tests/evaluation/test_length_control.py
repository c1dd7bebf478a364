"""The score at equal length, against scipy, numpy, and judges with known biases."""

import re
import zlib

import numpy as np
import pytest
from scipy import stats

from falcon3_audio.evaluation.endpoint import Reply
from falcon3_audio.evaluation.judge import judge
from falcon3_audio.evaluation.length_control import at_equal_length, count_words, mean, spearman
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction, Predictions


def sample(seed, n=120, effect=0.0, truth=6.0, noise=1.0):
    """Scores of answers that are on average half as long as their references; each log word adds `effect`."""
    rng = np.random.default_rng(seed)
    reference_words = rng.integers(8, 60, n)
    words = np.round(reference_words * np.exp(rng.normal(-0.7, 0.6, n))).astype(int)
    difference = np.log1p(words) - np.log1p(reference_words)
    return truth + effect * difference + rng.normal(0, noise, n), words, reference_words


def test_lengths_are_words():
    assert [count_words(text) for text in ("", "  ", "a dog", " A dog,\nbarking. ")] == [0, 0, 2, 3]


def test_an_effect_of_length_is_taken_out():
    scores, words, reference_words = sample(0, effect=1.5, noise=0)
    assert scores.mean() < 5.2
    controlled = at_equal_length(scores, words, reference_words, np.arange(120))
    assert controlled.value == pytest.approx(6, abs=1e-9)
    assert controlled.interval == pytest.approx((6, 6), abs=1e-9)
    assert controlled.per_doubling == pytest.approx(1.5 * np.log(2)) and controlled.reason is None
    assert controlled.per_doubling_interval == pytest.approx([1.5 * np.log(2)] * 2)


def test_long_references_do_not_pass_for_an_effect_of_length():
    """Questions with long references are harder here; the answers' own lengths have no effect."""
    rng = np.random.default_rng(1)
    reference_words = rng.integers(8, 60, 200)
    words = np.round(reference_words ** rng.uniform(0.3, 1.1, 200)).astype(int)
    scores = 9 - np.log1p(reference_words)
    controlled = at_equal_length(scores, words, reference_words, np.arange(200))
    assert controlled.per_doubling == pytest.approx(0, abs=1e-9)
    assert controlled.value == pytest.approx(scores.mean())
    assert abs(stats.linregress(np.log1p(words) - np.log1p(reference_words), scores).slope) > 0.1


def test_against_numpy_and_scipy():
    scores, words, reference_words = sample(2, effect=1)
    own, reference = np.log1p(words), np.log1p(reference_words)
    design = np.stack([np.ones(120), own, reference], axis=1)
    constant, slope, other = np.linalg.lstsq(design, scores)[0]
    controlled = at_equal_length(scores, words, reference_words, np.arange(120))
    assert controlled.value == pytest.approx(constant + (slope + other) * reference.mean())
    assert controlled.per_doubling == pytest.approx(slope * np.log(2))

    # If all references are equally long, this is a simple regression, which scipy can bootstrap.
    alike = np.full(120, 20)
    line = stats.linregress(own - np.log1p(20), scores)
    controlled = at_equal_length(scores, words, alike, np.arange(120))
    assert (controlled.value, controlled.per_doubling) == pytest.approx((line.intercept, line.slope * np.log(2)))
    expected = stats.bootstrap(
        (own - np.log1p(20), scores),
        lambda x, y: stats.linregress(x, y).intercept,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=5,
    ).confidence_interval
    assert controlled.interval == pytest.approx(tuple(expected), abs=0.05)


def test_a_mean_and_its_interval():
    values = np.random.default_rng(3).normal(5, 2, 80)
    estimate = mean(values, np.arange(80))
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=5).confidence_interval
    assert estimate.value == values.mean() and estimate.interval == pytest.approx(tuple(expected), abs=0.05)
    assert mean(values[:9], np.arange(9)).interval is None


def test_answers_about_one_clip_count_together():
    scores, words, reference_words = sample(4, n=40, effect=1)
    four = [np.repeat(column, 4) for column in (scores, words, reference_words)]
    once = at_equal_length(scores, words, reference_words, np.arange(40))
    together = at_equal_length(*four, np.repeat(np.arange(40), 4))
    assert together.interval == pytest.approx(once.interval)  # copies add no information
    assert np.ptp(at_equal_length(*four, np.arange(160)).interval) < 0.6 * np.ptp(once.interval)
    assert mean(four[0], np.repeat(np.arange(40), 4)).interval == pytest.approx(mean(scores, np.arange(40)).interval)
    # Any numbering of the clips works.
    assert at_equal_length(*four, np.repeat(np.arange(40), 4) * 7 + 3).interval == pytest.approx(once.interval)


def test_95_of_100_intervals_hold_the_truth():
    held = 0
    for seed in range(100):
        low, high = at_equal_length(*sample(seed, n=60, effect=1.5), np.arange(60)).interval
        held += low <= 6 <= high
    assert 90 <= held <= 99


def test_few_answers_near_the_references_length_are_told():
    words = np.array([2] * 10 + [14] * 4 + [15, 15, 30, 60, 60] + [61])
    controlled = at_equal_length(np.linspace(3, 7, 20), words, np.full(20, 30), np.arange(20))
    assert controlled.near == 5 / 20


@pytest.mark.parametrize(
    "words",
    [
        np.full(30, 5),  # the effect of the answers' length cannot be told from that of the references'
        np.arange(10, 40),  # as long as the references
    ],
)
def test_without_answers_that_differ_in_length_there_is_no_value(words):
    controlled = at_equal_length(np.linspace(3, 7, 30), words, np.arange(10, 40), np.arange(30))
    assert controlled.value is None and controlled.interval is None
    assert controlled.reason == "too few answers differ in length to estimate its effect"


def test_one_answer_that_differs_in_length_is_too_few():
    """It would decide the result on its own, and a third of the resamples lack it."""
    words = np.array([40] + [20] * 29)
    controlled = at_equal_length(np.linspace(3, 7, 30), words, np.full(30, 20), np.arange(30))
    assert controlled.value is None and "too few answers differ" in controlled.reason


def test_few_clips():
    scores, words, reference_words = sample(5, n=40)
    clips = np.arange(40) % 9
    assert (
        at_equal_length(scores, words, reference_words, clips).reason
        == "answers about 9 clips; at least 10 are needed"
    )
    assert at_equal_length(scores, words, reference_words, np.arange(40) % 10).value is not None


def test_rank_correlation():
    assert spearman(np.array([1.0, 2.0, 5.0]), np.array([3, 4, 90])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2.0, 5.0]), np.array([9, 4, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1.0]), np.array([3, 4])) is None
    assert spearman(np.array([1.0, 2.0]), np.array([3, 3])) is None
    assert spearman(np.array([1.0]), np.array([3])) is None


# The whole pipeline. Answers start with their quality, such as "q6.2", followed by filler.
REFERENCE = 7.0
# Quality, and the lengths of the shortest and longest answer. Better systems are briefer.
SYSTEMS = {"terse": (6.6, 3, 24), "plain": (5.8, 8, 40), "wordy": (5.0, 15, 90), "rambling": (4.2, 24, 160)}
QUESTIONS = 150


class BiasedJudge:
    """Scores quality, plus points for the first position and for length, plus noise; whole points from 1 to 10."""

    base_url = "http://judge/v1"

    def __init__(self, model, first=0.0, length=lambda words: 0.0):
        self.model, self.first, self.length = model, first, length

    def ask(self, messages, **sampling):
        assert sampling["temperature"] == 0
        text = messages[0]["content"]
        question = re.search(r"clip \d+", text)[0]
        given = re.findall(r"<answer_[12]>\n(.*?)\n</answer_[12]>", text, re.DOTALL)
        scores = [self.rate(said, question) + self.first * (place == 0) for place, said in enumerate(given)]
        return Reply(" ".join(str(round(min(10, max(1, score)))) for score in scores), self.model, "stop", None)

    def rate(self, said, question):
        noise = zlib.crc32(f"{self.model} {question} {said}".encode()) / 2**32 - 0.5
        return float(said.split()[0][1:]) + noise + self.length(len(said.split())) - self.length(20)


def in_logs(words):
    return 1.3 * np.log1p(words)


def in_words(words):
    return 0.06 * words


def answer(quality, words):
    return " ".join([f"q{quality}", *["word"] * (words - 1)])


def system(name):
    quality, shortest, longest = SYSTEMS[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    words = np.exp(rng.uniform(np.log(shortest), np.log(longest), QUESTIONS)).astype(int)
    references = np.random.default_rng(0).integers(8, 40, QUESTIONS)
    rows = [
        Prediction(
            id=f"q{number}",
            status=ANSWERED,
            reply=answer(quality, words[number]),
            question=f"What is in clip {number}?",
            answer=answer(REFERENCE, references[number]),
            description="sounds",
        )
        for number in range(QUESTIONS)
    ]
    return Predictions(tuple(rows), {}, name, "0" * 64)


@pytest.mark.parametrize("length", [in_logs, in_words])
def test_judges_with_biases_are_corrected_to_the_true_order(length, tmp_path):
    judges = [BiasedJudge("a", 1.5, length), BiasedJudge("b", -1.0, length)]
    results = {name: judge(system(name), "official", judges, tmp_path / name, 1) for name in SYSTEMS}
    for pick in (lambda result: result["all judges"], lambda r: r["judges"]["a"], lambda r: r["judges"]["b"]):
        blocks = [pick(results[name]) for name in SYSTEMS]  # from the best to the worst
        for plain, controlled in [
            ("score", "score at equal length"),
            ("lead over the reference", "lead at equal length"),
        ]:
            raw = [block[plain]["value"] for block in blocks]
            assert raw[0] < min(raw[2:])  # the best system looks worse than the two worst
            # The order is right, and clearly so: the intervals of neighbours do not overlap.
            intervals = [block[controlled]["interval"] for block in blocks]
            assert all(better[0] > worse[1] for better, worse in zip(intervals, intervals[1:]))
    for name, (quality, _, _) in SYSTEMS.items():
        assert results[name]["judges"]["a"]["order"]["points for standing first"] == pytest.approx(1.5, abs=0.2)
        assert results[name]["judges"]["b"]["order"]["points for standing first"] == pytest.approx(-1.0, abs=0.2)
        if length is in_logs:  # the regression's form, so the values are right too
            lead = results[name]["all judges"]["lead at equal length"]
            assert lead["value"] == pytest.approx(quality - REFERENCE, abs=0.25)
            assert lead["per_doubling"] == pytest.approx(1.3 * np.log(2), abs=0.15)


def test_a_judge_without_biases_is_left_alone(tmp_path):
    block = judge(system("terse"), "official", [BiasedJudge("fair")], tmp_path)["judges"]["fair"]
    assert block["score"]["value"] == pytest.approx(6.6, abs=0.1)
    low, high = block["score at equal length"]["interval"]
    assert low < 6.6 < high and high - low < 0.4
    low, high = block["score at equal length"]["per_doubling_interval"]
    assert low < 0 < high
    assert block["order"] == {"swap flips": 0, "points for standing first": 0}


def test_where_an_answer_stands_does_not_move_its_lead(tmp_path):
    """Nor its lead at equal length, though each single comparison is decided by position."""
    fair, partial = (
        judge(system("terse"), "official", [BiasedJudge("x", first)], tmp_path / str(first))["judges"]["x"]
        for first in (0, 2)
    )
    for key in ("lead over the reference", "lead at equal length"):
        assert partial[key]["value"] == pytest.approx(fair[key]["value"], abs=1e-9)
    assert partial["order"] == {"swap flips": 1, "points for standing first": 2}
