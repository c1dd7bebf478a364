"""Runs that were killed, stopped by a signal or failed go on as if they had not; what is refused in a folder with a run."""

import copy
import json
import math
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
from child import in_child
from safetensors.torch import load_file, save_file
from training_runs import (
    SETTINGS,
    assistant,
    check_same_result,
    farthest,
    files_up_to,
    heard,
    log_of,
    user,
    weights_of,
    write_chats,
    write_jsonl,
    write_recipe,
)
from transformers import TrainerState
from trl import SFTTrainer

from falcon3_audio.locks import lock
from falcon3_audio.training.data import training_sets as data
from falcon3_audio.training.publishing.merge import merge
from falcon3_audio.training.run_folder import check_readable, find_checkpoint
from falcon3_audio.training.trainer import AudioSFTTrainer


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
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{data}, row 3: " in said and "Add --on_bad_audio skip to train without such clips" in said
    assert launch(*options, "--on_bad_audio", "skip") == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "1 of the run's 8 questions were left out up to step" in said and "the limit is a share of 0.05" in said
    assert launch(*options, "--on_bad_audio", "skip", "--max_bad_audio", "0.2") == 0
    assert log_of(tmp_path / "run")[-1]["num_bad_audio"] == 1


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


def test_a_set_that_has_grown_is_another_run(launch, tmp_path, capsys):
    data = write_chats(tmp_path / "chats", 3)
    options = ("--train_data", str(data), "--max_steps", "1")
    assert launch(*options) == 0
    rows = data.read_text()
    data.write_text(rows + rows.splitlines()[0] + "\n")
    assert launch(*options) == 1
    assert f"{data} changed since the run in {tmp_path}/run was started" in capsys.readouterr().err


def test_a_run_that_was_interrupted_says_how_to_go_on(launch, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(SFTTrainer, "train", interrupted)
    assert launch() == 130
    assert capsys.readouterr().err.endswith(
        "Run the same command again to resume from the last checkpoint, if there is one.\n"
    )
