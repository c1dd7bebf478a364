"""Runs the examples in README and documentation, with small local models for Hub ids and the demo's checkpoint."""

import contextlib
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from running_server import Running
from tiny import SAMPLING_RATE, tone

from falcon3_audio import PRESETS
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio_cli import VERBS, main


ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES["README.md"]
HUB_ID = re.compile(r"\b(openai|tiiuae|Qwen)/[\w.-]+")


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


PYTHON = [(page, code) for page in PAGES for code in blocks("python", page)]
BASH = [line for page in PAGES for block in blocks("bash", page) for line in block.splitlines() if line]


def commands(verb, page=None):
    """Arguments of the commands with a verb, comments left out; each once."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines()] if page else BASH
    found = [line.partition("  #")[0].strip() for line in lines if line.startswith(f"falcon3-audio {verb}")]
    return [shlex.split(line)[1:] for line in dict.fromkeys(found)]


@pytest.fixture
def local(backbone_folders, checkpoint, tmp_path, monkeypatch):
    """Replaces names that need the network or `make demo` with local ones; the working folder has the pages' files."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip.wav", "dog.wav"):
        soundfile.write(name, tone(1), SAMPLING_RATE)
    Path("my.jsonl").write_text(blocks("json", "README.md")[0])

    def replace(text: str) -> str:
        text = HUB_ID.sub(lambda match: backbone_folders[match.group(1) != "openai"], text)
        text = re.sub(r"runs/demo/world/[\w/.-]+\.wav", "clip.wav", text)
        return text.replace("runs/demo/model", checkpoint)

    return replace


@pytest.mark.parametrize("page, code", PYTHON, ids=[f"{page}-{number}" for number, (page, _) in enumerate(PYTHON)])
def test_python_snippets(page, code, local, checkpoint):
    code = local(code)
    if "http://127.0.0.1:8000" not in code:
        exec(compile(code, page, "exec"), {})
        return
    with Running(checkpoint) as server:
        exec(compile(code.replace("http://127.0.0.1:8000", server.url).replace(checkpoint, "tiny"), page, "exec"), {})


def test_composing(local, backbone_folders, tmp_path, monkeypatch):
    audio, text = backbone_folders
    for preset in PRESETS.values():
        monkeypatch.setitem(preset, "audio", audio)
        monkeypatch.setitem(preset, "text", text)
    assert commands("compose")
    for index, words in enumerate(commands("compose")):
        folder = tmp_path / f"model-{index}"
        assert main([local(word).replace("my-model", str(folder)) for word in words]) == 0
        assert (folder / "config.json").exists()


def test_make_has_what_is_named():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"`make ([\w-]+)`", "\n".join(PAGES.values()))
    assert {shlex.split(line)[1] for line in BASH if line.startswith("make ")} | set(named) <= targets


def test_training_on_ones_own_sounds(backbone_folders, local):
    audio, text = backbone_folders
    (check,), (train,), (merge,) = (commands(verb, "README.md") for verb in ("check-data", "train", "merge"))
    assert main(check) == 0
    train = [str(ROOT / word) if word.startswith("training/") else word for word in train]
    here = ["--audio_model", audio, "--text_model", text, "--dtype", "float32", "--bf16", "false", "--use_cpu"]
    here += ["--per_device_train_batch_size", "1", "--global_batch_size", "1", "--dataloader_num_workers", "0"]
    assert main([*train, *here]) == 0
    assert main(merge) == 0
    assert (Path(merge[-1]) / "config.json").exists()


def test_making_the_papers_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (prepare,), (speak,) = commands("open-asqa"), commands("voice-instructions")
    sounds = tmp_path / "sounds"
    for name in ("audioset", "vggsound"):
        (sounds / name).mkdir(parents=True)
        soundfile.write(sounds / name / "a.wav", tone(0.3), SAMPLING_RATE)
    rows = [{"dataset": name, "audio_id": "/elsewhere/a.wav"} for name in ("as_20k", "vggsound_train")]
    asked = {"instruction": "What is heard?", "input": "", "task": "open", "output": "a tone"}
    Path("openasqa_10.3M_v2.json").write_text(json.dumps([row | asked for row in rows]))
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


def options_of(verb):
    """The options in a verb's full help."""
    said = io.StringIO()
    more = "--help-all" if verb[0] in ("train", "grpo") else "--help"
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*verb, more])
    return set(re.findall(r"--[\w-]+", said.getvalue()))


def test_every_verb_is_explained_and_every_command_has_a_verb():
    used = set(re.findall(r"falcon3-audio\s+([a-z][\w-]*)", "\n".join(PAGES.values())))
    assert set(VERBS) <= used
    assert {words[0] for words in commands("")} <= set(VERBS)


@pytest.mark.parametrize("words", commands(""), ids=" ".join)
def test_options_of_commands_exist(words):
    ours = words[: words.index("--")] if "--" in words else words
    given = {word.partition("=")[0] for word in ours if word.startswith("--")}
    verb = ours[:2] if ours[0] in ("open-asqa", "results") else ours[:1]
    assert given <= options_of(verb) | {"--train_data"}


def test_the_first_command_comes_early_and_the_readme_is_short():
    lines = README.splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make ")) <= 35
    assert len(lines) <= 130


def test_named_files_exist():
    for page, text in PAGES.items():
        for name in re.findall(
            r"`((?:tests|training|processing|evaluation|serving|demo|docs|modeling_falcon3_audio|benchmarks|model_cards)/[\w./-]+)`",
            text,
        ):
            assert (ROOT / name).exists(), f"{page}: {name}"
        for name in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
            assert ((ROOT / page).parent / name).exists(), f"{page}: {name}"


def test_pictures_are_those_of_the_script(tmp_path):
    runpy.run_path(str(ROOT / "docs" / "make_figures.py"))["main"](tmp_path)
    for path in tmp_path.glob("*.svg"):
        assert path.read_text() == (ROOT / "docs" / "images" / path.name).read_text(), path.name


def test_the_documentation_builds(tmp_path):
    """Strictly: a broken link, anchor or name in the reference is an error; and nothing is fetched from other sites."""
    run = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for page in tmp_path.glob("*.html"):
        assert (
            re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", page.read_text(encoding="utf-8")) == []
        ), page.name
