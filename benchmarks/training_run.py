"""Training as users run it, for a fixed time: `falcon3_audio.training.sft` with its loader, local backbones and data.

    python -m benchmarks.training_run --audio-model whisper-base --text-model smollm2-135m-instruct --data train.jsonl --seconds 120
    python -m benchmarks.training_run      # tiny backbones and clips of tones: checks that it runs

Takes as many steps as fit into the time, with the paper's LoRA, batch and learning rate (constant, as the number of
steps is unknown). Records the log of every step and, as medians over steps, questions per second and the share of time
spent waiting for data.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from falcon3_audio.training.recipe import parse_options
from falcon3_audio.training.sft import train

from .clips import open_asqa_step
from .data_loader import write_set
from .measure import options, positive, print_table, record, run_script


TINY = Path(__file__).resolve().parent.parent / "training" / "tiny_backbones"
WARM_UP = 3  # steps excluded from the medians
RATES = ("samples_per_second", "tokens_per_second", "audio_seconds_per_second", "data_wait_share")


class Deadline(TrainerCallback):
    """Stops training with the first step that finishes `seconds` or more after the start."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= time.monotonic() - self.begin >= self.seconds


def recipe(given: argparse.Namespace, data: Path, output: Path) -> tuple[Any, ...]:
    """The arguments of `train`."""
    settings = {
        "audio_model": given.audio_model,
        "text_model": given.text_model,
        "train_data": data,
        "output_dir": output,
        "global_batch_size": given.questions,
        "tokens_per_device": given.tokens,
        "max_length": min(2048, given.tokens),
        "learning_rate": given.learning_rate,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 10,
        "max_steps": 10**6,
        "seed": given.seed,
        "activation_checkpointing": False,
        "dataloader_num_workers": given.workers,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if not torch.cuda.is_available():
        settings |= {"use_cpu": True, "bf16": False, "dtype": "float32"}
    arguments = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    groups = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
    return parse_options(groups, arguments, prog="training_run")


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = given.data
    if data is None:
        data = folder / "set"
        write_set(data, open_asqa_step(256, given.seed), given.seed)
    model, lora, sets, trained = recipe(given, data, folder / "run")
    trainer = train(model, lora, sets, trained, callbacks=[Deadline(given.seconds)])
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    later = steps[WARM_UP:] or steps
    results = {
        "steps": trainer.state.global_step,
        "medians": {name: statistics.median(entry[name] for entry in later) for name in RATES},
        "loss": {name: statistics.mean(e["loss"] for e in part) for name, part in _ends(steps).items()},
        "peak_memory_gib": max(entry["peak_memory_gib"] for entry in steps),
        "log": steps,
    }
    rows = [[name, value] for name, value in results["medians"].items()]
    rows += [[f"loss, {name} tenth", value] for name, value in results["loss"].items()]
    print_table(f"{results['steps']} steps of {given.questions} questions", ["", "median"], rows)
    record(given, None, results)
    return results


def _ends(steps: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The first and the last tenth of the steps."""
    count = max(1, len(steps) // 10)
    return {"first": steps[:count], "last": steps[-count:]}


def parser() -> argparse.ArgumentParser:
    output = "runs/benchmarks/training_run.json"
    parser = options(__doc__ or "", output, repeats=1, preset=False, size=False, turns=False)
    parser.add_argument("--audio-model", type=Path, default=TINY / "whisper", help="folder of a Whisper model")
    parser.add_argument("--text-model", type=Path, default=TINY / "llm", help="folder of a causal language model")
    parser.add_argument("--data", type=Path, help="training set (default: clips of tones)")
    parser.add_argument("--seconds", type=positive, default=20, help="duration of training (default: %(default)s)")
    parser.add_argument("--questions", type=positive, default=256, help="per step (default: %(default)s)")
    parser.add_argument("--tokens", type=positive, default=8192, help="per micro-batch (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    workers = max(0, min(12, (os.cpu_count() or 1) - 2))
    parser.add_argument("--workers", type=int, default=workers, help="data loader workers (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run_script("training_run", lambda: measure(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
