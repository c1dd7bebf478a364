"""A small audio world with known answers: spoken words, sound events and music, with questions about every clip.

The training questions are in Open-ASQA's format, the held-out test's are four-choice questions in MMAU's (sound, music,
speech), so a model can be trained and scored on real 16 kHz wav files in minutes, with no download. Answers are drawn
evenly, so that a model that does not listen stays near 25 % on the test, and the test's voices, speeds, pitches and
durations never occur in training (`TRAIN` and `TEST` in audio_world_sounds). A seed always gives the same bytes.
Run: `python -m falcon3_audio.training.world.audio_world OUT --train-clips 600 --test-clips 120 --seed 0`
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm.auto import tqdm

from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import whole_file, write_json

from .audio_world_sounds import (
    ANIMALS,
    CHORD_STYLES,
    CHORDS,
    COLOURS,
    COUNTS,
    MOVEMENTS,
    NUMBERS,
    PLANNERS,
    SHAPES,
    SOUND_ORDERS,
    SOUNDS,
    STYLES,
    TASK_OF_KIND,
    TEST,
    TRAIN,
    WORDS,
    Clip,
    deck,
    pick,
    render,
)
from .sound_synthesis import INSTRUMENTS, SAMPLE_RATE


FORMAT = 1  # incremented whenever the same parameters would give different files
DATASET = "audio-world"
SPLITS = ("train", "test")
CLOSED_PREFIX = "Closed-ended question: "


class QuestionType(NamedTuple):
    """A type of question. `pool` holds all its answers; an empty pool makes it an open-ended question."""

    wordings: tuple[str, ...]
    pool: tuple[str, ...]
    test_kinds: tuple[str, ...] = ()  # kinds of clip that the test asks it about; none: only for training
    difficulty: str = "medium"


# Two-way questions (louder or softer) are for training: the test combines two of them, for four real choices.
QUESTION_TYPES = {
    "spoken_number": QuestionType(
        ("Which number is spoken?", "What number do you hear?"), NUMBERS, ("phrase",), "easy"
    ),
    "spoken_colour": QuestionType(
        ("Which colour is spoken?", "What colour do you hear?"), COLOURS, ("phrase",), "easy"
    ),
    "spoken_animal": QuestionType(
        ("Which animal is spoken?", "What animal do you hear?"), ANIMALS, ("phrase",), "easy"
    ),
    "speaker_style": QuestionType(("Who is speaking and how?", "How is this said?"), STYLES, ("phrase", "list")),
    "speaker": QuestionType(("Who is speaking?",), ("a man", "a woman")),
    "word_count": QuestionType(("How many words are spoken?",), COUNTS[:4], ("list",)),
    "first_word": QuestionType(("Which word is spoken first?",), WORDS, ("list",), "hard"),
    "last_word": QuestionType(("Which word is spoken last?",), WORDS, ("list",), "hard"),
    "transcript": QuestionType(("What is said?", "Write down what is said."), ()),
    "sound": QuestionType(("What sound is heard?", "Which sound is this?"), SOUNDS, ("repeat", "shape"), "easy"),
    "sound_count": QuestionType(("How many times is the sound heard?",), COUNTS[:4], ("repeat",)),
    "first_sound": QuestionType(("Which sound is heard first?",), SOUNDS, ("pair",)),
    "last_sound": QuestionType(("Which sound is heard last?",), SOUNDS, ("pair",)),
    "sound_order": QuestionType(("In what order are the sounds heard?",), SOUND_ORDERS, ("pair",), "hard"),
    "sound_shape": QuestionType(("How does the sound develop?",), SHAPES, ("shape",)),
    "loudness": QuestionType(("Does the sound get louder or softer?",), ("louder", "softer")),
    "length": QuestionType(("Is the sound short or long?",), ("short", "long")),
    "sound_description": QuestionType(("Describe what you hear.",), ()),
    "instrument": QuestionType(
        ("Which instrument is playing?", "What instrument is it?"), tuple(INSTRUMENTS), ("melody", "chord"), "easy"
    ),
    "movement": QuestionType(("What kind of melody is this?",), MOVEMENTS, ("melody",)),
    "direction": QuestionType(("Does the melody rise or fall?",), ("rise", "fall")),
    "note_count": QuestionType(("How many notes are played?",), COUNTS[1:], ("melody",), "hard"),
    "chord": QuestionType(("What kind of chord is this?",), CHORD_STYLES, ("chord",), "hard"),
    "mode": QuestionType(("Is the chord major or minor?",), tuple(CHORDS)),
    "music_description": QuestionType(("Describe the music.",), ()),
}


def build_prompt(question: str, choices: Sequence[str] = ()) -> str:
    """A question with its choices, as one prompt, the same in training and test: `"... Choose one: a, b, c, d."`."""
    return f"{question} Choose one: {', '.join(choices)}." if choices else question


def generate_world(
    out_dir: str | os.PathLike[str],
    train_clips: int = 600,
    test_clips: int = 120,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """Write `train.json`, `test.json`, `train-audios/*.wav`, `test-audios/*.wav` and `world.json` into a folder.

    A folder that already holds exactly this world is reused, and an incomplete one is completed.

    Args:
        out_dir: the folder; created if missing.
        train_clips: training clips, each asked three to six questions.
        test_clips: test clips, each asked one question.
        seed: 0 or more; the same seed gives the same bytes.
        workers: processes that render the audio.
        progress: show a progress bar.

    Returns:
        The content of `world.json`: parameters, package versions, the settings of both splits, a summary of each split
        (clips, hours, questions, questions per task) and the settings of each audio file.

    Raises:
        ValueError: a count or the seed is out of range, or the folder holds something else.
    """
    for name, got, least in (("train_clips", train_clips, 1), ("test_clips", test_clips, 1), ("seed", seed, 0)):
        check_least(name, got, least)
    check_least("workers", workers, 1)
    out = Path(out_dir)
    parameters = {"format": FORMAT, "train_clips": train_clips, "test_clips": test_clips, "seed": seed}
    found = _world_in(out, parameters)
    if found and found["finished"] and all((out / path).exists() for path in found["clips"]):
        return found
    versions = {name: version(name) for name in ("espeakng-loader", "numpy", "soundfile")}
    settings = {"train": asdict(TRAIN), "test": asdict(TEST)}
    world = {"parameters": parameters, "finished": False, "versions": versions, "settings": settings}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "world.json", world)
    for split in SPLITS:
        (out / f"{split}-audios").mkdir(exist_ok=True)
    rngs = {split: np.random.default_rng([seed, index]) for index, split in enumerate(SPLITS)}
    clips = {"train": _plan_train(train_clips, rngs["train"]), "test": _plan_test(test_clips, rngs["test"])}
    rows = {"train": _train_rows(clips["train"], rngs["train"]), "test": _test_rows(clips["test"], rngs["test"])}
    _write_audios(out, clips, seed, workers, progress)
    for split in SPLITS:
        write_json(out / f"{split}.json", rows[split])
    made = {split: _metadata(out, split, clips[split]) for split in SPLITS}
    summary = {split: _summary(made[split], rows[split]) for split in SPLITS}
    world |= {"finished": True, "summary": summary, "clips": made["train"] | made["test"]}
    write_json(out / "world.json", world)
    return json.loads((out / "world.json").read_text(encoding="utf-8"))


def draw_train(count: int, rng: np.random.Generator) -> list[tuple[Clip, list[dict[str, str]]]]:
    """`count` training clips, not yet rendered, each with its Open-ASQA rows; writes no files."""
    clips = _plan_train(count, rng)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in _train_rows(clips, rng):
        rows.setdefault(row["audio_id"], []).append(row)
    return [(clip, rows[_audio_path("train", index, clip)]) for index, clip in enumerate(clips)]


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (index < total % parts) for index in range(parts)]


def _plan_train(count: int, rng: np.random.Generator) -> list[Clip]:
    """Clips of all tasks in equal parts, and of all kinds of a task in equal parts."""
    clips: list[Clip] = []
    for planners, task_share in zip(PLANNERS.values(), _shares(count, len(PLANNERS))):
        for planner, share in zip(planners.values(), _shares(task_share, len(planners))):
            clips += planner(share, TRAIN, rng)
    return clips


def _plan_test(count: int, rng: np.random.Generator) -> list[Clip]:
    """Clips with only the answer to their one question; all types of question of a task in equal parts."""
    clips: list[Clip] = []
    for planners, task_share in zip(PLANNERS.values(), _shares(count, len(PLANNERS))):
        asked = [(name, kinds) for name, (_, _, kinds, _) in QUESTION_TYPES.items() if set(kinds) & set(planners)]
        for (name, kinds), type_share in zip(asked, _shares(task_share, len(asked))):
            for kind, share in zip(kinds, _shares(type_share, len(kinds))):
                planned = planners[kind](share, TEST, rng)
                clips += [replace(clip, answers={name: clip.answers[name]}) for clip in planned]
    return deck(clips, count, rng)


def _choices(clip: Clip, name: str, gold: int, rng: np.random.Generator) -> list[str]:
    """Up to four answers to a question, the right one at `gold`; the clip's lures come before others of the pool."""
    answer, lures = clip.answers[name], clip.lures.get(name, ())[:3]
    pool = [option for option in QUESTION_TYPES[name].pool if option != answer and option not in lures]
    wrong = [*lures, *deck(pool, min(3 - len(lures), len(pool)), rng)] if pool else list(lures)
    wrong = deck(wrong, len(wrong), rng)
    return [*wrong[:gold], answer, *wrong[gold:]]


