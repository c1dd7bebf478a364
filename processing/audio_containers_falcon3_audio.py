# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Compares the sizes that the parts of a file announce with the bytes that are there. Saved with every checkpoint.

FFmpeg decodes what it finds: it does not report a file that was cut between two parts, nor a second file after the
first. libsndfile trusts a size of 0, which programs leave that write to a stream and cannot go back to correct it.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from .audio_tags_falcon3_audio import after_tags


# Programs that write to a pipe do not know the size, and put about 2**31 or 2**32 bytes in its 32-bit field.
UNKNOWN_BYTES = 2**31 - 2**16
# In these formats, other chunks can follow the audio: where a chunk has its size, and in which byte order.
CHUNKED: dict[str, tuple[slice, Any]] = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), (slice(4, 8), "little")),
    "W64": (slice(16, 24), "little"),
    "AIFF": (slice(4, 8), "big"),
    "CAF": (slice(4, 12), "big"),
}
_NAME = re.compile(rb"[ -~]{4}")
# Chunks of WAV, then of AIFF and CAF, that can follow the audio.
_AFTER_AUDIO = re.compile(
    rb"LIST|[Ii][Dd]3 |bext|iXML|_PMX|cue |smpl|inst|acid|fact|PEAK|JUNK|junk|PAD |FLLR|"
    rb"NAME|AUTH|\(c\) |ANNO|COMT|MARK|INST|APPL|info|strg|mark|free|uuid|midi"
)
_MATROSKA = b"\x1aE\xdf\xa3"
_NESTED = (b"\x18S\x80g", b"\x1fC\xb6u")  # segments, clusters
# Names of the parts of Matroska (RFC 9559) that can be outermost, in segments or in clusters.
_ELEMENT = re.compile(
    rb"\x1aE\xdf\xa3|\x18S\x80g|\x11M\x9bt|\x15I\xa9f|\x16T\xaek|\x1fC\xb6u|\x1cS\xbbk|\x19A\xa4i|\x10C\xa7p|\x12T\xc3g|"
    rb"[\xec\xbf\xe7\xa7\xab\xa3\xa0\xaf]|XT"
)


class _Audio(NamedTuple):
    """The audio of a file: where its header gives the size, in which byte order, and what that size counts."""

    size: slice
    order: Any
    start: int
    before_samples: int = 0  # bytes that the size counts


# First bytes of a file -> where its chunks start, the name of the one with the audio, bytes and order of the sizes, and
# what the size of the audio counts besides samples.
_AUDIO_CHUNKS: dict[bytes, tuple[int, bytes, int, Any, int]] = {
    b"RIFF": (12, b"data", 4, "little", 0),
    b"RF64": (12, b"data", 4, "little", 0),
    b"RIFX": (12, b"data", 4, "big", 0),
    b"FORM": (12, b"SSND", 4, "big", 8),
    b"caff": (8, b"data", 8, "big", 4),
}


def with_actual_size(data: bytes) -> bytes:
    """The file; if its header gives 0 (or 64 set bits) as the size of audio that is there, with the actual size."""
    audio = _find_audio(data)
    if audio is None:
        return data
    width = audio.size.stop - audio.size.start
    announced = int.from_bytes(data[audio.size], audio.order)
    if audio.before_samples < announced < 2**64 - 1:
        return data
    rest = data[audio.start + audio.before_samples :]
    is_silence = not rest.strip(b"\0") or not rest.strip(b"\xff")  # the latter in u-law
    if len(rest) < 8 or _begins_chunk(rest, slice(4, 8), audio.order):
        return data
    if not is_silence and after_tags(rest) == len(rest):
        return data
    actual = min(_chunks_at_end(data, audio) - audio.start, 256**width - 1)
    return data[: audio.size.start] + actual.to_bytes(width, audio.order) + data[audio.size.stop :]


