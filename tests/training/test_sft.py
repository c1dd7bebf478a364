"""Training end to end on tiny backbones: what it saves, that it resumes exactly, and how it fails."""

import copy
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import matplotlib.image
import pytest
import torch
import yaml
from child import in_child
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import make_llm, make_tokenizer
from training_runs import (
    SETTINGS,
    assistant,
    farthest,
    files_up_to,
    heard,
    log_of,
    user,
    weights_of,
    write_chats,
    write_clips,
    write_jsonl,
    write_recipe,
)
from transformers import AutoModelForMultimodalLM, AutoProcessor, TrainerState
from trl import SFTTrainer

from falcon3_audio.locks import lock
from falcon3_audio.training import sft
from falcon3_audio.training.data import training_sets as data
from falcon3_audio.training.publishing.merge import merge
from falcon3_audio.training.run_folder import check_readable, find_checkpoint
from falcon3_audio.training.trainer import AudioSFTTrainer


@pytest.fixture
def launch(recipe, tmp_path):
    """Starts the command; returns its exit code. The run's folder is `tmp_path / "run"`."""

    def launch(*options, config=recipe):
        return sft.main(["--config", config, "--output_dir", str(tmp_path / "run"), *options])

    return launch


@pytest.fixture
def reads(monkeypatch):
    """The origins of all examples that are read for training, and None when training starts."""
    origins: list[str | None] = []
    read, train, evaluate = data._Reader._read, AudioSFTTrainer.train, AudioSFTTrainer.evaluate

    def spy(self, *key):
        example = read(self, *key)
        origins.append(example["origin"])
        return example

    def begin(self, *args, **kwargs):
        origins.append(None)
        return train(self, *args, **kwargs)

    def leave_out(self, *args, **kwargs):
        before = len(origins)
        metrics = evaluate(self, *args, **kwargs)
        del origins[before:]
        return metrics

    monkeypatch.setattr(data._Reader, "_read", spy)
    monkeypatch.setattr(AudioSFTTrainer, "evaluate", leave_out)
    monkeypatch.setattr(AudioSFTTrainer, "train", begin)
    return origins


def planned(trainer, first, last):
    """The origins of the examples in some steps of the recipe's run: an epoch is 15 questions, in 4 steps."""
    sampler = copy.copy(trainer.sampler)
    steps = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = list(sampler)
        steps += [order[start : start + 4] for start in range(0, len(order), 4)]
    return [trainer.train_dataset[index]["origin"] for step in steps[first - 1 : last] for index in step]


def check_same_result(run, finished_run):
    """Both have the same weights, and the same log from the first step to the last."""
    finished = Path(finished_run.args.output_dir)
    assert farthest(weights_of(run), weights_of(finished)) <= 1e-6
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6
    for entry, expected in zip(log_of(run), log_of(finished), strict=True):
        for name in ("step", "num_dropped", "num_shortened", "learning_rate", "epoch"):
            assert entry[name] == expected[name], (name, entry["step"])
        for name in ("loss", "grad_norm"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-6), (name, entry["step"])


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


def test_killed_and_started_again_is_as_never_killed(launch, finished_run, reads, tmp_path, capsys, monkeypatch):
    """Killed while saving the fourth step: the files of that checkpoint are cut off, and the last one is missing."""
    run, save = tmp_path / "run", TrainerState.save_to_json

    def save_or_die(self, path):
        if self.global_step == 4:
            for file in Path(path).parent.rglob("*"):
                if file.is_file():
                    os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        save(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", save_or_die)
        assert in_child(launch, seconds=300) == -signal.SIGKILL
    assert (
        not (run / "checkpoint-4" / "trainer_state.json").exists() and (run / "checkpoint-4" / "optimizer.pt").exists()
    )
    assert launch() == 0
    said = capsys.readouterr().out
    assert f"{run}/checkpoint-4 was interrupted while it was written; skipping it." in said
    assert f"resuming from          {run}/checkpoint-2" in said and "4 to go of 6" in said
    check_same_result(run, finished_run)
    # Nothing of the first two steps was read again. (The loader is one batch ahead.)
    seen, expected = reads[reads.index(None) + 1 :], planned(finished_run, 3, 6)
    assert seen[: len(expected)] == expected and len(seen) <= len(expected) + 2


def test_ended_by_sigterm_and_started_again_is_as_never_ended(
    recipe, launch, finished_run, tmp_path, capsys, monkeypatch
):
    """The current step is finished and saved, though no checkpoint was due; the old signal handler is restored."""
    run, compute_loss = tmp_path / "run", SFTTrainer.compute_loss

    def told(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *args, **kwargs)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "compute_loss", told)
        assert launch() == 143
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said == (
        "falcon3-audio train: stopped by SIGTERM after step 3, which is saved. Run the same command again to resume."
    )
    assert find_checkpoint(run) == run / "checkpoint-3" and signal.getsignal(signal.SIGTERM) == before
    assert not (run / "adapter_config.json").exists() and not (run / "trainer_state.json").exists()
    with pytest.raises(ValueError, match="is a run that has not finished"):
        merge(run, tmp_path / "merged")
    assert launch() == 0
    check_same_result(run, finished_run)


