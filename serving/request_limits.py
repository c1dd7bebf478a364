"""ASGI middleware in front of both engines: who can send requests, how large, how many at a time, and for how long.

A body is read whole before the engine sees its request, and only then takes a place: slow clients take none. Bodies
that have arrived and are not answered yet take at most `max_bodies_mib`; joining one briefly takes its size once more.
A client that is cut off while it sends sees only a broken connection, not the reason: so a refusal is sent
immediately, and the rest of the body is discarded for some seconds before the connection is closed. Errors are in
OpenAI's format. Neither engine decompresses bodies, so those with a Content-Encoding are refused. Requests without a
body, such as /health, have no limits, but their sender is checked. vLLM imports the class by name, so there it reads
its settings from the environment, and vLLM's key (`VLLM_API_KEY`).
"""

import asyncio
import hmac
import json
import math
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from .request_audio import RefusedRequest


Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PREFIX = "FALCON3_AUDIO_"
MIB = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # addresses that only this machine can reach
POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1
IDLE = 60  # seconds that a client can leave sent data unread
LINGER = 5  # seconds that a refused body is still read, since cutting the connection would also lose the answer
ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/\sA-Z]+")  # as browsers send it
# OpenAI's names; other errors are an invalid_request_error below 500, and a server_error from there on.
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
HEADERS = {401: {"www-authenticate": "Bearer"}, 408: {"connection": "close"}} | dict.fromkeys(
    (429, 503), {"retry-after": "1"}
)


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        max_body_mib: of one request, in MiB; audio in JSON is base64, 4/3 of its file.
        max_bodies_mib: of all requests that are arriving, waiting or being answered, together.
        max_requests: at a time, including those that wait in the engine.
        timeout: seconds from the first byte of a request to the last of its answer.
        allowed_origins: of other sites' web pages that can send requests, such as https://example.org; "*" is every
            site.
    """

    max_body_mib: float = 64
    max_bodies_mib: float = 1024
    max_requests: int = 256
    timeout: float = 600
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self):
        for name, value in vars(self).items():
            if name != "allowed_origins" and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}.")
        if self.max_bodies_mib < self.max_body_mib:
            raise ValueError(
                f"max_bodies_mib must be max_body_mib ({self.max_body_mib:g}) or more, got {self.max_bodies_mib:g}."
            )
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"allowed_origins must be like https://example.org, or *, got {origin!r}.")

    @classmethod
    def from_environment(cls) -> "Limits":
        """The settings of `as_environment`, others by default. Raises a `ValueError` for anything but a number."""
        kinds: dict[str, Callable[[str], Any]] = dict.fromkeys(("max_body_mib", "max_bodies_mib", "timeout"), float)
        kinds |= {"max_requests": int, "allowed_origins": lambda text: tuple(text.split())}
        given = {name: os.environ.get(PREFIX + name.upper()) for name in kinds}
        return cls(**{name: kinds[name](value) for name, value in given.items() if value is not None})

    def as_environment(self) -> dict[str, str]:
        values = vars(self) | {"allowed_origins": " ".join(self.allowed_origins)}
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def openai_error(refused: RefusedRequest) -> dict[str, Any]:
    """The content of an error answer, in OpenAI's format."""
    status = refused.status
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = "model_not_found" if (status, refused.param) == (404, "model") else CODES.get(status)
    return {"error": {"message": str(refused), "type": kind, "param": refused.param, "code": code}}


