"""`make demo` in small: it trains, saves, loads through the Auto classes and answers."""

import json

from transformers import pipeline

from falcon3_audio.training import demo


def test_the_demo_runs_from_end_to_end(tmp_path, capsys):
    options = ["--max_steps", "2", "--train-clips", "40", "--test-clips", "30"]
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


def test_replies_are_compared_word_by_word():
    assert demo.is_right({"reply": "Beep , then bell", "answer": "beep, then bell"})
    assert not demo.is_right({"reply": "bell, then beep", "answer": "beep, then bell"})
    assert not demo.is_right({"reply": "", "answer": "beep"})
