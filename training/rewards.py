"""Reward functions of grpo.py, for replies to questions with a known answer, as TRL calls them.

A recipe lists them in `reward_funcs`: those of `REWARDS` by name, others as `my_module.my_reward`, which is imported
from the installed packages or from the working directory of the run. Such a function gets `prompts`, `completions`,
`answer`, `choices` and `origin`, each a list, and returns a number for each completion (or `None` for those that it
does not judge).
"""

import importlib
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from falcon3_audio.evaluation.read_option import resolve


# R1-AQA's wording.
TAGS_REQUEST = " Output the final answer in <answer> </answer>."
SIGNS = str.maketrans({"♯": "#", "\N{MINUS SIGN}": "-"})
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def exact_answer(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """
    Reward 1 for a reply with exactly the words of the right answer, in their order, else 0. Case and punctuation are
    ignored (`words`). In a reply with `<answer>` tags, only the text in the first pair is read.
    """
    replies = [completion[0]["content"] for completion in completions]
    tagged = [TAGGED.search(reply) for reply in replies]
    said = [found.group(1) if found else reply for found, reply in zip(tagged, replies)]
    return [float(same_words(got, right)) for got, right in zip(said, answer)]


def answer_format(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Reward 1 for a reply that ends with an answer in `<answer> </answer>` and has no other tags, else 0."""
    replies = [completion[0]["content"].strip() for completion in completions]
    return [
        float(reply.endswith("</answer>") and reply.count("<answer>") == reply.count("</answer>") == 1)
        for reply in replies
    ]


def same_words(reply: str, answer: str) -> bool:
    """Whether both have the same words in the same order, ignoring case and punctuation."""
    return words(reply) == words(answer)


def words(text: str) -> list[str]:
    """
    The words of a text in lower case and in one Unicode normal form (NFC), with the marks on their letters (vowels in
    Hindi, tones in Thai), and the signs that are not punctuation: `#`, `♭`, `+`, and a minus before a number.
    """
    text = unicodedata.normalize("NFC", text.lower()).translate(SIGNS)
    marks = "".join({letter for letter in text if unicodedata.category(letter).startswith("M")})
    return re.findall(rf"(?:(?<![\w{marks}])-(?=\d))?\w[\w{marks}]*|[#♭+]", text)


def content_answer(
    completions: list[list[dict[str, str]]], answer: list[str], choices: list[list[str]], **_: Any
) -> list[float]:
    """
    Reward 1 for a reply that means the right one of the row's options, by the rule "content" of `falcon3-audio
    evaluate`, else 0.
    """
    replies = [completion[0]["content"] for completion in completions]
    return [float(resolve(reply, options) == right) for reply, right, options in zip(replies, answer, choices)]


REWARDS: dict[str, Callable[..., list[float]]] = {
    "exact": exact_answer,
    "content": content_answer,
    "format": answer_format,
}


def load_rewards(names: Sequence[str]) -> list[Callable[..., Any]]:
    """
    The functions with these names or import paths.

    Raises a `ValueError` for one that does not exist, and any error that an imported module raises.
    """
    return [REWARDS[name] if name in REWARDS else _import(name) for name in names]


def _import(path: str) -> Callable[..., Any]:
    known = f"Built in are {', '.join(REWARDS)}; give others as my_module.my_reward."
    module, _, name = path.rpartition(".")
    if not module:
        raise ValueError(f"reward_funcs: there is no reward {path!r}. {known}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"reward_funcs: {path!r} cannot be imported: {error}. {known}") from error
    if not callable(found):
        raise ValueError(f"reward_funcs: {module} has no function {name!r}. {known}")
    return found