def _train_rows(clips: Sequence[Clip], rng: np.random.Generator) -> list[dict[str, str]]:
    """Open-ASQA rows: half of the closed questions list their choices, and half have the prefix."""
    asked = [(index, clip, name) for index, clip in enumerate(clips) for name in clip.answers]
    forms = deck(list(product((True, False), repeat=2)), len(asked), rng)
    rows = []
    for (index, clip, name), (listed, prefixed) in zip(asked, forms):
        kind = QUESTION_TYPES[name]
        choices = _choices(clip, name, int(rng.integers(min(4, len(kind.pool)))), rng) if kind.pool and listed else []
        prompt = build_prompt(pick(kind.wordings, rng), choices)
        rows.append(
            {
                "instruction": f"{CLOSED_PREFIX}{prompt}" if kind.pool and prefixed else prompt,
                "input": clip.text,
                "audio_id": _audio_path("train", index, clip),
                "dataset": DATASET,
                "task": name,
                "output": clip.answers[name],
            }
        )
    return rows


def _test_rows(clips: Sequence[Clip], rng: np.random.Generator) -> list[dict[str, Any]]:
    """MMAU rows; the right answer is equally often in each of the four places."""
    rows = []
    for index, (clip, gold) in enumerate(zip(clips, deck(range(4), len(clips), rng))):
        [(name, answer)] = clip.answers.items()
        kind, path = QUESTION_TYPES[name], _audio_path("test", index, clip)
        rows.append(
            {
                "id": Path(path).stem,
                "audio_id": f"./{path}",
                "question": pick(kind.wordings, rng),
                "choices": _choices(clip, name, gold, rng),
                "answer": answer,
                "dataset": DATASET,
                "task": TASK_OF_KIND[clip.kind],
                "split": "test",
                "category": "Reasoning" if kind.difficulty == "hard" else "Information Extraction",
                "sub-category": name.replace("_", " ").capitalize(),
                "difficulty": kind.difficulty,
            }
        )
    return rows


