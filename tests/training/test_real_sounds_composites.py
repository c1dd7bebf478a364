"""Composites contain what their labels and answers say, measured by correlation with their parts."""

import numpy as np
import pytest
import soundfile

from falcon3_audio.training.prepare.real_sounds.clips import MIXED, TEST, TRAIN, VALIDATION, Clip
from falcon3_audio.training.prepare.real_sounds.composites import Composer, are_countable, joined, level, tellable


RATE = 16_000


def recording(folder, name, split=TRAIN, seconds=0.7):
    """A distinct noise between silences."""
    samples = np.random.default_rng(len(list(folder.iterdir()))).normal(0, 0.1, int(seconds * RATE))
    path = folder / f"{name}.wav"
    soundfile.write(path, np.pad(samples, 1600), RATE)
    return path, seconds + 0.2


def sound(folder, label, split=TRAIN):
    path, seconds = recording(folder, f"{label}-{split}")
    clip = Clip(path, "game", "CC0-1.0", "sound", {"sound": label, "trust": "A"}, "game", "game", split=split)
    clip.seconds, clip.path = seconds, path.name
    return clip


def speech(folder, voice, index, language, **labels):
    path, seconds = recording(folder, f"{voice}-{index}")
    clip = Clip(path, "talk", "MIT", "speech", {"language": language, **labels}, voice, voice)
    clip.seconds, clip.path = seconds, path.name
    return clip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "parts").mkdir()
    return tmp_path / "parts"


def compose(clips, out, split=TRAIN, times=8, seed=0):
    return Composer(clips, out, split, seed).run(range(times))


def kind(made, name):
    return [clip for clip in made if clip.labels["composite"] == name]


def places(made, part):
    """Where a part occurs in a composite, in seconds: correlations near one."""
    heard, _ = soundfile.read(made.file)
    own = level(soundfile.read(part.file)[0])[300:4000]
    scores = np.correlate(heard, own)
    energy = np.convolve(heard**2, np.ones(len(own)), "valid")
    close = np.flatnonzero(scores > 0.9 * np.sqrt(energy * np.sum(own**2)))
    return close[np.diff(close, prepend=-RATE) > 100] / RATE


def test_orders_and_counts(folder, tmp_path):
    clips = [sound(folder, label) for label in ("a dog", "thunder", "a cello")]
    by_label = {clip.name: clip for clip in clips}
    made = compose(clips, tmp_path)
    for order in kind(made, "sound order"):
        first, second = order.labels["sounds"]
        (start,), (later,) = places(order, by_label[first]), places(order, by_label[second])
        assert later - start == pytest.approx(0.7 + 0.4, abs=0.1)
        assert [fact.answer for fact in order.facts] == [first, second]
        assert [fact.beside for fact in order.facts] == [second, first]
    numbers = set()
    for counted in kind(made, "sound count"):
        number = len(places(counted, by_label[counted.labels["sound"]]))
        assert (
            number == counted.labels["count"]
            and counted.facts[0].answer == ("one", "two", "three", "four")[number - 1]
        )
        numbers.add(number)
    assert len(numbers) > 1 and len(made) == 16  # no speech, so nothing else


def test_speech(folder, tmp_path):
    voices = {"a": "English", "b": "French", "c": "Czech", "d": "Dutch"}
    clips = [
        speech(folder, voice, index, language, **({"number": word} if voice == "a" else {}))
        for voice, language in voices.items()
        for index, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven"))
    ]
    by_path = {clip.path: clip for clip in clips}
    made = compose([*clips, sound(folder, "a dog")], tmp_path)
    for clip in kind(made, "speakers"):
        assert (
            clip.labels["speakers"] == len({by_path[part].voice for part in clip.made_of}) and len(clip.made_of) == 4
        )
    for clip in kind(made, "languages"):
        assert clip.labels["languages"] == [by_path[part].labels["language"] for part in clip.made_of]
        starts = [places(clip, by_path[part])[0] for part in clip.made_of]
        assert starts == sorted(starts)
        assert [fact.answer for fact in clip.facts] == clip.labels["languages"]
    for clip in kind(made, "numbers"):
        said = [by_path[part].labels["number"] for part in clip.made_of]
        assert clip.labels["numbers"] == " ".join(said) == clip.facts[1].answer and clip.licence == "MIT"
        assert (
            len(clip.facts[1].options) == len(set(clip.facts[1].options)) == 4
            and clip.facts[1].answer in clip.facts[1].options
        )
    for clip in kind(made, "sound behind speech"):
        assert clip.licence == "CC0-1.0 and MIT" and clip.facts[0].answer == "a dog"
        assert clip.labels["language"] == by_path[clip.made_of[0]].labels["language"]
    assert {name: len(kind(made, name)) for name in ("speakers", "languages", "numbers", "sound behind speech")} == {
        "speakers": 8,
        "languages": 8,
        "numbers": 8,
        "sound behind speech": 8,
    }


def test_splits_are_not_mixed(folder, tmp_path):
    clips = [
        sound(folder, label, split) for split in (TRAIN, VALIDATION, TEST) for label in ("a dog", "thunder", "rain")
    ]
    own = {split: {clip.path for clip in clips if clip.split == split} for split in (TRAIN, VALIDATION, TEST)}
    for split in (VALIDATION, TEST):
        made = compose(clips, tmp_path, split)
        assert made and all(clip.split == split and set(clip.made_of) <= own[split] for clip in made)
    made = compose(clips, tmp_path, times=20)
    for clip in made:
        is_pure = set(clip.made_of) <= own[TRAIN]
        assert clip.split == (TRAIN if is_pure else MIXED) and clip.file.exists() == is_pure
        assert not set(clip.made_of) & own[TEST]
    assert {clip.split for clip in made} == {TRAIN, MIXED}
    # If the validation clips are for training, the same composites are made, and all of them are written.
    for clip in clips:
        clip.split = TRAIN if clip.split == VALIDATION else clip.split
    assert [clip.made_of for clip in compose(clips, tmp_path / "all", times=20)] == [clip.made_of for clip in made]


def test_what_lacks_its_parts_is_not_made(folder, tmp_path):
    assert compose([], tmp_path) == []
    alone = [sound(folder, "a violin"), sound(folder, "a cello")]  # too alike to be asked which comes first
    assert {clip.labels["composite"] for clip in compose(alone, tmp_path)} == {"sound count"}
    assert tellable({"a violin": [], "a cello": [], "rain": []}).keys() == {"a violin", "a cello", "rain"}
    assert tellable({"a violin": [], "a cello": []}) == {}


def test_who_can_be_counted():
    assert are_countable(["a", "b", "a", "fillets/cs/other"])
    assert not are_countable(["a", "fillets/cs/other", "fillets/cs/other"])
    assert not are_countable(["asterisk/en_US_f_Allison", "b", "asterisk/es_MX_f_Allison"])
    assert are_countable(["asterisk/en_US_f_Allison", "asterisk/en_US_f_Allison"])


def test_levels():
    quiet = np.pad(np.full(4000, 0.01, np.float32), 8000)
    cut = level(quiet)
    assert len(cut) == pytest.approx(4000 + 200 + 800, abs=2)
    assert np.sqrt(np.mean(cut**2)) == pytest.approx(0.08, rel=1e-3)
    peaky = np.zeros(16000, np.float32)
    peaky[::8000] = 1
    assert np.abs(level(peaky)).max() <= 0.9501
    assert not level(np.zeros(100, np.float32)).any()
    assert len(joined([cut, cut], 0.5)) == 2 * len(cut) + 8000
