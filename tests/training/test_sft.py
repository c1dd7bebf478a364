"""Training end to end on tiny backbones: what it saves, that it resumes exactly, and how it fails."""

import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_llm, make_tokenizer
from training_runs import (
    SETTINGS,
    assistant,
    check_same_result,
    farthest,
    heard,
    log_of,
    user,
    weights_of,
    write_chats,
    write_clips,
    write_jsonl,
    write_recipe,
)
from transformers import AutoModelForMultimodalLM, AutoProcessor

from falcon3_audio.training import sft
from falcon3_audio.training.publishing.merge import merge


def test_a_run_leaves_all_that_is_needed(finished_run):
    run = Path(finished_run.args.output_dir)
    names = {path.name for path in run.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "recipe.yaml", "trainer_state.json", "base"} <= names
    assert {"checkpoint-2", "checkpoint-4", "checkpoint-6"} <= names
    assert type(AutoProcessor.from_pretrained(run)) is type(finished_run.processing_class)
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train_data"][1]["weight"] == 0.5
    assert matplotlib.image.imread(run / "loss_curve.png").std() > 0.05
    (events,) = run.rglob("events.out.tfevents.*")
    scalars = EventAccumulator(str(events.parent)).Reload()
    assert [event.value for event in scalars.Scalars("train/loss")] == pytest.approx(
        [entry["loss"] for entry in log_of(run)]
    )
    assert "train/samples_per_second" in scalars.Tags()["scalars"]
    for entry in log_of(run):
        wanted = ("loss", "learning_rate", "grad_norm", "peak_memory_gib", "num_dropped", "num_shortened")
        rates = ("samples_per_second", "audio_seconds_per_second", "tokens_per_second")
        assert all(math.isfinite(entry[name]) for name in (*wanted, *rates))
        assert all(entry[name] > 0 for name in rates)
    assert log_of(run)[-1]["loss"] < log_of(run)[0]["loss"]


def test_only_projector_and_lora_move(finished_run):
    run = Path(finished_run.args.output_dir)
    before = weights_of(run / "base")
    compared = set()
    for name, weight in finished_run.model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        if not weight.requires_grad:
            assert torch.equal(weight, before[name]), name  # bit for bit
            compared.add(name)
    assert compared == before.keys()
    middle, end = weights_of(run / "checkpoint-2"), weights_of(run)
    assert len(end) == 2 * (2 * 6 + 2 * 7) + 8
    for name in end:
        assert not torch.equal(middle[name], end[name]), name
        assert ".lora_" in name or ".multi_modal_projector." in name


def test_a_projector_is_fitted_without_the_clips_that_are_skipped(launch, tmp_path, capsys):
    data = write_chats(tmp_path / "chats", 6)
    (tmp_path / "chats" / "3.wav").write_bytes(b"no sound")
    options = ("--train_data", str(data), "--projector_start", "fitted", "--max_steps", "1", "--max_bad_audio", "1")
    assert launch(*options) == 1
    assert f"{data}, row 3: " in capsys.readouterr().err.strip().splitlines()[-1]
    assert launch(*options, "--on_bad_audio", "skip") == 0


def test_workers_change_nothing(launch, finished_run, tmp_path):
    assert launch("--dataloader_num_workers", "2") == 0
    check_same_result(tmp_path / "run", finished_run)


def test_epochs_and_held_out_losses(launch, recipe, tmp_path, capsys):
    sets = [entry["path"] for entry in yaml.safe_load(Path(recipe).read_text())["train_data"]]
    options = ("--max_steps", "-1", "--num_train_epochs", "2", "--eval_strategy", "epoch", "--eval_data", sets[1])
    options += ("--per_device_train_batch_size", "1", "--global_batch_size", "5", "--save_strategy", "no")
    assert launch(*options, "--train_data", str(write_chats(tmp_path / "chats", 9))) == 0
    # 11 questions, 5 a step: three steps an epoch, the last of them a single question.
    assert "6 to go of 6, 11 questions per epoch" in capsys.readouterr().out
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [3, 6]
    assert all(0 < entry["eval_loss"] < 10 for entry in history if "eval_loss" in entry)
    assert max(entry["step"] for entry in history) == 6


def ablation(tmp_path, launch, *options):
    """Trains two steps; returns the weights of the adapter."""
    assert launch("--max_steps", "2", "--max_length", "200", "--save_strategy", "no", *options) == 0
    assert all(math.isfinite(entry["loss"]) for entry in log_of(tmp_path / "run"))
    return weights_of(tmp_path / "run")


def layers_of(adapter, tower):
    return {name.split(".lora_")[0].split(".layers.")[1][2:] for name in adapter if f".{tower}." in name}


