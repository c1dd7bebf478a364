"""The audio world: formats, balance, held-out settings, reproducible bytes, and clips that match their answers.

The audio is measured here with FFTs and energy envelopes, independently of the code that made it.
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, fields

import numpy as np
import pytest
import soundfile
from child import in_child

from falcon3_audio.training.prepare.espeak import variants
from falcon3_audio.training.world import audio_world
from falcon3_audio.training.world.audio_world import CLOSED_PREFIX, QUESTION_TYPES, build_prompt, generate_world
from falcon3_audio.training.world.audio_world_sounds import TEST, TRAIN
from falcon3_audio.training.world.sound_synthesis import INSTRUMENTS, SOUND_EVENTS, note, resample, sound_event


RATE = 16_000
OPEN_ASQA_KEYS = ["instruction", "input", "audio_id", "dataset", "task", "output"]
MMAU_KEYS = [
    *("id", "audio_id", "question", "choices", "answer", "dataset", "task", "split"),
    *("category", "sub-category", "difficulty"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("world")
    generate_world(out, train_clips=84, test_clips=60, seed=3)
    return out


@pytest.fixture(scope="module")
def world(folder):
    return json.loads((folder / "world.json").read_text())


@pytest.fixture(scope="module")
def rows(folder):
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in ("train", "test")}


@pytest.fixture(scope="module")
def many_rows():
    """Enough questions to see a bias, without their audio."""
    rng = np.random.default_rng(0)
    train = audio_world._train_rows(audio_world._plan_train(1500, rng), rng)
    return {"train": train, "test": audio_world._test_rows(audio_world._plan_test(1800, rng), rng)}


@pytest.fixture(scope="module")
def answers(rows):
    """The answers of each training clip, by question type."""
    found = defaultdict(dict)
    for row in rows["train"]:
        found[row["audio_id"]][row["task"]] = row["output"]
    return found


def clips_of(world, kind):
    return {path: clip for path, clip in world["clips"].items() if clip["kind"] == kind and path.startswith("train")}


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def envelope(waveform, seconds=0.01):
    """RMS of frames of this length."""
    size = int(seconds * RATE)
    frames = waveform[: len(waveform) // size * size].reshape(-1, size)
    return np.sqrt(np.mean(frames**2, axis=1))


def stretches(waveform, silence):
    """(start, end) in samples of the sounds between silences of more than `silence` seconds."""
    loud = np.flatnonzero(envelope(waveform) > 0.03 * np.abs(waveform).max())
    cuts = np.flatnonzero(np.diff(loud) * 0.01 > silence)
    starts, ends = [loud[0], *loud[cuts + 1]], [*loud[cuts], loud[-1]]
    return [(start * 160, (end + 1) * 160) for start, end in zip(starts, ends)]


def strongest(waveform, low=0.0, high=8000.0):
    """The frequency of the highest spectral peak between two frequencies, in Hz, to about 0.25 Hz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 4 * RATE))
    hertz = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    return hertz[np.where((hertz >= low) & (hertz <= high), spectrum, 0).argmax()]


