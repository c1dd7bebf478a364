"""Shards: audio that comes back, files that are complete or absent, sets that are read back or refused, and workers.

Files are read with pyarrow, soundfile and datasets, not with the code under test; kills and full disks are real.
"""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from child import in_child
from datasets import Features, Value
from tiny import tone

from falcon3_audio.processing import load_audio
from falcon3_audio.training.data.shards import (
    AUDIO,
    LOCK,
    REPORT,
    begin_set,
    encode_flac,
    finish_set,
    read_shards,
    whole_file,
    write_json,
    write_shard,
)


FEATURES = Features({"audio": AUDIO, "questions": [{"instruction": Value("string")}], "number": Value("int64")})
WORKERS = """
import operator, os, time
from concurrent.futures.process import BrokenProcessPool
from falcon3_audio.training.data.shards import run_jobs

if __name__ == "__main__":
    print(*run_jobs(abs, [-3, 1, -2], 2))
    print(os.getpid() in set(run_jobs(operator.call, [os.getpid] * 4, 2)), {os.getpid()} == set(run_jobs(operator.call, [os.getpid] * 4, 1)))
    try:
        list(run_jobs(os._exit, [1, 1, 1], 2))
    except BrokenProcessPool as error:
        print("broken")
    try:
        print(len(list(run_jobs(open, ["/no/such/file", "/dev/null"], 2))))
    except FileNotFoundError as error:
        print(error.filename, flush=True)
    list(run_jobs(time.sleep, [600, 600, 600], 2))
"""


def make_rows(start, count):
    clips = [encode_flac(tone(0.02, 200 + number)) for number in range(start, start + count)]
    return [
        {
            "audio": {"bytes": clip, "path": f"{number}.flac"},
            "questions": [{"instruction": f"{number}?"}] * 2,
            "number": number,
        }
        for number, clip in enumerate(clips, start)
    ]


def make_set(folder, suffix=".arrow"):
    with begin_set(folder, {"seed": 1}) as report:
        write_shard(folder / f"a{suffix}", make_rows(0, 250), FEATURES)
        write_shard(folder / f"b{suffix}", make_rows(250, 30), FEATURES)
        return finish_set(folder, report, {f"a{suffix}": 250, f"b{suffix}": 30})


def begun(folder, parameters):
    """The report of a preparation that stops immediately."""
    with begin_set(folder, parameters) as report:
        return report


@pytest.fixture(scope="module")
def arrow_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    make_set(folder)
    return folder


def test_16_bit_samples_come_back_bit_for_bit():
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, 5000).astype(np.int16)
    samples[:2] = -(2**15), 2**15 - 1
    flac = encode_flac(samples.astype(np.float32) / 2**15)
    decoded, rate = soundfile.read(io.BytesIO(flac), dtype="int16")
    assert rate == 16_000
    assert np.array_equal(decoded, samples)
    info = soundfile.info(io.BytesIO(flac))
    assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 1)


@pytest.mark.parametrize("samples", [1, 15, 4097])
def test_any_length_comes_back(samples):
    assert len(load_audio(encode_flac(tone(1.0)[:samples]))) == samples


def test_overshoot_is_scaled_down_not_clipped():
    wave = 2.5 * np.sin(np.arange(1600) / 20).astype(np.float32)
    decoded = load_audio(encode_flac(wave))
    assert np.abs(decoded).max() > 0.999
    np.testing.assert_allclose(decoded, wave / np.abs(wave).max(), atol=1.5 / 2**15)


@pytest.mark.parametrize(
    "samples", [np.zeros((2, 8)), np.zeros(0), np.array([0.0, np.nan])], ids=["stereo", "empty", "nan"]
)
def test_audio_that_cannot_be_stored(samples):
    with pytest.raises(ValueError, match="expected finite ones"):
        encode_flac(samples)


