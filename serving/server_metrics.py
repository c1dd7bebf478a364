"""A server's metrics for Prometheus: requests by status, seconds, tokens, and running and waiting requests."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .chat_requests import ChatRequest
from .generation_queue import GenerationQueue


CLIENT_GONE = 499  # counted, never sent
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)


class Metrics:
    def __init__(self, queue: GenerationQueue):
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "falcon3_audio", "registry": self._registry}
        about = (
            f"Requests with a body, by the status of their answer; {CLIENT_GONE}: the client disconnected before it."
        )
        self._requests = Counter("requests", about, ["status"], **common)
        about = "Seconds from the first byte of a request to the last of its answer, for those answered with 200."
        self._seconds = Histogram("request_seconds", about, buckets=SECONDS, **common)
        self._prompts = Counter(
            "prompt_tokens", "Tokens of the prompts of complete answers, audio included.", **common
        )
        self._generated = Counter("generated_tokens", "Tokens of complete answers, end tokens included.", **common)
        self._audio = Counter("audio_seconds", "Seconds of audio in the prompts of complete answers.", **common)
        Gauge("requests_running", "Requests whose answers are being generated.", **common).set_function(
            lambda: queue.running
        )
        Gauge("requests_waiting", "Requests that wait for generation.", **common).set_function(lambda: queue.waiting)

    def count_answer(self, request: ChatRequest, tokens: int) -> None:
        self._prompts.inc(request.prompt_tokens)
        self._generated.inc(tokens)
        self._audio.inc(request.audio_seconds)

    def text(self) -> bytes:
        """In Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)

    def counting(self, app: ASGIApp) -> ASGIApp:
        """Wraps the application so that requests with a body are counted, which leaves out requests for metrics."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            status, begun = CLIENT_GONE, time.monotonic()

            async def noting_send(message: Message) -> None:
                nonlocal status
                status = message.get("status", status)
                await send(message)

            try:
                await app(scope, receive, noting_send)
            finally:
                if scope.get("method") == "POST":
                    self._requests.labels(status).inc()
                    if status == 200:
                        self._seconds.observe(time.monotonic() - begun)

        return counted


__all__ = ["CLIENT_GONE", "Metrics"]
