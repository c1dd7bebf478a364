"""CSV and TSV as rows of texts: `0`, `007`, `null` and `NA` stay texts, no type is guessed.

The first line names the columns; a column without a name (an index written by pandas) is left out. The encoding is
UTF-8, with or without a byte order mark. Fields can be quoted, and then hold delimiters, line breaks and doubled
quotes. Some TSV files are written without quoting, so quotes are part of their texts (Common Voice): a TSV is read
without quoting if its first lines with quotes are valid without it, and invalid or fewer rows with it.
Run: `for place, row in read_table("clips.csv", ","): ...`
"""

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Literal

from .files import open_file
from .signs_of_sound import SOUND_FILE


DELIMITERS = {".csv": ",", ".tsv": "\t"}  # by the ending of a file
LOOKED_AT = 10_000  # lines, from the first with a quote on, that decide whether quotes enclose fields
BAR = "|"
OTHERS = {",": "a comma", "\t": "a tab", ";": "a semicolon", BAR: "a vertical bar"}


def read_table(file: str | os.PathLike, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
    """
    The rows of a table, each with its line.

    Raises a `ValueError` that names file and line if a row does not have one field per column, quotes are not closed
    or do not enclose a field, columns have the same name, or the file is not UTF-8.
    """
    with open_file(file, "rt", encoding="utf-8-sig", newline="") as content:
        lines = _quoted(content) if delimiter == "\t" else content
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            names = _names(next(reader, []), delimiter)
            for fields in reader:
                if fields:
                    yield f"line {reader.line_num}", _row(names, fields)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}, {_undecodable(file)}") from error
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{file}, line {max(1, reader.line_num)}: {error}") from error


def is_utf16(data: bytes) -> bool:
    """Whether the start of a text file, or of one of its lines, looks like UTF-16."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[:2].count(0) == 1


def not_utf8(utf16: bool) -> str:
    """The error message about a file in another encoding."""
    what, encoding = ("UTF-16, not UTF-8", "UTF-16") if utf16 else ("not UTF-8", "CP1252")
    return (
        f"this is {what}. Save the file as UTF-8 (in Excel: CSV UTF-8), or convert it: iconv -f {encoding} -t UTF-8 "
        "OLD > NEW"
    )


def _quoted(lines: Iterator[str]) -> Iterator[str]:
    """The lines of a table with tabs: unchanged if quotes enclose fields, else with all fields quoted."""
    columns = 0
    for line in lines:
        columns = columns or line.count("\t") + 1
        if '"' in line:
            ahead = [line, *islice(lines, LOOKED_AT - 1)]
            rest = chain(ahead, lines)
            yield from rest if _has_quoted_fields(ahead, columns) else map(_enclose, rest)
        else:
            yield line


def _has_quoted_fields(lines: Sequence[str], columns: int) -> bool:
    with_quotes = _row_ends(lines, columns, csv.QUOTE_MINIMAL)
    without = _row_ends(lines[: with_quotes[-1]] if with_quotes else lines, columns, csv.QUOTE_NONE)
    return not without or without == with_quotes


def _row_ends(lines: Sequence[str], columns: int, quoting: Literal[0, 3]) -> list[int]:
    """The lines in which rows end; none if a row does not have one field per column, or quotes are invalid."""
    reader = csv.reader(lines, delimiter="\t", quoting=quoting, strict=True)
    ends: list[int] = []
    try:
        for fields in reader:
            if fields and len(fields) != columns:
                return []
            ends.append(reader.line_num)
    except csv.Error:
        # The last row can continue after the lines that are looked at.
        return ends if reader.line_num == LOOKED_AT else []
    return ends


def _enclose(line: str) -> str:
    text = line.rstrip("\r\n")
    fields = text.replace('"', '""').split("\t")
    return "\t".join(f'"{field}"' for field in fields) + line[len(text) :] if text else line


def _undecodable(file: str | os.PathLike) -> str:
    """
    The line of the first byte that is not UTF-8, and the error message. (The csv reader's line number is too low:
    decoding is ahead.)
    """
    with open_file(file) as content:
        data = content.read()
    try:
        data.decode("utf-8-sig")
        start = 0
    except UnicodeDecodeError as error:
        start = error.start
    line = data.count(b"\n", 0, start) + 1
    return f"line {line}: {not_utf8(is_utf16(data))}"


def _names(fields: list[str], delimiter: str) -> list[str]:
    names, header = [name.strip() for name in fields], "".join(fields)
    if is_utf16(header.encode()):
        raise ValueError(not_utf8(utf16=True))
    other = next((one for one in OTHERS if one in header and (len(names) == 1 or one == BAR)), None)
    if other:
        raise ValueError(
            f"its columns are separated by {OTHERS[other]}; expected "
            f"{OTHERS.get(delimiter, repr(delimiter))} in a file with this ending "
            f"({', '.join(f'{OTHERS[mark]} in {ending}' for ending, mark in DELIMITERS.items())}), and the names of "
            "the columns in its first line"
        )
    clip = next((name for name in names if SOUND_FILE.search(name)), None)
    if clip:
        raise ValueError(
            f"the first line must name the columns, but it has the file name {clip!r}. Add a line of names"
        )
    twice = {name for name in names if name and names.count(name) > 1}
    if twice:
        raise ValueError(f"the columns {', '.join(sorted(twice))} appear twice")
    return names


def _row(names: list[str], fields: list[str]) -> dict[str, str]:
    if len(fields) != len(names):
        raise ValueError(
            f"expected {len(names)} fields, one for each column, got {len(fields)}: {fields!r:.200}. A field that "
            "contains the delimiter, or starts with a quote, must be in quotes, and its own quotes doubled"
        )
    return {name: field for name, field in zip(names, fields) if name}