def test_sigterm_in_the_last_step_ends_nothing(launch, tmp_path, monkeypatch):
    compute_loss = SFTTrainer.compute_loss

    def told(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", told)
    assert launch("--max_steps", "1") == 0 and (tmp_path / "run" / "adapter_config.json").exists()


def test_an_evaluation_that_fails_costs_no_step(recipe, launch, finished_run, tmp_path, monkeypatch, capsys):
    """It comes after saving, and the checkpoint has the results of the earlier evaluations."""
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "steps", "--eval_steps", "2")
    evaluation_loop = AudioSFTTrainer.evaluation_loop

    def broken(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise FloatingPointError("The loss is nan")
        return evaluation_loop(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AudioSFTTrainer, "evaluation_loop", broken)
        assert launch(*options) == 1
    assert "The loss is nan" in capsys.readouterr().err
    run = tmp_path / "run"
    assert find_checkpoint(run) == run / "checkpoint-4"

    def evaluated(folder):
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return [entry["step"] for entry in history if "eval_loss" in entry]

    assert evaluated(run / "checkpoint-2") == [2] and evaluated(run / "checkpoint-4") == [2]
    assert launch(*options) == 0
    assert evaluated(run) == [2, 6]
    check_same_result(run, finished_run)


def test_at_the_end_of_an_epoch_too_saving_comes_before_evaluating(launch, tmp_path, monkeypatch, capsys):
    """An epoch has four steps."""
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "epoch")
    options += ("--save_strategy", "epoch", "--load_best_model_at_end", "true")

    def broken(self, *args, **kwargs):
        raise FloatingPointError("The loss is nan")

    with monkeypatch.context() as patch:
        patch.setattr(AudioSFTTrainer, "evaluation_loop", broken)
        assert launch(*options) == 1
    run = tmp_path / "run"
    assert find_checkpoint(run) == run / "checkpoint-4"
    assert launch(*options) == 0
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4, 6]
    assert history[-1]["loaded_step"] in (4, 6)


def test_a_signal_in_the_last_step_of_an_epoch_leaves_its_evaluation_out(launch, tmp_path, monkeypatch):
    """There may be no time for it."""
    compute_loss, evaluated = SFTTrainer.compute_loss, []

    def told(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "compute_loss", told)
    monkeypatch.setattr(AudioSFTTrainer, "evaluate", lambda self, **_: evaluated.append(self.state.global_step))
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "epoch")
    assert launch(*options) == 143
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoint-4" and not evaluated


def test_a_run_that_ended_at_a_clip_goes_on_without_it(recipe, launch, tmp_path, capsys):
    data = write_chats(tmp_path / "chats", 6)
    options = ("--train_data", str(data), "--num_train_epochs", "1", "--max_steps", "-1", "--save_steps", "1")
    broken = tmp_path / "chats" / "3.wav"
    broken.write_bytes(broken.read_bytes()[:3000])
    assert launch(*options) == 1
    assert f"{data}, row 3: " in capsys.readouterr().err.strip().splitlines()[-1]
    assert launch(*options, "--on_bad_audio", "skip") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of the run's 8 questions were left out up to step" in said and "the limit is a share of 0.05" in said
    assert launch(*options, "--on_bad_audio", "skip", "--max_bad_audio", "0.2") == 0
    assert log_of(tmp_path / "run")[-1]["num_bad_audio"] == 1


