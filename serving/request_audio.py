"""Decodes the audio of a request, base64 or a URL, into samples, within the allowed limits.

A file's header gives its length, and is read before anything is decoded: small files can hold days of silence. If the
header does not give the length, or gives a wrong one, the file is decoded up to the limit.
Files are fetched only from hosts that the operator named, and redirects are not followed.
"""

import http.client
import io
import math
import os
import re
import threading
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from falcon3_audio.processing import SAMPLING_RATE, load_audio
from falcon3_audio.processing.announced_length import announced_length
from falcon3_audio.processing.data_urls_falcon3_audio import read_base64, read_data_url


# Samples of all channels for each second of the longest audio: 96 kHz in stereo.
MAX_VALUES_PER_SECOND = 192_000
FETCH_TIMEOUT = 20.0  # seconds, for a whole file and for each wait
BLOCK = 2**16  # bytes per read
URL = re.compile(rb"\s*[a-z][a-z0-9+.-]{0,30}:", re.IGNORECASE)  # base64 has no colon
MAX_DECODING = 4  # files at a time: decoding takes many times a file's size in memory


class RefusedRequest(Exception):
    """
    A refusal, with the message for the client.

    Attributes:
        param: the field it is about.
        status: the HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


class AudioReader:
    """
    Reads audio. Thread-safe.

    Args:
        max_seconds: of a clip.
        hosts: from which audio can be fetched.
        max_bytes: of a file that is fetched.
        max_total: seconds of all clips of a request.
    """

    def __init__(self, max_seconds: float, hosts: tuple[str, ...], max_bytes: int, max_total: float = math.inf):
        self.max_seconds, self._max_bytes, self._max_total = max_seconds, max_bytes, max_total
        self._hosts = [host.lower() for host in hosts]
        self._decoding = threading.BoundedSemaphore(min(MAX_DECODING, os.cpu_count() or 1))

    def read_all(self, sources: list[str | bytes], param: str) -> list[np.ndarray]:
        """
        Mono float32 samples at 16 kHz of each source, a URL (`str`), or base64 or a URL (`bytes`).

        Raises a `RefusedRequest` about `param` that names the clip by its number.
        """
        clips: list[np.ndarray] = []
        for number, source in enumerate(sources, 1):
            name = f"Audio {number} of {len(sources)}"
            before = sum(map(len, clips)) / SAMPLING_RATE
            try:
                clips.append(self._decode(self._read(source, name), name, before))
            except ValueError as error:
                raise RefusedRequest(str(error), param) from error
        return clips

    def read_file(self, data: bytes, param: str) -> np.ndarray:
        """
        Samples of a file, as `read_all` gives them, that the model hears in parts: `max_total` does not apply. Raises a
        `RefusedRequest` about `param`.
        """
        try:
            return self._decode(data, "The file", before=None)
        except ValueError as error:
            raise RefusedRequest(str(error), param) from error

    def _decode(self, data: bytes, name: str, before: float | None) -> np.ndarray:
        with self._decoding:
            self._check_length(data, name, before)
            clip = load_audio(data, name=name, max_seconds=self.max_seconds)
        self._check_total(len(clip) / SAMPLING_RATE, name, before)
        return clip

    def _read(self, source: str | bytes, name: str) -> bytes:
        if isinstance(source, str):
            return self._from_url(source.strip(), name)
        if URL.match(source):  # some clients send these although OpenAI takes only base64
            return self._from_url(source.decode(errors="replace").strip(), name)
        return read_base64(source, name)

    def _from_url(self, url: str, name: str) -> bytes:
        if url[:5].lower() == "data:":
            return read_data_url(url, name)
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ValueError(f"{name}: {url[:100]!r} is not a URL: {error}.") from error
        if parts.scheme not in ("http", "https"):
            raise ValueError(
                f"{name}: expected a data: URL, got {url[:60]!r}. Send the file as data:TYPE;base64,DATA."
            )
        if parts.hostname not in self._hosts:
            raise ValueError(
                f"{name}: this server does not fetch from {str(parts.hostname)[:60]!r}. Send the file in a data: URL."
            )
        try:
            file = self._fetch(url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ValueError(f"{name}: {url[:100]!r} could not be read: {error}") from error
        if len(file) > self._max_bytes:
            raise ValueError(f"{name}: {url[:100]!r} has more than {self._max_bytes} bytes, this server's limit.")
        return file

    def _fetch(self, url: str) -> bytes:
        """The whole file, or more bytes than are allowed."""
        data, deadline = bytearray(), time.monotonic() + FETCH_TIMEOUT
        with _WITHOUT_REDIRECTS.open(url, timeout=FETCH_TIMEOUT) as answer:
            while len(data) <= self._max_bytes:
                block = answer.read1(BLOCK)
                if not block:
                    if len(data) < int(answer.headers.get("Content-Length", 0)):
                        raise OSError(f"it ended after {len(data)} bytes of {answer.headers['Content-Length']}")
                    break
                data += block
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it took more than {FETCH_TIMEOUT:g} s")
        return bytes(data)

    def _check_length(self, data: bytes, name: str, before: float | None) -> None:
        announced = announced_length(io.BytesIO(data))
        if announced is None:
            return
        frames, rate, channels = announced
        if frames is None:
            frames = round(self.max_seconds * rate)  # at most this much is decoded
        else:
            if frames / rate > self.max_seconds:
                raise ValueError(
                    f"{name} is {frames / rate:.1f} s long; a clip can have {self.max_seconds:g} s at most. Send it in "
                    "parts."
                )
            self._check_total(frames / rate, name, before)
        most = self.max_seconds * MAX_VALUES_PER_SECOND
        if frames * channels > most:
            raise ValueError(
                f"{name} has {frames} samples in {channels} channels, together more than {most:.0f}. Resample it."
            )

    def _check_total(self, seconds: float, name: str, before: float | None) -> None:
        if before is not None and before + seconds > self._max_total:
            raise ValueError(
                f"{name} is {seconds:.1f} s long, after {before:.1f} s of earlier clips; the model's context holds "
                f"{self._max_total:g} s of audio."
            )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Turns redirects into errors: they could lead to hosts that the operator did not name."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_WITHOUT_REDIRECTS = urllib.request.build_opener(_NoRedirects)


__all__ = ["AudioReader", "RefusedRequest"]
