"""Clips that are composed of others of one split: orders, counts, sounds behind speech, several speakers.

Most of their answers are in no single recording, so they have to be listened for. A kind of composite is not created
if its parts are missing (because their package is).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np

from .clips import MIXED, TEST, TRAIN, VALIDATION, Clip, Fact
from .facts import count_fact, instrument_facts, sound_facts
from .quality import read_audio
from .tables import are_alike, spoken
from .writing import write_wav


RATE = 16_000  # Hz
COMPOSITE = "composite"  # its source, voice and group
KEY = "a keyboard key"
LOUDNESS, PEAK = 0.08, 0.95  # RMS of every part, and the peak that none exceeds
SILENT_SHARE = 0.02  # of the peak; quieter ends are cut
BEFORE, AFTER = 200, 800  # samples that are kept around the loud part
MOST_SPEAKERS = 4
CLIPS_OF_A_SPEAKER = 8  # a voice with fewer would repeat itself

Table = dict[str, list[Clip]]  # clips by label
# The seeds of the random draws, for each split.
SEEDS = {TRAIN: "False", TEST: "True", VALIDATION: "validation"}


def level(samples: np.ndarray) -> np.ndarray:
    """Mono samples without the silence at both ends, normalised in loudness."""
    loud = np.flatnonzero(np.abs(samples) > SILENT_SHARE * np.abs(samples).max())
    if len(loud):
        samples = samples[max(loud[0] - BEFORE, 0) : loud[-1] + AFTER]
    samples = samples * (LOUDNESS / (np.sqrt(np.mean(samples**2)) + 1e-9))
    return samples * min(1, PEAK / (np.abs(samples).max() + 1e-30))


def joined(parts: Sequence[np.ndarray], gap: float) -> np.ndarray:
    """The parts one after the other, with `gap` seconds of silence between them."""
    silence = np.zeros(int(gap * RATE), np.float32)
    return np.concatenate([piece for part in parts for piece in (part, silence)][:-1])


def tellable(table: Table) -> Table:
    """The labels that can be told from at least one other."""
    return {label: clips for label, clips in table.items() if any(not are_alike(label, other) for other in table)}


def countable(table: Table) -> Table:
    """Clips that are short enough to be heard several times."""
    short = {label: [clip for clip in clips if clip.seconds <= 1.5] for label, clips in table.items()}
    return {label: clips for label, clips in short.items() if clips}


class Composer:
    """
    Creates composites from the clips of a split.

    A composite for training with a part from validation has the split `MIXED` and is not written: it only keeps the
    others the same as without a validation split.
    """

    def __init__(self, clips: Iterable[Clip], out: Path, split: str, seed: int):
        self.draw = Random(f"{seed} {SEEDS[split]}")
        self.out, self.split = out, split
        self.made: list[Clip] = []
        own = (TRAIN, VALIDATION, MIXED) if split == TRAIN else (split,)
        clips = [clip for clip in clips if clip.split in own]
        self.speech = [clip for clip in clips if clip.domain == "speech" and 0.5 <= clip.seconds <= 5]
        short = [clip for clip in clips if clip.seconds <= 6]
        sounds = by_name(clip for clip in short if clip.domain == "sound" and clip.labels["trust"] == "A")
        sounds.pop("coughing", None)  # comes in fits, which cannot be counted
        self.sounds = sounds
        self.instruments = by_name(clip for clip in short if clip.domain == "music")
        self.voices: Table = defaultdict(list)
        self.languages_of: Table = defaultdict(list)
        for clip in self.speech:
            self.voices[clip.voice].append(clip)
            self.languages_of[clip.labels["language"]].append(clip)
        self.known_voices = sorted(v for v, clips in self.voices.items() if len(clips) >= CLIPS_OF_A_SPEAKER)
        digits = {voice: [clip for clip in clips if is_digit(clip)] for voice, clips in self.voices.items()}
        self.digits = {voice: clips for voice, clips in digits.items() if clips}

    def run(self, times: Iterable[int]) -> list[Clip]:
        """A composite of each possible kind for each of `times`; of typing, for every eighth."""
        kinds, rounds = self.kinds(), 0
        for _ in times:
            for make in kinds:
                make()
            rounds += 1
        for _ in range(rounds // 8 if KEY in self.sounds else 0):
            self.typing()
        return self.made

    def kinds(self) -> list[Callable[[], None]]:
        """The functions that create a composite of each kind, if its parts are available."""
        without_keys = tellable({label: clips for label, clips in self.sounds.items() if label != KEY})
        instruments = tellable(self.instruments)
        found = [
            (len(without_keys) > 1, lambda: self.order(without_keys, "sound")),
            (bool(countable(self.sounds)), lambda: self.count(self.sounds, "sound")),
            (bool(self.sounds and self.speech), self.background),
            (len(instruments) > 1, lambda: self.order(instruments, "music")),
            (bool(countable(self.instruments)), lambda: self.count(self.instruments, "music")),
            (len(self.known_voices) >= MOST_SPEAKERS, self.speakers),
            (len(self.languages_of) > 1, self.languages),
            (bool(self.digits), self.numbers),
        ]
        return [make for has_parts, make in found if has_parts]

    def add(
        self, kind: str, samples: np.ndarray, parts: Sequence[Clip], domain: str, labels: dict, facts: list[Fact]
    ) -> None:
        split = self.split if all(part.split == self.split for part in parts) else MIXED
        name = f"{kind.replace(' ', '-')}-{self.split}-{len(self.made):05d}.wav"
        path = f"audio/{split}/composite/{name}"
        if split != MIXED:
            write_wav(self.out / path, np.clip(samples, -1, 1), RATE)
        licence = " and ".join(sorted({part.licence for part in parts}))
        labels = {"composite": kind, **labels}
        clip = Clip(self.out / path, COMPOSITE, licence, domain, labels, COMPOSITE, COMPOSITE, facts, split)
        clip.path, clip.seconds = path, round(len(samples) / RATE, 3)
        clip.made_of = tuple(part.path for part in parts)
        self.made.append(clip)

    def load(self, clip: Clip, seconds: float = 4.0) -> np.ndarray:
        return level(read_audio(clip.file, RATE, seconds)[0])

    def pick_labels(self, table: Table) -> tuple[str, str]:
        """Two labels that can be told apart."""
        first = second = self.draw.choice(sorted(table))
        while are_alike(first, second):
            second = self.draw.choice(sorted(table))
        return first, second

    def order(self, table: Table, domain: str) -> None:
        labels = self.pick_labels(table)
        parts = [self.draw.choice(table[label]) for label in labels]
        samples = joined([self.load(part, 3) for part in parts], 0.4)
        word = "sound" if domain == "sound" else "instrument"
        first = (f"Which {word} comes first?", f"Two {word}s follow each other. Which is the first?")
        second = (f"Which {word} comes second?", f"Two {word}s follow each other. Which is the last?")
        kind = f"{word} order"
        facts = [
            Fact(kind, first, labels[0], word, beside=labels[1]),
            Fact(kind, second, labels[1], word, beside=labels[0]),
        ]
        self.add(kind, samples, parts, domain, {word + "s": list(labels)}, facts)

    def count(self, table: Table, domain: str) -> None:
        short = countable(table)
        label = self.draw.choice(sorted(short))
        part = self.draw.choice(short[label])
        number = self.draw.randint(1, 4)
        samples = joined([self.load(part)] * number, self.draw.uniform(0.35, 0.6))
        word = "sound" if domain == "sound" else "instrument"
        wordings = (f"How many times is the {word} heard?", f"How often is the {word} heard?")
        what = (sound_facts if domain == "sound" else instrument_facts)(label)[0]
        facts = [count_fact(f"{word} count", wordings, number, range(1, 5)), what]
        self.add(f"{word} count", samples, [part], domain, {word: label, "count": number}, facts)

    def typing(self) -> None:
        number = self.draw.randint(4, 10)
        parts = [self.draw.choice(self.sounds[KEY]) for _ in range(number)]
        samples = joined([self.load(part) for part in parts], self.draw.uniform(0.02, 0.15))
        label = "typing on a keyboard"
        self.add("typing", samples, parts, "sound", {"sound": label}, sound_facts(label)[:1])

    def background(self) -> None:
        label = self.draw.choice(sorted(self.sounds))
        voice, noise = self.draw.choice(self.speech), self.draw.choice(self.sounds[label])
        speech, sound = self.load(voice), self.load(noise)
        sound = np.resize(sound, len(speech)) if len(sound) < len(speech) else sound
        mix = np.zeros(max(len(speech), len(sound)), np.float32)
        mix[: len(speech)] += speech
        mix[: len(sound)] += sound * self.draw.uniform(0.4, 0.9)
        wordings = (
            "Which sound is heard besides the speech?",
            "What is heard in the background while somebody speaks?",
        )
        language = voice.labels["language"]
        over = ("Which language is spoken over the sound?",)
        facts = [
            Fact("sound behind speech", wordings, label, "sound"),
            Fact("language over sound", over, language, "language", in_test=False),
        ]
        self.add("sound behind speech", mix, [voice, noise], "sound", {"sound": label, **voice.labels}, facts)

    def speakers(self) -> None:
        number = self.draw.randint(1, MOST_SPEAKERS)
        voices = self.draw.sample(self.known_voices, number)
        order = voices + [self.draw.choice(voices) for _ in range(MOST_SPEAKERS - number)]
        self.draw.shuffle(order)
        parts = [self.draw.choice(self.voices[voice]) for voice in order]
        samples = joined([self.load(part, 3) for part in parts], 0.3)
        wordings = ("How many different people speak?", "How many speakers are heard?")
        fact = count_fact("speaker count", wordings, number, range(1, MOST_SPEAKERS + 1))
        facts = [replace(fact, is_sure=are_countable(order))]
        self.add("speakers", samples, parts, "speech", {"speakers": number}, facts)

    def languages(self) -> None:
        names = self.draw.sample(sorted(self.languages_of), 2)
        first, second = (self.draw.choice(self.languages_of[name]) for name in names)
        samples = joined([self.load(first), self.load(second)], 0.4)
        facts = [
            Fact(
                "language order",
                (f"Two people speak. Which language does the {place} one use?",),
                name,
                "language",
                beside=other,
            )
            for place, name, other in (("first", *names), ("second", names[1], names[0]))
        ]
        self.add("languages", samples, [first, second], "speech", {"languages": names}, facts)

    def numbers(self) -> None:
        digits = self.digits[self.draw.choice(sorted(self.digits))]
        count = self.draw.randint(2, 5)
        parts = [self.draw.choice(digits) for _ in range(count)]
        samples = joined([self.load(part) for part in parts], 0.15)
        said = " ".join(part.labels["number"] for part in parts)
        options = tuple(dict.fromkeys([said, *(self.other_numbers(said) for _ in range(12))]))[:4]
        which = ("Which numbers are spoken?", "Which digits are read out?")
        facts = [
            count_fact("number count", ("How many numbers are spoken?",), count, range(2, 6)),
            Fact("numbers", which, said, options=options, in_test=False),
        ]
        labels = {"numbers": said, "language": parts[0].labels["language"]}
        self.add("numbers", samples, parts, "speech", labels, facts)

    def other_numbers(self, said: str) -> str:
        words = said.split()
        for index in self.draw.sample(range(len(words)), self.draw.randint(1, len(words))):
            words[index] = self.draw.choice(spoken()["numbers"][:10])
        return " ".join(words)


def are_countable(voices: Sequence[str]) -> bool:
    """Whether as many people are heard as there are different voices."""
    people = spoken()["people"]
    if any(voices.count(voice) > 1 for voice in people["several_in_one_voice"]):
        return False
    return not any(len(set(voices) & set(same)) > 1 for same in people["one_with_several_voices"])


def is_digit(clip: Clip) -> bool:
    return clip.labels.get("number") in spoken()["numbers"][:10]


def by_name(clips: Iterable[Clip]) -> Table:
    table: Table = defaultdict(list)
    for clip in clips:
        table[clip.name].append(clip)
    return dict(table)
