"""A stub of an OpenAI-compatible chat server on 127.0.0.1: it records requests and replies as told.

with StubEndpoint(lambda body: "a dog") as stub:
    Endpoint(stub.url, "model").ask([...])
stub.requests[0].body["messages"]
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """
    What the server sends.

    Attributes:
        text: the reply, `None` for a message without content.
        status: HTTP status; over 399 `text` is the error's message.
        body: sent instead of a chat completion, as it is.
        finish_reason, usage, model: of the completion.
        seconds: how long the server takes.
        headers: additional ones. By default clients that retry are told to do so immediately.
    """

    text: str | None = ""
    status: int = 200
    body: bytes | None = None
    finish_reason: str = "stop"
    usage: dict[str, int] | None = None
    model: str = "stub-2026"
    seconds: float = 0
    headers: dict[str, str] = field(default_factory=lambda: {"Retry-After": "0.01"})

    def content(self) -> bytes:
        if self.body is not None:
            return self.body
        if self.status >= 400:
            return json.dumps({"error": {"message": self.text}}).encode()
        message = {"role": "assistant", "content": self.text}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        completion: dict[str, Any] = {"id": "1", "object": "chat.completion", "created": 0, "model": self.model}
        return json.dumps(completion | {"choices": [choice], "usage": self.usage}).encode()


@dataclass(frozen=True)
class Request:
    """A request that the server received: path, API key and JSON body."""

    path: str
    key: str
    body: dict[str, Any]


class StubEndpoint:
    """
    Args:
        reply: called with each request's body (from several threads), returns the reply's text or an `Answer`.
        key: if given, requests with another key get the status 401.
    """

    def __init__(self, reply: Callable[[dict[str, Any]], str | Answer], key: str | None = None):
        self.requests: list[Request] = []
        self._reply, self._key = reply, key
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "StubEndpoint":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        if request.path != "/v1/chat/completions":
            return Answer(f"no such path: {request.path}", status=404)
        if self._key is not None and request.key != self._key:
            return Answer(f"Incorrect API key provided: {request.key}.", status=401)
        answer = self._reply(request.body)
        return Answer(answer) if isinstance(answer, str) else answer

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                key = self.headers.get("Authorization", "").removeprefix("Bearer ")
                answer = stub.answer(Request(self.path, key, body))
                time.sleep(answer.seconds)
                with suppress(ConnectionError):  # clients that did not wait
                    self.send(answer, answer.content())

            def send(self, answer: Answer, content: bytes):
                self.send_response(answer.status)
                for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        return Handler
