"""When a reply to a multiple-choice question is right: the benchmarks' published rules, and one that reads the content.

"mmau-official" (MMAU, MMAR) compares sets of words, "air-bench-official" reads one letter; both are kept exactly as their
published scripts have them, with what those leave out, so that numbers compare. "content" asks which option the reply
means: it takes wrappers such as `<answer>` or "The correct answer is: ..." away and looks for the options' texts. Letters
count only where the text names no option, and what names none or several is wrong, never dropped.
Run: `RULES["content"](prediction)`
"""

import re
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from .predictions import ANSWERED, MISSING, Prediction


class Verdict(StrEnum):
    """What a rule says of one reply. Only `RIGHT` scores; `LEFT_OUT` is not counted at all, which the official rules do."""

    RIGHT = "right"
    WRONG = "wrong"
    UNRESOLVED = "unresolved"
    LEFT_OUT = "left out"


def mmau_official(row: Prediction) -> Verdict:
    """
    MMAU's rule (evaluation.py of github.com/Sakshi113/MMAU; MMAR has the same): with words as runs of `\\w` in lower case,
    the reply must hold every word of the answer and none that is only in options with other words than the answer's.

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
    that is one of A to D, else the last but one ("The answer is A."). Of options with the same text the first is right.

    Rows without a reply, and those in which neither character is a label, are left out: the rule's flaw, since
    a model gains by not answering.

    Raises:
        `ValueError`: a row without an answer or without options, or whose answer is none of them.
    """
    position = _position(row)
    reply = "" if row.reply is None else row.reply.strip().replace("\n", "")
    label = next((character for character in (reply[:1], reply[-2:-1]) if character and character in "ABCD"), None)
    if label is None:
        return Verdict.LEFT_OUT
    return Verdict.RIGHT if "ABCD".index(label) == position else Verdict.WRONG


def content(row: Prediction) -> Verdict:
    """
    Right if the reply means the answer, see `resolve`. No reply or an empty one is wrong.

    Raises:
        `ValueError`: a row without an answer or without options, or whose answer is none of them.
    """
    answer = row.choices[_position(row)]
    if row.reply is None or not row.reply.strip():
        return Verdict.WRONG
    option = resolve(row.reply, row.choices)
    if option is None:
        return Verdict.UNRESOLVED
    return Verdict.RIGHT if option == answer else Verdict.WRONG


RULES: dict[str, Callable[[Prediction], Verdict]] = {
    "mmau-official": mmau_official,
    "air-bench-official": air_bench_official,
    "content": content,
}


def is_right(row: Prediction, rule: str = "content") -> bool:
    """Whether a rule, a name in `RULES`, says that a reply is right. What it leaves out is not. Errors are the rule's."""
    return RULES[rule](row) is Verdict.RIGHT


def accuracies(
    official: str, replies: Sequence[str | None], references: Sequence[Mapping[str, Any]]
) -> dict[str, float | int | None]:
    """
    Both accuracies of replies to the same questions, as the metrics in metrics/ return them.

    Args:
        official: name of the benchmark's own rule in `RULES`.
        replies: `None` where there is none.
        references: `answer` and `choices` of each question.

    Returns:
        `accuracy` (official, of the `n` replies that rule counts; `None` for none), `content_accuracy` of all, and how many
        were `unresolved` by content.

    Raises:
        `ValueError`: no references, not one for each reply, or as in the rules.
    """
    if not references or len(replies) != len(references):
        raise ValueError(f"got {len(replies)} replies for {len(references)} references; expected as many, and some.")
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


def resolve(reply: str, choices: Sequence[str]) -> str | None:
    """
    The text of the option that a reply means, or `None` where it means none or might mean several. In this order:

    1. The reply, or what is left of it without wrappers and label, is an option: as it is written, else without regard to
       case, outer punctuation and a leading article. Word order counts: options may differ in nothing else.
    2. A letter alone ("B", "(b)") is a label, unless the options are letters or chords themselves.
    3. The reply names exactly one option. An option within a longer one that is named ("Funk" in "Funk rock") is not
       named, nor is one of a single letter. A reply with a negation means none, unless options say "no" or "not" too.
    4. A label before other words that name no option and negate nothing.
    """
    option = _same(reply, choices)
    if option is not None:
        return option
    text = _unwrap(reply)
    if text is None:
        return None
    label, rest = _split_label(text)
    for part in (text, rest):
        option = _same(part, choices)
        if option is not None:
            return option
    labelled = _labelled(label, choices)
    if not _fold(rest):
        return labelled
    named, others = _named(_fold(rest), choices)
    negated = _NEGATION.search(others) and not any(_NEGATION.search(choice.lower()) for choice in choices)
    if negated or len(named) > 1:
        return None
    if named:
        return named.pop()
    others_said = {letter.upper() for match in _LABELS.findall(rest) for letter in match if letter}
    return labelled if all(_labelled(letter, choices) in (labelled, None) for letter in others_said) else None


