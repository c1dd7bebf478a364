"""The `--help` of the verbs that read recipes."""

import dataclasses
import re

import pytest
from trl import DPOConfig, GRPOConfig, SFTConfig

from falcon3_audio.training import dpo, grpo, sft
from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments


BOTH = [ModelArguments, LoraArguments, DataArguments]
VERBS = [
    (sft, [*BOTH, AudioSFTConfig], SFTConfig),
    (grpo, [*BOTH, grpo.RewardArguments, grpo.AudioGRPOConfig], GRPOConfig),
    (dpo, [*BOTH, dpo.AudioDPOConfig], DPOConfig),
]
# This project's options that a verb does not use, or that must keep their defaults.
NOT_TO_BE_SET = {
    sft: {"remove_unused_columns", "ddp_find_unused_parameters", "gradient_checkpointing"},
    grpo: {"shuffle_buffer_size"},
    dpo: {"shuffle_buffer_size", "max_length", "remove_unused_columns"},
}


def said(module, capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        module.main(list(arguments))
    assert not stop.value.code
    return capsys.readouterr().out


def listed(text):
    return re.findall(r"^  --(\w+) ", text, re.M)


@pytest.mark.parametrize(("module", "groups", "trainer"), VERBS)
def test_help_has_this_projects_options_first_and_few_others(module, groups, trainer, capsys):
    names = listed(said(module, capsys, "--help"))[1:]  # after --config
    own = {name for group in groups for name in group.__annotations__} - NOT_TO_BE_SET[module]
    assert set(names[: len(own)]) == own and len(names) == len(set(names))
    others = names[len(own) :]
    assert "output_dir" in others and len(others) < 25
    assert set(others) <= {field.name for field in dataclasses.fields(trainer)}


@pytest.mark.parametrize(("module", "groups", "trainer"), VERBS)
def test_help_sends_nobody_to_the_sources(module, groups, trainer, capsys):
    assert not re.search(r"\w\.py\b", said(module, capsys, "--help"))


@pytest.mark.parametrize(("module", "groups", "trainer"), VERBS)
def test_help_all_has_all_of_them_once_in_the_same_order(module, groups, trainer, capsys):
    few, names = listed(said(module, capsys, "-h")), listed(said(module, capsys, "--help-all"))
    fields = [field.name for group in groups for field in dataclasses.fields(group) if field.init]
    assert sorted(names) == sorted(["config", *fields])
    assert names[: len(few)] == few


def test_defaults_are_those_of_the_classes_or_of_the_recipe(tmp_path, capsys):
    text = " ".join(said(sft, capsys, "--help").split())
    assert "--lora_dropout X Dropout on the inputs of the adapters. (default: 0.05)" in text
    assert "--projector_type mlp|linear Type of the new projector. (default: mlp)" in text
    assert (
        "--model VALUE Composed checkpoint to train: folder or Hub id. Alternatively, audio_model and text_model. "
        "(default: null)" in text
    )
    assert "--audio_token VALUE Placeholder for audio (default: an unused token, or a new one). --dtype" in text
    assert "--compile_layers true|false" in text
    (tmp_path / "recipe.yaml").write_text("lora_dropout: 0.5\noutput_dir: 100%\n")
    text = " ".join(said(sft, capsys, "--config", str(tmp_path / "recipe.yaml"), "--help").split())
    assert "--lora_dropout X Dropout on the inputs of the adapters. (default: 0.5)" in text
    assert "written. (default: 100%)" in text
