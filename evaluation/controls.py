"""Controls, on which a model should do worse: the same questions without the right audio.

"silence" plays zeros of the same length. "shuffled" plays the clip of another question, by one seeded permutation of
the clips in which none keeps its place, within a task if it has several clips. "text-only" plays nothing. A benchmark
on which a model does as well with a control does not measure its hearing.
"""

import io
import random
from collections.abc import Callable, Sequence
from functools import partial

import soundfile

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from .questions import TASK_KEYS, Clip, Question


Clips = tuple[Clip, ...]
Names = tuple[str, ...]  # of the clips of one question
BLOCK = 65_536  # frames per read


def heard(questions: Sequence[Question], control: str, seed: int = 0) -> list[Clips]:
    """
    The clips that are played with each question. `control` is a name in `CONTROLS`, `seed` is for "shuffled".

    Raises a `ValueError` for "shuffled" if no permutation gives each question only clips of other questions.
    """
    return CONTROLS[control](questions, seed)


def silence_like(data: bytes, name: str) -> bytes:
    """
    A wav file of zeros with the length of an encoded file, see `rewrite_as_wav`.

    Raises a `ValueError` for a file that `load_audio` rejects, so that the same questions fail with and without audio.
    """
    return rewrite_as_wav(data, name, volume=0.0)


def rewrite_as_wav(data: bytes, name: str, volume: float = 1.0) -> bytes:
    """
    A wav file (16 bits) with the frames, channels and rate of an encoded file, the samples times `volume`. For a file
    that soundfile cannot read (m4a, a flac without its length), it has what a model would hear: 16 kHz, mono.

    Raises a `ValueError` that names the clip if `load_audio` rejects the file.
    """
    samples = load_audio(data, name=name)
    try:
        return _rewrite(data, volume)
    except soundfile.LibsndfileError:
        wav = io.BytesIO()
        soundfile.write(wav, volume * samples, SAMPLING_RATE, "PCM_16", format="WAV")
        return wav.getvalue()


def _rewrite(data: bytes, volume: float) -> bytes:
    wav = io.BytesIO()
    with (
        soundfile.SoundFile(io.BytesIO(data)) as source,
        soundfile.SoundFile(wav, "w", source.samplerate, source.channels, "PCM_16", format="WAV") as target,
    ):
        while len(block := source.read(BLOCK, always_2d=True)):
            target.write(volume * block)
    return wav.getvalue()


def _everything(questions: Sequence[Question], seed: int) -> list[Clips]:
    return [question.audio for question in questions]


def _silence(questions: Sequence[Question], seed: int) -> list[Clips]:
    return [
        tuple(Clip(clip.name, partial(_read_silent, clip), clip.path) for clip in question.audio)
        for question in questions
    ]


def _read_silent(clip: Clip) -> bytes:
    return silence_like(clip.read(), clip.name)


def _nothing(questions: Sequence[Question], seed: int) -> list[Clips]:
    return [() for _ in questions]


def _shuffled(questions: Sequence[Question], seed: int) -> list[Clips]:
    clips = {_names(question): question.audio for question in questions if question.audio}
    other: dict[Names, Names] = {}
    rng = random.Random(seed)
    for bucket in _buckets(questions):
        rng.shuffle(bucket)
        other |= _rotate(bucket)
    return [clips[other[_names(question)]] if question.audio else () for question in questions]


def _buckets(questions: Sequence[Question]) -> list[list[Names]]:
    """The groups to shuffle within: by number of clips and task. A group of one joins the largest other group."""
    task_of: dict[Names, str] = {}
    for question in questions:
        if question.audio:
            task = next((question.groups[key] for key in TASK_KEYS if key in question.groups), "")
            task_of.setdefault(_names(question), task)
    buckets: dict[tuple[int, str], list[Names]] = {}
    for names, task in task_of.items():
        buckets.setdefault((len(names), task), []).append(names)
    for key in [key for key, bucket in buckets.items() if len(bucket) == 1]:
        others = [other for other in buckets if other != key]
        if others and len(buckets[key]) == 1:  # no other has joined it meanwhile
            largest = max(others, key=lambda other: (other[0] == key[0], len(buckets[other])))
            buckets[largest] += buckets.pop(key)
    return list(buckets.values())


def _rotate(bucket: list[Names]) -> dict[Names, Names]:
    """Maps each to the one a fixed number of places further on, which has none of its own clips."""
    for places in range(1, len(bucket)):
        pairs = dict(zip(bucket, bucket[places:] + bucket[:places]))
        if all(set(own).isdisjoint(other) for own, other in pairs.items()):
            return pairs
    raise ValueError(
        f"The clips cannot be shuffled: {len(bucket)} in the group of {bucket[0]}, and no rotation of their seeded "
        "order gives each question only clips of other questions. Ask more questions, or use the control 'silence'."
    )


def _names(question: Question) -> Names:
    return tuple(clip.name for clip in question.audio)


CONTROLS: dict[str, Callable[[Sequence[Question], int], list[Clips]]] = {
    "none": _everything,
    "silence": _silence,
    "shuffled": _shuffled,
    "text-only": _nothing,
}
