"""What a study file says, as the options that its runs get: nothing is trained here."""

import pytest
import yaml
from training_runs import write_recipe

from falcon3_audio.training.arguments import AudioSFTConfig
from falcon3_audio.training.study_file import make_study, read_study


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


def test_a_study_that_extends_another(tmp_path):
    """Its arms are added to the other's or take their places; `false` leaves one out."""
    given = {"audio_model": "a/whisper", "text_model": "an/llm", "train_data": ["some.jsonl"], "bf16": False}
    write_recipe(tmp_path / "large.yaml", **given)
    write_recipe(tmp_path / "small.yaml", **(given | {"text_model": "a/small-llm"}))
    arms = {"as-is": None, "rank-4": {"lora_r": 4}, "linear": {"projector_type": "linear"}}
    parent = {"recipe": "large.yaml", "seeds": [3], "overrides": {"max_steps": 50}, "arms": arms}
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump(parent, sort_keys=False))
    own = {"as-is": {"lora_alpha": 4}, "linear": False, "high": {"learning_rate": 0.1}}
    child = {"extends": "parent.yaml", "recipe": "small.yaml", "arms": own}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(child, sort_keys=False))
    found = {arm.name: arm for arm in read_study(tmp_path / "child.yaml").arms}
    assert list(found) == ["as-is", "rank-4", "high"]
    stages = {name: arm.stages[3][0].options for name, arm in found.items()}
    assert {options["text_model"] for options in stages.values()} == {"a/small-llm"}
    assert {options["max_steps"] for options in stages.values()} == {50}
    assert (stages["as-is"]["lora_alpha"], stages["rank-4"]["lora_r"], stages["high"]["learning_rate"]) == (4, 4, 0.1)
    (tmp_path / "child.yaml").write_text("extends: nowhere.yaml")
    with pytest.raises(OSError, match="nowhere.yaml"):
        read_study(tmp_path / "child.yaml")
    none = "extends: parent.yaml\narms: {as-is: false, rank-4: false, linear: false}"
    for wrong in (
        "extends: parent.yaml\narms: [high]",
        none,
        "extends: listed.yaml\nrecipe: small.yaml\narms: {high: }",
    ):
        (tmp_path / "listed.yaml").write_text("arms: [as-is]")
        (tmp_path / "child.yaml").write_text(wrong)
        with pytest.raises(ValueError, match="`arms`, a mapping of names to options"):
            read_study(tmp_path / "child.yaml")
