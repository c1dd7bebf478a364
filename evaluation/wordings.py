"""The same questions in other words: does a model choose an option, or react to how it is asked?

You supply the paraphrases, one line per question:
`{"id": "7", "questions": ["Which animal barks?", "What barks here?"]}`. Options and clips stay the same. The score has
the accuracy of each wording, "1" being each question's first paraphrase, and the consistency rate of orders.py: the
share of pairs of wordings in which the replies mean the same option. López et al. 2025 (arXiv 2510.04584) rephrase
questions in this way. No number here shows whether your paraphrases ask the same thing: have a person read them.
Run: `falcon3-audio evaluate ... --paraphrases FILE`
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .load_checks import FIELD, RowFault, id_of, object_of, read_rows
from .orders import WORDING, as_variants
from .questions import Question, QuestionSet, spelled_id


@dataclass(frozen=True)
class Paraphrases:
    """
    Attributes:
        questions: paraphrases of each question, by its id.
        sha256: of the file they come from, by its name.
    """

    questions: dict[str, tuple[str, ...]]
    sha256: dict[str, str]


def read_paraphrases(path: str | Path) -> Paraphrases:
    """
    Reads JSON lines, or a JSON list, of objects with `id` and `questions`.

    Raises:
        `ValueError`: no such file, no rows, a repeated id, or a row without an id or without a list of one or more
            texts.
    """
    path = Path(path)
    rows, sha256 = read_rows(path)
    found: dict[str, tuple[str, ...]] = {}
    for place, row in rows:
        try:
            identity, questions = _of_row(row)
        except RowFault as fault:
            raise ValueError(f"{path}, {place}: {fault.detail}.") from None
        if identity in found:
            raise ValueError(f"{path}, {place}: an earlier row has the id {identity!r}.")
        found[identity] = questions
    if not found:
        raise ValueError(
            f'{path} holds no rows; expected one for each question, such as {{"id": "7", "questions": ["..."]}}.'
        )
    return Paraphrases(found, sha256)


def _of_row(row: Any) -> tuple[str, tuple[str, ...]]:
    questions = object_of(row).get("questions")
    texts = questions if isinstance(questions, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowFault(FIELD, f"'questions' is {questions!r}, expected a list of one or more texts")
    return spelled_id(id_of(row)), tuple(texts)


def in_wordings(questions: QuestionSet, paraphrases: Paraphrases) -> QuestionSet:
    """
    Each question as published and in its other wordings, with ids "ID#1", "ID#2", ...; those without options appear
    once. All have the group `orders.WORDING`.

    Raises:
        `ValueError`: paraphrases of questions that do not exist or have no options, repeated wordings, and questions
            with options but without paraphrases: wordings of different questions cannot be compared.
    """
    file = ", ".join(paraphrases.sha256)
    known = {spelled_id(question.id): question for question in questions.questions}
    for identity, texts in paraphrases.questions.items():
        if identity not in known:
            raise ValueError(f"{file} paraphrases {identity!r}, which is not a question's id.")
        if not known[identity].choices:
            raise ValueError(f"{file} paraphrases {identity!r}, which has no options by which to compare replies.")
        said = [text.strip() for text in (known[identity].question, *texts)]
        if len(set(said)) < len(said):
            raise ValueError(f"{file}: two wordings of {identity!r} are the same.")
    without = [
        identity for identity, question in known.items() if question.choices and identity not in paraphrases.questions
    ]
    if without:
        raise ValueError(
            f"{file} has no paraphrases for {len(without)} of {len(known)} questions (such as {without[0]!r}); write "
            "a line for each."
        )
    asked = (row for question in questions.questions for row in _wordings(question, paraphrases))
    return replace(questions, questions=tuple(asked))


def _wordings(question: Question, paraphrases: Paraphrases) -> Iterator[Question]:
    others = (replace(question, question=text) for text in paraphrases.questions.get(spelled_id(question.id), ()))
    return as_variants(question, others, WORDING)


__all__ = ["Paraphrases", "in_wordings", "read_paraphrases"]
