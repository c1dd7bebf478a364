"""Does a device wait for data? The real loader, with workers, feeds a simulated device that takes as long as a GPU.

    python -m benchmarks.step_timeline --preset 1b --workers 1

Clips are in shards as FLAC. Workers read and decode them, compute features and token ids, and pack a device's part of
each step of the paper's batch (32 of 256 questions). The simulated device sleeps for the estimated time of the
recipe's step on one of eight cards (`falcon3_audio.training.estimate`), so no GPU is needed to see whether the loader
keeps up. Prints the timeline of the steps, the share of it that the device waited, and how much one worker can feed.
"""

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import WhisperFeatureExtractor

from falcon3_audio.processing import Falcon3AudioProcessor
from falcon3_audio.training import estimate
from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, DataSource, LoraArguments, ModelArguments
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.sampler import MixtureSampler
from falcon3_audio.training.data.training_sets import load_training_data, questions_per_clip
from falcon3_audio.training.recipe import parse_options

from .clips import describe, open_asqa_step
from .data_loader import TOKENIZER, write_set
from .measure import options, print_table, record, run_script


RECIPES = Path(__file__).resolve().parent.parent / "training" / "recipes"
DEVICES = 8
WARM_UP = 4  # steps while the workers start


def device_seconds(preset: str, card: str) -> tuple[float, int, int]:
    """A step of the recipe on one of eight cards: estimated seconds, the device's questions, and its token budget."""
    recipe = RECIPES / f"falcon3_audio_{preset}.yaml"
    groups = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
    model, lora, data, training = parse_options(
        groups, ["--config", str(recipe), "--bf16", "false"], prog="step_timeline"
    )
    cost = estimate.estimate(model, lora, data, training, DEVICES, card)
    steps = cost.questions / training.global_batch_size
    return cost.minutes * 60 / steps, training.global_batch_size // DEVICES, training.tokens_per_device


def loader_of(folder: Path, questions: int, tokens: int, workers: int, seed: int) -> DataLoader:
    """The loader as `AudioSFTTrainer` builds it."""
    examples, sizes = load_training_data([DataSource(str(folder))])
    clips = questions_per_clip(examples, sizes)
    sampler = MixtureSampler(sizes, [1.0], seed, clips, None, step_size=DEVICES * questions, batch_size=questions)
    processor = Falcon3AudioProcessor.from_backbones(WhisperFeatureExtractor(), str(TOKENIZER))
    collate = partial(AudioChatCollator(processor, questions_per_row=None).micro_batches, tokens=tokens)
    return DataLoader(
        examples,
        batch_size=questions,
        sampler=sampler,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=True,
    )


def run(loader: Iterable[Any], steps: int, busy: float) -> list[tuple[float, float, float]]:
    """
    (free, begun, done) of each step, in seconds: when the device became idle, got its batch, and finished it. Like a
    GPU it keeps computing while the process asks for the next batch.
    """
    epochs = itertools.chain.from_iterable(loader for _ in itertools.count())
    times = []
    free = time.perf_counter()
    for _ in range(WARM_UP + steps):
        next(epochs)
        time.sleep(max(0.0, free - time.perf_counter()))
        begun = time.perf_counter()
        times.append((free, begun, begun + busy))
        free = begun + busy
    begin = times[WARM_UP][0]
    return [(free - begin, begun - begin, done - begin) for free, begun, done in times[WARM_UP:]]


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    busy, questions, tokens = device_seconds(given.preset, given.card)
    asked = open_asqa_step(questions * (WARM_UP + given.repeats + 1), given.seed)  # one epoch has all steps
    print("  ".join(f"{name}: {value:.3g}" for name, value in describe(asked).items()))
    write_set(folder / "set", asked, given.seed)
    times = run(loader_of(folder / "set", questions, tokens, given.workers, given.seed), given.repeats, busy)
    alone = run(loader_of(folder / "set", questions, tokens, 1, given.seed), given.repeats, 0.0)
    waited = sum(begun - free for free, begun, _ in times)
    rate = len(alone) * questions / alone[-1][2]
    results: dict[str, Any] = {
        "device seconds per step (estimated)": busy,
        "questions per step": questions,
        "steps": [{"free": free, "begun": begun, "done": done} for free, begun, done in times],
        "share of waiting": waited / times[-1][2],
        "questions per second and worker": rate,
        "workers per device that suffice": questions / busy / rate,
    }
    rows = [[str(n), begun - free, done - begun] for n, (free, begun, done) in enumerate(times[: given.show])]
    print_table("Steps: seconds that the device waits and is busy", ["step", "waits", "busy"], rows)
    summary = [[name, value] for name, value in results.items() if isinstance(value, float)]
    print_table(f"{given.preset} on {given.card}, {given.workers} workers", ["", ""], summary)
    if given.plot:
        plot(times, given.plot)
    record(given, None, results)
    return results


def plot(times: list[tuple[float, float, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.6), layout="constrained")
    axes = figure.subplots()
    for row, (name, color, spans) in enumerate(
        [
            ("busy", "tab:green", [(begun, done - begun) for _, begun, done in times]),
            ("waits", "tab:red", [(free, begun - free) for free, begun, _ in times]),
        ]
    ):
        axes.broken_barh(spans, (row - 0.4, 0.8), color=color, edgecolor="white", label=name)
    axes.set_yticks([0, 1], ["busy", "waits"])
    axes.set_xlabel("seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/step_timeline.json", repeats=40, size=False)
    parser.add_argument("--card", choices=estimate.CARDS, default="h100")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare data (default: %(default)s)")
    parser.add_argument("--show", type=int, default=12, help="steps to print (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="image file for a plot of the timeline")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        return run_script("step_timeline", lambda: measure(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
