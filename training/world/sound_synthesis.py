"""Synthesized sounds: instrument notes and sound events, for the audio world.

Sums of partials, sweeps and filtered noise in plain numpy, so every pitch is exact and can be checked with an FFT. All waveforms
are mono float32 at 16 kHz, and all randomness comes from the generator passed in.
Run: `note("flute", hertz=440.0, seconds=0.5)`
"""

from dataclasses import dataclass

import numpy as np


SAMPLE_RATE = 16_000  # Hz
_FADE = 0.005  # seconds; without it the edges of a steady sound would click

# (frequency ratio, level, decay per second) of struck objects.
_BELL = ((1.0, 1.0, 4.0), (2.0, 0.6, 6.0), (2.76, 0.5, 8.0), (5.4, 0.3, 12.0))
_KNOCK = ((1.0, 1.0, 35.0), (2.3, 0.5, 50.0), (4.1, 0.3, 70.0))


@dataclass(frozen=True)
class Timbre:
    """How an instrument sounds.

    Args:
        partials: (frequency ratio, level) of each partial.
        attack: seconds until the note is at full level.
        decay: how fast it dies away, per second; 0 holds it.
        damping: extra decay per second for each step up the list of partials, so that a string loses its brightness.
        vibrato: depth of a 6 Hz vibrato, as a fraction of the frequency.
    """

    partials: tuple[tuple[float, float], ...]
    attack: float
    decay: float = 0.0
    damping: float = 0.0
    vibrato: float = 0.0


INSTRUMENTS = {
    "flute": Timbre(((1, 1.0), (2, 0.12)), attack=0.05, vibrato=0.004),
    "organ": Timbre(((1, 1.0), (2, 0.8), (4, 0.6), (6, 0.4), (8, 0.4)), attack=0.02),
    "guitar": Timbre(tuple((k, 1 / k) for k in range(1, 11)), attack=0.003, decay=4.0, damping=2.5),
    "synthesizer": Timbre(tuple((k, 1 / k) for k in range(1, 17, 2)), attack=0.003),
    "marimba": Timbre(((1, 1.0), (3.93, 0.5), (9.2, 0.2)), attack=0.002, decay=14.0, damping=12.0),
    "violin": Timbre(tuple((k, 1 / k) for k in range(1, 13)), attack=0.07, vibrato=0.012),
}


def note(instrument: str, hertz: float, seconds: float) -> np.ndarray:
    """One note of an instrument of `INSTRUMENTS`; float32 of shape `(samples,)`."""
    timbre = INSTRUMENTS[instrument]
    time = _time(seconds)
    # The phase is the integral of the frequency, here of hertz * (1 + vibrato * cos(2 pi 6 t)).
    phase = 2 * np.pi * hertz * time + hertz / 6 * timbre.vibrato * np.sin(2 * np.pi * 6 * time)
    waveform = np.zeros_like(time)
    for index, (ratio, level) in enumerate(timbre.partials):
        if ratio * hertz < 0.45 * SAMPLE_RATE:
            waveform += level * np.exp(-(timbre.decay + index * timbre.damping) * time) * np.sin(ratio * phase)
    return _finish(waveform * np.minimum(1, time / timbre.attack))


def sound_event(kind: str, pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """One sound event.

    Args:
        kind: a key of `SOUND_EVENTS`.
        pitch: factor on the kind's own frequencies; 1 leaves them as they are.
        seconds: length of the event.
        rng: source of noise.

    Returns:
        float32 waveform of shape `(samples,)`.
    """
    return _finish(SOUND_EVENTS[kind](pitch, _time(seconds), rng))


def join(waveforms: list[np.ndarray], gap: float) -> np.ndarray:
    """The waveforms one after another with `gap` seconds of silence between them."""
    silence = np.zeros(round(gap * SAMPLE_RATE), np.float32)
    parts = [part for waveform in waveforms for part in (silence, waveform)]
    return np.concatenate(parts[1:])


def resample(waveform: np.ndarray, rate: int) -> np.ndarray:
    """Resamples a waveform from `rate` Hz to 16 kHz by cutting its spectrum, which is exact for whole blocks.

    The clip is padded to whole blocks of 0.02 s, in which both rates have a whole number of samples.
    """
    padded = np.pad(waveform, (0, -len(waveform) % (rate // 50)))
    length = len(padded) * 50 // rate * (SAMPLE_RATE // 50)
    spectrum = np.fft.rfft(padded)[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * (length / len(padded))).astype(np.float32)


def _time(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _finish(waveform: np.ndarray) -> np.ndarray:
    edge = np.minimum(np.arange(len(waveform)) / (_FADE * SAMPLE_RATE), 1)
    waveform = waveform * edge * edge[::-1]
    return (waveform / np.abs(waveform).max()).astype(np.float32)


def _ringing(hertz: float, time: np.ndarray, partials: tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Struck metal or wood: partials of (frequency ratio, level, decay per second)."""
    waveform = np.zeros_like(time)
    for ratio, level, decay in partials:
        waveform += level * np.exp(-decay * time) * np.sin(2 * np.pi * ratio * hertz * time)
    return waveform


def _sweep(start: float, end: float, time: np.ndarray) -> np.ndarray:
    """A sine that glides from `start` to `end` Hz, evenly in octaves."""
    hertz = start * (end / start) ** np.linspace(0, 1, len(time))
    return np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)


def _beep(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.sin(2 * np.pi * 1000 * pitch * time)


def _siren(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hertz = pitch * (900 + 350 * np.sin(2 * np.pi * 5 * time))
    return np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE)


def _noise(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """White noise up to 5 kHz times the pitch."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    spectrum[np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE) > 5000 * pitch] = 0
    return np.fft.irfft(spectrum, len(time))


def _clicks(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noisy clicks of about 2 ms, 20 times the pitch a second."""
    since_click = np.mod(time, 1 / (20 * pitch))
    return rng.standard_normal(len(time)) * np.exp(-since_click / 0.002)


def _knock(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    thump = _ringing(180 * pitch, time, _KNOCK)
    return thump + 0.3 * rng.standard_normal(len(time)) * np.exp(-time / 0.004)


def _rising_chirp(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _sweep(600 * pitch, 3000 * pitch, time)


def _falling_chirp(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _sweep(3000 * pitch, 600 * pitch, time)


def _buzzer(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sawtooth of 110 Hz times the pitch, without partials that would alias."""
    waveform = np.zeros_like(time)
    for k in range(1, 40):
        waveform += np.sin(2 * np.pi * 110 * pitch * k * time) / k
    return waveform


def _bell(pitch: float, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _ringing(1100 * pitch, time, _BELL)


SOUND_EVENTS = {
    "beep": _beep,
    "siren": _siren,
    "noise": _noise,
    "clicks": _clicks,
    "knock": _knock,
    "rising chirp": _rising_chirp,
    "falling chirp": _falling_chirp,
    "buzzer": _buzzer,
    "bell": _bell,
}
