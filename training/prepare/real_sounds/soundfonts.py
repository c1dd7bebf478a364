"""Short phrases on the instruments of soundfonts: melodies, chords and single notes.

Played by tinysoundfont. Its package depends on PyAudio, which has to be built with PortAudio's headers and is only
needed for loudspeakers; hence `pip install --no-deps tinysoundfont`.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from .clips import TEST, Clip, Fact
from .facts import count_fact, instrument_facts
from .held_out import Splits, split_of
from .tables import SOUNDFONT, Package, read_table
from .writing import write_wav


RATE = 22_050  # Hz
RELEASE = 0.6  # seconds that are heard after the last note ends
SILENCE = 2  # seconds that let the last phrase die away
MIN_PEAK = 0.002  # below it the soundfont has no such instrument
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11, 12), "minor": (0, 2, 3, 5, 7, 8, 10, 12)}
MOVES = ("it rises", "it falls", "it rises, then falls", "it falls, then rises")
CHORDS = tuple(
    f"a {mode} chord played {style}" for mode in ("major", "minor") for style in ("at once", "note by note")
)

Note = tuple[float, float, int, int]  # start and length in seconds, MIDI pitch, velocity


@dataclass(frozen=True)
class Program:
    """An instrument of General MIDI, and the range of its phrases' first notes."""

    number: int
    label: str
    lowest: int
    highest: int


@dataclass(frozen=True)
class Phrase:
    kind: str
    notes: list[Note]
    fact: Fact
    labels: dict[str, Any]


def require_player() -> None:
    """Raises a `ValueError` if tinysoundfont is not installed."""
    if importlib.util.find_spec("tinysoundfont") is None:
        raise ValueError("soundfonts are played by tinysoundfont; install it: pip install --no-deps tinysoundfont")


def read_programs() -> list[Program]:
    rows = read_table("programs.tsv")
    return [Program(int(r["program"]), r["label"], int(r["lowest"]), int(r["highest"])) for r in rows]


def play_all(
    packages: tuple[Package, ...], folders: Mapping[str, Path], splits: Splits, out: Path, times: int, seed: int
) -> Iterator[Clip]:
    """`times` phrases on each available soundfont, half as many on one for the test."""
    for package in packages:
        if SOUNDFONT in package.readers and package.name in folders:
            fewer = times // 2 if split_of(package.name, splits) == TEST else times
            yield from play(package, soundfont_in(folders[package.name]), splits, out, fewer, seed)


def soundfont_in(folder: Path) -> Path:
    found = (path for path in sorted(folder.rglob("*.sf[23]")) if not path.is_symlink())
    if (path := next(found, None)) is None:
        raise ValueError(f"{folder} has no soundfont, expected a file *.sf2 or *.sf3")
    return path


def play(package: Package, font: Path, splits: Splits, out: Path, times: int, seed: int) -> Iterator[Clip]:
    """Clips of the instruments in turn; instruments that a soundfont lacks are left out."""
    from tinysoundfont import Synth

    draw = Random(f"{seed} {package.name}")
    synth = Synth(samplerate=RATE)
    number = synth.sfload(str(font))
    programs = read_programs()
    for index in range(times):
        program = programs[index % len(programs)]
        synth.program_select(0, number, 0, program.number)
        phrase = draw_phrase(draw, draw.randint(program.lowest, program.highest))
        samples = render(synth, phrase.notes)
        if np.abs(samples).max() < MIN_PEAK:
            continue
        samples *= draw.uniform(0.3, 0.8) / np.abs(samples).max()
        yield _clip(package, program, phrase, samples, splits, out, index)


def _clip(
    package: Package, program: Program, phrase: Phrase, samples: np.ndarray, splits: Splits, out: Path, index: int
) -> Clip:
    group = f"{package.name}/{program.label}"
    split = split_of(group, splits)
    path = f"audio/{split}/played/{phrase.kind}-{package.name}-{index:05d}.wav"
    write_wav(out / path, samples, RATE)
    labels = {"instrument": program.label, "trust": "A", **phrase.labels}
    facts = [*instrument_facts(program.label), phrase.fact]
    clip = Clip(out / path, package.name, package.licence, "music", labels, package.name, group, facts, split)
    clip.seconds, clip.path = round(len(samples) / RATE, 3), path
    return clip


def draw_phrase(draw: Random, root: int) -> Phrase:
    """A few notes from MIDI pitch `root` on, and what can be asked about them."""
    kind = draw.choice(("contour", "chord", "notes"))
    beat, velocity = draw.uniform(0.22, 0.5), draw.randint(75, 115)
    make = {"contour": _melody, "chord": _chord, "notes": _notes}[kind]
    return make(draw, root, beat, velocity)


def _melody(draw: Random, root: int, beat: float, velocity: int) -> Phrase:
    mode = draw.choice(sorted(SCALES))
    up = list(SCALES[mode][: draw.randint(5, 7)])
    half = up[:4]
    steps, answer = draw.choice(
        list(zip((up, up[::-1], half + half[-2::-1], half[::-1] + half[1:]), MOVES, strict=True))
    )
    wordings = ("How does the melody move?", "Does the melody rise or fall?", "What does the melody do?")
    notes = [(index * beat, beat, root + step, velocity) for index, step in enumerate(steps)]
    return Phrase("contour", notes, Fact("melody", wordings, answer, options=MOVES), {"melody": answer})


def _chord(draw: Random, root: int, beat: float, velocity: int) -> Phrase:
    mode, broken = draw.choice(("major", "minor")), draw.random() < 0.5
    pitches = [root, root + (4 if mode == "major" else 3), root + 7, root + 12]
    style = "note by note" if broken else "at once"
    notes = [
        (index * beat if broken else 0.0, beat if broken else 1.6, pitch, velocity)
        for index, pitch in enumerate(pitches)
    ]
    wordings = ("What kind of chord is this?", "Which chord is played, and how?")
    fact = Fact("chord", wordings, f"a {mode} chord played {style}", options=CHORDS)
    return Phrase("chord", notes, fact, {"chord": mode, "style": style})


def _notes(draw: Random, root: int, beat: float, velocity: int) -> Phrase:
    count = draw.randint(2, 5)
    beat += 0.15
    pitches = [root + draw.choice(SCALES["major"]) for _ in range(count)]
    notes = [(index * beat, beat * 0.8, pitch, velocity) for index, pitch in enumerate(pitches)]
    wordings = ("How many notes are played?", "How many notes do you hear?")
    fact = count_fact("note count", wordings, count, range(2, 6))
    return Phrase("notes", notes, fact, {"notes": count})


def render(synth: Any, notes: list[Note]) -> np.ndarray:
    """Mono float32 samples of the notes and their release; the synthesiser is silent afterwards."""
    on = [(start, 1, pitch, velocity) for start, _, pitch, velocity in notes]
    off = [(start + length, 0, pitch, 0) for start, length, pitch, _ in notes]
    events = sorted(on + off)
    pieces, now = [], 0.0
    for at, is_on, pitch, velocity in events:
        if frames := int((at - now) * RATE):
            pieces.append(_generate(synth, frames))
            now += frames / RATE
        if is_on:
            synth.noteon(0, pitch, velocity)
        else:
            synth.noteoff(0, pitch)
    pieces.append(_generate(synth, int((events[-1][0] + RELEASE - now) * RATE)))
    synth.notes_off(0)
    synth.generate(SILENCE * RATE)
    return np.concatenate(pieces)


def _generate(synth: Any, frames: int) -> np.ndarray:
    return np.frombuffer(bytes(synth.generate(frames)), np.float32).reshape(-1, 2).mean(1)
