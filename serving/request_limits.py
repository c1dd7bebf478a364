"""Limits of a server that takes uploads, as ASGI middleware for any engine: body size, requests at once, seconds.

A body is read whole before the engine sees the request: one that is too large, or does not arrive in time, costs the
engine nothing. What is refused is answered in OpenAI's error format with 401, 413, 429, 408 or 504. Requests without a
body, such as /health and /metrics, have no limits. vLLM imports the class by name, so it reads its settings from the
environment, and there the key of vLLM (`VLLM_API_KEY`): who does not show it is not read.
"""

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PREFIX = "FALCON3_AUDIO_"
MIB = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "::1")  # addresses of this machine alone


@dataclass(frozen=True)
class Limits:
    """
    Attributes:
        max_body_mib: of one request, in MiB; audio in JSON is base64, 4/3 of its file.
        max_requests: at once, those that wait in the engine included.
        timeout: seconds from the first byte of a request to the last of its answer.
    """

    max_body_mib: float = 64
    max_requests: int = 256
    timeout: float = 600

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}.")

    @classmethod
    def from_environment(cls) -> "Limits":
        """The settings of `as_environment`; defaults for what is not set. Raises a `ValueError` for no numbers."""
        kinds: dict[str, type] = {"max_body_mib": float, "max_requests": int, "timeout": float}
        given = {name: os.environ.get(PREFIX + name.upper()) for name in kinds}
        return cls(**{name: kinds[name](value) for name, value in given.items() if value is not None})

    def as_environment(self) -> dict[str, str]:
        return {PREFIX + name.upper(): str(value) for name, value in vars(self).items()}


class RequestLimits:
    """
    Args:
        app: the ASGI application.
        limits: by default those of the environment.
    """

    def __init__(self, app: App, limits: Limits | None = None):
        self.app = app
        self.limits = limits or Limits.from_environment()
        self._key = os.environ.get("VLLM_API_KEY")
        self._running = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        if not self._knows_key(scope):
            await _refuse(send, 401, "Unauthorized: this server wants its API key: Authorization: Bearer KEY.")
            return
        busy = self._running >= self.limits.max_requests
        self._running += not busy
        try:
            await self._answer(scope, receive, send, busy)
        except _ClientGone:
            pass
        finally:
            self._running -= not busy

    def _knows_key(self, scope: MutableMapping[str, Any]) -> bool:
        """Or needs none: as in vLLM, only /v1 does."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self._key or not path.startswith("/v1"):
            return True
        scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key, self._key.encode())

    async def _answer(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, busy: bool) -> None:
        limits, body, begun = self.limits, None, False

        async def noting_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            async with asyncio.timeout(limits.timeout) as deadline:
                body = await _read(scope, receive, 0 if busy else int(limits.max_body_mib * MIB))
                if busy:
                    why = f"This server answers {limits.max_requests} requests at once, and has as many. Try again."
                    await _refuse(send, 429, why, ((b"retry-after", b"1"),))
                elif body is None:
                    await _refuse(
                        send, 413, f"The body is larger than this server's limit, {limits.max_body_mib:g} MiB."
                    )
                else:
                    await self.app(scope, _replay(body, receive), noting_send)
        except TimeoutError:
            if begun or not deadline.expired():
                raise  # after the headers, the server closing the connection is all that can be told
            status, what = (408, "body did not arrive") if body is None else (504, "answer was not ready")
            await _refuse(send, status, f"The {what} within this server's limit, {limits.timeout:g} s.")


class _ClientGone(Exception):
    pass


async def _read(scope: MutableMapping[str, Any], receive: Receive, limit: int) -> bytes | None:
    """
    The whole body; `None` if it is larger than `limit` bytes. That is read to its end as well, and thrown away: a
    client that is cut off while it sends sees a broken connection, and not why.
    """
    body = bytearray()
    fits = int(dict(scope["headers"]).get(b"content-length", 0)) <= limit
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        if fits:
            body += message.get("body", b"")
        fits = fits and len(body) <= limit
        more = message.get("more_body", False)
    return bytes(body) if fits else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then whatever the server says: that the client has gone."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


async def _refuse(send: Send, status: int, why: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    """An answer in OpenAI's format."""
    content = json.dumps({"error": {"message": why, "type": "RequestLimit", "param": None, "code": status}}).encode()
    fields = ((b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *headers)
    await send({"type": "http.response.start", "status": status, "headers": list(fields)})
    await send({"type": "http.response.body", "body": content})


__all__ = ["Limits", "RequestLimits"]
