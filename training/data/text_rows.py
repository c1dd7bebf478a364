"""JSONL, JSON, CSV, TSV and tar files as memory-mapped rows with exactly the values of the files.

`datasets` guesses a type for each column and so changes texts: `"2024-01-01"` becomes a date, and if content is a
string in one row and a list in another, `"0"` becomes a number and `"null"` becomes `None`. Here each value is stored
as its JSON text (audio bytes unchanged) and decoded when its row is read. In a file called `metadata`, `file_name` is
the row's clip, as in an audiofolder of `datasets`.
Run: `rows = open_rows({"train": ["chats.jsonl"]}, "train")`
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from os.path import basename, dirname
from typing import Any

from datasets import BuilderConfig, Dataset, DatasetInfo, Features, GeneratorBasedBuilder, SplitGenerator, Value
from datasets.data_files import DataFilesDict

from falcon3_audio.strict_json import parse_json

from .files import open_file
from .tables import is_utf16, not_utf8, read_table
from .tars import read_tar


FORMAT = "4"  # of the stored rows; files stored in another format are converted again
JSON, TAR = "json", "tar"
WITH_SOUND = 100  # rows that are written at a time if they hold audio, as in `datasets` itself
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
# The names of a row's clips in an audiofolder's metadata, and the columns that `datasets` creates from them.
FOLDER_KEYS = {
    **{"file_name": "audio", "audio_file_name": "audio"},
    **{"file_names": "audios", "audios_file_names": "audios"},
}


def open_rows(
    files: Mapping[str, list[str]] | DataFilesDict,
    split: str,
    config: str | None = None,
    kind: str = JSON,
) -> Dataset:
    """
    The rows of some files.

    Args:
        files: paths, or the files that `datasets` found on the Hub, by split. A JSON file holds an object per line, a
            list of objects, or one object.
        split: as in `datasets`, including `"train[:1000]"`.
        config: name of the configuration of a Hub set.
        kind: of the files: `JSON`, `TAR`, or the delimiter of tables.

    Raises:
        `IndexError`: if the files have no rows.
        `DatasetGenerationError` (whose cause names file and line) or `ValueError`: if a file is not of its kind, a row
            is not an object, or the split does not exist.
    """
    at_once = WITH_SOUND if kind == TAR else None
    builder = TextRows(data_files=files, config_name=config, hash=FORMAT, kind=kind, writer_batch_size=at_once)
    builder.download_and_prepare()
    return builder.as_dataset(split=split).with_transform(decode)


def decode(batch: Mapping[str, list[str | bytes | None]]) -> dict[str, list[Any]]:
    """The values of stored rows."""
    return {
        name: [json.loads(value) if isinstance(value, str) else value for value in values]
        for name, values in batch.items()
    }


@dataclass
class TextRowsConfig(BuilderConfig):
    """A set's files; `kind` as in `open_rows`."""

    kind: str = JSON


class TextRows(GeneratorBasedBuilder):
    """Created by `open_rows`."""

    BUILDER_CONFIG_CLASS = TextRowsConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo()  # the columns are known when the files are read

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        get = dl_manager.download if self.config.kind == TAR else dl_manager.download_and_extract
        parts = {
            str(part): list(chain.from_iterable(dl_manager.iter_files(path) for path in paths))
            for part, paths in get(self.config.data_files).items()
        }
        self.info.features = _features(_rows_alike(chain.from_iterable(parts.values()), self.config.kind))
        return [SplitGenerator(part, gen_kwargs={"files": files}) for part, files in parts.items()]

    def _generate_shards(self, files: list[str]) -> Iterator[str]:
        yield from files

    def _generate_examples(self, files: list[str]) -> Iterator[tuple[int, dict[str, str | bytes | None]]]:
        for number, row in enumerate(self._rows(files)):
            yield number, _encode_row(row, self.info.features)

    def _rows(self, files: list[str]) -> Iterator[dict[str, Any]]:
        return (row for file in files for _, row in read_rows(file, self.config.kind))