class RequestLimits:
    """
    Attributes:
        draining: set when the server is about to stop: new requests are refused.
        running: requests whose body has arrived and that are not answered yet.

    Args:
        app: the ASGI application.
        limits: `None` takes limits, key and host from the environment.
        key: that clients must send for paths below /v1; `None` requires none.
        host: on which the server listens.
    """

    def __init__(self, app: App, limits: Limits | None = None, key: str | None = None, host: str | None = None):
        if limits is None:
            limits, key = Limits.from_environment(), os.environ.get("VLLM_API_KEY")
            host = os.environ.get(PREFIX + "HOST")
        self.app, self.limits, self._key = app, limits, (key or "").encode()
        self._here_alone = host in LOOPBACK
        self.draining, self.running, self._held = False, 0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(receive, send)
        if scope["type"] == "lifespan" or scope.get("method") == "OPTIONS":  # a browser's preflight request
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # a browser opens these across sites without a preflight request
            if self._refusal(scope):
                await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            else:
                await self.app(scope, receive, send)
        elif scope["method"] in ("POST", "PUT", "PATCH"):
            try:
                await self._limited(scope, exchange)
            except _ClientGone:
                pass
            finally:
                self._hold(exchange, 0)
        elif refused := self._refusal(scope):
            await exchange.refuse(refused)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> RefusedRequest | None:
        """Why the sender is refused, if so."""
        headers = dict(scope["headers"])
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if self.draining and path != "/metrics":
            return RefusedRequest("This server is shutting down.", status=503)
        if origin and not self._knows_origin(origin, host):
            return RefusedRequest("Web pages of other sites are not allowed to use this server.", status=403)
        # A page's own host name can also resolve to this machine (DNS rebinding).
        if self._here_alone and not self._key and host and not _is_address(host):
            why = f"Without an API key, call this server as localhost or by its IP address, not as {host[:100]!r}."
            return RefusedRequest(why, status=403)
        # As in vLLM, only /v1 needs the key.
        if self._key and path.startswith("/v1") and not self._knows_key(headers.get(b"authorization", b"")):
            why = "Unauthorized: this server requires its API key: Authorization: Bearer KEY."
            return RefusedRequest(why, status=401)
        return None

    def _knows_origin(self, origin: str, host: str) -> bool:
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        return origin.lower() in own or not {"*", origin}.isdisjoint(self.limits.allowed_origins)

    def _knows_key(self, shown: bytes) -> bool:
        scheme, _, key = shown.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._key)

    async def _limited(self, scope: Scope, exchange: "_Exchange") -> None:
        limit = self.limits.timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                refused = await self._read(scope, exchange) or self._refusal(scope) or self._no_place()
                if refused:
                    deadline.reschedule(None)
                    self._hold(exchange, 0)
                    await exchange.refuse(refused)
                else:
                    await self._pass_on(scope, exchange)
        except TimeoutError:
            if not deadline.expired():
                raise
            status, what = (504, "answer was not ready") if exchange.whole else (408, "body did not arrive")
            await exchange.refuse(
                RefusedRequest(f"The {what} within this server's limit, {limit:g} s.", status=status)
            )

    async def _read(self, scope: Scope, exchange: "_Exchange") -> RefusedRequest | None:
        """Reads the body; returns why it is refused, if it is."""
        refused, read = self._refusal(scope) or _refused_encoding(scope), 0
        announced = int(dict(scope["headers"]).get(b"content-length", 0))
        async for block in exchange.blocks():
            read += len(block)
            refused = refused or self._no_room(max(read, announced), len(block))
            if refused:
                return refused
            exchange.body += block
            self._hold(exchange, len(exchange.body))
        return None

    def _hold(self, exchange: "_Exchange", size: int) -> None:
        self._held += size - exchange.held
        exchange.held = size

    def _no_room(self, size: int, more: int) -> RefusedRequest | None:
        largest, most = self.limits.max_body_mib, self.limits.max_bodies_mib
        if size > largest * MIB:
            return RefusedRequest(f"The body is larger than this server's limit, {largest:g} MiB.", status=413)
        if self._held + more > most * MIB:
            why = f"This server holds at most {most:g} MiB of requests at a time, and is full. Try again."
            return RefusedRequest(why, status=429)
        return None

    def _no_place(self) -> RefusedRequest | None:
        most = self.limits.max_requests
        why = f"This server answers at most {most} requests at a time, and is full. Try again."
        return RefusedRequest(why, status=429) if self.running >= most else None

    async def _pass_on(self, scope: Scope, exchange: "_Exchange") -> None:
        self.running += 1
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            self.running -= 1


class _ClientGone(ConnectionError):
    pass


class _Exchange:
    """
    A request and its answer, between server and application.

    Attributes:
        body: what has arrived of it.
        held: bytes that count until the answer is complete.
        whole: whether the body has arrived.
    """

    def __init__(self, receive: Receive, send: Send):
        self._receive, self._send = receive, send
        self.body, self.held, self.whole = bytearray(), 0, False
        self._passed_on = False
        self._kind: bytes | None = None  # of the answer, once it has started

    async def blocks(self) -> AsyncIterator[bytes]:
        while not self.whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            self.whole = not message.get("more_body", False)
            yield message.get("body", b"")

    async def receive(self) -> Message:
        """The body in one piece, then the server's own messages: that the client has disconnected."""
        if self._passed_on:
            return await self._receive()
        self._passed_on, body, self.body = True, bytes(self.body), bytearray()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Raises a `_ClientGone` if the client reads nothing."""
        if message["type"] == "http.response.start":
            self._kind = dict(message.get("headers", ())).get(b"content-type", b"")
        try:
            async with asyncio.timeout(IDLE) as idle:
                await self._send(message)
        except TimeoutError:
            if idle.expired():
                raise _ClientGone from None
            raise

    async def refuse(self, refused: RefusedRequest) -> None:
        """Raises a `TimeoutError` if a whole answer has started, so that the server can only cut the connection."""
        content = json.dumps(openai_error(refused))
        if self._kind is None:
            fields = {"content-type": "application/json", "content-length": str(len(content))}
            fields |= HEADERS.get(refused.status, {})
            headers = [(name.encode(), value.encode()) for name, value in fields.items()]
            await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        elif self._kind.startswith(b"text/event-stream"):
            content = f"data: {content}\n\n"
        else:
            raise TimeoutError(str(refused))
        await self.send({"type": "http.response.body", "body": content.encode(), "more_body": True})
        await self._discard()
        await self.send({"type": "http.response.body"})

    async def _discard(self) -> None:
        """Discards the rest of the body, for a while: most clients send all of it before they read."""
        self.body.clear()
        with suppress(TimeoutError, _ClientGone):
            async with asyncio.timeout(LINGER):
                async for _ in self.blocks():
                    pass


def _refused_encoding(scope: Scope) -> RefusedRequest | None:
    values = [value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
    codings = [coding.strip() for coding in ",".join(values).split(",")]
    applied = [coding for coding in codings if coding.lower() not in ("", "identity")]
    if not applied:
        return None
    why = f"Expected a body without Content-Encoding, got {', '.join(applied)[:100]}. Send it uncompressed."
    return RefusedRequest(why, status=415)


def _is_address(host: str) -> bool:
    """Whether a `Host` header, with or without a port, holds `localhost` or an IP address."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False


__all__ = ["HEADERS", "Limits", "RequestLimits", "openai_error"]
