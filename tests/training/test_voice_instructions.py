"""Voice-instruction sets: what is read, what is written, and that neither kills nor workers change a byte of it.

Shards are read with `datasets` and soundfile, and the audio is compared with espeak-ng called directly.
"""

import hashlib
import io
import json
import os
import signal
from itertools import count

import numpy as np
import pytest
import soundfile
from child import in_child
from datasets import Dataset, DatasetDict, load_dataset
from tiny_tts import make_vits

from falcon3_audio.processing import load_audio
from falcon3_audio.training.data.shards import read_report, read_shards
from falcon3_audio.training.prepare import voice_instructions
from falcon3_audio.training.prepare.espeak import speak
from falcon3_audio.training.prepare.speakable import Exchange
from falcon3_audio.training.prepare.text_instructions import TextSource, open_text
from falcon3_audio.training.prepare.voice_instructions import main


ANIMALS = ("dog", "cat", "horse", "cow", "sheep", "goat", "hen", "duck", "goose", "pig", "bee", "ant")
ROWS = [
    *({"instruction": f"What does a {animal} eat?", "input": "", "output": f"A {animal} eats."} for animal in ANIMALS),
    {"instruction": "What does a fox eat?", "input": "", "output": " "},
    {"instruction": "Translate into French.", "input": "fox", "output": "renard"},
    {"instruction": "What does `fox` print?", "input": "", "output": "Nothing."},
    {"instruction": "What does\nan owl eat?", "input": None, "output": "An owl eats mice.\n"},
]
FILTERED = {"empty answer": 1, "has an accompanying text": 1, "code": 1}
TOO_LONG = {"instruction": "Read aloud 123456789012345678 " + "123456789012345678 " * 13, "input": "", "output": "No."}


pytestmark = pytest.mark.usefixtures("datasets_cache")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def run(source, out, *options, workers=1):
    return main([source, str(out), "--workers", str(workers), "--rows-per-shard", "5", *options])


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_what_is_written(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out, "--seed", "5") == 0
    names = [f"train-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in out.iterdir()) == sorted(["report.json", "set.lock", "summary.json", *names])
    rows = load_dataset("parquet", data_files=[str(out / name) for name in names], split="train")
    assert rows["row"] == [*range(12), 15]
    assert rows["instruction"] == [f"What does a {animal} eat?" for animal in ANIMALS] + ["What does an owl eat?"]
    assert set(rows["source"]) == {source} and set(rows["split"]) == {"train"} and set(rows["tts"]) == {"espeak-ng"}
    for row in rows:
        samples, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="float32")
        said = load_audio(*speak(row["instruction"], row["voice"], int(row["speed"]), row["pitch"]))
        assert rate == 16_000 and row["seconds"] == len(samples) / 16_000
        # Resampling a loud voice overshoots; it is scaled down then, not clipped.
        np.testing.assert_allclose(samples, said / max(1, np.abs(said).max()), atol=1 / 2**15)
    told = summary(out)
    assert told["samples"] == 13 and told["rows"] == 16 and told["filtered"] == FILTERED and told["failed"] == {}
    assert told["hours"] == pytest.approx(sum(rows["seconds"]) / 3600, abs=1e-4)
    assert sum(told["voices"].values()) == 13 and set(told["voices"]) == set(rows["voice"])
    said = capsys.readouterr().out
    assert f"13 samples, {told['hours']:.2f} hours" in said and f"{len(told['voices'])} voices" in said
    assert "left out by the rules: empty answer 1, has an accompanying text 1, code 1; not drawn: 0" in said


def test_training_reads_it(source, tmp_path, processor):
    out = tmp_path / "out"
    assert run(source, out) == 0
    row = read_shards(out)[12]
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    [item] = user["content"]
    assert item["type"] == "audio" and item["text"] is None
    item["audio"] = row["audio"]
    batch = processor.apply_chat_template(
        row["messages"], tokenize=True, return_dict=True, processor_kwargs={"return_labels": True}
    )
    labels = batch["labels"][0]
    assert processor.decode(labels[labels != -100]) == "An owl eats mice.<|endoftext|>"
    tokens = (batch["input_ids"][0] == processor.audio_token_id).sum()
    assert tokens == np.ceil(row["seconds"] * 25)


def test_workers_make_no_difference(source, tmp_path):
    for workers in (1, 2):
        assert run(source, tmp_path / str(workers), workers=workers) == 0
    assert digests(tmp_path / "1") == digests(tmp_path / "2")


