"""Several questions about one clip in one batch: ours encodes the clip once, the peers once for each question.

    python -m benchmarks.questions_per_clip

Answers have a few tokens, like labels and options. Ours does what the pipeline does with a batch of questions: it uses
the cache of encoded clips (`AudioCache`, empty before each turn, keyed by the features), runs the prompts' common
prefix through the language model once (`begin_together`), then calls `generate` once. A peer generates on a batch with
the clip in every row.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from falcon3_audio.audio_cache_falcon3_audio import AudioCache, digests
from falcon3_audio.prompt_cache_falcon3_audio import begin_together, content_of

from .batches import Step, prompts
from .clips import FRAMES_PER_SECOND, Question
from .generation import answer, inputs_on_device
from .measure import (
    alternate,
    compare,
    device,
    dtype_of,
    options,
    print_shape,
    print_table,
    record,
    run_script,
    seconds,
)
from .models import FLAMINGO, KINDS, OURS, QWEN, build
from .shapes import shape_of


COUNTS = (1, 2, 4, 8)
CACHE_TOKENS = 15_000  # as in the pipeline
QUESTION, ANSWER = 26, 4  # tokens


def ours(model: Any, inputs: dict[str, torch.Tensor], tokens: int) -> torch.Tensor:
    """Answers to questions about clips; identical clips are encoded once."""
    audio = inputs["input_features"], inputs["input_features_mask"]
    cache, clips = AudioCache(model, CACHE_TOKENS), digests(*audio)
    with torch.inference_mode():
        embeds = cache.embed(clips, *audio)
        counts = model.count_audio_tokens(audio[1]).tolist()
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    contents = [
        content_of(ids[mask.bool()].tolist(), model.config.audio_token_id, [clip], [count])
        for ids, mask, clip, count in zip(*words.values(), clips, counts)
    ]
    return answer(model, begin_together(model, words | {"audio_embeds": embeds}, contents), tokens)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    shape = shape_of(given.preset, given.size)
    print_shape(shape)
    frames = round(given.seconds * FRAMES_PER_SECOND / 4) * 4
    step = Step([Question(0, frames, QUESTION, ANSWER)] * max(COUNTS), shape, given.seed)
    models = {kind: build(kind, shape, device(), dtype_of(given.size), given.seed) for kind in KINDS}
    results: dict[str, Any] = {}
    for count in COUNTS:
        runs = {kind: _run(kind, model, step, count) for kind, model in models.items()}
        results[str(count)] = compare(alternate(runs, given.repeats))
    report(results, given.seconds)
    record(given, shape, {"questions": results})
    return results


def _run(kind: str, model: Any, step: Step, count: int) -> Callable[[], float]:
    inputs = inputs_on_device(prompts(kind, step, range(count)), model)
    generate = ours if kind == OURS else answer
    return lambda: seconds(lambda: generate(model, inputs, ANSWER))


def report(results: dict[str, Any], length: float) -> None:
    rows = []
    for count, result in results.items():
        medians, ratios = result["median seconds"], result["ratios"]
        rates = [int(count) / medians[kind] for kind in KINDS]
        rows.append([count, *rates, *(ratios[kind] for kind in (FLAMINGO, QWEN))])
    columns = ["questions", *(f"{kind}, answers / s" for kind in KINDS), f"{FLAMINGO} / ours", f"{QWEN} / ours"]
    print_table(f"Questions about one clip of {length:g} s", columns, rows)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/questions_per_clip.json", repeats=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the clip (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("questions_per_clip", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
