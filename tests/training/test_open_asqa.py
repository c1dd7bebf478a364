"""Open-ASQA's preparation: what the shards hold, and what is reported lost.

Expected clips are grouped here from `json.load`, audio is read with soundfile.
"""

import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from child import in_child
from open_asqa_source import AUDIOSET, CLIPS, LIBRITTS, QUESTIONS, SETS, files_of, rewrite, roots_of, run
from tiny import tone

from falcon3_audio.training.data.shards import read_shards
from falcon3_audio.training.prepare import open_asqa, open_asqa_rows
from falcon3_audio.training.prepare.open_asqa import main, prepare
from falcon3_audio.training.world.audio_world import generate_world


KEYS = {"instruction", "input", "audio_id", "dataset", "task", "output"}


def grouped(rows):
    """(dataset, audio_id): questions, in the order of the rows."""
    clips = defaultdict(list)
    for row in rows:
        question = {key: row[key] for key in ("instruction", "output", "task")}
        clips[row["dataset"], row["audio_id"]].append(question)
    return dict(clips)


def test_the_audio_world(tmp_path):
    world = tmp_path / "world"
    generate_world(world, train_clips=21, test_clips=15, seed=1)
    report = prepare(world / "train.json", tmp_path / "out")
    rows = json.loads((world / "train.json").read_text())
    dataset = read_shards(tmp_path / "out")
    clips = grouped(rows)
    assert [(clip["dataset"], clip["audio_id"]) for clip in dataset] == list(clips)
    assert dataset["questions"] == list(clips.values())
    transcripts = {row["audio_id"]: row["input"] for row in rows}
    assert any(transcripts.values())
    for clip in dataset:
        expected, rate = soundfile.read(world / clip["audio_id"], dtype="int16")
        decoded, stored_rate = soundfile.read(io.BytesIO(clip["audio"]["bytes"]), dtype="int16")
        assert rate == stored_rate == 16_000
        assert np.array_equal(decoded, expected)
        assert clip["seconds"] == len(expected) / 16_000
        assert clip["input"] == transcripts[clip["audio_id"]]
    hours = sum(soundfile.info(world / path).duration for path in transcripts) / 3600
    counts = {"rows": len(rows), "malformed": 0, "clips": 21, "questions": len(rows)}
    counts |= {"missing": 0, "broken": 0, "lost_questions": 0, "hours": pytest.approx(hours, abs=1e-4)}
    assert report["total"] == counts
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "set.lock", "00000-00.arrow"}


def test_clips_of_several_sub_datasets(source, tmp_path, small_buckets):
    report = run(source, tmp_path / "out")
    dataset = read_shards(tmp_path / "out")
    rows = json.loads((source / "rows.json").read_text())
    assert {(clip["dataset"], clip["audio_id"]): clip["questions"] for clip in dataset} == grouped(rows)
    assert len(dataset) == CLIPS
    assert len({name.split("-")[0] for name in report["shards"]}) > 2  # buckets
    assert max(report["shards"].values()) == 2
    for clip in dataset:
        number = int(Path(clip["audio_id"]).stem.removeprefix("id-"))
        assert clip["seconds"] == pytest.approx(0.1 + number / 100)
        assert clip["input"] == f"said in {number}"
        assert clip["audio"]["path"] == Path(clip["audio_id"]).name
        heard, _ = soundfile.read(io.BytesIO(clip["audio"]["bytes"]))
        np.testing.assert_allclose(heard, tone(0.1 + number / 100, 300 + 10 * number), atol=1 / 2**15)
    assert {name: counts["clips"] for name, counts in report["datasets"].items()} == dict.fromkeys(sorted(SETS), 4)


def test_a_shard_is_full_at_its_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(open_asqa, "SHARD_BYTES", 10_000)
    report = run(source, tmp_path / "out")
    clips = [len(clip["audio"]["bytes"]) for clip in read_shards(tmp_path / "out")]
    shards = list(report["shards"].values())
    assert len(shards) > 2 and sum(shards) == CLIPS
    starts = np.cumsum([0, *shards])
    sizes = [sum(clips[start:end]) for start, end in zip(starts, starts[1:])]
    assert all(size >= 10_000 for size in sizes[:-1])
    assert all(size - clips[end - 1] < 10_000 for size, end in zip(sizes, starts[1:]))


