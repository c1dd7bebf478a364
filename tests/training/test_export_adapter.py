"""An adapter without its base model: exported, and put on backbones again."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from training_runs import weights_of

from falcon3_audio.training.publishing.adapter_base import describe_backbones
from falcon3_audio.training.publishing.export_adapter import export_adapter, main
from falcon3_audio.training.publishing.merge import main as merge_main
from falcon3_audio.training.publishing.merge import merge


@pytest.fixture(scope="module")
def run(finished_run):
    return Path(finished_run.args.output_dir)


@pytest.fixture(scope="module")
def backbones(run):
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    return [recipe["audio_model"], recipe["text_model"]]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "adapter"
    assert main([str(run), str(output), "--dtype", "float32"]) == 0
    return output


def test_what_is_written(run, exported, backbones):
    assert {path.name for path in exported.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "backbones.json"),
        *("recipe.yaml", "trainer_state.json", "loss_curve.png"),
    }
    assert all(torch.equal(value, weights_of(run)[name]) for name, value in weights_of(exported).items())
    text = "".join(path.read_text() for path in exported.iterdir() if path.suffix in (".json", ".yaml"))
    assert str(run.parent) not in text
    described = json.loads((exported / "backbones.json").read_text())
    assert [described[option]["name"] for option in ("audio_model", "text_model")] == [
        Path(name).name for name in backbones
    ]


def test_halves(run, tmp_path):
    export_adapter(run, tmp_path / "adapter")
    assert {weight.dtype for weight in weights_of(tmp_path / "adapter").values()} == {torch.bfloat16}


def test_put_on_its_backbones_it_is_the_model_that_was_trained(run, exported, backbones, tmp_path, capsys):
    """The base is composed again with another projector: the whole projector comes from the adapter."""
    options = ["--audio-model", backbones[0], "--text-model", backbones[1]]
    assert merge_main([str(exported), str(tmp_path / "model"), *options]) == 0
    assert "NOTE" not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    expected = weights_of(merge(run, tmp_path / "expected"))
    found = weights_of(tmp_path / "model")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    for name in ("processor_config.json", "chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("which", [0, 1])
def test_other_weights_of_the_same_shape_are_noticed(exported, backbones, tmp_path, capsys, which):
    other = tmp_path / "other"
    shutil.copytree(backbones[which], other)
    weights = load_file(other / "model.safetensors")
    name = sorted(name for name in weights if "layers.0" in name and "decoder" not in name)[0]
    weights[name].view(-1)[0] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    given = [str(other) if place == which else folder for place, folder in enumerate(backbones)]
    options = ["--audio-model", given[0], "--text-model", given[1]]
    assert merge_main([str(exported), str(tmp_path / "model"), *options]) == 0
    said = capsys.readouterr().err
    assert said.count("NOTE: ") == 1 and f"the weights of {other} are not those of the" in said
    known = json.loads((exported / "backbones.json").read_text())[("audio_model", "text_model")[which]]
    assert known["sha256"][:16] in said and known["name"] in said


def test_a_backbone_of_another_size(exported, backbones, tmp_path, capsys):
    options = ["--audio-model", backbones[0], "--text-model", str(tmp_path / "smaller")]
    shutil.copytree(backbones[1], tmp_path / "smaller")
    config = json.loads((tmp_path / "smaller" / "config.json").read_text())
    config["num_hidden_layers"] -= 1
    (tmp_path / "smaller" / "config.json").write_text(json.dumps(config))
    assert merge_main([str(exported), str(tmp_path / "model"), *options]) == 1
    assert f"parameters, but the adapter was trained on {Path(backbones[1]).name}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["smaller"]


def test_digests_do_not_depend_on_files(run, tmp_path):
    weights = load_file(run / "base" / "model.safetensors")
    names = sorted(weights)
    for number in (0, 1):
        save_file({name: weights[name] for name in names[number::2]}, tmp_path / f"model-{number}.safetensors")
    found = describe_backbones(tmp_path)
    assert found == describe_backbones(run / "base")
    audio = sum(weights[name].numel() for name in names if name.startswith("model.audio_tower."))
    projector = sum(weights[name].numel() for name in names if "multi_modal_projector" in name)
    everything = sum(weight.numel() for weight in weights.values())
    assert [part["parameters"] for part in found.values()] == [audio, everything - audio - projector]


def test_bad_input(run, exported, backbones, tmp_path, capsys):
    options = ["--audio-model", backbones[0], "--text-model", backbones[1]]
    assert merge_main([str(exported), str(tmp_path / "model")]) == 1
    assert "comes without its base model. Give the backbones" in capsys.readouterr().err
    assert merge_main([str(exported), str(tmp_path / "model"), *options[:2]]) == 1
    assert "give both" in capsys.readouterr().err
    assert merge_main([str(run), str(tmp_path / "model"), *options]) == 1
    assert "has no backbones.json" in capsys.readouterr().err
    assert main([str(run / "base"), str(tmp_path / "adapter")]) == 1
    assert "holds no adapter" in capsys.readouterr().err
    assert main([str(run), str(exported)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    loaded = tmp_path / "loaded"  # of a run that started from a composed model
    shutil.copytree(run, loaded, ignore=shutil.ignore_patterns("checkpoint-*"))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    (loaded / "recipe.yaml").write_text(
        yaml.safe_dump(recipe | {"audio_model": None, "text_model": None, "model": "x"})
    )
    assert main([str(loaded), str(tmp_path / "adapter")]) == 1
    assert "the model was not composed in this run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loaded"]
