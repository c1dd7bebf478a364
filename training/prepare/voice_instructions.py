"""Creates a voice-instruction set: text instructions, spoken by a synthesiser, with their answers as text.

The input is a text dataset (text_instructions.py), without the rows that cannot be spoken (speakable.py); the output
is parquet shards that training reads directly. Every random draw depends on the row, not on the process: the files are
the same with any number of workers, and after a run that was killed and restarted. Hours and counts are in
summary.json. For several GPUs, start one process per GPU, with `--split "train[:50%]"` and so on.

    falcon3-audio voice-instructions yahma/alpaca-cleaned runs/voice
    falcon3-audio voice-instructions chats.jsonl runs/voice --tts facebook/mms-tts-eng --limit 100
"""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import write_json

from ..data.shards import AUDIO, REPORT, begin_set, finish_set, write_shard
from .speakable import Exchange, SpokenLimits, spoken_form, why_not_spoken
from .speech_synthesis import ESPEAK, Job, Speech, TextToSpeech, make_tts
from .text_instructions import ReadExchange, TextSource, open_text


FORMAT = 1  # raised whenever the same parameters would give other files
SUMMARY = "summary.json"
EXAMPLES = 5  # failures that are quoted
# What the report keeps about the shards that are written.
NOTHING_DONE: dict[str, Any] = {
    "shards": {},
    "rows": 0,
    "seconds": 0.0,
    "voices": {},
    "failed": {},
    "failure_examples": [],
}

FEATURES = Features(
    {
        # A user turn of one audio item, which is the row's `audio`, and the answer.
        "messages": [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}],
        "audio": AUDIO,
        "instruction": Value("string"),  # what is said
        "seconds": Value("float64"),
        "source": Value("string"),
        "split": Value("string"),
        "row": Value("int64"),  # of the source's split
        "tts": Value("string"),
        "voice": Value("string"),
        "speed": Value("float64"),  # as in `speech_synthesis.Manner`, like pitch
        "pitch": Value("int64"),
    }
)


@dataclass(frozen=True)
class VoiceSet:
    """
    What decides the samples of a set.

    Args:
        text: where the instructions come from.
        limits: their language and lengths.
        tts: `"espeak-ng"`, or a model for the `text-to-audio` pipeline, which speaks `batch_size` rows at a time.
        limit: number of rows to speak, drawn from those that can be; all by default.
        seed: of that draw, and of voices, speeds and pitches.
        rows_per_shard: rows to speak per shard; it holds fewer if some fail.
    """

    text: TextSource
    limits: SpokenLimits = field(default_factory=SpokenLimits)
    tts: str = ESPEAK
    batch_size: int = 1
    limit: int | None = None
    seed: int = 0
    rows_per_shard: int = 1000

    def __post_init__(self):
        lengths = {"min_characters": self.limits.min_characters, "max_characters": self.limits.max_characters}
        counts = {"limit": self.limit, "rows_per_shard": self.rows_per_shard, "batch_size": self.batch_size, **lengths}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ValueError(f"got {name}={count}; expected 1 or more")
        if self.seed < 0:
            raise ValueError(f"got seed={self.seed}; expected 0 or more")


class Selection(NamedTuple):
    jobs: list[Job]  # rows to speak, ascending
    total: int
    filtered: dict[str, int]  # rows left out, by reason
    not_drawn: int  # rows that `limit` left out
    digest: str  # of all texts, to notice a source that has changed


class Shard(NamedTuple):
    name: str
    jobs: list[Job]


