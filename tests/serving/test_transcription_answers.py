"""Transcripts as objects, subtitles and streams."""

import json
import logging

import pytest

from falcon3_audio.serving.chat_requests import ChatRequest
from falcon3_audio.serving.generation_queue import Part, Sampling, Step
from falcon3_audio.serving.transcription_answers import TranscriptionAnswer
from falcon3_audio.serving.transcription_requests import Transcription, Window


TIMES = [(0.0, 29.85), (29.85, 59.5), (59.5, 3725.0625)]
TEXTS = [" A dog\n\nbarks --> ", "", "a < b & c\n"]


def answer(response_format: str, language: str | None = None, stream: bool = False) -> TranscriptionAnswer:
    chat = ChatRequest([], Sampling(9, temperature=0.2), 20, 30.0, 15)
    windows = [Window(start, end, chat) for start, end in TIMES]
    return TranscriptionAnswer(Transcription(windows, response_format, language, stream))


def parts() -> list[Part]:
    steps = [Step(4, -1.0, []), Step(5, -0.5, [])]
    return [Part(text, 3, steps if text else [], "stop") for text in TEXTS]


def test_text_and_json():
    text = "A dog\n\nbarks --> a < b & c"
    assert answer("text").whole(parts()) == text
    assert answer("json").whole(parts()) == {
        "text": text,
        "usage": {
            "type": "tokens",
            "input_tokens": 60,
            "input_token_details": {"audio_tokens": 45, "text_tokens": 15},
            "output_tokens": 9,
            "total_tokens": 69,
        },
    }


def test_verbose_json():
    written = answer("verbose_json", "french").whole(parts())
    assert (written["language"], written["duration"]) == ("french", 3725.0625)
    assert written["usage"] == {"type": "duration", "seconds": 3725.0625}
    segments = written["segments"]
    assert [(segment["start"], segment["end"]) for segment in segments] == TIMES
    assert [segment["text"] for segment in segments] == ["A dog\n\nbarks -->", "", "a < b & c"]
    assert [segment["seek"] for segment in segments] == [0, 2985, 5950]
    assert [segment["tokens"] for segment in segments] == [[4, 5], [], [4, 5]]
    assert [segment["avg_logprob"] for segment in segments] == [-0.75, 0, -0.75]
    assert segments[1]["compression_ratio"] == 0 and segments[0]["compression_ratio"] < 1
    assert {segment["temperature"] for segment in segments} == {0.2}
    assert answer("verbose_json").whole(parts())["language"] is None


SRT = """1
00:00:00,000 --> 00:00:29,850
A dog barks ->

2
00:00:59,500 --> 01:02:05,062
a < b & c

"""
VTT = """WEBVTT

00:00:00.000 --> 00:00:29.850
A dog barks --&gt;

00:00:59.500 --> 01:02:05.062
a &lt; b &amp; c

"""


def test_subtitles_have_no_empty_lines_and_arrows_in_their_texts():
    assert answer("srt").whole(parts()) == SRT
    assert answer("vtt").whole(parts()) == VTT


def test_a_stream_adds_up_to_the_text():
    writer = answer("json", stream=True)
    pieces = [
        (0, " A", None),
        (0, " dog \n", None),
        (0, "", "stop"),
        (1, " ", "stop"),
        (2, "", None),
        (2, " b ", "stop"),
    ]
    events = [
        json.loads(event)
        for number, text, reason in pieces
        for event in writer.events(number, Part(text, 2, [], reason))
    ]
    assert [event["type"] for event in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert [event["delta"] for event in events[:-1]] == ["A", " dog", " b"]
    assert events[-1]["text"] == "A dog b" and events[-1]["usage"]["output_tokens"] == 6


@pytest.mark.parametrize("response_format", ["json", "verbose_json"])
def test_a_transcript_that_was_cut_is_told_of(response_format, caplog):
    cut = [Part("a", 9, [], "length"), Part("b", 2, [], "stop"), Part("c", 2, [], "stop")]
    with caplog.at_level(logging.WARNING):
        written = answer(response_format).whole(cut)
    (record,) = caplog.records
    assert "0.0 s to 29.9 s was cut at 9 tokens" in record.getMessage()
    if response_format == "verbose_json":
        assert [segment["finish_reason"] for segment in written["segments"]] == ["length", "stop", "stop"]
