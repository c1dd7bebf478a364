"""Which clips are played under each control."""

import io

import numpy as np
import pytest
import soundfile
from ffmpeg_files import M4A, STEREO, flac_of_a_stream
from tiny import tone

from falcon3_audio.evaluation.controls import CONTROLS, heard, silence_like
from falcon3_audio.evaluation.questions import Clip, Question
from falcon3_audio.processing import load_audio


def encoded(samples, rate, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def question(number, *names, task="sound", key="task"):
    return Question(str(number), tuple(Clip(name, lambda: b"") for name in names), "What?", groups={key: task})


def names(clips):
    return [tuple(clip.name for clip in row) for row in clips]


def test_the_four():
    assert set(CONTROLS) == {"none", "silence", "shuffled", "text-only"}


def test_none_and_text_only():
    questions = [question(1, "a"), question(2, "b", "c")]
    assert heard(questions, "none") == [question.audio for question in questions]
    assert heard(questions, "text-only") == [(), ()]


@pytest.mark.parametrize(
    "shape, rate, options",
    [
        ((70_000,), 16_000, {}),
        ((1234, 2), 44_100, {"subtype": "FLOAT"}),
        ((999, 6), 8_000, {"format": "FLAC"}),
        ((5000, 1), 22_050, {"format": "MP3"}),
    ],
)
def test_silence_has_the_length_rate_and_channels_of_the_clip(shape, rate, options):
    loud = encoded(0.3 * np.random.default_rng(0).standard_normal(shape).clip(-1, 1), rate, **options)
    expected = soundfile.info(io.BytesIO(loud))
    silent = Question("1", (Clip("loud", lambda: loud),), "What?")
    ((clip,),) = heard([silent], "silence")
    samples, got_rate = soundfile.read(io.BytesIO(clip.read()), always_2d=True)
    assert (*samples.shape, got_rate) == (expected.frames, expected.channels, rate)
    assert clip.name == "loud" and not samples.any()


@pytest.mark.parametrize("data", [M4A, flac_of_a_stream(STEREO.T)])
def test_silence_like_what_soundfile_does_not_read_is_as_long_as_what_is_heard(data):
    samples, rate = soundfile.read(io.BytesIO(silence_like(data, "clip")))
    assert (samples.shape, rate) == (load_audio(data).shape, 16_000) and not samples.any()


def test_silence_of_a_broken_clip_is_an_error_that_names_it():
    whole = encoded(tone(0.5), 16_000)
    for data in (b"", b"no sound", whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="the clip"):
            silence_like(data, "the clip")


TASKS = ["sound", "music", "speech"]
# 30 clips, the first ten with two questions each.
MANY = [
    question(f"{clip}-{n}", f"c{clip}", task=TASKS[clip % 3]) for clip in range(30) for n in range(1 + (clip < 10))
]


def test_shuffled_plays_each_clip_elsewhere_in_its_task():
    got = names(heard(MANY, "shuffled", seed=1))
    other = {}
    for row, (name,) in zip(MANY, got):
        assert other.setdefault(row.audio[0].name, name) == name  # the same clip for all questions about a clip
        assert int(name[1:]) % 3 == int(row.audio[0].name[1:]) % 3
    assert all(own != new for own, new in other.items())
    assert sorted(other.values()) == sorted(other)  # a permutation
    assert got == names(heard(MANY, "shuffled", seed=1)) != names(heard(MANY, "shuffled", seed=2))


def test_shuffled_reads_the_other_clip():
    clips = [Clip(name, lambda name=name: name.encode()) for name in "ab"]
    rows = [Question(clip.name, (clip,), "What?") for clip in clips]
    assert [clip.read() for (clip,) in heard(rows, "shuffled")] == [b"b", b"a"]


@pytest.mark.parametrize("seed", range(5))
def test_a_task_with_one_clip_takes_from_another(seed):
    rows = [question(n, f"s{n}") for n in range(4)] + [question(9, "m", task="music", key="task_name")]
    got = [name for (name,) in names(heard(rows, "shuffled", seed))]
    assert sorted(got) == ["m", "s0", "s1", "s2", "s3"]
    assert all(name != row.audio[0].name for name, row in zip(got, rows))


def test_two_tasks_with_one_clip_each_swap():
    rows = [question(1, "a"), question(2, "b", task="music")]
    assert names(heard(rows, "shuffled")) == [("b",), ("a",)]


@pytest.mark.parametrize("seed", range(5))
def test_several_clips_stay_several_and_none_is_its_own(seed):
    rows = [question(1, "a", "b"), question(2, "c", "d"), question(3, "e"), question(4, "f"), question(5)]
    got = names(heard(rows, "shuffled", seed))
    assert [len(row) for row in got] == [2, 2, 1, 1, 0]
    assert got[:2] == [("c", "d"), ("a", "b")]
    swapped = [question(1, "a", "b"), question(2, "b", "a"), question(3, "c", "d"), question(4, "d", "c")]
    assert all(
        set(row).isdisjoint(own.audio[0].name) for row, own in zip(names(heard(swapped, "shuffled", seed)), swapped)
    )


def test_one_clip_cannot_be_shuffled():
    with pytest.raises(ValueError, match="cannot be shuffled: 1 in the group of"):
        heard([question(1, "a"), question(2, "a")], "shuffled")
    with pytest.raises(ValueError, match="cannot be shuffled: 2 in"):
        heard([question(1, "a", "b"), question(2, "b", "a")], "shuffled")