def test_the_same_audio_in_two_sub_datasets_is_two_clips(source, tmp_path):
    def change(rows):
        rows.append({**next(row for row in rows if row["dataset"] == "as_20k"), "dataset": "as_2m"})

    rewrite(source, change)
    assert run(source, tmp_path / "out")["total"]["clips"] == CLIPS + 1


def test_two_clips_with_one_file_are_an_error(source, tmp_path, small_buckets, capsys):
    """A LibriTTS folder without speaker folders: both clips then have the same file name."""
    flat = tmp_path / "flat"
    flat.mkdir()
    soundfile.write(flat / "5.flac", tone(0.2), 16_000)

    def change(rows):
        for row in rows:
            if row["dataset"] == "libritts_tr":
                row["audio_id"] = f"{LIBRITTS}/{row['audio_id'].split('/')[-2]}/5.flac"

    rewrite(source, change)
    roots = ["--audio-root", f"as_*={source / 'as'}", "--audio-root", f"libritts_tr={flat}"]
    out = tmp_path / "out"
    assert main(["prepare", str(source / "rows.json"), str(out), *roots]) == 1
    said = capsys.readouterr().err
    assert f"1 audio files are found for more than one clip, such as {flat / '5.flac'} for {LIBRITTS}/" in said
    assert all(f"{LIBRITTS}/{speaker}/5.flac" in said for speaker in (0, 1))
    assert not list(out.glob("*.arrow")) and not json.loads((out / "report.json").read_text())["finished"]
    for speaker in (0, 1):  # with the speaker folders of the JSON
        (flat / str(speaker)).mkdir()
        soundfile.write(flat / str(speaker) / "5.flac", tone(0.2 + speaker), 16_000)
    assert main(["prepare", str(source / "rows.json"), str(out), *roots]) == 0


def test_other_rates_and_channels(source, tmp_path):
    stereo = np.stack([tone(0.5, 500, 44_100), tone(0.5, 900, 44_100)], axis=1)
    soundfile.write(source / "as" / "id-0.wav", stereo, 44_100, "FLOAT")
    run(source, tmp_path / "out")
    [clip] = [clip for clip in read_shards(tmp_path / "out") if clip["audio_id"].endswith("id-0.flac")]
    decoded, rate = soundfile.read(io.BytesIO(clip["audio"]["bytes"]))
    expected = soxr.resample(stereo.mean(axis=1), 44_100, 16_000)
    assert (decoded.shape, rate, clip["seconds"]) == ((8000,), 16_000, 0.5)
    np.testing.assert_allclose(decoded, expected[:8000], atol=2e-4)


def test_missing_and_broken_audio(source, tmp_path):
    whole = (source / "as" / "id-0.wav").read_bytes()
    (source / "as" / "id-0.wav").write_bytes(whole[:-100])
    (source / "as" / "id-1.wav").unlink()
    (source / "as" / "id-4.wav").write_bytes(b"no sound")
    report = run(source, tmp_path / "out", max_missing=0.5)
    counts = {
        name: {kind: found[kind] for kind in ("clips", "missing", "broken")}
        for name, found in report["datasets"].items()
    }
    assert counts["as_20k"] == {"clips": 3, "missing": 0, "broken": 1}
    assert counts["as_2m"] == {"clips": 2, "missing": 1, "broken": 1}
    assert counts["libritts_tr"] == {"clips": 4, "missing": 0, "broken": 0}
    assert report["total"]["lost_questions"] == 3 * QUESTIONS
    assert report["total"]["questions"] == (CLIPS - 3) * QUESTIONS
    [truncated] = report["datasets"]["as_20k"]["lost_examples"]
    assert (truncated["audio_id"], truncated["kind"]) == (f"{AUDIOSET}/id-0.flac", "broken")
    assert "truncated" in truncated["reason"] and str(source / "as" / "id-0.wav") in truncated["reason"]
    reasons = {lost["audio_id"]: lost["reason"] for lost in report["datasets"]["as_2m"]["lost_examples"]}
    assert reasons[f"{AUDIOSET}/id-1.flac"] == "no such file in the folders of this sub-dataset"
    assert "cannot be decoded" in reasons[f"{AUDIOSET}/id-4.flac"]
    assert len(read_shards(tmp_path / "out")) == CLIPS - 3


