# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Decodes all audio of a file or raises an error; it never silently returns only a part.

libsndfile stops at the length given in the header, and does not report a file that ends earlier or continues after it.
So most files are presented to it as endless, which makes it report the length in the header; the file is decoded as
far as possible, and the two lengths are compared. Concatenated files are decoded one by one. Formats that soundfile
does not support (m4a, mp4, webm) go to PyAV if it is installed, and the sizes of their parts are compared with the
file. Saved with every checkpoint.
"""

import io
import os
import re
from collections import defaultdict
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging

from .audio_containers_falcon3_audio import (
    CHUNKED,
    UNKNOWN_BYTES,
    check_container,
    end_of_first,
    is_chunk,
    with_actual_size,
)
from .audio_tags_falcon3_audio import (
    after_tags,
    before_tags,
    find_mpeg,
    is_file,
    is_followed_by_file,
    split,
    start_of_mp3,
)


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
# First bytes of formats that can be presented as endless: WAV (RIFX, RF64), AIFF, CAF, AU, FLAC, MP3.
_CAN_BE_ENDLESS = re.compile(rb"RIF[FX]|RF64|FORM....AIF|caff|\.snd|dns\.|fLaC|\xff[\xe0-\xff]", re.DOTALL)
# Formats that give the length of their audio. For others (Amiga's SVX, Matlab's, Psion's) and for G.72x in AU,
# libsndfile uses the file's size, so half a file would pass as complete, and an endless one would never end.
_CHECKED = {*CHUNKED, "AU", "FLAC", "MP3", "NIST", "OGG"}
# How much earlier than announced a file can end: encoder delay.
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
        data (`bytes`): An encoded file. WAV, FLAC, Ogg, MP3, AIFF, AU and SPHERE files can be concatenated, with tags
            before and after each; if their numbers of channels differ, each is mixed down to mono.
        name (`str`): Name of the file in errors.
        max_seconds (`float`, *optional*): Longer files are an error, and are decoded only up to this length.

    Raises a `ValueError` for a file that is empty, truncated, damaged, of an unknown format or too long, and for one
    that continues after the end given in its header.
    """
    if not data:
        raise ValueError(f"{name} is empty: 0 bytes.")
    if soundfile is None:
        raise ImportError("Reading audio files needs soundfile and soxr: pip install soundfile soxr")
    files = split(data, name)
    parts: list[np.ndarray] = []
    rates: set[int] = set()
    file = b""
    while files:
        before, file = file, files.pop(0)
        try:
            samples, rate, rest = _decode_first(file, name, max_seconds)
        except UnknownFormatError as error:
            if not parts:
                start = start_of_mp3(file)
            else:  # 0: a file starts here, and cannot be decoded
                start = 0 if is_file(file) or is_followed_by_file(before) else find_mpeg(file)
            if start:
                logger.warning_once(f"{name}: {start} bytes before the audio of an mp3 file are not audio.")
                files = [file[start:], *files]
                continue
            if not parts and not files:
                raise
            if files or start == 0:
                raise ValueError(f"{name} holds several files. One of them: {error}") from error
            logger.warning_once(f"{name}: {len(file)} bytes after the audio of an mp3 file are not audio (a tag?).")
            break
        files = [*split(rest, name), *files] if rest else files
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


def _decode_first(data: bytes, name: str, max_seconds: float | None) -> tuple[np.ndarray, int, bytes]:
    """Samples and rate of a file, and the bytes after its end that can be another one."""
    try:
        return _decode_with_libsndfile(data, name, max_seconds)
    except soundfile.LibsndfileError as error:
        end = end_of_first(data)
        return *_decode_with_ffmpeg(data[:end], name, error, max_seconds), data[end:]


