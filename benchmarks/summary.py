"""The table of what was measured, from the records in benchmarks/results: each claim, and the best peer's time over ours.

    python -m benchmarks.summary

prints the table that README.md shows; a test holds the two together.
"""

import json
import sys
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).resolve().parent / "results"


def _best(found: dict[str, Any]) -> float:
    """The ratio to the peer that comes nearest to ours."""
    return min(found["ratios"].values())


def _training(name: str, label: str, records: dict[str, Any]) -> list[str]:
    record = records[name]
    peer = min(record["ratios"], key=record["ratios"].get)
    ours = record["mix"]["questions"] / record["median seconds"]["falcon3-audio"]
    allowed, true = (record["flop ratios"][kind][peer] for kind in ("needed", "needed at the true widths"))
    detail = f"{ours:.1f} questions/s; FLOPs allow {allowed:.2f}, at the true widths {true:.2f}"
    return [f"training, {label}", f"{record['ratios'][peer]:.2f}", detail]


def rows(folder: Path = RESULTS) -> list[list[str]]:
    """(claim, ratio, detail) as texts. Raises an `OSError` where a record is missing."""
    names = [f"training_step_{name}" for name in ("1b", "3b", "7b", "one_long")]
    names += [
        "encoder",
        "questions_per_clip",
        "generation",
        "peak_memory",
        "data_loader",
        "step_timeline_1b",
        "serving",
    ]
    records = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    table = [
        _training(f"training_step_{name}", f"proportions of the {name.upper()}", records)
        for name in ("1b", "3b", "7b")
    ]
    table.append(_training("training_step_one_long", "clips of 30 s with one question", records))
    both = records["encoder"]["forward and backward"]
    costs = [both[str(seconds)]["median seconds"]["falcon3-audio"] / seconds * 1000 for seconds in (60, 600)]
    detail = f"{costs[0]:.1f} ms per second of sound at 60 s, {costs[1]:.1f} at 600 s"
    table.append(["encoder, 10 s, forward", f"{_best(records['encoder']['forward']['10']):.2f}", ""])
    table.append(["encoder, 10 s, forward and backward", f"{_best(both['10']):.2f}", detail])
    for count, found in records["questions_per_clip"]["questions"].items():
        rate = int(count) / found["median seconds"]["falcon3-audio"]
        table.append([f"{count} question(s) about a clip of 10 s", f"{_best(found):.2f}", f"{rate:.1f} answers/s"])
    for batch in ("batch of 1", "batch of 8"):
        found = records["generation"][batch]
        whole = f"whole answers of 32 tokens {_best(found['whole answers']):.2f}"
        table.append([f"time to the first token, {batch}", f"{_best(found['first token']):.2f}", whole])
    peaks = {kind: max(run["peak"] for run in runs) / 2**30 for kind, runs in records["peak_memory"]["bytes"].items()}
    detail = ", ".join(f"{kind} {peak:.2f} GiB" for kind, peak in peaks.items())
    table.append(["peak memory of a training step", f"{_best(records['peak_memory']):.2f}", detail])
    loader = records["data_loader"]
    rate = loader["mix"]["questions"] / loader["median seconds"]["falcon3-audio"]
    table.append(["data loader, one core", f"{_best(loader):.2f}", f"{rate:.0f} questions/s"])
    line = records["step_timeline_1b"]
    detail = f"waits {line['share of waiting']:.1%} of the time for {line['options']['workers']} workers"
    detail += f"; {line['workers per device that suffice']:.1f} suffice"
    table.append(["a device at the 1B's estimated pace on an H100", "-", detail])
    requests = records["serving"]["options"]["requests"]
    for clients in (1, 8, 32):
        found = records["serving"][f"{clients} clients"]
        rates = {kind: requests / median for kind, median in found["median seconds"].items()}
        detail = f"{rates['falcon3-audio']:.1f} requests/s; our pipeline() without vLLM {rates['pipeline']:.1f}"
        table.append([f"vLLM, {clients} client(s) at once", f"{found['ratios']['audio-flamingo-3']:.2f}", detail])
    return table


def as_markdown(table: list[list[str]]) -> str:
    lines = [["what", "best peer / ours", "besides"], ["---"] * 3, *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    try:
        print(as_markdown(rows()))
    except OSError as error:
        print(f"summary: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
