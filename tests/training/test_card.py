"""Model cards of runs, and the command: only what was recorded."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from model_card_text import python_of, section
from tiny import make_llm
from transformers import AutoConfig

from falcon3_audio.model_cards import render_card
from falcon3_audio.training.publishing.card import card_for_run, main, read_facts


WORLD = Path(__file__).resolve().parents[2] / "model_cards" / "facts" / "falcon3-audio-world.yaml"
REPO = "somebody/some-model"

RECIPE = {
    "model": None,
    "audio_model": "openai/whisper-small.en",
    "text_model": "tiiuae/Falcon3-1B-Instruct",
    "lora_r": 4,
    "learning_rate": 3e-4,
    "train_data": [
        {"path": "somebody/sounds", "name": "clean", "split": "train", "weight": 0.5},
        {"path": "mine/prepared", "name": None, "split": "train", "weight": 1.0},
    ],
    "examples": [1200, 34],
}
LOG = [{"step": 10, "loss": 2.5, "peak_memory_gib": 3.5}, {"step": 20, "loss": 1.23456, "peak_memory_gib": 2.0}]
HEARD = [
    {"step": 10, "eval_hearing": -0.1, "eval_hearing_low": -0.2, "eval_hearing_high": 0.1},
    {"step": 20, "eval_hearing": 0.25, "eval_hearing_low": 0.2, "eval_hearing_high": 0.3},
    {"step": 20, "eval_few_hearing": 0.5},
    {"step": 20, "eval_odd_hearing": float("nan")},
]
STATE = {"global_step": 20, "epoch": 0.5, "log_history": [*LOG, *HEARD, {"step": 20, "train_runtime": 9.0}]}


@pytest.fixture
def run(tmp_path):
    """A run's records; its second set is a folder next to it, though its name could be a Hub id."""
    folder = tmp_path / "work" / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    prepared = tmp_path / "work" / "mine" / "prepared"
    prepared.mkdir(parents=True)
    annotations = {"sha256": "abc123", "folder": str(tmp_path)}
    report = {"finished": True, "parameters": {"source": "open-asqa", "annotations": annotations}}
    report |= {"total": {"clips": 17, "questions": 34, "hours": 0.25}, "datasets": {"as_20k": {}, "fsd50k": {}}}
    (prepared / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """The files that `save_model` writes for an adapter, as far as a card reads them."""
    folder = tmp_path / "adapter"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    return folder


def test_a_run_card_has_what_was_recorded(run, checkpoint, tmp_path):
    card = card_for_run(run, checkpoint, REPO)
    data = card.data.to_dict()
    assert data["base_model"] == ["tiiuae/Falcon3-1B-Instruct", "openai/whisper-small.en"]
    assert data["base_model_relation"] == "finetune" and data["language"] == ["en"]
    assert data["datasets"] == ["somebody/sounds"]
    sets = section(card, "Training data")
    assert "name `clean`, split `train`. 1,200 examples. 0.5 passes" in sets
    assert "17 clips, 0.25 hours and 34 questions of as_20k, fsd50k; sha256 of the annotations `abc123`" in sets
    assert "mine" not in card.content and str(tmp_path) not in card.content and checkpoint not in card.content
    procedure = section(card, "Training procedure")
    assert "| LoRA rank | 4 |" in procedure and "| learning rate | 0.0003 |" in procedure
    assert "- 20 steps, 0.5 epochs." in procedure
    assert "loss 1.235 (mean of steps 11 to 20)" in procedure and "3.5 GiB" in procedure
    assert (
        "After 20 steps silence in place of the clips costs 0.25 nats per answer token (eval_hearing; 95 %"
        in procedure
    )
    assert "After 20 steps eval_odd_hearing could not be measured" in procedure
    assert "interval 0.2 to 0.3)." in procedure and "(eval_few_hearing)." in procedure and "-0.1" not in procedure
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    assert f"stored as {config['dtype']}" in section(card, "Hardware")
    assert "{audio}What sound is heard?" in section(card, "Prompt format")


def test_a_run_cards_weights_are_counted(run, checkpoint, model):
    hardware = section(card_for_run(run, checkpoint, REPO), "Hardware")
    parts = model.model
    for modules in ([parts.audio_tower], [parts.multi_modal_projector], [parts.language_model, model.lm_head]):
        count = sum(weight.numel() for module in modules for weight in module.parameters())
        assert f"{count:,} " in hardware


def test_tied_weights_are_counted_once(run, checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(checkpoint)
    tied = make_llm(tie_word_embeddings=True)
    config.text_config, config.tie_word_embeddings = tied.config, True
    folder = tmp_path / "tied"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config.save_pretrained(folder)
    hardware = section(card_for_run(run, folder, REPO), "Hardware")
    assert f"{sum(weight.numel() for weight in tied.parameters()):,} language model" in hardware


def test_an_adapters_card_names_its_base(run, adapter, checkpoint, tmp_path):
    shutil.copytree(checkpoint, run / "base")
    with pytest.raises(ValueError, match="others cannot load. Push that first"):
        card_for_run(run, adapter, REPO)
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="is None, which others cannot load"):
        card_for_run(run, tmp_path / "nameless", REPO)
    card = card_for_run(run, adapter, REPO, base_model="somebody/base")
    assert card.data.to_dict()["base_model"] == ["somebody/base"] and card.data.base_model_relation == "adapter"
    assert "lora" in card.data.tags and card.data.license_name == "falcon-llm-license"
    (code,) = python_of(card)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    assert named == {"somebody/base", REPO}
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/other"}))
    assert card_for_run(run, adapter, REPO).data.base_model == ["somebody/other"]


def test_a_composed_base_and_a_checkpoint_without_records(run, checkpoint):
    shutil.copytree(checkpoint, run / "base")
    composed = card_for_run(run / "base", run / "base", REPO)
    assert composed.data.base_model_relation == "merge" and "has not been trained" in composed.text
    assert composed.data.datasets is None and "steps" not in section(composed, "Training procedure")
    unknown = card_for_run(checkpoint, checkpoint, REPO)
    assert not {"base_model", "base_model_relation", "license", "language"} & set(unknown.data.to_dict())
    for title in ("Training data", "Training procedure"):
        assert section(unknown, title).strip() == "Not recorded with this checkpoint."


def test_other_base_models_are_linked_not_guessed_about(run, checkpoint):
    recipe = RECIPE | {"audio_model": None, "text_model": None, "model": "somebody/base", "num_generations": 8}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"examples": 1234}))
    card = card_for_run(run, checkpoint, REPO)
    assert card.data.base_model == ["somebody/base"] and card.data.language is None
    assert card.data.license_link == "https://huggingface.co/somebody/base"
    assert "GRPO" in section(card, "Training procedure") and "1,234" not in section(card, "Training data")


