"""Long clips of the audio world: a sound at the beginning, in the middle and at the end, with music and speech in between.

They test hearing in long clips: for each of the three sounds, the model is asked which of four sounds is heard, and the
other three are not in the clip. The question is one of the world's, so a model of the world understands it. The test uses
the world's test settings, with a file of questions for each length (`falcon3-audio evaluate --benchmark jsonl`). There are
two training sets, of clips of up to 10 and of up to 30 seconds, with the training settings, in Open-ASQA's format. The same
seed always gives the same bytes.
Run: `python -m falcon3_audio.training.world.long_clips OUT --test-clips 60 --seed 0`
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm.auto import tqdm

from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import whole_file, write_json

from .audio_world import QUESTION_TYPES, build_prompt, check_least
from .audio_world_sounds import PLANNERS, SOUNDS, TEST, TRAIN, Clip, Settings, deck, pick, render
from .sound_synthesis import SAMPLE_RATE


PLACES = ("at the beginning", "in the middle", "at the end")
QUESTION = QUESTION_TYPES["sound"].wordings[0]
ABSENT = 3  # choices that are not heard
LENGTHS = (10, 30, 60, 120, 300)  # seconds
TRAIN_SECONDS = (10, 30)  # the longest clip of each training set; the shortest has SHORTEST
SHORTEST = 5  # three sounds, and something in between
RECORD = "long_clips.json"


@dataclass(frozen=True)
class LongClip:
    """
    Attributes:
        path: of the file, relative to the folder.
        seconds: its length.
        sounds: the sound in each of `PLACES`.
        absent: sounds that are not heard.
    """

    path: str
    seconds: int
    sounds: tuple[str, ...]
    absent: tuple[str, ...]


def generate_long_clips(
    out: Path,
    train_clips: int = 300,
    test_clips: int = 60,
    lengths: Sequence[int] = LENGTHS,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, Any]:
    """
    Writes `train-10.json` and `train-30.json` (see `TRAIN_SECONDS`), for each length `test-SECONDS.jsonl`, the clips of each
    of them (`train-10-audios/*.wav` and so on), and the parameters, which are returned, to `long_clips.json`. A complete
    folder is left unchanged, and an incomplete one is completed.

    Args:
        train_clips: clips of each training set, with lengths drawn evenly.
        test_clips: test clips of each length.
        lengths: of the test's clips, in seconds, `SHORTEST` or more.

    Raises:
        ValueError: for a length or a number that is too small, and for a folder that holds other clips.
    """
    for name, got, least in [("train_clips", train_clips, 0), ("test_clips", test_clips, 1), ("seed", seed, 0)]:
        check_least(name, got, least)
    if not lengths or min(lengths) < SHORTEST or len(set(lengths)) < len(lengths):
        raise ValueError(f"got the lengths {list(lengths)}; expected different ones of {SHORTEST} seconds or more")
    parameters = {"train_clips": train_clips, "test_clips": test_clips, "lengths": list(lengths), "seed": seed}
    record = out / RECORD
    before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"parameters": parameters}
    if before["parameters"] != parameters:
        raise ValueError(
            f"{out} holds long clips of {before['parameters']}, but {parameters} were asked for; give another folder."
        )
    if before.get("finished"):
        return parameters
    out.mkdir(parents=True, exist_ok=True)
    write_json(record, {"parameters": parameters, "finished": False})
    rng = np.random.default_rng(seed)
    for longest in TRAIN_SECONDS:
        seconds = rng.integers(SHORTEST, longest + 1, train_clips).tolist()
        train = _plan(f"train-{longest}", seconds, rng)
        _write_audios(out, train, TRAIN, seed, progress)
        write_json(out / f"train-{longest}.json", _train_rows(train, rng))
    tests = {length: _plan("test", [length] * test_clips, rng) for length in lengths}
    for length, clips in tests.items():
        _write_audios(out, clips, TEST, seed, progress)
        with whole_file(out / f"test-{length}.jsonl") as file:
            file.writelines(f"{json.dumps(row)}\n".encode() for row in _test_rows(clips, rng))
    write_json(record, {"parameters": parameters, "finished": True})
    return parameters


def _plan(split: str, seconds: Sequence[int], rng: np.random.Generator) -> list[LongClip]:
    clips = []
    for number, (length, first) in enumerate(zip(seconds, deck(SOUNDS, len(seconds), rng))):
        others = [sound for sound in SOUNDS if sound != first]
        middle, end, *absent = deck(others, len(PLACES) - 1 + ABSENT, rng)
        path = f"{split}-audios/{length:03d}s-{number:05d}.wav"
        clips.append(LongClip(path, length, (first, middle, end), tuple(absent)))
    return clips


def _questions(clip: LongClip, rng: np.random.Generator) -> Iterator[tuple[str, list[str], str]]:
    """Place, shuffled choices and answer, for each place."""
    for place, sound in zip(PLACES, clip.sounds):
        yield place, deck([sound, *clip.absent], 1 + ABSENT, rng), sound


def _train_rows(clips: Iterable[LongClip], rng: np.random.Generator) -> list[dict[str, str]]:
    return [
        {
            "instruction": build_prompt(QUESTION, choices),
            "input": "",
            "audio_id": clip.path,
            "dataset": "long-clips",
            "task": place,
            "output": sound,
        }
        for clip in clips
        for place, choices, sound in _questions(clip, rng)
    ]


def _test_rows(clips: Iterable[LongClip], rng: np.random.Generator) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{Path(clip.path).stem}-{number}",
            "audio": clip.path,
            "question": QUESTION,
            "choices": choices,
            "answer": sound,
            "task": place,
        }
        for clip in clips
        for number, (place, choices, sound) in enumerate(_questions(clip, rng))
    ]


def _write_audios(out: Path, clips: Iterable[LongClip], settings: Settings, seed: int, progress: bool):
    """Writes the missing clips; every clip has its own random generator."""
    missing = [clip for clip in clips if not (out / clip.path).exists()]
    for clip in tqdm(missing, unit="clip", disable=not progress):
        (out / clip.path).parent.mkdir(exist_ok=True)
        rng = np.random.default_rng([seed, *clip.path.encode()])
        with whole_file(out / clip.path) as file:
            soundfile.write(file, _render(clip, settings, rng), SAMPLE_RATE, "PCM_16", format="WAV")


def _render(clip: LongClip, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Float32 `(samples,)`: the sounds in their places, with music and speech in between cut to fit."""
    total = clip.seconds * SAMPLE_RATE
    begin, middle, end = (_sound(sound, settings, rng) for sound in clip.sounds)
    half = (total - len(middle)) // 2
    parts = [begin, _between(half - len(begin), settings, rng), middle]
    parts.append(_between(total - sum(map(len, parts)) - len(end), settings, rng))
    return np.concatenate([*parts, end])


def _sound(sound: str, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    how = {"pitch": pick(settings.sound_pitches, rng), "seconds": pick(settings.event_seconds, rng)}
    return render(Clip("repeat", {"events": [sound], "loudness": "steady", **how}, {}), rng)


def _between(samples: int, settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """Alternating music and speech of the world."""
    planners = cycle([*PLANNERS["music"].values(), *PLANNERS["speech"].values()])
    parts = [np.zeros(0, np.float32)]
    while sum(map(len, parts)) < samples:
        parts += [render(clip, rng) for clip in next(planners)(1, settings, rng)]
    return np.concatenate(parts)[:samples]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument(
        "--train-clips", type=int, default=300, help="clips of each training set (default: %(default)s)"
    )
    parser.add_argument("--test-clips", type=int, default=60, help="test clips of each length (default: %(default)s)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", metavar="SECONDS", default=list(LENGTHS), help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    with user_errors("long_clips", goes_on=GOES_ON) as end:
        generate_long_clips(**vars(options), progress=sys.stderr.isatty())
        seconds = sum(options.lengths) * options.test_clips
        made = f"{options.test_clips} clips of each of {len(options.lengths)} lengths"
        print(f"{made} ({seconds / 3600:.1f} h) in {options.out}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
