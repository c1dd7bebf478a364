"""How the benchmarks measure: in turns, with medians of times and of their ratios within a turn, and a JSON record.

The contenders alternate in one process, so that a machine that slows down slows all of them. A ratio is a peer's time
over ours: above 1, ours is faster.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from falcon3_audio.training.estimate import CARDS
from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import write_json

from .models import OURS
from .shapes import NAMES, Shape


PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy")


def options(
    description: str, output: str, repeats: int, preset: bool = True, size: bool = True, turns: bool = True
) -> argparse.ArgumentParser:
    """The options of all scripts and, if requested, those for the model and the number of turns."""
    parser = argparse.ArgumentParser(description=description.split("\n\n")[0])
    if preset:
        parser.add_argument("--preset", choices=NAMES, default="1b", help="proportions to use (default: %(default)s)")
    if size:
        parser.add_argument(
            "--size",
            choices=("small", "tiny", "real"),
            default="small",
            help="narrow with these proportions, tiny (to check that a script runs), or the true widths",
        )
    parser.add_argument("--seed", type=int, default=0)
    if turns:
        parser.add_argument("--repeats", type=positive, default=repeats, help="measured turns (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(output), help="JSON to write (default: %(default)s)")
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least 1")
    return int(text)


def run_script(name: str, run: Callable[[], Any]) -> int:
    """Runs a script once its options are parsed. User errors become one line and exit status 1."""
    logging.set_verbosity_error()
    with user_errors(name) as end:
        run()
    return end.status


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(size: str) -> torch.dtype:
    """The dtype of the weights: bfloat16 for the true widths."""
    return torch.bfloat16 if size == "real" else torch.float32


def seconds(function: Callable[[], Any]) -> float:
    """Duration of one call, including the device's work."""
    _synchronize()
    start = time.perf_counter()
    function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(runs: Mapping[str, Callable[[], float]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each run's turns, `{name: [...]}`. Each turn calls every run once; every other one in reverse."""
    for _ in range(warm_up):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            times[name].append(run())
    return times


def compare(times: Mapping[str, Sequence[float]], ours: str = OURS) -> dict[str, Any]:
    """All times, their medians, and the median ratios of the others' times to ours in the same turn."""
    return {
        "seconds": {name: list(values) for name, values in times.items()},
        "median seconds": {name: statistics.median(values) for name, values in times.items()},
        "ratios": {
            name: statistics.median(other / own for other, own in zip(values, times[ours]))
            for name, values in times.items()
            if name != ours
        },
    }


def matmul_rate(size: int = 8192, repeats: int = 10) -> float:
    """FLOP/s of a bfloat16 product of two square matrices on this GPU."""
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: a @ b) for _ in range(repeats)]
    return 2 * size**3 / statistics.median(times[1:])


def peak_rate(card: str) -> float | None:
    """bfloat16 FLOP/s in the data sheet of a card, given its name in torch; `None` for one not in `CARDS`."""
    words = card.lower().replace("-", " ").split()
    if "pcie" in words or "nvl" in words:  # slower than the SXM cards that CARDS has
        return None
    return next((rate for name, (rate, _) in CARDS.items() if name in words), None)


def machine() -> dict[str, Any]:
    facts = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return facts | ({"card": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def record(given: argparse.Namespace, shape: Shape | None, results: Mapping[str, Any]) -> None:
    """Writes results with options, machine and versions to `given.output`, completely or not at all."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(given).items()}
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": settings,
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    if shape is not None:
        shapes = {"name": shape.name, "audio": shape.audio, "text": shape.text, "proportions": shape.proportions}
        content |= {"shape": shapes, "dtype": str(dtype_of(given.size)).removeprefix("torch.")}
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.output, content | dict(results))
    print(f"written to {given.output}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints an aligned table, with numbers to four significant digits."""
    texts = [[value if isinstance(value, str) else f"{value:.4g}" for value in row] for row in rows]
    widths = [max(len(line[place]) for line in [list(columns), *texts]) for place in range(len(columns))]
    print(f"\n{title}")
    for line in [list(columns), *texts]:
        print(
            "  ".join(
                text.ljust(width) if place == 0 else text.rjust(width)
                for place, (text, width) in enumerate(zip(line, widths))
            )
        )


def print_shape(shape: Shape) -> None:
    audio, text = shape.audio, shape.text
    print(
        f"{shape.name}: encoder {audio['hidden_size']} x {audio['num_hidden_layers']}, language model "
        f"{text['hidden_size']} x {text['num_hidden_layers']} (inner {text['intermediate_size']}), vocabulary {text['vocab_size']}"
    )
    print("  ".join(f"{name}: {value:.2f}" for name, value in shape.proportions.items()))
