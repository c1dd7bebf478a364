"""Converts Open-ASQA, as LTU-AS published it, to training shards: one row per clip, with its audio and questions.

The JSON is streamed once into small files by a hash of sub-dataset and `audio_id` (open_asqa_rows.py). Several
processes group these buckets by clip, decode their audio and store it as 16-bit FLAC. So memory does not grow with the
file, each shard is a random sample of the whole, and neither the number of workers nor an interruption changes a byte.
All audio files are located before any is decoded, so a wrong folder is noticed early.

    falcon3-audio open-asqa prepare openasqa_10.3M_v2.json OUT --workers 16 \\
        --audio-root 'as_*=/data/audioset' --audio-root audioset=/data/audioset --audio-root 'fsd50k_*=/data/fsd50k'
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import Features, List, Value
from tqdm.auto import tqdm

from falcon3_audio.processing import SAMPLING_RATE, load_audio
from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import write_json

from ..data.shards import AUDIO, REPORT, begin_set, encode_flac, finish_set, run_jobs, write_shard
from .open_asqa_files import Roots, find_audio, name_shared_files, numbers_of
from .open_asqa_rows import EXAMPLES, identify, partition, read_clips


FORMAT = 1  # of the set; one in another format is not continued
TEXT = Value("string")
FEATURES = Features(
    {
        "audio": AUDIO,
        "audio_id": TEXT,
        "dataset": TEXT,
        "input": TEXT,
        "seconds": Value("float64"),
        "questions": List({"instruction": TEXT, "output": TEXT, "task": TEXT}),
    }
)
SHARD_CLIPS, SHARD_BYTES = 1000, 200_000_000  # a shard is full at either
MAX_MISSING = 0.05


LOSSES = ("missing", "broken")


@dataclass(frozen=True)
class Preparation:
    """What the workers need: folders of the set and of the buckets, and where audio is."""

    out: Path
    rows: Path
    roots: Roots
    home: str  # folder of the JSON

    def look(self, clip: Mapping[str, Any]) -> str | None:
        return find_audio(clip["dataset"], clip["audio_id"], self.roots, self.home)

    def find(self, clip: Mapping[str, Any]) -> str:
        path = self.look(clip)
        if path is None:
            rooted = any(fnmatchcase(clip["dataset"], pattern) for pattern, _ in self.roots)
            where = "in the folders of this sub-dataset" if rooted else "and no --audio-root for this sub-dataset"
            raise LostError("missing", f"no such file {where}")
        return path

    def load(self, clip: Mapping[str, Any]) -> np.ndarray:
        path = self.find(clip)
        try:
            return load_audio(path, name=clip["audio_id"])
        except (ValueError, OSError) as error:  # OSError: no permission, a bad disk
            raise LostError("broken", str(error)) from error


@dataclass
class Tally:
    """The buckets' records combined: counts and examples of losses per sub-dataset, rows of shards, files found."""

    counts: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    lost: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    shards: dict[str, int] = field(default_factory=dict)
    files: list[np.ndarray] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> int:
        """Add the record of a bucket; returns its number of clips, lost ones included."""
        for name, counts in record["counts"].items():
            self.counts[name].update(counts)
        for lost in record["lost"]:
            if len(self.lost[lost["dataset"]]) < EXAMPLES:
                self.lost[lost["dataset"]].append({key: lost[key] for key in ("audio_id", "kind", "reason")})
        self.shards |= record["shards"]
        self.files += [np.array(record["files"], np.uint64).reshape(-1, 2)] if "files" in record else []
        return sum(counts.get(kind, 0) for counts in record["counts"].values() for kind in ("clips", *LOSSES))


class LostError(Exception):
    """A clip without usable audio; `kind` is one of LOSSES."""

    def __init__(self, kind: str, reason: str):
        super().__init__(reason)
        self.kind = kind


