"""Runs what the README shows, with small local models in the place of Hub ids and of the demo's checkpoint."""

import json
import re
import shlex
from pathlib import Path

import pytest
import soundfile
from tiny import SAMPLING_RATE, tone

from falcon3_audio import PRESETS
from falcon3_audio.training.arguments import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio_cli import VERBS, main


ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BASH = [line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line]
HUB_ID = re.compile(r"\b(openai|tiiuae|Qwen)/[\w.-]+")


@pytest.fixture
def local(backbone_folders, checkpoint, tmp_path):
    """Replaces names that need the network or an earlier `make demo` by local ones."""
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, tone(1), SAMPLING_RATE)

    def replace(text: str) -> str:
        text = HUB_ID.sub(lambda match: backbone_folders[match.group(1) != "openai"], text)
        text = re.sub(r"runs/demo/world/[\w/.-]+\.wav", str(clip), text)
        return text.replace("runs/demo/model", checkpoint)

    return replace


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets(code, local):
    exec(compile(local(code), "README.md", "exec"), {})


def test_commands(local, backbone_folders, tmp_path, monkeypatch):
    audio, text = backbone_folders
    for preset in PRESETS.values():
        monkeypatch.setitem(preset, "audio", audio)
        monkeypatch.setitem(preset, "text", text)
    composed = [line for line in BASH if line.startswith("falcon3-audio compose")]
    assert composed
    for index, line in enumerate(composed):
        _, *arguments = shlex.split(local(line).replace("my-model", str(tmp_path / f"model-{index}")))
        assert main(arguments) == 0
        assert (tmp_path / f"model-{index}" / "config.json").exists()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {shlex.split(line)[1] for line in BASH if line.startswith("make ")} <= targets


JSONL = re.findall(r"```json\n(.*?)```", README, re.DOTALL)


def commands(verb):
    return [shlex.split(line.partition("  #")[0])[1:] for line in BASH if line.startswith(f"falcon3-audio {verb}")]


def test_training_on_ones_own_sounds(backbone_folders, tmp_path, monkeypatch):
    audio, text = backbone_folders
    monkeypatch.chdir(tmp_path)
    soundfile.write("dog.wav", tone(0.3), SAMPLING_RATE)
    Path("my.jsonl").write_text(JSONL[0])
    (train,), (merge,) = commands("train"), commands("merge")
    train = [str(ROOT / word) if word.startswith("training/") else word for word in train]
    here = ["--audio_model", audio, "--text_model", text, "--dtype", "float32", "--bf16", "false", "--use_cpu"]
    here += ["--per_device_train_batch_size", "1", "--global_batch_size", "1", "--dataloader_num_workers", "0"]
    assert main([*train, *here]) == 0
    assert main(merge) == 0
    Path("questions.jsonl").write_text(JSONL[1])
    assert load_training_data([DataSource("questions.jsonl")])[1] == [2]
    assert main([*train, "--train_data", "questions.jsonl", "--output_dir", "runs/questions", *here]) == 0
    assert (tmp_path / merge[-1] / "config.json").exists()


def test_making_the_papers_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (prepare,), (speak,) = commands("open-asqa"), commands("voice-instructions")
    sounds = tmp_path / "sounds"
    for name in ("audioset", "vggsound"):
        (sounds / name).mkdir(parents=True)
        soundfile.write(sounds / name / "a.wav", tone(0.3), SAMPLING_RATE)
    rows = [{"dataset": name, "audio_id": "/elsewhere/a.wav"} for name in ("as_20k", "vggsound_train")]
    asked = {"instruction": "What is heard?", "input": "", "task": "open", "output": "a tone"}
    Path("open_asqa_v2.json").write_text(json.dumps([row | asked for row in rows]))
    assert main([word.replace("/sounds", str(sounds)) for word in prepare]) == 0
    said = [{"instruction": "Name three animals.", "input": "", "output": "Dog, cat, cow."}]
    Path("alpaca.jsonl").write_text("\n".join(map(json.dumps, said)))
    assert main([word.replace("yahma/alpaca-cleaned", "alpaca.jsonl") for word in speak]) == 0
    sources = [DataSource("data/open_asqa"), DataSource("data/voice_instructions")]
    assert load_training_data(sources)[1] == [2, 1]


def test_evaluating(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": str(n), "audio_id": "a.wav", "question": "What?", "choices": ["a dog", "a bell"]} for n in range(2)]
    rows = [row | {"answer": "a bell", "task": "sound", "category": "c", "difficulty": "easy"} for row in rows]
    Path("world").mkdir()
    soundfile.write("world/a.wav", tone(0.3), SAMPLING_RATE)
    Path("world/test.json").write_text(json.dumps(rows))
    places = {"runs/demo/world/test.json": "world/test.json", "runs/demo/model": checkpoint}
    assert len(commands("evaluate")) == 2
    for command in commands("evaluate"):
        assert main([places.get(word, word) for word in command]) == 0
    (compare,) = commands("compare")
    assert main(compare) == 0
    assert json.loads(Path("scores/deaf/run.json").read_text())["control"] == "silence"


def test_every_verb_is_explained_and_every_command_has_a_verb():
    used = set(re.findall(r"`falcon3-audio ([a-z][\w-]*)", README))
    assert used and used <= set(VERBS)
    assert {shlex.split(line)[1] for line in BASH if line.startswith("falcon3-audio ")} <= set(VERBS)


def test_the_first_command_comes_early_and_named_files_exist():
    lines = README.splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make ")) <= 35
    for name in re.findall(
        r"`((?:tests|training|processing|evaluation|demo|modeling_falcon3_audio)/[\w./-]+)`", README
    ):
        assert (ROOT / name).exists(), name
