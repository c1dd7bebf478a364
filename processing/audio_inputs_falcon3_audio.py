# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loads any audio source as mono float32 samples at 16 kHz, and converts between samples, frames and audio tokens.

Files and bytes are decoded by `audio_files_falcon3_audio` and resampled with soxr, which gives the same samples as
librosa and transformers. Anything that would silently lead to a wrong answer (NaN, a contradicting rate, a truncated
file) is a `ValueError` that names the clip.
"""

import http.client
import math
import os
import re
import urllib.request
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, WhisperFeatureExtractor
from transformers.utils import logging

from .audio_files_falcon3_audio import decode_file
from .data_urls_falcon3_audio import read_data_url


try:
    import soxr
except ImportError:  # then only audio at 16 kHz can be used; `_resample` says what to install
    soxr = None

logger = logging.get_logger(__name__)

# Whisper's front end and what follows from it: each line derives from the ones before.
SAMPLING_RATE = 16_000  # samples per second (Hz)
HOP_LENGTH = 160  # samples per mel frame
FRAMES_PER_SECOND = SAMPLING_RATE // HOP_LENGTH  # 100 mel frames per second
FRAMES_PER_POSITION = 2  # stride of the encoder's second convolution
POSITIONS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_POSITION  # 50 encoder positions per second
POOLING_WINDOW = 2  # encoder positions per audio token, unless the checkpoint says otherwise
TOKENS_PER_SECOND = POSITIONS_PER_SECOND // POOLING_WINDOW  # 25 audio tokens per second
WINDOW_SECONDS = 30  # longest stretch that Whisper encodes at once
# Silence after the clip that affects its last frames: the convolutions look 2 frames ahead, and a frame reaches 200
# samples to either side of its centre. With it, features are exactly those of the clip padded to 30 s.
TAIL_SAMPLES = 3 * HOP_LENGTH  # 480 samples

# A 2-D array with more rows and columns than this is a batch or a spectrogram, not channels.
MAX_CHANNELS = 32
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz
# Float audio should be in [-1, 1]; slightly more happens, but this much means 16-bit samples cast to float.
MAX_FLOAT_PEAK = 100.0
DOWNLOAD_TIMEOUT = 30.0  # seconds
USER_AGENT = {"User-Agent": "falcon3-audio"}  # many servers refuse Python's default
_FILE_BEGINS = (b"RIFF", b"FORM", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")
_BASE64 = re.compile(r"[\w+/=\s-]{40,}")
_DICT_KEYS = {"array", "raw", "bytes", "path", "sampling_rate"}
_NUMBER = (int, float, np.integer, np.floating)
_FULL_SCALE = {"int16": 2**15, "int32": 2**31}


class UnreadableAudioError(ValueError):
    """A clip that cannot be read: missing, damaged, empty, or not audio."""


def load_audio(
    source: Any,
    sampling_rate: int | None = None,
    name: str = "audio",
    max_seconds: float | None = None,
    unread: Collection[str] = (),
) -> np.ndarray:
    """
    Mono float32 samples at 16 kHz, shape `(samples,)`.

    Args:
        source: A path, an http(s), `file:` or `data:` URL, encoded bytes or a binary file object; an array, tensor or
            list of samples, `(samples,)`, `(channels, samples)` or `(samples, channels)`, as float in [-1, 1], int16,
            int32 or uint8; a dict as `datasets` and `pipeline` use it (`array` or `raw` with `sampling_rate`, `bytes`,
            `path`); a tuple of samples and their rate in Hz, in either order; or a torchcodec `AudioDecoder`. Channels
            are averaged. A file object is returned to its position, so it can be read again.
        sampling_rate (`int`, *optional*): Rate of the samples in Hz. Arrays without one are assumed to be at 16 kHz,
            with a warning. A file has its own rate; a different one given here is an error (except 16000, which
            transformers passes as the rate that the model expects).
        name (`str`): Name of this clip in errors.
        max_seconds (`float`, *optional*): A longer file is an error, and is decoded only up to this length: a few
            kilobytes can hold hours.
        unread (`Collection[str]`): Names of what was given next to the source, is not read, and could be the rate
            (`could_be_rate`). Next to samples without a rate this is an error.

    Raises:
        `UnreadableAudioError`, a `ValueError`: for empty, non-finite or unreadable audio, a truncated file, a file
            longer than its header or `max_seconds` says, a missing file, an impossible or contradicting sampling rate,
            more than two dimensions, and floats far outside [-1, 1].
        `TypeError`: for a source of another type.
    """
    try:
        return _load(source, sampling_rate, name, max_seconds, unread)
    except ValueError as error:
        raise UnreadableAudioError(str(error)) from error


def _load(
    source: Any, sampling_rate: int | None, name: str, max_seconds: float | None, unread: Collection[str]
) -> np.ndarray:
    samples, rate = _read(source, name, max_seconds)
    rate, sampling_rate = _plain_rate(rate), _plain_rate(sampling_rate)
    if rate is None:
        _check_rate_is_read(unread, name)
        if sampling_rate is None:
            logger.warning_once(
                f"{name}: no `sampling_rate` was given for an array of samples; assuming {SAMPLING_RATE} Hz. "
                "Pass `sampling_rate` to be sure: a wrong rate gives wrong answers."
            )
        rate = SAMPLING_RATE if sampling_rate is None else sampling_rate
    elif sampling_rate not in (None, rate, SAMPLING_RATE):
        raise ValueError(
            f"{name} is sampled at {rate} Hz, but sampling_rate={sampling_rate} was given. Leave it out: files have "
            "their own rate."
        )
    return _resample(_to_mono(samples, name), rate, name)


def count_frames(samples: int, window_samples: int) -> int:
    """Mel frames of a clip of `samples` at 16 kHz: whole windows, then `ceil(rest / 160)`."""
    windows, rest = divmod(samples, window_samples)
    return windows * (window_samples // HOP_LENGTH) + math.ceil(rest / HOP_LENGTH)


def count_encoded_frames(frames: int, silence: int, window_frames: int) -> int:
    """`frames` real mel frames plus `silence` after them, up to the end of the last window."""
    return min(frames + silence, math.ceil(frames / window_frames) * window_frames)


def count_tokens(frames: int, pooling_window: int) -> int:
    """Audio tokens for `frames` real mel frames: the encoder halves them, pooling divides again, both rounded up."""
    return math.ceil(math.ceil(frames / FRAMES_PER_POSITION) / pooling_window)


def whisper_feature_extractor(audio: Any) -> WhisperFeatureExtractor:
    """Loads the feature extractor if a name or folder is given. Raises a `ValueError` for one that is not Whisper's."""
    extractor = AutoFeatureExtractor.from_pretrained(audio) if isinstance(audio, (str, os.PathLike)) else audio
    if not isinstance(extractor, WhisperFeatureExtractor):
        raise ValueError(
            f"The audio backbone must be a Whisper model, got {audio!r:.100}, whose features are those of a "
            f"{type(extractor).__name__}. Use for example 'openai/whisper-medium.en'."
        )
    return extractor