def _find_audio(data: bytes) -> _Audio | None:
    if data.startswith((b".snd", b"dns.")):
        order: Any = "big" if data.startswith(b".") else "little"
        return _Audio(slice(8, 12), order, int.from_bytes(data[4:8], order))
    if data[:4] not in _AUDIO_CHUNKS:
        return None
    at, title, width, order, before_samples = _AUDIO_CHUNKS[data[:4]]
    while not data.startswith(title, at):
        if at >= len(data) or not _NAME.match(data, at):  # the first, since a damaged size can be beyond any index
            return None
        at = _after_chunk(data, at, width, order)
    field = slice(28, 36) if data.startswith(b"RF64") else slice(at + 4, at + 4 + width)
    return _Audio(field, order, at + 4 + width, before_samples)


def _after_chunk(data: bytes, at: int, width: int, order: Any) -> int:
    size = int.from_bytes(data[at + 4 : at + 4 + width], order)
    return at + 4 + width + size + (size % 2 if width == 4 else 0)


def _chunks_at_end(data: bytes, audio: _Audio) -> int:
    """Where chunks start that follow audio of unknown size: they reach exactly to the end of the file."""
    if data[:4] not in _AUDIO_CHUNKS:  # AU has none
        return len(data)
    width = _AUDIO_CHUNKS[data[:4]][2]
    for match in _AFTER_AUDIO.finditer(data, audio.start):
        at = match.start()
        while at < len(data) and _NAME.match(data, at):
            at = _after_chunk(data, at, width, audio.order)
        if len(data) <= at <= len(data) + 1:  # the last byte of padding is often left out
            return match.start()
    return len(data)


def is_chunk(rest: bytes, is_odd: bool, size: slice, order: Any) -> bool:
    """
    Whether the rest is a chunk (a name of 4 letters, its `size`), padding or a stray byte, and not more audio.

    Chunks start at even offsets: if the audio ends at an odd one (`is_odd`), they come after a byte of padding.
    """
    if len(rest) < 8:  # no room for a chunk's name and size; a few milliseconds at most
        return True
    if not rest.strip(b"\0"):
        return True
    return _begins_chunk(rest[is_odd:], size, order)


def _begins_chunk(data: bytes, size: slice, order: Any) -> bool:
    is_file = data.startswith((b"RIFF", b"RIFX", b"FORM"))
    return bool(_NAME.match(data)) and not is_file and int.from_bytes(data[size], order) <= len(data)


def end_of_first(data: bytes) -> int:
    """Where the first of concatenated Matroska or AVI files ends. FFmpeg would decode all as if they were the first."""
    next_part = _element if data.startswith(_MATROSKA) else _chunk if data[8:12] == b"AVI " else None
    part = next_part(data, 0) if next_part else None
    while next_part and part and part[1] < len(data):
        at = part[1]
        if data.startswith(_MATROSKA, at) or (data.startswith(b"RIFF", at) and data[at + 8 : at + 12] == b"AVI "):
            return at
        part = next_part(data, at)
    return len(data)


def check_container(kind: str, data: bytes, decoded: int, name: str):
    """
    Raises a `ValueError` if a file is truncated, or more follows it that FFmpeg would not decode.

    Args:
        kind: FFmpeg's name of the format. Raw streams (aac, ac3) have no parts whose sizes could be compared.
        decoded: where the last packet ends that was decoded.
    """
    next_part = _PARTS.get(kind)
    at, seen = 0 if next_part else decoded, set()
    while at < len(data):
        part = next_part(data, at) if next_part else None
        title, end = part or (b"", len(data) + 1)
        if end > len(data):
            is_stray = part is None and len(data) - at < 8  # as after the chunks of WAV
            if is_stray or after_tags(data, at) == len(data):
                return
            raise ValueError(
                f"{name} is truncated, or something else follows it: its last {len(data) - at} bytes are no complete "
                "part of it, and would not be decoded. Remove what follows, or decode each file by itself."
            )
        if title in _ONCE and title in seen:
            raise ValueError(f"{name} holds several files, one after the other: decode each by itself.")
        seen.add(title)
        at = end


