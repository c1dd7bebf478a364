"""The GPU benchmarks, tested without a GPU: options, limits, summary, packages to bring, checks that find errors."""

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AttentionInterface


# Benchmarks are run from a clone; they are not part of the package.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import attention, measure, on_gpu, packages, summary, training_run


ROOT = packages.ROOT
FOLDERS = ["--audio-model", "whisper", "--text-model", "llm", "--data", "train.jsonl"]


def given(*options: str, out: Path = Path("out")) -> argparse.Namespace:
    return on_gpu.parser().parse_args([*options, str(out)])


@pytest.fixture
def scripts(monkeypatch):
    """Parts that only copy their record from benchmarks/results, if any; `generation` fails. Returns the calls."""
    called: list[list[str]] = []

    def run(command, limit, log):
        called.append(command[2:])
        if command[2] == "benchmarks.generation":
            log.write("a line\nOut of memory\n")
            log.flush()
            return 1
        path = Path(command[command.index("--output") + 1])
        if path.name == "training_run.json":
            path.write_text('{"steps": 1}')
        elif (summary.RESULTS / path.name).exists():
            shutil.copy(summary.RESULTS / path.name, path)
        return 0

    monkeypatch.setattr(on_gpu, "run_limited", run)
    return called


@pytest.mark.parametrize("options", [["--dry-run"], FOLDERS], ids=["dry run", "on a GPU"])
def test_every_script_has_the_options_that_it_is_given(options, scripts, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu.main([*options, str(tmp_path)])
    assert [name for name, *_ in scripts] == [
        f"benchmarks.{part.script}" for part in on_gpu.plan(given(*options, out=tmp_path))
    ]
    for name, *arguments in scripts:
        parsed = importlib.import_module(name).parser().parse_args(arguments)
        assert parsed.output.parent == tmp_path
    assert parsed.seconds >= 5  # of the last part, training


def test_the_summary_knows_the_records_and_they_are_few():
    for options in ([], ["--dry-run"]):
        names = [part.name for part in on_gpu.plan(given(*options))]
        assert set(names) <= set(summary.MAKERS) and len(set(names)) == len(names)
        assert len(names) + len(["log.txt", "summary.json"]) <= 8


def test_a_part_that_fails_does_not_stop_the_others(scripts, tmp_path, capsys):
    (tmp_path / "attention.json").write_text("of another day")
    assert on_gpu.main(["--dry-run", str(tmp_path)]) == 1
    written = json.loads((tmp_path / "summary.json").read_text())
    outcomes = {part["part"]: part["outcome"] for part in written["parts"]}
    assert outcomes.pop("generation") == outcomes.pop("training_run") == "failed"
    assert set(outcomes.values()) == {"ok"} and len(outcomes) == 4
    parts = {part["part"]: part for part in written["parts"]}
    assert parts["training_run"]["reason"] == "its record cannot be summarised: KeyError('options')"
    assert parts["generation"]["reason"] == "exit status 1: Out of memory"
    encoder = json.loads((summary.RESULTS / "encoder.json").read_text())
    assert parts["encoder"]["rows"] == summary.rows_of("encoder", encoder)
    assert not parts["attention"]["rows"] and not (tmp_path / "attention.json").exists()
    assert written["machine"]["versions"]["torch"] == torch.__version__ and written["dry run"]
    printed = capsys.readouterr().out
    assert "exit status 1: Out of memory" in printed and "encoder, 10 s, forward" in printed
    assert "$ " in (tmp_path / "log.txt").read_text()


def test_training_on_real_backbones_is_left_out_without_them(scripts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu.main(["--data", "set", str(tmp_path)])
    assert "training_run: skipped, 0 s (--audio-model, --text-model not given)" in capsys.readouterr().out
    assert "benchmarks.training_run" not in [name for name, *_ in scripts]


def test_nothing_is_begun_without_time_for_it(scripts, tmp_path, capsys):
    assert on_gpu.main(["--dry-run", "--seconds", "10", str(tmp_path)]) == 0
    assert not scripts and "attention: skipped, 0 s (of 10 s" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_gpu.main([str(tmp_path)]) == 1
    assert "no GPU here; --dry-run" in capsys.readouterr().err


def test_what_takes_too_long_is_ended_with_all_it_started(tmp_path):
    with (tmp_path / "log").open("w") as log:
        assert on_gpu.run_limited(["bash", "-c", "exit 3"], 60, log) == 3
        assert on_gpu.run_limited(["bash", "-c", "sleep 600 & echo $!; wait"], 2, log) is None
    child = Path("/proc", (tmp_path / "log").read_text().strip(), "stat")
    for _ in range(300):  # a killed process exits when it is next scheduled
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("what was started still runs")


def test_paths_are_those_of_the_callers_folder(tmp_path, monkeypatch):
    """Those of the interpreter and of the options; modules found there are not mistaken for this project's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('not mine')")
    monkeypatch.setenv("PYTHON", "./python")
    said = subprocess.run([ROOT / "benchmarks" / "on_gpu.sh", "--help"], capture_output=True, text=True)
    assert said.returncode == 0 and said.stdout.startswith("usage: benchmarks/on_gpu.sh"), said.stderr
    with (tmp_path / "log").open("w") as log:
        assert on_gpu.run_limited(["pwd"], 60, log) == 0
    assert Path((tmp_path / "log").read_text().strip()).samefile(tmp_path)


def test_the_card_is_what_nvidia_smi_says(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert on_gpu.card() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H200, 580.159.03, 143771 MiB'\n")
    tool.chmod(0o755)
    assert on_gpu.card() == {"name": "NVIDIA H200", "driver_version": "580.159.03", "memory.total": "143771 MiB"}
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert on_gpu.card() is None


def test_the_peak_of_a_card_by_its_name():
    peaks = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H200": 989e12,
        "NVIDIA A100-SXM4-80GB": 312e12,
        "NVIDIA H100 PCIe": None,
        "NVIDIA L4": None,
    }
    assert {name: measure.peak_rate(name) for name in peaks} == peaks


def test_the_table_of_a_folder(tmp_path, capsys):
    assert summary.main([str(tmp_path)]) == 1
    assert "no record in" in capsys.readouterr().err
    record = json.loads((summary.RESULTS / "training_step_1b.json").read_text())
    median = record["median seconds"]["falcon3-audio"]
    needed = sum(record["flops"]["needed"]["falcon3-audio"].values())
    record["options"]["size"] = "real"
    record |= {"peak FLOP/s": 4 * needed / median, "matmul FLOP/s": 2 * needed / median}
    (tmp_path / "training_step_1b.json").write_text(json.dumps(record))
    assert summary.main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "training, true widths of the 1B" in printed
    assert "; 25% of the card's peak; 50% of its measured matmul rate |" in printed


def test_wheels_that_are_too_large_are_refused(capsys):
    packages.check_size({"a.whl": 30 * 2**20, "b.whl": 10 * 2**20}, clone=20 * 2**20)
    assert "2 wheels of 40.0 MiB and a clone of 20.0 MiB" in capsys.readouterr().out
    with pytest.raises(ValueError, match="over 60 MiB. Largest are b.whl 50.0 MiB, a.whl 1.0 MiB"):
        packages.check_size({"a.whl": 2**20, "b.whl": 50 * 2**20}, clone=10 * 2**20)


def test_what_is_brought_along():
    names = set(packages.needed("3.12"))
    assert {"transformers", "tokenizers", "trl", "peft", "datasets", "accelerate", "soundfile", "soxr"} <= names
    assert "pycparser" in names  # needed by cffi, which soundfile needs
    assert not names & (packages.ON_THE_MACHINE | packages.NOT_NEEDED | {"falcon3-audio", "pytest"})


def test_the_package_is_linked(tmp_path):
    packages.link_package(tmp_path)
    root = tmp_path / "falcon3_audio"
    for name, source in {"": "modeling_falcon3_audio", "training": "training", "demo": "demo"}.items():
        for path in (ROOT / source).glob("*.py"):
            assert (root / name / path.name).resolve() == path
    assert (root / "training" / "tiny_backbones" / "llm" / "config.json").exists()
    assert (root / "training" / "recipes" / "falcon3_audio_7b.yaml").exists()
    assert (root / "evaluation" / "lmms_eval" / "__init__.py").exists()


def test_without_wheels_it_says_how_to_fetch_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packages, "WHEELS", tmp_path)
    assert packages.main(["install", str(tmp_path / "site")]) == 1
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"benchmarks/on_gpu.sh --fetch --python {version}" in capsys.readouterr().err
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"no wheel")
    assert packages.main(["install", str(tmp_path / "site")]) == 1
    assert "cannot be installed" in capsys.readouterr().err


def test_answers_are_compared_in_one_order():
    end = attention.END_TOKEN
    first, second = [7, 9, end], [6, end]
    for labels in (first + second, second + first):
        assert [labels[place] for place in attention._by_answer(labels)] == second + first


def test_attention_that_is_wrong_is_found(tmp_path, monkeypatch, capsys):
    """Output 10 % too large, an unknown implementation, and sdpa, right in both kinds of rows and in the encoder."""

    def wrong(module, *args, **kwargs):
        output, weights = AttentionInterface()["sdpa"](module, *args, **kwargs)
        return output * 1.1, weights

    AttentionInterface.register("wrong", wrong)
    monkeypatch.setattr(attention, "ways", lambda target, dtype: ["sdpa", "wrong", "no_such_attention"])
    output = tmp_path / "attention.json"
    arguments = ["--size", "tiny", "--questions", "8", "--repeats", "1", "--output", str(output)]
    assert attention.main(arguments) == 1
    assert "12 of 19 cases are not equal or in error: encoder, wrong, bfloat16;" in capsys.readouterr().err
    cases = json.loads(output.read_text())["cases"]
    outcomes = {way: {case["outcome"] for case in cases if case["attention"] == way} for way in ("sdpa", "wrong")}
    assert outcomes == {"sdpa": {"equal"}, "wrong": {"not equal", "error"}}  # shared rows reject ways without a mask
    assert all("reason" in case for case in cases if case["outcome"] == "error")
    assert cases[-1]["attention"] == "static cache" and cases[-1]["outcome"] == "equal"
    rows = summary.rows_of("attention", json.loads(output.read_text()))
    assert rows[0][2].startswith("7 equal, ")


def test_training_ends_with_its_time(tmp_path, capsys):
    output = tmp_path / "training_run.json"
    arguments = ["--seconds", "1", "--questions", "8", "--tokens", "1024", "--workers", "0", "--output", str(output)]
    assert training_run.main(arguments) == 0
    written = json.loads(output.read_text())
    assert len(written["log"]) == written["steps"] >= 1
    assert written["medians"]["samples_per_second"] > 0 and written["loss"]["first"] > 0
    assert written["log"][0]["learning_rate"] < 2e-4 and "repeats" not in written["options"]
    assert summary.rows_of("training_run", written)[0][0] == "training, whisper + llm"
