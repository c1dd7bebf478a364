"""What a reply to a question with a known answer earns: the reward functions of grpo.py, as TRL calls them."""

import re
from typing import Any


# R1-AQA's words for it.
TAGS_REQUEST = " Output the final answer in <answer> </answer>."
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def exact_answer(completions: list[list[dict[str, str]]], answer: list[str], **_: Any) -> list[float]:
    """
    Reward 1 for a reply with the words of the right answer and no others, in their order, else 0. Case and punctuation
    do not count. Of a reply with `<answer>` tags only what stands in the first pair of them is read.
    """
    replies = [completion[0]["content"] for completion in completions]
    tagged = [TAGGED.search(reply) for reply in replies]
    said = [found.group(1) if found else reply for found, reply in zip(tagged, replies)]
    return [float(same_words(got, right)) for got, right in zip(said, answer)]


def answer_format(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """Reward 1 for a reply that ends with an answer in `<answer> </answer>`, its only one, else 0."""
    replies = [completion[0]["content"].strip() for completion in completions]
    return [
        float(reply.endswith("</answer>") and reply.count("<answer>") == reply.count("</answer>") == 1)
        for reply in replies
    ]


def same_words(reply: str, answer: str) -> bool:
    """Whether both have the same words in the same order, whatever their case and punctuation."""
    return words(reply) == words(answer)


def words(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"\w+", text.lower())
