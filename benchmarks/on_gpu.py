"""Runs all checks and measurements for a GPU, one part after another, each in its own process with a time limit.

    benchmarks/on_gpu.sh OUT              # installs what the machine lacks, then runs this
    python -m benchmarks.on_gpu OUT       # in an environment that has the package

Checks first (attention.py), then training steps, encoder and answers at the true widths, then training on real
backbones for the remaining time. A part that fails or takes too long does not stop the others. OUT gets a record for
each part under its name in summary.py, `log.txt` with everything printed, and `summary.json`. The exit status is 1 if
a part failed.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from falcon3_audio.whole_files import write_json

from .summary import rows_of


SECONDS = 450  # for all parts; with the installation before them and some margin, under 8 minutes
SHORTEST = 20  # seconds; with less time left, no part is started
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "flash-attn", "triton")
FOLDERS = ("audio_model", "text_model", "data")


@dataclass(frozen=True)
class Part:
    """A script of this folder with its options; `name` is its record's, `limit` in seconds (`None`: the rest)."""

    name: str
    script: str
    options: tuple[str, ...]
    limit: int | None


def plan(given: argparse.Namespace) -> list[Part]:
    """The parts in order, the most important first."""
    if given.dry_run:
        tiny = ("--size", "tiny", "--repeats", "1")
        # Compiling flex attention for a CPU takes minutes.
        fast = ("--questions", "8", "--ways", "sdpa", "compiled", "--backend", "eager", "--seconds", "20")
        step = (*tiny, "--questions", "4", "--tokens", "1024", "--micro-batches", "4")
        return [
            Part("attention", "attention", (*tiny, *fast), 600),
            Part("training_step_1b", "training_step", step, 600),
            Part("training_step_7b", "training_step", (*step, "--preset", "7b", "--activation-checkpointing"), 600),
            Part("encoder", "encoder", (*tiny, "--longest", "60"), 600),
            Part("generation", "generation", (*tiny, "--tokens", "4"), 600),
            Part("training_run", "training_run", ("--seconds", "5", "--questions", "8", "--tokens", "1024"), 600),
        ]
    real = ("--size", "real")
    large = ("--preset", "7b", *real, "--activation-checkpointing", "--questions", "64", "--tokens", "8192")
    small = (*real, "--questions", "128", "--tokens", "8192", "16384", "--micro-batches", "8", "16")
    return [
        Part("attention", "attention", (*real, "--layers", "4", "--seconds", "90"), 150),
        Part("training_step_1b", "training_step", (*small, "--repeats", "3"), 90),
        Part("training_step_7b", "training_step", (*large, "--micro-batches", "8", "--repeats", "2"), 120),
        Part("encoder", "encoder", (*real, "--repeats", "5"), 60),
        Part("generation", "generation", (*real, "--repeats", "3"), 75),
        Part("training_run", "training_run", (), None),
    ]


class Run:
    """Runs the parts in turn, within the time limit."""

    def __init__(self, given: argparse.Namespace, log: IO[str]):
        self.given, self.log = given, log
        self.end = time.monotonic() + given.seconds

    def __call__(self, part: Part) -> dict[str, Any]:
        """The result of a part: outcome (`ok`, `failed` or `skipped`), reason, seconds, and rows of the summary."""
        left = self.end - time.monotonic()
        path = self.given.out / f"{part.name}.json"
        path.unlink(missing_ok=True)
        options = part.options
        if part.limit is None:
            missing = [f"--{name.replace('_', '-')}" for name in FOLDERS if getattr(self.given, name) is None]
            if missing:
                return _result(part, "skipped", f"{', '.join(missing)} not given", 0.0)
            options = (*options, *self._folders(), "--seconds", str(max(5, int(left - 60))))
        if left < SHORTEST:
            return _result(part, "skipped", f"of {self.given.seconds} s {max(0, left):.0f} are left", 0.0)
        command = [sys.executable, "-m", f"benchmarks.{part.script}", *options, "--output", str(path)]
        result = self._timed(part, command, min(left, part.limit or left))
        if path.exists():  # checks that found a difference write one too
            self._sum_up(part, path, result)
        return result

    def _sum_up(self, part: Part, path: Path, result: dict[str, Any]) -> None:
        try:
            result["rows"] = rows_of(part.name, json.loads(path.read_text(encoding="utf-8")))
        except (LookupError, ValueError, ArithmeticError) as error:  # the later parts must still run
            result |= {"outcome": "failed", "reason": f"its record cannot be summarised: {error!r}"}
            print(f"{part.name}: {result['reason']}")

    def _folders(self) -> list[str]:
        given = {f"--{name.replace('_', '-')}": str(getattr(self.given, name)) for name in FOLDERS}
        return [text for pair in given.items() for text in pair]

    def _timed(self, part: Part, command: list[str], limit: float) -> dict[str, Any]:
        self.log.write(f"\n$ {' '.join(command)}\n")
        self.log.flush()
        path = self.given.out / "log.txt"
        before, start = path.stat().st_size, time.monotonic()
        status = run_limited(command, limit, self.log)
        spent = time.monotonic() - start
        if status is None:
            return _result(part, "failed", f"exceeded its limit of {limit:.0f} s", spent)
        if status:
            printed = path.read_bytes()[before:].decode(errors="replace")
            return _result(part, "failed", f"exit status {status}: {_last_line(printed)}", spent)
        return _result(part, "ok", "", spent)


