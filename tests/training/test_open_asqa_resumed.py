"""Open-ASQA's preparation when it is stopped, started again, or run by several workers: no byte changes.

Kills and full disks are real.
"""

import json
import os
import resource
import signal
import sys

import pytest
import soundfile
from child import in_child
from open_asqa_source import CLIPS, files_of, rewrite, roots_of, run
from tiny import tone

from falcon3_audio.training.prepare import open_asqa, open_asqa_rows
from falcon3_audio.training.prepare.open_asqa import main, prepare


def files_and_times(folder):
    """Shard name -> (inode, time). The inode of a deleted file can be reused; the time tells those apart."""
    stats = {path.name: path.stat() for path in folder.glob("*.arrow")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def test_broken_audio_that_was_mended_is_taken(source, tmp_path, small_buckets):
    whole = (source / "as" / "id-0.wav").read_bytes()
    (source / "as" / "id-0.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="as_20k: 0 of 4 clips are missing and 1 broken"):
        run(source, tmp_path / "out")
    kept = files_and_times(tmp_path / "out")
    (source / "as" / "id-0.wav").write_bytes(whole)
    run(source, tmp_path / "out")
    now = files_and_times(tmp_path / "out")
    redone = {name.split("-")[0] for name in now if kept.get(name) != now[name]}
    assert len(redone) == 1 and len(now) > 4  # only the affected bucket
    run(source, tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_a_second_start_is_refused_and_removes_nothing(source, tmp_path, monkeypatch, small_buckets, capsys):
    """It is started while the first run writes its second shard."""
    write_shard, shards = open_asqa.write_shard, []

    def interrupted(path, *arguments):
        shards.append(path)
        if len(shards) == 2:
            path.with_name(f"{path.name}.7.tmp").touch()
            options = [f"--audio-root={pattern}={folder}" for pattern, folder in roots_of(source)]
            assert main(["prepare", str(source / "rows.json"), str(tmp_path / "out"), *options]) == 1
            assert path.with_name(f"{path.name}.7.tmp").exists() and shards[0].exists()
        write_shard(path, *arguments)

    monkeypatch.setattr(open_asqa, "write_shard", interrupted)
    run(source, tmp_path / "out")
    [said] = capsys.readouterr().err.splitlines()
    assert f"another process is preparing the set in {tmp_path / 'out'}; wait until it finishes, or stop it" in said
    run(source, tmp_path / "out")  # removes the partial file
    run(source, tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_shards_of_an_earlier_run_do_not_stay(source, tmp_path, monkeypatch):
    monkeypatch.setattr(open_asqa, "SHARD_CLIPS", 2)
    (source / "as" / "id-0.wav").rename(tmp_path / "id-0.wav")
    (source / "as" / "id-0.wav").touch()
    with pytest.raises(ValueError, match="1 broken"):
        run(source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 6
    for path in [*source.rglob("*.wav"), *source.rglob("*.flac")]:
        path.unlink()
    (tmp_path / "id-0.wav").rename(source / "as" / "id-0.wav")
    report = run(source, tmp_path / "out", max_missing=1)
    assert report["shards"] == {"00000-00.arrow": 1}
    assert [path.name for path in (tmp_path / "out").glob("*.arrow")] == ["00000-00.arrow"]


def test_killed_at_every_step(source, tmp_path, monkeypatch, small_buckets):
    run(source, tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    replace, steps = os.replace, 0

    def killed_run(out, step):
        """In a child process: killed when its `step`-th file is complete but not renamed yet."""
        done = 0

        def counted(*paths):
            nonlocal done
            done += 1
            if done == step:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)

        monkeypatch.setattr(os, "replace", counted)
        run(source, out)

    for step in range(1, 100):
        out = tmp_path / f"out-{step}"
        if in_child(lambda out=out, step=step: killed_run(out, step)) == 0:
            break
        steps = step
        run(source, out)
        assert files_of(out) == expected, step
    shards = sorted(set(expected) - {"report.json", "set.lock"})
    buckets = {name.split("-")[0] for name in shards}
    assert len(shards) > len(buckets) > 2
    assert steps == len(shards) + len(buckets) + 4  # a record per bucket; the report twice, the rows and their summary

    # Killed again and again in the same folder, it still finishes: each run adds a step.
    for _ in range(99):
        if in_child(lambda: killed_run(tmp_path / "often", 4)) == 0:
            break
    assert files_of(tmp_path / "often") == expected


def test_a_bucket_that_is_done_is_not_done_again(source, tmp_path, monkeypatch, small_buckets):
    decoded = []
    load = open_asqa.load_audio

    def counted(path, name):
        decoded.append(path)
        if len(decoded) == 9:
            raise KeyboardInterrupt
        return load(path, name=name)

    monkeypatch.setattr(open_asqa, "load_audio", counted)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    done = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("work/*/*.done.json")]
    kept = sum(sum(record["shards"].values()) for record in done)
    assert 0 < kept < 9
    decoded[:] = [""] * 100
    run(source, tmp_path / "out")
    assert len(decoded) - 100 == CLIPS - kept
    decoded.clear()
    assert run(source, tmp_path / "out")["finished"]
    assert decoded == []


def test_workers_give_the_same_bytes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(open_asqa_rows, "BUCKET_BYTES", 2000)
    run(source, tmp_path / "one")
    run(source, tmp_path / "two", workers=2)
    assert len(files_of(tmp_path / "one")) > 3
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_a_full_disk(source, tmp_path, capfd):
    for number in range(0, CLIPS, 3):  # a shard larger than the limit
        soundfile.write(source / "as" / f"id-{number}.wav", tone(2.0, 300 + number), 16_000, "PCM_16")
    arguments = ["prepare", str(source / "rows.json"), str(tmp_path / "out"), "--workers", "1"]
    arguments += [part for pattern, folder in roots_of(source) for part in ("--audio-root", f"{pattern}={folder}")]

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        sys.exit(main(arguments))

    assert in_child(limited) == 1
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("falcon3-audio open-asqa: ")]
    assert "File too large" in line and "Run the same command again to resume" in line
    assert list((tmp_path / "out").glob("*.arrow*")) == []
    assert main(arguments) == 0
    run(source, tmp_path / "fresh")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "fresh")


def test_another_preparation_is_refused(source, tmp_path):
    report = run(source, tmp_path / "out")
    assert run(source, tmp_path / "out") == report
    with pytest.raises(ValueError, match="holds a set made with .* pass another folder, or delete that one"):
        prepare(source / "rows.json", tmp_path / "out", [("*", str(source / "as"))])
    rewrite(source, lambda rows: rows.reverse())
    with pytest.raises(ValueError, match="holds a set made with"):
        run(source, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ValueError, match="pass an empty folder"):
        run(source, tmp_path / "mine")
