"""Checking a training set before a run: what is counted, and what is listed."""

import json

import pytest
import soundfile
from tiny import SAMPLING_RATE, tone
from training_runs import CLIP_FEATURES, TEXT, assistant, clip_row, heard, user, write_chats, write_clips, write_jsonl

from falcon3_audio.training.data.check_data import check_data, main
from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data


def check(source):
    return check_data(load_training_data([source])[0], workers=2)


def test_all_is_counted(tmp_path):
    chats = write_chats(tmp_path / "chats", 3, silent=True)  # three, one in two turns, two in one chat, a chat without
    found = check(DataSource(str(chats), sound="some"))
    seconds = [soundfile.info(path).duration for path in sorted((tmp_path / "chats").glob("*.wav"))]
    assert (found.examples, found.clips, found.unread) == (6, 6, [])
    assert found.seconds == pytest.approx(sum(seconds) + 2 * seconds[0] + seconds[2], abs=1e-6)


def test_a_clip_is_decoded_once_for_all_of_its_questions(tmp_path):
    clips = write_clips(tmp_path / "clips", 5)
    with begin_set(tmp_path / "set", {}) as report:
        write_shard(tmp_path / "set" / "0.arrow", [clip_row(path, 4) for path in clips], CLIP_FEATURES)
        finish_set(tmp_path / "set", report, {"0.arrow": 5})
    found = check(DataSource(str(tmp_path / "set")))
    assert (found.examples, found.clips, found.unread) == (20, 5, [])
    assert found.seconds == pytest.approx(sum(soundfile.info(path).duration for path in clips), abs=1e-6)


