"""The real recipe in small, on a CPU, in minutes: from a world of sounds to answers about clips nobody has heard.

Generates the audio world (spoken words, sound events and music as wav files, questions in Open-ASQA's format), prepares it
as Open-ASQA is prepared, trains recipes/audio_world.yaml (pretrained tiny backbones, LoRA of rank 8 on both, a new
projector, one stage), merges the adapter, and asks the pipeline about held-out voices, pitches and durations, with the
sound and with silence in its place. Started again after it was stopped, it goes on where it was.

    python -m falcon3_audio.training.demo runs/demo --seed 0
    python -m falcon3_audio.training.demo runs/demo --score runs/demo/grpo-model      # another checkpoint
"""

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from . import sft
from .audio_world import build_prompt, generate_world
from .merge import merge
from .open_asqa import prepare


TRAINING = Path(__file__).resolve().parent
RECIPE = TRAINING / "recipes" / "audio_world.yaml"
BACKBONES = TRAINING / "tiny_backbones"
TEST_CLIPS = 150
TRAIN_CLIPS = 900
MAX_ANSWER_TOKENS = 24


def make_data(folder: Path, train_clips: int, test_clips: int, seed: int):
    """The world, and its training questions as a prepared set: `folder/world` and `folder/data`."""
    workers = os.cpu_count() or 1
    world = folder / "world"
    generate_world(world, train_clips, test_clips, seed, workers)
    prepare(world / "train.json", folder / "data", workers=workers)


def train(folder: Path, seed: int, options: list[str]) -> int:
    """The recipe on `folder/data`; leaves the run in `folder/run` and the merged model in `folder/model`."""
    arguments = ["--config", str(RECIPE), "--train_data", str(folder / "data"), "--output_dir", str(folder / "run")]
    arguments += ["--audio_model", str(BACKBONES / "whisper"), "--text_model", str(BACKBONES / "llm")]
    failed = sft.main([*arguments, "--seed", str(seed), *options])
    if not failed:
        shutil.rmtree(folder / "model", ignore_errors=True)
        merge(folder / "run", folder / "model")
    return failed


def ask(checkpoint: Path, world: Path, silence: bool = False) -> list[dict[str, Any]]:
    """The held-out questions with the model's answers, through the Auto classes and the pipeline."""
    pipe = pipeline(
        "audio-text-to-text",
        model=AutoModelForMultimodalLM.from_pretrained(checkpoint),
        processor=AutoProcessor.from_pretrained(checkpoint),
    )
    rows = json.loads((world / "test.json").read_text())
    paths = [str(world / row["audio_id"]) for row in rows]
    clips = [np.zeros_like(load_audio(path)) for path in paths] if silence else paths
    prompts = [build_prompt(row["question"], row["choices"]) for row in rows]
    replies = pipe(clips, text=prompts, sampling_rate=SAMPLING_RATE, batch_size=16, max_new_tokens=MAX_ANSWER_TOKENS)
    return [row | {"reply": reply[0]["generated_text"].strip()} for row, reply in zip(rows, replies)]


def is_right(row: dict[str, Any]) -> bool:
    """Whether the reply is the right option, word by word."""
    return re.findall(r"\w+", row["reply"].lower()) == re.findall(r"\w+", row["answer"].lower())


def accuracy(answered: list[dict[str, Any]]) -> dict[str, float]:
    """Share of right replies, over all questions and per task."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for row in answered:
        for name in ("all", row["task"]):
            asked[name] += 1
            right[name] += is_right(row)
    return {name: right[name] / count for name, count in asked.items()}


def score(checkpoint: Path, world: Path) -> int:
    """Prints ten held-out questions with their answers, and the scores with sound and with silence."""
    answered, deaf = ask(checkpoint, world), ask(checkpoint, world, silence=True)
    for row in answered[:: max(1, len(answered) // 10)][:10]:
        mark = "right" if is_right(row) else f"wrong, it is {row['answer']!r}"
        print(f"  {row['audio_id']}: {row['question']}  ->  {row['reply']!r} ({mark})")
    hears, guesses = accuracy(answered), accuracy(deaf)
    for name in hears:
        print(f"{name:<8} {hears[name]:6.1%} right on clips never heard, {guesses[name]:6.1%} when fed silence")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Further options are those of `falcon3-audio train`."
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the world, the run and the model")
    parser.add_argument("--train-clips", type=int, default=TRAIN_CLIPS, help="default: %(default)s")
    parser.add_argument("--test-clips", type=int, default=TEST_CLIPS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the world and of training (default: %(default)s)")
    parser.add_argument(
        "--score",
        metavar="CHECKPOINT",
        type=Path,
        help="only score another checkpoint on the held-out questions of OUT",
    )
    given, options = parser.parse_known_args(arguments)
    world = given.output / "world"
    if given.score:
        return score(given.score, world)
    if not (BACKBONES / "whisper" / "config.json").exists():
        print(f"demo: the pretrained tiny backbones are not in {BACKBONES}; run it from a clone.", file=sys.stderr)
        return 1
    begin = time.monotonic()
    make_data(given.output, given.train_clips, given.test_clips, given.seed)
    ready = time.monotonic()
    print(f"world made and prepared in {ready - begin:.0f} s", flush=True)
    if train(given.output, given.seed, options):
        return 1
    checkpoint = given.output / "model"
    score(checkpoint, world)
    print(f"trained and scored in {time.monotonic() - ready:.0f} s; the model is in {checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
