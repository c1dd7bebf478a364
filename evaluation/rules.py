"""When a reply to a multiple-choice question is right: the benchmarks' published rules, and one that reads the content.

"mmau-official" (MMAU, MMAR) compares sets of words, "air-bench-official" and "mmsu-official" read one letter; all
follow their published scripts exactly, including what those leave out, so that numbers are comparable. "content"
decides which option the reply means (read_option.py), by the options' texts and by letters that do not contradict
them; a reply that names none or several is wrong, never dropped.
Run: `RULES["content"](prediction)`
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import Any

from .instruction_checks import follows
from .option_labels import without_labels
from .predictions import ANSWERED, MISSING, Prediction
from .read_option import resolve
from .spelling import same_spelling


class Verdict(StrEnum):
    """A rule's verdict on one reply. Only `RIGHT` scores; official rules do not count `LEFT_OUT` at all."""

    RIGHT = "right"
    WRONG = "wrong"
    UNRESOLVED = "unresolved"
    LEFT_OUT = "left out"


def mmau_official(row: Prediction) -> Verdict:
    """
    MMAU's rule (evaluation.py of github.com/Sakshi113/MMAU; MMAR has the same): with words as runs of `\\w` in lower case,
    the reply must contain every word of the answer, and no word of the options that is not in the answer.

    Rows without a reply are left out; an empty one is wrong.

    Raises:
        `ValueError`: a row without an answer or without options.
    """
    answer = _words(_answer(row))
    if row.reply is None:
        return Verdict.LEFT_OUT
    reply = _words(row.reply)
    excluded = {word for choice in row.choices for word in _words(choice) - answer}
    return Verdict.RIGHT if reply and answer <= reply and not reply & excluded else Verdict.WRONG


def air_bench_official(row: Prediction) -> Verdict:
    """
    AIR-Bench Foundation's rule (score_foundation.py of github.com/OFA-Sys/AIR-Bench): the label is the first character if
    it is one of A to D, else the last but one ("The answer is A."). Of options with the same text the first is right.

    Rows without a reply, and those in which neither character is a label, are left out. This is the rule's flaw: a
    model gains by not answering.

    Raises:
        `ValueError`: a row without an answer or without options, or whose answer is none of them.
    """
    position = _position(row)
    label = _label(_one_line(row.reply))
    if label is None:
        return Verdict.LEFT_OUT
    return Verdict.RIGHT if "ABCD".index(label) == position else Verdict.WRONG


def mmsu_official(row: Prediction) -> Verdict:
    """
    MMSU's rule (mmsu_evaluation.py of github.com/dingdongwang/MMSU): AIR-Bench's letter, except that an empty reply
    and the word "None" are wrong, and of options with the same text each is right. Rows without a reply, and other
    replies without a label, are left out.

    Raises:
        `ValueError`: a row without an answer or without options, or whose answer is none of them.
    """
    answer = row.choices[_position(row)]
    reply = _one_line(row.reply)
    if row.reply is not None and reply in ("", "None"):
        return Verdict.WRONG
    label = _label(reply)
    if label is None:
        return Verdict.LEFT_OUT
    return Verdict.RIGHT if answer in row.choices["ABCD".index(label) :][:1] else Verdict.WRONG


def content(row: Prediction) -> Verdict:
    """
    Right if the reply means the answer, see `resolve`. A missing or empty reply is wrong.

    Raises:
        `ValueError`: a row without an answer or without options, or whose answer is none of them.
    """
    spelled = [*zip(row.choices, row.choices), *zip(without_labels(row.choices), row.choices)]
    same = (choice for text, choice in spelled if same_spelling(text, _answer(row)))
    answer = next(same, None) or row.choices[_position(row)]
    if row.reply is None or not row.reply.strip():
        return Verdict.WRONG
    option = resolve(row.reply, row.choices)
    if option is None:
        return Verdict.UNRESOLVED
    return Verdict.RIGHT if option == answer else Verdict.WRONG


