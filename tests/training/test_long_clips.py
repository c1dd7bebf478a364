"""Clips of minutes whose sounds are where the questions say."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from falcon3_audio.evaluation.load_jsonl import load_jsonl
from falcon3_audio.training.prepare.open_asqa import prepare
from falcon3_audio.training.world.audio_world_sounds import SOUNDS, TEST
from falcon3_audio.training.world.long_clips import PLACES, generate_long_clips, main
from falcon3_audio.training.world.sound_synthesis import SAMPLE_RATE, sound_event
from falcon3_audio.whole_files import write_json


LENGTHS = (5, 12)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    generate_long_clips(folder, train_clips=3, test_clips=4, lengths=LENGTHS, seed=0)
    return folder


def spectrum(waveform):
    """Log power in 64 bands, for each quarter of the part that is not silent."""
    loud = np.flatnonzero(np.abs(waveform) > 0.05 * np.abs(waveform).max())
    quarters = np.array_split(waveform[loud[0] : loud[-1] + 1], 4)
    power = [np.abs(np.fft.rfft(quarter, 2048)[:1024]).reshape(64, 16) ** 2 for quarter in quarters]
    return np.array([np.log(part.sum(1) / part.sum() + 1e-4) for part in power])


@pytest.fixture(scope="module")
def heard():
    """Which of the given sounds a waveform is, by its spectrum."""
    rng = np.random.default_rng(9)
    known = [
        (sound, spectrum(sound_event(sound, pitch, seconds, rng)))
        for sound in SOUNDS
        for pitch in TEST.sound_pitches
        for seconds in TEST.event_seconds
    ]

    def heard(waveform, choices):
        wanted = spectrum(waveform)
        return min((float(np.square(wanted - found).sum()), sound) for sound, found in known if sound in choices)[1]

    return heard


@pytest.mark.parametrize("length", LENGTHS)
def test_the_sounds_are_where_the_questions_ask_for_them(made, heard, length):
    questions = load_jsonl(made / f"test-{length}.jsonl").questions
    assert [question.groups["task"] for question in questions] == [*PLACES] * 4
    assert {question.question for question in questions} == {"What sound is heard?"}
    for question in questions:
        waveform, rate = soundfile.read(made / f"test-audios/{question.audio[0].name.split('/')[-1]}")
        assert (rate, len(waveform)) == (SAMPLE_RATE, length * SAMPLE_RATE)
        part = round(0.55 * SAMPLE_RATE)  # event and silence
        begin = {
            "at the beginning": 0,
            "in the middle": (len(waveform) - part) // 2,
            "at the end": len(waveform) - part,
        }
        start = begin[question.groups["task"]]
        in_clip = {other.answer for other in questions if other.audio[0].name == question.audio[0].name}
        assert heard(waveform[start : start + part], in_clip) == question.answer
        assert len(in_clip) == 3 and in_clip & {*question.choices} == {question.answer}
        assert len(set(question.choices)) == 4


@pytest.mark.parametrize("longest", [10, 30])
def test_the_training_clips_are_a_set(made, tmp_path, longest):
    rows = json.loads((made / f"train-{longest}.json").read_text())
    assert [row["task"] for row in rows] == [*PLACES] * 3
    assert all(row["output"] in row["instruction"] for row in rows)
    lengths = {soundfile.info(made / row["audio_id"]).duration for row in rows}
    assert all(5 <= seconds <= longest for seconds in lengths) and len(lengths) > 1
    report = prepare(made / f"train-{longest}.json", tmp_path / "set")
    assert report["total"]["questions"] == 9


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_one_seed_gives_the_same_bytes_and_what_was_begun_is_completed(made, tmp_path):
    options = {"train_clips": 3, "test_clips": 4, "lengths": LENGTHS}
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    record = json.loads((copy / "long_clips.json").read_text())
    write_json(copy / "long_clips.json", record | {"finished": False})  # as an interrupted run leaves it
    one = sorted((copy / "train-10-audios").iterdir())[0].relative_to(copy)
    for name in ("train-30.json", one, "test-12.jsonl", "test-audios/012s-00001.wav"):
        (copy / name).unlink()
    generate_long_clips(copy, **options, seed=0)
    assert contents(copy) == contents(made)
    with pytest.raises(ValueError, match=r"holds long clips of .*'seed': 0\}, but .*'seed': 1\} were asked for"):
        generate_long_clips(copy, **options, seed=1)
    assert contents(copy) == contents(made)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--lengths", "4"], "got the lengths [4]; expected different ones of 5 seconds or more"),
        (["--lengths", "10", "10"], "got the lengths [10, 10]; expected different ones"),
        (["--test-clips", "0"], "got test_clips=0; expected 1 or more"),
        (["--seed", "-1"], "got seed=-1; expected 0 or more"),
    ],
)
def test_numbers_that_make_no_clips(tmp_path, capsys, options, said):
    assert main([str(tmp_path / "out"), *options]) == 1
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
