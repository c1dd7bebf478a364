"""A stand-in with the interface of torchcodec's decoder, for formats that soundfile does not know."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from tiny import tone


M4A = b"\0\0\0\x20ftypM4A " + bytes(500)


def stand_in(monkeypatch) -> SimpleNamespace:
    """Decodes what is no file to soundfile as 2 s in stereo at 44.1 kHz; `announced` is the header's duration."""
    samples = torch.from_numpy(np.stack([tone(2.0, 440, 44_100), tone(2.0, 997, 44_100)]))
    module = SimpleNamespace(announced=2.0, samples=samples)

    class AudioDecoder:
        def __init__(self, source, *, stream_index=None, sample_rate=None, num_channels=None):
            if source != M4A:
                raise ValueError("No valid stream found in input file.\nIs it audio?")
            self.metadata = SimpleNamespace(duration_seconds_from_header=module.announced)

        def get_samples_played_in_range(self, start_seconds=0.0, stop_seconds=None):
            stop = None if stop_seconds is None else round(stop_seconds * 44_100)
            return SimpleNamespace(data=samples[:, :stop], sample_rate=44_100)

        def get_all_samples(self):
            return self.get_samples_played_in_range()

    decoders = ModuleType("torchcodec.decoders")
    decoders.AudioDecoder = AudioDecoder
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    return module
