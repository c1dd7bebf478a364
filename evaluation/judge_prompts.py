"""What a judge is asked about an answer, and how its reply becomes numbers.

Four rubrics. "official" is AIR-Bench Chat's protocol (Yang et al. 2024, arXiv 2402.07729): the reference and the model's
answer side by side, two scores from 1 to 10, once in each order, mean of both. Its criteria are named; the wording is
this project's own, so numbers are NOT comparable with published ones, whichever model judges. "correctness" asks what
the protocol does not: which of the claims that the question calls for are made, and which claims are false. A short
answer loses nothing, and unrequested text earns nothing. In both, the description of the clip replaces the audio.
"mmau-pro" is MMAU-Pro's protocol for its open questions (Kumar et al. 2025, arXiv 2508.13992): question, reference and
answer, no description, and the mean of four scores from 1 to 5. The published judge is Qwen2.5-7B-Instruct at temperature
0.1, and a score missing from its reply counts as 3; here such a reply is unreadable. The wording is again our own.
"voicebench" rates an assistant's answer to a spoken request (Chen et al. 2024, arXiv 2410.17196): one score from 1 to
5, with a reference if there is one. Published numbers are means of three ratings by GPT-4o-mini at temperature 0.5,
with another wording, and for questions with a reference the share of right answers, so they are not comparable.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .predictions import Prediction
from .unwrap_reply import without_thoughts


@dataclass(frozen=True)
class Judgement:
    """
    What one judge thinks of one answer.

    Attributes:
        score: of the model's answer, on the rubric's scale.
        reference_score: of the reference, if it was rated as well.
        flipped: whether swapping the two answers changed which of them was rated better (or that neither was).
        first_advantage: how many points an answer gained over the other by being first.
        claims: how many claims were counted as right, contradicted and missing.
    """

    score: float
    reference_score: float | None = None
    flipped: bool | None = None
    first_advantage: float | None = None
    claims: dict[str, int] | None = None


@dataclass(frozen=True)
class Rubric:
    """
    Attributes:
        template: the full prompt for the judge, with the names of the fields in braces.
        scale: lowest and highest score.
        prompts: the texts to send for one answer, each in a chat of its own.
        combine: makes a judgement from the replies, in the order of the prompts. Raises `ValueError`, with the reason,
            for a reply that is not what the template asks for.
        describes: whether the judge reads a description of the clip, which each question must then have.
        compares: whether each question must have a reference.
    """

    template: str
    scale: tuple[float, float]
    prompts: Callable[[Prediction], tuple[str, ...]]
    combine: Callable[[list[str]], Judgement]
    describes: bool = True
    compares: bool = True


OFFICIAL = """\
Two assistants answered a question about a sound recording. You cannot hear the recording; its description stands in \
for it and can be trusted.

<description>
{description}
</description>
<question>
{question}
</question>
<answer_1>
{first}
</answer_1>
<answer_2>
{second}
</answer_2>

Give each answer a score from 1 (worst) to 10 (best) for being helpful, relevant, accurate and comprehensive.
Reply with one line and nothing else on it than the score of answer 1, a space, and the score of answer 2."""

CORRECTNESS = """\
Check an answer to a question about a sound recording. You cannot hear the recording; its description stands in for it \
and can be trusted. The reference answer is right, but other words may be as right.

<description>
{description}
</description>
<question>
{question}
</question>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

1. List the claims that are needed to answer the question, going by the reference. Leave out what the reference says \
beyond the question.
2. Call each of them right if the answer makes it in any words, contradicted if the answer says otherwise, and missing \
if the answer says nothing about it.
3. Add to the contradicted ones every further claim of the answer that the description or the reference contradicts. \
Ignore further claims that are true or cannot be checked.
Length, style, politeness and details that nobody asked for count neither for the answer nor against it: one word can \
be a complete answer.
End with one line of the form
right: 0, contradicted: 0, missing: 0"""

CRITERIA = ("correctness", "relevance", "completeness", "clarity")
MMAU_PRO = """\
Rate an answer to a question about sound. You cannot hear the recording; the reference answer is right, but other words may \
be as right.

<question>
{question}
</question>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

Give four scores from 1 (worst) to 5 (best):
correctness: do its facts agree with the reference?
relevance: does it answer what was asked?
completeness: is everything there that matters in the reference?
clarity: is it clear and well put?
End with one line of the form
correctness: 1, relevance: 1, completeness: 1, clarity: 1"""

VOICEBENCH = """\
Rate what an assistant answered to a spoken request. You cannot hear the request; this is what was said.

<request>
{question}
</request>
<reference>
{reference}
</reference>
<answer>
{answer}
</answer>

