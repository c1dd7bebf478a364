"""Whether a reply follows an instruction about its form: MMAU-Pro's 27 checks, each decided by a rule.

They are the published script's (evaluate_mmau_pro_comprehensive.py of github.com/sonalkum/MMAUPro, category
"instruction following"), with its peculiarities: words are split at white space, paragraphs are separated by "***", a
postscript can be anywhere, and a forbidden word also counts inside another word. Three things differ: an unknown task
and a missing parameter are errors here and failures there, and an empty reply always fails.
Run: `follows({"task": "Number Words (at most)", "N": 20}, "A dog barks.")`
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from .load_checks import FIELD, RowFault


Check = Callable[..., bool]


def _letters(text: str, kept: str = "") -> str:
    return re.sub(rf"[^a-zA-Z{kept}]", "", text).lower()


def _words(reply: str) -> int:
    return len(reply.split())


def _capitals(reply: str) -> int:
    return sum(word.isupper() for word in reply.split())


def _sentences(reply: str) -> int:
    """By NLTK's Punkt, as published; its data are a separate download. Raises `ValueError` if either is missing."""
    try:
        from nltk.tokenize import sent_tokenize

        return len(sent_tokenize(reply))
    except (ImportError, LookupError) as error:
        raise ValueError(
            "MMAU-Pro counts sentences with NLTK's Punkt, which is not installed: pip install 'falcon3-audio[eval]', "
            f"and python -m nltk.downloader punkt_tab ({type(error).__name__})."
        ) from error


def _filled(parts: list[str]) -> int:
    return sum(bool(part.strip()) for part in parts)


def _frequency(reply: str, keyword: str) -> int:
    return len(re.findall(rf"\b{re.escape(keyword.lower())}\b", reply.lower()))


def _within(reply: str, words: str) -> list[bool]:
    return [word.lower() in reply.lower() for word in words.split(", ")]


def _sections(reply: str, splitter: str) -> int:
    return _filled(re.split(rf"\s*{re.escape(splitter)}\s*", reply.strip()))


def _two_responses(reply: str) -> bool:
    parts = [part.lower().strip() for part in reply.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


# By the published `task_identifier`: the parameters that its `kwargs` must have, and the check, which takes them by name.
# "question" is the row's own question.
CHECKS: dict[str, tuple[tuple[str, ...], Check]] = {
    "Include Keywords": (("keywords",), lambda reply, keywords: all(_within(reply, keywords))),
    "Keyword Frequency": (("keyword", "N"), lambda reply, keyword, N: _frequency(reply, keyword) == N),
    "Forbidden Words": (("forbidden_words",), lambda reply, forbidden_words: not any(_within(reply, forbidden_words))),
    "Number Paragraphs": (("N",), lambda reply, N: _filled(reply.split("***")) == N),
    "Number Words (at least)": (("N",), lambda reply, N: _words(reply) >= N),
    "Number Words (at most)": (("N",), lambda reply, N: _words(reply) <= N),
    "Number Words (range)": (("N1", "N2"), lambda reply, N1, N2: N1 <= _words(reply) <= N2),
    "Number Sentences (at least)": (("N",), lambda reply, N: _sentences(reply) >= N),
    "Number Sentences (at most)": (("N",), lambda reply, N: _sentences(reply) <= N),
    "Number Sentences (range)": (("N1", "N2"), lambda reply, N1, N2: N1 <= _sentences(reply) <= N2),
    "Postscript": (
        ("postscript_marker",),
        lambda reply, postscript_marker: _letters(postscript_marker) in _letters(reply),
    ),
    "Number Placeholder": (("N",), lambda reply, N: len(re.findall(r"\[[^\]]+\]", reply)) >= N),
    "Number Bullets": (("N",), lambda reply, N: len(re.findall(r"(?:^|\n)\s*\*\s+", reply)) == N),
    "Title": ((), lambda reply: re.search(r"<<[^>]+>>", reply) is not None),
    "Minimum Number Highlighted Section": (("N",), lambda reply, N: len(re.findall(r"\*([^*]+)\*", reply)) >= N),
    "Multiple Sections": (
        ("N", "section_splitter"),
        lambda reply, N, section_splitter: _sections(reply, section_splitter) == N,
    ),
    "Repeat Prompt": (
        ("question",),
        lambda reply, question: reply.strip().lower().startswith(question.strip().lower()),
    ),
    "Two Responses": ((), _two_responses),
    "All Uppercase": ((), str.isupper),
    "All Lowercase": ((), str.islower),
    "All-capital Words (at least)": (("N",), lambda reply, N: _capitals(reply) >= N),
    "All-capital Words (at most)": (("N",), lambda reply, N: _capitals(reply) <= N),
    "All-capital Words (range)": (("N1", "N2"), lambda reply, N1, N2: N1 <= _capitals(reply) <= N2),
    "Start Checker": (
        ("start_phrase",),
        lambda reply, start_phrase: _letters(reply, " ").startswith(_letters(start_phrase, " ")),
    ),
    "End Checker": (
        ("end_phrase",),
        lambda reply, end_phrase: _letters(reply, " ").endswith(_letters(end_phrase, " ")),
    ),
    "Quotation": ((), lambda reply: reply.strip().startswith('"') and reply.strip().endswith('"')),
    "No Commas": ((), lambda reply: "," not in reply),
}
NUMBERS = ("N", "N1", "N2")


def check_of(task: Any, parameters: Any, question: str) -> dict[str, Any]:
    """
    A row's check, `{"task": ..., "N": ...}`, for `Question.check`.

    Args:
        task: the row's `task_identifier`, a key of `CHECKS`.
        parameters: its `kwargs`, in which parquet has a null for each parameter of other tasks.
        question: the row's question.

    Raises:
        `RowFault`: an unknown task, or a parameter that is missing or of the wrong type.
    """
    if task not in CHECKS:
        raise RowFault(FIELD, f"'task_identifier' is {task!r}, which is not one of the checks ({', '.join(CHECKS)})")
    if not isinstance(parameters, (Mapping, type(None))):
        raise RowFault(FIELD, f"'kwargs' is {parameters!r}, expected an object")
    given = {**(parameters or {}), "question": question}
    return {"task": task} | {name: _parameter(task, name, given.get(name)) for name in CHECKS[task][0]}


def _parameter(task: str, name: str, value: Any) -> Any:
    if name in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not float(value).is_integer():
            raise RowFault(FIELD, f"{name!r} of {task!r} is {value!r}, expected a whole number")
        return int(value)
    if not isinstance(value, str) or not value.strip():
        raise RowFault(FIELD, f"{name!r} of {task!r} is {value!r}, expected a text")
    return value


def follows(check: Mapping[str, Any], reply: str) -> bool:
    """
    Whether a reply passes a check from `check_of`.

    Raises:
        `ValueError`: a check that counts sentences, without NLTK and its data.
    """
    parameters = {name: value for name, value in check.items() if name != "task"}
    return bool(reply.strip()) and bool(CHECKS[check["task"]][1](reply, **parameters))


__all__ = ["CHECKS", "check_of", "follows"]
