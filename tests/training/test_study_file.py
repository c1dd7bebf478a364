"""Study files, as the options that their runs get: nothing is trained here."""

from pathlib import Path

import pytest
import yaml
from training_runs import write_recipe

from falcon3_audio.training.arguments import AudioSFTConfig
from falcon3_audio.training.studies.study_file import Study, make_study, read_study
from falcon3_audio.training.studies.study_runs import runs_of, steps_of
from falcon3_audio.yaml_files import read_yaml


TRAINING = Path(__file__).resolve().parents[2] / "training"
# Arms of paper.yaml, and the recipes that train them on several GPUs.
ABLATIONS = {
    "two-stage": ["two_stage_1_projector", "two_stage_2_lora"],
    "frozen-language-model": ["frozen_language_model"],
    "frozen-encoder": ["frozen_encoder"],
    "linear-projector": ["linear_projector"],
    "no-pooling": ["no_pooling"],
    "rank-4": ["lora_rank_4"],
    "rank-16": ["lora_rank_16"],
    "lora-attention": ["lora_attention"],
    "lora-qv": ["lora_qv"],
    "mean-over-layers": ["weighted_layer_sum"],
    "open-asqa-alone": ["open_asqa_only"],
    "other-language-model": ["qwen2_5"],
    "multilingual-encoder": ["multilingual_encoder"],
}


def test_the_papers_arms_are_those_of_its_recipes():
    arms = yaml.safe_load((TRAINING / "studies" / "paper.yaml").read_text())["arms"]
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in (TRAINING / "recipes" / "ablations").iterdir()}
    assert sorted(recipes) == sorted(name for names in ABLATIONS.values() for name in names)
    for arm, names in ABLATIONS.items():
        stages = arms[arm] if isinstance(arms[arm], list) else [arms[arm]]
        for stage, recipe in zip(stages, (recipes[name] for name in names), strict=True):
            assert recipe.pop("extends") == "../falcon3_audio_7b.yaml"
            place = {"output_dir", "model"} | {
                name for name in ("audio_model", "text_model") if recipe.get(name) is None
            }
            assert {name: value for name, value in recipe.items() if name not in place} == stage


def test_merge_keys_of_yaml(tmp_path):
    (tmp_path / "some.yaml").write_text("a: &a {lora_r: 4, seed: 1}\nb: {<<: *a, lora_r: 8}\n")
    assert read_yaml(tmp_path / "some.yaml")["b"] == {"lora_r": 8, "seed": 1}


@pytest.fixture
def study(tmp_path):
    """A study of a recipe that composes its model from two backbones."""
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


def test_what_an_arm_would_ignore_is_refused_or_replaced(study):
    """The length of a run replaces the recipe's; the learning rate of a frozen tower is refused."""
    (mine,) = study(overrides={"max_steps": 480}, arms={"longer": {"num_train_epochs": 3}}).arms
    assert (mine.stages[0][0].settings["max_steps"], mine.stages[0][0].settings["num_train_epochs"]) == (-1, 3)
    frozen = {"lora_audio_tower": "none", "audio_tower_learning_rate": 1e-5}
    with pytest.raises(ValueError, match="arm 'mine': audio_tower_learning_rate=1e-05 would be ignored"):
        study(arms={"mine": frozen})
    with pytest.raises(ValueError, match="arm 'mine': max_steps must be of type int, got 1.5 of type float"):
        study(arms={"mine": {"max_steps": 1.5}})


def test_a_study_that_extends_another(tmp_path):
    """Its arms are added to the other's or replace them; `false` leaves one out."""
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