def run_limited(command: list[str], limit: float, log: IO[str]) -> int | None:
    """The exit status of a command that writes to `log`; `None` if it and its children were killed after `limit` s."""
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:  # also if this was interrupted
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _result(part: Part, outcome: str, reason: str, seconds: float) -> dict[str, Any]:
    found = {"part": part.name, "outcome": outcome, "reason": reason, "seconds": round(seconds, 1), "rows": []}
    print(f"{part.name}: {outcome}, {seconds:.0f} s{f' ({reason})' if reason else ''}", flush=True)
    return found


def _last_line(text: str) -> str:
    lines = text.strip().splitlines() or [""]
    return lines[-1][:500]


def machine() -> dict[str, Any]:
    """The card with its driver and memory as nvidia-smi reports them (`None` without one), and versions."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {"card": card(), "python": sys.version.split()[0], "versions": versions}


def card() -> dict[str, str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    fields = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    return dict(zip(fields, lines[0].split(", "))) if done.returncode == 0 and lines else None


def report(summary: dict[str, Any]) -> str:
    """The summary as text: the machine, then each part with its figures."""
    found = summary["machine"]
    names = [f"{name} {number}" for name, number in found["versions"].items() if number]
    lines = [", ".join(found["card"].values()) if found["card"] else "no card", ", ".join(names)]
    for part in summary["parts"]:
        reason = f": {part['reason']}" if part["reason"] else ""
        lines.append(f"{part['part']:<18}{part['seconds']:>6.0f} s  {part['outcome']}{reason}")
        lines += [f"    {what} | {ratio} | {detail}".rstrip(" |") for what, ratio, detail in part["rows"]]
    return "\n".join(lines)


def measure(given: argparse.Namespace) -> int:
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        print("on_gpu: torch sees no GPU here; --dry-run runs the parts on a CPU with tiny sizes", file=sys.stderr)
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    summary = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "dry run": given.dry_run}
    summary |= {"machine": machine(), "parts": []}
    with (given.out / "log.txt").open("w", encoding="utf-8") as log:
        run = Run(given, log)
        for part in plan(given):
            summary["parts"].append(run(part))
            write_json(given.out / "summary.json", summary)  # after each part: the machine may be taken away
    print(f"\n{report(summary)}\nin {given.out}")
    return int(any(part["outcome"] == "failed" for part in summary["parts"]))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/on_gpu.sh", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, nargs="?", default=Path("runs/on_gpu"))
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--seconds", type=int, help=f"limit for all parts (default: {SECONDS}; in a dry run 1800)")
    real = parser.add_argument_group("training on real backbones, skipped unless all are given")
    real.add_argument("--audio-model", type=Path, metavar="FOLDER", help="a Whisper")
    real.add_argument("--text-model", type=Path, metavar="FOLDER", help="an instruction-tuned causal language model")
    real.add_argument("--data", type=Path, metavar="SET", help="training set: folder or file, as `train_data`")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    given.out = given.out.resolve()
    given.seconds = given.seconds or (1800 if given.dry_run else SECONDS)
    return measure(given)


if __name__ == "__main__":
    sys.exit(main())
