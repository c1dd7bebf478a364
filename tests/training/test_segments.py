"""Segments of files, sample for sample."""

import io
import os
import pickle

import numpy as np
import pytest
import soundfile
from ffmpeg_files import flac_of_a_stream
from sound_files import LONG, SHORT, chunk, put, streamed_wav
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
    wav, flac, caf = (encoded(samples, kind) for kind in ("WAV", "FLAC", "CAF"))
    more = bytes(100_000)
    large = wav[:12] + chunk(b"LIST", more) + wav[12:]
    at = caf.index(b"data")
    files = {
        "wav": wav,
        "flac": flac,
        "wav with a large chunk": put(large, 4, (len(large) - 8).to_bytes(4, "little")),
        "caf with a large chunk": caf[:at] + b"free" + len(more).to_bytes(8, "big") + more + caf[at:],
        **{
            f"flac, {kind}": flac[:42] + bytes([kind]) + len(more).to_bytes(3, "big") + more + flac[42:]
            for kind in (1, 2)
        },
    }
    for data in files.values():
        assert len(load_audio(Segment(data, 1.0, 0.5))) == SAMPLING_RATE // 2


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "AU", "MP3", "OGG"])
def test_segments_of_joined_files(samples, tmp_path, kind):
    first, second = encoded(samples[:SAMPLING_RATE], kind), encoded(samples[SAMPLING_RATE:], kind)
    (tmp_path / "talk").write_bytes(first + second)
    whole = np.concatenate([load_audio(first), load_audio(second)])
    for source in (first + second, str(tmp_path / "talk")):
        for offset, duration in ((0.25, 0.5), (0.5, None), (0.75, 0.5), (1.25, 0.5)):
            start, end = round(offset * SAMPLING_RATE), round((offset + (duration or 2)) * SAMPLING_RATE)
            np.testing.assert_array_equal(load_audio(Segment(source, offset, duration)), whole[start:end])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_segments_of_wav_from_streams(size):
    """A header does not become samples, whether the segment has an end or not."""
    files = streamed_wav(SHORT, size), streamed_wav(LONG, size)
    for data in (files[0], b"".join(files)):
        whole = load_audio(data)
        assert len(whole) in (len(SHORT), len(SHORT) + len(LONG))
        for offset, duration in ((0.25, 0.5), (0.5, None), (len(whole) / SAMPLING_RATE - 0.5, 0.5)):
            start = round(offset * SAMPLING_RATE)
            heard = load_audio(Segment(data, offset, duration))
            np.testing.assert_array_equal(heard, whole[start:][: duration and round(duration * SAMPLING_RATE)])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "AIFF", "CAF", "W64", "RF64", "MP3", "OGG"])
def test_the_end_of_a_truncated_file_is_an_error(samples, kind):
    data = encoded(samples, kind)
    data = data[: len(data) // 2]
    for offset, duration in ((0.5, None), (0.0, None), (0.5, 1.5), (0.95, 0.1)):
        with pytest.raises(ValueError, match="truncated|decoded"):
            load_audio(Segment(data, offset, duration))


def test_flac_of_unknown_length_has_segments(samples):
    streamed = flac_of_a_stream(samples, SAMPLING_RATE)
    for joined in (streamed, streamed + streamed):
        heard = load_audio(Segment(joined, len(load_audio(joined)) / SAMPLING_RATE - 0.5, 0.5))
        np.testing.assert_array_equal(heard, load_audio(streamed)[-8_000:])
