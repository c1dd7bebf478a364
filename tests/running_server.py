"""A server of the transformers engine in this process, and requests to it: for test_chat_server.py and others."""

import asyncio
import base64
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import openai
import soundfile
from tiny import tone

from falcon3_audio.serving.chat_app import CHAT
from falcon3_audio.serving.chat_server import Server, Settings, load


STEPS = 8  # tokens of an answer
DEFAULT_STEPS = 12  # if a request gives no limit
QUESTION = {"type": "text", "text": "What do you hear?"}


def wav(seconds: float, pitch: float = 440.0, rate: int = 16_000, format: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, pitch, rate), rate, format=format)
    return file.getvalue()


def audio(*args, **kwargs) -> dict:
    """An audio item in transformers' format; `openai_chat` converts it to OpenAI's."""
    return {"type": "audio", "audio": wav(*args, **kwargs)}


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def input_audio(data: str) -> dict:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def openai_chat(chat: list[dict]) -> list[dict]:
    def item(part):
        return input_audio(encoded(part["audio"])) if part["type"] == "audio" else part

    return [
        m if isinstance(m["content"], str) else m | {"content": [item(part) for part in m["content"]]} for m in chat
    ]


def post_head(*lines: str) -> bytes:
    """The head of a chat request, for a socket."""
    return "\r\n".join(
        [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines, "\r\n"]
    ).encode()


def answer_of(connection) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer


class Running(Server):
    """A server that records its batches and holds them until `let` is set; `chat` is a client's request."""

    def __init__(self, folder: str, **settings):
        pipe, self.let, self.batches, self.made = load(folder), threading.Event(), [], []
        self.let.set()
        pipe.model.generation_config.max_new_tokens = DEFAULT_STEPS
        generate = pipe.model.generate

        def recorded(**inputs):
            self.batches.append(len(inputs["input_ids"]))
            assert self.let.wait(60)
            tokens = generate(**inputs)
            self.made.append(tokens.shape[1] - inputs["input_ids"].shape[1])
            return tokens

        pipe.model.generate = recorded
        self.generation_config = pipe.model.generation_config
        super().__init__(pipe, Settings("tiny", port=0, **settings))
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key="a-key", max_retries=0)

    def chat(self, chat: list[dict], **fields):
        fields = {"max_tokens": STEPS} | fields
        return self.client.chat.completions.create(model="tiny", messages=openai_chat(chat), **fields)

    def text(self, chat: list[dict], **fields) -> str:
        return self.chat(chat, **fields).choices[0].message.content

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=60)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.url.rsplit(":", 1)[1])), 60)

    def post(self, body: bytes | dict, path: str = CHAT, connection=None, **headers) -> tuple[int, dict]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | headers
        connection = connection or self.connection()
        connection.request("POST", path, data, headers)
        answer = connection.getresponse()
        return answer.status, json.load(answer)

    def get(self, path: str) -> str:
        connection = self.connection()
        connection.request("GET", path)
        return connection.getresponse().read().decode()

    def metric(self, name: str) -> float:
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics").splitlines())
        return next((float(value) for found, value in lines if found == f"falcon3_audio_{name}"), 0)

    def wait(self, line: str):
        """Waits until a metric has a value."""
        name, value = line.rsplit(" ", 1)
        end = time.monotonic() + 60
        while self.metric(name) != float(value):
            assert time.monotonic() < end, self.get("/metrics")
            time.sleep(0.01)

    def hold(self, pool: ThreadPoolExecutor, chat: list[dict]) -> Future:
        """A request that the worker holds until `let` is set, so that others have to wait."""
        self.let.clear()
        held = pool.submit(self.text, chat)
        self.wait("requests_running 1")
        return held


class Echo:
    """Answers with the body it was given, after `wait` is set; received bodies are in `bodies`."""

    def __init__(self, begin_first: bool = False):
        self.bodies: list[bytes] = []
        self.wait = asyncio.Event()
        self.wait.set()
        self.begin_first = begin_first
        self.cancelled = 0
        self.types: list[str] = []

    async def __call__(self, scope, receive, send):
        self.types.append(scope["type"])
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.begin_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await self.wait.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not self.begin_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
