"""Splits Open-ASQA's JSON, one list of ten million rows, into small files that hold all rows of each of their clips.

Rows are streamed (ijson), checked, and appended to the file chosen by a hash of sub-dataset and `audio_id`, so memory
only holds a buffer for any size of the JSON; a file is then small enough to be grouped in memory. Malformed rows are
left out, counted and shown; a file that is not a JSON list, or is cut off, is an error. Used by open_asqa.py.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ijson
from tqdm.auto import tqdm

from falcon3_audio.whole_files import write_json


REQUIRED, OPTIONAL = ("audio_id", "instruction", "output"), ("dataset", "input", "task")
# Bytes of JSON per bucket. Open-ASQA has 446 per row and 5.2 rows per clip: about 860 clips, one shard.
BUCKET_BYTES = 2_000_000
BUFFER_BYTES = 64_000_000  # of rows that wait in memory for their buckets
SUMMARY = "rows.json"
EXAMPLES = 10  # in the report, per sub-dataset


def identify(annotations: Path) -> dict[str, Any]:
    """Size and SHA-256 of a JSON file; `ValueError` unless it starts like a list."""
    with open(annotations, "rb") as file:
        start = file.read(1000).lstrip()[:1]
        if start != b"[":
            raise ValueError(f"{annotations} begins with {start!r}; expected a JSON list of rows, as in Open-ASQA")
        file.seek(0)
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": annotations.stat().st_size, "sha256": sha256}


def partition(annotations: Path, folder: Path, progress: bool = False) -> dict[str, dict[str, Any]]:
    """
    Spread the rows over the buckets `folder/*.jsonl`, unless that is done; rows keep their order in each.

    Returns:
        Per sub-dataset (`""` if a row names none), the number of `rows` and of `malformed` ones, and
        `malformed_examples` of these, whose `row` counts from 1.

    Raises:
        `ValueError`: if the file is cut off, not JSON, or an empty list.
    """
    if not (folder / SUMMARY).exists():
        unfinished = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        buckets = max(1, round(annotations.stat().st_size / BUCKET_BYTES))
        counts: dict[str, dict[str, Any]] = {}
        _append(unfinished, _lines(_read_rows(annotations, progress), buckets, counts))
        write_json(unfinished / SUMMARY, dict(sorted(counts.items())))
        os.replace(unfinished, folder)
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def read_clips(bucket: Path) -> list[dict[str, Any]]:
    """
    The clips of a bucket in the order of their first rows: `audio_id`, `dataset`, `input` and `questions`.

    `input` is the first one among a clip's rows that is not empty.
    """
    clips: dict[tuple[str, str], dict[str, Any]] = {}
    with open(bucket, encoding="utf-8") as file:
        for line in file:
            audio_id, instruction, output, dataset, heard, task = json.loads(line)
            new = {"audio_id": audio_id, "dataset": dataset, "input": heard, "questions": []}
            clip = clips.setdefault((dataset, audio_id), new)
            clip["input"] = clip["input"] or heard
            clip["questions"].append({"instruction": instruction, "output": output, "task": task})
    return list(clips.values())


def _read_rows(annotations: Path, progress: bool) -> Iterator[Any]:
    """The elements of a JSON list, in constant memory."""
    bar = {"total": annotations.stat().st_size, "desc": "reading", "disable": not progress}
    number = 0
    with open(annotations, "rb") as file, tqdm.wrapattr(file, "read", **bar) as reader:
        try:
            for row in ijson.items(reader, "item", buf_size=2**20):
                number += 1
                yield row
        except ijson.JSONError as error:
            why = " ".join(str(error).split())
            raise ValueError(f"{annotations} is cut off or not JSON, after row {number}: {why}") from error
    if number == 0:
        raise ValueError(f"{annotations} is an empty list; expected rows with {', '.join(REQUIRED + OPTIONAL)}")


def _lines(rows: Iterable[Any], buckets: int, counts: dict[str, dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
    """Bucket and line of each row that is well formed; all rows are counted in `counts`."""
    for number, row in enumerate(rows, start=1):
        dataset = row.get("dataset") if isinstance(row, dict) else None
        name = dataset if isinstance(dataset, str) else ""
        count = counts.setdefault(name, {"rows": 0, "malformed": 0, "malformed_examples": []})
        count["rows"] += 1
        try:
            fields = _fields(row)
        except ValueError as error:
            count["malformed"] += 1
            if len(count["malformed_examples"]) < EXAMPLES:
                count["malformed_examples"].append({"row": number, "reason": str(error)})
            continue
        key = f"{fields['dataset']}\0{fields['audio_id']}"
        yield zlib.crc32(key.encode()) % buckets, json.dumps(list(fields.values())).encode() + b"\n"


def _fields(row: Any) -> dict[str, str]:
    """The row's strings in the order of REQUIRED + OPTIONAL; `ValueError` says what is wrong with it."""
    if not isinstance(row, dict):
        raise ValueError(f"is a {type(row).__name__}, not an object")
    fields: dict[str, Any] = {key: row.get(key) for key in REQUIRED}
    fields |= {key: "" if row.get(key) is None else row[key] for key in OPTIONAL}
    for key, value in fields.items():
        if value is None:
            raise ValueError(f"has no {key}")
        if not isinstance(value, str):
            raise ValueError(f"has the {key} {str(value)[:100]!r} of type {type(value).__name__}, not a string")
        if key in REQUIRED and not value.strip():
            raise ValueError(f"has an empty {key}")
    return fields


def _append(folder: Path, lines: Iterable[tuple[int, bytes]]) -> None:
    """Append lines to the files of their buckets; many at a time, since there are too many files to keep open."""
    waiting: dict[int, bytearray] = defaultdict(bytearray)
    size = 0
    for bucket, line in lines:
        waiting[bucket] += line
        size += len(line)
        if size >= BUFFER_BYTES:
            _flush(folder, waiting)
            size = 0
    _flush(folder, waiting)


def _flush(folder: Path, waiting: dict[int, bytearray]) -> None:
    for bucket, data in waiting.items():
        with open(folder / f"{bucket:05d}.jsonl", "ab") as file:
            file.write(data)
    waiting.clear()
