"""Reads OpenAI's requests for transcriptions, as multipart/form-data, into one question for each window of the audio.

Speech of more than 30 s is cut where it is quietest, as vLLM does, so that the limit of an answer does not cut the
transcript, and segments have times: a segment is a window, and nothing more is known about when its words are said.
The prompt names the language, unless it is English, which the model expects without being told.

    transcription = TranscriptionReader(reader).read(body, content_type)
"""

import json
import re
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from typing import Any

import numpy as np
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from falcon3_audio.processing import SAMPLING_RATE, TRANSCRIBE

from .chat_requests import ChatReader, ChatRequest
from .request_audio import RefusedRequest
from .request_fields import NEUTRAL, check_fields


FORMATS = ("json", "text", "verbose_json", "srt", "vtt")
STREAMED = ("json", "text")
GRANULARITIES = "timestamp_granularities"
# Settings of a chat, which hold for the answer about each window.
SETTINGS = ("temperature", "top_p", "seed", "max_tokens", "max_completion_tokens")
READ = {"file", "model", "language", "prompt", "response_format", "stream", GRANULARITIES, *SETTINGS}
# Values that change nothing, here alone: the names are those of OpenAI, vLLM and the servers of Whisper.
NEUTRAL_HERE = NEUTRAL | {
    "chunking_strategy": ("auto",),
    "include": ([],),
    "logprobs": (False,),
    "stream_include_usage": (True, False),  # the last event always has it
    "stream_continuous_usage_stats": (False,),
    "task": ("transcribe",),
    "translate": (False,),
    "diarize": (False,),
    "word_timestamps": (False,),
    "vad_filter": (False,),
    "condition_on_previous_text": (False,),
    "beam_size": (1,),
}
BOOLEANS = ConfigParser.BOOLEAN_STATES  # clients write 1, true, True or on
PLAIN = ("", "identity", "binary", "8bit", "7bit")  # encodings of a form's part that leave its bytes as they are
EXPECTED_LANGUAGE = "en"
# vLLM's: the last samples of a window among which it can be cut, and the samples whose power is summed.
SEARCHED = SAMPLING_RATE
QUIET = SAMPLING_RATE // 10


@dataclass(frozen=True)
class Window:
    """One question about a part of the audio; `start` and `end` are seconds."""

    start: float
    end: float
    chat: ChatRequest


@dataclass(frozen=True)
class Transcription:
    """
    Attributes:
        windows: in order, without gaps.
        response_format: one of `FORMATS`.
        language: its English name, if the client gave it.
        stream: whether text is sent as it is generated.
    """

    windows: list[Window]
    response_format: str
    language: str | None
    stream: bool

    @property
    def chats(self) -> list[ChatRequest]:
        return [window.chat for window in self.windows]


class TranscriptionReader:
    """
    Reads requests. Thread-safe.

    Args:
        reader: of chats, whose limits apply here too.
        window: samples of the longest window.
    """

    def __init__(self, reader: ChatReader, window: int):
        self._reader, self._window = reader, window

    def read(self, body: bytes, content_type: str) -> Transcription:
        """Raises a `RefusedRequest`."""
        form = read_form(body, content_type)
        file = form.pop("file", None)
        fields = _texts(form)
        others = {name: _value(*texts) for name, texts in fields.items() if name not in READ}
        check_fields(others, READ, "transcriptions", NEUTRAL_HERE)
        one = {name: _only(name, texts) for name, texts in fields.items() if name in READ - {GRANULARITIES}}
        self._reader.check_model(one.get("model"))
        response_format = one.get("response_format", "json")
        if response_format not in FORMATS:
            why = f"response_format can be {', '.join(FORMATS)} here, got {response_format[:100]!r}."
            raise RefusedRequest(why, "response_format")
        _check_granularities(fields.get(GRANULARITIES, []), response_format)
        stream, language = _flag(one, "stream"), _language(one.get("language"))
        if stream and response_format not in STREAMED:
            raise RefusedRequest(f"Streams need response_format json or text, got {response_format!r}.", "stream")
        if not file:
            raise RefusedRequest("The form has no file.", "file")
        # Log-probabilities are only for the mean of each segment.
        given = {name: value for name in SETTINGS if (value := _value(one.get(name, "null"))) is not None}
        settings = {"temperature": 0.0} | given | {"logprobs": response_format == "verbose_json"}
        clip = self._reader.read_file(_only("file", file), "file")
        windows = self._windows(clip, _instruction(language, one.get("prompt")), settings)
        return Transcription(windows, response_format, language and LANGUAGES[language], stream)

    def _windows(self, clip: np.ndarray, text: str, settings: dict[str, Any]) -> list[Window]:
        return [
            Window(start / SAMPLING_RATE, end / SAMPLING_RATE, self._reader.ask_about(clip[start:end], text, settings))
            for start, end in cut(clip, self._window)
        ]


