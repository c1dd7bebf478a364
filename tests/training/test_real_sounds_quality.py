"""Which recordings are refused, and why; copies and near copies across splits."""

from collections import Counter

import numpy as np
import pytest
import soundfile
from tiny import tone

from falcon3_audio.training.prepare.real_sounds import quality
from falcon3_audio.training.prepare.real_sounds.clips import Clip
from falcon3_audio.training.prepare.real_sounds.facts import sound_facts, text_facts
from falcon3_audio.training.prepare.real_sounds.quality import accept, find_fault, near_copies, read_audio


RATE = 16_000


def write(path, samples, rate=RATE):
    soundfile.write(path, samples, rate, subtype="FLOAT", format="WAV")
    return path


def hiss(seed, seconds=1.0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def sound(file, label="a dog", split="train"):
    labels = {"sound": label, "trust": "A"}
    return Clip(file, "game", "CC0-1.0", "sound", labels, "game", "game", sound_facts(label), split)


@pytest.mark.parametrize(
    "samples, fault",
    [
        (hiss(0), ""),
        (hiss(0, 0.05), "too short"),
        (hiss(0, 31), "too long"),
        (hiss(0) * 0.001, "silent"),
        (np.pad(hiss(0, 0.02), (0, 5 * RATE)), ""),
        (np.sign(hiss(0)), "clipped"),
        (hiss(0) * 0.1 + 0.3, "constant"),
    ],
)
def test_faults(tmp_path, samples, fault):
    found, seconds = find_fault(write(tmp_path / "a.wav", samples))
    assert found == fault and seconds == pytest.approx(len(samples) / RATE, abs=1e-3)


def test_unreadable(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF....nothing")
    assert find_fault(tmp_path / "a.wav") == ("unreadable", 0.0)


def test_reading(tmp_path):
    stereo = np.stack([tone(1, 440), -tone(1, 440) + tone(1, 880)], axis=1)
    path = write(tmp_path / "a.wav", stereo)
    samples, rate = read_audio(path)
    assert rate == RATE
    np.testing.assert_allclose(samples, tone(1, 880) / 2, atol=1e-6)
    samples, rate = read_audio(path, 8000, 0.5)
    assert rate == 8000 and len(samples) == 4000
    assert np.abs(np.fft.rfft(samples)).argmax() * 8000 / 4000 == 880


def test_copies_stay_on_the_tested_side(tmp_path):
    files = [write(tmp_path / f"{name}.wav", hiss(seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    clips = [sound(files[0]), sound(files[1], split="test"), sound(files[2])]
    refused: Counter = Counter()
    assert [clip.file.name for clip in accept(clips, refused, tmp_path / "notes.json")] == ["b.wav", "c.wav"]
    assert refused == {("game", "copy"): 1}


def test_a_copy_with_another_label_is_no_evidence(tmp_path):
    files = [write(tmp_path / f"{name}.wav", hiss(1)) for name in "ab"]
    refused: Counter = Counter()
    assert accept([sound(files[0]), sound(files[1], "a cat")], refused, tmp_path / "notes.json") == []
    assert refused == {("game", "copy"): 1, ("game", "copies with other labels"): 1}


def test_near_copies(tmp_path):
    heard = hiss(1, 2)
    trained = sound(write(tmp_path / "a.wav", heard))
    cut = sound(write(tmp_path / "cut.wav", 0.3 * heard[3000:]), split="test")
    coded = sound(tmp_path / "coded.ogg", split="test")
    soundfile.write(coded.file, heard, RATE)
    other = sound(write(tmp_path / "other.wav", hiss(2, 2)), split="test")
    elsewhere = sound(cut.file, "a cat", split="test")
    clips = [trained, cut, coded, other, elsewhere]
    assert near_copies(clips, [1, 2, 3, 4], [0]) == {1, 2}
    refused: Counter = Counter()
    kept = accept(clips[:4], refused, tmp_path / "notes.json")
    assert [clip.file.name for clip in kept] == ["other.wav", "a.wav"]
    assert refused == {("game", "near copy of a training clip"): 2}


def test_a_text_that_nobody_could_say_so_fast(tmp_path):
    file = write(tmp_path / "a.wav", hiss(1, 0.5))
    labels = {"language": "English", "text": "much too long a text", "english": "long"}
    clip = Clip(file, "game", "MIT", "speech", labels, "v", "v", text_facts(labels["text"], "English"))
    refused: Counter = Counter()
    (kept,) = accept([clip], refused, tmp_path / "notes.json")
    assert kept.labels == {"language": "English"} and kept.facts == []
    assert refused == {("game", "text too long for the clip (only the text)"): 1}


def test_files_are_listened_to_once(tmp_path, monkeypatch):
    clips = [sound(write(tmp_path / "a.wav", hiss(1))), sound(write(tmp_path / "b.wav", hiss(1, 0.05)))]
    first: Counter = Counter()
    kept = accept(clips, first, tmp_path / "notes.json")
    monkeypatch.setattr(quality, "find_fault", None)
    second: Counter = Counter()
    assert accept(clips, second, tmp_path / "notes.json") == kept and first == second == {("game", "too short"): 1}