@pytest.mark.parametrize("rank", [4, 16])
def test_ablation_rank(launch, tmp_path, rank):
    adapter = ablation(tmp_path, launch, "--lora_r", str(rank))
    assert {tensor.shape[0] for name, tensor in adapter.items() if "lora_A" in name} == {rank}


@pytest.mark.parametrize(("option", "value"), [("--projector_type", "linear"), ("--pooling_window", "1")])
def test_ablation_projector(launch, tmp_path, option, value):
    adapter = ablation(tmp_path, launch, option, value)
    config = json.loads((tmp_path / "run" / "base" / "config.json").read_text())
    assert str(config[option[2:]]) == value
    assert any("linear_2" in name for name in adapter) == (value != "linear")


def test_ablation_mean_over_layers(launch, tmp_path):
    """The layer weights are trained and saved with the projector, and are in the merged model."""
    adapter = ablation(tmp_path, launch, "--use_weighted_layer_sum", "true", "--lora_audio_tower", "none")
    (learned,) = [tensor for name, tensor in adapter.items() if name.endswith("projector.layer_weights.weight")]
    assert learned.shape == (2,) and learned.abs().min() > 0
    merged = weights_of(merge(tmp_path / "run", tmp_path / "merged"))
    assert torch.equal(merged["model.multi_modal_projector.layer_weights.weight"], learned)


@pytest.mark.parametrize("choice", ["attention", "qv"])
def test_ablation_layers(launch, tmp_path, choice):
    adapter = ablation(tmp_path, launch, "--lora_audio_tower", choice, "--lora_language_model", choice)
    others = {"self_attn.k_proj"} if choice == "attention" else set()
    both = {"self_attn.q_proj", "self_attn.v_proj"} | others
    assert layers_of(adapter, "audio_tower") == both | ({"self_attn.out_proj"} if others else set())
    assert layers_of(adapter, "language_model") == both | ({"self_attn.o_proj"} if others else set())


@pytest.mark.parametrize(("frozen", "other"), [("audio_tower", "language_model"), ("language_model", "audio_tower")])
def test_ablation_one_tower(launch, tmp_path, frozen, other):
    adapter = ablation(tmp_path, launch, f"--lora_{frozen}", "none")
    assert not layers_of(adapter, frozen) and len(layers_of(adapter, other)) >= 6


def test_ablation_qwen(launch, tmp_path):
    """Another model family, with tied embeddings."""
    make_llm("qwen2", tie_word_embeddings=True).save_pretrained(tmp_path / "qwen")
    make_tokenizer().save_pretrained(tmp_path / "qwen")
    adapter = ablation(tmp_path, launch, "--text_model", str(tmp_path / "qwen"))
    assert len(layers_of(adapter, "language_model")) == 7
    merged = AutoModelForMultimodalLM.from_pretrained(merge(tmp_path / "run", tmp_path / "merged"))
    assert merged.config.text_config.model_type == "qwen2"


def test_a_curriculum_of_two_stages(launch, recipe, tmp_path):
    """First only the projector, which gives a plain checkpoint; from that, LoRA."""
    first = ("--lora_audio_tower", "none", "--lora_language_model", "none", "--max_steps", "3", "--save_steps", "1")
    assert launch(*first) == 0
    run = tmp_path / "run"
    assert not (run / "adapter_config.json").exists()
    before, after = weights_of(run / "base"), weights_of(run)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".multi_modal_projector." in name} and len(moved) == 8
    assert AutoModelForMultimodalLM.from_pretrained(run).config.model_type == "falcon3_audio"
    assert weights_of(merge(run, tmp_path / "plain")).keys() == after.keys()
    assert farthest(weights_of(tmp_path / "plain"), after) == 0
    assert not (tmp_path / "plain" / "trainer_state.json").exists()
    with pytest.raises(ValueError, match="holds a whole model and no adapter"):
        merge(run, tmp_path / "other", "whisper", "llm")
    # It resumes like any other run.
    for path in (*(run / "checkpoint-3").iterdir(), run / "model.safetensors"):
        path.unlink()
    assert launch(*first) == 0
    assert farthest(weights_of(run), after) <= 1e-6

    sets = yaml.safe_load(Path(recipe).read_text())["train_data"]
    second = write_recipe(tmp_path / "second.yaml", model=str(run), train_data=sets, **SETTINGS)
    options = ("--output_dir", str(tmp_path / "second"), "--max_steps", "2", "--save_strategy", "no")
    assert launch(*options, config=second) == 0
    assert not (tmp_path / "second" / "base").exists()
    assert json.loads((tmp_path / "second" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(run)
    merged = weights_of(merge(tmp_path / "second", tmp_path / "merged"))
    changed = {name for name in merged if not torch.equal(merged[name], after[name])}
    assert len(changed) == 2 * 6 + 2 * 7 + 8


def test_mistakes_end_in_one_line(launch, tmp_path, capsys):
    def said(*options):
        assert launch(*options) == 1
        return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("falcon3-audio train: ")

    assert said("--train_data", str(tmp_path / "gone.jsonl")).startswith(
        f"The set '{tmp_path}/gone.jsonl' cannot be read"
    )
    assert not (tmp_path / "run" / "base").exists()  # data is checked first: a mistake there builds no model
    assert "nowhere" in said("--audio_model", str(tmp_path / "nowhere"))
    assert said("--eval_data", str(tmp_path / "some.jsonl")).startswith(
        "`eval_data` would never be scored: set eval_st"
    )
    half = said("--dtype", "bfloat16")
    assert half.startswith("The frozen weights are torch.bfloat16") and "dtype to float32" in half
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"messages": [user(heard("gone.wav")), assistant("a dog")]}])
    line = said("--output_dir", str(tmp_path / "other"), "--train_data", str(bad))
    assert line.startswith(f"{bad}, row 0: ") and "there is no file" in line and not line.endswith("URL.")


