"""The formats of training sets: one table, which reading.py uses and docs/formats.md explains.

A format is recognised by the names of a set's columns. It turns a row into chat messages, which are then treated like
our own (chats.py). Most formats have a question; the last three only have an answer (a transcript, a caption, a
label), and the set's entry in the recipe has the question.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from falcon3_audio.processing import TRANSCRIBE

from . import rows_as_chats as chat_of
from .chats import COLUMNS
from .options import OPTIONS


# What rows can hold, and the columns that hold it if the set's entry names no other (`columns: {text: utterance}`).
KNOWN = {
    "messages": ("messages",),
    "questions": ("questions",),
    "conversations": ("conversations",),
    "query": ("query", "question", "prompt"),
    "response": ("response", "answer", "completion"),
    "instruction": ("instruction",),
    "input": ("input",),
    "output": ("output",),
    "history": ("history",),
    "system": ("system",),
    "text": ("text", "sentence", "transcription", "transcript", "txt"),
    "caption": ("caption", "captions"),
    "label": ("label", "category", "class", "intent", "emotion", "genre", "cls"),
}
AUDIO = "audio"
MANIFEST = "audio_filepath"  # of NeMo, whose `duration` limits what is heard
SEGMENT = ("offset", "duration")  # in seconds
ROLES = (AUDIO, *KNOWN, *SEGMENT)
DESCRIBE = "Describe what you hear."


@dataclass(frozen=True)
class Format:
    """
    One format of sets.

    Attributes:
        name: its name in errors, runs and `check-data`.
        needs: what each row holds besides its clips, by the names of `KNOWN`.
        chat: turns what a row holds, and the question if the row has none, into messages.
        takes: what rows can hold in addition.
        clips: the columns of clips.
        options: columns that are not read: the question must name the options in them.
        inside: whether audio sources can also be inside what rows hold.
        several: the one of `needs` that is a list, of which each element is an example.
        part: the name of such an element in errors.
        may_be_empty: whether such a list can be empty; the row then gives no example.
        answers: whether rows only have answers.
        prompt: the default question for these; `None` if the set's entry must have one.
    """

    name: str
    needs: tuple[str, ...]
    chat: Callable[[Mapping[str, Any], str], list[dict[str, Any]]]
    takes: tuple[str, ...] = ()
    clips: tuple[str, ...] = (*COLUMNS, MANIFEST)
    options: tuple[str, ...] = ()
    inside: bool = False
    several: str | None = None
    part: str = ""
    may_be_empty: bool = False
    answers: bool = False
    prompt: str | None = None


# If a set fits several, the first with questions is used; of those with only answers, only one may fit.
FORMATS = (
    Format("chats", ("messages",), chat_of.messages, clips=COLUMNS, inside=True),
    Format(
        *("questions about clips", ("questions",), chat_of.question),
        clips=COLUMNS,
        several="questions",
        part="question",
        may_be_empty=True,
    ),
    Format(
        *("conversations", ("conversations",), chat_of.conversations, ("system",)),
        clips=(*COLUMNS, chat_of.SOUND, MANIFEST),
        inside=True,
    ),
    Format(
        *("queries and responses", ("query", "response"), chat_of.query, ("history", "system")),
        options=OPTIONS,
        inside=True,
    ),
    Format(
        *("instructions and outputs", ("instruction", "output"), chat_of.instruction, ("input", "history", "system")),
        inside=True,
    ),
    Format("transcripts", ("text",), chat_of.transcript, answers=True, prompt=TRANSCRIBE),
    Format(
        *("captions", ("caption",), chat_of.caption),
        several="caption",
        part="caption",
        answers=True,
        prompt=DESCRIBE,
    ),
    Format("labels", ("label",), chat_of.label, answers=True),
)
# Columns with questions, or with answers to them; a set that is read only for its answers would ignore them.
OF_QUESTIONS = tuple(
    column for layout in FORMATS if not layout.answers for name in layout.needs for column in KNOWN[name]
)
# Those of them with answers.
OF_ANSWERS = (*KNOWN["response"], *KNOWN["output"])
