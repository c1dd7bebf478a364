"""The same questions in other words: whether a model chooses an option, or reacts to how it is asked.

The other words come from you, a line for each question: `{"id": "7", "questions": ["Which animal barks?", "What barks here?"]}`. Options and
clips stay as they are. The score has the accuracy of each wording, "1" being each question's first other one, and the consistency rate
of orders.py: in how many pairs of wordings the replies mean the same option. López et al. 2025 (arXiv 2510.04584) rephrase questions so.
Whether your words ask the same thing, no number here says: have somebody read them.
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
        questions: other words of each question, by its id.
        sha256: of the file they are from, by its name.
    """

    questions: dict[str, tuple[str, ...]]
    sha256: dict[str, str]


def read_paraphrases(path: str | Path) -> Paraphrases:
    """
    Reads JSON lines, or a JSON list, of objects with `id` and `questions`.

    Raises:
        `ValueError`: no such file, no rows, an id twice, or a row without an id or with something else than a list of one or more texts.
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
    Each question as it is published and in its other words, under the ids "ID#1", "ID#2", ...; those without options once. All
    have the group `orders.WORDING`.

    Raises:
        `ValueError`: paraphrases of questions that are not there or have no options, those that say the same words twice, and
            questions with options that have none: wordings of other questions could not be compared.
    """
    file = ", ".join(paraphrases.sha256)
    known = {spelled_id(question.id): question for question in questions.questions}
    for identity, texts in paraphrases.questions.items():
        if identity not in known:
            raise ValueError(f"{file} paraphrases {identity!r}, which is no question's id.")
        if not known[identity].choices:
            raise ValueError(
                f"{file} paraphrases {identity!r}, which has no options to tell by whether replies mean the same."
            )
        said = [text.strip() for text in (known[identity].question, *texts)]
        if len(set(said)) < len(said):
            raise ValueError(f"{file}: two wordings of {identity!r} are the same.")
    without = [
        identity for identity, question in known.items() if question.choices and identity not in paraphrases.questions
    ]
    if without:
        raise ValueError(
            f"{file} has no other words for {len(without)} of {len(known)} questions ({without[0]!r} for one): write a line for each."
        )
    asked = (row for question in questions.questions for row in _wordings(question, paraphrases))
    return replace(questions, questions=tuple(asked))


def _wordings(question: Question, paraphrases: Paraphrases) -> Iterator[Question]:
    others = (replace(question, question=text) for text in paraphrases.questions.get(spelled_id(question.id), ()))
    return as_variants(question, others, WORDING)


__all__ = ["Paraphrases", "in_wordings", "read_paraphrases"]
