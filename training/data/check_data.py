"""Checks a training set before a run: which rows or clips cannot be read, and why.

    falcon3-audio check-data data/train.jsonl data/more --workers 8
    falcon3-audio check-data clips.csv --columns audio=path,text=sentence --prompt "Write down what is said."
    falcon3-audio check-data owner/large --first 1000    # for a set that is too large to load

Takes the same sets as `train_data`. Prints how each set is read, its contents and what any run leaves out (what does
not fit into a run's `max_length` is in its own plan), and up to three of its examples. Every chat is built and every
clip decoded, once, in parallel; nothing is written. The first 50 rows that would stop a run are listed, one per line
(rows are counted from 0, without a table's header), and the exit code is then 1.
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
from falcon3_audio.processing.processing_falcon3_audio import MAX_AUDIO_SECONDS
from falcon3_audio.user_errors import user_errors

from .sources import DataSource
from .stream import open_streams
from .training_sets import counted, describe_sets, load_training_data, set_of


PARTS = 32  # for each worker, so that all are busy to the end
SHOWN = 300  # characters of a text that is shown
LISTED = 50  # unreadable rows that are listed
LEARNED = ">"
SOUND: dict[str, Any] = {"true": True, "some": "some", "false": False}  # as in a recipe


@dataclass
class Found:
    """
    The contents of a set, or of a part of it.

    Attributes:
        examples: questions, or chats.
        too_long: those that a run leaves out because a clip is longer than processors accept.
        clips, seconds: that were decoded.
        longest: of these clips, in seconds.
        unread: for each example or clip that cannot be read, its place and the error.
    """

    examples: int = 0
    too_long: int = 0
    clips: int = 0
    seconds: float = 0.0
    longest: float = 0.0
    unread: list[str] = field(default_factory=list)

    def add(self, other: "Found"):
        self.examples += other.examples
        self.too_long += other.too_long
        self.clips += other.clips
        self.seconds += other.seconds
        self.longest = max(self.longest, other.longest)
        self.unread += other.unread


def check_data(examples: Dataset, workers: int = 1, progress: bool = False) -> Found:
    """Reads all of a set opened by `load_training_data`."""
    parts = _parts(examples, PARTS * workers)
    found = Found()
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(examples,)) as pool:
        for part in tqdm(pool.map(_check, parts), "checking", total=len(parts), disable=not progress):
            found.add(part)
    return found


def _parts(examples: Dataset, count: int) -> list[range]:
    """Examples in at most `count` ranges, with all questions about a clip in the same one."""
    rows = np.asarray(examples.with_format("numpy")["row"][:])
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    bounds = sorted({int(stretch[0]) for stretch in np.array_split(starts, count) if len(stretch)} | {len(rows)})
    return [range(start, end) for start, end in zip(bounds, bounds[1:])]


_EXAMPLES: list[Dataset] = []  # of a worker


def _begin(examples: Dataset):
    _EXAMPLES.append(examples)


def _check(part: range) -> Found:
    found, heard, longest = Found(), None, 0.0
    for index in part:
        found.examples += 1
        try:
            example = _EXAMPLES[-1][index]
        except (ValueError, OSError) as error:
            found.unread.append(str(error))
            continue
        if example["clip"] is None or example["clip"] != heard:
            heard = example["clip"]
            longest = _listen(example, found)
        found.too_long += longest > MAX_AUDIO_SECONDS
    return found


def _listen(example: dict, found: Found) -> float:
    """Decodes an example's clips, and returns the seconds of the longest."""
    longest = 0.0
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
                longest = max(longest, len(samples) / SAMPLING_RATE)
    found.longest = max(found.longest, longest)
    return longest


