"""Phrases: what is played is what the answers say, heard with an FFT; the player is a synthesiser of sines."""

from collections import Counter
from random import Random

import numpy as np
import pytest
import soundfile
from tiny_debs import install_apt

from falcon3_audio.training.prepare.real_sounds import soundfonts
from falcon3_audio.training.prepare.real_sounds.soundfonts import RATE, draw_phrase, play, play_all, render
from falcon3_audio.training.prepare.real_sounds.tables import Package


NUMBERS = ("one", "two", "three", "four", "five")


@pytest.fixture(autouse=True)
def player(tmp_path, monkeypatch):
    install_apt(tmp_path / "bin", tmp_path, monkeypatch)


def synth(tmp_path):
    from tinysoundfont import Synth

    made = Synth(samplerate=RATE)
    (tmp_path / "a.sf2").write_bytes(b"font")
    made.sfload(str(tmp_path / "a.sf2"))
    return made


def pitch(samples):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 17))
    return round(69 + 12 * np.log2(spectrum.argmax() * RATE / (1 << 17) / 440))


def test_notes_are_played_when_they_should(tmp_path):
    samples = render(synth(tmp_path), [(0.0, 0.3, 60, 100), (0.5, 0.3, 67, 100)])
    assert len(samples) / RATE == pytest.approx(0.8 + 0.6, abs=1e-3) and samples.dtype == np.float32
    at = lambda start, end: samples[int(start * RATE) : int(end * RATE)]  # noqa: E731
    assert pitch(at(0.05, 0.25)) == 60 and pitch(at(0.55, 0.75)) == 67
    assert np.abs(at(0.35, 0.45)).max() == 0 == np.abs(at(0.85, 1.4)).max()


def test_answers_are_what_is_played():
    draw, kinds = Random(0), Counter()
    for _ in range(300):
        phrase = draw_phrase(draw, 60)
        kinds[phrase.kind] += 1
        pitches = [note[2] for note in phrase.notes]
        steps = np.sign(np.diff(pitches)).tolist()
        answer = phrase.fact.answer
        assert answer in phrase.fact.options and len(set(phrase.fact.options)) == 4
        if phrase.kind == "notes":
            assert NUMBERS[len(pitches) - 1] == answer
        elif phrase.kind == "chord":
            third = {4: "major", 3: "minor"}[pitches[1] - pitches[0]]
            style = "at once" if len({note[0] for note in phrase.notes}) == 1 else "note by note"
            assert answer == f"a {third} chord played {style}"
        else:
            turns = [step for step, before in zip(steps, [0, *steps]) if step != before]
            assert {"it rises": [1], "it falls": [-1], "it rises, then falls": [1, -1]}.get(answer, [-1, 1]) == turns
    assert min(kinds.values()) > 60


def test_clips_of_a_font(tmp_path):
    (tmp_path / "font.sf2").write_bytes(b"font")
    package = Package("musescore-general-soundfont", "1", "", 1, "MIT", ("soundfont",))
    splits = {"musescore-general-soundfont/a harp": "validation"}
    clips = list(play(package, tmp_path / "font.sf2", splits, tmp_path, 52, 0))
    assert len(clips) == 52 and {count for count in Counter(clip.name for clip in clips).values()} == {2}
    assert {clip.name for clip in clips if clip.split == "validation"} == {"a harp"}
    for clip in clips:
        samples, rate = soundfile.read(tmp_path / clip.path)
        assert clip.seconds == pytest.approx(len(samples) / rate, abs=1e-3) and 0.25 < np.abs(samples).max() < 0.81
    again = list(play(package, tmp_path / "font.sf2", splits, tmp_path / "again", 52, 0))
    assert [clip.labels for clip in again] == [clip.labels for clip in clips]
    (tmp_path / "font.sf2").write_bytes(b"silent")  # it has none of the instruments
    assert list(play(package, tmp_path / "font.sf2", splits, tmp_path, 4, 0)) == []


def test_all_fonts(tmp_path):
    packages = tuple(Package(name, "1", "", 1, "MIT", ("soundfont",)) for name in ("one", "two", "gone"))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.sf3").write_bytes(b"font")
        (tmp_path / name / "default.sf3").symlink_to("a.sf3")
    folders = {name: tmp_path / name for name in ("one", "two")}
    clips = list(play_all(packages, folders, {"two": "test"}, tmp_path, 4, 0))
    assert Counter((clip.source, clip.split) for clip in clips) == {("one", "train"): 4, ("two", "test"): 2}
    with pytest.raises(ValueError, match="has no soundfont"):
        soundfonts.soundfont_in(tmp_path / "bin")
