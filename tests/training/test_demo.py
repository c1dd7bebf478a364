"""`make demo` at a small scale: it trains, saves, loads through the Auto classes and answers."""

import json

import pytest
from training_runs import run_here
from transformers import pipeline

from falcon3_audio.training import study
from falcon3_audio.training.world import demo


def test_the_demo_runs_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "_run_process", run_here)
    options = ["--max_steps", "2", "--train-clips", "12", "--test-clips", "12"]
    assert demo.main([str(tmp_path), *options]) == 0
    printed = capsys.readouterr().out
    for task in ("sound", "music", "speech"):
        assert f"{task} " in printed
    assert "fed silence" in printed
    pipe = pipeline("audio-text-to-text", model=str(tmp_path / "model"))
    row = json.loads((tmp_path / "world" / "test.json").read_text())[0]
    reply = pipe(str(tmp_path / "world" / row["audio_id"]), text=row["question"], max_new_tokens=4)
    assert isinstance(reply[0]["generated_text"], str)
    assert demo.main([str(tmp_path), "--score", str(tmp_path / "model")]) == 0
    lines = [line for line in printed.splitlines() if "fed silence" in line]
    again = [line for line in capsys.readouterr().out.splitlines() if "fed silence" in line]
    assert again == lines


def test_a_demo_with_other_options_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(study, "_run_process", lambda command, *others: 1)
    clips = ["--train-clips", "4", "--test-clips", "4"]
    assert demo.main([str(tmp_path), *clips, "--max_step", "2"]) == 1
    assert "nearest: max_steps" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text("{}")
    assert demo.main([str(tmp_path), *clips]) == 1
    assert f"{tmp_path / 'run'} was created by something else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--max_steps 2 --use_cpu --lora_r=4", {"max_steps": "2", "use_cpu": True, "lora_r": "4"}),
        ("--a 1 2", {"a": ["1", "2"]}),
    ],
)
def test_options_of_the_command_line_are_overrides(line, expected):
    assert demo.overrides(line.split()) == expected