def make_voice_instructions(
    wanted: VoiceSet,
    out: str | Path,
    workers: int | None = None,
    device: str | None = None,
    max_failed: float = 0.01,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Write a set into the folder `out`, or the missing part of it.

    Args:
        workers: processes of espeak-ng; by default one per core.
        device: of a model; by default the accelerator if there is one.
        max_failed: maximum share of rows that the synthesiser fails to speak, over all shards so far. The shard that
            exceeds it is not written.
        progress: show progress bars.

    Returns:
        The content of summary.json: samples, hours, rows left out and rows failed by reason, samples per voice.

    Raises:
        `ValueError`: a source that cannot be read, lacks the columns or has nothing to speak, too many failures, an
            unknown language or model, a folder that holds something else or in which another process prepares a set.
        `OSError`: a full disk.
        `concurrent.futures.process.BrokenProcessPool`: a worker was killed.
    """
    if not 0 <= max_failed < 1:
        raise ValueError(f"got max_failed={max_failed}; expected a share of 0 or more and below 1")
    if workers is not None and workers < 1:
        raise ValueError(f"got workers={workers}; expected 1 or more")
    out = Path(out)
    rows, read = open_text(wanted.text)
    tts = make_tts(wanted.tts, wanted.limits.language, wanted.seed, workers, wanted.batch_size, device)
    selection = _select(rows, read, wanted, tts, progress)
    origin = {"format": FORMAT, "source_digest": selection.digest, "tts_versions": tts.versions}
    with begin_set(out, {**asdict(wanted), **origin}) as report:
        done = report.get("done", NOTHING_DONE)
        _check_shards(out, done)
        if not report["finished"]:
            for shard, samples, failures in _speak(rows, read, selection, wanted, tts, done, progress):
                done = _add(done, shard, samples, failures)
                _check_failures(done, max_failed)
                if samples:
                    write_shard(out / shard.name, samples, FEATURES)
                report["done"] = done
                write_json(out / REPORT, report)
        summary = _summary(rows, selection, done)
        if not report["finished"]:
            write_json(out / SUMMARY, summary)
            finish_set(out, report, {name: count for name, count in done["shards"].items() if count})
    return summary


def _select(
    rows: Dataset,
    read: ReadExchange,
    wanted: VoiceSet,
    tts: TextToSpeech,
    progress: bool,
) -> Selection:
    jobs: list[Job] = []
    filtered: Counter[str] = Counter()
    digest = hashlib.sha256()
    for number, row in enumerate(tqdm(rows, desc="choosing", unit="row", disable=not progress)):
        exchange = read(row)
        digest.update(repr(exchange).encode())
        reason = why_not_spoken(exchange, wanted.limits)
        if reason is None and tts.loses(spoken_form(exchange.instruction)):
            reason = "letters or digits the synthesiser does not know"
        if reason is None:
            jobs.append(Job(number, spoken_form(exchange.instruction)))
        else:
            filtered[reason] += 1
    if not jobs:
        raise ValueError(f"none of the {len(rows)} rows of {wanted.text.source} can be spoken: {_counts(filtered)}")
    chosen = jobs
    if wanted.limit is not None and wanted.limit < len(jobs):
        drawn = np.random.default_rng(wanted.seed).choice(len(jobs), wanted.limit, replace=False)
        chosen = [jobs[index] for index in np.sort(drawn)]
    return Selection(chosen, len(rows), dict(filtered.most_common()), len(jobs) - len(chosen), digest.hexdigest())


def _check_shards(out: Path, done: Mapping[str, Any]) -> None:
    missing = [name for name, samples in done["shards"].items() if samples and not (out / name).is_file()]
    if missing:
        raise ValueError(f"{out} lacks the shard {missing[0]}, which {REPORT} says was written; use an empty folder")


def _speak(
    rows: Dataset,
    read: ReadExchange,
    selection: Selection,
    wanted: VoiceSet,
    tts: TextToSpeech,
    done: Mapping[str, Any],
    progress: bool,
) -> Iterator[tuple[Shard, list[dict[str, Any]], list[Speech]]]:
    """The shards that are not done, each with its samples and failures, in order."""
    shards = _shards(selection.jobs, wanted.rows_per_shard)[len(done["shards"]) :]
    # No batch crosses the end of a shard: a run that resumes there has the same batches.
    batches = [batch for shard in shards for batch in _cut(shard.jobs, tts.batch_size)]
    speeches = chain.from_iterable(tts.speak(batches))
    bar = tqdm(total=len(selection.jobs), initial=done["rows"], desc="speaking", unit="row", disable=not progress)
    with bar:
        for shard in shards:
            samples, failures = [], []
            exchanges = (read(row) for row in rows.select([job.row for job in shard.jobs]))
            for exchange, speech in zip(exchanges, speeches):
                bar.update()
                if speech.failure:
                    failures.append(speech)
                else:
                    samples.append(_sample(exchange, speech, wanted))
            yield shard, samples, failures


def _shards(jobs: list[Job], size: int) -> list[Shard]:
    parts = _cut(jobs, size)
    return [Shard(f"train-{number:05d}-of-{len(parts):05d}.parquet", part) for number, part in enumerate(parts)]


def _cut(jobs: list[Job], size: int) -> list[list[Job]]:
    return [jobs[start : start + size] for start in range(0, len(jobs), size)]


def _sample(exchange: Exchange, speech: Speech, wanted: VoiceSet) -> dict[str, Any]:
    question = {"role": "user", "content": [{"type": "audio", "text": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": exchange.answer.strip()}]}
    return {
        "messages": [question, answer],
        "audio": {"bytes": speech.flac, "path": f"{speech.row:08d}.flac"},
        "instruction": spoken_form(exchange.instruction),
        "seconds": speech.seconds,
        "source": wanted.text.source,
        "split": wanted.text.split,
        "row": speech.row,
        "tts": wanted.tts,
        **speech.manner._asdict(),
    }


def _add(
    done: Mapping[str, Any], shard: Shard, samples: list[dict[str, Any]], failures: list[Speech]
) -> dict[str, Any]:
    failed = Counter(done["failed"]) + Counter(speech.failure for speech in failures)
    voices = Counter(done["voices"]) + Counter(sample["voice"] for sample in samples)
    quoted = [{"row": speech.row, "failure": speech.failure, "detail": speech.detail} for speech in failures]
    return {
        "shards": {**done["shards"], shard.name: len(samples)},
        "rows": done["rows"] + len(shard.jobs),
        "seconds": done["seconds"] + sum(sample["seconds"] for sample in samples),
        "voices": dict(sorted(voices.items())),
        "failed": dict(failed.most_common()),
        "failure_examples": [*done["failure_examples"], *quoted][:EXAMPLES],
    }


def _check_failures(done: Mapping[str, Any], max_failed: float) -> None:
    failed = sum(done["failed"].values())
    if failed > max_failed * done["rows"]:
        example = done["failure_examples"][0]
        raise ValueError(
            f"{failed} of the first {done['rows']} rows could not be spoken ({_counts(done['failed'])}), more than the "
            f"{max_failed:.2%} that --max-failed allows; row {example['row']}: {example['detail']}. Fix the cause or "
            "raise --max-failed, and run again: written shards are kept"
        )


def _summary(rows: Dataset, selection: Selection, done: Mapping[str, Any]) -> dict[str, Any]:
    samples = sum(done["shards"].values())
    return {
        "samples": samples,
        "hours": round(done["seconds"] / 3600, 4),
        "seconds_per_sample": round(done["seconds"] / samples, 2),
        "columns_read": rows.column_names,
        "rows": selection.total,
        "filtered": selection.filtered,
        "not_drawn": selection.not_drawn,
        "failed": done["failed"],
        "failure_examples": done["failure_examples"],
        "voices": done["voices"],
    }


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none"


def _print_summary(summary: Mapping[str, Any], out: Path) -> None:
    print(
        f"{out}: {summary['samples']} samples, {summary['hours']:.2f} hours ({summary['seconds_per_sample']:.1f} s each), "
        f"{len(summary['voices'])} voices"
    )
    print(f"read {summary['rows']} rows from the columns {', '.join(summary['columns_read'])}")
    print(f"left out by the rules: {_counts(summary['filtered'])}; not drawn: {summary['not_drawn']}")
    print(f"could not be spoken: {_counts(summary['failed'])}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="falcon3-audio voice-instructions", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", metavar="SOURCE", help="text instructions: Hub id, folder or file")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the shards")
    parser.add_argument("--config", help="configuration of a Hub dataset")
    parser.add_argument("--split", default=TextSource.split, help="default: %(default)s; `train[:1000]` takes a part")
    for name in ("messages", "instruction", "input", "output"):
        default = getattr(TextSource, f"{name}_column")
        parser.add_argument(f"--{name}-column", default=default, help="default: %(default)s")
    parser.add_argument(
        "--tts", default=ESPEAK, help=f"{ESPEAK} (default), or a text-to-audio model: Hub id or folder"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="rows that a model speaks at a time (default: 1)")
    parser.add_argument("--device", help="of a model, such as cuda:1 (default: the accelerator if there is one)")
    parser.add_argument("--workers", type=int, help=f"processes of {ESPEAK} (default: one per core)")
    parser.add_argument("--limit", type=int, help="speak this many random rows (default: all that can be spoken)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--language", default=SpokenLimits.language, help="of the text (default: %(default)s)")
    for name in ("min", "max"):
        default = getattr(SpokenLimits, f"{name}_characters")
        parser.add_argument(f"--{name}-characters", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--max-failed", type=float, default=0.01, help="maximum share of failures (default: 0.01)")
    parser.add_argument("--rows-per-shard", type=int, default=VoiceSet.rows_per_shard, help="default: %(default)s")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = vars(make_parser().parse_args(arguments))
    out = options.pop("out")
    running = {name: options.pop(name) for name in ("workers", "device", "max_failed")}
    text, limits = ({f.name: options.pop(f.name) for f in fields(group)} for group in (TextSource, SpokenLimits))
    breaks = (BrokenProcessPool, torch.OutOfMemoryError)
    with user_errors("falcon3-audio voice-instructions", breaks=breaks, goes_on=GOES_ON) as end:
        wanted = VoiceSet(TextSource(**text), SpokenLimits(**limits), **options)
        summary = make_voice_instructions(wanted, out, progress=sys.stderr.isatty(), **running)
        _print_summary(summary, out)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
