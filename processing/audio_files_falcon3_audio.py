# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Decodes all audio of a file or raises an error; it never silently returns only a part.

libsndfile stops at the length given in the header, and does not report a file that ends earlier or continues after it.
So most files are presented to it as endless, which makes it report the length in the header; the file is decoded as
far as possible, and the two lengths are compared. Concatenated files of one format are decoded one by one. Formats
that soundfile does not support (m4a, mp4, webm) go to PyAV if it is installed. Saved with every checkpoint.
"""

import io
import os
import re
from typing import Any

import numpy as np
from transformers.utils import logging


try:
    import soundfile
except ImportError:  # `decode_file` says what to install
    soundfile = None

try:
    import av
except ImportError:  # so does `_decode_with_ffmpeg`
    av = None  # type: ignore[assignment]

logger = logging.get_logger(__name__)

# Numbers of frames from here on mean that the file does not give its length, or are larger than any real file.
UNKNOWN_FRAMES = 2**36
BLOCK = 2**18  # frames read at once
# Programs that write to a pipe do not know the size, and put about 2**31 or 2**32 bytes in its 32-bit field.
UNKNOWN_BYTES = 2**31 - 2**16
# First bytes of the formats that can be split if concatenated: WAV, FLAC (its first block has 34 bytes), Ogg.
_BEGINNING = re.compile(rb'RIFF....WAVEfmt |fLaC\x00\x00\x00"|OggS\x00\x02', re.DOTALL)
# First bytes, after tags, of formats that can be presented as endless: WAV (RIFX, RF64), AIFF, CAF, AU, FLAC, MP3.
_CAN_BE_ENDLESS = re.compile(rb"RIF[FX]|RF64|FORM....AIF|caff|\.snd|dns\.|fLaC|\xff[\xe0-\xff]", re.DOTALL)
# In these formats, other chunks can follow the audio: where a chunk has its size, and in which byte order.
_CHUNKED: dict[str, tuple[slice, Any]] = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), (slice(4, 8), "little")),
    "W64": (slice(16, 24), "little"),
    "AIFF": (slice(4, 8), "big"),
    "CAF": (slice(4, 12), "big"),
}
# Formats that give the length of their audio. For others (Amiga's SVX, Matlab's, Psion's) and for G.72x in AU,
# libsndfile uses the file's size, so half a file would pass as complete, and an endless one would never end.
_CHECKED = {*_CHUNKED, "AU", "FLAC", "MP3", "NIST", "OGG"}
# How much longer than its audio a container can be: encoder delay, and video that ends later.
DURATION_TOLERANCE = 0.5  # seconds


# Containers read with PyAV, by FFmpeg's names.
_OF_FFMPEG = "mov,matroska,webm,aac,ac3,eac3,amr,asf,avi,flv,mpegts"


class UnknownFormatError(ValueError):
    """A file that neither soundfile nor PyAV can decode."""


class _Endless(io.BytesIO):
    """A file that claims to be far longer than any audio, and records whether a read reached past its real end."""

    LENGTH = 2**40
    ran_out = False
    _at_end = False

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.ran_out |= count < len(buffer)
        return count

    def seek(self, offset, whence=os.SEEK_SET):
        self._at_end = whence == os.SEEK_END
        return super().seek(offset, whence)

    def tell(self):
        return self.LENGTH if self._at_end else super().tell()


def decode_file(data: bytes, name: str, max_seconds: float | None = None) -> tuple[np.ndarray, int]:
    """
    The samples of a file, float32 of shape `(samples, channels)`, and their rate in Hz.

    Args:
        data (`bytes`): An encoded file. WAV, FLAC, Ogg and MP3 files can be concatenated; if their numbers of channels
            differ, each is mixed down to mono.
        name (`str`): Name of the file in errors.
        max_seconds (`float`, *optional*): Longer files are an error, and are decoded only up to this length.

    Raises a `ValueError` for a file that is empty, truncated, damaged, of an unknown format or too long, and for one
    that continues after the end given in its header.
    """
    if not data:
        raise ValueError(f"{name} is empty: 0 bytes.")
    if soundfile is None:
        raise ImportError("Reading audio files needs soundfile and soxr: pip install soundfile soxr")
    files = _split(data)
    parts: list[np.ndarray] = []
    rates: set[int] = set()
    while files:
        file = files.pop(0)
        try:
            samples, rate, rest = _decode_first(file, name, max_seconds)
        except soundfile.LibsndfileError as error:
            if not parts and not files:
                return _decode_with_ffmpeg(data, name, error, max_seconds)
            if files or _BEGINNING.match(file):
                raise ValueError(f"{name} holds several files, and one of them cannot be decoded: {error}") from error
            logger.warning_once(f"{name}: {len(file)} bytes after the audio of an mp3 file are not audio (a tag?).")
            break
        files = [rest, *files] if rest else files
        parts.append(samples)
        rates.add(rate)
        _check_seconds(sum(map(len, parts)) / rate, max_seconds, name)
    if len(rates) > 1:
        raise ValueError(
            f"{name} holds concatenated files of different sampling rates, {sorted(rates)} Hz: decode each by itself."
        )
    if len({samples.shape[1] for samples in parts}) > 1:
        parts = [samples.mean(axis=1, keepdims=True) for samples in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts), rate


def _split(data: bytes) -> list[bytes]:
    """Splits concatenated files of a format whose first bytes can be recognised."""
    if not _BEGINNING.match(data):
        return [data]
    starts = [match.start() for match in _BEGINNING.finditer(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)])]


def _decode_first(data: bytes, name: str, max_seconds: float | None) -> tuple[np.ndarray, int, bytes]:
    """Samples and rate of a file, and for mp3 the bytes after its end. Raises a `LibsndfileError` if unreadable."""
    raw, announced = _as_libsndfile_sees_it(data, name)
    with _Stream(raw) as file:
        if file.format not in _CHECKED or (file.format == "AU" and file.subtype.startswith("G72")):
            raise ValueError(
                f"{name} is {file.format_info}, {file.subtype_info}: nothing shows whether such a file is complete. "
                "Re-encode it (ffmpeg -i in out.flac)."
            )
        promised = announced or file.frames
        raw.ran_out = False  # reading the header does not count
        samples = _read_to_the_end(file, promised, max_seconds, name)
        rate, kind, rest = file.samplerate, file.format, data[io.BytesIO.tell(raw) :]
    # For WAV and AIFF in ADPCM or GSM, the missing part would become silence.
    is_short = len(samples) < promised or (kind in _CHUNKED and raw.ran_out)
    if is_short and promised < UNKNOWN_FRAMES and not _is_unknown(promised, len(samples), len(data)):
        raise ValueError(f"{name} is truncated: it announces {promised} samples but does not contain all of them.")
    # libFLAC drops a frame that was cut off. In a complete file, the last frame needs every byte.
    if announced == UNKNOWN_FRAMES and len(samples) == _count_samples(raw.getvalue()[:-1]):
        raise ValueError(f"{name} is truncated: its last frame is not complete.")
    if len(samples) > promised:
        logger.warning(f"{name} announces {promised} samples and holds {len(samples)}: all of them are used.")
    if kind == "MP3":
        return samples, rate, rest[128:] if rest.startswith(b"TAG") else rest
    is_odd = (len(data) - len(rest)) % 2 == 1
    if rest and not (kind in _CHUNKED and _is_chunk(rest, is_odd, *_CHUNKED[kind])):
        raise ValueError(
            f"{name} continues for at least {len(rest)} bytes after the {len(samples) / rate:.1f} s given in its "
            "header. Re-encode it (ffmpeg -i in.ogg out.flac)."
        )
    return samples, rate, b""


def _as_libsndfile_sees_it(data: bytes, name: str) -> tuple[Any, int | None]:
    """The file as given to libsndfile (endless for most formats), and its number of samples if that is hidden."""
    if data.startswith(b"OggS"):
        # The length is on the last page, which libsndfile looks for from the end.
        _check_last_page(data, name)
        return io.BytesIO(data), None
    if data.startswith(b"NIST_1A"):  # TIMIT's files; libsndfile uses their size, not this line of their header
        count = re.search(rb"\nsample_count -i (\d+)", data[:1024])
        return io.BytesIO(data), int(count[1]) if count else UNKNOWN_FRAMES
    if data.startswith(b"riff"):
        return io.BytesIO(_whole_w64(data, name)), None
    if data.startswith(b"fLaC") and len(data) > 26:
        # With the number of samples (36 bits of the first block; RFC 9639, 8.2) set to 0, libFLAC decodes everything.
        announced = int.from_bytes(data[21:26], "big") & 2**36 - 1
        unknown = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
        return _Endless(unknown), announced or UNKNOWN_FRAMES
    start = 0
    while data[start : start + 3] == b"ID3":  # a tag, which libsndfile skips; its size has 7 bits per byte
        start += 10 + sum(
            (byte & 127) << 7 * place for place, byte in enumerate(reversed(data[start + 6 : start + 10]))
        )
    # For other formats (SVX, SDS) libsndfile looks for the end first, and would search forever.
    return _Endless(data) if _CAN_BE_ENDLESS.match(data, start) else io.BytesIO(data), None


def _read_to_the_end(file: Any, promised: int, max_seconds: float | None, name: str) -> np.ndarray:
    blocks: list[np.ndarray] = []
    held = 0
    while not blocks or len(blocks[-1]):
        # Reading a single sample shows whether more audio follows the announced length.
        wanted = min(BLOCK, promised - held) if held < promised else 1 if held == promised else BLOCK
        try:
            blocks.append(file.read(wanted, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            if held == promised:
                break
            raise ValueError(f"{name} is truncated or damaged: it cannot be decoded to its end. {error}") from error
        held += len(blocks[-1])
        _check_seconds(held / file.samplerate, max_seconds, name)
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)


def _count_samples(data: bytes) -> int:
    held = 0
    try:
        with _Stream(_Endless(data)) as file:
            while count := len(file.read(BLOCK, dtype="int16")):
                held += count
    except soundfile.LibsndfileError:
        pass  # samples read before the error count
    return held


def _is_chunk(rest: bytes, is_odd: bool, size: slice, order: Any) -> bool:
    """
    Whether the rest is a chunk (a name of 4 letters, its `size`), padding, a tag or a stray byte, and not more audio.

    Chunks start at even offsets: if the audio ends at an odd one (`is_odd`), they come after a byte of padding.
    """
    if len(rest) < 8:  # no room for a chunk's name and size; a few milliseconds at most
        return True
    if not rest.strip(b"\0") or rest.startswith(b"TAG"):
        return True
    chunk = rest[is_odd:]
    return re.match(rb"[ -~]{4}", chunk) is not None and int.from_bytes(chunk[size], order) <= len(chunk)


def _is_unknown(promised: int, held: int, size: int) -> bool:
    """Whether a number of samples was computed from the size that programs write when they do not know it."""
    return held > 0 and promised * size / held >= UNKNOWN_BYTES


def _check_last_page(data: bytes, name: str):
    """Raises if the last Ogg page is cut off, which libsndfile would drop (RFC 3533, 6: 27 bytes, then lengths)."""
    page = data.rfind(b"OggS")
    count = data[page + 26] if page + 26 < len(data) else 255
    if page + 27 + count + sum(data[page + 27 : page + 27 + count]) > len(data):
        raise ValueError(f"{name} is truncated: its last page is not complete.")


def _whole_w64(data: bytes, name: str) -> bytes:
    """Checks the size that a W64 file announces (8 bytes at 16): libsndfile ignores it and uses the actual size."""
    size = int.from_bytes(data[16:24], "little")
    if size >= 2**63:  # -1, from programs that do not know it yet
        return data
    if size > len(data):
        raise ValueError(f"{name} is truncated: it announces {size} bytes and has {len(data)}.")
    if data[size:].strip(b"\0"):
        raise ValueError(
            f"{name} continues for {len(data) - size} bytes after the {size} given in its header. Re-encode it "
            "(ffmpeg -i in.w64 out.flac)."
        )
    return data[:size]


def _check_seconds(seconds: float, most: float | None, name: str):
    if most is not None and seconds > most:
        raise ValueError(f"{name} is longer than {most:g} s, the limit for a clip.")


def _decode_with_ffmpeg(data: bytes, name: str, error: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Decodes m4a, mp4, webm and similar formats with the FFmpeg that comes with PyAV."""
    if av is None:
        problem = "m4a, mp4, webm and others need PyAV: pip install av."
    else:
        try:
            # Without playlists and similar formats, which open other files.
            with av.open(io.BytesIO(data), options={"format_whitelist": _OF_FFMPEG}) as container:
                samples, rate = _first_sound(container, max_seconds)
                promised = _promised_seconds(container)
        except (av.FFmpegError, ValueError, IndexError) as reason:
            problem = f"PyAV, which reads other formats, reports: {str(reason)[:300]}"
        else:
            _check_seconds(len(samples) / rate, max_seconds, name)
            if len(samples) / rate < promised - DURATION_TOLERANCE:
                raise ValueError(
                    f"{name} is truncated: it announces {promised:.1f} s and holds {len(samples) / rate:.1f} s."
                )
            return samples, rate
    raise UnknownFormatError(
        f"{name} cannot be decoded: {error.error_string} It may be damaged or not audio. soundfile reads wav, flac, "
        f"ogg and mp3; {problem}"
    ) from error


def _first_sound(container: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples and rate of the first audio stream, up to slightly more than `max_seconds` to show that it is longer."""
    stream = container.streams.audio[0]
    floats = av.AudioResampler(format="fltp")
    parts, count = [], 0
    for frame in container.decode(stream):
        parts += [part.to_ndarray() for part in floats.resample(frame)]
        count += frame.samples
        if max_seconds is not None and count > (max_seconds + 1) * stream.rate:
            break
    if not parts:
        raise ValueError("it contains no audio")
    return np.concatenate(parts, axis=1).T, stream.rate


def _promised_seconds(container: Any) -> float:
    """The announced duration; 0 if there is none, as in browser recordings."""
    stream = container.streams.audio[0]
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


if soundfile is not None:

    class _Stream(soundfile.SoundFile):
        """Read front to back: soundfile would seek after each block, which fails at the end of an unknown length."""

        def seekable(self) -> bool:
            return False


__all__ = ["UNKNOWN_FRAMES", "UnknownFormatError", "decode_file"]
