"""Requests as OpenAI's clients send them: what is read, and what is refused for which reason."""

import base64
import io
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import soundfile
from ffmpeg_files import M4A, RATE, STEREO
from running_server import QUESTION, audio, encoded, input_audio, openai_chat, user, wav

from falcon3_audio.processing import load_audio
from falcon3_audio.serving import request_audio
from falcon3_audio.serving.chat_answers import ChatAnswer
from falcon3_audio.serving.chat_requests import ChatReader
from falcon3_audio.serving.generation_queue import Part, Sampling, Step
from falcon3_audio.serving.request_audio import AudioReader, RefusedRequest
from falcon3_audio.serving.request_limits import openai_error


CONTEXT = 1000


@pytest.fixture
def reader(processor):
    return ChatReader("tiny", processor, CONTEXT, 50, 3, AudioReader(30, (), 2**20, CONTEXT / 25))


def say(text, **fields) -> dict:
    return {"messages": [{"role": "user", "content": text}], **fields}


def url(text: str) -> dict:
    return say([{"type": "audio_url", "audio_url": {"url": text}}])


def read(reader, fields):
    return reader.chat(json.dumps(fields).encode())


def test_a_whole_request(reader, processor):
    clips = audio(1.3), audio(0.5, 900, 44_100)
    chat = [{"role": "developer", "content": "Be brief."}, user(*clips, QUESTION)]
    sampling = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_completion_tokens": 7, "stop": "x", "max_tokens": 9}
    more = {"logprobs": True, "top_logprobs": 2, "stream": True, "stream_options": {"include_usage": True}}
    neutral = {"n": 1, "presence_penalty": 0.0, "user": "me", "response_format": {"type": "text"}, "tools": None}
    request = read(reader, {"model": "tiny", "messages": openai_chat(chat), **sampling, **more, **neutral})
    assert request.sampling == Sampling(7, 0.5, 0.9, 3, ("x",), 2)
    assert request.stream and request.include_usage and not request.token_ids
    assert [message["role"] for message in request.messages] == ["system", "user"]
    for item, clip in zip(request.messages[1]["content"], clips):
        np.testing.assert_array_equal(item["audio"], load_audio(clip["audio"]))
    chat[0]["role"] = "system"
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert request.prompt_tokens == inputs["input_ids"].shape[1] and request.audio_seconds == pytest.approx(1.8)


def test_what_holds_where_nothing_is_said(reader):
    assert read(reader, say("a")).sampling == Sampling(50)
    assert read(reader, say("a", top_p=0.5)).sampling.temperature == 1
    length = read(reader, say("a" * 900)).prompt_tokens
    assert read(reader, say("a" * 975)).sampling.max_tokens == CONTEXT - length - 75


def test_options_of_streams_that_are_off(reader):
    for stream in (True, False, None):
        options = {"include_usage": False, "include_obfuscation": False, "continuous_usage_stats": None}
        assert not read(reader, say("a", stream=stream, stream_options=options)).include_usage


def test_clips_may_together_be_longer_than_one(reader):
    assert read(reader, {"messages": openai_chat([user(audio(20), audio(10.5))])}).audio_seconds == 30.5


def test_long_texts_are_refused_before_a_prompt_is_made(reader, monkeypatch):
    monkeypatch.setattr(reader._processor, "apply_chat_template", lambda *_, **__: pytest.fail("made a prompt"))
    with pytest.raises(RefusedRequest, match="holds fewer"):
        read(reader, say([{"type": "text", "text": "a" * 50_000}] * 2))


def test_bytes_of_tokens(reader, processor):
    """Three one-byte tokens form one character; the text of each does not show its byte."""
    tokens = processor.tokenizer.encode("a世", add_special_tokens=False)
    steps = [Step(token, -1.0, [(token, -1.0)]) for token in tokens]
    answer = ChatAnswer("tiny", reader, read(reader, say("a", logprobs=True, top_logprobs=1)))
    listed = answer.whole([Part("", len(tokens), steps, "stop")])["choices"][0]["logprobs"]["content"]
    assert [step["bytes"] for step in listed] == [[97], None, None, None]
    assert [step["top_logprobs"][0]["bytes"] for step in listed] == [[97], None, None, None]


ENCODINGS = {
    "one": encoded,
    "lines": lambda data: base64.encodebytes(data).decode(),
    "URL-safe": lambda data: base64.urlsafe_b64encode(data).decode(),
    "no padding": lambda data: encoded(data).rstrip("="),
}