def read_rows(file: str, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    The rows of a file or URL, each with its place there, such as `line 3`.

    Args:
        kind: as in `open_rows`.

    Raises a `ValueError` that names file and place if the file is not of its kind or a row is not an object.
    """
    values = _json_values(file) if kind == JSON else read_tar(file) if kind == TAR else read_table(file, kind)
    for place, row in values:
        if not isinstance(row, dict):
            raise ValueError(f"{file}, {place}: expected an object, got {json.dumps(row):.100}")
        yield place, _with_clips(row, dirname(file)) if basename(file).lower() in METADATA else row


def _rows_alike(files: Iterable[str], kind: str) -> Iterator[dict[str, Any]]:
    """The rows of the files of one set. Raises a `ValueError` if a file shares no column with those before it."""
    known: dict[str, str] = {}  # column -> the first file that has it
    for file in files:
        columns: dict[str, str] = {}
        for _, row in read_rows(file, kind):
            columns |= dict.fromkeys(row, file)
            yield row
        if known and columns and known.keys().isdisjoint(columns):
            raise ValueError(
                f"{file} has the columns {', '.join(columns)}, and {next(iter(known.values()))} has {', '.join(known)}: these are not one "
                "set. Take the file that does not belong to it out of the folder, or give the files as separate sets"
            )
        known = columns | known


def as_stored(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows of `read_rows` in memory, in the form that `open_rows` returns."""
    features = _features(rows)
    return Dataset.from_list([_encode_row(row, features) for row in rows], features).with_transform(decode)


def _features(rows: Iterable[Mapping[str, Any]]) -> Features:
    columns: dict[str, bool] = {}  # column -> whether it holds bytes
    for row in rows:
        columns |= {name: columns.get(name, False) or isinstance(value, bytes) for name, value in row.items()}
    if not columns:
        raise IndexError("no rows")
    return Features({name: Value("binary" if columns[name] else "string") for name in columns})


def _encode_row(row: Mapping[str, Any], features: Features) -> dict[str, str | bytes | None]:
    return {name: _encode(row.get(name), name, kind) for name, kind in features.items()}


def _encode(value: Any, name: str, stored_as: Value) -> str | bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if stored_as.dtype == "binary":
        raise ValueError(f"{name!r} is audio in some rows, but {value!r:.100} in another")
    return json.dumps(value)


def _json_values(file: str) -> Iterator[tuple[str, Any]]:
    """The places and values of a file: the elements of a list, an object over several lines, or one value per line."""
    with open_file(file) as lines:
        first = next((line for line in lines if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").strip()
    if first and (first.startswith(b"[") or not _is_json(first)):
        with open_file(file) as content:
            value = _parse(content.read(), file)
        yield from ((f"row {number}", row) for number, row in enumerate(value if isinstance(value, list) else [value]))
        return
    with open_file(file) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"line {number}", _parse(line, f"{file}, line {number}")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _parse(text: bytes, place: str) -> Any:
    try:
        return parse_json(text.decode("utf-8-sig"))
    except ValueError as error:
        utf16 = is_utf16(text)  # of which ASCII is valid UTF-8
        if utf16 or isinstance(error, UnicodeDecodeError):
            raise ValueError(f"{place}: {not_utf8(utf16)}") from error
        raise ValueError(f"JSON parse error in {place}: {error}") from error


def _with_clips(row: dict[str, Any], folder: str) -> dict[str, Any]:
    """The row with its clips under an audiofolder's column names, as absolute paths."""
    given = [name for name in FOLDER_KEYS if name in row]
    others = {name: value for name, value in row.items() if name not in given}
    return others | {FOLDER_KEYS[name]: _inside(row[name], folder) for name in given}


def _inside(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [_inside(part, folder) for part in value]
    return os.path.abspath(os.path.join(folder, value)) if isinstance(value, str) and value else value
