"""Checkpoint JSON that is not a configuration: a one-line error from each program that loads a checkpoint."""

import json
import shutil

import pytest
from transformers import AutoConfig

from falcon3_audio.saved_json import read_object, readable_json
from falcon3_audio_cli import main


COMMANDS = {
    "push": ["push", "{model}", "org/name", "--dry-run"],
    "export-gguf": ["export-gguf", "{model}", "{out}"],
    "card": ["card", "{model}", "--repo-id", "org/name"],
}
FILES = ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")


@pytest.fixture
def broken(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "broken")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", COMMANDS)
def test_json_that_is_no_configuration(command, name, broken, tmp_path, capsys):
    words = [word.format(model=broken, out=tmp_path / "out") for word in COMMANDS[command]]
    for content in ("[]", '"a text"', "3", "{", '{"feature_extractor": [], "model": 1}'):
        if command == "card" and name == "generation_config.json" or content[1:2] == '"' and name not in FILES[2:]:
            continue  # file not read, or unknown settings
        (broken / name).write_text(content)
        status = main(words)
        if content.startswith('{"') and (status == 0 or (tmp_path / "out").exists()):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            continue  # transformers accepts it
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert status == 1 and last.startswith(f"falcon3-audio {command}: ") and "broken" in last
        if not content.startswith('{"'):
            assert name in last
    assert not (tmp_path / "out").exists()


def test_what_transformers_stumbles_over_names_the_folder(broken):
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"text_config": 5}))
    with pytest.raises(ValueError, match="broken"), readable_json(broken):
        AutoConfig.from_pretrained(broken)
    with readable_json("org/name"):  # a Hub id has no files here
        pass


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--benchmark", "jsonl", "--data", "{data}", "--output-dir", "{out}", "--model", "{model}"],
        ["export-gguf", "{model}", "{out}"],
        ["demo-app", "{model}"],
        ["serve", "{model}"],
    ],
    ids=lambda command: command[0],
)
def test_what_is_no_folder_is_named(command, checkpoint, tmp_path, capsys):
    (tmp_path / "clip.wav").touch()
    (tmp_path / "data.jsonl").write_text('{"id": 1, "audio": "clip.wav", "question": "What?"}')

    def said(model):
        places = {"model": model, "data": tmp_path / "data.jsonl", "out": tmp_path / "out"}
        assert main([word.format(**places) for word in command]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1].removeprefix(f"falcon3-audio {command[0]}: ")

    assert said("runs/no-such-run").startswith("runs/no-such-run is not a local folder. ")
    for file in ("config.json", "model.safetensors"):
        assert said(f"{checkpoint}/{file}") == (
            f"{checkpoint}/{file} is a file; expected the folder of a checkpoint, or a Hub id."
        )


def test_a_language_model_alone_is_no_broken_json(backbone_folders, capsys):
    assert main(["serve", backbone_folders[1]]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(
        f"falcon3-audio serve: {backbone_folders[1]} has no processor, which an audio-language model"
    )


def test_read_object(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="a.json is not valid JSON"):
        read_object(tmp_path / "a.json")
