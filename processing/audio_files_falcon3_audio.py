# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""All the sound of an audio file, or an error: never a part of it without a word.

libsndfile stops at the length that a header gives and says nothing where the file ends before it or goes on behind it. So
it is told that every file goes on without end, which makes it say what the header promises; a file is read as far as it
can be decoded; then the two are compared. Files of one format joined one behind the other are decoded one by one. What
soundfile does not know (m4a, mp4, webm) goes to PyAV where that is installed. Travels with every saved checkpoint.
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

# libsndfile's number of frames for a file that does not say, or beyond anything real.
UNKNOWN_FRAMES = 2**36
BLOCK = 2**18  # frames read at once
# Bytes that programs which write to a pipe leave in 32 bits for the size they cannot know: about 2**31 or 2**32.
UNKNOWN_BYTES = 2**31 - 2**16
# How the files begin that can be told apart where they are joined: WAV, FLAC (its first block has 34 bytes), Ogg.
_BEGINNING = re.compile(rb'RIFF....WAVEfmt |fLaC\x00\x00\x00"|OggS\x00\x02', re.DOTALL)
# How a file begins, behind tags, that may be made endless: WAV (RIFX, RF64), AIFF, CAF, AU, FLAC, MP3.
_CAN_BE_ENDLESS = re.compile(rb"RIF[FX]|RF64|FORM....AIF|caff|\.snd|dns\.|fLaC|\xff[\xe0-\xff]", re.DOTALL)
# In these, other things than sound may stand behind the sound. Where a chunk has its size, and in which order of bytes.
_CHUNKED: dict[str, tuple[slice, Any]] = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), (slice(4, 8), "little")),
    "W64": (slice(16, 24), "little"),
    "AIFF": (slice(4, 8), "big"),
    "CAF": (slice(4, 12), "big"),
}
# Of these it can be told how long the sound is to be. Of others (Amiga's SVX, Matlab's, Psion's) and of G.72x in AU libsndfile
# goes by the file's size, so that a half would be a whole, and one without end never ends.
_CHECKED = {*_CHUNKED, "AU", "FLAC", "MP3", "NIST", "OGG"}
# By how much a container's duration may be over that of its sound: encoders' delay, and the end of a picture.
DURATION_TOLERANCE = 0.5  # seconds


# Containers that are read with PyAV, as FFmpeg calls them.
_OF_FFMPEG = "mov,matroska,webm,aac,ac3,eac3,amr,asf,avi,flv,mpegts"


class UnknownFormatError(ValueError):
    """A file that neither soundfile nor PyAV can begin to decode."""


class _Endless(io.BytesIO):
    """A file that says of itself that it is far longer than any sound, and notes when more was wanted than it has."""

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
        data (`bytes`): An encoded file. WAV, FLAC, Ogg and MP3 files may be joined one behind the other; where their
            numbers of channels differ, each is mixed down to one.
        name (`str`): What errors call it.
        max_seconds (`float`, *optional*): Longer files are an error, and not decoded further than that.

    Raises a `ValueError` for a file that is empty, truncated, damaged, of an unknown format or too long, and for one that goes
    on where its header says it ends.
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
                raise ValueError(f"{name} holds several files, of which one cannot be decoded: {error}") from error
            logger.warning_once(f"{name}: {len(file)} bytes behind the sound of an mp3 file are no sound (a tag?).")
            break
        files = [rest, *files] if rest else files
        parts.append(samples)
        rates.add(rate)
        _check_seconds(sum(map(len, parts)) / rate, max_seconds, name)
    if len(rates) > 1:
        raise ValueError(
            f"{name} holds joined files of different sampling rates, {sorted(rates)} Hz: decode each alone."
        )
    if len({samples.shape[1] for samples in parts}) > 1:
        parts = [samples.mean(axis=1, keepdims=True) for samples in parts]
    return parts[0] if len(parts) == 1 else np.concatenate(parts), rate


def _split(data: bytes) -> list[bytes]:
    """The files of `data`, where several are joined and each can be told by its beginning."""
    if not _BEGINNING.match(data):
        return [data]
    starts = [match.start() for match in _BEGINNING.finditer(data)]
    return [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)])]