def prepare(
    annotations: str | os.PathLike,
    out: str | os.PathLike,
    roots: Roots = (),
    max_missing: float = MAX_MISSING,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write `out/*.arrow` (columns: `FEATURES`) and `out/report.json` from Open-ASQA's JSON; returns the report.

    An unfinished set is continued: finished buckets are kept, except those with a lost clip that is available now.

    Args:
        annotations: A JSON list of objects with the strings instruction, audio_id and output, and optionally input,
            dataset and task. Other rows are left out and counted.
        out: Folder of the set: about 16 kB per second of audio, and the size of the JSON while it is being written.
        roots: Pairs of a pattern of sub-datasets and a folder of their audio, see `find_audio`.
        max_missing: Maximum share of a sub-dataset's clips whose audio is missing or broken, and of its rows that are
            malformed.
        workers: Processes that look for audio and decode.
        progress: Show progress bars on stderr.

    Raises:
        `ValueError`: more is missing than that (the report says what), two clips have one file, `out` holds another set
            or another process prepares one there, `annotations` is not a JSON list, an argument is invalid.
        `OSError`: the disk is full, or `annotations` cannot be read.
        `concurrent.futures.process.BrokenProcessPool`: a worker was killed.
    """
    if not 0 <= max_missing <= 1 or workers < 1:
        raise ValueError(f"got max_missing={max_missing} and workers={workers}; expected 0 to 1, and 1 or more")
    for pattern, folder in roots:
        if not os.path.isdir(folder):
            raise ValueError(f"got the audio root {pattern}={folder}, but there is no such folder")
    annotations, out = Path(annotations).resolve(), Path(out)
    roots = [(pattern, str(Path(folder).resolve())) for pattern, folder in roots]
    source = {**identify(annotations), "folder": str(annotations.parent)}
    parameters = {"source": "open-asqa", "format": FORMAT, "annotations": source, "audio_roots": roots}
    with begin_set(out, parameters) as report:
        work = out / "work"
        if not report["finished"]:
            task = Preparation(out, work / f"rows-{source['sha256'][:16]}", roots, source["folder"])
            report = {key: report[key] for key in ("finished", "parameters", "versions")}
            report = _prepare(task, annotations, report, max_missing, workers, progress)
        shutil.rmtree(work, ignore_errors=True)
    return report


def _prepare(
    task: Preparation, annotations: Path, report: dict[str, Any], max_missing: float, workers: int, progress: bool
) -> dict[str, Any]:
    rows = partition(annotations, task.rows, progress)
    buckets = sorted(task.rows.glob("*.jsonl"))
    found, done = Tally(), Tally()
    looked = run_jobs(partial(_look_for_audio, task), buckets, workers)
    clips = sum(map(found.add, tqdm(looked, "looking", len(buckets), unit="bucket", disable=not progress)))
    _check(task, report | _summary(rows, found, max_missing))
    shared = name_shared_files(found.files, (clip for bucket in buckets for clip in read_clips(bucket)), task.look)
    if shared:
        raise ValueError(shared)
    with tqdm(desc="decoding", total=clips, unit="clip", disable=not progress) as bar:
        for record in run_jobs(partial(_convert, task), buckets, workers):
            bar.update(done.add(record))
    report |= _summary(rows, done, max_missing)
    _check(task, report)
    return finish_set(task.out, report, done.shards)


def _look_for_audio(task: Preparation, bucket: Path) -> dict[str, Any]:
    """The record that `_convert` would return if every file could be decoded: without hours and shards, with files."""
    record = _new_record() | {"files": []}
    for clip in read_clips(bucket):
        try:
            record["files"].append(numbers_of(task.find(clip), clip["audio_id"]))
            _count(record, clip)
        except LostError as lost:
            _lose(record, clip, lost)
    return record


def _convert(task: Preparation, bucket: Path) -> dict[str, Any]:
    """Write the shards of a bucket and then its record, unless they exist."""
    path = bucket.with_suffix(".done.json")
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        if _is_valid(task, record):
            return record
        path.unlink()
    for stale in task.out.glob(f"{bucket.stem}-*.arrow"):
        stale.unlink()
    record = _new_record()
    for part, pack in enumerate(_packs(_rows(task, bucket, record))):
        name = f"{bucket.stem}-{part:02d}.arrow"
        write_shard(task.out / name, pack, FEATURES)
        record["shards"][name] = len(pack)
    write_json(path, record)
    return record


def _is_valid(task: Preparation, record: dict[str, Any]) -> bool:
    """Whether the bucket's shards exist, and its lost clips are still lost."""
    shards = all((task.out / name).is_file() for name in record["shards"])
    return shards and all(_is_lost(task, lost) for lost in record["lost"])


def _is_lost(task: Preparation, lost: dict[str, Any]) -> bool:
    try:
        task.load(lost)
    except LostError as error:
        return error.kind == lost["kind"]
    return False


def _rows(task: Preparation, bucket: Path, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of the bucket's clips that can be decoded; these and the others are counted in `record`."""
    for clip in read_clips(bucket):
        try:
            samples = task.load(clip)
        except LostError as lost:
            _lose(record, clip, lost)
            continue
        seconds = len(samples) / SAMPLING_RATE
        _count(record, clip, seconds=seconds)
        audio = {"bytes": encode_flac(samples), "path": PurePosixPath(clip["audio_id"]).stem + ".flac"}
        yield {**clip, "audio": audio, "seconds": seconds}


def _packs(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Splits rows into the parts that shards hold."""
    pack: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        pack.append(row)
        size += len(row["audio"]["bytes"])
        if len(pack) == SHARD_CLIPS or size >= SHARD_BYTES:
            yield pack
            pack, size = [], 0
    if pack:
        yield pack


def _new_record() -> dict[str, Any]:
    return {"counts": defaultdict(Counter), "lost": [], "shards": {}}


def _count(record: dict[str, Any], clip: dict[str, Any], **more: float) -> None:
    record["counts"][clip["dataset"]].update(clips=1, questions=len(clip["questions"]), **more)


def _lose(record: dict[str, Any], clip: dict[str, Any], error: LostError) -> None:
    record["counts"][clip["dataset"]].update({error.kind: 1, "lost_questions": len(clip["questions"])})
    lost = {"dataset": clip["dataset"], "audio_id": clip["audio_id"], "kind": error.kind, "reason": str(error)}
    record["lost"].append(lost)


def _summary(rows: dict[str, dict[str, Any]], tally: Tally, max_missing: float) -> dict[str, Any]:
    """What the report says about the data, per sub-dataset and in total."""
    kinds = ("clips", "questions", *LOSSES, "lost_questions")
    datasets = {}
    for name, counts in rows.items():
        found = tally.counts[name]
        hours = {"hours": round(found["seconds"] / 3600, 4)} if tally.shards else {}  # known after decoding
        datasets[name] = {
            **counts,
            **{kind: found[kind] for kind in kinds},
            **hours,
            "lost_examples": tally.lost[name],
        }
    numbers = [key for key, value in next(iter(datasets.values())).items() if not isinstance(value, list)]
    total = {key: round(sum(counts[key] for counts in datasets.values()), 4) for key in numbers}
    return {"max_missing": max_missing, "total": total, "datasets": datasets}


def _check(task: Preparation, report: dict[str, Any]) -> None:
    """If too much is lost, write a report that says so and raise an error."""
    share = report["max_missing"]
    failures = [line for name, counts in report["datasets"].items() for line in _failures(name, counts, share)]
    if not report["total"]["clips"]:
        failures = failures or ["no clip has usable audio"]
    if failures:
        failed = "; ".join(failures)
        write_json(task.out / REPORT, {**report, "failed": failed})
        raise ValueError(
            f"{failed}. The allowed share is {share:g} (--max-missing); all losses are counted in "
            f"{task.out / REPORT}. The next run tries the lost clips again"
        )


def _failures(name: str, counts: dict[str, Any], max_missing: float) -> Iterator[str]:
    lost = counts["missing"] + counts["broken"]
    if lost > max_missing * (counts["clips"] + lost):
        example = counts["lost_examples"][0]
        yield (
            f"{name or '(no name)'}: {counts['missing']} of {counts['clips'] + lost} clips are missing and "
            f"{counts['broken']} broken, such as {example['audio_id']} ({example['reason']})"
        )
    if counts["malformed"] > max_missing * counts["rows"]:
        example = counts["malformed_examples"][0]
        yield (
            f"{name or '(no name)'}: {counts['malformed']} of {counts['rows']} rows are malformed, such as row "
            f"{example['row']}, which {example['reason']}"
        )


def _root(text: str) -> tuple[str, str]:
    pattern, equals, folder = text.partition("=")
    if not (pattern and equals and folder):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected SUBDATASET=FOLDER")
    return pattern, folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio open-asqa", description=__doc__.split("\n\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verb = verbs.add_parser(
        "prepare", help="create shards from the JSON and the audio", description=__doc__.split("\n\n")[1]
    )
    verb.add_argument("annotations", metavar="JSON", help="Open-ASQA's file, or another in its format")
    verb.add_argument("out", metavar="OUT", help="folder for the shards; a run that was interrupted continues there")
    verb.add_argument(
        "--audio-root",
        dest="roots",
        metavar="SUBDATASET=FOLDER",
        type=_root,
        action="append",
        default=[],
        help="where the audio of a sub-dataset is; SUBDATASET is the rows' `dataset`, and can have * and ?; "
        "can be repeated",
    )
    verb.add_argument(
        "--max-missing",
        type=float,
        default=MAX_MISSING,
        help="maximum share of missing, broken or malformed clips or rows of a sub-dataset (default: %(default)s)",
    )
    verb.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    options = vars(parser.parse_args(arguments))
    options.pop("verb")
    with user_errors(parser.prog, breaks=(OSError, BrokenProcessPool), goes_on=GOES_ON) as end:
        report = prepare(**options, progress=sys.stderr.isatty())
        _print_summary(report)
    return end.status


def _print_summary(report: dict[str, Any]):
    for name, counts in {**report["datasets"], "total": report["total"]}.items():
        print(
            f"{name or '(no name)':<20} {counts['clips']:>9} clips {counts['hours']:>9.2f} hours {counts['questions']:>10} "
            f"questions; {counts['missing']} missing, {counts['broken']} broken, {counts['malformed']} rows malformed"
        )


if __name__ == "__main__":
    sys.exit(main())