def mmau_pro(row: Prediction) -> Verdict:
    """
    For MMAU-Pro: instructions by their check, questions with options by content. Some questions in the published file
    have an answer that is none of their options; as in the published script, any reply to them is wrong.

    Raises:
        `ValueError`: an open question, or one without an answer; as `follows`.
    """
    if row.check is not None:
        return Verdict.RIGHT if follows(row.check, row.reply or "") else Verdict.WRONG
    answer = answer_option(row)
    return Verdict.WRONG if answer is None else content(replace(row, answer=answer))


def answer_option(row: Prediction) -> str | None:
    """The option that is a row's answer, or that the answer means in other words, see `resolve`. Errors as in `mmau_pro`."""
    answer = _answer(row)
    return answer if answer in row.choices else resolve(answer, row.choices)


RULES: dict[str, Callable[[Prediction], Verdict]] = {
    "mmau-official": mmau_official,
    "air-bench-official": air_bench_official,
    "mmsu-official": mmsu_official,
    "mmau-pro": mmau_pro,
    "content": content,
}


def is_right(row: Prediction, rule: str = "content") -> bool:
    """Whether a rule (a name in `RULES`) says that a reply is right; one left out is not. Raises as the rule does."""
    return RULES[rule](row) is Verdict.RIGHT


def accuracies(
    official: str, replies: Sequence[str | None], references: Sequence[Mapping[str, Any]]
) -> dict[str, float | int | None]:
    """
    Both accuracies of replies to the same questions, as the metrics in metrics/ return them.

    Args:
        official: name of the benchmark's own rule in `RULES`.
        replies: `None` if there is none.
        references: `answer` and `choices` of each question.

    Returns:
        `accuracy` (official, over the `n` replies that the rule counts; `None` if none), `content_accuracy` over all,
        and how many were `unresolved` by content.

    Raises:
        `ValueError`: no references, not one for each reply, or as in the rules.
    """
    if not references or len(replies) != len(references):
        raise ValueError(
            f"got {len(replies)} replies for {len(references)} references; expected equally many, at least one."
        )
    rows = [
        Prediction(
            id=f"in row {number}",
            status=MISSING if reply is None else ANSWERED,
            reply=reply,
            choices=tuple(reference["choices"]),
            answer=reference["answer"],
        )
        for number, (reply, reference) in enumerate(zip(replies, references), 1)
    ]
    verdicts, by_content = ([RULES[rule](row) for row in rows] for rule in (official, "content"))
    n = len(rows) - verdicts.count(Verdict.LEFT_OUT)
    return {
        "accuracy": verdicts.count(Verdict.RIGHT) / n if n else None,
        "n": n,
        "content_accuracy": by_content.count(Verdict.RIGHT) / len(rows),
        "unresolved": by_content.count(Verdict.UNRESOLVED),
    }


def _one_line(reply: str | None) -> str:
    return "" if reply is None else reply.strip().replace("\n", "")


def _label(reply: str) -> str | None:
    """The letter that AIR-Bench's and MMSU's scripts read; `None` if they read none."""
    return next((character for character in (reply[:1], reply[-2:-1]) if character and character in "ABCD"), None)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _answer(row: Prediction) -> str:
    if row.answer is None:
        raise ValueError(f"question {row.id} has no answer to compare with.")
    if not row.choices:
        raise ValueError(
            f"question {row.id} has no options, so this rule cannot score it: open questions are rated by `falcon3-audio judge`, "
            "transcripts by `falcon3-audio score --rule wer`, captions by `--rule cider-d`."
        )
    return row.answer


def _position(row: Prediction) -> int:
    answer = _answer(row)
    if answer not in row.choices:
        raise ValueError(f"question {row.id}: the answer {answer!r} is none of the options {list(row.choices)}.")
    return row.choices.index(answer)


__all__ = [
    "RULES",
    "Verdict",
    "accuracies",
    "air_bench_official",
    "answer_option",
    "content",
    "is_right",
    "mmau_official",
    "mmau_pro",
    "mmsu_official",
    "resolve",
]
