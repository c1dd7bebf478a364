"""Adapters of runs that were renamed or copied: their own base model, in every program that loads one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import question, tokenized, tone
from training_runs import weights_of
from transformers import AutoModelForMultimodalLM

from falcon3_audio.adapters import base_of, find_base, load_model, load_pipeline, root_of
from falcon3_audio.demo.conversation import Assistant, Limits
from falcon3_audio.evaluation.local_model import LocalModel
from falcon3_audio.serving import chat_server
from falcon3_audio.training.arguments import ModelArguments
from falcon3_audio.training.estimate import _config


LOADERS = {
    "model": load_model,
    "pipeline": lambda folder: load_pipeline(folder).model,
    "serve": lambda folder: chat_server.load(folder).model,
    "evaluate": lambda folder: LocalModel(folder, device="cpu")._pipe.model,
    "demo": lambda folder: Assistant.load(folder, Limits(seconds=3), "cpu").model,
}


def test_only_numbered_folders_are_checkpoints_of_a_run():
    assert root_of(Path("runs/mine/checkpoint-200")) == Path("runs/mine")
    for name in ("checkpoint-1b", "checkpoint-mine", "checkpoint-"):
        assert root_of(Path("runs") / name) == Path("runs") / name


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def copied(run, folder):
    """A copy of a run as if it had been trained in its new place: adapters have the absolute path of its base."""
    shutil.copytree(run, folder)
    for path in (folder, folder / "checkpoint-6"):
        edit(path / "adapter_config.json", base_model_name_or_path=str(folder / "base"))
    return folder


def train_again(run):
    """As after a training from other backbones in the same place."""
    save_file({name: 3 * weight for name, weight in weights_of(run / "base").items()}, run / "base/model.safetensors")


@pytest.fixture(scope="module")
def run(finished_run):
    return Path(finished_run.args.output_dir)


@pytest.fixture(scope="module")
def places(run, tmp_path_factory):
    """`{what happened to a run: where it is now}`."""
    folder = tmp_path_factory.mktemp("moved")
    renamed = copied(run, folder / "first").rename(folder / "renamed")
    original = copied(run, folder / "original")
    copy = Path(shutil.copytree(original, folder / "copy"))
    train_again(original)
    (folder / "latest").symlink_to(copy / "checkpoint-6")
    return {"renamed": renamed, "copied": copy, "a checkpoint": copy / "checkpoint-6", "a link": folder / "latest"}


@torch.no_grad()
def logits(model, run):
    processor = load_pipeline(str(run)).processor
    return model.eval()(
        **tokenized(processor, [*question(tone(0.7)), {"role": "assistant", "content": "a bell"}])
    ).logits


@pytest.mark.parametrize("place", ["renamed", "copied", "a checkpoint", "a link"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_run_that_is_elsewhere_has_its_own_base(finished_run, run, places, loader, place):
    found = logits(LOADERS[loader](str(places[place])), run)
    torch.testing.assert_close(found, logits(finished_run.model, run), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16])
def test_where_it_was_trained_it_is_what_transformers_loads(run, tmp_path, dtype):
    there = copied(run, tmp_path / "run")
    half = AutoModelForMultimodalLM.from_pretrained(there / "base", dtype=torch.bfloat16)
    half.save_pretrained(there / "base")
    expected = AutoModelForMultimodalLM.from_pretrained(there, dtype=dtype)
    for model in (load_model(there, dtype=dtype), load_pipeline(str(there), dtype=dtype).model):
        assert type(model) is type(expected) and not model.training
        found, wanted = model.state_dict(), expected.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)  # of the same dtype too


def test_the_processor_is_the_adapters_own(run, tmp_path):
    there = copied(run, tmp_path / "run")
    edit(there / "processor_config.json", max_audio_seconds=7)
    assert load_pipeline(str(there)).processor.max_audio_seconds == 7
    (there / "processor_config.json").unlink()
    assert load_pipeline(str(there)).processor.max_audio_seconds == 300  # of the base


def test_a_base_that_is_gone_is_named(run, tmp_path):
    there = copied(run, tmp_path / "run")
    for named in (str(tmp_path / "gone"), r"C:\runs\gone", r"C:\runs\first\base"):
        edit(there / "adapter_config.json", base_model_name_or_path=named)
        if named.endswith("base"):  # trained on Windows
            assert find_base(there) == str(there / "base")
            shutil.rmtree(there / "base")
        for load in (load_model, chat_server.load, LocalModel):
            with pytest.raises(ValueError, match="The base model of .* is gone: looked in"):
                load(str(there))


def test_what_is_no_adapter_has_no_base(run, checkpoint, tmp_path):
    assert base_of(checkpoint) is None and base_of("ORG/NAME") is None and base_of(run) == str(run / "base")
    whole = Path(shutil.copytree(checkpoint, tmp_path / "whole"))  # with an adapter in it
    shutil.copy(run / "adapter_config.json", whole)
    assert base_of(whole) is None


def test_an_estimate_of_a_training_from_an_adapter_has_the_shapes_of_its_base(places):
    assert _config(ModelArguments(model=str(places["renamed"]))).text_config.hidden_size == 48
