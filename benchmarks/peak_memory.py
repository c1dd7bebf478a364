"""Peak memory of a training step: each model takes one step in its own process, which reports its memory.

    python -m benchmarks.peak_memory
    python -m benchmarks.peak_memory --preset 7b --size real --activation-checkpointing

The step is that of training_step.py, with micro-batches of `--micro-batch` questions for the peers and of `--tokens`
tokens for ours; the largest micro-batch of each is printed. On a GPU the peak is the most memory allocated there; on a
CPU it is the most the process ever held, libraries and weights included. The memory before the step is printed too.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from falcon3_audio.peak_memory import peak_memory

from .batches import Step
from .clips import open_asqa_step
from .measure import device, dtype_of, options, positive, print_shape, print_table, record, run_script
from .models import KINDS, OURS, build, with_lora
from .shapes import shape_of
from .training_step import Stepper


ROOT = Path(__file__).resolve().parent.parent


def measure_one(given: argparse.Namespace) -> dict[str, int]:
    """Bytes of one model, measured in this process, which must not have run another."""
    shape = shape_of(given.preset, given.size)
    step = Step(open_asqa_step(given.questions, given.seed), shape, given.seed)
    model = with_lora(build(given.only, shape, device(), dtype_of(given.size), given.seed))
    with tempfile.TemporaryDirectory() as folder:
        at_once = given.tokens if given.only == OURS else given.micro_batch
        stepper = Stepper(given.only, model, step, at_once, folder, given.activation_checkpointing)
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else _resident()
        batches = stepper.batches()
    places = max(batch["input_ids"].numel() for batch in batches)
    return {"before": before, "peak": peak_memory(device()), "micro-batches": len(batches), "tokens at once": places}


def _resident() -> int:
    """Bytes that this process holds now or, if the system does not report that, the most it has held so far."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else peak_memory("cpu")


def measure(given: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    shape = shape_of(given.preset, given.size)
    print_shape(shape)
    found: dict[str, list[dict[str, int]]] = {kind: [] for kind in KINDS}
    for _ in range(given.repeats):
        for kind in KINDS:
            found[kind].append(_in_a_process(kind, arguments))
    peaks = {kind: max(run["peak"] for run in runs) for kind, runs in found.items()}
    ratios = {kind: peaks[kind] / peaks[OURS] for kind in KINDS if kind != OURS}
    rows = []
    for kind, (run, *_) in found.items():
        row = [kind, str(run["micro-batches"]), str(run["tokens at once"]), run["before"] / 2**20]
        rows.append([*row, peaks[kind] / 2**20, ratios.get(kind, "-")])
    columns = ["model", "micro-batches", "tokens at once", "before, MiB", "peak, MiB", "/ ours"]
    print_table("Memory of a training step", columns, rows)
    results = {"bytes": found, "ratios": ratios}
    record(given, shape, results)
    return results


def _in_a_process(kind: str, arguments: list[str]) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.peak_memory", *arguments, "--only", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reasons = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"{kind} did not finish a step: {reasons[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/peak_memory.json", repeats=1)
    parser.add_argument("--questions", type=positive, default=64, help="per optimizer step (default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=positive, default=8, help="of a peer, in questions (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=positive, default=4096, help="tokens per micro-batch (default: %(default)s)")
    parser.add_argument("--activation-checkpointing", action="store_true", help="for all models")
    parser.add_argument("--only", choices=KINDS, help="measure only this model, in this process, and print its bytes")
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser().parse_args(arguments)
    if given.only:
        return run_script("peak_memory", lambda: print(json.dumps(measure_one(given))))
    return run_script("peak_memory", lambda: measure(given, arguments))


if __name__ == "__main__":
    sys.exit(main())