def check_pooling_window(pooling_window: Any, window: float):
    """Raises a `ValueError` unless `pooling_window` divides the encoder positions of a window of `window` seconds."""
    positions = int(window * POSITIONS_PER_SECOND)
    if not _is_number(pooling_window, int) or pooling_window < 1 or positions % pooling_window:
        raise ValueError(
            f"`pooling_window` must be a whole number that divides the {positions} positions of a window, got "
            f"{pooling_window!r}."
        )


def check_silence(seconds: Any, read: Any, pad_to_window: Any, window: float):
    """The same rules as the model's config and its `check_trailing_silence`, which are in another folder."""
    for name, value in (("pad_to_window", pad_to_window), ("read_trailing_silence", read)):
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False, got {value!r}.")
    if not _is_number(seconds) or not 0 <= seconds <= window or 0 < seconds < 1 / FRAMES_PER_SECOND:
        raise ValueError(
            f"`trailing_silence` must be 0 or from {1 / FRAMES_PER_SECOND} to the {window:g} s of a window, got "
            f"{seconds!r}."
        )
    if pad_to_window and (seconds or not read):
        raise ValueError(
            "`pad_to_window` encodes and reads the whole window already; leave out `trailing_silence` and "
            f"`read_trailing_silence` (got {seconds} and {read})."
        )


def check_limit(seconds: Any):
    """Raises a `ValueError` unless `max_audio_seconds` is a finite number that allows at least one sample."""
    if _is_number(seconds) and 1 / SAMPLING_RATE <= seconds < math.inf:
        return
    raise ValueError(
        f"`max_audio_seconds` must be a number of seconds above 0, got {seconds!r}. For no limit, give a value that "
        "no clip reaches."
    )