@pytest.mark.parametrize(
    "head", ["", "  ", "data:audio/wav;base64,", "\n data:;base64,", "DATA:audio/x-wav;codecs=1;BASE64,"]
)
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_base64_and_data_urls_in_either_field(reader, head, encode):
    data = head + encode(wav(0.5))
    for chat in (say([input_audio(data)]), *([url(data)] if head.strip() else [])):
        message = read(reader, chat).messages[0]
        np.testing.assert_array_equal(message["content"][0]["audio"], load_audio(wav(0.5)))


BAD = {
    "deep JSON": (b"[" * 100_000, "not JSON"),
    "no UTF-8": (b'{"messages": "\xff"}', "not JSON"),
    "a list": (b"[]", "must be a JSON object, got list"),
    "no messages": ({}, "got NoneType"),
    "too many messages": ({"messages": [{"role": "user", "content": "a"}] * 513}, "1 to 512 messages, got 513"),
    "a text for a message": ({"messages": ["a"]}, "messages[0] must be an object with role and content, got str"),
    "a list for a role": ({"messages": [{"role": [], "content": "a"}]}, "developer, user, assistant, got '[]'"),
    "the assistant last": ({"messages": [{"role": "assistant", "content": "a"}]}, "must be the user's"),
    "tool calls": ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "'tool_calls' of messages[0]"),
    "no content": (say(None), "must be a string or a list of parts, got None"),
    "an image": (
        say([{"type": "image_url"}]),
        "messages[0].content[0] must be of type text, input_audio or audio_url",
    ),
    "half a character": (say("\ud800"), "an unpaired surrogate"),
    "audio of the system": (
        {"messages": [{"role": "system", "content": [input_audio("")]}, *say("a")["messages"]]},
        "messages[0] has the role 'system'",
    ),
    "unknown field": (say("a", guided_regex="a+"), "does not support 'guided_regex' in chats; it reads logprobs, max"),
    "two answers": (say("a", n=2), "n can only be 1 here, got 2"),
    "a tool": (say("a", tools=[{}]), "tools can only be [] here"),
    "JSON wanted": (say("a", response_format={"type": "json_object"}), 'can only be {"type": "text"} here'),
    "hot": (say("a", temperature=2.5), "temperature must be a number from 0 to 2, got 2.5"),
    "NaN": (say("a", temperature=float("nan")), "from 0 to 2, got nan"),
    "a flag for a number": (say("a", max_tokens=True), "got True"),
    "a number for a flag": (say("a", stream=1), "stream must be true or false, got 1"),
    "no tokens": (say("a", max_tokens=0), "max_tokens must be a whole number from 1"),
    "usage without a stream": (say("a", stream_options={"include_usage": True}), "for streams: set stream to true"),
    "another option of streams": (
        say("a", stream=True, stream_options={"continuous_usage_stats": True}),
        "can only have include_usage here, got 'continuous_usage_stats'",
    ),
    "a list of options": (say("a", stream=True, stream_options=["include_usage"]), "must be an object"),
    "top_p 0": (say("a", top_p=0), "top_p must be above 0"),
    "an empty stop": (say("a", stop=[""]), "up to 4 texts of 1 to 200 characters"),
    "a long stop": (say("a", stop=["ok", "a" * 201]), "up to 4 texts of 1 to 200 characters"),
    "top_logprobs alone": (say("a", top_logprobs=2), "needs logprobs"),
    "a long text": (say("a" * 1000), "tokens; the model's context holds 1000 in total"),
    "a very long text": (say("a" * 1_000_000), "context of 1000 tokens holds fewer"),
    "long texts in parts": (say([{"type": "text", "text": "a" * 1000}] * 100), "The texts have 100000 characters"),
    "many parts": (say([{"type": "text", "text": ""}] * 2049), "can have 2048 parts, got 2049"),
    "no base64": (say([{"type": "input_audio", "input_audio": "x"}]), "with a string"),
    "no bytes": (say([input_audio("")]), "Audio 1 of 1 is empty: 0 bytes"),
    "over the limit": (say(openai_chat([user(audio(30.5))])[0]["content"]), "30.5 s long; a clip can have 30 s"),
    "together over it": (
        {"messages": openai_chat([user(audio(25), audio(16))])},
        "Audio 2 of 2 is 16.0 s long, after 25.0 s of earlier clips; the model's context holds 40 s of audio",
    ),
    "four audios": (say([input_audio("")] * 4), "A chat can have 3 audios, got 4"),
    "another machine": (url("http://169.254.169.254/latest"), "does not fetch from '169.254.169.254'"),
    "a file": (url("file:///etc/passwd"), "expected a data: URL, got 'file:///etc/passwd'"),
    "no URL": (url("http://[x"), "IPv6"),
    "data without base64, as input": (say([input_audio("data:audio/wav,abc")]), "must be data:TYPE;base64,DATA"),
    "broken data": (say([input_audio("data:audio/wav;base64,UklGR!!!")]), "Audio 1 of 1 is broken base64"),
    "a URL as input": (say([input_audio(" https://a.example/a.wav")]), "not fetch from 'a.example'. Send the file"),
    "a file as input": (say([input_audio("file:///a.wav")]), "a data: URL, got 'file:///a.wav'. Send the file"),
    "a path as input": (say([input_audio("clips/a.wav")]), "begins with 'clips/a.wav'. Expected the bytes of"),
    "half a URL as input": (
        say([input_audio("base64,UklGRg==")]),
        "Only base64 data is allowed; it begins with 'base",
    ),
    "a digit too few": (say([input_audio("UklGR")]), "cannot be 1 more than a multiple of 4; it begins with 'UklGR'"),
    "base64 as a URL": (url("UklGRg=="), "got 'UklGRg=='. Send the file as data:TYPE;base64,DATA"),
    "data without base64": (url("data:audio/wav,abc"), "must be data:TYPE;base64,DATA, got 'data:audio/wav'"),
}


