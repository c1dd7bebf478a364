"""A pipeline whose answers depend on every clip and word, and clips as files."""

import pytest
import soundfile
from pipeline_calls import CLIPS
from transformers import pipeline


@pytest.fixture(scope="module")
def pipe(sensitive):
    return pipeline("audio-text-to-text", model=sensitive, max_new_tokens=8, do_sample=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> path of each clip, as float samples at 16 kHz."""
    path = tmp_path_factory.mktemp("clips")
    for name, clip in CLIPS.items():
        soundfile.write(path / f"{name}.wav", clip, 16_000, subtype="FLOAT")
    return {name: str(path / f"{name}.wav") for name in CLIPS}