def _is_number(value: Any, kinds: type | tuple[type, ...] = (int, float)) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def _read(source: Any, name: str, most: float | None) -> tuple[np.ndarray, int | None]:
    """Samples of any shape and type, and their rate if the source has one; `most` is the limit of files in seconds."""
    if isinstance(source, dict):
        return _read_dict(source, name, most)
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` returns
        decoded = source.get_all_samples()
        return decoded.data.numpy(), int(decoded.sample_rate)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(os.fspath(source), name, most)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode_file(bytes(source), name, most)
    if hasattr(source, "read"):
        return decode_file(_read_file_object(source, name), name, most)
    if is_with_rate(source):
        samples, rate = source if _is_scalar(source[1]) else source[::-1]
        return _read(samples, name, most)[0], rate
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().to(torch.float32 if source.is_floating_point() else source.dtype).numpy()
    if isinstance(source, (np.ndarray, list, tuple)):
        samples = source if isinstance(source, np.ndarray) else _as_array(source, name)
        if samples.dtype == np.uint8 and _begins_a_file(samples[:8].tobytes()):
            return decode_file(samples.tobytes(), name, most)  # a file read into an array
        return samples, None
    raise TypeError(
        f"{name} is a {type(source).__name__}; expected a path, URL, bytes, array, tensor, list of samples, (samples, "
        "rate) or a dict with 'array' and 'sampling_rate'."
    )


def _plain_rate(rate: Any) -> Any:
    """The rate as an `int`: datasets in torch or numpy format store it as a 0-d array, and JSON as 44100.0."""
    rate = rate.item() if isinstance(rate, (np.ndarray, torch.Tensor)) and rate.ndim == 0 else rate
    return int(rate) if isinstance(rate, (float, np.floating)) and rate.is_integer() else rate


def is_with_rate(source: Any) -> bool:
    """`(samples, rate)` as in torchaudio and soundfile, or `(rate, samples)` as in gradio and scipy."""
    if not isinstance(source, (tuple, list)) or len(source) != 2:
        return False
    rates = [_is_scalar(part) for part in source]
    return sum(rates) == 1 and isinstance(source[rates.index(False)], (np.ndarray, torch.Tensor, list, tuple))


def could_be_rate(value: Any) -> bool:
    """
    Whether an unknown value next to samples could be their rate: a number of Hz, also as text or an array, or a list of
    them. Ids, names, flags and small numbers could not.
    """
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(could_be_rate, value))
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        value = float(value)
    return _is_number(value, _NUMBER) and MIN_SAMPLING_RATE <= value <= MAX_SAMPLING_RATE


def is_list_of_clips(audio: Any) -> bool:
    """Whether `audio` is a list of clips. One clip is a list of numbers, and what was meant as samples and rate."""
    if not isinstance(audio, (list, tuple)) or any(isinstance(part, bool) or _is_scalar(part) for part in audio):
        return False
    begins = isinstance(audio, tuple) and isinstance((*audio, None)[0], (np.ndarray, torch.Tensor))
    return not (begins and any(part is None or isinstance(part, str) and part.isdecimal() for part in audio))


def _is_scalar(value: Any) -> bool:
    """A number, also as an array or tensor without dimensions."""
    return _is_number(value, _NUMBER) or isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0


def _as_array(source: list | tuple, name: str) -> np.ndarray:
    """Numbers, or channels, as an array."""
    try:
        samples = np.asarray(source)
    except (ValueError, TypeError) as error:
        if all(isinstance(part, (np.ndarray, torch.Tensor, list, tuple)) for part in source):
            raise ValueError(f"{name} is a list of unequal parts; pass one clip as a flat list of samples.") from error
    else:
        if samples.dtype.kind not in "OSU":
            return samples
    parts = ", ".join([*(type(part).__name__ for part in source[:6]), *(["..."] if len(source) > 6 else [])])
    raise ValueError(
        f"{name} is the {type(source).__name__} ({parts}); expected float or integer samples, or (samples, rate) with "
        "the rate in Hz as a number. Pass a file by its path alone, and other values not at all."
    )


def _begins_a_file(head: bytes) -> bool:
    return head.startswith(_FILE_BEGINS) or head[4:] == b"ftyp"


def _read_file_object(file: Any, name: str) -> bytes:
    """Reads from the current position, then returns to it, so that the file can be read again."""
    start = file.tell() if hasattr(file, "seekable") and file.seekable() else None
    data = file.read()
    if start is not None:
        file.seek(start)
    if not isinstance(data, bytes):
        raise TypeError(f"{name} is a file object that returns {type(data).__name__}; open it in binary mode ('rb').")
    return data


def _read_dict(source: dict, name: str, most: float | None) -> tuple[np.ndarray, int | None]:
    for key in ("array", "raw"):
        if source.get(key) is not None:
            samples, rate = _read(source[key], name, most)
            rate = source.get("sampling_rate") if rate is None else rate
            if rate is None:
                others = source.keys() - _DICT_KEYS
                _check_rate_is_read([key for key in others if could_be_rate(source[key])], name)
            return samples, rate
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            return _read(source[key], name, most)
    raise ValueError(
        f"{name} is a dict with the keys {sorted(source)}; expected 'array' (or 'raw'), 'bytes' or 'path'."
    )


def _check_rate_is_read(unread: Collection[str], name: str):
    """Raises a `ValueError` for samples without a rate if `unread` names could be that of the rate."""
    if unread:
        raise ValueError(
            f"{name}: the rate of its samples is not under 'sampling_rate'; there is {sorted(map(str, unread))} "
            "instead. Rename it if it is the rate, or remove it."
        )


def _read_path(path: str, name: str, most: float | None) -> tuple[np.ndarray, int]:
    scheme, colon, rest = path.strip().partition(":")
    if scheme.lower() in ("http", "https", "file", "data") and colon:  # RFC 3986, 3.1: case-insensitive
        path = f"{scheme.lower()}:{rest}"
        return decode_file(_fetch(path, name), f"{name} ({path[:100]})", most)
    if not os.path.isfile(path):
        advice = " Pass base64 audio as a `data:` URL." if _BASE64.fullmatch(path) else ""
        raise ValueError(f"{name}: there is no file {path[:200]!r}.{advice}")
    with open(path, "rb") as file:
        return decode_file(file.read(), f"{name} ({path})", most)


def _fetch(url: str, name: str) -> bytes:
    if url.startswith("data:"):
        return read_data_url(url, name)
    try:
        request = urllib.request.Request(url, headers=USER_AGENT)
        with urllib.request.urlopen(request, timeout=DOWNLOAD_TIMEOUT) as response:
            return response.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{name}: could not read {url[:100]!r}: {error}") from error


def _to_mono(samples: np.ndarray, name: str) -> np.ndarray:
    if samples.ndim not in (1, 2):
        raise ValueError(
            f"{name} has the shape {samples.shape}; expected (samples,), or two dimensions with channels."
        )
    if samples.size == 0:
        raise ValueError(f"{name} is empty: 0 samples.")
    if samples.ndim == 2 and min(samples.shape) > MAX_CHANNELS:
        raise ValueError(
            f"{name} has the shape {samples.shape}, too many channels for one clip. Pass a batch as a list of clips, "
            "and samples, not a spectrogram."
        )
    kind = samples.dtype.name  # in either byte order
    if kind in _FULL_SCALE:
        samples = samples.astype(np.float32) / _FULL_SCALE[kind]
    elif kind == "uint8":
        samples = (samples.astype(np.float32) - 128.0) / 128.0
    elif samples.dtype.kind != "f":
        raise ValueError(f"{name} holds {kind} values; expected float in [-1, 1], int16, int32 or uint8 samples.")
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(samples)).sum())} NaN or infinite samples; clean it first.")
    if np.abs(samples).max() > MAX_FLOAT_PEAK:
        raise ValueError(
            f"{name} reaches {np.abs(samples).max():.0f}; float samples lie in [-1, 1]. Divide 16-bit samples by 32768."
        )
    return samples if samples.ndim == 1 else samples.mean(axis=int(np.argmin(samples.shape)))


def _resample(samples: np.ndarray, rate: int, name: str) -> np.ndarray:
    if not isinstance(rate, (int, np.integer)) or not MIN_SAMPLING_RATE <= rate <= MAX_SAMPLING_RATE:
        raise ValueError(
            f"{name}: sampling_rate must be a whole number of Hz from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}, "
            f"got {rate!r}."
        )
    if rate == SAMPLING_RATE:
        return np.ascontiguousarray(samples)
    if soxr is None:
        raise ImportError("Resampling audio needs soxr: pip install soxr")
    length = math.ceil(len(samples) * SAMPLING_RATE / rate)
    samples = soxr.resample(samples, rate, SAMPLING_RATE, quality="HQ")[:length]
    return np.pad(samples, (0, length - len(samples)))


__all__ = [
    "SAMPLING_RATE",
    "TOKENS_PER_SECOND",
    "check_limit",
    "check_pooling_window",
    "check_silence",
    "could_be_rate",
    "count_encoded_frames",
    "count_frames",
    "count_tokens",
    "is_list_of_clips",
    "is_with_rate",
    "load_audio",
]
