"""The table of the measurements, from the records in a folder: each claim, and the best peer's time over ours.

    python -m benchmarks.summary                                # benchmarks/results
    python -m benchmarks.summary benchmarks/results/h100        # OUT of on_gpu.sh

prints the tables in README.md; a test checks that they agree.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from falcon3_audio.user_errors import user_errors


RESULTS = Path(__file__).resolve().parent / "results"
OURS = "falcon3-audio"
Record = dict[str, Any]
Rows = list[list[str]]  # (claim, ratio, detail)


def _best(found: Record) -> float:
    """The ratio to the peer closest to ours."""
    return min(found["ratios"].values())


def _training(record: Record, label: str = "") -> Rows:
    preset = record["options"]["preset"].upper()
    widths = "true widths" if record["options"]["size"] == "real" else "proportions"
    peer = min(record["ratios"], key=record["ratios"].get)
    median = record["median seconds"][OURS]
    ours = record["mix"]["questions"] / median
    allowed, true = (record["flop ratios"][kind][peer] for kind in ("needed", "needed at the true widths"))
    detail = f"{ours:.1f} questions/s; FLOPs allow {allowed:.2f}, at the true widths {true:.2f}"
    rate = sum(record["flops"]["needed"][OURS].values()) / median
    for name, words in (("peak FLOP/s", "the card's peak"), ("matmul FLOP/s", "its measured matmul rate")):
        if record.get(name):
            detail += f"; {rate / record[name]:.0%} of {words}"
    return [[f"training, {label or f'{widths} of the {preset}'}", f"{record['ratios'][peer]:.2f}", detail]]


def _encoder(record: Record) -> Rows:
    both = record["forward and backward"]
    costs = {int(name): found["median seconds"][OURS] / int(name) * 1000 for name, found in both.items()}
    detail = f"{costs[60]:.1f} ms per second of audio at 60 s, {costs[max(costs)]:.1f} at {max(costs)} s"
    forward = ["encoder, 10 s, forward", f"{_best(record['forward']['10']):.2f}", ""]
    return [forward, ["encoder, 10 s, forward and backward", f"{_best(both['10']):.2f}", detail]]


def _questions_per_clip(record: Record) -> Rows:
    table = []
    for count, found in record["questions"].items():
        rate = int(count) / found["median seconds"][OURS]
        table.append([f"{count} question(s) about a clip of 10 s", f"{_best(found):.2f}", f"{rate:.1f} answers/s"])
    return table


def _generation(record: Record) -> Rows:
    table = []
    for batch in ("batch of 1", "batch of 8"):
        found = record[batch]
        whole = f"whole answers of {record['options']['tokens']} tokens {_best(found['whole answers']):.2f}"
        table.append([f"time to the first token, {batch}", f"{_best(found['first token']):.2f}", whole])
    return table


def _peak_memory(record: Record) -> Rows:
    peaks = {kind: max(run["peak"] for run in runs) / 2**30 for kind, runs in record["bytes"].items()}
    detail = ", ".join(f"{kind} {peak:.2f} GiB" for kind, peak in peaks.items())
    return [["peak memory of a training step", f"{_best(record):.2f}", detail]]


def _data_loader(record: Record) -> Rows:
    rate = record["mix"]["questions"] / record["median seconds"][OURS]
    return [["data loader, one core", f"{_best(record):.2f}", f"{rate:.0f} questions/s"]]


def _step_timeline(record: Record) -> Rows:
    detail = f"waits {record['share of waiting']:.1%} of the time for {record['options']['workers']} workers"
    detail += f"; {record['workers per device that suffice']:.1f} suffice"
    return [["a device at the 1B's estimated pace on an H100", "-", detail]]


def _serving(record: Record) -> Rows:
    requests, table = record["options"]["requests"], []
    for clients in (1, 8, 32):
        found = record[f"{clients} clients"]
        rates = {kind: requests / median for kind, median in found["median seconds"].items()}
        detail = f"{rates[OURS]:.1f} requests/s; our pipeline() without vLLM {rates['pipeline']:.1f}"
        table.append([f"vLLM, {clients} client(s) at once", f"{found['ratios']['audio-flamingo-3']:.2f}", detail])
    return table


def _attention(record: Record) -> Rows:
    outcomes = Counter(case["outcome"] for case in record["cases"])
    shared = [case for case in record["cases"] if case["what"].startswith("rows that share") and "seconds" in case]
    times = {case["attention"]: min(case["seconds"]) for case in shared if case["dtype"] == "bfloat16"}
    detail = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    ratios = [f"{way} {time / times['sdpa']:.2f}" for way, time in times.items() if "sdpa" in times and way != "sdpa"]
    if ratios:
        detail += f"; time over sdpa's in rows that share clips, bfloat16: {', '.join(ratios)}"
    return [["ways to compute attention", "-", detail]]


def _training_run(record: Record) -> Rows:
    names = [Path(record["options"][name]).name for name in ("audio_model", "text_model")]
    rates, loss = record["medians"], record["loss"]
    detail = f"{record['steps']} steps of {record['options']['questions']} in {record['options']['seconds']} s"
    detail += f", {rates['samples_per_second']:.0f} questions/s, {rates['data_wait_share']:.0%} of the time for data"
    detail += f", {record['peak_memory_gib']:.1f} GiB; loss {loss['first']:.2f} to {loss['last']:.2f}"
    return [[f"training, {' + '.join(names)}", "-", detail]]


MAKERS: dict[str, Callable[[Record], Rows]] = {
    "training_step_1b": _training,
    "training_step_3b": _training,
    "training_step_7b": _training,
    "training_step_one_long": lambda record: _training(record, "clips of 30 s with one question"),
    "encoder": _encoder,
    "questions_per_clip": _questions_per_clip,
    "generation": _generation,
    "peak_memory": _peak_memory,
    "data_loader": _data_loader,
    "step_timeline_1b": _step_timeline,
    "serving": _serving,
    "attention": _attention,
    "training_run": _training_run,
}


def rows_of(name: str, record: Record) -> Rows:
    """(claim, ratio, detail) as text, for the record `name`.json."""
    return MAKERS[name](record)


def rows(folder: Path = RESULTS) -> Rows:
    """The rows of all records in a folder. Raises a `FileNotFoundError` if there are none."""
    found = {name: folder / f"{name}.json" for name in MAKERS if (folder / f"{name}.json").exists()}
    if not found:
        raise FileNotFoundError(f"no record in {folder}; expected one of {', '.join(MAKERS)}, each as .json")
    return [row for name, path in found.items() for row in rows_of(name, json.loads(path.read_text(encoding="utf-8")))]


def as_markdown(table: Rows) -> str:
    lines = [["what", "best peer / ours", "details"], ["---"] * 3, *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="of the records (default: %(default)s)")
    folder = parser.parse_args(arguments).folder
    with user_errors("summary") as end:
        print(as_markdown(rows(folder)))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