def test_a_projector_is_fitted_without_the_clips_that_are_skipped(launch, tmp_path, capsys):
    data = write_chats(tmp_path / "chats", 6)
    (tmp_path / "chats" / "3.wav").write_bytes(b"no sound")
    options = ("--train_data", str(data), "--projector_start", "fitted", "--max_steps", "1", "--max_bad_audio", "1")
    assert launch(*options) == 1
    assert f"{data}, row 3: " in capsys.readouterr().err.strip().splitlines()[-1]
    assert launch(*options, "--on_bad_audio", "skip") == 0


def test_an_attempt_that_failed_leaves_no_model_to_the_next_one(launch, finished_run, tmp_path):
    """Neither if another run is given then, nor if the given run has changed by then."""
    run, former = tmp_path / "run", tmp_path / "former"
    lost = write_jsonl(tmp_path / "lost.jsonl", [{"messages": [user(heard("gone.wav")), assistant("a dog")]}] * 8)
    backbones = write_recipe(tmp_path / "on.yaml", model=str(former), **SETTINGS)
    options = ("--train_data", str(write_chats(tmp_path / "chats", 3)), "--max_steps", "1")
    shutil.copytree(finished_run.args.output_dir, former)
    assert launch("--train_data", str(lost), config=backbones) == 1
    first = weights_of(run / "base")
    adapter = load_file(former / "adapter_model.safetensors")
    save_file({name: -weight for name, weight in adapter.items()}, former / "adapter_model.safetensors")
    assert launch(*options, config=backbones) == 0
    assert farthest(weights_of(run / "base"), weights_of(merge(former, tmp_path / "merged"))) == 0
    assert farthest(weights_of(run / "base"), first) > 1e-3
    assert not list(run.glob("*.draft"))


def test_one_process_at_a_time_trains_in_a_folder(launch, tmp_path, capsys):
    """Only while it trains: a notebook can stay open after training."""
    options, run = ("--train_data", str(write_chats(tmp_path / "chats", 3)), "--max_steps", "1"), tmp_path / "run"
    run.mkdir()
    with open(run / "run.lock", "ab") as file:
        assert lock(file)
        assert launch(*options) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith(f"falcon3-audio train: Another process is training in {run}. Wait until it finishes")
        assert [path.name for path in run.iterdir()] == ["run.lock"]
    assert launch(*options, "--dtype", "bfloat16") == 1  # which is not a precision to train in
    assert launch(*options) == 0
    with open(run / "run.lock", "ab") as file:
        assert lock(file)


def test_a_checkpoint_without_one_of_its_files_is_refused(launch, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run.args.output_dir, run)
    (run / "trainer_state.json").unlink()
    for checkpoint in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(run / checkpoint)
    for name in ("scheduler.pt", "rng_state.pth", "optimizer.pt"):
        path = run / "checkpoint-2" / name
        path.rename(tmp_path / name)
        assert launch() == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert (
            f"checkpoint-2 is incomplete: {name.replace('rng_state', 'rng_state*')} is missing. Remove {run}/che"
            in said
        )
        (tmp_path / name).rename(path)
    assert launch() == 0


def test_data_that_was_edited_is_another_run(launch, tmp_path, capsys):
    """Even with the same number of rows and bytes; evaluation sets too."""
    data, held_out = write_chats(tmp_path / "chats", 3), write_chats(tmp_path / "held_out", 3)
    options = ("--train_data", str(data), "--max_steps", "1", "--eval_strategy", "epoch", "--eval_data", str(held_out))
    assert launch(*options) == 0
    for path in (data, held_out):
        rows = path.read_text()
        path.write_text(rows.replace("a bell", "a door"))
        assert launch(*options) == 1
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"falcon3-audio train: {path} changed since the run in {tmp_path}/run was started" in said
        path.write_text(rows)
    assert launch(*options) == 0


def test_a_finished_run_without_checkpoints_stays_as_it_is(launch, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run.args.output_dir, run, ignore=shutil.ignore_patterns("checkpoint-*"))
    saved = (run / "adapter_model.safetensors").read_bytes()
    assert launch() == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"falcon3-audio train: {run} holds a finished run without checkpoints")
    assert (run / "adapter_model.safetensors").read_bytes() == saved


