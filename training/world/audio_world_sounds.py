"""The clips of the audio world: what can occur in training and in the test, the answers, and the audio.

`PLANNERS` plan clips of each kind together with their answers, all answers equally often; `render` synthesizes the
audio. Notes and sound events come from sound_synthesis.py, speech from espeak-ng. All waveforms are mono float32 at
16 kHz, and all randomness comes from the generator passed in. `audio_world` builds a world from them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, permutations, product
from typing import Any, TypeVar

import numpy as np

from ..prepare.espeak import speak
from .sound_synthesis import INSTRUMENTS, SAMPLE_RATE, SOUND_EVENTS, join, note, resample, sound_event


T = TypeVar("T")

EVENT_GAP = 0.2  # seconds of silence between two sound events
NOTE_SHARE = 0.9  # share of the time from note to note that is played; the rest is silence
NUMBERS = ("one", "two", "six", "eight")
COLOURS = ("red", "green", "blue", "yellow")
ANIMALS = ("dog", "sheep", "monkey", "elephant")
WORDS = NUMBERS + COLOURS + ANIMALS
SENTENCES = ("Number {number}, {colour} {animal}.", "The number {number} and a {colour} {animal}.")
COUNTS = ("one", "two", "three", "four", "five")
SOUNDS = tuple(SOUND_EVENTS)
STEADY_SOUNDS = ("beep", "siren", "noise", "clicks", "buzzer")  # those that can last two seconds
CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7)}  # semitones above the root

STYLES = tuple(f"a {who} speaking {pace}" for who, pace in product(("man", "woman"), ("slowly", "quickly")))
SHAPES = tuple(f"{length} and getting {change}" for length, change in product(("short", "long"), ("louder", "softer")))
MOVEMENTS = tuple(
    f"a {way} melody played {pace}" for way, pace in product(("rising", "falling"), ("slowly", "quickly"))
)
CHORD_STYLES = tuple(f"a {mode} chord played {way}" for mode, way in product(CHORDS, ("at once", "note by note")))
SOUND_ORDERS = tuple(f"{first} then {last}" for first, last in permutations(SOUNDS, 2))


@dataclass(frozen=True)
class Settings:
    """The values that one split uses; no value of `TRAIN` is also in `TEST`."""

    men: tuple[str, ...]
    women: tuple[str, ...]
    slow_speeds: tuple[int, ...]  # words per minute
    quick_speeds: tuple[int, ...]
    voice_pitches: tuple[int, ...]  # espeak-ng's scale, 50 is the voice's default
    sound_pitches: tuple[float, ...]  # factor on a sound's own frequencies
    event_seconds: tuple[float, ...]
    short_seconds: tuple[float, ...]
    long_seconds: tuple[float, ...]
    roots: tuple[float, ...]  # of melodies, as MIDI numbers, 69 is 440 Hz; the test's and all its notes are in between
    chord_roots: tuple[float, ...]  # within a semitone, so that a small model can recognize a third by its pitch
    slow_notes: tuple[float, ...]  # seconds from note to note
    quick_notes: tuple[float, ...]
    chord_seconds: tuple[float, ...]


TRAIN = Settings(
    men=tuple(f"{tag}+{name}" for tag in ("en-us", "en-gb") for name in ("m1", "m2", "m3", "m4", "m5", "m7", "rob")),
    women=tuple(f"{tag}+{name}" for tag in ("en-us", "en-gb") for name in ("f1", "f2", "f4", "f5", "linda", "steph")),
    slow_speeds=(120, 130, 140),
    quick_speeds=(200, 215, 230),
    voice_pitches=(42, 48, 54),
    sound_pitches=(0.8, 0.9, 1.0, 1.1, 1.2),
    event_seconds=(0.24, 0.34, 0.44),
    short_seconds=(0.41, 0.51, 0.61),
    long_seconds=(1.4, 1.7, 2.0),
    roots=(66, 67, 68, 69, 70, 71),
    chord_roots=(79, 79.4, 79.8),
    slow_notes=(0.44, 0.5, 0.56),
    quick_notes=(0.18, 0.2, 0.22),
    chord_seconds=(0.8, 1.0, 1.2),
)
TEST = Settings(
    men=("en-us+m6", "en-gb+max"),
    women=("en-us+f3", "en-gb+belinda"),
    slow_speeds=(125, 135),
    quick_speeds=(208, 222),
    voice_pitches=(45, 51),
    sound_pitches=(0.85, 0.95, 1.05, 1.15),
    event_seconds=(0.29, 0.39),
    short_seconds=(0.46, 0.56),
    long_seconds=(1.55, 1.85),
    roots=(66.5, 67.5, 68.5, 69.5, 70.5),
    chord_roots=(79.2, 79.6),
    slow_notes=(0.47, 0.53),
    quick_notes=(0.19, 0.21),
    chord_seconds=(0.9, 1.1),
)


@dataclass(frozen=True)
class Clip:
    """A planned clip: the settings for `render`, the answers by question type, and the spoken words."""

    kind: str
    settings: dict[str, Any]
    answers: dict[str, str]
    lures: dict[str, tuple[str, ...]] = field(default_factory=dict)  # wrong answers that the choices must include
    text: str = ""


def deck(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """`count` values, each as often as any other (to within one), in shuffled rounds."""
    rounds = -(-count // len(values))
    return [values[index] for _ in range(rounds) for index in rng.permutation(len(values))][:count]


def pick(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def _speakers(
    count: int, settings: Settings, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Settings and answers of `count` speakers: men and women, slow and quick, in equal parts."""
    for style in deck(STYLES, count, rng):
        man, slow = "a man" in style, "slowly" in style
        voice = pick(settings.men if man else settings.women, rng)
        speed = pick(settings.slow_speeds if slow else settings.quick_speeds, rng)
        how = {"voice": voice, "speed": speed, "pitch": pick(settings.voice_pitches, rng)}
        yield how, {"speaker_style": style, "speaker": "a man" if man else "a woman"}


