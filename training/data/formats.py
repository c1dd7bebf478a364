"""The formats that training sets come in: one table, by which sets are read (reading.py), and which docs/formats.md explains.

A format is told by the names of a set's columns. It turns a row into chat messages, and these go on like messages of our own
(chats.py). Most rows have a question; those of the last three formats have an answer alone (a transcript, a caption, a label),
and the set's entry in the recipe says what is asked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import rows_as_chats as chat_of
from .chats import COLUMNS


# What rows may hold, and the columns that hold it where the set's entry names no other (`columns: {text: utterance}`).
KNOWN = {
    "messages": ("messages",),
    "questions": ("questions",),
    "conversations": ("conversations",),
    "query": ("query", "question"),
    "response": ("response", "answer"),
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
MANIFEST = "audio_filepath"  # of NeMo, whose `duration` says what is heard
SEGMENT = ("offset", "duration")  # in seconds
ROLES = (AUDIO, *KNOWN, *SEGMENT)
TRANSCRIBE = "Transcribe the speech."  # as `/v1/audio/transcriptions` asks
DESCRIBE = "Describe what you hear."


@dataclass(frozen=True)
class Format:
    """
    One way in which sets are written.

    Attributes:
        name: what errors, runs and `check-data` call it.
        needs: what each row holds besides its clips, by the names of `KNOWN`.
        chat: from what a row holds, and what is asked where the row does not say, to messages.
        takes: what rows may hold besides.
        clips: the columns of clips.
        not_read: columns that belong to the question, where rows have any, and are not read.
        inside: whether sources of sound may also be inside of what rows hold.
        several: that of `needs` whose lists hold an example each.
        part: what errors call one of these.
        may_be_empty: whether such a list may be; the row then is no example.
        answers: whether rows have answers alone.
        prompt: what is then asked where the set's entry does not say; `None` if it must.
    """

    name: str
    needs: tuple[str, ...]
    chat: Callable[[Mapping[str, Any], str], list[dict[str, Any]]]
    takes: tuple[str, ...] = ()
    clips: tuple[str, ...] = (*COLUMNS, MANIFEST)
    not_read: tuple[str, ...] = ()
    inside: bool = False
    several: str | None = None
    part: str = ""
    may_be_empty: bool = False
    answers: bool = False
    prompt: str | None = None


# Where a set fits several, the first with questions is taken; of those with answers alone, only one may fit.
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
        not_read=("choices", "options"),
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
# Columns that are questions or answers of their own; in a set that is read for answers alone they would be passed over.
OF_QUESTIONS = tuple(
    column for layout in FORMATS if not layout.answers for name in layout.needs for column in KNOWN[name]
)
