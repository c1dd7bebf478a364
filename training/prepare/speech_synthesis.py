"""Instructions spoken by a synthesiser: espeak-ng, or any model of transformers' `text-to-audio` pipeline.

The manner of speaking (voice, speed, pitch) is drawn from a generator seeded with (seed, row), so a row sounds the
same in any process, regardless of earlier speech. A pipeline pads a batch and returns the padding as if it were
speech: batches are for models that report the lengths of their clips (VITS, MMS) and refused for others.
A text that cannot be spoken gives a `Speech` with a reason in `failure`, for the caller to count.
Run: `[[speech]] = make_tts("espeak-ng").speak([[Job(0, "Name three rivers.")]])`
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import pipeline

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from ..data.shards import encode_flac, run_jobs
from .espeak import speak, variants, voices


ESPEAK = "espeak-ng"
MAX_SECONDS = 30.0  # Whisper's window; a longer instruction is an error of the synthesiser
REFUSED = "refused by the synthesiser"
SILENCE = 1e-3  # peak below which a clip (full scale 1) holds no speech: -60 dB

ESPEAK_SPEEDS = (130, 210)  # words per minute; people ask at 140 to 190
ESPEAK_PITCHES = (30, 70)  # 50 is the voice's own
# Voices for text in another script than their language's usual one.
OTHER_LETTERS = ("en-shaw", "cmn-latn-pinyin", "fa-latn")
# Robots, echoes, monsters, a game's loudspeakers and a speed test: not voices of people.
NO_PEOPLE = ("Demonic", "Storm", "Tweaky", "UniRobot", "anikaRobot", "announcer", "croak", "fast", "kaukovalta")
ROBOTS = "robosoft"
# Their breath comes from the C library's own random numbers, so no two utterances of a text are equal.
NEVER_THE_SAME = ("Reed", "caleb")

MODEL_SPEEDS = (0.8, 1.25)  # factors on a model's own pace
ESPEAK_BATCH = 8  # rows that a process takes at a time: about 0.1 s of work


class Job(NamedTuple):
    row: int
    text: str


class Manner(NamedTuple):
    voice: str  # espeak-ng's voice, or a model's speaker; "" if the model has one voice
    speed: float | None  # espeak-ng: words per minute; models: a factor on their own pace; None: cannot be chosen
    pitch: int | None  # espeak-ng: 0 to 99, where 50 is the voice's own; None: cannot be chosen


class Speech(NamedTuple):
    row: int
    manner: Manner
    flac: bytes = b""  # 16 kHz, mono, 16 bits
    seconds: float = 0.0
    failure: str = ""  # why there is no audio, in a few words
    detail: str = ""  # the synthesiser's own message


class TextToSpeech(Protocol):
    batch_size: int  # the best number of rows to give at a time
    versions: dict[str, str]  # of the packages that decide the samples

    def loses(self, text: str) -> bool:
        """Whether letters or digits of the text would be silently skipped."""

    def speak(self, batches: Sequence[Sequence[Job]]) -> Iterator[list[Speech]]:
        """The speeches of each batch, in order."""


def make_tts(
    name: str,
    language: str = "en",
    seed: int = 0,
    workers: int | None = None,
    batch_size: int = 1,
    device: str | None = None,
) -> TextToSpeech:
    """
    A synthesiser by name: `"espeak-ng"`, or a Hub id or folder that transformers' `text-to-audio` pipeline takes.

    Args:
        language: of espeak-ng's voices; a model's language is fixed.
        workers: processes of espeak-ng; by default one per core.
        batch_size, device: of the pipeline; by default it uses the accelerator if there is one.

    Raises:
        `ValueError`: no voice for the language, workers or batches that are not supported, a model that cannot be
            loaded or does not say its sampling rate.
    """
    if name == ESPEAK:
        if batch_size != 1:
            raise ValueError(
                f"got batch_size={batch_size}; espeak-ng speaks one text at a time: raise workers instead"
            )
        return EspeakTTS(language, seed, workers or os.cpu_count() or 1)
    if workers not in (None, 1):
        raise ValueError(f"got workers={workers}; a model runs in one process: raise batch_size instead")
    return PipelineTTS(name, seed, batch_size, device)


class EspeakTTS:
    """espeak-ng: all voices of a language, each with variants of both genders, in several processes."""

    batch_size = ESPEAK_BATCH

    def __init__(self, language: str, seed: int, workers: int):
        self.versions = {"espeakng-loader": version("espeakng-loader")}
        self._speak = partial(_speak_with_espeak, names=espeak_voices(language), seed=seed)
        self._workers = workers

    def loses(self, text: str) -> bool:
        return False

    def speak(self, batches: Sequence[Sequence[Job]]) -> Iterator[list[Speech]]:
        yield from run_jobs(self._speak, batches, self._workers)


def espeak_voices(language: str) -> tuple[list[str], list[str], list[str]]:
    """espeak-ng's voices for a language, and the variants that sound like women and like men."""
    tags = [tag for tag in voices(language) if tag not in OTHER_LETTERS]
    if not language or not tags:
        raise ValueError(
            f"got the language {language!r}, for which espeak-ng has no voice; it has {', '.join(voices(''))}"
        )
    left_out = NO_PEOPLE + NEVER_THE_SAME
    people = {name: gender for name, gender in variants().items() if name not in left_out and ROBOTS not in name}
    women = [name for name, gender in people.items() if gender == "female"]
    return tags, women, [name for name in people if name not in women]