def _audio_path(split: str, index: int, clip: Clip) -> str:
    return f"{split}-audios/{TASK_OF_KIND[clip.kind]}-{clip.kind}-{index:05d}.wav"


def _write_audios(out: Path, clips: dict[str, list[Clip]], seed: int, workers: int, progress: bool) -> None:
    """Write the missing audio files; every clip has its own random generator."""
    jobs = [
        (out / _audio_path(split, index, clip), clip, (seed, stream, index))
        for stream, split in enumerate(SPLITS, start=len(SPLITS))  # the streams before these planned the splits
        for index, clip in enumerate(clips[split])
    ]
    jobs = [job for job in jobs if not job[0].exists()]
    with ExitStack() as stack:
        mapped: Callable[..., Iterable[None]] = map
        if workers > 1:
            pool = stack.enter_context(ProcessPoolExecutor(workers))
            mapped = partial(pool.map, chunksize=16)
        for _ in tqdm(mapped(_write_audio, jobs), total=len(jobs), desc="audio", unit="clip", disable=not progress):
            pass


def _write_audio(job: tuple[Path, Clip, tuple[int, ...]]) -> None:
    path, clip, seed = job
    with whole_file(path) as file:
        soundfile.write(file, render(clip, np.random.default_rng(seed)), SAMPLE_RATE, "PCM_16", format="WAV")


