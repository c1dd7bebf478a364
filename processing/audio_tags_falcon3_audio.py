# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where an audio file starts among other bytes: after tags, padding or another file. Saved with every checkpoint.

Such bytes are no audio, but libsndfile takes them for a part of it, or as a sign that the file is of no format it
knows.
"""

import re


# First bytes of WAV, whose first chunk can have any name, AIFF, AU, SPHERE, FLAC (its first block has 34 bytes), Ogg,
# RF64, CAF and W64. Without groups, which make the search several times slower.
_BEGINNING = re.compile(
    rb"RIF[FX]....WAVE[ -~]{4}|FORM....AIF[FC]|\.snd\x00\x00......\x00\x00\x00[\x01-\x1b]|"
    rb'dns\...\x00\x00....[\x01-\x1b]\x00\x00\x00|NIST_1A\n   1024\n|fLaC\x00\x00\x00"|OggS\x00\x02|'
    rb"RF64....WAVEds64|caff\x00\x01\x00\x00desc|riff\x2e\x91\xcf\x11",
    re.DOTALL,
)
_NEVER_JOINED = (b"RF64", b"caff", b"riff")  # containers of 64 bits, for hours of audio
# MPEG audio: 11 bits are set, then version (00: 2.5, 10: 2, 11: 1), layer (01: III, 10: II), protection and bit rate.
# Without free bit rates, of which no header gives the length of its frame.
_MPEG = re.compile(rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd][\x10-\xef]")
_KILOBITS = {  # per second, by whether it is MPEG 1 and the two bits of the layer
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# What can be before the first frame of an mp3 file: headers of a radio stream, or the rest of a frame.
_TEXT = re.compile(rb"[\t\n\r -~]*")
_MOST_TEXT, _LARGEST_FRAME = 4096, 1728  # bytes
# First bytes of other formats: mp4 and mov, some by their names, then AC3, webm, wma and TS. MPEG audio and AAC have only
# 11 bits, so their whole first frame is looked at.
_OTHER = re.compile(
    rb"\x00...(ftyp|moov|mdat|free|skip|wide)|RIF[FX]|RF64|riff|FORM|caff|fLaC|OggS|FLV|#!AMR|wvpk|MAC |TTA1|MPCK|MP\+|"
    rb"\x0bw|\x1aE\xdf\xa3|0&\xb2u|G.{187}G",
    re.DOTALL,
)
_APE_ITEM = re.compile(rb"....[\x00-\x07]\x00\x00\x00[ -~]{2,255}\x00", re.DOTALL)
_TAG = re.compile(rb"(?=" + _APE_ITEM.pattern + rb")|ID3|TAG|APETAGEX|LYRICSBEGIN|\x00{4}|\xff{4}", re.DOTALL)
# The first box of an m4a file starts with three zeros; the last set byte can be the first of a frame of MPEG audio.
_PADDING = re.compile(rb"\x00{4,}|\xff{4,}(?![\xe0-\xfe])")


def after_tags(data: bytes, at: int = 0) -> int:
    """The first place from `at` on that belongs to no tag (ID3, APE, Lyrics3) and no padding with zeros or 0xFF."""
    while (end := _end_of_tag(data, at)) > at:
        at = end
    return min(at, len(data))


def _end_of_tag(data: bytes, at: int) -> int:
    """`at` itself if no tag starts there."""
    head = data[at : at + 32]
    if re.match(rb"ID3[\x02-\x04]..[\x00-\x7f]{4}", head, re.DOTALL):  # id3.org: its size has 7 bits per byte
        size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:10])))
        return at + 10 + size + (10 if head[5] & 16 else 0)  # the flag of a footer
    if head.startswith(b"TAG"):  # ID3v1, and the 227 bytes that some programs write before it
        return at + (227 if data[at + 227 : at + 230] == b"TAG" else 128)
    if head.startswith(b"APETAGEX"):
        return at + 32 + int.from_bytes(head[12:16], "little") if head[23:24] >= b"\xa0" else at
    if _APE_ITEM.match(data, at):  # without a header; the footer's size counts the items and itself
        footer = data.find(b"APETAGEX", at)
        size = int.from_bytes(data[footer + 12 : footer + 16], "little")
        return footer + 32 if footer >= 0 and footer + 32 - size == at else at
    if head.startswith(b"LYRICSBEGIN"):
        end = re.compile(rb"LYRICS200|LYRICSEND").search(data, at)
        return end.end() if end else at
    padding = _PADDING.match(data, at)
    return padding.end() if padding else at


def split(data: bytes, name: str) -> list[bytes]:
    """Splits concatenated files of formats whose first bytes can be recognised. Tags before each are left out."""
    if start := after_tags(data):
        data = data[start:]
    if not _BEGINNING.match(data):
        return [data]
    starts = [match.start() for match in _BEGINNING.finditer(data)]
    if len(starts) > 1 and any(data.startswith(_NEVER_JOINED, start) for start in starts):
        raise ValueError(f"{name} holds several files, one after the other: decode each by itself.")
    *before, last = (data[start:end] for start, end in zip(starts, [*starts[1:], len(data)]))
    return [*map(_without_tag_at_end, before), last]


def _without_tag_at_end(data: bytes) -> bytes:
    """The tag is that of the next file; to a file of unknown length it would be samples."""
    tag = data.rfind(b"ID3")
    return data[:tag] if tag >= 0 and after_tags(data, tag) == len(data) else data


def before_tags(data: bytes) -> int:
    """Where the last tags of a file and the padding after them start, if tags are among its last 64 KiB."""
    for match in _TAG.finditer(data, max(0, len(data) - 2**16)):
        if after_tags(data, match.start()) == len(data):
            return match.start()
    return len(data)


def find_mpeg(data: bytes, last: int | None = None) -> int | None:
    """Where the first two consecutive frames of MPEG audio (mp3, mp2) start, at `last` or before; `None` if nowhere."""
    for match in _MPEG.finditer(data, 0, len(data) if last is None else last + 3):
        at = match.start()
        if (size := _frame_size(data, at)) and _frame_size(data, at + size) and _same_kind(data, at, at + size):
            return at
    return None


def start_of_mp3(data: bytes) -> int | None:
    """
    Where the first complete frame of an mp3 file starts, if text or the rest of a frame is before it.

    From there on all is frames: in a container of another format, frames are parts of its own structure, and would be
    decoded with it.
    """
    start = find_mpeg(data, _MOST_TEXT)
    if start is None:
        return None
    if not _TEXT.fullmatch(data, 0, start) and (start > _LARGEST_FRAME or _begins_other(data, 0)):
        return None
    return start if len(data) - _after_frames(data, start) < 4 else None  # no room for another header


def is_file(data: bytes, at: int = 0) -> bool:
    """Whether the bytes there are the first of a format."""
    return bool(_BEGINNING.match(data, at)) or _begins_other(data, at)


def _begins_other(data: bytes, at: int) -> bool:
    return bool(_OTHER.match(data, at)) or 0 < (_frame_size(data, at) or _aac_size(data, at)) <= len(data) - at


def is_followed_by_file(data: bytes) -> bool:
    """Whether a file of another format begins after the frames of an mp3 file."""
    return is_file(data, _after_frames(data, 0))


def _after_frames(data: bytes, at: int) -> int:
    while size := _frame_size(data, at):
        at += size
    return after_tags(data, at)


def _frame_size(data: bytes, at: int) -> int:
    """Bytes of the frame whose header is there; 0 if none is."""
    rate = data[at + 2] >> 2 & 3 if _MPEG.match(data, at) else 3
    if rate == 3:  # reserved
        return 0
    version, layer = data[at + 1] >> 3 & 3, data[at + 1] >> 1 & 3
    hertz = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    bits = 1000 * _KILOBITS[version == 3, layer][(data[at + 2] >> 4) - 1]
    samples = 576 if layer == 1 and version != 3 else 1152
    return samples // 8 * bits // hertz + (data[at + 2] >> 1 & 1)


def _aac_size(data: bytes, at: int) -> int:
    """Bytes of the frame of AAC whose header (ADTS) is there; 0 if none is."""
    head = data[at : at + 7]
    if not re.match(rb"\xff[\xf0\xf1\xf8\xf9].{5}", head, re.DOTALL) or head[2] >> 2 & 15 > 12:  # no sampling rate
        return 0
    size = int.from_bytes(head[3:6], "big") >> 5 & 2**13 - 1
    return size if size > 7 else 0


def _same_kind(data: bytes, first: int, second: int) -> bool:
    """Whether two frames have the same version, layer and sampling rate, as all frames of one file have."""
    return data[first + 1] | 1 == data[second + 1] | 1 and data[first + 2] & 12 == data[second + 2] & 12


__all__ = ["after_tags", "before_tags", "find_mpeg", "is_file", "is_followed_by_file", "split", "start_of_mp3"]