def test_too_much_missing_fails_before_decoding_and_continues(source, tmp_path, capsys):
    out, hidden = tmp_path / "out", source / "hidden"
    (source / "as").rename(hidden)
    (source / "as").mkdir()
    arguments = ["prepare", str(source / "rows.json"), str(out), "--workers", "1"]
    arguments += [part for pattern, folder in roots_of(source) for part in ("--audio-root", f"{pattern}={folder}")]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "as_20k: 4 of 4 clips are missing and 0 broken, such as /data/sls/audioset" in error
    assert "as_2m: 4 of 4" in error and "libritts" not in error and "--max-missing" in error
    report = json.loads((out / "report.json").read_text())
    assert not report["finished"] and "as_20k: 4 of 4" in report["failed"]
    assert report["datasets"]["libritts_tr"]["clips"] == 4 and "hours" not in report["total"]
    assert list(out.glob("*.arrow")) == []
    with pytest.raises(ValueError, match="as_20k: 4 of 4 clips are missing"):
        read_shards(out)
    (source / "as").rmdir()
    hidden.rename(source / "as")
    assert main(arguments) == 0
    assert "total" in capsys.readouterr().out
    run(source, tmp_path / "fresh")
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_sub_dataset_without_a_root_is_named(source, tmp_path):
    with pytest.raises(ValueError, match=r"libritts_tr: 4 of 4 .* no --audio-root for this sub-dataset"):
        prepare(source / "rows.json", tmp_path / "out", roots_of(source)[:1])
    with pytest.raises(ValueError, match="no clip has usable audio"):
        prepare(source / "rows.json", tmp_path / "all", max_missing=1)


def test_malformed_rows(source, tmp_path):
    good = len(json.loads((source / "rows.json").read_text()))
    bad = [
        "text",
        {"audio_id": "x.wav", "instruction": "What?", "dataset": "as_2m"},
        {"audio_id": "x.wav", "instruction": "What?", "output": " \n", "dataset": "as_2m"},
        {"audio_id": 7, "instruction": "What?", "output": "That."},
        {"audio_id": "x.wav", "instruction": "What?", "output": "That.", "input": ["a"], "dataset": "as_2m"},
    ]
    rewrite(source, lambda rows: rows.extend(bad))
    report = run(source, tmp_path / "out", max_missing=1)
    assert report["total"]["rows"] == good + len(bad)
    assert report["total"]["malformed"] == len(bad)
    assert report["total"]["questions"] == good
    assert [
        (example["row"] - good, example["reason"]) for example in report["datasets"]["as_2m"]["malformed_examples"]
    ] == [
        (2, "has no output"),
        (3, "has an empty output"),
        (5, "has the input \"['a']\" of type list, not a string"),
    ]
    assert [example["reason"] for example in report["datasets"][""]["malformed_examples"]] == [
        "is a str, not an object",
        "has the audio_id '7' of type int, not a string",
    ]
    with pytest.raises(
        ValueError, match=f"as_2m: 3 of 15 rows are malformed, such as row {good + 2}, which has no output"
    ):
        run(source, tmp_path / "strict", max_missing=0.19)