def _decode_first(data: bytes, name: str, max_seconds: float | None) -> tuple[np.ndarray, int, bytes]:
    """Samples and rate of a file, and of an mp3 file what lies behind its end. A `LibsndfileError` if it is no such file."""
    raw, announced = _as_libsndfile_sees_it(data, name)
    with _Stream(raw) as file:
        if file.format not in _CHECKED or (file.format == "AU" and file.subtype.startswith("G72")):
            raise ValueError(
                f"{name} is {file.format_info}, {file.subtype_info}: nothing tells whether such a file is whole. Write it anew "
                "(ffmpeg -i in out.flac)."
            )
        promised = announced or file.frames
        raw.ran_out = False  # of the header
        samples = _read_to_the_end(file, promised, max_seconds, name)
        rate, kind, rest = file.samplerate, file.format, data[io.BytesIO.tell(raw) :]
    # Of WAV and AIFF in ADPCM or GSM, what is missing would be silence.
    is_short = len(samples) < promised or (kind in _CHUNKED and raw.ran_out)
    if is_short and promised < UNKNOWN_FRAMES and not _is_unknown(promised, len(samples), len(data)):
        raise ValueError(f"{name} is truncated: it announces {promised} samples and does not hold them all.")
    # libFLAC drops a frame that was cut off. The last of a whole file has no byte too many.
    if announced == UNKNOWN_FRAMES and len(samples) == _count_samples(raw.getvalue()[:-1]):
        raise ValueError(f"{name} is truncated: its last frame is not complete.")
    if len(samples) > promised:
        logger.warning(f"{name} announces {promised} samples and holds {len(samples)}: all of them are used.")
    if kind == "MP3":
        return samples, rate, rest[128:] if rest.startswith(b"TAG") else rest
    is_odd = (len(data) - len(rest)) % 2 == 1
    if rest and not (kind in _CHUNKED and _is_chunk(rest, is_odd, *_CHUNKED[kind])):
        raise ValueError(
            f"{name} goes on for at least {len(rest)} bytes behind the {len(samples) / rate:.1f} s that its header gives. Write it "
            "anew (ffmpeg -i in.ogg out.flac)."
        )
    return samples, rate, b""


def _as_libsndfile_sees_it(data: bytes, name: str) -> tuple[Any, int | None]:
    """A file, of most formats one that does not end, and its number of samples where libsndfile is not to know it."""
    if data.startswith(b"OggS"):
        # The length is on the last page, which libsndfile looks for from the end.
        _check_last_page(data, name)
        return io.BytesIO(data), None
    if data.startswith(b"NIST_1A"):  # TIMIT's files; libsndfile goes by their size, not by this line of their header
        count = re.search(rb"\nsample_count -i (\d+)", data[:1024])
        return io.BytesIO(data), int(count[1]) if count else UNKNOWN_FRAMES
    if data.startswith(b"riff"):
        return io.BytesIO(_whole_w64(data, name)), None
    if data.startswith(b"fLaC") and len(data) > 26:
        # Without a number of samples, 36 bits of its first block (RFC 9639, 8.2), libFLAC decodes all there is.
        announced = int.from_bytes(data[21:26], "big") & 2**36 - 1
        unknown = data[:21] + bytes([data[21] & 0xF0, 0, 0, 0, 0]) + data[26:]
        return _Endless(unknown), announced or UNKNOWN_FRAMES
    start = 0
    while data[start : start + 3] == b"ID3":  # a tag, its size in 7 bits a byte, which libsndfile passes over
        start += 10 + sum(
            (byte & 127) << 7 * place for place, byte in enumerate(reversed(data[start + 6 : start + 10]))
        )
    # Of other formats (SVX, SDS) libsndfile looks for the end before it says what it has found, for ever if there is none.
    return _Endless(data) if _CAN_BE_ENDLESS.match(data, start) else io.BytesIO(data), None


