"""HTTP of the transformers engine, on the standard library: a thread per connection reads, checks and answers.

Requests that are refused are read all the same, up to twice the largest body: a client that is cut off while it sends
sees a broken connection, and not why. Web pages of other sites are refused. While an answer is made, the connection is
looked at: a client that has gone stops its generation. The limits are those of request_limits.py, which does the same for
ASGI servers.
"""

import hmac
import json
import logging
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from queue import Empty
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .chat_answers import ChatAnswer
from .chat_requests import ChatRequest
from .generation_queue import Generation, GenerationFailed, Part
from .request_audio import RefusedRequest
from .request_limits import LOOPBACK, MIB


if TYPE_CHECKING:
    from .transformers_server import Server

logger = logging.getLogger(__name__)

CHAT, TRANSCRIPTION = "/v1/chat/completions", "/v1/audio/transcriptions"
IDLE = 60.0  # seconds that a connection may wait for its next request, and a write for the client
LOOK = 0.1  # seconds between two looks whether a client is still there
BLOCK = 2**16  # bytes read at once
LENGTH_DIGITS = 18  # of a Content-Length
CLIENT_GONE = 499  # is counted, and never sent


class HttpServer(ThreadingHTTPServer):
    daemon_threads = True  # connections that wait for a next request do not hold up the end
    request_queue_size = 1024  # connections that come at once

    def __init__(self, address: tuple[str, int], owner: "Server"):
        self.owner = owner
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that has gone
            logger.exception("A connection failed")


