"""Listens to a training set before a run does: which rows cannot be read or heard, and why.

    falcon3-audio check-data data/train.jsonl data/more --workers 8

Takes what `train_data` takes. Every chat is put together and every clip decoded, once, in parallel; nothing is written. Rows that
would end a run are listed, one in a line, and the exit code is then 1.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

from falcon3_audio.processing import SAMPLING_RATE
from falcon3_audio.processing.messages_falcon3_audio import load_item
from falcon3_audio.user_errors import user_errors

from ..arguments import DataSource
from .training_sets import load_training_data


PARTS = 32  # for each worker, so that all are busy to the end
SOUND: dict[str, Any] = {"true": True, "some": "some", "false": False}  # as a recipe has it


@dataclass
class Found:
    """
    Of a set, or a part of it.

    Attributes:
        examples: questions, or chats.
        clips, seconds: that were decoded.
        unread: for each example or clip that cannot be read, what is wrong, with its place.
    """

    examples: int = 0
    clips: int = 0
    seconds: float = 0.0
    unread: list[str] = field(default_factory=list)

    def add(self, other: "Found"):
        self.examples += other.examples
        self.clips += other.clips
        self.seconds += other.seconds
        self.unread += other.unread


def check_data(source: DataSource, workers: int = 1, progress: bool = False) -> Found:
    """
    Reads all of a set.

    Raises a `ValueError` for a set that cannot be opened, is empty, or is none.
    """
    examples, _ = load_training_data([source])
    parts = _parts(examples, PARTS * workers)
    found = Found()
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(examples,)) as pool:
        for part in tqdm(pool.map(_check, parts), "checking", total=len(parts), disable=not progress):
            found.add(part)
    return found


def _parts(examples: Dataset, count: int) -> list[range]:
    """Examples in so many stretches or fewer, with all questions about a clip in one."""
    rows = np.asarray(examples.with_format("numpy")["row"][:])
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    bounds = sorted({int(stretch[0]) for stretch in np.array_split(starts, count) if len(stretch)} | {len(rows)})
    return [range(start, end) for start, end in zip(bounds, bounds[1:])]


_EXAMPLES: list[Dataset] = []  # of a worker


def _begin(examples: Dataset):
    _EXAMPLES.append(examples)


def _check(part: range) -> Found:
    found, heard = Found(), None
    for index in part:
        found.examples += 1
        try:
            example = _EXAMPLES[-1][index]
        except (ValueError, OSError) as error:
            found.unread.append(str(error))
            continue
        if example["clip"] is None or example["clip"] != heard:
            heard = example["clip"]
            _listen(example, found)
    return found


def _listen(example: dict, found: Found):
    for number, message in enumerate(example["messages"]):
        for item in message["content"]:
            if item["type"] != "audio":
                continue
            try:
                samples = load_item(item, None, number)["audio"]
            except (ValueError, OSError, TypeError) as error:
                found.unread.append(f"{example['clip'] or example['origin']}: {error}")
            else:
                found.clips += 1
                found.seconds += len(samples) / SAMPLING_RATE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio check-data", description=__doc__.split("\n\n")[0])
    parser.add_argument("sets", metavar="SET", nargs="+", help="training sets: paths or Hub ids")
    parser.add_argument("--name", help="configuration of a set on the Hub")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--sound",
        choices=SOUND,
        default="true",
        help="which rows have it: `sound` of the sets' entries (default: true, all)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one for each core")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    bad = False
    with user_errors(parser.prog) as end:
        for path in options.sets:
            source = DataSource(path, options.name, options.split, sound=SOUND[options.sound])
            found = check_data(source, options.workers, sys.stderr.isatty())
            print(
                f"{path}: {found.examples:,} examples, {found.clips:,} clips, {found.seconds / 3600:.2f} h", flush=True
            )
            for line in found.unread:
                print(f"  {line}")
            bad = bad or bool(found.unread)
    return end.status or int(bad)


if __name__ == "__main__":
    sys.exit(main())
