"""A segment of an audio file as a clip: a row's `offset` and `duration`, as in manifests of NeMo.

It is decoded when it is used, in the data loader's workers. Files in which libsndfile finds a sample exactly are read
from that place, so the cost of a segment only depends on its length; others are decoded from their start and cut.
Run: `load_audio(Segment("talk.wav", 12.5, 3.0))`
"""

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import torch

from falcon3_audio.processing import SAMPLING_RATE, load_audio


SEEKABLE = ("WAV", "WAVEX", "FLAC", "AIFF", "W64", "RF64", "AU", "CAF")  # formats with samples at known places
TOLERANCE = 0.1  # seconds by which a segment may end after its file: lengths in manifests are rounded


class Segment:
    """
    A clip that `load_audio` takes, with the interface of torchcodec's `AudioDecoder`.

    Args:
        source: path, URL or bytes of the whole file, or anything else that `load_audio` takes.
        offset: where it starts, in seconds.
        duration: its length, in seconds; `None` for the rest of the file.
    """

    def __init__(self, source: Any, offset: float = 0.0, duration: float | None = None):
        self.source, self.offset, self.duration = source, offset, duration

    @property
    def _name(self) -> str:
        return f"{len(self.source)} bytes" if isinstance(self.source, bytes) else f"{self.source!s:.200}"

    def __repr__(self) -> str:
        return f"Segment({self._name!r}, offset={self.offset:g}, duration={self.duration})"

    def get_all_samples(self) -> SimpleNamespace:
        """
        `data`, float32 of shape `(channels, samples)`, and `sample_rate` in Hz.

        Raises:
            `ValueError`: if the file cannot be read, or ends before the segment does.
            `TypeError`: if the source has another type.
        """
        samples, rate = self._seek() or self._cut()
        missing = (
            math.inf if len(samples) == 0 else 0.0 if self.duration is None else self.duration - len(samples) / rate
        )
        if missing > TOLERANCE:
            to = "its end" if self.duration is None else f"{self.offset + self.duration:g} s"
            raise ValueError(
                f"seconds {self.offset:g} to {to} of {self._name} are needed, but the file ends before that. `offset` "
                "and `duration` are in seconds"
            )
        return SimpleNamespace(data=torch.from_numpy(np.ascontiguousarray(samples.T)), sample_rate=rate)

    def _seek(self) -> tuple[np.ndarray, int] | None:
        """`(samples, channels)` and their rate, or `None` if the file must be decoded from its start."""
        file = io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source
        # If it is a number, soundfile would open, and then close, that file descriptor of this process.
        if not isinstance(file, io.BytesIO) and not (isinstance(file, str) and Path(file).is_file()):
            return None
        try:
            with soundfile.SoundFile(file) as sound:
                if sound.format not in SEEKABLE:
                    return None
                first, last = self._places(sound.samplerate, sound.frames)
                sound.seek(first)
                return sound.read(last - first, dtype="float32", always_2d=True), sound.samplerate
        except (soundfile.SoundFileError, OSError):
            return None  # `load_audio` reads more formats, and says what is wrong

    def _cut(self) -> tuple[np.ndarray, int]:
        samples = load_audio(self.source)
        first, last = self._places(SAMPLING_RATE, len(samples))
        return samples[first:last, None], SAMPLING_RATE

    def _places(self, rate: int, length: int) -> tuple[int, int]:
        first = min(round(self.offset * rate), length)
        if self.duration is None:
            return first, length
        return first, min(round((self.offset + self.duration) * rate), length)
