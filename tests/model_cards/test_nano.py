"""falcon3-audio-nano, as committed: complete, small and described correctly."""

import hashlib
import json
import re
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from falcon3_audio.training.publishing.run_facts import describe_outcome
from falcon3_audio.training.real import NANO, RECIPE
from falcon3_audio.training.recipe import parse_options
from falcon3_audio.training.run_folder import describe_recipe, with_defaults
from falcon3_audio.yaml_files import read_yaml


# The options of falcon3-audio train.
OPTIONS = (ModelArguments, LoraArguments, DataArguments, AudioSFTConfig)
FACTS = NANO.parent / "facts" / "falcon3-audio-nano.yaml"
ADAPTER = NANO / "adapter_model.safetensors"


def recorded():
    return yaml.safe_load((NANO / "recipe.yaml").read_text(encoding="utf-8"))


def test_it_is_small_and_finite_and_all_of_it_is_trained():
    assert ADAPTER.stat().st_size < 10_000_000
    weights = load_file(ADAPTER)
    assert all(weight.isfinite().all() for weight in weights.values())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    lora = [name for name in weights if ".lora_B." in name]
    assert len(lora) == 6 * 6 + 7 * 30 and all(weights[name].any() for name in lora)
    assert sum("multi_modal_projector" in name for name in weights) == 8


def test_it_was_trained_with_the_recipe():
    """Except for paths: training the recipe again uses the same options, defaults included."""
    options = parse_options(OPTIONS, ["--config", str(RECIPE)], "falcon3-audio train")
    before, now = recorded(), describe_recipe(*options)
    before = with_defaults(before, now, options) | {"examples": None}
    for recipe in (before, now):
        recipe["train_data"] = [source | {"path": Path(source["path"]).name} for source in recipe["train_data"]]
        for name in ("audio_model", "text_model"):
            recipe[name] = recipe[name].rpartition("/")[2].lower()
    assert before == now | {"examples": None}


def test_the_card_says_what_was_recorded():
    facts = read_yaml(FACTS)
    outcome = facts["training"]["outcome"]
    state = json.loads((NANO / "trainer_state.json").read_text(encoding="utf-8"))
    assert set(describe_outcome(state)) <= set(outcome)
    backbones = json.loads((NANO / "backbones.json").read_text(encoding="utf-8"))
    for option, part in (("audio_model", "audio_tower"), ("text_model", "language_model")):
        assert backbones[option]["parameters"] == facts["parameters"][part]
    for name in ("pooling_window", "pad_to_window", "trailing_silence", "read_trailing_silence"):
        assert facts["audio"][name] == recorded()[name]


def test_its_page_is_about_this_adapter():
    """Scores are of one file: if it is replaced, they must be measured again."""
    page = (NANO / "README.md").read_text(encoding="utf-8")
    (digest,) = re.findall(r"sha256 of `adapter_model.safetensors`: `([0-9a-f]{64})`", page)
    assert hashlib.sha256(ADAPTER.read_bytes()).hexdigest() == digest
