"""What `generate` asks of a model: outcomes for questions. local_model.py and remote_model.py do it.

An outcome is a reply or an error, for one question. Errors of one clip or question cost that row; `RunStopped` ends the
run where the rest would fail as well, or would be answered without hearing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .endpoint import EndpointError
from .predictions import ANSWERED, FAILED
from .questions import Clip, Question


# Of one question: `id`, `status`, `reply` and `error` as in `Prediction`, and what else there is to record.
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A question as it is put to a model: the words, and the clips that are played."""

    question: Question
    prompt: str
    heard: tuple[Clip, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(clip.name for clip in self.heard)


class RunStopped(Exception):
    """Going on would make no sense; what was finished is kept."""


class NoAudio(RunStopped):
    """The model was not given the audio."""


class Answerer(Protocol):
    """
    Attributes:
        workers: how many threads may call `answer` at once.
        packages: whose versions matter.
    """

    workers: int
    packages: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """What decides the answers, as JSON: a run goes on only with the same."""
        ...

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """What is given to `answer` at once; depends on all the questions, never on which are left."""
        ...

    def check_audio(self) -> str:
        """How it is known that the model hears, in words. Raises `NoAudio` where it does not."""
        ...

    def prepare(self, clips: Sequence[Clip]):
        """Reads ahead what the next batch plays and this one does not. Called from another thread, and only for one worker."""
        ...

    def answer(self, items: list[Item]) -> Iterator[list[Outcome]]:
        """The outcomes of a batch, as they are finished. Raises `RunStopped` and `EndpointUnavailable`."""
        ...


def by_clip(items: Sequence[Item]) -> list[list[Item]]:
    """The questions about the same clips together, in the order in which clips occur first."""
    groups: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        groups.setdefault(item.names, []).append(item)
    return list(groups.values())


def answered(item: Item, reply: str, **recorded: Any) -> Outcome:
    return {"id": item.question.id, "status": ANSWERED, "reply": reply, "error": None, **recorded}


def failed(item: Item, error: Exception) -> Outcome:
    said = str(error) if isinstance(error, (EndpointError, ValueError)) else f"{type(error).__name__}: {error}"
    return {"id": item.question.id, "status": FAILED, "reply": None, "error": " ".join(said.split())}
