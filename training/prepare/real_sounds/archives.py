"""Recordings in the archives of packages: Quake's pk3, Qt's compiled resources (rcc), OpenTTD's sounds (cat).

All three are read from memory; each reader yields (name, bytes) of the audio files.
"""

import io
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from .sources import AUDIO_SUFFIXES


File = tuple[str, bytes]
# Flags of a file in a Qt resource: https://code.qt.io/cgit/qt/qtbase.git/tree/src/corelib/io/qresource.cpp
RCC_COMPRESSED, RCC_FOLDER, RCC_ZSTD = 1, 2, 4


def unpack_archives(folder: Path, target: Path) -> None:
    """
    Write the audio files of all archives below `folder` into `target`.

    Raises:
        `ValueError`: if a file would be written outside of it.
    """
    for suffix, read in READERS.items():
        for archive in sorted(folder.rglob("*" + suffix)):
            for name, data in read(archive.read_bytes()):
                path = target / _inside(name, archive)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name.lstrip("/"))
    if ".." in path.parts:
        raise ValueError(f"{archive} holds a file {name!r}, expected no name with '..'")
    return path


def read_pk3(data: bytes) -> Iterator[File]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if PurePosixPath(name).suffix in AUDIO_SUFFIXES:
                yield name, archive.read(name)


def read_rcc(data: bytes) -> Iterator[File]:
    """The files of a compiled Qt resource that are stored uncompressed, as audio is."""
    version, tree, _, _ = header = struct.unpack_from(">4I", data, 4)
    size = 22 if version >= 2 else 14
    yield from _walk_rcc(data, header, tree, size, 0, "")


def _walk_rcc(data: bytes, header: tuple[int, ...], tree: int, size: int, node: int, folder: str) -> Iterator[File]:
    """The files of a node: a file, or a folder, whose children are consecutive."""
    _, _, blobs, names = header
    at = tree + node * size
    name_at, flags = struct.unpack_from(">IH", data, at)
    path = f"{folder}/{_rcc_name(data, names + name_at)}" if node else ""
    if flags & RCC_FOLDER:
        count, first = struct.unpack_from(">2I", data, at + 6)
        for child in range(first, first + count):
            yield from _walk_rcc(data, header, tree, size, child, path)
    elif PurePosixPath(path).suffix in AUDIO_SUFFIXES and not flags & (RCC_COMPRESSED | RCC_ZSTD):
        start = blobs + struct.unpack_from(">I", data, at + 10)[0]
        length = struct.unpack_from(">I", data, start)[0]
        yield path, data[start + 4 : start + 4 + length]


def _rcc_name(data: bytes, at: int) -> str:
    length = struct.unpack_from(">H", data, at)[0]  # in characters; 4 bytes of a hash come before them
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def read_cat(data: bytes) -> Iterator[File]:
    """
    OpenTTD's sounds, each named by its description.

    Format: https://newgrf-specs.tt-wiki.net/wiki/CatFormat; the highest bit of an offset is a flag.
    """
    mask = 0x7FFFFFFF
    entries = (struct.unpack_from("<I", data)[0] & mask) // 8
    for index in range(entries):
        start, length = struct.unpack_from("<2I", data, 8 * index)
        start &= mask
        title = data[start + 1 : start + data[start]].decode("latin-1").strip("\0").replace('"', "", 2)
        start += 1 + data[start]
        if data[start : start + 4] == b"RIFF":
            yield f"cat/{re.sub(r'[^ -.0-~]', '|', title)[:60].strip()} {index:02d}.wav", data[start : start + length]


READERS: dict[str, Callable[[bytes], Iterator[File]]] = {".pk3": read_pk3, ".rcc": read_rcc, ".cat": read_cat}