def test_files(folder, world, rows):
    assert {path.name for path in folder.iterdir()} == {
        *("train.json", "test.json", "world.json", "train-audios", "test-audios")
    }
    wavs = {str(path.relative_to(folder)) for path in folder.rglob("*.wav")}
    assert wavs == set(world["clips"]) == {row["audio_id"].removeprefix("./") for row in rows["train"] + rows["test"]}
    for path in wavs:
        info = soundfile.info(folder / path)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (RATE, 1, "PCM_16", "WAV")
        assert 0.5 <= info.duration <= 4
        assert world["clips"][path]["clip_seconds"] == info.duration
    beginnings = {soundfile.read(folder / path, frames=RATE // 25)[0].tobytes() for path in wavs}
    assert len(beginnings) == len(wavs)  # each clip has its own noise


def test_record(world, rows):
    assert world["finished"] and world["parameters"]["seed"] == 3
    assert world["settings"]["test"] == json.loads(json.dumps(asdict(TEST)))
    for split, clips in (("train", 84), ("test", 60)):
        summary = world["summary"][split]
        assert summary["clips"] == clips and summary["questions"] == len(rows[split])
        assert sum(summary["questions_per_task"].values()) == len(rows[split])
        seconds = sum(clip["clip_seconds"] for path, clip in world["clips"].items() if path.startswith(split))
        assert summary["hours"] == pytest.approx(seconds / 3600, abs=1e-4)


def test_training_rows(rows):
    assert all(
        list(row) == OPEN_ASQA_KEYS and all(isinstance(value, str) for value in row.values()) for row in rows["train"]
    )
    assert 3 <= len(rows["train"]) / 84 <= 5
    for row in rows["train"]:
        assert bool(row["input"]) == row["audio_id"].startswith("train-audios/speech")
    closed = [row for row in rows["train"] if QUESTION_TYPES[row["task"]].pool]
    prefixed = [row for row in closed if row["instruction"].startswith(CLOSED_PREFIX)]
    assert len(prefixed) / len(closed) == pytest.approx(0.5, abs=0.05)
    assert sum(row["instruction"].startswith(CLOSED_PREFIX) for row in rows["train"]) == len(prefixed)


def test_rows_of_the_test(rows):
    assert Counter(row["task"] for row in rows["test"]) == {"sound": 20, "music": 20, "speech": 20}
    assert len({row["id"] for row in rows["test"]}) == 60
    for row in rows["test"]:
        assert list(row) == MMAU_KEYS
        assert row["audio_id"] == f"./test-audios/{row['id']}.wav"
        assert len(set(row["choices"])) == 4 and row["answer"] in row["choices"]
        assert not any("," in choice for choice in row["choices"])


def test_prompts_of_the_test_occur_in_training(many_rows):
    assert build_prompt("Which?", ["a", "b c", "d", "e"]) == "Which? Choose one: a, b c, d, e."
    assert build_prompt("Which?") == "Which?"
    listed = defaultdict(int)
    for row in many_rows["train"]:
        instruction = row["instruction"].removeprefix(CLOSED_PREFIX)
        if match := re.fullmatch(r"(.*\?) Choose one: (.*)\.", instruction):
            choices = match[2].split(", ")
            assert row["output"] in choices and len(set(choices)) == len(choices)
            listed[match[1]] += len(choices) == 4
    assert all(listed[row["question"]] > 20 for row in many_rows["test"])


def test_right_answers_stand_everywhere(rows, many_rows):
    for split, most in ((rows, 1), (many_rows, 1)):
        places = Counter(row["choices"].index(row["answer"]) for row in split["test"])
        assert len(places) == 4 and max(places.values()) - min(places.values()) <= most


def test_answers_are_even_given_the_question(many_rows):
    for split, output, kind in (("train", "output", "task"), ("test", "answer", "sub-category")):
        given = defaultdict(Counter)
        for row in many_rows[split]:
            given[row[kind]][row[output]] += 1
        for name, counts in given.items():
            pool = QUESTION_TYPES[name.lower().replace(" ", "_")].pool
            if 0 < len(pool) < 20:
                expected = sum(counts.values()) / len(pool)
                assert set(counts) == set(pool), name
                assert max(counts.values()) < expected + 4 * expected**0.5 + 1, (name, counts)


def test_guessing_without_the_audio_is_chance(many_rows):
    frequency = Counter((row["task"], row["output"]) for row in many_rows["train"])
    words = Counter(word for row in many_rows["train"] for word in row["output"].split())

    def overlap(row, choice):
        return sum(len(set(choice.split()) & set(other.split())) for other in row["choices"])

    guesses = {
        "most frequent in training": lambda row, choice: frequency[
            row["sub-category"].lower().replace(" ", "_"), choice
        ],
        "most frequent words": lambda row, choice: sum(words[word] for word in choice.split()),
        "most like the others": overlap,
        "least like the others": lambda row, choice: -overlap(row, choice),
        "longest": lambda row, choice: len(choice),
    }
    for name, score in guesses.items():
        right = [
            max(row["choices"], key=lambda choice: score(row, choice)) == row["answer"]  # noqa: B023
            for row in many_rows["test"]
        ]
        assert np.mean(right) == pytest.approx(0.25, abs=0.04), name


def test_settings_of_the_test_never_occur_in_training(world):
    used = {"train": defaultdict(set), "test": defaultdict(set)}
    for path, clip in world["clips"].items():
        seen = used[path.split("-")[0]]
        task = audio_world.TASK_OF_KIND[clip["kind"]]
        for key in ("voice", "speed", "pitch", "seconds"):
            if key in clip:
                seen[f"{task} {key}"].add(clip[key])
        seen["hertz"].update(hertz for chord in clip.get("notes", ()) for hertz in chord)
    assert (
        set(used["train"])
        == set(used["test"])
        == {
            *("speech voice", "speech speed", "speech pitch", "sound pitch", "sound seconds", "music seconds", "hertz")
        }
    )
    for key in used["test"]:
        assert used["test"][key] and not used["train"][key] & used["test"][key], key
    for field in fields(TRAIN):
        assert not set(getattr(TRAIN, field.name)) & set(getattr(TEST, field.name)), field.name


def test_same_bytes_for_any_number_of_workers(tmp_path):
    for name, seed, workers in (("one", 0, 1), ("two", 0, 2), ("other", 1, 1)):
        generate_world(tmp_path / name, train_clips=14, test_clips=9, seed=seed, workers=workers)
    one, two, other = (files_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two
    assert all(other[path] != one[path] for path in set(one) & set(other)) and len(set(one) & set(other)) > 10


def test_test_does_not_depend_on_the_training_clips(tmp_path):
    for clips in (4, 5):
        generate_world(tmp_path / str(clips), train_clips=clips, test_clips=6)
    few, more = (
        {path: data for path, data in files_of(tmp_path / name).items() if path.startswith("test")} for name in "45"
    )
    assert few == more and len(few) == 7


def test_a_world_is_reused_and_a_half_written_one_completed(tmp_path):
    out = tmp_path / "deep" / "world"
    first = generate_world(out, train_clips=6, test_clips=6)
    before = files_of(out)
    times = {path: (out / path).stat().st_mtime_ns for path in before}
    assert generate_world(out, train_clips=6, test_clips=6) == first
    assert times == {path: (out / path).stat().st_mtime_ns for path in before}
    for path in [path for path in before if path.endswith(".wav")][::2] + ["test.json"]:
        (out / path).unlink()
    (out / "world.json").write_text(json.dumps({"parameters": first["parameters"], "finished": False}))
    assert generate_world(out, train_clips=6, test_clips=6) == first
    assert files_of(out) == before
    with pytest.raises(ValueError, match="'train_clips': 6.*'train_clips': 7.*another folder"):
        generate_world(out, train_clips=7, test_clips=6)
    (out / "world.json").unlink()
    with pytest.raises(ValueError, match="holds train.json but no world.json"):
        generate_world(out, train_clips=6, test_clips=6)


def test_two_runs_do_not_write_into_one_file(tmp_path, monkeypatch):
    """A second run completes the world while the first is writing its first clip."""
    write = soundfile.write

    def slow(*arguments, **options):
        monkeypatch.setattr(soundfile, "write", write)
        write(*arguments, **options)
        assert in_child(lambda: generate_world(tmp_path / "out", train_clips=2, test_clips=1)) == 0

    monkeypatch.setattr(soundfile, "write", slow)
    first = generate_world(tmp_path / "out", train_clips=2, test_clips=1)
    assert generate_world(tmp_path / "fresh", train_clips=2, test_clips=1) == first
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_clips": 0}, "train_clips=0; expected 1 or more"),
        ({"test_clips": -1}, "test_clips=-1; expected 1 or more"),
        ({"seed": -1}, "seed=-1; expected 0 or more"),
        ({"workers": 0}, "workers=0; expected 1 or more"),
    ],
)
def test_errors(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_world(tmp_path / "world", **arguments)
    assert not (tmp_path / "world").exists()


def test_command_line(tmp_path, capsys):
    assert audio_world.main([str(tmp_path / "world"), "--seed", "-1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("audio_world: ") and "seed" in said and said.count("\n") == 1
    assert audio_world.main([str(tmp_path / "world"), "--train-clips", "3", "--test-clips", "3", "--seed", "5"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train: 3 clips, 0\.00 hours, \d+ questions \(sound \d, music \d, speech \d\)", printed)
    assert "test: 3 clips, 0.00 hours, 3 questions (" in printed


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_pitch_of_a_note(instrument):
    waveform = note(instrument, 554.37, 0.8)
    assert waveform.dtype == np.float32 and len(waveform) == 0.8 * RATE
    assert np.abs(waveform).max() == pytest.approx(1)
    # A vibrato of 1.2 % can put the highest side band this far from the note.
    assert strongest(waveform) == pytest.approx(554.37, rel=0.013)


@pytest.mark.parametrize("kind", SOUND_EVENTS)
def test_sound_event(kind):
    waveform = sound_event(kind, 1.0, 0.5, np.random.default_rng(0))
    assert waveform.dtype == np.float32 and len(waveform) == 0.5 * RATE
    assert np.abs(waveform).max() == pytest.approx(1)
    assert abs(waveform[0]) < 0.01 and abs(waveform[-1]) < 0.01


def test_frequencies_of_sound_events():
    rng = np.random.default_rng(0)
    assert strongest(sound_event("beep", 1.1, 0.5, rng)) == pytest.approx(1100, abs=2)
    assert strongest(sound_event("buzzer", 0.9, 0.5, rng)) == pytest.approx(99, abs=2)
    for kind, sign in (("rising chirp", 1), ("falling chirp", -1)):
        waveform = sound_event(kind, 1.0, 0.5, rng)
        assert sign * (strongest(waveform[-1600:]) - strongest(waveform[:1600])) > 1500


def test_resampling_keeps_pitch_level_and_length():
    tone = np.sin(2 * np.pi * 700 * np.arange(22050) / 22050).astype(np.float32)
    resampled = resample(tone, 22050)
    assert len(resampled) == RATE and resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, np.sin(2 * np.pi * 700 * np.arange(RATE) / RATE), atol=1e-3)


def test_repeats_are_heard_as_often_as_answered(folder, world, answers):
    clips = clips_of(world, "repeat")
    assert len(clips) >= 9
    for path, clip in clips.items():
        heard = stretches(soundfile.read(folder / path)[0], silence=0.12)
        assert audio_world.COUNTS[len(heard) - 1] == answers[path]["sound_count"], clip
        assert set(clip["events"]) == {answers[path]["sound"]}


def test_pairs_are_answered_in_order(world, answers):
    for path, clip in clips_of(world, "pair").items():
        assert clip["events"] == [answers[path]["first_sound"], answers[path]["last_sound"]]
        assert answers[path]["sound_order"] == " then ".join(clip["events"])


def test_shapes_are_heard_as_answered(folder, world, answers):
    for path in clips_of(world, "shape"):
        waveform = soundfile.read(folder / path)[0]
        [(start, end)] = stretches(waveform, silence=0.3)
        halves = [np.sqrt(np.mean(half**2)) for half in np.array_split(waveform[start:end], 2)]
        change = "louder" if halves[0] < halves[1] else "softer"
        length = "long" if end - start > 0.75 * RATE else "short"
        assert answers[path]["sound_shape"] == f"{length} and getting {change}"
        assert (answers[path]["length"], answers[path]["loudness"]) == (length, change)


def test_melodies_are_heard_as_answered(folder, world, answers):
    clips = clips_of(world, "melody")
    assert {clip["instrument"] for clip in clips.values()} == set(INSTRUMENTS)
    for path, clip in clips.items():
        waveform = soundfile.read(folder / path)[0]
        start, end = stretches(waveform, silence=1.0)[0]
        period = round(clip["seconds"] * RATE)
        count = len(clip["notes"])
        assert count - 1 < (end - start) / period <= count + 0.1
        assert audio_world.COUNTS[count - 1] == answers[path]["note_count"]
        heard = [strongest(waveform[start + i * period :][: period // 2], 350, 1700) for i in range(count)]
        np.testing.assert_allclose(heard, [hertz for [hertz] in clip["notes"]], rtol=0.02)
        way, pace = ("rising" if heard[0] < heard[-1] else "falling"), "slowly" if period > 0.3 * RATE else "quickly"
        assert answers[path]["movement"] == f"a {way} melody played {pace}"
        assert answers[path]["direction"] == ("rise" if way == "rising" else "fall")


def test_chords_are_heard_as_answered(folder, world, answers):
    for path, clip in clips_of(world, "chord").items():
        waveform = soundfile.read(folder / path)[0]
        notes = [hertz for chord in clip["notes"] for hertz in chord]
        for hertz in notes:
            assert strongest(waveform, 0.98 * hertz, 1.02 * hertz) == pytest.approx(hertz, rel=0.013)
        third = round(12 * np.log2(notes[1] / notes[0]))
        mode = {4: "major", 3: "minor"}[third]
        assert answers[path]["mode"] == mode
        way = "at once" if len(clip["notes"]) == 1 else "note by note"
        assert answers[path]["chord"] == f"a {mode} chord played {way}"


def test_speech_is_answered_as_spoken(world, answers, rows):
    texts = {row["audio_id"]: row["input"] for row in rows["train"]}
    genders = variants()
    spoken = clips_of(world, "phrase") | clips_of(world, "list")
    assert len(spoken) == 28
    for path, clip in spoken.items():
        words, answer = re.findall(r"\w+", clip["text"]), answers[path]
        assert texts[path] == clip["text"] == answer["transcript"]
        who = {"male": "a man", "female": "a woman"}[genders[clip["voice"].split("+")[1]]]
        pace = "slowly" if clip["speed"] < 170 else "quickly"
        assert answer["speaker"] == who and answer["speaker_style"] == f"{who} speaking {pace}"
        if clip["kind"] == "phrase":
            assert {answer["spoken_number"], answer["spoken_colour"], answer["spoken_animal"]} <= set(words)
        else:
            assert (answer["first_word"], answer["last_word"]) == (words[0], words[-1])
            assert answer["word_count"] == audio_world.COUNTS[len(words) - 1]
