"""The questions of a benchmark about clips, read from its files by `load_*.py`.

Everything here is plain Python: scoring needs neither torch nor audio. Clips are read on demand, so a benchmark of
many gigabytes takes no memory.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


TASK_KEYS = ("task_name", "task")  # where benchmarks keep the task in a question's `groups`
NAMED = 3  # questions named in a message


@dataclass(frozen=True)
class Clip:
    """
    One audio clip.

    Attributes:
        name: its name in the benchmark's own files. Questions with the same name are about the same clip.
        read: returns the encoded file (wav, flac, mp3, ...) as bytes.
        path: of the file; `None` if the clip is in the benchmark's own file, whose digest covers it.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)
    path: Path | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> "Clip":
        return cls(str(path) if name is None else name, partial(Path(path).read_bytes), Path(path))


@dataclass(frozen=True)
class Question:
    """
    One question about a clip, or about several.

    Attributes:
        id: unique in its benchmark.
        audio: the clips, in the order in which they are heard.
        question: the text, without options and instructions.
        choices: the options' texts without labels such as "(A) "; empty for an open question.
        answer: verbatim one of `choices`, or the reference of an open question; `None` if the benchmark withholds it.
        groups: what scores are broken down by, such as `{"task": "sound", "difficulty": "easy"}`.
        description: the clip described in text (AIR-Bench Chat's `meta_info`), for a judge that cannot hear.
        check: the form that the question requires of the reply, if any (`instruction_checks.check_of`), as JSON.
        references: all equally good answers, such as the captions of a clip; `answer` is the first of them.
    """

    id: str
    audio: tuple[Clip, ...]
    question: str
    choices: tuple[str, ...] = ()
    answer: str | None = None
    groups: dict[str, str] = field(default_factory=dict)
    description: str | None = None
    check: dict[str, Any] | None = None
    references: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether it has neither options nor a check, so that no rule can judge a reply."""
        return not self.choices and self.check is None


@dataclass(frozen=True)
class QuestionSet:
    """
    The questions of a benchmark, and where they come from.

    Attributes:
        benchmark: its name in `benchmarks.BENCHMARKS`, such as "mmau".
        questions: in the order of the file.
        sha256: digest of each file that was read (hex), by file name. Published files have changed under the same
            name.
        left_out: ids of rows that the user asked to skip, by reason, such as `{"audio file missing": [...]}`.
    """

    benchmark: str
    questions: tuple[Question, ...]
    sha256: dict[str, str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def spelled_id(identity: str) -> str:
    """An id in one Unicode spelling, without outer white space; rows of two files with the same one are matched."""
    return unicodedata.normalize("NFC", identity.strip())


def some(ids: Sequence[str]) -> str:
    """How many questions, and the first few by name."""
    more = ", ..." if len(ids) > NAMED else ""
    return f"{len(ids)} question{'' if len(ids) == 1 else 's'} ({', '.join(ids[:NAMED])}{more})"


def file_sha256(path: str | Path) -> str:
    """The digest of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
