"""Answers from a model behind an OpenAI-compatible endpoint, which receives clips as wav files in `input_audio`.

Several threads send requests at the same time, each with all the questions about one clip. Before the first question,
the endpoint is asked with and without two seconds of noise: if the noise adds no prompt tokens, the endpoint does not
hear, and the run stops. An error of one request costs only that row, and an error of the server is asked again by the
next run; an endpoint that cannot answer any request now stops the run.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from .answerers import Item, NoAudio, Outcome, answered, by_clip, failed
from .controls import rewrite_as_wav
from .endpoint import Endpoint, EndpointError, EndpointFailed, EndpointUnavailable
from .questions import Clip


class RemoteModel:
    """
    A model behind an OpenAI-compatible endpoint, which receives clips as wav files in `input_audio`.

    Args:
        workers: concurrent requests.
        max_new_tokens: of each answer.
        seed: sent with each request, for servers that do not decode greedily at temperature 0.
    """

    packages: tuple[str, ...] = ("openai", "soundfile")

    def __init__(self, endpoint: Endpoint, workers: int = 8, max_new_tokens: int = 256, seed: int = 0):
        self.endpoint, self.workers = endpoint, workers
        self._sampling = {"temperature": 0, "max_tokens": max_new_tokens, "seed": seed}

    def describe(self) -> dict[str, Any]:
        return {
            "model": self.endpoint.model,
            "endpoint": self.endpoint.base_url,
            "model_commit": None,
            "model_commit_is": "unknown: endpoints do not say",
            "model_dtype": None,
            "device": None,
            "decoding": self._sampling,
        }

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        groups = by_clip(items)
        return [part for group in groups for part in ([group] if group[0].heard else [[item] for item in group])]

    def check_audio(self) -> str:
        samples = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * SAMPLING_RATE)
        noise = io.BytesIO()
        soundfile.write(noise, samples, SAMPLING_RATE, format="WAV")
        counts = []
        for wavs in ([], [noise.getvalue()]):
            try:
                usage = self.endpoint.ask(_chat("What do you hear?", wavs), **self._sampling).usage or {}
            except (EndpointFailed, EndpointUnavailable):
                raise
            except EndpointError as error:
                return f"unknown: a first question {'with' if wavs else 'without'} audio failed: {error}"
            counts.append(usage.get("prompt_tokens"))
        without, with_audio = counts
        if not (isinstance(without, int) and isinstance(with_audio, int)):
            return "unknown: the endpoint does not count prompt tokens"
        if with_audio <= without:
            raise NoAudio(
                f"{self.endpoint.model} at {self.endpoint.base_url} counts {with_audio} prompt tokens with two seconds "
                f"of audio and {without} without: it would answer without hearing the clips. Does it take input_audio?"
            )
        return f"two seconds of audio raised the endpoint's prompt tokens from {without} to {with_audio}"

    def prepare(self, clips: Sequence[Clip]):
        """Nothing: concurrent requests keep the endpoint busy."""

    def answer(self, items: list[Item]) -> Iterator[list[Outcome]]:
        try:
            wavs = [as_wav(clip.read(), clip.name) for clip in items[0].heard]
        except (OSError, ValueError) as error:
            yield [failed(item, error) for item in items]
            return
        for item in items:
            try:
                reply = self.endpoint.ask(_chat(item.prompt, wavs), **self._sampling)
                recorded = {"served_model": reply.model, "finish_reason": reply.finish_reason, "usage": reply.usage}
                recorded |= {"sampling_changed": reply.sampling} if reply.sampling else {}
                yield [answered(item, reply.text, **recorded)]
            except EndpointUnavailable:
                raise
            except EndpointError as error:
                yield [failed(item, error)]


def as_wav(data: bytes, name: str) -> bytes:
    """
    The wav file of an encoded file: itself if it is one, else re-encoded with 16 bits, see `rewrite_as_wav`.

    Raises a `ValueError` that names the clip if it cannot be decoded.
    """
    try:
        is_wav = soundfile.info(io.BytesIO(data)).format in ("WAV", "WAVEX")
    except soundfile.LibsndfileError:  # a format that only `load_audio` knows, or not audio
        is_wav = False
    if not is_wav:
        return rewrite_as_wav(data, name)
    load_audio(data, name=name)
    return data


def _chat(prompt: str, wavs: list[bytes]) -> list[dict[str, Any]]:
    audio = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}
        for wav in wavs
    ]
    words = [{"type": "text", "text": prompt}] if prompt else []  # servers refuse an empty text
    return [{"role": "user", "content": [*audio, *words]}]
