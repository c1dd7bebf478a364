"""What a benchmark asks: questions about clips, read from its files by `load_*.py`.

Everything here is plain Python: scoring needs neither torch nor audio. Clips are read when they are asked for, so a
benchmark of many gigabytes costs no memory.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


TASK_KEYS = ("task_name", "task")  # where benchmarks keep the task in a question's `groups`
NAMED = 3  # questions that a message names


@dataclass(frozen=True)
class Clip:
    """
    One sound.

    Attributes:
        name: as the benchmark's own files call it. Questions with the same name are about the same clip.
        read: returns the encoded file (wav, flac, mp3, ...) as bytes.
    """

    name: str
    read: Callable[[], bytes] = field(compare=False, repr=False)

    @classmethod
    def from_file(cls, path: str | Path, name: str | None = None) -> "Clip":
        return cls(str(path) if name is None else name, partial(Path(path).read_bytes))


@dataclass(frozen=True)
class Question:
    """
    One question about a clip, or about several.

    Attributes:
        id: unique in its benchmark.
        audio: the clips, in the order in which they are heard.
        question: the words, without options and instructions.
        choices: the options' texts without labels such as "(A) "; empty for an open question.
        answer: verbatim one of `choices`, or the reference of an open question; `None` where the benchmark keeps it.
        groups: what scores are broken down by, such as `{"task": "sound", "difficulty": "easy"}`.
        description: what the clip holds, in words (AIR-Bench Chat's `meta_info`), for a judge that cannot hear.
        check: what the reply must look like where the question asks for that (`instruction_checks.check_of`), as JSON.
        references: all answers that are as good, such as the captions of a clip; `answer` is the first of them.
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


@dataclass(frozen=True)
class QuestionSet:
    """
    The questions of a benchmark, and where they are from.

    Attributes:
        benchmark: its name in `benchmarks.BENCHMARKS`, such as "mmau".
        questions: in the order of the file.
        sha256: digest of each file that was read (hex), by file name. Published files have changed under one name.
        left_out: ids of rows the user asked to go on without, by reason, such as `{"audio file missing": [...]}`.
    """

    benchmark: str
    questions: tuple[Question, ...]
    sha256: dict[str, str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def spelled_id(identity: str) -> str:
    """An id in one Unicode spelling and without white space around: by it rows of two files are about the same question."""
    return unicodedata.normalize("NFC", identity.strip())


def some(ids: Sequence[str]) -> str:
    """How many questions, and the first few by name."""
    more = ", ..." if len(ids) > NAMED else ""
    return f"{len(ids)} question{'' if len(ids) == 1 else 's'} ({', '.join(ids[:NAMED])}{more})"


def file_sha256(path: str | Path) -> str:
    """The digest of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