def _phrases(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    words = zip(*(deck(values, count, rng) for values in (SENTENCES, NUMBERS, COLOURS, ANIMALS)))
    for (sentence, number, colour, animal), (how, who) in zip(words, _speakers(count, settings, rng)):
        text = sentence.format(number=number, colour=colour, animal=animal)
        said = {"spoken_number": number, "spoken_colour": colour, "spoken_animal": animal, "transcript": text}
        yield Clip("phrase", {"text": text, **how}, said | who, text=text)


def _lists(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    columns = zip(deck(range(1, 5), count, rng), deck(WORDS, count, rng), _speakers(count, settings, rng))
    for length, first, (how, who) in columns:
        others = [word for word in WORDS if word != first]
        words = (first, *deck(others, length - 1, rng))
        text = ", ".join(words) + "."
        said = {"word_count": COUNTS[length - 1], "first_word": first, "last_word": words[-1], "transcript": text}
        lures = {"first_word": words[1:], "last_word": words[:-1]}
        yield Clip("list", {"text": text, **how}, said | who, lures, text)


def _repeats(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    for sound, times in zip(deck(SOUNDS, count, rng), deck(range(1, 5), count, rng)):
        how = {"events": [sound] * times, "pitch": pick(settings.sound_pitches, rng), "loudness": "steady"}
        how["seconds"] = pick(settings.event_seconds, rng)
        answers = {"sound": sound, "sound_count": COUNTS[times - 1]}
        answers["sound_description"] = f"{sound}, {COUNTS[times - 1]} in all"
        yield Clip("repeat", how, answers)


def _pairs(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    for first, last in deck(list(permutations(SOUNDS, 2)), count, rng):
        how = {"events": [first, last], "pitch": pick(settings.sound_pitches, rng), "loudness": "steady"}
        how["seconds"] = pick(settings.event_seconds, rng)
        # The wrong orders all share one of the two sounds, so that neither presence nor frequency reveals the answer.
        shared, other = pick(((first, last), (last, first)), rng)
        third = pick([sound for sound in SOUNDS if sound not in (first, last)], rng)
        orders = (f"{a} then {b}" for a, b in chain(permutations((shared, other)), permutations((shared, third))))
        answer = f"{first} then {last}"
        wrong_orders = tuple(order for order in orders if order != answer)
        lures = {"first_sound": (last,), "last_sound": (first,), "sound_order": wrong_orders}
        yield Clip("pair", how, {"first_sound": first, "last_sound": last, "sound_order": answer}, lures)


def _shapes(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    for sound, shape in zip(deck(STEADY_SOUNDS, count, rng), deck(SHAPES, count, rng)):
        length, change = shape.split(" and getting ")
        how = {"events": [sound], "pitch": pick(settings.sound_pitches, rng), "loudness": change}
        how["seconds"] = pick(settings.short_seconds if length == "short" else settings.long_seconds, rng)
        answers = {"sound": sound, "sound_shape": shape, "loudness": change, "length": length}
        yield Clip("shape", how, answers | {"sound_description": f"{sound}, {shape}"})


def _melodies(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    decks = (deck(values, count, rng) for values in (list(INSTRUMENTS), MOVEMENTS, range(2, 6)))
    for instrument, movement, length in zip(*decks):
        rising, slow = "rising" in movement, "slowly" in movement
        steps = [0, *np.cumsum(rng.integers(3, 6, length - 1)).tolist()]  # semitones above the root
        root = pick(settings.roots, rng)
        notes = [[_hertz(root + step)] for step in (steps if rising else reversed(steps))]
        seconds = pick(settings.slow_notes if slow else settings.quick_notes, rng)
        answers = {"instrument": instrument, "movement": movement, "note_count": COUNTS[length - 1]}
        answers["direction"] = "rise" if rising else "fall"
        answers["music_description"] = f"{movement} on {instrument}"
        yield Clip("melody", {"instrument": instrument, "notes": notes, "seconds": seconds}, answers)


def _chords(count: int, settings: Settings, rng: np.random.Generator) -> Iterator[Clip]:
    for instrument, style in zip(deck(list(INSTRUMENTS), count, rng), deck(CHORD_STYLES, count, rng)):
        mode = "major" if "major" in style else "minor"
        root = pick(settings.chord_roots, rng)
        pitches = [_hertz(root + step) for step in CHORDS[mode]]
        notes = [pitches] if "at once" in style else [[hertz] for hertz in pitches]
        seconds = round(pick(settings.chord_seconds, rng) / len(notes), 3)
        answers = {"instrument": instrument, "chord": style, "mode": mode}
        answers["music_description"] = f"{style} on {instrument}"
        yield Clip("chord", {"instrument": instrument, "notes": notes, "seconds": seconds}, answers)


def _hertz(midi: float) -> float:
    return round(440 * 2 ** ((midi - 69) / 12), 2)


PLANNERS: dict[str, dict[str, Callable[[int, Settings, np.random.Generator], Iterator[Clip]]]] = {
    "sound": {"repeat": _repeats, "pair": _pairs, "shape": _shapes},
    "music": {"melody": _melodies, "chord": _chords},
    "speech": {"phrase": _phrases, "list": _lists},
}
TASK_OF_KIND = {kind: task for task, planners in PLANNERS.items() for kind in planners}


def render(clip: Clip, rng: np.random.Generator) -> np.ndarray:
    """The waveform of a planned clip, with silence around it, a random level and a little noise; at least 0.5 s."""
    waveform = _RENDERERS[TASK_OF_KIND[clip.kind]](clip.settings, rng)
    before, after = (rng.uniform(0.05, 0.2, 2) * SAMPLE_RATE).astype(int).tolist()
    after = max(after, SAMPLE_RATE // 2 - before - len(waveform))
    waveform = np.pad(waveform * (rng.uniform(0.3, 0.9) / np.abs(waveform).max()), (before, after))
    return (waveform + 0.001 * rng.standard_normal(len(waveform))).astype(np.float32)


def _render_speech(settings: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    return resample(*speak(**settings))


def _render_sound(settings: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    pitch, seconds = settings["pitch"], settings["seconds"]
    waveform = join([sound_event(kind, pitch, seconds, rng) for kind in settings["events"]], EVENT_GAP)
    ramp = np.geomspace(0.01, 1, len(waveform))
    return waveform * {"steady": 1.0, "louder": ramp, "softer": ramp[::-1]}[settings["loudness"]]


def _render_music(settings: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    played, gap = NOTE_SHARE * settings["seconds"], (1 - NOTE_SHARE) * settings["seconds"]
    chords = [[note(settings["instrument"], hertz, played) for hertz in chord] for chord in settings["notes"]]
    return join([np.sum(chord, axis=0) for chord in chords], gap)


_RENDERERS = {"speech": _render_speech, "sound": _render_sound, "music": _render_music}