def test_files_as_other_libraries_see_them(tmp_path):
    rows = make_rows(0, 250)
    write_shard(tmp_path / "a.arrow", rows, FEATURES)
    write_shard(tmp_path / "a.parquet", rows, FEATURES)
    with open(tmp_path / "a.arrow", "rb") as file:
        batches = list(pa.ipc.open_stream(file))
    assert [batch.num_rows for batch in batches] == [100, 100, 50]
    assert pa.Table.from_batches(batches).to_pylist() == rows
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == rows
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.arrow", "a.parquet"]


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_same_rows_give_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        write_shard(tmp_path / f"{name}{suffix}", make_rows(0, 120), FEATURES)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("a.arrow", {"extra": 1}, "row 1 of a.arrow has the columns"),
        ("a.arrow", {"number": "one"}, "one"),
        ("a.csv", {}, r"expected one that ends in \.arrow or \.parquet"),
    ],
)
def test_rows_that_do_not_fit(tmp_path, name, change, message):
    rows = make_rows(0, 2)
    rows[1] |= change
    with pytest.raises((ValueError, pa.ArrowException), match=message):
        write_shard(tmp_path / name, rows, FEATURES)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no rows"):
        write_shard(tmp_path / "a.arrow", [], FEATURES)


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_a_full_disk_leaves_nothing(tmp_path, suffix):
    """The limit on a file's size makes the write fail in the kernel, as a full disk does."""

    def write():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            write_shard(tmp_path / f"a{suffix}", make_rows(0, 250), FEATURES)
        except OSError:
            os._exit(7)

    assert in_child(write) == 7
    assert list(tmp_path.iterdir()) == []


def test_killed_while_writing(tmp_path):
    def write():
        with whole_file(tmp_path / "a.arrow") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    write_json(tmp_path / REPORT, {"finished": False, "parameters": {"seed": 1}})
    assert in_child(write) == -signal.SIGKILL
    [left] = set(tmp_path.iterdir()) - {tmp_path / REPORT}
    assert left.suffix == ".tmp" and left.read_bytes() == b"half"
    assert begun(tmp_path, {"seed": 1})
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, LOCK}