def _decode_with_libsndfile(data: bytes, name: str, max_seconds: float | None) -> tuple[np.ndarray, int, bytes]:
    """As `_decode_first`. Raises a `LibsndfileError` if unreadable."""
    raw, announced = _as_libsndfile_sees_it(data, name)
    with _Stream(raw) as file:
        if file.format not in _CHECKED or (file.format == "AU" and file.subtype.startswith("G72")):
            raise ValueError(
                f"{name} is {file.format_info}, {file.subtype_info}: nothing shows whether such a file is complete. "
                "Re-encode it (ffmpeg -i in out.flac)."
            )
        promised = announced or file.frames
        raw.ran_out = False  # reading the header does not count
        samples, has_more = _read_to_the_end(file, promised, max_seconds, name)
        rate, kind, rest = file.samplerate, file.format, data[io.BytesIO.tell(raw) :]
    # For WAV and AIFF in ADPCM or GSM, the missing part would become silence.
    is_short = len(samples) < promised or (kind in CHUNKED and raw.ran_out)
    if is_short and promised < UNKNOWN_FRAMES and not _is_unknown(promised, len(samples), len(data)):
        raise ValueError(f"{name} is truncated: it announces {promised} samples but does not contain all of them.")
    # libFLAC drops a frame that was cut off. In a complete file, the last frame needs every byte.
    if announced == UNKNOWN_FRAMES and _holds(raw.getvalue()[:-1], len(samples)):
        raise ValueError(f"{name} is truncated: its last frame is not complete.")
    if kind == "FLAC" and has_more:  # tags, a stray byte or another file, of which libFLAC has read a part
        end = before_tags(data) - 8
        rest = data[end:] if _holds(raw.getvalue()[:end], len(samples)) else b""
    if kind == "NIST" and len(samples) > promised:  # libsndfile reads up to the end of the file
        header = int(data[8:16])
        rest = data[header + promised * ((len(data) - header) // len(samples)) :]
        samples = samples[:promised]
    if len(samples) > promised:
        logger.warning(f"{name} announces {promised} samples and holds {len(samples)}: all of them are used.")
    after = rest[after_tags(rest) :]
    if kind == "MP3":
        return samples, rate, after
    is_odd = (len(data) - len(rest)) % 2 == 1
    if after and not (kind in CHUNKED and is_chunk(rest, is_odd, *CHUNKED[kind])):
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
    # For other formats (SVX, SDS) libsndfile looks for the end first, and would search forever.
    return _Endless(with_actual_size(data)) if _CAN_BE_ENDLESS.match(data) else io.BytesIO(data), None


def _read_to_the_end(file: Any, promised: int, max_seconds: float | None, name: str) -> tuple[np.ndarray, bool]:
    """The samples, and whether more follows them that is no audio."""
    blocks: list[np.ndarray] = []
    held, has_more = 0, False
    while not blocks or len(blocks[-1]):
        # Reading a single sample shows whether more audio follows the announced length.
        wanted = min(BLOCK, promised - held) if held < promised else 1 if held == promised else BLOCK
        try:
            blocks.append(file.read(wanted, dtype="float32", always_2d=True))
        except soundfile.LibsndfileError as error:
            if held == promised:
                has_more = True
                break
            raise ValueError(f"{name} is truncated or damaged: it cannot be decoded to its end. {error}") from error
        held += len(blocks[-1])
        _check_seconds(held / file.samplerate, max_seconds, name)
    return np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32), has_more


def _holds(data: bytes, samples: int) -> bool:
    """Whether as many samples can be decoded from the file."""
    try:
        with _Stream(_Endless(data)) as file:
            return len(file.read(samples, dtype="int16")) == samples
    except soundfile.LibsndfileError:
        return False


def _is_unknown(promised: int, held: int, size: int) -> bool:
    """Whether a number of samples was computed from the size that programs write when they do not know it."""
    return held > 0 and promised * size / held >= UNKNOWN_BYTES


def gives_length(file: BinaryIO, kind: str, held: int) -> bool:
    """
    Whether a file's header gives a length, be it wrong, and not a mere sign that it is unknown.

    Args:
        file: is left at another position.
        kind, held: the format and the number of samples that libsndfile finds in the file.
    """
    if kind == "FLAC" or held >= UNKNOWN_FRAMES:  # FLAC gives a number of samples, not a size
        return held < UNKNOWN_FRAMES
    size, length = file.seek(0, os.SEEK_END), 2**16
    while True:  # a header can hold pictures
        file.seek(0)
        try:
            with _Stream(_Endless(file.read(length))) as stream:
                return stream.frames <= held or not _is_unknown(stream.frames, held, size)
        except soundfile.LibsndfileError:
            if length >= size:
                raise
            length *= 8


def _check_last_page(data: bytes, name: str):
    """Raises if the last Ogg page is cut off, which libsndfile would drop (RFC 3533, 6: 27 bytes, then lengths)."""
    page = data.rfind(b"OggS")
    count = data[page + 26] if page + 26 < len(data) else 255
    if page + 27 + count + sum(data[page + 27 : page + 27 + count]) > len(data):
        raise ValueError(f"{name} is truncated: its last page is not complete.")


def _whole_w64(data: bytes, name: str) -> bytes:
    """Checks the size that a W64 file announces (8 bytes at 16): libsndfile ignores it and uses the actual size."""
    size = int.from_bytes(data[16:24], "little")
    if size == 0 or size >= 2**63:  # 0 or -1, from programs that do not know it yet
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
                samples, rate, is_damaged, decoded, ends = _first_sound(container, max_seconds)
                (promised, end), kind = _announced_and_actual_end(container, ends), container.format.name
        except (av.FFmpegError, ValueError, IndexError) as reason:
            problem = f"PyAV, which reads other formats, reports: {str(reason)[:300]}"
        else:
            _check_seconds(len(samples) / rate, max_seconds, name)
            if end < promised - DURATION_TOLERANCE:
                raise ValueError(f"{name} is truncated: it announces {promised:.1f} s and holds {end:.1f} s.")
            if is_damaged:
                raise ValueError(f"{name} is truncated or damaged: FFmpeg reports a part of the audio as incomplete.")
            check_container(kind, data, decoded, name)
            return samples, rate
    raise UnknownFormatError(
        f"{name} cannot be decoded: {error.error_string} It may be damaged or not audio. soundfile reads wav, flac, "
        f"ogg and mp3; {problem}"
    ) from error


def _first_sound(container: Any, max_seconds: float | None) -> tuple[np.ndarray, int, bool, int, dict[int, float]]:
    """
    Samples and rate of the first audio stream, whether a part of it is incomplete, where its last packet ends, and the
    time in seconds at which each stream ends: audio can start late and have gaps.

    Reads up to slightly more than `max_seconds`, to show that it is longer.
    """
    if not container.streams.audio:
        raise ValueError("it contains no audio")
    stream = container.streams.audio[0]
    floats = av.AudioResampler(format="fltp")
    ends: dict[int, float] = defaultdict(float)
    parts, count, is_damaged, end = [], 0, False, 0
    for packet in container.demux():
        _note_end(ends, packet)
        if packet.stream.index != stream.index:
            continue
        is_damaged |= packet.is_corrupt
        end = end if packet.pos is None else packet.pos + packet.size
        for frame in packet.decode():
            parts += [part.to_ndarray() for part in floats.resample(frame)]
            count += frame.samples
            is_damaged |= frame.is_corrupt
        if max_seconds is not None and count > (max_seconds + 1) * stream.rate:
            break
    if not parts:
        raise ValueError("it contains no audio")
    ends[stream.index] = max(ends[stream.index], count / stream.rate)  # not all packets have times
    return np.concatenate(parts, axis=1).T, stream.rate, is_damaged, end, ends


def _note_end(ends: dict[int, float], packet: Any):
    if packet.pts is not None:
        seconds = float((packet.pts + (packet.duration or 0)) * packet.time_base)
        ends[packet.stream.index] = max(ends[packet.stream.index], seconds)


def _announced_and_actual_end(container: Any, ends: dict[int, float]) -> tuple[float, float]:
    """Of the first audio stream, or of the file where only that is announced. 0 if nothing is (browser recordings)."""
    stream = container.streams.audio[0]
    if stream.duration is None:
        return (container.duration or 0) / av.time_base, max(ends.values())
    # In ASF, the duration of a stream is that of the file.
    end = max(ends.values()) if container.format.name == "asf" else ends[stream.index]
    return float(stream.duration * stream.time_base), end


if soundfile is not None:

    class _Stream(soundfile.SoundFile):
        """Read front to back: soundfile would seek after each block, which fails at the end of an unknown length."""

        def seekable(self) -> bool:
            return False


__all__ = ["UNKNOWN_FRAMES", "UnknownFormatError", "decode_file", "gives_length"]
