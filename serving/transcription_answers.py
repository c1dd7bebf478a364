"""Answers in the formats of OpenAI's transcriptions: objects, subtitles, or the events of a stream.

Unknown values are null: the language if the request does not name it, and the probability of no speech.
"""

import html
import json
import logging
import zlib
from collections.abc import Iterable
from typing import Any

from .generation_queue import Part
from .transcription_requests import Transcription, Window


logger = logging.getLogger(__name__)

FRAMES_PER_SECOND = 100  # of mel frames, in which OpenAI's `seek` counts


class TranscriptionAnswer:
    """
    Attributes:
        chats: the questions that the parts answer, in order.
        stream: whether the answer is sent as `events`, or `whole`.
    """

    def __init__(self, request: Transcription):
        self.chats, self.stream, self._request = request.chats, request.stream, request
        self._texts = [""] * len(self.chats)
        self._tokens = [0] * len(self.chats)
        self._sent = ""

    def whole(self, parts: list[Part]) -> dict[str, Any] | str:
        """The answer from one part for each window."""
        for number, part in enumerate(parts):
            self._add(number, part)
        wanted = self._request.response_format
        if wanted == "verbose_json":
            return self._verbose(parts)
        if wanted == "json":
            return {"text": self._text(), "usage": self._usage()}
        return {"text": self._text, "srt": self._srt, "vtt": self._vtt}[wanted]()

    def events(self, number: int, part: Part) -> list[str]:
        """The events for text added to the answer about a window; answers about earlier windows are complete."""
        self._add(number, part)
        text = self._text()
        events: list[dict[str, Any]] = []
        added = text[len(self._sent) :]
        if added:
            self._sent = text
            events.append({"type": "transcript.text.delta", "delta": added})
        if part.finish_reason and number == len(self.chats) - 1:
            events.append({"type": "transcript.text.done", "text": text, "usage": self._usage()})
        return [json.dumps(event) for event in events]

    def _add(self, number: int, part: Part) -> None:
        self._texts[number] += part.text
        self._tokens[number] = part.tokens
        if part.finish_reason == "length":
            window = self._request.windows[number]
            where = f"{window.start:.1f} s to {window.end:.1f} s"
            logger.warning("A transcript of %s was cut at %d tokens, its limit", where, part.tokens)

    def _text(self) -> str:
        return " ".join(filter(None, map(str.strip, self._texts)))

    def _usage(self) -> dict[str, Any]:
        prompt, heard = sum(chat.prompt_tokens for chat in self.chats), sum(chat.audio_tokens for chat in self.chats)
        written = sum(self._tokens)
        return {
            "type": "tokens",
            "input_tokens": prompt,
            "input_token_details": {"audio_tokens": heard, "text_tokens": prompt - heard},
            "output_tokens": written,
            "total_tokens": prompt + written,
        }

    def _verbose(self, parts: list[Part]) -> dict[str, Any]:
        seconds = self._request.windows[-1].end
        segments = [self._segment(number, part) for number, part in enumerate(parts)]
        return {
            "task": "transcribe",
            "language": self._request.language,
            "duration": seconds,
            "text": self._text(),
            "segments": segments,
            "usage": {"type": "duration", "seconds": seconds},
        }

    def _segment(self, number: int, part: Part) -> dict[str, Any]:
        window, text = self._request.windows[number], part.text.strip()
        logprobs, data = [step.logprob for step in part.steps], text.encode()
        return {
            "id": number,
            "seek": round(window.start * FRAMES_PER_SECOND),
            "start": window.start,
            "end": window.end,
            "text": text,
            "tokens": [step.token for step in part.steps],
            "temperature": window.chat.sampling.temperature,
            "avg_logprob": sum(logprobs) / len(logprobs) if logprobs else 0.0,
            "compression_ratio": len(data) / len(zlib.compress(data)),
            "no_speech_prob": None,
            "finish_reason": part.finish_reason,
        }

    def _srt(self) -> str:
        lines = (text.replace("-->", "->") for text in self._lines())
        cues = [
            f"{number}\n{_time(window.start, ',')} --> {_time(window.end, ',')}\n{text}\n\n"
            for number, (window, text) in enumerate(self._said(lines), 1)
        ]
        return "".join(cues)

    def _vtt(self) -> str:
        lines = (html.escape(text, quote=False) for text in self._lines())
        cues = [f"{_time(w.start, '.')} --> {_time(w.end, '.')}\n{text}\n\n" for w, text in self._said(lines)]
        return "".join(["WEBVTT\n\n", *cues])

    def _lines(self) -> list[str]:
        """The text of each window, on one line: an empty line would end a cue."""
        return [" ".join(text.split()) for text in self._texts]

    def _said(self, lines: Iterable[str]) -> list[tuple[Window, str]]:
        return [(window, text) for window, text in zip(self._request.windows, lines, strict=True) if text]


def _time(seconds: float, point: str) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{milliseconds:03}"


__all__ = ["TranscriptionAnswer"]
