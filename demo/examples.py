"""Example clips with a question about each, generated from the audio world's sounds when the page starts.

Pitches, durations and the voice are those of its held-out test, so a model trained on it has not memorised them.

    write_examples(Path("examples"))
"""

from pathlib import Path

import numpy as np
import soundfile

from falcon3_audio.training.prepare.espeak import speak
from falcon3_audio.training.world.audio_world_sounds import EVENT_GAP, NOTE_SHARE, TEST
from falcon3_audio.training.world.sound_synthesis import SAMPLE_RATE, join, note, resample, sound_event


RISING = (0, 4, 7, 12)  # semitones above the melody's first note


def write_examples(folder: Path) -> list[tuple[str, list[str]]]:
    """Writes wav files into an existing folder; returns questions, each with the paths of its clips."""
    rng = np.random.default_rng(0)
    pitch, seconds = TEST.sound_pitches[-1], TEST.event_seconds[-1]
    event = {kind: sound_event(kind, pitch, seconds, rng) for kind in ("beep", "bell", "knock")}
    per_note = TEST.slow_notes[0]
    melody = [note("flute", 440 * 2 ** ((TEST.roots[0] - 69 + step) / 12), NOTE_SHARE * per_note) for step in RISING]
    speech = speak("Number two, blue dog.", TEST.women[0], TEST.slow_speeds[0], TEST.voice_pitches[-1])
    clips = {
        "beeps": join([event["beep"]] * 3, EVENT_GAP),
        "melody": join(melody, (1 - NOTE_SHARE) * per_note),
        "speech": resample(*speech),
        "bell": event["bell"],
        "knock": event["knock"],
    }
    paths = {name: str(folder / f"{name}.wav") for name in clips}
    for name, samples in clips.items():
        soundfile.write(paths[name], 0.5 * samples, SAMPLE_RATE)
    return [
        ("How many times is the sound heard?", [paths["beeps"]]),
        ("Does the melody rise or fall?", [paths["melody"]]),
        ("Which number is spoken?", [paths["speech"]]),
        ("Which of the two clips is a bell?", [paths["bell"], paths["knock"]]),
    ]
