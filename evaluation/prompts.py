"""The prompts that ask a model a question. The name of the prompt is part of every score.

Wording changes scores by points, so each prompt is fixed: those with which others publish results, verbatim, and
"plain", which asks for only the text of an option, the form that the official rules score best. In the terminal:
`python -m falcon3_audio.evaluation.prompts` prints each with an example. `read_prompt` reads a custom one from a file.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter, ascii_uppercase

from .questions import Question


AIR_BENCH = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, "
    "you may only choose A or B or C or D."
)
MMSU = "Choose the most suitable answer from options A, B, C, and D. You must respond with only A, B, C, or D."


@dataclass(frozen=True)
class Prompt:
    """
    Attributes:
        name: the prompt's name in scores: a name in `PROMPTS`, or a file's.
        fill: returns the prompt for a question; raises a `ValueError` if the question does not fit.
        text: the content of a prompt file, with its placeholders.
    """

    name: str
    fill: Callable[[Question], str]
    text: str | None = None


def plain(question: Question) -> str:
    """The options, one per line, and the request for only the text of one; an open question is used as it is."""
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
    """R1-AQA's, with the options as a Python list; its models answer between <answer> tags."""
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

    If a question has fewer than four, the published script writes "C. None"; here there is no such line, since it
    would offer an answer that does not exist.
    """
    return "\n".join([AIR_BENCH, question.question, *_labelled(question)])


def mmsu(question: Question) -> str:
    """
    MMSU's own, with labelled options.

    If a question has fewer than four, the published script writes a label without a text; here there is no such line.
    """
    return f"{MMSU}\n\nQuestion: {question.question}\n\n" + "\n".join(_labelled(question))


def alone(question: Question) -> str:
    """Only the question's text."""
    return question.question


def sound_alone(question: Question) -> str:
    """No text: the clip asks the question."""
    return ""


def audio_world(question: Question) -> str:
    """As models of the audio world are trained, see `training.world.audio_world.build_prompt`."""
    return f"{question.question} Choose one: {', '.join(question.choices)}." if question.choices else question.question


def _labelled(question: Question, most: int = 4) -> list[str]:
    """The options with letters; the published prompts name four."""
    choices = _choices(question)
    if len(choices) > most:
        raise ValueError(f"Question {question.id!r} has {len(choices)} options; the prompt has room for {most}.")
    return [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices)]


def _choices(question: Question) -> tuple[str, ...]:
    if not question.choices:
        raise ValueError(
            f"Question {question.id!r} has no options to choose from; open questions are asked with the prompt "
            "'question' or 'plain'."
        )
    return question.choices


# The placeholders of a custom prompt file, by the name in braces.
PLACEHOLDERS: dict[str, Callable[[Question], str]] = {
    "question": lambda question: question.question,
    "choices": lambda question: "\n".join(_choices(question)),
    "labelled_choices": lambda question: "\n".join(_labelled(question, len(ascii_uppercase))),
    "inline_choices": lambda question: ", ".join(_choices(question)),
}


def read_prompt(path: str | Path) -> Prompt:
    """
    A prompt from a text file with `PLACEHOLDERS` such as {question}, where {{ and }} stand for braces. Outer white
    space is removed.

    Raises:
        `ValueError`: a file that is empty or not text, or has braces that are not a placeholder.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig").strip()
        parts = [(before, name, form, conversion) for before, name, form, conversion in Formatter().parse(text)]
    except ValueError as error:  # not UTF-8, or a single brace
        raise ValueError(f"{path} is not a prompt: {error}. Write {{{{ and }}}} for literal braces.") from None
    if not text:
        raise ValueError(f"{path} is empty; expected the text of a prompt.")
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or form or conversion):
            got = f"{{{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}}}"
            known = ", ".join(f"{{{placeholder}}}" for placeholder in PLACEHOLDERS)
            raise ValueError(f"{path} has the placeholder {got}; known are {known}. Write {{{{ and }}}} for braces.")

    def fill(question: Question) -> str:
        return "".join(before + (PLACEHOLDERS[name](question) if name else "") for before, name, _, _ in parts)

    return Prompt(f"file {Path(path).name}", fill, text)


# Each takes a question, and raises a `ValueError` if the question does not fit.
PROMPTS: dict[str, Callable[[Question], str]] = {
    "plain": plain,
    "r1-aqa": r1_aqa,
    "mmar": mmar,
    "air-bench-foundation": air_bench_foundation,
    "mmsu": mmsu,
    "question": alone,
    "sound-alone": sound_alone,
    "audio-world": audio_world,
}


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser(description="Prints every prompt with an example question.").parse_args(arguments)
    example = Question("example", (), "What animal is heard?", ("A dog", "A cat"))
    for name, prompt in PROMPTS.items():
        print(f"{name}:\n{prompt(example)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
