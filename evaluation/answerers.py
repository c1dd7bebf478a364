"""The interface of a model that `generate` asks: outcomes for questions. See local_model.py and remote_model.py.

An outcome is a reply or an error for one question. An error of one clip or question costs only that row; `RunStopped`
ends the run if the rest would fail too, or would be answered without hearing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .endpoint import EndpointError, EndpointFailed
from .predictions import ANSWERED, FAILED
from .questions import Clip, Question


# For one question: `id`, `status`, `reply` and `error` as in `Prediction`, and anything else to record.
Outcome = dict[str, Any]
SERVER_FAILED = "server_failed"  # true in outcomes of questions that the server may answer later


@dataclass(frozen=True)
class Item:
    """A question as a model gets it: the prompt and the clips that are played."""

    question: Question
    prompt: str
    heard: tuple[Clip, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(clip.name for clip in self.heard)


class RunStopped(Exception):
    """Continuing would make no sense; finished questions are kept."""


class NoAudio(RunStopped):
    """The model did not get the audio."""


class Answerer(Protocol):
    """
    Attributes:
        workers: how many threads may call `answer` at the same time.
        packages: names of the packages whose versions matter.
    """

    workers: int
    packages: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """The settings that decide the answers, as JSON. A run resumes only with the same settings."""
        ...

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """The batches for `answer`. They depend on all the questions, never on which are left."""
        ...

    def check_audio(self) -> str:
        """
        Returns the evidence that the model hears, in words.

        Raises `NoAudio` if it does not, `EndpointFailed` if that cannot be known now, and `EndpointUnavailable`.
        """
        ...

    def prepare(self, clips: Sequence[Clip]):
        """Reads clips that the next batch needs and this one does not. Called from another thread, for one worker."""
        ...

    def answer(self, items: list[Item]) -> Iterator[list[Outcome]]:
        """Yields the outcomes of a batch as they finish. Raises `RunStopped` and `EndpointUnavailable`."""
        ...


def by_clip(items: Sequence[Item]) -> list[list[Item]]:
    """Groups questions about the same clips, in the order in which the clips first occur."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(item.names, []).append(item)
    return list(groups.values())


def answered(item: Item, reply: str, **recorded: Any) -> Outcome:
    return {"id": item.question.id, "status": ANSWERED, "reply": reply, "error": None, **recorded}


def failed(item: Item, error: Exception) -> Outcome:
    said = str(error) if isinstance(error, (EndpointError, ValueError)) else f"{type(error).__name__}: {error}"
    later = {SERVER_FAILED: True} if isinstance(error, EndpointFailed) else {}
    return {"id": item.question.id, "status": FAILED, "reply": None, "error": " ".join(said.split()), **later}