def cut(clip: np.ndarray, window: int) -> Iterator[tuple[int, int]]:
    """Start and end of the windows of a clip `(samples,)`, each of at most `window` samples."""
    start = 0
    while len(clip) - start > window:
        end = start + window
        end = start + window - _quietest(clip[max(start, end - SEARCHED) : end][::-1])
        yield start, end
        start = end
    yield start, len(clip)


def _quietest(samples: np.ndarray) -> int:
    """Where the first of the quietest stretches ends."""
    power = np.square(samples[: len(samples) // QUIET * QUIET], dtype=np.float64).reshape(-1, QUIET).sum(1)
    return int(power.argmin()) * QUIET if len(power) else 0


def _instruction(language: str | None, prompt: str | None) -> str:
    known = "" if language in (None, EXPECTED_LANGUAGE) else f"It is in {LANGUAGES[language].title()}."
    return " ".join(filter(None, (TRANSCRIBE, known, prompt)))


def _check_granularities(wanted: list[str], response_format: str) -> None:
    if "word" in wanted:
        why = "This server has no word timestamps, only those of segments, windows of at most 30 s."
        raise RefusedRequest(why, GRANULARITIES)
    if set(wanted) - {"segment"}:
        sent = f"send one field {GRANULARITIES}[] with segment"
        why = f"{GRANULARITIES} can only be segment here, got {wanted!r:.100}; {sent}."
        raise RefusedRequest(why, GRANULARITIES)
    if wanted and response_format != "verbose_json":
        raise RefusedRequest(f"{GRANULARITIES} needs response_format verbose_json.", GRANULARITIES)


def _language(said: str | None) -> str | None:
    """The code of a language given by its code or English name."""
    if said is None:
        return None
    code = TO_LANGUAGE_CODE.get(said.lower(), said.lower())
    if code not in LANGUAGES:
        raise RefusedRequest(f"language must be a code of ISO 639-1, such as fr, got {said[:100]!r}.", "language")
    return code


def _flag(fields: dict[str, str], name: str) -> bool:
    text = fields.get(name, "false")
    if text.lower() not in BOOLEANS:
        raise RefusedRequest(f"{name} must be true or false, got {text[:100]!r}.", name)
    return BOOLEANS[text.lower()]


def _only(name: str, values: list[Any]) -> Any:
    if len(values) > 1:
        raise RefusedRequest(f"The form has {len(values)} fields {name!r}, expected one.", name)
    return values[0]


def _texts(form: dict[str, list[bytes]]) -> dict[str, list[str]]:
    """The texts of each field; a list comes as several, named `name[]`. Empty fields are ignored."""
    fields: dict[str, list[str]] = {}
    for name, values in form.items():
        texts = [value.decode(errors="replace").strip() for value in values]
        if any(texts):
            fields.setdefault(name.removesuffix("[]"), []).extend(texts)
    return fields


def _value(text: str, *more: str) -> Any:
    """What a text would be in JSON: a number, a boolean, null, a list or an object, or else the text itself."""
    if more:
        return [text, *more]
    for read in (int, float, lambda text: BOOLEANS[text.lower()], json.loads):
        with suppress(ValueError, KeyError, RecursionError):
            return read(text)
    return text


def read_form(body: bytes, content_type: str) -> dict[str, list[bytes]]:
    """The fields of multipart/form-data, each with all its values. Raises a `RefusedRequest`."""
    kind = _header(content_type)
    boundary = kind.get_param("boundary")
    if kind.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise RefusedRequest(f"Expected multipart/form-data with a boundary, got {content_type[:100]!r}.")
    # The first delimiter has no line before it.
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(errors="replace"))
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise RefusedRequest("The form is incomplete: its last boundary is missing.")
    form: dict[str, list[bytes]] = {}
    for part in parts[1:-1]:
        head, _, value = part.partition(b"\r\n\r\n")
        name = _header(_line(head, b"content-disposition")).get_param("name")
        if not isinstance(name, str):
            raise RefusedRequest("A part of the form has no name.")
        for line in (b"content-encoding", b"content-transfer-encoding"):
            if (coding := _line(head, line)).lower() not in PLAIN:
                why = f"{name[:100]} has {line.decode()}: {coding[:100]} in the form. Send its bytes as they are."
                raise RefusedRequest(why, name[:100], 415)
        form.setdefault(name, []).append(value)
    return form


def _line(head: bytes, name: bytes) -> str:
    """The value of one header of a part; empty if it has none."""
    found = re.search(rb"^%s:([^\r\n]*)" % name, head, re.IGNORECASE | re.MULTILINE)
    return found[1].decode(errors="replace").strip() if found else ""


def _header(value: str) -> Message:
    """Parses a header's value, for its parameters."""
    message = Message()
    message["Content-Type"] = value.strip()
    return message


__all__ = ["FORMATS", "Transcription", "TranscriptionReader", "Window", "cut", "read_form"]