def _speak_with_espeak(jobs: Sequence[Job], names: tuple[list[str], list[str], list[str]], seed: int) -> list[Speech]:
    return [_speak_one_with_espeak(job, names, seed) for job in jobs]


def _speak_one_with_espeak(job: Job, names: tuple[list[str], list[str], list[str]], seed: int) -> Speech:
    rng = np.random.default_rng([seed, job.row])
    tags, women, men = names
    # Gender first: espeak-ng has four times as many men as women.
    variant = rng.choice(women if rng.random() < 0.5 else men)
    speed, pitch = (int(rng.integers(*limits, endpoint=True)) for limits in (ESPEAK_SPEEDS, ESPEAK_PITCHES))
    manner = Manner(f"{rng.choice(tags)}+{variant}", speed, pitch)
    try:
        waveform, rate = speak(job.text, manner.voice, speed, pitch)
    except ValueError as error:  # nothing to pronounce
        return Speech(job.row, manner, failure=REFUSED, detail=str(error))
    return _finish(job, manner, waveform, rate)


class PipelineTTS:
    """
    A model of transformers' `text-to-audio` pipeline. Speaker and pace are varied if the model's forward takes
    `speaker_id` and `speaking_rate` (VITS, MMS); sampling, if a model samples, is seeded per batch. Models that need a
    speaker embedding or a reference recording are not supported: their rows fail with the model's error.

    Rows of a batch share speaker and pace. On one machine the same rows and batches give the same samples; another
    kind of processor rounds differently.
    """

    def __init__(self, name: str, seed: int, batch_size: int, device: str | None):
        self.versions = {package: version(package) for package in ("torch", "transformers")}
        try:
            self._pipe = pipeline("text-to-audio", model=name, device=device)
        except (OSError, ValueError) as error:
            raise ValueError(f"{name} cannot be loaded as a text-to-audio model: {error}") from error
        if not self._pipe.sampling_rate:
            raise ValueError(f"{name} does not say the sampling rate of its audio; use another model")
        self._seed, self.batch_size, self._name = seed, batch_size, name
        model = self._pipe.model
        accepted = inspect.signature(model.forward).parameters
        self._speakers = getattr(model.config, "num_speakers", 1) if "speaker_id" in accepted else 1
        self._has_speed = "speaking_rate" in accepted
        self._lengths: Any = None
        model.register_forward_hook(self._keep_lengths)

    def _keep_lengths(self, _model: Any, _inputs: Any, output: Any) -> None:
        self._lengths = getattr(output, "sequence_lengths", None)  # the pipeline itself drops them

    def loses(self, text: str) -> bool:
        tokenizer = self._pipe.tokenizer or self._pipe.processor.tokenizer
        # These transcribe the text before the lookup, so tokens are not letters of the text.
        if getattr(tokenizer, "phonemize", False) or getattr(tokenizer, "is_uroman", False):
            return False
        return _letters(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])) != _letters(text)

    def speak(self, batches: Sequence[Sequence[Job]]) -> Iterator[list[Speech]]:
        yield from map(self._speak_batch, batches)

    def _speak_batch(self, jobs: Sequence[Job]) -> list[Speech]:
        rng = np.random.default_rng([self._seed, jobs[0].row])
        manner, options = self._draw(rng)
        torch.manual_seed(int(rng.integers(2**63)))
        self._lengths = None
        try:
            outputs = self._pipe([job.text for job in jobs], batch_size=len(jobs), forward_params=options)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, IndexError) as error:  # what models raise for a text that they cannot speak
            if len(jobs) > 1:
                return [speech for job in jobs for speech in self._speak_batch([job])]
            return [Speech(jobs[0].row, manner, failure=REFUSED, detail=str(error))]
        waveforms = self._without_padding([output["audio"] for output in outputs])
        return [_finish(job, manner, waveform, self._pipe.sampling_rate) for job, waveform in zip(jobs, waveforms)]

    def _draw(self, rng: np.random.Generator) -> tuple[Manner, dict[str, Any]]:
        options: dict[str, Any] = {}
        if self._speakers > 1:
            options["speaker_id"] = int(rng.integers(self._speakers))
        if self._has_speed:
            options["speaking_rate"] = round(float(rng.uniform(*MODEL_SPEEDS)), 2)
        voice = str(options.get("speaker_id", ""))
        return Manner(voice, options.get("speaking_rate"), None), options

    def _without_padding(self, waveforms: list[np.ndarray]) -> list[np.ndarray]:
        if len(waveforms) == 1:
            return waveforms
        if self._lengths is None:
            raise ValueError(
                f"{self._name} does not report where the clips of a batch end, so padding would be taken for speech; "
                "pass --batch-size 1"
            )
        return [waveform[..., :length] for waveform, length in zip(waveforms, self._lengths.tolist())]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _finish(job: Job, manner: Manner, waveform: np.ndarray, rate: int) -> Speech:
    """A waveform of any rate as FLAC, or why it is not speech."""
    try:
        samples = load_audio(np.atleast_1d(waveform), rate, f"row {job.row}")
    except ValueError as error:  # empty or not finite
        return Speech(job.row, manner, failure="unusable audio", detail=str(error))
    seconds, peak = len(samples) / SAMPLING_RATE, float(np.abs(samples).max())
    if peak < SILENCE:
        return Speech(job.row, manner, failure="silence", detail=f"the loudest sample is {peak:.1g}")
    if seconds > MAX_SECONDS:
        return Speech(job.row, manner, failure=f"longer than {MAX_SECONDS:g} s", detail=f"{seconds:.1f} s")
    return Speech(job.row, manner, encode_flac(samples), seconds)
