"""WebDataset tars as rows: consecutive files with the same name up to the first dot are one row.

An audio file is the row's `audio`; the keys of its `.json` are columns; `.txt` and other texts, and the number in
`.cls`, are columns of that name, texts without the line break at their end. Hidden files are left out. (`datasets`
reads such tars too, but only with torchcodec. It takes the types from the first five rows, turns a number that comes
later into text, and drops keys that come later.)
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

from .files import is_hidden, open_file
from .signs_of_sound import SOUND_FILE


TEXTS = ("txt", "text", "transcript")


def read_tar(file: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    The rows of a tar, each with the shared name of its files. Files of kinds that are not read are columns without
    values.

    Raises a `ValueError` that names tar and file if the tar is damaged, JSON or text is invalid, a `.cls` is not a
    number, or a row has a kind of file twice.
    """
    try:
        with open_file(file) as content, tarfile.open(fileobj=content) as members:
            files = ((*_name(member), member) for member in members if member.isfile() and _is_part(member))
            for key, group in groupby(files, lambda named: named[0]):
                yield key, _row(file, members, [(kind, member) for _, kind, member in group])
    except tarfile.TarError as error:
        raise ValueError(f"{file} is not a complete tar: {error}") from error


def _is_part(member: tarfile.TarInfo) -> bool:
    return "." in _last(member) and not is_hidden(PurePosixPath(member.name))


def _last(member: tarfile.TarInfo) -> str:
    return PurePosixPath(member.name).name


def _name(member: tarfile.TarInfo) -> tuple[str, str]:
    """The shared name of a row's files, and the kind of this file."""
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