def test_rows_that_would_end_a_run_are_listed(tmp_path, capsys):
    good, cut, gone = tmp_path / "good.wav", tmp_path / "cut.wav", tmp_path / "gone.wav"
    for path in (good, cut):
        soundfile.write(path, tone(0.5), SAMPLING_RATE)
    cut.write_bytes(cut.read_bytes()[:5000])
    rows = [[user(heard(path), TEXT), assistant("a bell")] for path in (good, cut, good, gone)]
    rows += [[{"role": "stranger", "content": "Hi"}, assistant("ho")], [user("Hi"), assistant("ho")]]
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": row} for row in rows])
    assert main([str(path), "--workers", "2"]) == 1
    first, counts, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{path}: 6 rows, read as chats (messages)"
    assert counts == "  6 questions, 2 clips, 0.0 min, the longest 0.5 s"
    assert lines[:4] == [
        "  Examples; lines that start with > are learned:",
        f"  {path}, row 0",
        "      user       [0.50 s of audio] 'What do you hear?'",
        "    > assistant  'a bell'",
    ]
    # The examples in the middle and at the end cannot be read.
    assert lines[4] == "  NOT READABLE: 4; a run would stop there (rows are counted from 0)"
    lines = lines[5:]
    assert [line.strip().split(": ")[0] for line in lines] == [f"{path}, row {number}" for number in (1, 3, 4, 5)]
    assert "truncated" in lines[0] and "gone.wav" in lines[1] and "stranger" in lines[2]
    assert "the row has no audio" in lines[3] and "`sound: some`" in lines[3]
    assert main([str(path), "--workers", "1", "--sound", "some"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip().split(": ")[0] for line in lines[-3:]] == [f"{path}, row {number}" for number in (1, 3, 4)]
    assert lines[-5] == "    > assistant  'ho'"  # the chat without audio is shown, but not listed


def test_a_set_of_texts_is_checked_where_it_is_said_to_be_one(tmp_path, capsys):
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": [user("Hi"), assistant("ho")]}])
    assert main([str(path), "--workers", "1"]) == 1
    assert "No row of the training set" in capsys.readouterr().err
    assert main([str(path), "--workers", "1", "--sound", "false"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "  1 question, 0 clips, 0.0 min"


def test_several_sets_and_bad_input(tmp_path, capsys):
    sets = [str(write_chats(tmp_path / name, 2)) for name in ("one", "two")]
    assert main([*sets, "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines if not line.startswith(" ")] == sets
    assert main([str(tmp_path / "none.jsonl")]) == 1
    assert capsys.readouterr().err.startswith("falcon3-audio check-data: ")
    (tmp_path / "other.jsonl").write_text(json.dumps({"text": "Hi"}) + "\n")
    assert main([str(tmp_path / "other.jsonl")]) == 1
    assert "The nearest is transcripts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*sets, "--workers", "0"])


def test_what_was_understood_is_printed(tmp_path, capsys):
    """Before any training: the format, what is ignored and left out, and examples as a model gets them."""
    for name, seconds in (("a", 0.25), ("b", 301), ("c", 0.5)):
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds), SAMPLING_RATE)
    table = tmp_path / "set.csv"
    table.write_text("path,words,speaker\na.wav,007,1\nb.wav,hello,2\nc.wav,two words,3\n", encoding="utf-8-sig")
    assert main([str(table), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "`columns: {audio: path, text: words}` (`check-data --columns 'audio=path,text=words'`)" in said
    assert main([str(table), "--workers", "1", "--columns", "audio=path,text=words"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{table}: 3 rows, read as transcripts (path, words), asked 'Transcribe the speech.' (the default of `prompt`)",
        "  3 questions, 3 clips, 5.0 min, the longest 301.0 s",
        "  not read: the column speaker",
        "  left out: 1 question about clips over 300 s",
        "  Examples; lines that start with > are learned:",
        f"  {table}, row 0",
        "      user       [0.25 s of audio] 'Transcribe the speech.'",
        "    > assistant  '007'",
        f"  {table}, row 1",
        "      user       [301.00 s of audio] 'Transcribe the speech.'",
        "    > assistant  'hello'",
        f"  {table}, row 2",
        "      user       [0.50 s of audio] 'Transcribe the speech.'",
        "    > assistant  'two words'",
    ]
    prompts = ["--prompt", "What is said?", "--prompt", "<audio>Write it down."]
    assert main([str(table), "--workers", "1", "--columns", "audio=path,text=words", *prompts]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith("asked one of 2 prompts, such as 'What is said?'")
    asked = {line.rpartition("] ")[2] for line in lines if " user " in line}
    assert asked <= {"'What is said?'", "'Write it down.'"}
    for wrong in ("audio", "audio=", "=path"):
        with pytest.raises(SystemExit):
            main([str(table), "--columns", wrong])
    assert "must be like audio=path,text=sentence" in capsys.readouterr().err
    assert main([str(table), "--columns", "sound=path"]) == 1
    assert "`columns` of" in capsys.readouterr().err


def test_rows_without_questions_are_counted(tmp_path, capsys):
    (clip,) = write_clips(tmp_path, 1)
    rows = [{"audio": clip.name, "questions": [{"instruction": "?", "output": "x" * 301}] * n} for n in (2, 0)]
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    assert main([str(path), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  left out: 1 row without questions" in lines
    assert f"    > assistant  '{'x' * 300}'... (301 characters)" in lines


def test_a_row_without_an_answer_is_found_before_a_run_finds_it(tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", tone(0.2), SAMPLING_RATE)
    answered = {"query": "<audio>What?", "response": "A bell.", "audios": ["a.wav"]}
    asked = {"messages": [{"role": "user", "content": "<audio>What?"}], "audios": ["a.wav"]}
    (tmp_path / "good.jsonl").write_text(json.dumps(answered))
    (tmp_path / "bad.jsonl").write_text(json.dumps(asked))
    assert main([str(tmp_path / "good.jsonl"), "--workers", "1"]) == 0
    assert main([str(tmp_path / "bad.jsonl"), "--workers", "1"]) == 1
    assert "bad.jsonl, row 0: no assistant message to learn from. Leave the row out" in capsys.readouterr().out


def test_what_opens_a_chat_is_not_learned(tmp_path, capsys):
    (clip,) = write_clips(tmp_path, 1)
    opened = [assistant("Send me a clip."), user(heard(clip), TEXT), assistant("a bell")]
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": opened}])
    assert main([str(path), "--workers", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{path}: 1 row, read as") and lines[1].startswith("  1 question, 1 clip, ")
    assert lines[-3:] == [
        "      assistant  'Send me a clip.'",
        "      user       [0.30 s of audio] 'What do you hear?'",
        "    > assistant  'a bell'",
    ]
    write_jsonl(path, [{"messages": opened[:2]}])
    assert main([str(path), "--workers", "1"]) == 1
    assert "row 0: no assistant message to learn from. " in capsys.readouterr().out


def test_of_many_bad_rows_the_first_are_listed(tmp_path, capsys):
    rows = [{"audio": f"{number}.wav", "text": "a"} for number in range(60)]
    (tmp_path / "gone.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main([str(tmp_path / "gone.jsonl"), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "row 49:" in said and "row 50:" not in said and "and 10 more like these" in said


def test_the_first_rows_alone(tmp_path, capsys):
    """Later rows are not read, and nothing in the set is converted."""
    (clip,) = write_clips(tmp_path, 1)
    rows = [{"messages": [user(heard(clip), TEXT), assistant("a bell")]}] * 3
    path = write_jsonl(tmp_path / "set.jsonl", rows)
    path.write_text(path.read_text() + "no JSON\n")
    assert main([str(path), "--first", "3", "--workers", "1"]) == 0
    first, seen, counts, *_ = capsys.readouterr().out.splitlines()
    assert first == f"{path}: a stream of unknown length; by its first 3 rows, read as chats (messages)"
    assert seen == "  3 rows from the start, no others"
    assert counts.startswith("  3 questions, 3 clips")
    assert main([str(path), "--first", "4", "--workers", "1"]) == 1
    with pytest.raises(SystemExit):
        main([str(path), "--first", "0"])
