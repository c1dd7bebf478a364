# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From anything that holds sound to mono float32 samples at 16 kHz, and the arithmetic of time in this model.

Files and bytes are decoded with soundfile and resampled with soxr, which gives the samples that librosa and
transformers give. What soundfile cannot read (m4a, mp4, webm) goes to torchcodec where it is installed. Whatever would
make a wrong answer in silence (NaN, a contradicting rate, a truncated file) is a `ValueError` that names the clip.
"""

import base64
import io
import math
import os
import urllib.request
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import load_audio as transformers_load_audio
from transformers.utils import logging


try:
    import soundfile
    import soxr
except ImportError:  # only arrays at 16 kHz can be used then; `_decode` and `_resample` say what to install
    soundfile = soxr = None

logger = logging.get_logger(__name__)

# Whisper's front end, and what follows from it. Each line derives from the ones before.
SAMPLING_RATE = 16_000  # samples per second (Hz)
HOP_LENGTH = 160  # samples per mel frame
FRAMES_PER_SECOND = SAMPLING_RATE // HOP_LENGTH  # 100 mel frames per second
FRAMES_PER_POSITION = 2  # stride of the encoder's second convolution
POSITIONS_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_POSITION  # 50 encoder positions per second
POOLING_WINDOW = 2  # encoder positions per audio token, unless the checkpoint says otherwise
TOKENS_PER_SECOND = POSITIONS_PER_SECOND // POOLING_WINDOW  # 25 audio tokens per second
WINDOW_SECONDS = 30  # longest stretch that Whisper encodes at once
TOKENS_PER_WINDOW = WINDOW_SECONDS * TOKENS_PER_SECOND  # 750 audio tokens
# Silence after the clip that decides its last frames: the convolutions look 2 frames ahead, and a frame reaches 200
# samples to either side of its centre. With it, features equal those of the clip padded to 30 s, sample for sample.
TAIL_SAMPLES = 3 * HOP_LENGTH  # 480 samples

# A 2-D array with more rows and columns than this is a batch or a spectrogram, not channels.
MAX_CHANNELS = 32
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz
# Float audio is meant to lie in [-1, 1]; a little more happens, this much is 16-bit samples cast to float.
MAX_FLOAT_PEAK = 100.0
# libsndfile's number of frames for a file that does not say, or beyond anything real.
UNKNOWN_FRAMES = 2**40
# kbit/s by index, of MPEG-1 and of MPEG-2 layer III.
MP3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBITS_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MP3_TOLERANCE = 10 * 1152  # encoders' delay and padding are cut off, and a frame for the header
DOWNLOAD_TIMEOUT = 30.0  # seconds
_FILE_BEGINS = (b"RIFF", b"FORM", b"fLaC", b"OggS", b"ID3")
_FULL_SCALE = {"int16": 2**15, "int32": 2**31}


def load_audio(source: Any, sampling_rate: int | None = None, name: str = "audio") -> np.ndarray:
    """
    Mono float32 samples at 16 kHz, shape `(samples,)`.

    Args:
        source: A path, an http(s) or `data:` URL, encoded bytes or a binary file object; an array, tensor or list of
            samples, `(samples,)`, `(channels, samples)` or `(samples, channels)`, as float in [-1, 1], int16, int32
            or uint8; a dict as `datasets` and `pipeline` use it (`array` or `raw` with `sampling_rate`, `bytes`,
            `path`); or a torchcodec `AudioDecoder`. Channels are averaged.
        sampling_rate (`int`, *optional*): Rate of the samples in Hz. Arrays without one are taken as 16 kHz, with a
            warning. A file knows its own rate; a different one given here is an error (16000 is not: transformers
            uses it for the rate that the model wants).
        name (`str`): What errors call this clip.

    Raises:
        `ValueError`: empty, non-finite or unreadable audio, a truncated file, a missing file, an impossible or
            contradicting sampling rate, more than two dimensions, floats far outside [-1, 1].
        `TypeError`: for a source of another type.
    """
    samples, rate = _read(source, name)
    if rate is None:
        if sampling_rate is None:
            logger.warning_once(
                f"{name}: no `sampling_rate` was given for an array of samples; taking it as {SAMPLING_RATE} Hz. "
                "Pass `sampling_rate` to be sure: a wrong rate gives wrong answers."
            )
        rate = SAMPLING_RATE if sampling_rate is None else sampling_rate
    elif sampling_rate not in (None, rate, SAMPLING_RATE):
        raise ValueError(
            f"{name} is sampled at {rate} Hz, but sampling_rate={sampling_rate} was given. Leave it out: files know "
            "their own rate."
        )
    return _resample(_to_mono(samples, name), rate, name)


def count_frames(samples: int, window_samples: int) -> int:
    """Mel frames of a clip of `samples` at 16 kHz: whole windows, then `ceil(rest / 160)`."""
    windows, rest = divmod(samples, window_samples)
    return windows * (window_samples // HOP_LENGTH) + math.ceil(rest / HOP_LENGTH)


def count_encoded_frames(frames: int, silence: int, window_frames: int) -> int:
    """`frames` real mel frames and `silence` behind them, up to the end of the last window."""
    return min(frames + silence, math.ceil(frames / window_frames) * window_frames)


def count_tokens(frames: int, pooling_window: int) -> int:
    """Audio tokens of `frames` real mel frames: the encoder halves them, pooling divides once more, both rounded up."""
    return math.ceil(math.ceil(frames / FRAMES_PER_POSITION) / pooling_window)


def _read(source: Any, name: str) -> tuple[np.ndarray, int | None]:
    """Samples of whatever shape and type, and their rate where the source knows it."""
    if isinstance(source, dict):
        return _read_dict(source, name)
    if hasattr(source, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` hands out
        decoded = source.get_all_samples()
        return decoded.data.numpy(), int(decoded.sample_rate)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(os.fspath(source), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), name)
    if hasattr(source, "read"):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError(
                f"{name} is a file object that gives {type(data).__name__}; open it in binary mode ('rb')."
            )
        return _decode(data, name)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().to(torch.float32 if source.is_floating_point() else source.dtype).numpy()
    if isinstance(source, (np.ndarray, list, tuple)):
        try:
            samples = np.asarray(source)
        except ValueError as error:
            raise ValueError(f"{name} is a list of unequal parts; pass one clip as a flat list of samples.") from error
        if samples.dtype == np.uint8 and samples[:4].tobytes().startswith(_FILE_BEGINS):
            return _decode(samples.tobytes(), name)  # a file read into an array
        return samples, None
    raise TypeError(
        f"{name} is a {type(source).__name__}; expected a path, URL, bytes, array, tensor, list of samples or a dict "
        "with 'array' and 'sampling_rate'."
    )


def _read_dict(source: dict, name: str) -> tuple[np.ndarray, int | None]:
    for key in ("array", "raw"):
        if source.get(key) is not None:
            samples, rate = _read(source[key], name)
            return samples, source.get("sampling_rate") if rate is None else rate
    for key in ("bytes", "path"):
        if source.get(key) is not None:
            return _read(source[key], name)
    raise ValueError(
        f"{name} is a dict with the keys {sorted(source)}; expected 'array' (or 'raw'), 'bytes' or 'path'."
    )


def _read_path(path: str, name: str) -> tuple[np.ndarray, int]:
    if path.startswith(("http://", "https://", "data:")):
        return _decode(_fetch(path, name), f"{name} ({path[:100]})", path)
    if not os.path.isfile(path):
        raise ValueError(f"{name}: there is no file {path[:200]!r}. Base64 audio goes in a `data:` URL.")
    with open(path, "rb") as file:
        return _decode(file.read(), f"{name} ({path})", path)


def _fetch(url: str, name: str) -> bytes:
    try:
        if url.startswith("data:"):
            return base64.b64decode(url.partition(",")[2], validate=True)
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            return response.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: could not read {url[:100]!r}: {error}") from error


def _decode(data: bytes, name: str, path: str | None = None) -> tuple[np.ndarray, int]:
    if soundfile is None:
        raise ImportError("Reading audio files needs soundfile and soxr: pip install soundfile soxr")
    if not data:
        raise ValueError(f"{name} is empty: 0 bytes.")
    _check_is_whole(data, name)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            known = file.frames < UNKNOWN_FRAMES
            samples = file.read(dtype="float32", always_2d=True) if known else _read_to_the_end(file)
            promised, rate = file.frames, file.samplerate
    except soundfile.LibsndfileError as error:
        return _decode_with_torchcodec(path, name, error), SAMPLING_RATE
    if known and len(samples) < promised:
        raise ValueError(f"{name} is truncated: it announces {promised} samples and holds {len(samples)}.")
    # Of an mp3 without a header libsndfile guesses the length by its first frame, and reads no further.
    held = _count_mp3_samples(data)
    if len(samples) < held - MP3_TOLERANCE:
        raise ValueError(
            f"{name} is an mp3 that does not say how long it is: only {len(samples) / rate:.1f} of about {held / rate:.1f} s "
            "could be read. Convert it (ffmpeg -i in.mp3 out.flac)."
        )
    return samples, rate


def _count_mp3_samples(data: bytes) -> int:
    """Samples per channel in the frames of an mp3 file, by their headers (ISO 11172-3, 13818-3); 0 for other files."""
    position = 0
    if data[:3] == b"ID3":
        position = 10 + sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
    samples = 0
    while position + 4 <= len(data):
        header = int.from_bytes(data[position : position + 4], "big")
        version, bits, rate = header >> 19 & 3, header >> 12 & 15, header >> 10 & 3
        # A frame of layer III; the version 1 and the rate 3 are reserved, and of free bit rates no length is known.
        if header >> 21 != 0x7FF or header >> 17 & 3 != 1 or version == 1 or rate == 3 or not 0 < bits < 15:
            break
        first = version == 3
        kbits = (MP3_KBITS if first else MP3_KBITS_2)[bits - 1]
        hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]  # MPEG-1, 2 and 2.5
        samples += 1152 if first else 576
        position += (144_000 if first else 72_000) * kbits // hertz + (header >> 9 & 1)
    return samples


def _read_to_the_end(file) -> np.ndarray:
    """For files whose header does not say how long they are."""
    parts = []
    while len(block := file.read(SAMPLING_RATE, dtype="float32", always_2d=True)):
        parts.append(block)
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _decode_with_torchcodec(path: str | None, name: str, error: Any) -> np.ndarray:
    """m4a, mp4, webm and the like, where torchcodec is installed."""
    if path is not None:
        try:
            return transformers_load_audio(path, sampling_rate=SAMPLING_RATE, backend="torchcodec")
        except (ImportError, RuntimeError):  # not installed, or not a format that it reads either
            pass
    raise ValueError(
        f"{name} cannot be decoded: {error.error_string} It may be damaged or no audio. soundfile reads wav, flac, ogg and mp3; for "
        "files in other formats install torchcodec and ffmpeg."
    ) from error


def _check_is_whole(data: bytes, name: str):
    """libsndfile reads wav, aiff and ogg files that were cut off without a word; their headers know better."""
    missing = 0
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        missing = _missing_from_wav(data)
    elif data[:4] == b"FORM":
        missing = int.from_bytes(data[4:8], "big") + 8 - len(data)
    elif data[:4] == b"OggS":
        page = data.rfind(b"OggS")
        lengths = data[page + 27 : page + 27 + data[page + 26]] if page + 26 < len(data) else b""
        complete = page + 26 < len(data) and len(lengths) == data[page + 26]
        missing = page + 27 + len(lengths) + sum(lengths) - len(data) if complete else 1
    if missing > 0:
        raise ValueError(f"{name} is truncated: by its header at least {missing} bytes are missing.")


def _missing_from_wav(data: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if data[position : position + 4] == b"data":
            # Programs that write to a pipe leave about 2**31 or 2**32 for the size they cannot know.
            return size - (len(data) - position - 8) if size < 2**31 - 2**16 else 0
        position += 8 + size + size % 2
    return 0


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
    kind = str(samples.dtype)
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
            f"{name}: sampling_rate must be a whole number of Hz from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}, got "
            f"{rate!r}."
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
    "count_encoded_frames",
    "count_frames",
    "count_tokens",
    "load_audio",
]
