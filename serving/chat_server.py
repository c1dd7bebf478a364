"""The transformers engine: an OpenAI-compatible server that needs no vLLM.

    falcon3-audio serve MODEL --engine transformers

POST /v1/chat/completions (streams as well) and /v1/audio/transcriptions, GET /v1/models, /health and /metrics. One event loop
takes requests and answers them (http_server.py, request_limits.py, chat_app.py), threads read them (chat_requests.py), and
one thread owns the model (generation_queue.py). Greedy answers are those of `pipeline()`. SIGTERM and SIGINT let
running requests finish; a second signal does not wait for them.
"""

import argparse
import logging
import signal
import sys
import threading
from dataclasses import dataclass, fields
from typing import Any

from falcon3_audio import AudioTextToTextPipeline, Falcon3AudioProcessor
from falcon3_audio.adapters import load_pipeline
from falcon3_audio.pipeline_falcon3_audio import DEFAULT_MAX_NEW_TOKENS
from falcon3_audio.processing import SAMPLING_RATE
from falcon3_audio.saved_json import readable_json
from falcon3_audio.text_sizes import context_length

from .chat_app import ChatApp
from .chat_requests import ChatReader
from .generation_queue import GenerationQueue
from .http_server import HttpServer
from .request_audio import AudioReader
from .request_limits import MIB, Limits
from .transcription_requests import TranscriptionReader


logger = logging.getLogger(__name__)

ENDS = (signal.SIGINT, signal.SIGTERM)
MAX_BATCH = 8  # requests that are generated together


@dataclass(frozen=True)
class Settings:
    """
    Attributes:
        served_model_name: the model name that clients use.
        host, port: to listen on; port 0 takes a free one.
        max_audios: in one chat.
        allowed_media_domains: hosts from which audio can be fetched.
        limits: on bodies, concurrent requests and seconds.
        key: that clients must send; `None` requires none.
    """

    served_model_name: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_audios: int = 8
    allowed_media_domains: tuple[str, ...] = ()
    limits: Limits = Limits()
    key: str | None = None


class Server:
    """
    Serves inside its `with` block; on leaving, running requests are answered and new ones refused.

    Args:
        pipe: of Falcon3-Audio; nothing else may use it from now on.

    Raises an `OSError` if the address is not available.
    """

    def __init__(self, pipe: AudioTextToTextPipeline, settings: Settings):
        self.settings, limits = settings, settings.limits
        processor, config = pipe.processor, pipe.model.config.get_text_config()
        context = context_length(config) or sys.maxsize
        longest = processor.max_audio_seconds
        counted = processor._get_num_multimodal_tokens(audio_lengths=[int(longest * SAMPLING_RATE)])
        held = longest * context / counted["num_audio_tokens"][0]  # seconds in a context
        audio = AudioReader(longest, settings.allowed_media_domains, int(limits.max_body_mib * MIB), held)
        self.reader = ChatReader(
            settings.served_model_name,
            processor,
            context,
            pipe.model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
            settings.max_audios,
            audio,
        )
        self.queue = GenerationQueue(pipe, MAX_BATCH)
        transcriptions = TranscriptionReader(self.reader, processor.window_samples)
        about = (self.queue, limits, settings.key, settings.host)
        app = ChatApp(settings.served_model_name, self.reader, transcriptions, *about)
        self.http = HttpServer(app, app.limits, settings.host, settings.port)
        self.url = self.http.url

    def __enter__(self) -> "Server":
        self.http.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.http.__exit__()
        self.queue.close()


def load(model: str) -> AudioTextToTextPipeline:
    """
    A checkpoint or a run's adapter from a folder or the Hub, on the first GPU if there is one.

    Raises a `ValueError` for anything but a checkpoint of Falcon3-Audio, and an `OSError` if there is none.
    """
    try:
        with readable_json(model):
            pipe = load_pipeline(model, dtype="auto")
    except RuntimeError as error:  # too little memory on the device
        raise ValueError(f"{model} cannot be loaded: {error}") from error
    if not isinstance(pipe.processor, Falcon3AudioProcessor):
        raise ValueError(
            f"{model} has the processor {type(pipe.processor).__name__}; expected a checkpoint of Falcon3-Audio."
        )
    return pipe


def run(options: argparse.Namespace, limits: Limits, key: str | None) -> int:
    """
    Serves until SIGTERM or SIGINT; `options` are those of serve.py, and `key` is what clients must send, if anything.

    Returns 1 if the device failed. Raises a `ValueError` or `OSError` if it cannot start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    given = vars(options) | {
        "served_model_name": options.served_model_name or options.model,
        "limits": limits,
        "key": key,
    }
    settings = Settings(**{field.name: given[field.name] for field in fields(Settings) if field.name in given})
    with Server(load(options.model), settings) as server:
        ended = threading.Event()

        def end(number: int, frame: Any) -> None:
            for known in ENDS:
                signal.signal(known, signal.SIG_DFL)
            ended.set()

        for number in ENDS:
            signal.signal(number, end)
        logger.info("%s is served at %s/v1", settings.served_model_name, server.url)
        while not ended.wait(1) and not server.queue.broken.is_set():
            if not server.http.is_serving:
                raise OSError("the HTTP server stopped by itself; see its messages above")
    return int(server.queue.broken.is_set())


__all__ = ["Server", "Settings", "load", "run"]
