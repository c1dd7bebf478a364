"""JSONL, JSON, CSV, TSV and tar files as memory-mapped rows that hold what the files say.

`datasets` guesses a type for each column and so changes texts: `"2024-01-01"` becomes a date, and where content is a string in
one row and a list in another, `"0"` becomes a number and `"null"` nothing. Here each value is stored as its JSON text (but the
bytes of a sound as they are) and decoded when its row is read. In a file called `metadata`, `file_name` is the row's clip, as in an
audiofolder of `datasets`.
Run: `rows = open_rows({"train": ["chats.jsonl"]}, "train")`
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import BuilderConfig, Dataset, DatasetInfo, Features, GeneratorBasedBuilder, SplitGenerator, Value
from datasets.data_files import DataFilesDict

from falcon3_audio.strict_json import parse_json

from .tables import NOT_UTF8, read_table
from .tars import read_tar


FORMAT = "3"  # of what is stored; another one is converted anew
JSON, TAR = "json", "tar"
WITH_SOUND = 100  # rows that are written at once where they hold sounds; `datasets` does so itself
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
# What an audiofolder's metadata calls a row's clips, and the columns that `datasets` makes of them.
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
        files: paths, or what `datasets` found on the Hub, by split. A file of JSON holds an object per line, a list of
            objects, or one object.
        split: as `datasets` knows it, `"train[:1000]"` included.
        config: name of the configuration of a Hub set.
        kind: of the files: `JSON`, `TAR`, or what stands between the fields of tables.

    Raises:
        `IndexError`: for files without rows.
        `DatasetGenerationError` (whose cause names file and line) or `ValueError`: for a file that is not of its kind, a row
            that is no object, and a split that is not there.
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
    """A set's files; `kind` as of `open_rows`."""

    kind: str = JSON


class TextRows(GeneratorBasedBuilder):
    """Made by `open_rows`."""

    BUILDER_CONFIG_CLASS = TextRowsConfig

    def _info(self) -> DatasetInfo:
        return DatasetInfo()  # the columns are known when the files are read

    def _split_generators(self, dl_manager) -> list[SplitGenerator]:
        get = dl_manager.download if self.config.kind == TAR else dl_manager.download_and_extract
        parts = {
            str(part): list(chain.from_iterable(dl_manager.iter_files(path) for path in paths))
            for part, paths in get(self.config.data_files).items()
        }
        columns: dict[str, bool] = {}  # and whether it holds bytes
        for row in chain.from_iterable(self._rows(files) for files in parts.values()):
            columns |= {name: columns.get(name, False) or isinstance(value, bytes) for name, value in row.items()}
        if not columns:
            raise IndexError("no rows")
        self.info.features = Features({name: Value("binary" if columns[name] else "string") for name in columns})
        return [SplitGenerator(part, gen_kwargs={"files": files}) for part, files in parts.items()]

    def _generate_shards(self, files: list[str]) -> Iterator[str]:
        yield from files

    def _generate_examples(self, files: list[str]) -> Iterator[tuple[int, dict[str, str | bytes | None]]]:
        for number, row in enumerate(self._rows(files)):
            yield number, {name: _encode(row.get(name), name, kind) for name, kind in self.info.features.items()}

    def _rows(self, files: list[str]) -> Iterator[dict[str, Any]]:
        for file in map(Path, files):
            for place, row in self._values(file):
                if not isinstance(row, dict):
                    raise ValueError(f"{file}, {place}: expected an object, got {json.dumps(row):.100}")
                yield _with_clips(row, file.parent) if file.name in METADATA else row

    def _values(self, file: Path) -> Iterator[tuple[str, Any]]:
        if self.config.kind == JSON:
            return _json_values(file)
        return read_tar(file) if self.config.kind == TAR else read_table(file, self.config.kind)


def _encode(value: Any, name: str, stored_as: Value) -> str | bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if stored_as.dtype == "binary":
        raise ValueError(f"{name!r} is the sound of some rows, and {value!r:.100} in another")
    return json.dumps(value)


def _json_values(file: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds and where: the elements of a list, an object over several lines, or what each line holds."""
    with file.open("rb") as lines:
        first = next((line for line in lines if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").strip()
    if first and (first.startswith(b"[") or not _is_json(first)):
        value = _parse(file.read_bytes(), f"{file}")
        yield from ((f"row {number}", row) for number, row in enumerate(value if isinstance(value, list) else [value]))
        return
    with file.open("rb") as lines:
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
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: {NOT_UTF8}") from error
    except ValueError as error:
        raise ValueError(f"JSON parse error in {place}: {error}") from error


def _with_clips(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The row with its clips under the names of an audiofolder's columns, as absolute paths."""
    given = [name for name in FOLDER_KEYS if name in row]
    others = {name: value for name, value in row.items() if name not in given}
    return others | {FOLDER_KEYS[name]: _inside(row[name], folder) for name in given}


def _inside(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_inside(part, folder) for part in value]
    return os.path.abspath(folder / value) if isinstance(value, str) and value else value
