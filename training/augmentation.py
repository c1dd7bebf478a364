"""Augmentation of training clips: speed, rooms, noise, gain, and SpecAugment on the log-mel features.

All of it is off unless a recipe has `augmentation`, a mapping of what to apply:

    augmentation:
      prob: 0.5                            # of each of these, for each clip
      speed: [0.9, 1.0, 1.1]               # one of them: Ko et al. 2015
      impulse_responses: rooms/            # a folder of room impulse responses
      noise_snr_db: [5, 30]                # from, to; white noise, or an excerpt of a file in the folder `noise`
      noise: noises/
      gain_db: [-6, 6]
      mask_time_prob: 0.05                 # SpecAugment (arXiv 1904.08779), as transformers' WhisperConfig has it
      mask_time_length: 10                 # frames of 10 ms
      mask_feature_prob: 0.05
      mask_feature_length: 10              # mel bands

It runs in the data loader's workers, where clips are decoded, and only on training questions. The result depends only
on the seed, the row, and how many times its set was passed over before (`weight` passes per epoch): not on the batch,
the device, the number of workers, or whether the run was stopped and resumed. Questions that share a clip share the
augmented clip within a pass.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from scipy.signal import fftconvolve

from falcon3_audio.processing import SAMPLING_RATE, UnreadableAudioError, load_audio
from falcon3_audio.processing.messages_falcon3_audio import load_item

from .data.files import find_files
from .data.sampler import PASS


SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
LONG_ENOUGH = 0.01  # seconds that must remain of a clip
RANGES = ("gain_db", "noise_snr_db")
FOLDERS = ("noise", "impulse_responses")
SHARES = ("prob", "mask_time_prob", "mask_feature_prob")


@dataclass(frozen=True)
class Augmentation:
    """
    The augmentation of a recipe, checked. See the top of this file.

    Raises a `ValueError` for invalid values, and if nothing is enabled.
    """

    prob: float = 0.5
    speed: Sequence[float] | None = None
    impulse_responses: str | None = None
    noise_snr_db: Sequence[float] | None = None
    noise: str | None = None
    gain_db: Sequence[float] | None = None
    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    def __post_init__(self):
        for name in RANGES:
            value = getattr(self, name)
            if value is not None and not (_are_numbers(value) and len(value) == 2 and value[0] <= value[1]):
                raise ValueError(f"augmentation: {name} must be two numbers, from and to, got {value!r}.")
        if self.speed is not None and not (
            _are_numbers(self.speed) and self.speed and all(0.5 <= f <= 2 for f in self.speed)
        ):
            raise ValueError(f"augmentation: speed must be a list of factors from 0.5 to 2, got {self.speed!r}.")
        for name in SHARES:
            if not (_are_numbers([getattr(self, name)]) and 0 <= getattr(self, name) <= 1):
                raise ValueError(f"augmentation: {name} must be a share from 0 to 1, got {getattr(self, name)!r}.")
        for name in ("mask_time_length", "mask_feature_length"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(
                    f"augmentation: {name} must be a whole number of at least 1, got {getattr(self, name)!r}."
                )
        for name in FOLDERS:
            sound_files(getattr(self, name), name)
        if self.noise and not self.noise_snr_db:
            raise ValueError("augmentation: `noise` needs noise_snr_db, its level: for example [5, 30].")
        if not self.prob or not self.described():
            raise ValueError("augmentation enables nothing; leave it out, or give speed, noise_snr_db, ...")

    def described(self) -> str:
        """What is applied, for the plan of a run."""
        wanted = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if not field.name.endswith("_length")
        }
        return ", ".join(f"{name} {value}" for name, value in wanted.items() if value and name != "prob")


def read_augmentation(given: Any) -> dict[str, Any] | None:
    """
    The mapping from a recipe or from the command line (JSON), with the fields of `Augmentation`.

    Raises a `ValueError` for anything else.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"augmentation must be a JSON object on the command line, got {given!r}: {error}"
            ) from error
    if given is None:
        return None
    known = [field.name for field in dataclasses.fields(Augmentation)]
    if not isinstance(given, dict) or not given.keys() <= set(known):
        raise ValueError(f"augmentation must be a mapping with any of {', '.join(known)}; got {given!r}.")
    Augmentation(**given)
    return given


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)


def sound_files(folder: str | None, name: str) -> list[str]:
    """The audio files in a folder and its subfolders, sorted; [] for `None`. Raises `ValueError` if there are none."""
    if folder is None:
        return []
    found = [str(path) for path in find_files(Path(str(folder)), SUFFIXES)]
    if not found:
        raise ValueError(
            f"augmentation: {name} must be a folder with audio files ({', '.join(SUFFIXES)}); there are none in "
            f"{folder}."
        )
    return found


