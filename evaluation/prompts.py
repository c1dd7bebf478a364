"""The texts that put a question to a model. The name of the one that was used is part of every score.

Wording moves scores by points, so each is fixed here: those that others publish results with, word for word, and
"plain", which asks for the bare text of an option, the form that the official rules score best. In the terminal:
`python -m falcon3_audio.evaluation.prompts` prints each with an example.
"""

import sys
from collections.abc import Callable
from string import ascii_uppercase

from .questions import Question


AIR_BENCH = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D."
)
MMSU = "Choose the most suitable answer from options A, B, C, and D. You must respond with only A, B, C, or D."


def plain(question: Question) -> str:
    """The options one a line, and the request for the bare text of one; an open question stands alone."""
    if not question.choices:
        return question.question
    return "\n".join(
        [
            question.question,
            *question.choices,
            "Answer with one of these options, exactly as it is written above, and nothing else.",
        ]
    )


def r1_aqa(question: Question) -> str:
    """R1-AQA's, which writes the options as Python shows a list; its models answer between <answer> tags."""
    options = list(_choices(question))
    return (
        f"{question.question} Please choose the answer from the following options: {options}. "
        "Output the final answer in <answer> </answer>."
    )


def mmar(question: Question) -> str:
    """MMAR's own."""
    return "\n".join([question.question, "Select one option from the provided choices:", *_choices(question)])


def air_bench_foundation(question: Question) -> str:
    """
    AIR-Bench Foundation's own, with labelled options.

    Where a question has fewer than four, the published script writes "C. None"; here there is no such line, since it
    would offer an answer that is none.
    """
    return "\n".join([AIR_BENCH, question.question, *_labelled(question)])


def mmsu(question: Question) -> str:
    """
    MMSU's own, with labelled options.

    Where a question has fewer than four, the published script writes a label without a text; here there is no such line.
    """
    return f"{MMSU}\n\nQuestion: {question.question}\n\n" + "\n".join(_labelled(question))


def alone(question: Question) -> str:
    """The question's words and nothing else."""
    return question.question


def audio_world(question: Question) -> str:
    """As models of the audio world are trained, see `training.world.audio_world.build_prompt`."""
    return f"{question.question} Choose one: {', '.join(question.choices)}." if question.choices else question.question


def _labelled(question: Question) -> list[str]:
    """The options with the letters that these prompts name."""
    choices = _choices(question)
    if len(choices) > 4:
        raise ValueError(f"Question {question.id!r} has {len(choices)} options; the prompt has room for 4.")
    return [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices)]


def _choices(question: Question) -> tuple[str, ...]:
    if not question.choices:
        raise ValueError(
            f"Question {question.id!r} has no options to choose from; open questions are asked with the prompt "
            "'question' or 'plain'."
        )
    return question.choices


# Each takes a question, and raises a `ValueError` where the question does not fit it.
PROMPTS: dict[str, Callable[[Question], str]] = {
    "plain": plain,
    "r1-aqa": r1_aqa,
    "mmar": mmar,
    "air-bench-foundation": air_bench_foundation,
    "mmsu": mmsu,
    "question": alone,
    "audio-world": audio_world,
}


def main(arguments: list[str] | None = None) -> int:
    example = Question("example", (), "What animal is heard?", ("A dog", "A cat"))
    for name, prompt in PROMPTS.items():
        print(f"{name}:\n{prompt(example)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
