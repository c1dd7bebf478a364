"""Encoded sounds, and bytes that surround them in files."""

import io
import struct

import numpy as np
import soundfile
from tiny import tone


RATE = 16_000
SHORT, LONG = tone(1.0, 440), tone(2.0, 997)
ID3 = b"ID3\x04\0\0" + bytes((0, 0, 2, 5)) + bytes(2 * 128 + 5)  # its size, 7 bits per byte
ID3_WITH_FOOTER = b"ID3\x04\0\x10" + ID3[6:] + b"3DI\x04\0\x10" + ID3[6:10]
TAG = b"TAG" + b"a title".ljust(125)
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"000021" + b"LYRICS200"


def ape(header: bool) -> bytes:
    """An APE tag; only version 2 can have a header. Neither counts it in the size."""
    item = struct.pack("<II", 7, 0) + b"Title\0" + b"a title"
    has = 0x80000000 if header else 0
    head, foot = (
        b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, has | flags) + bytes(8)
        for flags in (0x20000000, 0)
    )
    return header * head + item + foot


def encode(samples, format, rate=RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, **options)
    return file.getvalue()


def plain(data: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)[0]


def without_length(mp3: bytes) -> bytes:
    """An mp3 file without its first frame, which has the frame count; its audio starts with the encoder's delay."""
    return mp3[mp3.find(mp3[:2], 4) :]


def chunk(title: bytes, content: bytes) -> bytes:
    return title + struct.pack("<I", len(content)) + content


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def streamed_wav(samples, size: int = 0xFFFFFFFF, first: bytes = b"") -> bytes:
    """WAV from a program that cannot go back to write the size; `first` is a chunk before the others."""
    data = encode(samples, "WAV")
    start = data.index(b"data")
    data = put(put(data, start + 4, struct.pack("<I", size)), 4, struct.pack("<I", size and min(size + 36, 2**32 - 1)))
    return data[:12] + first + data[12:]