class Augmenter:
    """
    Args:
        options: what to apply.
        seed: of the run.
        longest: the processor's limit in seconds; a clip that slowing down would make longer keeps its speed.
    """

    def __init__(self, options: Augmentation, seed: int, longest: float | None = None):
        self.options, self.seed, self.longest = options, seed, longest
        self._noises, self._rooms = (sound_files(getattr(options, name), name) for name in FOLDERS)

    def of_example(self, example: dict[str, Any]) -> dict[str, Any]:
        """
        The example with samples instead of its clips' sources.

        Raises the errors of `load_audio` for its clips, and an `OSError` for a noise or room file that cannot be read.
        """
        draw = self._draw(example, "sounds")
        messages = [
            message
            if isinstance(message["content"], str)
            else message | {"content": [self._item(item, number, draw) for item in message["content"]]}
            for number, message in enumerate(example["messages"])
        ]
        return example | {"messages": messages}

    def _item(self, item: dict[str, Any], message: int, draw: np.random.Generator) -> dict[str, Any]:
        if item["type"] != "audio":
            return item
        samples = self.of_samples(load_item(item, None, message)["audio"], draw)
        return {"type": "audio", "audio": samples, "sampling_rate": SAMPLING_RATE}

    def of_samples(self, samples: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Samples at 16 kHz, `(samples,)`, float32, with a peak of at most 1."""
        options = self.options
        if options.speed and self._is_due(draw):
            samples = self._faster(samples, float(draw.choice(options.speed)))
        if self._rooms and self._is_due(draw):
            samples = in_room(samples, _one_of(self._rooms, FOLDERS[1], draw))
        if options.noise_snr_db and self._is_due(draw):
            samples = with_noise(samples, self._noise(len(samples), draw), _between(options.noise_snr_db, draw))
        if options.gain_db and self._is_due(draw):
            samples = samples * 10 ** (_between(options.gain_db, draw) / 20)
        return (samples / max(1.0, float(np.abs(samples).max()))).astype(np.float32)

    def of_features(self, example: dict[str, Any], features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Log-mel features `(audios, mel bands, frames)` with spans of the clips' frames and bands set to 0, as in
        transformers' Whisper. The silence after a clip stays: frames of only zeros would be padding.

        Args:
            mask: `(audios, frames)`, 1 where there is a clip.
        """
        draw, options = self._draw(example, "features"), self.options
        features = features.clone()
        for audio, frames in zip(features, mask.sum(-1).tolist()):
            clip = audio[:, : int(frames)]
            if options.mask_time_prob and self._is_due(draw):
                for start in _spans(int(frames), options.mask_time_prob, options.mask_time_length, draw):
                    clip[:, start : start + options.mask_time_length] = 0
            if options.mask_feature_prob and self._is_due(draw):
                for start in _spans(len(audio), options.mask_feature_prob, options.mask_feature_length, draw):
                    clip[start : start + options.mask_feature_length] = 0
        return features

    def _is_due(self, draw: np.random.Generator) -> bool:
        return draw.random() < self.options.prob

    def _draw(self, example: dict[str, Any], what: str) -> np.random.Generator:
        """Seeded by the pass, and by the clip if several rows share it, else by the row."""
        name = example.get("clip") or example.get("origin") or ""
        digest = hashlib.sha256(f"{what} {name}".encode()).digest()
        return np.random.default_rng([self.seed, example.get(PASS, 0), int.from_bytes(digest[:8])])

    def _faster(self, samples: np.ndarray, factor: float) -> np.ndarray:
        seconds = len(samples) / SAMPLING_RATE / factor
        if factor == 1 or seconds < LONG_ENOUGH or self.longest is not None and seconds > self.longest:
            return samples
        return soxr.resample(samples, SAMPLING_RATE * factor, SAMPLING_RATE)

    def _noise(self, length: int, draw: np.random.Generator) -> np.ndarray:
        if not self._noises:
            return draw.standard_normal(length, dtype=np.float32)
        noise = _one_of(self._noises, FOLDERS[0], draw)
        start = int(draw.integers(len(noise)))
        return np.resize(np.roll(noise, -start), length)  # wraps around at the end


def _one_of(files: Sequence[str], option: str, draw: np.random.Generator) -> np.ndarray:
    """The samples of a random file from an option's folder."""
    try:
        return load_audio(str(draw.choice(files)))
    except UnreadableAudioError as error:
        # `UnreadableAudioError` would blame a training clip: its row would be named, or skipped.
        raise OSError(
            f"augmentation: a file of `{option}` cannot be used; fix it, or remove it from the folder: {error}"
        ) from error


def _between(limits: Sequence[float], draw: np.random.Generator) -> float:
    return float(draw.uniform(limits[0], limits[1]))


def with_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Samples with noise added, `snr_db` decibels below their mean power; unchanged if either is silent."""
    signal, power = float(np.mean(samples**2)), float(np.mean(noise**2))
    if not signal or not power:
        return samples
    return samples + noise * np.sqrt(signal / power / 10 ** (snr_db / 10))


def in_room(samples: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Samples as heard in a room, with loudness, length and timing kept: the response starts at its direct sound."""
    heard = fftconvolve(samples, response[int(np.abs(response).argmax()) :])[: len(samples)]
    power = float(np.mean(heard**2))
    return heard * np.sqrt(np.mean(samples**2) / power) if power else samples


def _spans(length: int, share: float, span: int, draw: np.random.Generator) -> list[int]:
    """Starts of spans that cover a share of the length (some may overlap); their number is rounded at random."""
    count = int(share * length / span + draw.random())
    return [int(draw.integers(max(1, length - span + 1))) for _ in range(count)]
