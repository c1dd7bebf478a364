"""A segment of an audio file as a clip: a row's `offset` and `duration`, as in manifests of NeMo.

It is decoded when it is used, in the data loader's workers. Files in which libsndfile finds a sample exactly are read
from that place, so the cost of a segment only depends on its length. Others are decoded from their start and cut, and
so is a file whose end matters: only `load_audio` sees whether it is truncated, or another file follows.
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
from falcon3_audio.processing.audio_files_falcon3_audio import gives_length


SEEKABLE = ("WAV", "WAVEX", "FLAC", "AIFF", "RF64", "AU", "CAF")  # formats with samples at known places
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
        # If it is a number, it would be opened, and then closed, as that file descriptor of this process.
        is_path = isinstance(self.source, str) and Path(self.source).is_file()
        if self.duration is None or not (is_path or isinstance(self.source, bytes)):
            return None
        try:
            with open(self.source, "rb") if is_path else io.BytesIO(self.source) as file:
                with soundfile.SoundFile(file) as sound:
                    rate, kind, held = sound.samplerate, sound.format, sound.frames
                    first, last = round(self.offset * rate), round((self.offset + self.duration) * rate)
                    if kind not in SEEKABLE or last > held:
                        return None
                    sound.seek(first)
                    samples = sound.read(last - first, dtype="float32", always_2d=True)
                if not gives_length(file, kind, held):
                    return None
        except (soundfile.SoundFileError, OSError):
            return None  # `load_audio` reads more formats, and says what is wrong
        return (samples, rate) if len(samples) == last - first else None

    def _cut(self) -> tuple[np.ndarray, int]:
        last = None if self.duration is None else round((self.offset + self.duration) * SAMPLING_RATE)
        return load_audio(self.source)[round(self.offset * SAMPLING_RATE) : last, None], SAMPLING_RATE