OURS_ONLY = {
    "n": 2,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "required",
    "functions": [{"name": "f"}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "logit_bias": {"1": 5},
    "presence_penalty": 1,
    "frequency_penalty": 0.5,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy", "format": "wav"},
    "reasoning_effort": "low",
    "web_search_options": {},
    "max_tokens": 0,
    "max_completion_tokens": "9",
    "top_logprobs": 21,
    "seed": 0.5,
    "stop": 3,
    "stream": "true",
    "stream_options": {"include_usage": True},
    "temperature": -1,
    "top_p": 1.5,
}


@pytest.mark.parametrize("name", OURS_ONLY)
def test_what_this_server_does_not_have_is_refused_by_name(reader, name):
    with pytest.raises(RefusedRequest, match=name) as refused:
        read(reader, say("a", **{name: OURS_ONLY[name]}))
    error = openai_error(refused.value)["error"]
    assert (error["param"], error["type"], refused.value.status) == (name, "invalid_request_error", 400)


@pytest.mark.parametrize("name", BAD)
def test_refused_requests(reader, name):
    body, reason = BAD[name]
    with pytest.raises(RefusedRequest) as refused:
        reader.chat(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert reason in str(refused.value) and refused.value.status == 400


def test_what_the_processor_and_the_template_refuse(reader, processor):
    with pytest.raises(RefusedRequest, match="audio placeholder"):
        read(reader, say(processor.audio_token))
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    strict = ChatReader("tiny", processor, CONTEXT, 50, 3, AudioReader(30, (), 2**20))
    with pytest.raises(RefusedRequest, match="roles must alternate"):
        read(strict, say("a"))


def flac(samples: np.ndarray, rate: int) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="FLAC")
    return bytearray(file.getvalue())


def test_what_only_ffmpeg_reads_is_limited_as_well():
    data = encoded(M4A).encode()
    samples = AudioReader(30, (), 2**20).read_all([data], "messages")[0]
    np.testing.assert_allclose(samples, load_audio(STEREO, RATE), atol=2**-14)  # decoded as 16 bits
    lines = b"\r\n".join(data[start : start + 76] for start in range(0, len(data), 76))
    np.testing.assert_array_equal(AudioReader(30, (), 2**20).read_all([lines], "messages")[0], samples)
    with pytest.raises(RefusedRequest, match="Audio 1 of 1 is longer than 1 s"):
        AudioReader(1, (), 2**20).read_all([data], "messages")
    with pytest.raises(RefusedRequest, match="Audio 2 of 2 is 2.0 s long, after 2.0 s of earlier clips"):
        AudioReader(30, (), 2**20, 3).read_all([data, data], "messages")


def test_small_files_that_hold_much():
    reader = AudioReader(30, (), 2**20)
    silence = flac(np.zeros(31 * 8000, np.int16), 8000)
    with pytest.raises(RefusedRequest, match="is 31.0 s long; a clip can have 30 s"):
        reader.read_all([encoded(silence).encode()], "messages")
    # STREAMINFO's number of samples: 0 means unknown.
    silence[21] &= 0xF0
    silence[22:26] = bytes(4)
    with pytest.raises(RefusedRequest, match="Audio 1 of 1 is longer than 30 s"):
        reader.read_all([encoded(silence).encode()], "messages")
    long = AudioReader(32, (), 2**20, max_total=40)
    assert [len(clip) for clip in long.read_all([encoded(silence).encode()], "messages")] == [31 * 16_000]
    with pytest.raises(RefusedRequest, match="Audio 2 of 2 is 31.0 s long, after 31.0 s of earlier clips; .* 40 s"):
        long.read_all([encoded(silence).encode()] * 2, "messages")
    with pytest.raises(RefusedRequest, match="has 192001 samples in 8 channels, together more than 192000"):
        channels = flac(np.zeros((192_001, 8), np.int16), 500_000)
        AudioReader(1, (), 2**20).read_all([encoded(channels).encode()], "messages")


def test_a_url_that_is_none_is_refused_with_the_clips_number():
    sources = [encoded(wav(0.5)).encode(), "http://[::1"]
    with pytest.raises(
        RefusedRequest, match=r"Audio 2 of 2: 'http://\[::1' is not a URL: Invalid IPv6 URL\."
    ) as refused:
        AudioReader(30, (), 2**20).read_all(sources, "messages")
    assert refused.value.param == "messages"


@pytest.mark.parametrize(("cores", "most"), [(64, 4), (2, 2), (None, 1)])
def test_no_more_than_four_files_are_decoded_at_once(monkeypatch, cores, most):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    reader = AudioReader(30, (), 2**20)
    assert sum(reader._decoding.acquire(blocking=False) for _ in range(9)) == most


class Files(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/noise":
            self.wfile.write(b"no HTTP\r\n\r\n")
            return
        self.send_response({"/moved": 302, "/gone": 404}.get(self.path, 200))
        self.send_header("Location", "/clip")
        data = wav(0.5)
        if self.path == "/short":
            self.send_header("Content-Length", str(len(data) + 1))
        self.end_headers()
        while self.path == "/slow" and not self.server.ended.wait(0.02):
            self.wfile.write(b"a")
            self.wfile.flush()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


def test_named_hosts_are_fetched_from_without_redirects(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        reader = AudioReader(30, ("127.0.0.1",), 20_000)
        np.testing.assert_array_equal(reader.read_all([base + "/clip"], "messages")[0], load_audio(wav(0.5)))
        upper = AudioReader(30, ("LocalHost",), 20_000)
        assert upper.read_all([base.replace("127.0.0.1", "LOCALHOST") + "/clip"], "messages")
        # In the place of base64, a URL goes the same way.
        assert len(reader.read_all([f" {base}/clip\n".encode()], "messages")[0]) == 8000
        with pytest.raises(RefusedRequest, match="could not be read: HTTP Error 302"):
            reader.read_all([f"{base}/moved".encode()], "messages")
        refused = {
            base + "/moved": "HTTP Error 302",
            base + "/gone": "HTTP Error 404",
            base + "/noise": "no HTTP",
            base + "/short": "it ended after 16044 bytes of 16045",
            "http://127.0.0.1:abc/clip": "nonnumeric port",
            base + "/a b": "control characters",
        }
        for address, reason in refused.items():
            with pytest.raises(RefusedRequest, match=f"could not be read: .*{reason}"):
                reader.read_all([address], "messages")
        server.ended = threading.Event()
        monkeypatch.setattr(request_audio, "FETCH_TIMEOUT", 0.2)
        with pytest.raises(RefusedRequest, match="could not be read: it took more than 0.2 s"):
            reader.read_all([base + "/slow"], "messages")
        server.ended.set()
        with pytest.raises(RefusedRequest, match="more than 1000 bytes, this server's limit"):
            AudioReader(30, ("127.0.0.1",), 1000).read_all([base + "/clip"], "messages")
        with pytest.raises(RefusedRequest, match="does not fetch from 'localhost'"):
            reader.read_all([base.replace("127.0.0.1", "localhost") + "/clip"], "messages")
        server.shutdown()