class Handler(BaseHTTPRequestHandler):
    server: HttpServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "falcon3-audio", ""
    timeout = IDLE
    disable_nagle_algorithm = True
    _streaming = False

    def do_GET(self) -> None:
        path, owner = urlsplit(self.path).path, self.server.owner
        # A body is not read, and must not be taken for the next request.
        self.close_connection |= "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            self._check_site()
            if path == "/health":
                broken = owner.queue.broken.is_set()
                self._send_json(503 if broken else 200, {"status": "the device failed" if broken else "ok"})
            elif path == "/metrics":
                self._send(200, owner.metrics().encode(), "text/plain; version=0.0.4")
            elif path == "/v1/models":
                self._check_key()
                name = owner.settings.served_model_name
                model = {"id": name, "object": "model", "created": owner.started, "owned_by": "falcon3-audio"}
                self._send_json(200, {"object": "list", "data": [model]})
            else:
                raise RefusedRequest(f"There is no GET {path[:200]} here.", status=404)
        except RefusedRequest as refused:
            self._refuse(refused)

    def do_POST(self) -> None:
        owner = self.server.owner
        limit = owner.settings.limits.timeout
        self._deadline, self._answered, self._streaming = time.monotonic() + limit, False, False
        try:
            self._post(urlsplit(self.path).path)
        except RefusedRequest as refused:
            self._refuse(refused)
        except TimeoutError:
            self._refuse(
                RefusedRequest(f"The answer was not ready within this server's limit, {limit:g} s.", status=504)
            )
        except ConnectionError:
            raise
        except Exception as error:
            logger.exception("A request failed")
            self._refuse(RefusedRequest(f"This server failed: {type(error).__name__}.", status=500))
        finally:
            if not self._answered:
                owner.count(CLIENT_GONE)

    def _post(self, path: str) -> None:
        owner = self.server.owner
        readers = {CHAT: owner.reader.chat, TRANSCRIPTION: owner.reader.transcription}
        length = self._content_length()
        most = int(owner.settings.limits.max_body_mib * MIB)
        try:
            self._check_site()
            self._check_key()
            if path not in readers:
                raise RefusedRequest(f"There is no POST {path[:200]} here.", status=404)
            # Browsers let web pages send some other types to any server without asking it first.
            if path == CHAT and self.headers.get_content_type() != "application/json":
                kind = self.headers.get("Content-Type", "none")
                raise RefusedRequest(f"Expected Content-Type: application/json, got {kind[:100]}.", status=415)
            if length > most:
                limit = f"{owner.settings.limits.max_body_mib:g} MiB"
                raise RefusedRequest(
                    f"The body has {length} bytes, more than this server's limit, {limit}.", status=413
                )
            owner.begin()
        except RefusedRequest:
            # A client that is cut off while it sends sees a broken connection, and not why.
            self.close_connection |= length > 2 * most
            with suppress(RefusedRequest):  # that it took too long
                for _ in self._body(min(length, 2 * most)):
                    pass
            raise
        try:
            request = readers[path](b"".join(self._body(length)), self.headers.get("Content-Type", ""))
            self._answer(request)
        finally:
            owner.end()

    def _answer(self, request: ChatRequest) -> None:
        owner = self.server.owner
        generation = Generation(request.messages, request.sampling, request.stream)
        answer = ChatAnswer(owner.settings.served_model_name, owner.reader, request)
        owner.queue.submit(generation)
        try:
            for part in self._parts(generation):
                if part.finish_reason:
                    owner.count_answer(request, part.tokens)
                if request.stream:
                    self._stream(answer.events(part))
                elif request.answer_as == "text":
                    self._send(200, part.text.encode(), "text/plain; charset=utf-8")
                else:
                    self._send_json(200, {"text": part.text} if request.answer_as == "json" else answer.whole(part))
        finally:
            generation.cancelled.set()

    def _parts(self, generation: Generation) -> Iterator[Part]:
        """Raises a `TimeoutError` when the time is up, and a `ConnectionError` where the client has gone."""
        while True:
            try:
                part = generation.parts.get(timeout=min(LOOK, self._seconds_left()))
            except Empty:
                self._check_client()
                continue
            if isinstance(part, GenerationFailed):
                raise RefusedRequest(str(part), status=500)
            yield part
            if part.finish_reason:
                return

    def _check_client(self) -> None:
        self.connection.settimeout(0)
        try:
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError
        except BlockingIOError:
            pass  # nothing to read is what a client that waits looks like
        finally:
            self.connection.settimeout(IDLE)

    def _seconds_left(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _check_site(self) -> None:
        """Refuses requests of other sites' web pages."""
        settings, host = self.server.owner.settings, self.headers.get("Host", "").lower()
        origin = self.headers.get("Origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            raise RefusedRequest("Web pages of other sites may not ask this server.", status=403)
        # A page's own name may lead to this machine as well (DNS rebinding).
        if settings.key is None and settings.host in LOOPBACK and host and not _is_address(host):
            raise RefusedRequest(
                f"Without an API key, ask this server as localhost or by its address, not as {host[:100]!r}.",
                status=403,
            )

    def _check_key(self) -> None:
        key = self.server.owner.settings.key
        shown = self.headers.get("Authorization", "")
        if key and not hmac.compare_digest(shown.encode(errors="replace"), f"Bearer {key}".encode()):
            raise RefusedRequest("This server wants its API key: Authorization: Bearer KEY.", status=401)

    def _content_length(self) -> int:
        lengths = self.headers.get_all("Content-Length", [])
        length = lengths[0] if len(lengths) == 1 else ""
        number = length.isascii() and length.isdigit() and len(length) <= LENGTH_DIGITS
        if "Transfer-Encoding" in self.headers or not number:
            self.close_connection = True
            raise RefusedRequest("The body must come whole, with one Content-Length.", status=411)
        return int(length)

    def _body(self, length: int) -> Iterator[bytes]:
        while length:
            try:
                self.connection.settimeout(self._seconds_left())
                block = self.rfile.read1(min(length, BLOCK))
            except TimeoutError as error:
                self.close_connection = True
                limit = f"{self.server.owner.settings.limits.timeout:g} s"
                raise RefusedRequest(
                    f"The body did not arrive within this server's limit, {limit}.", status=408
                ) from error
            if not block:
                raise ConnectionAbortedError
            length -= len(block)
            yield block
        self.connection.settimeout(IDLE)

    def _stream(self, events: list[str]) -> None:
        if not self._streaming:
            self._streaming = self.close_connection = True
            self._send_headers(200, "text/event-stream", {"Cache-Control": "no-cache", "Connection": "close"})
        self._write("".join(f"data: {event}\n\n" for event in events).encode())

    def _refuse(self, refused: RefusedRequest) -> None:
        # After an error of this server, nobody knows how much of the body was read.
        self.close_connection |= refused.status == 500
        error = {
            "message": str(refused),
            "type": type(refused).__name__,
            "param": refused.param,
            "code": refused.status,
        }
        if self._streaming:
            self._write(f"data: {json.dumps({'error': error})}\n\n".encode())
        else:
            self._send_json(refused.status, {"error": error})

    def _send_json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        headers = {"Content-Length": str(len(content))}
        if self.close_connection:
            headers["Connection"] = "close"
        if status in (429, 503):
            headers["Retry-After"] = "1"
        self._send_headers(status, kind, headers)
        self._write(content)

    def _send_headers(self, status: int, kind: str, headers: dict[str, str]) -> None:
        if self.command == "POST":  # not who asks for metrics
            self._answered = True
            self.server.owner.count(status)
        self.send_response(status)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        try:
            self.wfile.write(content)
        except TimeoutError as error:
            raise ConnectionAbortedError("the client reads nothing") from error

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class finds wrong with a request, in OpenAI's format."""
        self.close_connection = True
        self._refuse(RefusedRequest(f"This is no request that can be read: {message or code}.", status=code))

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        logger.info("%s %r %s", self.client_address[0], self.requestline.partition("?")[0], code)

    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)


def _is_address(host: str) -> bool:
    """Whether a `Host` header, with or without a port, holds `localhost` or an IP address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


__all__ = ["HttpServer"]