def _read_to_the_end(file: Any, promised: int, max_seconds: float | None, name: str) -> np.ndarray:
    blocks: list[np.ndarray] = []
    held = 0
    while not blocks or len(blocks[-1]):
        # A single sample tells whether sound or something else follows what was promised.
        wanted = min(BLOCK, promised - held) if held < promised else 1 if held == promised else BLOCK
        try:
            blocks.append(file.read(wanted, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            if held == promised:
                break
            raise ValueError(f"{name} is truncated or damaged: it cannot be decoded up to its end. {error}") from error
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
        pass  # what could be read before counts
    return held


def _is_chunk(rest: bytes, is_odd: bool, size: slice, order: Any) -> bool:
    """
    Whether a chunk (a name of 4 letters, its `size`), padding, a tag or a stray byte is behind the sound, not more sound.

    Chunks begin at even places: where the sound ends at an odd one (`is_odd`), there is a byte of padding before them.
    """
    if len(rest) < 8:  # no room for a chunk's name and size; a few milliseconds at most
        return True
    if not rest.strip(b"\0") or rest.startswith(b"TAG"):
        return True
    chunk = rest[is_odd:]
    return re.match(rb"[ -~]{4}", chunk) is not None and int.from_bytes(chunk[size], order) <= len(chunk)


def _is_unknown(promised: int, held: int, size: int) -> bool:
    """Whether a number of samples was reckoned from a size that programs write when they do not know it."""
    return held > 0 and promised * size / held >= UNKNOWN_BYTES


def _check_last_page(data: bytes, name: str):
    """libsndfile leaves out a page of Ogg that was cut off (RFC 3533, 6: 27 bytes, as many lengths as the last says)."""
    page = data.rfind(b"OggS")
    count = data[page + 26] if page + 26 < len(data) else 255
    if page + 27 + count + sum(data[page + 27 : page + 27 + count]) > len(data):
        raise ValueError(f"{name} is truncated: its last page is not complete.")


def _whole_w64(data: bytes, name: str) -> bytes:
    """libsndfile reckons the sound of a W64 file from its size, not from what the file says of that (8 bytes at 16)."""
    size = int.from_bytes(data[16:24], "little")
    if size >= 2**63:  # -1, as programs write it that do not know it yet
        return data
    if size > len(data):
        raise ValueError(f"{name} is truncated: it announces {size} bytes and has {len(data)}.")
    if data[size:].strip(b"\0"):
        raise ValueError(
            f"{name} goes on for {len(data) - size} bytes behind the {size} that its header gives. Write it anew (ffmpeg -i "
            "in.w64 out.flac)."
        )
    return data[:size]


def _check_seconds(seconds: float, most: float | None, name: str):
    if most is not None and seconds > most:
        raise ValueError(f"{name} is longer than {most:g} s, the limit of a clip.")


def _decode_with_ffmpeg(data: bytes, name: str, error: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """m4a, mp4, webm and the like, by the FFmpeg that PyAV brings along."""
    if av is None:
        problem = "m4a, mp4, webm and others need PyAV: pip install av."
    else:
        try:
            # Playlists and the like, which name other files to be opened, are not among these.
            with av.open(io.BytesIO(data), options={"format_whitelist": _OF_FFMPEG}) as container:
                samples, rate = _first_sound(container, max_seconds)
                promised = _promised_seconds(container)
        except (av.FFmpegError, ValueError, IndexError) as reason:
            problem = f"PyAV, which reads other formats, says: {str(reason)[:300]}"
        else:
            _check_seconds(len(samples) / rate, max_seconds, name)
            if len(samples) / rate < promised - DURATION_TOLERANCE:
                raise ValueError(
                    f"{name} is truncated: it announces {promised:.1f} s and holds {len(samples) / rate:.1f} s."
                )
            return samples, rate
    raise UnknownFormatError(
        f"{name} cannot be decoded: {error.error_string} It may be damaged or no audio. soundfile reads wav, flac, ogg and "
        f"mp3; {problem}"
    ) from error


def _first_sound(container: Any, max_seconds: float | None) -> tuple[np.ndarray, int]:
    """Samples and rate of a file's first stream of sound, up to a little more than `max_seconds`, which shows that there is more."""
    stream = container.streams.audio[0]
    floats = av.AudioResampler(format="fltp")
    parts, count = [], 0
    for frame in container.decode(stream):
        parts += [part.to_ndarray() for part in floats.resample(frame)]
        count += frame.samples
        if max_seconds is not None and count > (max_seconds + 1) * stream.rate:
            break
    if not parts:
        raise ValueError("there is no sound in it")
    return np.concatenate(parts, axis=1).T, stream.rate


def _promised_seconds(container: Any) -> float:
    """0 where nothing is said, as in what browsers record."""
    stream = container.streams.audio[0]
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


if soundfile is not None:

    class _Stream(soundfile.SoundFile):
        """Read from front to back: soundfile would seek after every block, which fails at the end of an unknown length."""

        def seekable(self) -> bool:
            return False


__all__ = ["UNKNOWN_FRAMES", "UnknownFormatError", "decode_file"]