Give one score from 1 (worst) to 5 (best):
5: it does all that was asked for, is right, and keeps to the point
4: it is right and helps, with a small part missing or too much said
3: it helps in part; something that matters is missing, wrong or beside the point
2: it is about the request, and helps little
1: it is wrong, about something else, or no answer
A reference is right where there is one, but other words may be as right; an answer that says something else than it is a 1.
End with one line of the form
score: 1"""
REFERENCE = "<reference>\n{reference}\n</reference>\n"  # of the template, left out if there is none

NUMBER = r"(\d+(?:\.\d+)?)"
# Alone on its line, perhaps in bold. "8/10" is not a pair of scores.
PAIR = re.compile(rf"[*`\s]*{NUMBER},?\s+{NUMBER}[*`.\s]*")
OF_FIVE = r"(?:\s*/\s*5(?!\d))?"
ONE_SCORE = re.compile(rf"\W*(?:score\W+)?(\d+){OF_FIVE}\W*", re.IGNORECASE)
CLAIMS = ("right", "contradicted", "missing")
COUNTS, SCORES = (
    re.compile(r"\W*" + r"\W+".join(rf"{name}\W+(\d+){out_of}" for name in names) + r"\W*", re.IGNORECASE)
    for names, out_of in ((CLAIMS, ""), (CRITERIA, OF_FIVE))
)


def _official_prompts(row: Prediction) -> tuple[str, ...]:
    def fill(first: str | None, second: str | None) -> str:
        return OFFICIAL.format(description=row.description, question=row.question, first=first, second=second)

    return fill(row.answer, row.reply), fill(row.reply, row.answer)


def _combine_official(replies: list[str]) -> Judgement:
    (reference_1, model_1), (model_2, reference_2) = (_pair(reply) for reply in replies)
    before, after = model_1 - reference_1, model_2 - reference_2
    return Judgement(
        score=(model_1 + model_2) / 2,
        reference_score=(reference_1 + reference_2) / 2,
        flipped=_sign(before) != _sign(after),
        first_advantage=(after - before) / 2,
    )


def _correctness_prompts(row: Prediction) -> tuple[str, ...]:
    fields: dict[str, Any] = {"description": row.description, "question": row.question}
    return (CORRECTNESS.format(reference=row.answer, answer=row.reply, **fields),)


def _combine_correctness(replies: list[str]) -> Judgement:
    """Score: 10 * right / (right + contradicted + missing)."""
    right, contradicted, missing = counts = [int(count) for count in _line(COUNTS, replies[0], "three counts")]
    if not sum(counts):
        raise ValueError("no claim was counted")
    return Judgement(score=10 * right / (right + contradicted + missing), claims=dict(zip(CLAIMS, counts)))


def _mmau_pro_prompts(row: Prediction) -> tuple[str, ...]:
    return (MMAU_PRO.format(question=row.question, reference=row.answer, answer=row.reply),)


def _combine_mmau_pro(replies: list[str]) -> Judgement:
    """Score: the mean of the four."""
    return _mean_of("mmau-pro", _line(SCORES, replies[0], "four scores"))


def _voicebench_prompts(row: Prediction) -> tuple[str, ...]:
    template = VOICEBENCH if row.answer else VOICEBENCH.replace(REFERENCE, "")
    return (template.format(question=row.question, reference=row.answer, answer=row.reply),)


def _combine_voicebench(replies: list[str]) -> Judgement:
    return _mean_of("voicebench", _line(ONE_SCORE, replies[0], "a score"))


def _mean_of(rubric: str, said: tuple[str, ...]) -> Judgement:
    low, high = RUBRICS[rubric].scale
    scores = [int(score) for score in said]
    if not all(low <= score <= high for score in scores):
        raise ValueError(f"got the scores {scores}; expected {low:g} to {high:g}")
    return Judgement(score=sum(scores) / len(scores))


def _pair(reply: str) -> tuple[float, float]:
    first, second = (float(score) for score in _line(PAIR, reply, "two scores"))
    low, high = RUBRICS["official"].scale
    if not (low <= first <= high and low <= second <= high):
        raise ValueError(f"got the scores {first:g} and {second:g}; expected {low:g} to {high:g}")
    return first, second


def _line(pattern: re.Pattern, reply: str, expected: str) -> tuple[str, ...]:
    """The numbers of the lines that match: one such line, or several that agree."""
    said = without_thoughts(reply)
    found = {match.groups() for line in said.splitlines() if (match := pattern.fullmatch(line))}
    if len(found) != 1:
        got = f"{len(found)} lines that differ" if found else f"no such line in {reply[:200]!r}"
        raise ValueError(f"expected a line with {expected}, got {got}")
    return found.pop()


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


RUBRICS = {
    "official": Rubric(OFFICIAL, (1, 10), _official_prompts, _combine_official),
    "correctness": Rubric(CORRECTNESS, (0, 10), _correctness_prompts, _combine_correctness),
    "mmau-pro": Rubric(MMAU_PRO, (1, 5), _mmau_pro_prompts, _combine_mmau_pro, describes=False),
    "voicebench": Rubric(
        VOICEBENCH, (1, 5), _voicebench_prompts, _combine_voicebench, describes=False, compares=False
    ),
}

__all__ = ["RUBRICS", "Judgement", "Rubric"]