def test_a_folder_of_others_keeps_its_files(tmp_path):
    (tmp_path / "notes.tmp").write_text("mine")
    with pytest.raises(ValueError, match="holds files but no report.json"):
        begun(tmp_path, {"seed": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["notes.tmp"]
    (tmp_path / "notes.tmp").rename(tmp_path / f"{REPORT}.7.tmp")  # of a run that was killed immediately
    assert begun(tmp_path, {"seed": 1})
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, LOCK}


def test_a_second_preparation_leaves_the_files_of_the_first(tmp_path):
    with begin_set(tmp_path, {"seed": 1}):
        (tmp_path / "a.arrow.7.tmp").touch()  # the shard that is being written
        with pytest.raises(ValueError, match=r"another process is preparing the set in .*; wait until it finishes"):
            begun(tmp_path, {"seed": 1})
        assert (tmp_path / "a.arrow.7.tmp").exists()
    assert begun(tmp_path, {"seed": 1}) and not (tmp_path / "a.arrow.7.tmp").exists()


def test_an_older_file_survives_a_failed_write(tmp_path):
    write_json(tmp_path / "a.json", {"text": "é"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"text": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"text": "é"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("suffix", [".arrow", ".parquet"])
def test_reading_back(arrow_set, tmp_path, monkeypatch, suffix):
    folder = arrow_set
    if suffix == ".parquet":
        folder = tmp_path / "set [1]"  # not a pattern
        make_set(folder, suffix)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    dataset = read_shards(folder)
    assert dataset.features["audio"].decode is False
    assert dataset["number"] == list(range(280))
    expected = make_rows(0, 280)
    for number in (279, 0, 249, 250):
        assert dataset[number] == expected[number]
    np.testing.assert_allclose(load_audio(dataset[260]["audio"]), tone(0.02, 460), atol=1 / 2**15)


def test_arrow_shards_are_mapped_where_they_lie(arrow_set):
    dataset = read_shards(str(arrow_set))
    assert [file["filename"] for file in dataset.cache_files] == [
        str(arrow_set / name) for name in ("a.arrow", "b.arrow")
    ]
    before = pa.total_allocated_bytes()
    audio = dataset.data.column("audio")
    assert audio.nbytes > 100_000
    assert pa.total_allocated_bytes() - before < 10_000


def test_sets_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=f"holds no {REPORT}"):
        read_shards(tmp_path)
    (tmp_path / REPORT).write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_shards(tmp_path)
    (tmp_path / REPORT).write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        read_shards(tmp_path)
    write_json(tmp_path / REPORT, {"format": 1, "study": "encodings"})  # a study's report, which has the same name
    for use in (read_shards, lambda folder: begun(folder, {"seed": 1})):
        with pytest.raises(ValueError, match="is not a report of a prepared set: it has no `parameters`"):
            use(tmp_path)
    (tmp_path / REPORT).unlink()
    report = begun(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match="is not finished .its preparation stopped"):
        read_shards(tmp_path)
    write_json(tmp_path / REPORT, report | {"failed": "a: 3 of 4 clips are missing"})
    with pytest.raises(ValueError, match="is not finished .a: 3 of 4 clips are missing"):
        read_shards(tmp_path)


def test_shards_that_cannot_be_read(arrow_set, tmp_path):
    whole = {path.name: path.read_bytes() for path in arrow_set.iterdir()}
    for name in (REPORT, "b.arrow"):
        (tmp_path / name).write_bytes(whole[name])
    shard = tmp_path / "a.arrow"
    with pytest.raises(ValueError, match=r"a\.arrow is missing"):
        read_shards(tmp_path)
    # The second record batch begins where a file with only the first one ends, except for the 8 bytes of the end mark.
    write_shard(tmp_path / "first.arrow", make_rows(0, 100), FEATURES)
    boundary = (tmp_path / "first.arrow").stat().st_size - 8
    assert whole["a.arrow"][:boundary] == (tmp_path / "first.arrow").read_bytes()[:boundary]
    shard.write_bytes(whole["a.arrow"][:boundary])
    with pytest.raises(ValueError, match="holds 100 rows, its report says 250"):
        read_shards(tmp_path)
    for damaged in (b"", b"no arrow at all", whole["a.arrow"][: boundary + 1000]):
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.arrow is unreadable"):
            read_shards(tmp_path)
    shard.write_bytes(whole["a.arrow"])
    assert len(read_shards(tmp_path)) == 280


def test_a_folder_belongs_to_one_set(arrow_set, tmp_path):
    assert begun(arrow_set, {"seed": 1})["finished"]
    with pytest.raises(ValueError, match=re.escape("made with {'seed': 1}, but {'seed': 2} was asked for")):
        begun(arrow_set, {"seed": 2})
    assert len(read_shards(arrow_set)) == 280
    new = begun(tmp_path / "new", {"roots": [("a", "b")]})  # a tuple is read back as a list
    assert begun(tmp_path / "new", {"roots": [("a", "b")]}) == new
    assert begun(tmp_path / "new", {"seed": 3})["parameters"] == {"seed": 3}  # nothing was made yet
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds files but no report.json; pass an empty folder"):
        begun(tmp_path / "other", {"seed": 1})


def test_workers(tmp_path):
    """Order, processes, errors and the death of a worker; and no worker outlives a parent that was killed."""
    (tmp_path / "jobs.py").write_text(WORKERS)
    log = tmp_path / "log"
    with open(log, "w") as file:
        run = subprocess.Popen([sys.executable, str(tmp_path / "jobs.py")], stdout=file)
    deadline = time.monotonic() + 120
    while len(lines := log.read_text().splitlines()) < 4:
        assert run.poll() is None and time.monotonic() < deadline, lines
        time.sleep(0.05)
    assert lines == ["3 1 2", "False True", "broken", "/no/such/file"]
    parent = psutil.Process(run.pid)
    while len(workers := parent.children(recursive=True)) < 4:  # resource tracker, fork server, two workers
        assert run.poll() is None and time.monotonic() < deadline, workers
        time.sleep(0.05)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for process in alive:
        process.kill()
    assert alive == []
