"""Training questions per second: ours against two peers, on the same questions, taking turns of one optimizer step.

    python -m benchmarks.training_step                             # narrow, on a CPU
    python -m benchmarks.training_step --preset 7b --size real     # true widths in bfloat16, on a GPU
    python -m benchmarks.training_step --mix one-long              # clips of 30 s with one question each

All train LoRA of rank 8 on both towers and the projector in full, with TRL's SFTTrainer and AdamW. Ours uses
`AudioSFTTrainer` and the project's collator, which packs the step into micro-batches of tokens; the peers use a plain
one. Every model uses the fastest of a few micro-batch sizes; ours are tried on the whole step, the peers' on its first
questions. A step is timed from the collation of its first batch to the weight update.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from falcon3_audio.training.arguments import AudioSFTConfig
from falcon3_audio.training.trainer import AudioSFTTrainer

from .batches import PaddingCollator, Step, our_collator
from .clips import Question, describe, long_clips_step, open_asqa_step
from .flops import StepFlops
from .measure import (
    alternate,
    compare,
    device,
    dtype_of,
    matmul_rate,
    options,
    peak_rate,
    positive,
    print_shape,
    print_table,
    record,
    run_script,
)
from .models import FLAMINGO, KINDS, OURS, QWEN, build, tokenizer, with_lora
from .shapes import Shape, real_shape, shape_of


MIXES: dict[str, Callable[[int, int], list[Question]]] = {"open-asqa": open_asqa_step, "one-long": long_clips_step}
QUESTIONS = {"open-asqa": 32, "one-long": 8}
TRIAL = 8  # minimum number of questions that a micro-batch is tried on
# Micro-batch sizes that are tried: tokens for ours, which packs a step into them, questions for the peers.
MICRO_BATCHES = {OURS: [1024, 2048, 4096], FLAMINGO: [1, 4, 8], QWEN: [1, 4, 8]}


class _StepTimer(TrainerCallback):
    """Seconds from the request for the first batch to the end of the step, without the setup in `train()`."""

    def on_epoch_begin(self, args, state, control, **kwargs):
        _wait()
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        _wait()
        self.seconds = time.perf_counter() - self.start


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Stepper:
    """
    A model's trainer: calling it takes one optimizer step on all questions, and returns its seconds.

    `micro_batch` is in tokens for ours, in questions for a peer. `recompute` is activation checkpointing.
    """

    def __init__(self, kind: str, model: torch.nn.Module, step: Step, micro_batch: int, folder: str, recompute: bool):
        questions = len(step.questions)
        at_once = questions if kind == OURS else micro_batch
        settings: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": at_once,
            "gradient_accumulation_steps": questions // at_once,
            "max_steps": 1,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "warmup_steps": 0,
            "bf16": torch.cuda.is_available(),
            "use_cpu": not torch.cuda.is_available(),
            "report_to": "none",
            "logging_strategy": "no",
            "save_strategy": "no",
            "disable_tqdm": True,
            "remove_unused_columns": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            "max_length": None,
            "activation_checkpointing": recompute,
        }
        shared: dict[str, Any] = {
            "model": model,
            "train_dataset": step.dataset(),
            "processing_class": tokenizer(),
        }
        if kind == OURS:
            clips = np.array(step.questions_per_clip())
            own: dict[str, Any] = {"set_sizes": [questions], "set_weights": [1.0], "clips": [clips]}
            self.trainer: SFTTrainer = AudioSFTTrainer(
                args=AudioSFTConfig(tokens_per_device=micro_batch, **settings),
                data_collator=our_collator(step),
                questions_per_row=None,
                **own,
                **shared,
            )
        else:
            self.trainer = SFTTrainer(args=SFTConfig(**settings), data_collator=PaddingCollator(kind, step), **shared)
        self.trainer.remove_callback(PrinterCallback)
        self._timer = _StepTimer()
        self.trainer.add_callback(self._timer)

    def __call__(self) -> float:
        self.trainer.train()
        return self._timer.seconds

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """The inputs of the model's forward in a step, which is taken to record them."""
        seen: list[dict[str, torch.Tensor]] = []

        def keep(module, args, kwargs):
            names = ("input_ids", "attention_mask", "labels", "segment_ids", "prefix_ids")
            kept = {name: value for name, value in kwargs.items() if name in names or name.endswith("_mask")}
            seen.append({name: value.cpu() for name, value in kept.items()})

        handle = self.trainer.model.register_forward_pre_hook(keep, with_kwargs=True)
        self()
        handle.remove()
        return seen