def test_rows_may_lack_what_is_optional(source, tmp_path):
    def change(rows):
        for row in rows:
            row.pop("task")
            row["input"] = None
            row["dataset"] = None

    rewrite(source, change)
    with pytest.raises(ValueError, match=r"\(no name\): 12 of 12 clips are missing"):
        run(source, tmp_path / "none")
    roots = [("*", str(source / "as")), ("*", str(source / "speech"))]
    report = prepare(source / "rows.json", tmp_path / "out", roots)
    assert report["datasets"][""]["clips"] == CLIPS
    clip = read_shards(tmp_path / "out")[0]
    assert (clip["dataset"], clip["input"], clip["questions"][0]["task"]) == ("", "", "")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "begins with b''; expected a JSON list"),
        (b'{"item": [1]}', "begins with b'{'; expected a JSON list"),
        (b" [ ] ", "is an empty list"),
        (b'[{"audio_id": "a"}', "is cut off or not JSON, after row 1"),
        (b'[{"audio_id": "a"}, {"audio_', "is cut off or not JSON, after row 1"),
        (b'[{"audio_id": "a"}]\n[1]', "is cut off or not JSON, after row 1"),
        (b'[{"audio_id": "\xff"}]', "is cut off or not JSON, after row 0"),
    ],
)
def test_files_that_are_no_list_of_rows(tmp_path, capsys, content, message):
    (tmp_path / "rows.json").write_bytes(content)
    assert main(["prepare", str(tmp_path / "rows.json"), str(tmp_path / "out"), "--workers", "1"]) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("falcon3-audio open-asqa: ")]
    assert message in error and "rows.json" in error
    assert list(tmp_path.glob("out/*.arrow")) == []


def test_a_download_that_was_cut_off_anywhere(source, tmp_path):
    whole = (source / "rows.json").read_bytes()
    for size in range(1, len(whole) - 1, len(whole) // 60):
        (source / "rows.json").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is cut off or not JSON"):
            run(source, tmp_path / "out")
    (source / "rows.json").write_bytes(whole)
    assert run(source, tmp_path / "out")["total"]["clips"] == CLIPS  # nothing is left of the other runs


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    """Peak resident memory of a process that looks for the audio of 1,000 clips, and then of 12,000."""
    monkeypatch.setattr(open_asqa_rows, "BUFFER_BYTES", 1_000_000)
    for name, clips in (("small", 1_000), ("large", 12_000)):
        with open(tmp_path / f"{name}.json", "w") as file:
            file.write("[")
            for number in range(5 * clips):
                row = {key: f"{key} {number % clips} " * 8 for key in KEYS} | {"dataset": "as_2m"}
                file.write(json.dumps(row, indent=1) + ("]" if number == 5 * clips - 1 else ",\n"))

    def peak(function):
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        function()
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024

    def look(name):
        with pytest.raises(ValueError, match="clips are missing"):
            prepare(tmp_path / f"{name}.json", tmp_path / name)

    def measure():
        look("small")
        peaks = [peak(lambda: look("small")), peak(lambda: look("large"))]
        peaks.append(peak(lambda: json.loads((tmp_path / "large.json").read_text())))
        (tmp_path / "peaks").write_text(json.dumps(peaks))

    assert in_child(measure) == 0
    small, large, loaded = json.loads((tmp_path / "peaks").read_text())
    size = (tmp_path / "large.json").stat().st_size
    assert size > 35_000_000
    assert large - small < 8_000_000
    assert loaded - small > size  # the cost of reading it whole, which shows that the measurement works


@pytest.mark.parametrize(
    "options, message",
    [
        (["--audio-root", "as_*=/no/such/folder"], "there is no such folder"),
        (["--max-missing", "1.5"], "expected 0 to 1"),
        (["--workers", "0"], "expected 0 to 1, and 1 or more"),
    ],
)
def test_impossible_arguments(source, tmp_path, capsys, options, message):
    assert main(["prepare", str(source / "rows.json"), str(tmp_path / "out"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_usage(tmp_path, capsys):
    assert main(["prepare", str(tmp_path / "none.json"), str(tmp_path / "out")]) == 1
    assert "none.json" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["prepare", "a", "b", "--audio-root", "/data"])
    assert "expected SUBDATASET=FOLDER" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", "--help"])
    assert "--max-missing" in capsys.readouterr().out