def _metadata(out: Path, split: str, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """The settings of each audio file, by its path."""
    paths = [_audio_path(split, index, clip) for index, clip in enumerate(clips)]
    return {
        path: {"kind": clip.kind, **clip.settings, "clip_seconds": soundfile.info(out / path).duration}
        for path, clip in zip(paths, clips)
    }


def _summary(made: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> dict[str, Any]:
    hours = sum(clip["clip_seconds"] for clip in made.values()) / 3600
    tasks = Counter(TASK_OF_KIND[made[row["audio_id"].removeprefix("./")]["kind"]] for row in rows)
    return {"clips": len(made), "hours": round(hours, 4), "questions": len(rows), "questions_per_task": dict(tasks)}


def check_least(name: str, got: int, least: int) -> None:
    """Raises a `ValueError` for a number that is too small."""
    if got < least:
        raise ValueError(f"got {name}={got}; expected {least} or more")


def _world_in(out: Path, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The world in the folder, finished or not; raises a `ValueError` if it is a different one."""
    record = out / "world.json"
    if not record.exists():
        there = [name for name in ("train.json", "test.json", "train-audios", "test-audios") if (out / name).exists()]
        if there:
            raise ValueError(f"got the folder {out}, which holds {there[0]} but no world.json; pass an empty folder")
        return None
    found = json.loads(record.read_text(encoding="utf-8"))
    if found.get("parameters") != parameters:
        raise ValueError(
            f"got the folder {out}, which holds a world with {found.get('parameters')}, "
            f"but {parameters} were requested; pass another folder, or delete that one"
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Generate a small audio world to train and test on.")
    parser.add_argument("out_dir", help="folder to write to")
    parser.add_argument("--train-clips", type=int, default=600, help="training clips (default: %(default)s)")
    parser.add_argument("--test-clips", type=int, default=120, help="test clips and questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (default: %(default)s)")
    options = parser.parse_args(arguments)
    with user_errors("audio_world", goes_on=GOES_ON) as end:
        _print_summary(generate_world(**vars(options), progress=sys.stderr.isatty()))
    return end.status


def _print_summary(world: dict[str, Any]):
    for split, summary in world["summary"].items():
        tasks = ", ".join(f"{task} {count}" for task, count in summary["questions_per_task"].items())
        print(
            f"{split}: {summary['clips']} clips, {summary['hours']:.2f} hours, "
            f"{summary['questions']} questions ({tasks})"
        )


if __name__ == "__main__":
    sys.exit(main())
