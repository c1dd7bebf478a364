"""Segments of files, sample for sample."""

import io
import os
import pickle

import numpy as np
import pytest
import soundfile
from tiny import SAMPLING_RATE

from falcon3_audio.processing import load_audio
from falcon3_audio.training.data.segments import Segment


@pytest.fixture
def samples():
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2 * SAMPLING_RATE, 1)).astype(np.float32)


def encoded(samples, kind, rate=SAMPLING_RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_segment_is_that_part_of_the_whole(samples, tmp_path, kind):
    data = encoded(samples, kind)
    (tmp_path / "talk").write_bytes(data)
    whole = load_audio(data)
    for source in (data, str(tmp_path / "talk")):
        for offset, duration in ((0.0, 0.5), (0.7512, 0.25), (1.5, None), (0.0, None)):
            first, last = round(offset * SAMPLING_RATE), round((offset + (duration or 2)) * SAMPLING_RATE)
            heard = load_audio(pickle.loads(pickle.dumps(Segment(source, offset, duration))))
            np.testing.assert_array_equal(heard, whole[first:last])


def test_channels_and_rates_are_those_of_the_file(samples):
    """At 8 kHz, the second channel silent."""
    stereo = np.concatenate([samples, np.zeros_like(samples)], axis=1)
    heard = load_audio(Segment(encoded(stereo, "WAV", 8_000), 1.0, 0.5))
    expected = load_audio(encoded(stereo[8_000:12_000], "WAV", 8_000))
    np.testing.assert_allclose(heard, expected, atol=1e-6)
    assert heard.shape == (SAMPLING_RATE // 2,)


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_a_segment_that_is_not_in_the_file_is_an_error(samples, kind):
    data = encoded(samples, kind)
    whole = len(load_audio(data)) / SAMPLING_RATE
    assert len(load_audio(Segment(data, 1.0, whole - 0.95))) == round((whole - 1) * SAMPLING_RATE)  # a rounded length
    for offset, duration in ((1.0, whole), (whole + 1, None), (whole + 1, 0.05)):
        with pytest.raises(
            ValueError, match="are needed, but the file ends before that. `offset` and `duration` are in seconds"
        ):
            load_audio(Segment(data, offset, duration))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no file '.*gone.wav'"):
        load_audio(Segment(str(tmp_path / "gone.wav"), 0.0, 1.0))
    (tmp_path / "text.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="text.wav"):
        load_audio(Segment(str(tmp_path / "text.wav"), 0.0, 1.0))


@pytest.mark.parametrize("source", [True, 1.5, None, {"a": 1}])
def test_what_is_no_source_is_an_error(source):
    with pytest.raises((TypeError, ValueError), match="expected"):
        load_audio(Segment(source, 0.0, 1.0))


def test_a_number_is_no_file_that_is_open(samples, tmp_path):
    """soundfile treats it as one, and then closes it."""
    (tmp_path / "talk.wav").write_bytes(encoded(samples, "WAV"))
    with open(tmp_path / "talk.wav", "rb") as file:
        with pytest.raises(TypeError, match="is a int; expected a path"):
            load_audio(Segment(file.fileno(), 0.0, 1.0))
        os.fstat(file.fileno())


def test_samples_have_segments_too(samples):
    whole = samples[:, 0]
    for source in ({"array": whole, "sampling_rate": SAMPLING_RATE}, whole.tolist()):
        np.testing.assert_array_equal(load_audio(Segment(source, 0.5, 0.25)), whole[8_000:12_000])


def test_long_files_are_not_decoded_for_a_segment(samples, monkeypatch):
    monkeypatch.setattr("falcon3_audio.training.data.segments.load_audio", lambda *_: pytest.fail("decoded"))
    for kind in ("WAV", "FLAC"):
        assert len(load_audio(Segment(encoded(samples, kind), 1.0, 0.5))) == SAMPLING_RATE // 2