def test_a_run_that_has_not_ended_is_no_model(launch, finished_run, tmp_path, capsys):
    former, ended = tmp_path / "former", Path(finished_run.args.output_dir)
    shutil.copytree(ended / "checkpoint-4", former / "checkpoint-4")
    shutil.copytree(ended / "base", former / "base")
    recipe = write_recipe(tmp_path / "on.yaml", model=str(former), **SETTINGS)
    options = ("--train_data", str(write_chats(tmp_path / "chats", 3)), "--max_steps", "1")
    assert launch(*options, config=recipe) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    advice = f"--model {former}/checkpoint-4"
    assert f"{former} is an unfinished run. Start it again to resume it, or" in said and advice in said
    assert launch(*options, *advice.split(), config=recipe) == 0
    shutil.rmtree(former / "checkpoint-4")
    assert launch(*options, "--output_dir", str(tmp_path / "other"), config=recipe) == 1
    assert f"{former} holds no model: there is no config.json" in capsys.readouterr().err


def test_a_loss_that_is_no_number_leaves_what_was_saved(launch, finished_run, reads, monkeypatch, tmp_path, capsys):
    """And the run resumes from there, in the middle of its second epoch, once the cause is gone."""
    run, compute_loss = tmp_path / "run", SFTTrainer.compute_loss

    def broken(self, *args, **kwargs):
        return compute_loss(self, *args, **kwargs) * (math.nan if self.state.global_step == 5 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(SFTTrainer, "compute_loss", broken)
        assert launch("--save_steps", "5") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("falcon3-audio train: The loss is nan in step 6. Nothing of this step is saved")
    assert find_checkpoint(run) == run / "checkpoint-5" and not (run / "adapter_config.json").exists()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-5"]
    reads.clear()
    assert launch("--save_steps", "5") == 0
    check_same_result(run, finished_run)
    seen, expected = reads[reads.index(None) + 1 :], planned(finished_run, 6, 6)
    assert seen[: len(expected)] == expected and len(seen) <= len(expected) + 2


@pytest.mark.parametrize("room", [50_000, 150_000])  # too little for the adapter, or only for the optimizer
def test_a_full_disk_leaves_what_was_saved(launch, finished_run, monkeypatch, tmp_path, capsys, room):
    run, compute_loss = tmp_path / "run", SFTTrainer.compute_loss

    def fill(self, *args, **kwargs):
        if self.state.global_step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return compute_loss(self, *args, **kwargs)

    with monkeypatch.context() as patch, files_up_to(resource.RLIM_INFINITY):
        patch.setattr(SFTTrainer, "compute_loss", fill)
        assert launch() == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("falcon3-audio train: A file could not be written: ") and "free disk space" in error
    assert find_checkpoint(run) == run / "checkpoint-2"
    check_readable(run / "checkpoint-2")
    assert launch() == 0
    check_same_result(run, finished_run)


def test_a_finished_run_stays_as_it_is(launch, finished_run, reads, tmp_path, capsys):
    """It finished in the middle of an epoch; started again, it takes no further step."""
    assert launch() == 0
    first, saved = weights_of(tmp_path / "run"), (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    reads.clear()
    assert launch() == 0
    assert "0 to go of 6" in capsys.readouterr().out
    assert (tmp_path / "run" / "adapter_model.safetensors").read_bytes() == saved
    check_same_result(tmp_path / "run", finished_run)
    assert farthest(first, weights_of(Path(finished_run.args.output_dir))) == 0  # two runs are identical
    assert launch("--learning_rate", "0.5") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "was started with other options (learning_rate: 0.01 -> 0.5)" in error
    # If it is damaged, the error names the file, and another checkpoint can be given.
    path = tmp_path / "run" / "checkpoint-6" / "adapter_model.safetensors"
    os.truncate(path, 1000)
    assert launch() == 1
    assert f"falcon3-audio train: {path} cannot be read" in capsys.readouterr().err
    assert launch("--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-4")) == 0
    check_same_result(tmp_path / "run", finished_run)


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


def test_a_set_that_has_grown_is_another_run(launch, tmp_path, capsys):
    data = write_chats(tmp_path / "chats", 3)
    options = ("--train_data", str(data), "--max_steps", "1")
    assert launch(*options) == 0
    rows = data.read_text()
    data.write_text(rows + rows.splitlines()[0] + "\n")
    assert launch(*options) == 1
    assert "was started with other options (examples: [5] -> [6])" in capsys.readouterr().err


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


def test_a_run_that_was_interrupted_says_how_to_go_on(launch, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(SFTTrainer, "train", interrupted)
    assert launch() == 130
    assert capsys.readouterr().err.endswith(
        "Run the same command again to resume from the last checkpoint, if there is one.\n"
    )


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