def fastest(kind: str, model: torch.nn.Module, step: Step, given: argparse.Namespace, folder: str) -> tuple[int, dict]:
    """The requested micro-batch size with the most questions per second, and the rates of all sizes."""
    questions = len(step.questions)
    sizes = (given.tokens if kind == OURS else given.micro_batches) or MICRO_BATCHES[kind]
    if kind != OURS:
        sizes = [size for size in sizes if questions % size == 0] or [questions]
    if len(sizes) == 1:
        return sizes[0], {}
    rates: dict[int, float] = {}
    for size in sizes:
        count = questions if kind == OURS else min(questions, max(size, TRIAL))
        stepper = Stepper(kind, model, step.first(count), size, folder, given.activation_checkpointing)
        try:
            stepper()
            rates[size] = count / stepper()
        except torch.OutOfMemoryError:  # a larger one will not fit either
            break
    if not rates:
        raise ValueError(
            f"{kind}: not even a micro-batch of {sizes[0]} fits into memory; use --activation-checkpointing"
        )
    return max(rates, key=lambda size: rates[size]), rates


def scores_prompts(kind: str) -> bool:
    """Whether the head computes logits of prompts too: TRL's does on a CPU, ours gets only learned positions."""
    return kind != OURS and not torch.cuda.is_available()


def flops_by_kind(batches: dict[str, list], shape: Shape, recompute: bool, padded: bool) -> dict[str, dict[str, int]]:
    counts = {
        kind: StepFlops(kind, shape, recompute=recompute, all_positions=scores_prompts(kind)) for kind in batches
    }
    return {kind: counts[kind].count(batches[kind], padded) for kind in batches}


def measure(given: argparse.Namespace, folder: str) -> dict[str, Any]:
    shape = shape_of(given.preset, given.size)
    questions = MIXES[given.mix](given.questions or QUESTIONS[given.mix], given.seed)
    step = Step(questions, shape, given.seed)
    print_shape(shape)
    print("  ".join(f"{name}: {value:.3g}" for name, value in describe(questions).items()))
    steppers, chosen, tried = {}, {}, {}
    for kind in KINDS:
        model = with_lora(build(kind, shape, device(), dtype_of(given.size), given.seed))
        chosen[kind], tried[kind] = fastest(kind, model, step, given, folder)
        steppers[kind] = Stepper(kind, model, step, chosen[kind], folder, given.activation_checkpointing)
    batches = {kind: stepper.batches() for kind, stepper in steppers.items()}  # also a warm-up step
    results = compare(alternate(steppers, given.repeats, warm_up=0))
    results |= {"mix": describe(questions), "micro-batch": chosen, "tried, questions per second": tried}
    results["flops"] = {}
    # Recomputation that saves memory is not needed work: utilisation must not grow with it.
    results["flops"]["padded"] = flops_by_kind(batches, shape, given.activation_checkpointing, padded=True)
    results["flops"]["needed"] = flops_by_kind(batches, shape, recompute=False, padded=False)
    true = flops_by_kind(batches, real_shape(given.preset), recompute=False, padded=False)
    results["flops"]["needed at the true widths"] = true
    results["flop ratios"] = {
        name: {kind: count / counts[OURS] for kind, count in counts.items() if kind != OURS}
        for name, counts in totals_of(results).items()
    }
    if torch.cuda.is_available():
        results["matmul FLOP/s"] = matmul_rate()
        results["peak FLOP/s"] = peak_rate(torch.cuda.get_device_name())
    report(results, len(questions))
    record(given, shape, results)
    return results


def totals_of(results: dict[str, Any]) -> dict[str, dict[str, int]]:
    """FLOPs of a step by kind, for each way of counting."""
    return {
        name: {kind: sum(parts.values()) for kind, parts in counts.items()}
        for name, counts in results["flops"].items()
    }


def report(results: dict[str, Any], questions: int) -> None:
    medians, totals = results["median seconds"], totals_of(results)
    rates = [results.get(name) for name in ("matmul FLOP/s", "peak FLOP/s")]
    rows = []
    for kind, median in medians.items():
        row = [kind, str(results["micro-batch"][kind]), median, questions / median]
        row += [totals[name][kind] / median / 1e9 for name in ("padded", "needed")]
        rows.append([*row, *(totals["needed"][kind] / median / rate if rate else "-" for rate in rates)])
    columns = ["model", "micro-batch", "s / step", "questions / s", "GFLOP/s padded", "GFLOP/s needed"]
    columns += ["/ matmul", "/ peak"]
    print_table("Training steps", columns, rows)
    lines = []
    for kind, ratio in results["ratios"].items():
        allowed = [results["flop ratios"][name][kind] for name in totals]
        lines.append([kind, ratio, *allowed, *(ratio / value for value in allowed[:2])])
    names = ["peer / ours", "time", *(f"FLOPs {name}" for name in totals), "time / padded", "time / needed"]
    print_table("Ratios (over 1: ours is faster)", names, lines)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/training_step.json", repeats=3)
    parser.add_argument("--mix", choices=MIXES, default="open-asqa")
    parser.add_argument("--questions", type=positive, help=f"per optimizer step (default: {QUESTIONS})")
    parser.add_argument(
        "--micro-batches", type=positive, nargs="+", help="questions per micro-batch, for the peers to choose from"
    )
    parser.add_argument("--tokens", type=positive, nargs="+", help="tokens per micro-batch, for ours to choose from")
    parser.add_argument("--activation-checkpointing", action="store_true", help="for all models")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run_script("training_step", lambda: measure(given, folder))


if __name__ == "__main__":
    sys.exit(main())