@pytest.mark.parametrize("written", [0, 1])
def test_killed_and_started_again(source, tmp_path, monkeypatch, written):
    """Killed before (0) or after (1) the second shard is written, which is not in the report yet."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_shard, calls = voice_instructions.write_shard, count(1)

    def killed(*arguments):
        last = next(calls) == 2
        if written or not last:
            write_shard(*arguments)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)

    def first_run():
        monkeypatch.setattr(voice_instructions, "write_shard", killed)
        run(source, broken)

    assert in_child(first_run) == -signal.SIGKILL
    assert len(list(broken.glob("*.parquet"))) == 1 + written and not read_report(broken)["finished"]
    first = broken / "train-00000-of-00003.parquet"
    before = first.stat()
    assert run(source, broken) == 0 and run(source, whole) == 0
    assert digests(broken) == digests(whole)
    assert first.stat().st_mtime_ns == before.st_mtime_ns  # not spoken again
    after = digests(broken)
    assert run(source, broken) == 0 and digests(broken) == after  # finished: nothing to do


def test_a_second_start_is_refused(source, tmp_path, monkeypatch, capsys):
    """It is started while the first run writes its first shard."""
    write_shard, said = voice_instructions.write_shard, []

    def interrupted(*arguments):
        if not said:
            said.append(capsys.readouterr())
            assert run(source, tmp_path / "out") == 1
            said.append(capsys.readouterr().err)
        write_shard(*arguments)

    monkeypatch.setattr(voice_instructions, "write_shard", interrupted)
    assert run(source, tmp_path / "out") == 0 and run(source, tmp_path / "fresh") == 0
    assert f"another process is preparing the set in {tmp_path / 'out'}; wait until it finishes" in said[1]
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_folder_of_something_else(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out) == 0
    before = digests(out)
    changed = [ROWS[0] | {"output": "It eats."}, *ROWS[1:]]
    for other in (["--seed", "1"], ["--max-characters", "299"], ["--limit", "3"]):
        assert run(source, out, *other) == 1
        assert "holds a set made with" in capsys.readouterr().err
    write_jsonl(tmp_path / "rows.jsonl", changed)
    assert run(source, out) == 1 and "holds a set made with" in capsys.readouterr().err
    assert digests(out) == before
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (out / "train-00001-of-00003.parquet").unlink()
    assert run(source, out) == 1 and "lacks the shard train-00001" in capsys.readouterr().err
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "mine.txt").write_text("mine")
    assert run(source, strange) == 1 and "holds files but no report.json" in capsys.readouterr().err


def test_rows_that_fail(tmp_path, capsys):
    """Two of 14 rows fail: one in the first shard of five, one in the last."""
    out = tmp_path / "out"
    source = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], TOO_LONG, *ROWS[1:12], TOO_LONG])
    assert run(source, out, "--max-failed", "0.19") == 1
    said = capsys.readouterr().err
    assert "1 of the first 5 rows could not be spoken (longer than 30 s 1), more than the 19.00%" in said
    assert "row 1: " in said and " s. Fix the cause" in said
    assert not list(out.glob("*.parquet"))
    assert run(source, out, "--max-failed", "0.2") == 0  # a different limit is still the same set
    told = summary(out)
    assert told["samples"] == 12 and told["failed"] == {"longer than 30 s": 2}
    assert [example["row"] for example in told["failure_examples"]] == [1, 13]
    assert read_shards(out)["row"] == [0, *range(2, 13)]
    assert "could not be spoken: longer than 30 s 2" in capsys.readouterr().out


def test_limit_draws(source, tmp_path, capsys):
    drawn = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        assert run(source, out, "--limit", "6", "--seed", seed) == 0
        drawn.append(read_shards(out)["row"])
        assert summary(out)["not_drawn"] == 7
    assert all(rows == sorted(set(rows)) and len(rows) == 6 for rows in drawn)
    assert drawn[0] != drawn[1] and list(range(6)) not in drawn
    assert "not drawn: 7" in capsys.readouterr().out
    assert run(source, tmp_path / "all", "--limit", "99") == 0 and summary(tmp_path / "all")["samples"] == 13


def test_a_model_speaks(tmp_path):
    """Killed and started again in the middle, as above: batches start over with every shard."""
    folder = make_vits(tmp_path / "vits")
    source = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, ROWS[0] | {"instruction": "What do 3 dogs eat?"}])
    options = ("--tts", folder, "--batch-size", "2", "--limit", "7")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(source, whole, *options) == 0
    told = summary(whole)
    assert told["filtered"] == FILTERED | {"letters or digits the synthesiser does not know": 1}
    rows = read_shards(whole)
    assert len(rows) == 7 and set(rows["tts"]) == {folder} and set(rows["voice"]) <= {"0", "1", "2"}
    assert set(rows["pitch"]) == {None} and all(0.8 <= speed <= 1.25 for speed in rows["speed"])
    for row in rows:
        assert soundfile.info(io.BytesIO(row["audio"]["bytes"])).duration == row["seconds"]
    assert run(source, broken, *options) == 0
    report = read_report(broken)
    first = "train-00000-of-00002.parquet"
    # As a run that was killed after its first shard leaves it.
    half = read_report(broken) | {"finished": False}
    del half["shards"]
    kept = rows[: report["shards"][first]]
    half["done"] |= {
        "shards": {first: 5}, "rows": 5, "seconds": sum(kept["seconds"]),
        "voices": {voice: kept["voice"].count(voice) for voice in sorted(set(kept["voice"]))},
    }  # fmt: skip
    (broken / "report.json").write_text(json.dumps(half))
    (broken / "train-00001-of-00002.parquet").unlink()
    assert run(source, broken, *options) == 0
    assert digests(broken) == digests(whole)


CHATS = [
    [{"role": "user", "content": "What is rain?"}, {"role": "assistant", "content": "Water."}],
    [
        {"role": "system", "content": "Speak like a pirate."},
        {"role": "user", "content": "What is rain?"},
        {"role": "assistant", "content": "Grog."},
    ],
    [
        {"role": "user", "content": "What is snow?"},
        {"role": "assistant", "content": "Ice."},
        {"role": "user", "content": "And hail?"},
        {"role": "assistant", "content": "Ice, too."},
    ],
    [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "What is rain?"}],
    [{"role": "user", "content": "What is rain?"}],
]
EXCHANGES = [
    ("What is rain?", None, "Water."),
    ("What is rain?", "Speak like a pirate.", "Grog."),
    ("What is snow?", None, "Ice."),
    (None, None, None),
    ("What is rain?", None, None),
]


@pytest.mark.parametrize(
    "form", ["jsonl", "json", "parquet", "arrow", "folder", "saved", "splits", "folder of parquet"]
)
def test_sources(tmp_path, form):
    """The same chats in every form, with an extra column."""
    rows = Dataset.from_dict({"messages": CHATS, "id": list(range(5))})
    path = tmp_path / "data"
    if form in ("saved", "splits"):
        (rows if form == "saved" else DatasetDict(train=rows, test=rows.select([0]))).save_to_disk(path)
    elif "folder" in form:
        path.mkdir()
        rows.to_parquet(path / "train.parquet") if "parquet" in form else rows.to_json(path / "train.jsonl")
    else:
        path = path.with_suffix(f".{form}")
        if form == "json":
            path.write_text(json.dumps(rows.to_list()))
        elif form == "arrow":
            rows.save_to_disk(tmp_path / "saved")
            next((tmp_path / "saved").glob("*.arrow")).rename(path)
        else:
            rows.to_parquet(path) if form == "parquet" else rows.to_json(path)
    opened, read = open_text(TextSource(str(path)))
    assert opened.column_names == ["messages"]
    assert [read(row) for row in opened] == [Exchange(*exchange) for exchange in EXCHANGES]


def test_columns(tmp_path):
    rows = [{"prompt": "What is rain?", "context": "in Wales", "response": "Water.", "input": "?"}]
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    names = {"instruction_column": "prompt", "output_column": "response"}
    for column, accompanying in (("input", "?"), ("context", "in Wales")):
        opened, read = open_text(TextSource(source, input_column=column, **names))
        assert read(opened[0]) == ("What is rain?", accompanying, "Water.")
    with pytest.raises(
        ValueError, match=r"has the columns \['prompt', .*expected 'messages' \(chats\), or \['instruc"
    ):
        open_text(TextSource(source))
    with pytest.raises(ValueError, match="contxt"):  # a misspelt column is not treated as absent
        open_text(TextSource(source, input_column="contxt", **names))
    source = write_jsonl(tmp_path / "none.jsonl", 2 * [{"instruction": "What is rain?", "output": "Water."}])
    opened, read = open_text(TextSource(source))
    assert read(opened[0]) == ("What is rain?", None, "Water.")
    assert len(open_text(TextSource(source, split="train[:1]"))[0]) == 1  # each is passed on to `open_dataset`
    with pytest.raises(ValueError, match="configuration 'french'"):
        open_text(TextSource(source, config="french"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("{", [], "cannot be read: "),
        ("", [], "is empty"),
        ('{"text": "a"}\n', [], "has the columns ['text']; expected 'messages' (chats), or"),
        ('{"instruction": "a", "output": "b"}\n', [], "none of the 1 rows of {source} can be spoken: too short 1"),
        (None, [], "cannot be read: "),
        ("", ["--limit", "0"], "got limit=0; expected 1 or more"),
        ("", ["--rows-per-shard", "0"], "got rows_per_shard=0"),
        ("", ["--min-characters", "0"], "got min_characters=0"),
        ("", ["--seed", "-1"], "got seed=-1"),
        ("", ["--max-failed", "1"], "got max_failed=1.0; expected a share of 0 or more and below 1"),
        ("", ["--workers", "0"], "got workers=0"),
        ('{"instruction": "a", "output": "b"}\n', ["--language", "tlh"], "got the language 'tlh'"),
        ('{"instruction": "a", "output": "b"}\n', ["--split", "test"], "cannot be read: "),
        ('{"instruction": "a", "output": "b"}\n', ["--tts", "no/such-model"], "no/such-model cannot be loaded"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, content, options, message):
    source = tmp_path / "rows.jsonl"
    if content is not None:
        source.write_text(content)
    assert main([str(source), str(tmp_path / "out"), *options]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert message.format(source=source) in said[said.index("falcon3-audio voice-instructions: ") :]
    assert not (tmp_path / "out").exists()
