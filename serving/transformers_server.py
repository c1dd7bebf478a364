"""An OpenAI-compatible server that needs nothing but this package: transformers generates, the standard library serves.

    falcon3-audio serve MODEL --engine transformers

POST /v1/chat/completions (streams as well) and /v1/audio/transcriptions, GET /v1/models, /health and /metrics. A thread
per connection (http_handler.py) reads and checks requests (chat_requests.py), one thread owns the model
(generation_queue.py). Greedy answers are those of `pipeline()`. SIGTERM and SIGINT let what is running end; a second one
does not wait.
"""

import argparse
import logging
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from transformers import pipeline

from falcon3_audio import AudioTextToTextPipeline, Falcon3AudioProcessor
from falcon3_audio.pipeline_falcon3_audio import DEFAULT_MAX_NEW_TOKENS
from falcon3_audio.processing import SAMPLING_RATE

from .chat_requests import ChatReader, ChatRequest
from .generation_queue import GenerationQueue
from .http_handler import HttpServer
from .request_audio import AudioReader, RefusedRequest
from .request_limits import MIB, Limits


logger = logging.getLogger(__name__)

PREFIX = "falcon3_audio_"  # of metrics


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        served_model_name: by which clients ask.
        host, port: to listen on; port 0 takes a free one.
        max_audios: in one chat.
        max_batch: requests that are generated together.
        allowed_media_domains: hosts from which audio may be fetched.
        limits: of body, requests at once and seconds.
        key: that clients must show; `None` asks for none.
    """

    served_model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_audios: int = 8
    max_batch: int = 8
    allowed_media_domains: tuple[str, ...] = ()
    limits: Limits = Limits()
    key: str | None = None


class Server:
    """
    Serves while it is entered; leaving answers what is running, and takes nothing new.

    Args:
        pipe: of Falcon3-Audio, which nobody else may use from now on.

    Raises an `OSError` where the address is not to be had.
    """

    def __init__(self, pipe: AudioTextToTextPipeline, settings: Settings):
        self.settings, limits = settings, settings.limits
        processor, config = pipe.processor, pipe.model.config.get_text_config()
        max_bytes = int(limits.max_body_mib * MIB)
        longest = processor.max_audio_seconds
        counted = processor._get_num_multimodal_tokens(audio_lengths=[int(longest * SAMPLING_RATE)])
        held = longest * config.max_position_embeddings / counted["num_audio_tokens"][0]  # seconds in a context
        audio = AudioReader(longest, settings.allowed_media_domains, max_bytes, held)
        self.reader = ChatReader(
            settings.served_model_name,
            processor,
            config.max_position_embeddings,
            pipe.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            settings.max_audios,
            audio,
        )
        self.started = int(time.time())
        self._statuses: Counter[int] = Counter()
        self._totals: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._requests = 0
        self._closing = False
        try:
            self._http = HttpServer((settings.host, settings.port), self)
        except OSError as error:
            raise OSError(
                f"{settings.host}:{settings.port} is not to be had ({error.strerror}); see --port."
            ) from error
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._http.server_address[1]}"
        self.queue = GenerationQueue(pipe, settings.max_batch)

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), name="http", daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._http.shutdown()
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._requests == 0)
        self.queue.close()
        self._http.server_close()

    def begin(self) -> None:
        """To be followed by `end`. Raises a `RefusedRequest` where there are too many requests."""
        most = self.settings.limits.max_requests
        with self._changed:
            if self._closing:
                raise RefusedRequest("This server is about to end.", status=503)
            if self._requests >= most:
                raise RefusedRequest(f"This server answers {most} requests at once, and has as many.", status=429)
            self._requests += 1

    def end(self) -> None:
        with self._changed:
            self._requests -= 1
            self._changed.notify_all()

    def count(self, status: int) -> None:
        with self._changed:
            self._statuses[status] += 1

    def count_answer(self, request: ChatRequest, tokens: int) -> None:
        with self._changed:
            self._totals["prompt_tokens"] += request.prompt_tokens
            self._totals["generated_tokens"] += tokens
            self._totals["audio_milliseconds"] += round(1000 * request.audio_seconds)

    def metrics(self) -> str:
        """In Prometheus' text format."""
        with self._changed:
            statuses, totals = sorted(self._statuses.items()), self._totals.copy()
        values: dict[str, list[tuple[str, float]]] = {
            "requests_total counter": [(f'requests_total{{status="{status}"}}', n) for status, n in statuses],
            "requests_running gauge": [("requests_running", self.queue.running)],
            "requests_waiting gauge": [("requests_waiting", self.queue.waiting)],
            "prompt_tokens_total counter": [("prompt_tokens_total", totals["prompt_tokens"])],
            "generated_tokens_total counter": [("generated_tokens_total", totals["generated_tokens"])],
            "audio_seconds_total counter": [("audio_seconds_total", totals["audio_milliseconds"] / 1000)],
        }
        lines: list[str] = []
        for kind, samples in values.items():
            lines.append(f"# TYPE {PREFIX}{kind}")
            lines += [f"{PREFIX}{name} {value}" for name, value in samples]
        return "\n".join(lines) + "\n"


def load(model: str) -> AudioTextToTextPipeline:
    """
    A checkpoint from a folder or the Hub, on the first GPU if there is one.

    Raises a `ValueError` for what is no checkpoint of Falcon3-Audio, and an `OSError` where there is none.
    """
    try:
        pipe = pipeline("audio-text-to-text", model=model, dtype="auto")
    # No processor but a tokenizer; a device without room.
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{model} cannot be loaded: {error}") from error
    if not isinstance(pipe.processor, Falcon3AudioProcessor):
        raise ValueError(
            f"{model} is served with {type(pipe.processor).__name__}; expected a checkpoint of Falcon3-Audio."
        )
    return pipe


def run(options: argparse.Namespace, key: str | None) -> int:
    """
    Serves until SIGTERM or SIGINT; `options` are those of serve.py, and `key` is what clients must show, if anything.

    Returns 1 where the device failed. Raises a `ValueError` or `OSError` where it cannot begin.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = vars(options) | {
        "served_model_name": options.served_model_name or options.model,
        "limits": Limits(options.max_body_mib, options.max_requests, options.timeout),
        "key": key,
    }
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings) if field.name in given})
    with Server(load(options.model), settings) as server:
        ended = threading.Event()

        def end(number: int, frame: Any) -> None:
            signal.signal(number, signal.SIG_DFL)
            ended.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        logger.info("%s is served at %s/v1", settings.served_model_name, server.url)
        while not ended.wait(1) and not server.queue.broken.is_set():
            pass
    return int(server.queue.broken.is_set())


__all__ = ["Server", "Settings", "load", "run"]
