"""Runs what the README shows, with small local models in the place of Hub ids and of the demo's checkpoint."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
from tiny import SAMPLING_RATE, tone

from falcon3_audio import PRESETS
from falcon3_audio.cli import main


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


def test_the_first_command_comes_early_and_named_files_exist():
    lines = README.splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make ")) <= 35
    for name in re.findall(r"`((?:tests|training|processing|modeling_falcon3_audio)/[\w./-]+)`", README):
        assert (ROOT / name).exists(), name