def describe(found: Found, examples: Dataset) -> list[str]:
    """The contents of a set and what a run leaves out, one line each; `examples` is the whole set."""
    counts = f"{counted(found.examples, 'question')}, {counted(found.clips, 'clip')}, {_time(found.seconds)}"
    longest = f", the longest {found.longest:.1f} s" if found.clips else ""
    _, rows, reading = set_of(examples)
    without = len(rows) - len(np.unique(examples.with_format("numpy")["row"][:]))
    return [
        f"{counts}{longest}",
        *(
            [f"not read: the column{'s' * (len(reading.others) > 1)} {', '.join(reading.others)}"]
            if reading.others
            else []
        ),
        *([f"left out: {counted(without, 'row')} without questions"] if without else []),
        *(
            [f"left out: {counted(found.too_long, 'question')} about clips over {MAX_AUDIO_SECONDS:g} s"]
            if found.too_long
            else []
        ),
    ]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def show_examples(examples: Dataset) -> list[str]:
    """The first, the middle and the last example as a model sees them, without those that cannot be read."""
    lines = []
    for index in sorted({0, len(examples) // 2, len(examples) - 1}):
        try:
            example = examples[index]
            shown = [_show(message, number) for number, message in enumerate(example["messages"])]
        except (ValueError, OSError, TypeError):
            continue  # listed as unreadable
        lines += [example["origin"], *shown]
    return [f"Examples; lines that start with {LEARNED} are learned:", *lines] if lines else []


def _show(message: dict[str, Any], number: int) -> str:
    parts = [_show_item(item, number) for item in message["content"]] + [
        str(c) for c in message.get("tool_calls") or []
    ]
    mark = LEARNED if message["role"] == "assistant" and number > 0 else " "  # the opening message is not learned
    return f"  {mark} {message['role']:<10} {' '.join(parts)}"


def _show_item(item: dict[str, Any], number: int) -> str:
    if item["type"] == "audio":
        return f"[{len(load_item(item, None, number)['audio']) / SAMPLING_RATE:.2f} s of audio]"
    text = str(item.get("text"))
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN]!r}... ({len(text):,} characters)"


def _columns(given: str) -> dict[str, str]:
    """`audio=path,text=sentence` as a mapping."""
    pairs = [pair.partition("=") for pair in given.split(",")]
    if not all(name and column for name, _, column in pairs):
        raise argparse.ArgumentTypeError(f"must be like audio=path,text=sentence, got {given!r}")
    return {name.strip(): column.strip() for name, _, column in pairs}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio check-data", description=__doc__.split("\n\n")[0])
    parser.add_argument("sets", metavar="SET", nargs="+", help="training sets: paths or Hub ids")
    parser.add_argument("--name", help="configuration of a set on the Hub")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument(
        "--sound",
        choices=SOUND,
        default="true",
        help="which rows have audio: `sound` of the sets' entries (default: true, all)",
    )
    parser.add_argument(
        "--columns",
        type=_columns,
        help="which column holds what, such as audio=path,text=sentence: `columns` of the sets' entries "
        "(default: detected by name)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        help="the question about each clip, for sets that only have answers: `prompt` of the sets' entries; "
        "can be given several times",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="default: one per core")
    parser.add_argument(
        "--first",
        type=int,
        metavar="N",
        help="check only the first N rows, and load no others: for sets to be trained on with `streaming: true`",
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.first is not None and options.first < 1:
        parser.error(f"--first must be at least 1, got {options.first}")
    bad = False
    with user_errors(parser.prog) as end:
        for path in options.sets:
            source = DataSource(
                path,
                options.name,
                options.split,
                sound=SOUND[options.sound],
                prompt=options.prompt,
                columns=options.columns,
                streaming=options.first is not None,
            )
            bad = _report(source, options.workers, options.first) or bad
    return end.status or int(bad)


def _report(source: DataSource, workers: int, first: int | None) -> bool:
    """Prints the report on a set, or on its first rows; returns whether any of it cannot be read."""
    examples, _ = open_streams([source], first)[1] if first else load_training_data([source])
    print(*describe_sets(examples), flush=True)
    if first:
        print(f"  {counted(len(set_of(examples)[1]), 'row')} from the start, no others")
    found = check_data(examples, workers, sys.stderr.isatty())
    more = len(found.unread) - LISTED
    rest = [f"and {more:,} more like these"] if more > 0 else []
    verdict = (
        [f"NOT READABLE: {len(found.unread):,}; a run would stop there (rows are counted from 0)"]
        if found.unread
        else []
    )
    for line in [*describe(found, examples), *show_examples(examples), *verdict, *found.unread[:LISTED], *rest]:
        print(f"  {line}", flush=True)
    return bool(found.unread)


if __name__ == "__main__":
    sys.exit(main())