def test_a_push_that_would_go_wrong_is_refused_before_training(launch, checkpoint, tmp_path, capsys, monkeypatch):
    data = ["--train_data", str(write_chats(tmp_path / "chats", 3)), "--push_to_hub"]

    def said(model, *options):
        recipe = write_recipe(tmp_path / "recipe.yaml", model=model, output_dir=str(tmp_path / "run"), **SETTINGS)
        assert sft.main(["--config", recipe, *data, *options]) == 1
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "Leave out hub_strategy, got all_checkpoints" in said("org/base", "--hub_strategy", "all_checkpoints")
    assert "hub_token would be saved in training_args.bin" in said("org/base", "--hub_token", "hf_secret")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("falcon3_audio.training.publishing.push.get_token", lambda: None)
    assert "There is no token for the Hub" in said("org/base")


def test_errors_that_nobody_expected_are_not_swallowed(launch, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a fault in the program")

    monkeypatch.setattr(sft, "describe_plan", broken)
    with pytest.raises(RuntimeError, match="a fault in the program"):
        launch()


def test_a_table_of_transcripts_trains_as_it_is(backbone_folders, tmp_path, capsys):
    """A CSV with custom column names, and a manifest whose segments are parts of one recording."""
    write_clips(tmp_path / "sounds", 4)
    (tmp_path / "set.csv").write_text("path,words\n" + "".join(f"sounds\\{n}.wav,word {n}\n" for n in range(4)))
    segments = [
        {"audio_filepath": "sounds/3.wav", "offset": n / 10, "duration": 0.1, "text": f"part {n}"} for n in range(3)
    ]
    write_jsonl(tmp_path / "manifest.json", segments)
    table = {
        "path": str(tmp_path / "set.csv"),
        "columns": {"audio": "path", "text": "words"},
        "prompt": ["Write.", "What?"],
    }
    audio, text = backbone_folders
    options = SETTINGS | {"train_data": [table, str(tmp_path / "manifest.json")], "max_steps": 3}
    options |= {"eval_data": [str(tmp_path / "manifest.json")], "eval_strategy": "epoch"}

    def train(**more):
        recipe = write_recipe(tmp_path / "recipe.yaml", audio_model=audio, text_model=text, **options | more)
        return sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run")])

    assert train() == 0
    lines = capsys.readouterr().out.splitlines()
    data, held_out = (
        [line.removeprefix(name).strip() for line in lines if line.startswith(f"{name} ")]
        for name in ("data", "eval data")
    )
    assert held_out == data[1:]
    assert data == [
        f"{tmp_path}/set.csv: 4 rows, read as transcripts (path, words), asked one of 2 prompts, such as 'Write.'",
        f"{tmp_path}/manifest.json: 3 rows, read as transcripts (audio_filepath, text, offset, duration), asked 'Transcribe the "
        "speech.' (the default of `prompt`)",
    ]
    entries = log_of(tmp_path / "run")
    assert len(entries) == 3 and all(math.isfinite(entry["loss"]) and entry["num_dropped"] == 0 for entry in entries)
    recorded = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["train_data"]
    assert recorded[0] | table == recorded[0] and recorded[1]["prompt"] is None
    # With another prompt it is another run.
    assert train(train_data=[table | {"prompt": "Other?"}, str(tmp_path / "manifest.json")]) == 1
    assert "started with other options (train_data" in capsys.readouterr().err