def test_an_arm_that_is_left_out_must_be_there(tmp_path):
    """Else a misspelt name would train the arm. Names are text, also those that YAML reads as numbers."""
    write_recipe(tmp_path / "recipe.yaml", model="a/base", train_data=["some.jsonl"], bf16=False)
    (tmp_path / "parent.yaml").write_text("recipe: recipe.yaml\narms: {base: , 4: {lora_r: 4}}")
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\narms: {'4': false}")
    assert [arm.name for arm in read_study(tmp_path / "child.yaml").arms] == ["base"]
    (tmp_path / "child.yaml").write_text("extends: parent.yaml\narms: {bsae: false}")
    with pytest.raises(ValueError, match="leaves out bsae, but the arms that it inherits are base, 4"):
        read_study(tmp_path / "child.yaml")
    for twice in ("{4: , 4.0: }", "{yes: , on: }", "{4: , '4': }"):
        (tmp_path / "parent.yaml").write_text(f"recipe: recipe.yaml\narms: {twice}")
        with pytest.raises(ValueError, match="is given twice|has two arms '4'"):
            read_study(tmp_path / "parent.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"arms": {"report.md": None}}, "arm 'report.md': 'report.md' is a file of the study's report"),
        ({"evaluate": [{"data": ["x", "y"]}]}, r"`data` must be a path, got \['x', 'y'\]"),
        ({"evaluate": [{"data": 5}]}, "`data` must be a path, got 5"),
        (
            {"evaluate": [{"data": "x", "controls": [["silence"]]}]},
            r"`controls` must be a list of .*; got \[\['silence'\]\]",
        ),
        ({"evaluate": [{"data": "x", "allow_incomplete": True}]}, "options that do not exist: --allow_incomplete"),
    ],
)
def test_values_of_other_types_are_one_line(study, content, said):
    entries = [{"benchmark": "jsonl"} | entry for entry in content.get("evaluate", [])]
    with pytest.raises(ValueError, match=said):
        study(**{"arms": {"a": None}} | content | {"evaluate": entries})


def test_a_stage_that_goes_on_with_grpo(study, tmp_path):
    """It has the options of its recipe and of the stage, none of the study's; its path is relative to the study."""
    write_recipe(tmp_path / "grpo.yaml", train_data=["asked.jsonl"], bf16=False, num_generations=4)
    grpo = {"grpo": "grpo.yaml", "num_generations": 2, "per_device_train_batch_size": 4}
    given = {"evaluate": [], "overrides": {"lora_r": 4, "max_steps": 7}, "arms": {"a": [{}, grpo]}, "seeds": [3]}
    (arm,) = make_study("mine", tmp_path / "recipe.yaml", given, "mine.yaml", tmp_path).arms
    assert arm.overrides == [{}, grpo]
    (run,) = runs_of(Study("mine", [arm], []), tmp_path / "out")
    first, _, second, merged = steps_of(run)
    assert (first.module, second.module) == ("training.sft", "training.grpo")
    written = yaml.safe_load(yaml.safe_dump(second.options))
    assert written.pop("output_dir") == str(run.folder / "stage-2" / "run")
    assert written.pop("model") == str(run.folder / "stage-1" / "model")
    assert written["seed"] == 3 and written["num_generations"] == 2 and written["train_data"] == ["asked.jsonl"]
    assert not written.keys() & {"grpo", "lora_r", "max_steps", "text_model"}
    assert second.settings["num_generations"] == 2 and second.settings["lora_r"] == 8
    assert merged.arguments == [str(run.folder / "stage-2" / "run"), str(run.folder / "stage-2" / "model")]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"grpo": "grpo.yaml"}],
            "arm 'a': GRPO continues training an earlier stage's model, but this stage is the first",
        ),
        ([{}, {"grpo": "grpo.yaml", "beeta": 1}], r"stage 2 has options that do not exist: --beeta \(nearest: beta\)"),
        ([{}, {"grpo": "grpo.yaml", "max_length": 8}], "stage 2 has options that do not exist: --max_length"),
        (
            [{}, {"grpo": "grpo.yaml", "pooling_window": 1}],
            "stage 2 sets pooling_window, but it continues with the model",
        ),
        (
            [{}, {"grpo": "grpo.yaml", "output_dir": "x"}],
            "stage 2 sets output_dir, which the study sets for each run",
        ),
        ([{}, {"grpo": None}], "stage 2: `grpo` must be the path of a recipe for GRPO, got None"),
        ([{}, {"grpo": "sft.yaml"}], "sft.yaml has options that do not exist: --questions_per_row"),
    ],
)
def test_what_a_stage_of_grpo_may_not_say(study, tmp_path, stages, said):
    write_recipe(tmp_path / "grpo.yaml", train_data=["asked.jsonl"], bf16=False)
    write_recipe(tmp_path / "sft.yaml", train_data=["asked.jsonl"], questions_per_row=1)
    with pytest.raises(ValueError, match=said):
        make_study("mine", tmp_path / "recipe.yaml", {"arms": {"a": stages}}, "mine.yaml", tmp_path)
