"""Tars of WebDataset as rows: consecutive files that are called alike up to the first dot are one row.

Its sound is the row's `audio`; what its `.json` holds are columns; `.txt` and other texts, and the number in `.cls`, are columns
of that name, texts without the line break at their end. Hidden files are left out. (`datasets` reads such tars too, but with
torchcodec only; it takes the types from the first five rows, makes a text of a number that comes later, and drops keys that do.)
Run: `for place, row in read_tar("shard-000.tar"): ...`
"""

import os
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from falcon3_audio.strict_json import parse_json

from .chats import SOUND_FILE
from .files import is_hidden, open_file


TEXTS = ("txt", "text", "transcript")


def read_tar(file: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    The rows of a tar, each with the name that its files share. Files of kinds that are not read are columns without values.

    Raises a `ValueError` that names tar and file for a tar that is damaged, JSON or text that is none, a `.cls` that is no
    number, and a kind of file that a row has twice.
    """
    try:
        with open_file(file) as content, tarfile.open(fileobj=content) as members:
            files = ((*_name(member), member) for member in members if member.isfile() and _is_part(member))
            for key, group in groupby(files, lambda named: named[0]):
                yield key, _row(file, members, [(kind, member) for _, kind, member in group])
    except tarfile.TarError as error:
        raise ValueError(f"{file} is no whole tar: {error}") from error


def _is_part(member: tarfile.TarInfo) -> bool:
    return "." in _last(member) and not is_hidden(PurePosixPath(member.name))


def _last(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).name


def _name(member: tarfile.TarInfo) -> tuple[str, str]:
    """What the files of a row share, and the kind of this one."""
    stem, _, kind = _last(member).partition(".")
    return f"{PurePosixPath(member.name).parent / stem}", kind.lower()


def _row(file: str | os.PathLike, tar: tarfile.TarFile, members: list[tuple[str, tarfile.TarInfo]]) -> dict[str, Any]:
    sounds = [kind for kind, _ in members if SOUND_FILE.search(f".{kind}")]
    told: dict[str, Any] = {}
    row: dict[str, Any] = {}
    for kind, member in members:
        if kind in row:
            raise ValueError(f"{file}, {member.name}: the row has `.{kind}` twice")
        try:
            value = _value(kind, tar.extractfile(member).read())  # type: ignore[union-attr]  # it is a file
        except ValueError as error:
            raise ValueError(f"{file}, {member.name}: {error}") from error
        if kind == "json" and isinstance(value, dict):
            told = value
        else:
            row["audio" if sounds == [kind] else kind] = value
    return told | row


def _value(kind: str, data: bytes) -> Any:
    last = kind.rpartition(".")[2]
    if SOUND_FILE.search(f".{kind}"):
        return data
    if last == "cls":
        return int(data)
    if last in TEXTS or last == "json":
        text = data.decode("utf-8-sig")
        return parse_json(text) if last == "json" else re.sub(r"\r?\n\Z", "", text)
    return None