# Matched from the start, never searched for: replies that repeat themselves for pages take no longer than their length.
_THOUGHTS = re.compile(r".*</think>|\s*<think>.*", re.DOTALL | re.IGNORECASE)  # cut off ones too
_ANSWER_TAG = re.compile(r".*<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
# "The answer is ...", "Answer: ..."; the last of them, since reasons come before it.
_LEAD_IN = re.compile(
    r".*\b(?:answer|(?:correct|right|best) (?:option|choice))(?:\s+(?:is|would be|should be)\b\s*:?|\s*:)\s*",
    re.DOTALL | re.IGNORECASE,
)
_TAIL = re.compile(r"\sis (?:the )?(?:correct|right|best)(?: (?:answer|option|choice))?\W*$", re.IGNORECASE)
# "B", "B.", "(B)", "option B"; "B. text", "B: text", "B) text", "(B) text", "B - text"; not "B:maj", "B flat", "A.M.".
_LABEL = re.compile(
    r"(?:(?:option|choice|answer)\s+)?[(\[]?([a-z])(?:[)\]]+\s*[.:]?\s*|[.:]\s+|\s+[-–]\s+|\W*$)", re.IGNORECASE
)
# Further labels after the first: "(A) or (B)", "A. B", "B, maybe C".
_LABELS = re.compile(r"\(([a-zA-Z])\)|\b(?:or|and|maybe)\s+([A-Z])\b|\b([A-Z])\W*$")
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|rather|instead)\b|n't\b")
# "Bm7", "F#:7/1", "A:maj(#11)/1", "Eb/G", and single letters.
_CHORD = re.compile(r"[a-zA-Z]|[A-G][#b♯♭]?(?:maj|min|m|M|h?dim|aug|sus|add)?[\d#b()*,+]*(?:[:/]\S*)?")
# "A" is a note in "A minor", where taking it away would leave the end of any other key.
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?!(?:major|minor|sharp|flat|maj|min)\b)(?=\S)")
_OUTER = " \t\r\n.,;:!?\"'`*_()[]<>"


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _answer(row: Prediction) -> str:
    if row.answer is None:
        raise ValueError(f"question {row.id} has no answer to compare with.")
    if not row.choices:
        raise ValueError(f"question {row.id} has no options; an open question needs a judge, a transcript --rule wer.")
    return row.answer


def _position(row: Prediction) -> int:
    answer = _answer(row)
    if answer not in row.choices:
        raise ValueError(f"question {row.id}: the answer {answer!r} is none of the options {list(row.choices)}.")
    return row.choices.index(answer)


def _fold(text: str) -> str:
    """For comparison: lower case, single spaces, without quotation marks, Markdown and punctuation around, and article."""
    text = text.casefold().replace("’", "'").replace("“", '"').replace("”", '"').replace("**", "")
    return _ARTICLE.sub("", " ".join(text.split()).strip(_OUTER))


def _same(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text is, if it is one and only one."""
    if text.strip() in choices:
        return text.strip()
    folded = _fold(text)
    found = {choice for choice in choices if folded and _fold(choice) == folded}
    return found.pop() if len(found) == 1 else None


def _unwrap(reply: str) -> str | None:
    """The reply without thoughts, tags and lead-in; `None` where the lead-in is negated ("I do not think the answer is B")."""
    thoughts = _THOUGHTS.match(reply)
    text = (reply[thoughts.end() :] if thoughts else reply).replace("**", "")
    tagged = _ANSWER_TAG.match(text)
    text = _TAIL.sub("", (tagged.group(1) if tagged else text).strip())
    lead_in = _LEAD_IN.match(text)
    if lead_in is None or not text[lead_in.end() :].strip(_OUTER):
        return text
    sentence = re.split(r"[.!?\n]", lead_in.group())[-1]
    return None if _NEGATION.search(_fold(sentence)) else text[lead_in.end() :]


def _split_label(text: str) -> tuple[str | None, str]:
    """A leading label in upper case, and the rest; ("B", "text") for "(b) text"."""
    text = text.strip(" \t\r\n*_`\"'")
    label = _LABEL.match(text)
    return (label.group(1).upper(), text[label.end() :]) if label else (None, text)


def _labelled(label: str | None, choices: Sequence[str]) -> str | None:
    """The option with this label, where letters can be nothing but labels."""
    if label is None or any(_CHORD.fullmatch(_first_word(choice)) for choice in choices):
        return None
    position = ord(label) - ord("A")
    return choices[position] if position < len(choices) else None


def _first_word(choice: str) -> str:
    """The first word, if it can be a chord: "A" and "I" before others are an article or the speaker."""
    first, *more = choice.split() or [""]
    return "" if more and len(first) == 1 else first


def _named(text: str, choices: Sequence[str]) -> tuple[set[str], str]:
    """The options named in a folded text, and the text without them."""
    spans: dict[tuple[int, int], set[str]] = {}
    for choice in set(choices):
        folded = _fold(choice)
        if len(folded) > 1 or folded.isdigit():
            # Not in the middle of a word, a number ("1.63"), a chord ("C#", "A:maj/1") or "twenty-three".
            pattern = rf"(?<![\w#])(?<!\w[./:-]){re.escape(folded)}(?![\w#]|[./:-]\w)"
            for match in re.finditer(pattern, text):
                spans.setdefault(match.span(), set()).add(choice)
    outer: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not outer or end > outer[-1][1]:  # else within the last one, which began no later
            outer.append((start, end))
    named = {choice for span in outer for choice in spans[span]}
    for start, end in reversed(outer):
        text = f"{text[:start]} {text[end:]}"
    return named, text