def _box(data: bytes, at: int) -> tuple[bytes, int] | None:
    """MP4 and QuickTime: size and name. Instead of the size, 1 means that it follows, and 0 the end of the file."""
    size, title = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
    size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
    if not _NAME.match(title) or 0 < size < 8:
        return None
    return title, at + size if size else len(data)


def _element(data: bytes, at: int) -> tuple[bytes, int] | None:
    """
    Matroska (RFC 8794): name and size, whose length its leading zeros give. All bits set: the size is unknown. Of a
    segment or cluster, the first part inside is next: FFmpeg skips damaged ones, and the audio then has a gap.
    """
    title = _ELEMENT.match(data, at)
    size_at = title.end() if title else len(data)
    if size_at >= len(data):
        return None
    start = size_at + 9 - data[size_at].bit_length()
    most = (1 << 7 * (start - size_at)) - 1
    size = int.from_bytes(data[size_at:start], "big") & most
    is_nested = data[at:size_at] in _NESTED and (size == most or start + size <= len(data))
    return data[at:size_at], start if is_nested else start + size


def _chunk(data: bytes, at: int) -> tuple[bytes, int] | None:
    """AVI: a large file is several chunks named RIFF."""
    title, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
    if not _NAME.match(title) or (title == b"RIFF" and data[at + 8 : at + 11] != b"AVI"):
        return None
    if title == b"RIFF" and (size == 0 or size >= UNKNOWN_BYTES):
        return title, len(data)
    end = at + 8 + size
    return title, end + (size % 2 if end < len(data) else 0)


def _tag(data: bytes, at: int) -> tuple[bytes, int] | None:
    """FLV: a header that gives its own size, then tags of sound, pictures and text. 4 bytes with the size end each."""
    if data.startswith(b"FLV\x01", at):
        return b"FLV", at + int.from_bytes(data[at + 5 : at + 9], "big") + 4
    if data[at] & 31 not in (8, 9, 18) or len(data) - at < 15:
        return None
    return b"tag", at + 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4


def _object(data: bytes, at: int) -> tuple[bytes, int] | None:
    """ASF: the 16 bytes of a GUID, and a size that is too small for an object in a live stream."""
    size = int.from_bytes(data[at + 16 : at + 24], "little")
    return (data[at : at + 16], at + size if size > 50 else len(data)) if len(data) - at >= 24 else None


def _packets(data: bytes, at: int) -> tuple[bytes, int] | None:
    """MPEG-TS: packets of equal size that start with G, on discs with 4 bytes before it. All whole ones are one part."""
    for size, first in ((188, 0), (192, 4), (204, 0)):
        starts = data[first::size]
        if starts.startswith(b"GGG"):
            count = len(starts) - len(starts.lstrip(b"G"))
            end = min(count, len(data) // size) * size
            if at == 0:
                return b"packets", end
            is_cut = data[end + first : end + first + 1] in (b"", b"G")
            return (b"packet", end + size) if is_cut else None
    return b"packets", len(data)


# FFmpeg's names of containers -> reads the name of the part at a place, and where it ends; `None` if there is none.
_PARTS: dict[str, Callable[[bytes, int], tuple[bytes, int] | None]] = {
    "mov,mp4,m4a,3gp,3g2,mj2": _box,
    "matroska,webm": _element,
    "avi": _chunk,
    "flv": _tag,
    "asf": _object,
    "mpegts": _packets,
}
# Parts that a file has once. FFmpeg decodes the audio of the first.
_ONCE = {b"ftyp", b"moov", b"FLV", b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\x00\xaa\x00b\xcel"}


__all__ = ["CHUNKED", "UNKNOWN_BYTES", "check_container", "end_of_first", "is_chunk", "with_actual_size"]
