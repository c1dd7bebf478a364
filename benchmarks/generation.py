"""Answers: time to the first token and tokens per second, for one question and eight, with clips of different lengths.

    python -m benchmarks.generation
    python -m benchmarks.generation --preset 7b --size real

Greedy `generate` on precomputed features and ids; every answer has the same number of tokens. The clips are drawn from
the training mix. Ours encodes only the clip, the peers 30 s; all prompts have audio tokens only for the clip.
"""

import argparse
import sys
from typing import Any

import torch

from .batches import Step, prompts
from .clips import FRAMES_PER_SECOND, open_asqa_step
from .measure import (
    alternate,
    compare,
    device,
    dtype_of,
    options,
    positive,
    print_shape,
    print_table,
    record,
    run_script,
    seconds,
)
from .models import KINDS, OURS, build
from .shapes import shape_of


BATCHES = (1, 8)


def inputs_on_device(inputs: dict[str, torch.Tensor], model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Moves inputs to the model's device, and features to its dtype."""
    place = next(model.parameters())
    return {
        name: value.to(place.device, place.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }


@torch.inference_mode()
def answer(model: Any, inputs: dict[str, torch.Tensor], tokens: int, **options: Any) -> torch.Tensor:
    """Generates exactly `tokens` tokens after each prompt, greedily."""
    return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    shape = shape_of(given.preset, given.size)
    print_shape(shape)
    drawn = open_asqa_step(16 * max(BATCHES), given.seed)
    clips = list({question.clip: number for number, question in enumerate(drawn)}.values())[: max(BATCHES)]
    step = Step([drawn[number] for number in clips], shape, given.seed)
    print("clips, seconds:", [question.frames / FRAMES_PER_SECOND for question in step.questions])
    models = {kind: build(kind, shape, device(), dtype_of(given.size), given.seed) for kind in KINDS}
    results: dict[str, Any] = {"clips": [question.frames / FRAMES_PER_SECOND for question in step.questions]}
    for batch in BATCHES:
        inputs = {kind: inputs_on_device(prompts(kind, step, range(batch)), model) for kind, model in models.items()}
        first, whole = (
            {kind: _timed(models[kind], inputs[kind], tokens) for kind in models} for tokens in (1, given.tokens)
        )
        result = {"first token": compare(alternate(first, given.repeats))}
        result["whole answers"] = compare(alternate(whole, given.repeats))
        results[f"batch of {batch}"] = result
        report(batch, given.tokens, result)
    record(given, shape, results)
    return results


def _timed(model: Any, inputs: dict[str, torch.Tensor], tokens: int):
    return lambda: seconds(lambda: answer(model, inputs, tokens))


def report(batch: int, tokens: int, result: dict[str, Any]) -> None:
    first, whole = result["first token"], result["whole answers"]
    rows = []
    for kind in KINDS:
        times = first["median seconds"][kind], whole["median seconds"][kind]
        ratios = ["-", "-"] if kind == OURS else [first["ratios"][kind], whole["ratios"][kind]]
        decoded = batch * (tokens - 1) / (times[1] - times[0]) if times[1] > times[0] else float("nan")
        rows.append([kind, times[0] * 1e3, ratios[0], batch * tokens / times[1], decoded, ratios[1]])
    columns = ["model", "first token, ms", "/ ours", "tokens / s", "after the first", "whole / ours"]
    print_table(f"Answers of {tokens} tokens, batch of {batch}", columns, rows)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/generation.json", repeats=5)
    parser.add_argument("--tokens", type=positive, default=32, help="tokens per answer (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("generation", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
