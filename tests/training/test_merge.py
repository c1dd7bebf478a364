"""From adapter to plain checkpoint: the same model, without PEFT."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny import question, tone
from training_runs import farthest, files_up_to, parse, weights_of
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor, pipeline

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.adapters import find_base
from falcon3_audio.training import sft
from falcon3_audio.training.publishing.merge import load_adapted, main, merge


@pytest.fixture(scope="module")
def run(finished_run):
    return Path(finished_run.args.output_dir)


@pytest.fixture(scope="module")
def merged(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("merged") / "model"
    assert main([str(run), str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def inputs(run):
    processor = AutoProcessor.from_pretrained(run)
    chat = [*question(tone(0.7)), {"role": "assistant", "content": "a bell"}]
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True)


@torch.no_grad()
def logits(model, inputs):
    return model.eval()(**inputs).logits


def test_logits_are_those_of_the_trained_model(finished_run, run, merged, inputs):
    plain = AutoModelForMultimodalLM.from_pretrained(merged)
    assert type(plain) is Falcon3AudioForConditionalGeneration and plain.dtype == torch.float32
    assert not any("lora" in name or "original" in name for name, _ in plain.named_parameters())
    trained = logits(finished_run.model, inputs)
    torch.testing.assert_close(logits(load_adapted(run), inputs), trained, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(plain, inputs), trained, atol=1e-5, rtol=0)
    # And they differ from those before training.
    base = logits(AutoModelForMultimodalLM.from_pretrained(run / "base"), inputs)
    assert (base - trained).abs().max() > 1e-2


def test_every_weight_is_the_base_plus_what_was_learned(run, merged):
    """By hand: W + B A * alpha / r, and the projector as it was trained."""
    base, adapter, result = weights_of(run / "base"), weights_of(run), weights_of(merged)
    assert result.keys() == base.keys()
    expected = dict(base)
    for name, lora_a in adapter.items():
        layer = name.removeprefix("base_model.model.")
        if layer.endswith(".lora_A.weight"):
            lora_b = adapter[name.replace("lora_A", "lora_B")]
            layer = layer.replace(".lora_A", "")
            expected[layer] = base[layer] + lora_b @ lora_a * (16 / 8)
        elif "multi_modal_projector" in layer:
            expected[layer] = lora_a
    changed = {name for name in base if not torch.equal(base[name], expected[name])}
    assert len(changed) == 2 * 6 + 2 * 7 + 8
    assert farthest(result, expected) < 1e-6
    assert all(torch.equal(result[name], base[name]) for name in base.keys() - changed)


def test_the_folder_loads_with_the_auto_classes_and_answers(merged):
    assert AutoConfig.from_pretrained(merged).model_type == "falcon3_audio"
    assert isinstance(AutoProcessor.from_pretrained(merged), Falcon3AudioProcessor)
    pipe = pipeline("audio-text-to-text", model=str(merged))
    answer = pipe(text=question(tone(0.5)), max_new_tokens=4, return_full_text=False)
    assert isinstance(answer[0]["generated_text"], str)
    names = {path.name for path in merged.iterdir()}
    assert {"modeling_falcon3_audio.py", "processing_falcon3_audio.py", "chat_template.jinja"} <= names
    assert not any("adapter" in name for name in names)
    assert str(merged.parent.parent) not in (merged / "config.json").read_text()  # no path of this machine
    config = json.loads((merged / "config.json").read_text())
    assert config["auto_map"]["AutoModelForMultimodalLM"].startswith("modeling_falcon3_audio.")


def test_the_adapters_folder_loads_with_the_auto_class_too(finished_run, run, inputs):
    model = AutoModelForMultimodalLM.from_pretrained(run)
    torch.testing.assert_close(logits(model, inputs), logits(finished_run.model, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("composed", [True, False])
def test_a_run_with_relative_paths_loads_from_anywhere(recipe, checkpoint, inputs, tmp_path, monkeypatch, composed):
    monkeypatch.chdir(tmp_path)
    options = ["--config", recipe, "--output_dir", "runs/one", "--max_steps", "1", "--save_steps", "1"]
    if not composed:
        shutil.copytree(checkpoint, "given")
        options += ["--model", "given"]
    trainer = sft.train(*parse(*options))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for folder in ("one", "one/checkpoint-1"):
        model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "runs" / folder)
        torch.testing.assert_close(logits(model, inputs), logits(trainer.model, inputs), atol=1e-5, rtol=0)


def test_a_checkpoint_merges_as_well(run, tmp_path):
    merge(run / "checkpoint-2", tmp_path / "two")
    learned = weights_of(run / "checkpoint-2")
    name = "base_model.model.model.multi_modal_projector.linear_1.weight"
    projector = weights_of(tmp_path / "two")["model.multi_modal_projector.linear_1.weight"]
    assert torch.equal(projector, learned[name]) and not torch.equal(projector, weights_of(run)[name])


def test_a_run_that_was_moved_takes_its_own_base(run, merged, tmp_path):
    """Even if another run with another base is now in its old place."""
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    for folder in (old, new):
        shutil.copytree(run, folder)
    for folder in (new, new / "checkpoint-6"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(run / "base")
        (folder / "adapter_config.json").write_text(
            json.dumps(config | {"base_model_name_or_path": str(old / "base")})
        )
    assert find_base(new) == str(new / "base") == find_base(new / "checkpoint-6")
    shutil.rmtree(old)
    assert farthest(weights_of(merge(new, tmp_path / "out")), weights_of(merged)) == 0


@pytest.mark.parametrize("content", ["[]", '"LORA"', '{"peft_type": "NOPE"}', '{"base_model_name_or_path": 5}'])
def test_json_that_is_no_adapter(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match="adapter_config.json"):
        find_base(tmp_path)


def test_a_base_with_a_name_of_its_own_is_where_the_adapter_says(run, tmp_path, capsys):
    adapter, base = tmp_path / "adapter", tmp_path / "composed"
    shutil.copytree(run, adapter, ignore=shutil.ignore_patterns("checkpoint-*"))
    (adapter / "base").rename(base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    assert find_base(adapter) == str(base)
    shutil.rmtree(base)
    assert main([str(adapter), str(tmp_path / "out")]) == 1
    assert f"The base model of {adapter} is gone: looked in {base}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_base_models_dtype_is_kept(run, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(run, half, ignore=shutil.ignore_patterns("checkpoint-*"))
    model = AutoModelForMultimodalLM.from_pretrained(run / "base", dtype=torch.bfloat16)
    model.save_pretrained(half / "base")
    assert {weight.dtype for weight in weights_of(merge(half, tmp_path / "out")).values()} == {torch.bfloat16}
    assert isinstance(load_adapted(half), PeftModel)


def test_what_cannot_be_merged_is_one_line(run, merged, tmp_path, capsys):
    def said(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    assert "full exists and is not an empty folder" in said(run, tmp_path / "full")
    assert (tmp_path / "full" / "file").read_text() == "mine"
    assert "file exists and is not" in said(run, tmp_path / "full" / "file")
    assert "holds no adapter (adapter_config.json): it is already a plain checkpoint" in said(merged, tmp_path / "out")
    assert "holds no adapter (adapter_config.json). Give" in said(tmp_path / "nowhere", tmp_path / "out")
    damaged = Path(shutil.copytree(run, tmp_path / "damaged", ignore=shutil.ignore_patterns("checkpoint-*")))
    data = (damaged / "adapter_model.safetensors").read_bytes()
    (damaged / "adapter_model.safetensors").write_bytes(data[:-10])
    assert f"falcon3-audio merge: The weights in {damaged} cannot be read" in said(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with files_up_to(200_000):
        assert "A file could not be written" in said(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    assert main([str(run), str(tmp_path / "empty")]) == 0


def test_a_run_that_has_not_ended_is_named_with_its_last_checkpoint(finished_run, tmp_path):
    run = Path(shutil.copytree(finished_run.args.output_dir, tmp_path / "run"))
    (run / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=f"has not finished. Start it again to resume, or merge {run}/checkpoint-6"):
        merge(run, tmp_path / "merged")
    assert (merge(run / "checkpoint-6", tmp_path / "merged") / "config.json").exists()
