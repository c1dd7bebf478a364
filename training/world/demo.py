"""The real recipe at a small scale, on a CPU, in minutes: from the audio world to answers about held-out clips.

Generates the audio world (spoken words, sound events and music as wav files, questions in Open-ASQA's format),
prepares it like Open-ASQA, and runs a study with one arm (../study.py): it trains recipes/audio_world.yaml (pretrained
tiny backbones, LoRA of rank 8 on both, a new projector, one stage), merges, and evaluates on held-out voices, pitches
and durations, with the audio and with silence instead. Run the same command again after an interruption to resume.

    python -m falcon3_audio.training.world.demo runs/demo --seed 0
    python -m falcon3_audio.training.world.demo runs/demo --score runs/demo/grpo-model      # another checkpoint
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from falcon3_audio.evaluation.predictions import read_predictions
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.score import SCORE
from falcon3_audio.user_errors import GOES_ON, user_errors

from ..prepare.open_asqa import prepare
from ..recipe import override
from ..studies.study_file import make_study
from ..studies.study_runs import Run, read_data, runs_of, scores_of
from ..study import ask, perform
from .audio_world import generate_world


TRAINING = Path(__file__).resolve().parent.parent
RECIPE = TRAINING / "recipes" / "audio_world.yaml"
BACKBONES = TRAINING / "tiny_backbones"
TEST_CLIPS = 150
TRAIN_CLIPS = 900
ASKED: dict[str, Any] = {
    "benchmark": "mmau",
    "prompt": "audio-world",
    "max_new_tokens": 24,
    "batch_size": 16,
    "controls": ["silence"],
}


def make_data(folder: Path, train_clips: int, test_clips: int, seed: int):
    """The world, and its training questions as a prepared set: `folder/world` and `folder/data`."""
    workers = os.cpu_count() or 1
    world = folder / "world"
    generate_world(world, train_clips, test_clips, seed, workers)
    prepare(world / "train.json", folder / "data", workers=workers)


def make_run(folder: Path, seed: int, options: dict[str, Any]) -> Run:
    """
    The recipe on `folder/data`, with the run in `folder/run` and the merged model in `folder/model`, evaluated on the
    held-out questions.

    Args:
        options: options of the recipe to override.
    """
    own = {"train_data": str(folder / "data"), "audio_model": str(BACKBONES / "whisper")}
    own |= {"text_model": str(BACKBONES / "llm")}
    given = {"arms": {"demo": override(own, options)}, "seeds": [seed]}
    given["evaluate"] = [_asked(folder / "world")]
    study = make_study("demo", RECIPE, given, "the demo")
    (run,) = runs_of(study, folder, read_data(study))
    return replace(run, folder=folder)


def score(checkpoint: Path, world: Path) -> int:
    """Evaluates another checkpoint on the held-out questions, and calls `show`. Returns the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        run = ask(checkpoint, _asked(world), Path(folder), RECIPE)
        if run is None:
            return 1
        show(run)
    return 0


def _asked(world: Path) -> dict[str, Any]:
    return ASKED | {"data": str(world / "test.json")}


def show(run: Run):
    """Prints ten held-out questions with their answers, and the scores with audio and with silence."""
    (evaluation,) = run.evaluations
    folders = [scores_of(run, evaluation, control) for control in evaluation.controls]
    heard = read_predictions(folders[0]).rows
    for row in heard[:: max(1, len(heard) // 10)][:10]:
        mark = "right" if is_right(row, evaluation.rule) else f"wrong, it is {row.answer!r}"
        print(f"  {row.audio[0]}: {row.question}  ->  {(row.reply or '').strip()!r} ({mark})")
    hears, guesses = (accuracies(folder / SCORE, evaluation.rule) for folder in folders)
    for name in hears:
        print(f"{name:<8} {hears[name]:6.1%} right on clips never heard, {guesses[name]:6.1%} when fed silence")


def accuracies(score: Path, rule: str) -> dict[str, float]:
    """The accuracy in a score file by a rule, over all questions and by task."""
    found = json.loads(score.read_text(encoding="utf-8"))["rules"][rule]
    tasks = found["breakdowns"]["task"]["groups"]
    return {"all": found["accuracy"]} | {task: part["accuracy"] for task, part in tasks.items()}


def overrides(options: Sequence[str]) -> dict[str, Any]:
    """Command line options as in a recipe: a value, a list of values, or true if there is none."""
    found: dict[str, list[str]] = {}
    for word in options:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            found[name] = values = [value] if given else []
        elif not found:
            raise ValueError(f"got {word!r}; expected an option of `falcon3-audio train`, such as --max_steps 100")
        else:
            values.append(word)
    return {name: True if not values else values[0] if len(values) == 1 else values for name, values in found.items()}


def make_and_train(folder: Path, train_clips: int, test_clips: int, seed: int, options: Sequence[str]) -> int:
    """Runs everything; returns the exit code."""
    changes = overrides(options)
    begin = time.monotonic()
    make_data(folder, train_clips, test_clips, seed)
    ready = time.monotonic()
    print(f"world generated and prepared in {ready - begin:.0f} s", flush=True)
    run = make_run(folder, seed, changes)
    if perform(run, dict(os.environ), threading.Event(), echo=True):
        return 1
    show(run)
    print(f"trained and scored in {time.monotonic() - ready:.0f} s; the model is in {folder / 'model'}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="All other options are those of `falcon3-audio train`."
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
    with user_errors("demo", goes_on=GOES_ON) as end:
        if given.score:
            return score(given.score, given.output / "world")
        if not (BACKBONES / "whisper" / "config.json").exists():
            raise ValueError(f"the pretrained tiny backbones are not in {BACKBONES}; run it from a clone.")
        return make_and_train(given.output, given.train_clips, given.test_clips, given.seed, options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
