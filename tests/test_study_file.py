"""What a study file says, as the options that its runs get: nothing is trained here."""

import pytest
from training_runs import write_recipe

from falcon3_audio.training.arguments import AudioSFTConfig
from falcon3_audio.training.study_file import make_study


@pytest.fixture
def study(tmp_path):
    """A study of a recipe that composes its model of two."""
    given = {"audio_model": "a/whisper", "text_model": "an/llm", "train_data": ["some.jsonl"], "bf16": False}
    recipe = write_recipe(tmp_path / "recipe.yaml", **given)
    return lambda **content: make_study("mine", recipe, content, "mine.yaml")


@pytest.mark.parametrize(
    ("common", "arm", "composed"),
    [
        ({}, {"model": "a/base"}, {"model": "a/base"}),
        ({}, [{"model": "a/base"}], {"model": "a/base"}),
        ({"model": "a/base"}, {}, {"model": "a/base"}),
        (
            {"model": "a/base"},
            {"audio_model": "b/whisper", "text_model": "b/llm"},
            {"audio_model": "b/whisper", "text_model": "b/llm"},
        ),
    ],
    ids=["arm", "stage", "overrides", "back"],
)
def test_what_names_the_model_takes_the_place_of_what_named_it_otherwise(study, common, arm, composed):
    """As on the command line of `falcon3-audio train`."""
    (mine,) = study(overrides=common, arms={"mine": arm}).arms
    (stage,) = mine.stages[0]
    names = ("model", "audio_model", "text_model")
    assert {name: stage.options[name] for name in names if name in stage.options} == composed
    assert {name: stage.settings[name] for name in names if stage.settings[name]} == composed


def test_several_gpus_do_not_hide_what_would_silently_not_happen(study, monkeypatch):
    monkeypatch.setattr(AudioSFTConfig, "n_gpu", 2)
    assert study(arms={"mine": None}).arms  # of which each run gets one
    with pytest.raises(ValueError, match="arm 'mine': `eval_data` would never be scored"):
        study(arms={"mine": {"eval_data": ["other.jsonl"]}})