def test_a_run_that_has_not_ended(run, checkpoint):
    (run / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="has no trainer_state.json: it has not finished"):
        card_for_run(run, checkpoint, REPO)
    (run / "recipe.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="recipe.yaml is not valid YAML"):
        card_for_run(run, checkpoint, REPO)


def test_what_was_local_is_no_hub_id_after_it_is_gone(run, checkpoint):
    """A set's digest says so in older records, and any name in newer ones."""
    recipe = RECIPE | {"data_sha256": {"train_data": [None, "abc"], "eval_data": []}}
    shutil.rmtree(run.parents[1] / "mine")
    for record in (recipe, RECIPE | {"local": ["mine/prepared", "models/base"], "model": "models/base"}):
        (run / "recipe.yaml").write_text(yaml.safe_dump(record))
        card = card_for_run(run, checkpoint, REPO)
        assert card.data.datasets == ["somebody/sounds"]
        assert "huggingface.co/datasets/mine" not in card.content and "huggingface.co/models" not in card.content
    assert "It started from an earlier checkpoint, whose data and training are not listed here." in card.content


def test_a_card_of_preferences(run, checkpoint):
    (run / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"beta": 0.1}))
    text = card_for_run(run, checkpoint, REPO).content
    assert "DPO, after supervised training" in text and "in one stage" not in text


def test_without_the_encoder_no_language_is_claimed_but_the_known_terms_are(run, checkpoint):
    record = RECIPE | {"audio_model": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump(record))
    data = card_for_run(run, checkpoint, REPO).data
    assert not data.language and data.license_name == "falcon-llm-license"


def test_the_command_writes_a_card(run, checkpoint, tmp_path, capsys):
    assert main([str(WORLD), "--repo-id", REPO]) == 0
    assert capsys.readouterr().out.strip() == render_card(read_facts(WORLD, REPO), []).content.strip()
    output = tmp_path / "card" / "README.md"
    assert main([str(run), "--checkpoint", checkpoint, "--repo-id", REPO, "--output", str(output)]) == 0
    assert ModelCard.load(output).content == card_for_run(run, checkpoint, REPO).content
    for arguments in ([str(tmp_path / "none.yaml")], [str(WORLD), "--base-model", "a/b"], [str(run)]):
        assert main([*arguments, "--repo-id", REPO]) == 1
        said = capsys.readouterr().err
        assert said.startswith("falcon3-audio card: ") and "Traceback" not in said
