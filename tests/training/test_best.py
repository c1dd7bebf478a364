"""The best step of a run: how it is chosen, that its weights are the final ones, and early stopping."""

import json
import math
from types import SimpleNamespace

import pytest
from training_runs import farthest, history_of, weights_of, write_chats
from transformers import TrainerState

from falcon3_audio.training import sft
from falcon3_audio.training.best import METRICS, check_metric, less_is_better, name_sets, note_best
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.publishing.run_facts import describe_outcome
from falcon3_audio.training.trainer import AudioSFTTrainer


@pytest.fixture
def launch(recipe, tmp_path):
    """Trains with evaluation on two sets every second step. The highest loss counts as best, so the first one wins."""
    held_out = [str(write_chats(tmp_path / name, 3)) for name in ("some", "others")]
    options = (
        "--eval_data",
        *held_out,
        "--eval_strategy",
        "steps",
        "--eval_steps",
        "2",
        "--greater_is_better",
        "true",
    )

    def launch(*more):
        return sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run"), *options, *more])

    return launch


def values(run, name):
    return {entry["step"]: entry[name] for entry in history_of(run) if name in entry}


def test_the_best_step_is_what_a_run_leaves(launch, tmp_path, monkeypatch, capsys):
    """Also if an evaluation failed after its step was saved, and if the run was moved before it resumed."""
    evaluation_loop = AudioSFTTrainer.evaluation_loop

    def broken(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise FloatingPointError("The loss is nan")
        return evaluation_loop(self, *args, **kwargs)

    options = ("--load_best_model_at_end", "true", "--metric_for_best_model", "chats_1_loss")
    with monkeypatch.context() as patch:
        patch.setattr(AudioSFTTrainer, "evaluation_loop", broken)
        assert launch(*options) == 1
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    run.rename(moved)
    moved.joinpath("base").rename(run)  # adapters refer to it
    run.rename(moved / "base")
    capsys.readouterr()
    assert launch(*options, "--output_dir", str(moved)) == 0
    said = capsys.readouterr().out
    assert "best step: 2, chats_1_loss" in said
    assert "the final model is the step with the highest eval_chats_1_loss" in said
    found = values(moved, "eval_chats_1_loss")
    assert sorted(found) == [2, 4, 6] and max(found, key=found.get) == 2
    assert farthest(weights_of(moved), weights_of(moved / "checkpoint-2")) == 0
    assert farthest(weights_of(moved), weights_of(moved / "checkpoint-6")) > 1e-4
    last = history_of(moved)[-1]
    assert (last["loaded_step"], last["loaded_metric"]) == (2, found[2])
    state = json.loads((moved / "trainer_state.json").read_text())
    outcome = describe_outcome(state)
    assert outcome[0].startswith("6 steps") and outcome[1].startswith("The weights are those of step 2, the best")
    assert all("After 6 steps" not in line for line in outcome)
    # Started again, the run does not change; without its best step, it reports an error.
    assert launch(*options, "--output_dir", str(moved)) == 0
    assert farthest(weights_of(moved), weights_of(moved / "checkpoint-2")) == 0
    (moved / "checkpoint-2").rename(tmp_path / "gone")
    assert launch(*options, "--output_dir", str(moved)) == 1
    assert "checkpoint-2, the best checkpoint of this run so far, is missing" in capsys.readouterr().err


def test_a_run_ends_early_and_goes_on_with_more_patience(launch, tmp_path, capsys):
    run = tmp_path / "run"

    def steps_after(patience):
        assert launch("--early_stopping_patience", str(patience), "--save_steps", "3") == 0
        assert (run / "adapter_config.json").exists()
        return json.loads((run / "trainer_state.json").read_text())["global_step"]

    assert steps_after(1) == 4
    assert (run / "checkpoint-4").is_dir()  # where it stopped
    weights = weights_of(run)
    assert steps_after(1) == 4 and farthest(weights_of(run), weights) == 0
    assert steps_after(2) == 6
    assert sorted(values(run, "eval_loss")) == [2, 4, 6]


def test_several_sets_have_losses_of_their_own(launch, tmp_path):
    """Together they give the loss over all sets: every answer token has the same weight."""
    assert launch("--max_steps", "2", "--save_strategy", "no", "--seed", "3") == 0
    (entry,) = [entry for entry in history_of(tmp_path / "run") if "eval_loss" in entry]
    parts = [entry["eval_chats_1_loss"], entry["eval_chats_2_loss"]]
    assert min(parts) - 1e-6 <= entry["eval_loss"] <= max(parts) + 1e-6
    assert entry["eval_loss"] == pytest.approx(sum(parts) / 2, abs=1e-5)  # the sets have equal size
    assert {"eval_hearing", "eval_chats_1_hearing", "eval_chats_2_num_dropped"} <= entry.keys()


def test_names_of_sets():
    def names(*paths):
        return name_sets([DataSource(path) for path in paths])

    assert names("a/held-out.jsonl", "b/other.tar.gz") == ["held_out", "other"]
    assert names("a/test.jsonl", "b/test.jsonl") == ["test_1", "test_2"]
    assert names("x/a.jsonl", "y/a.jsonl", "z/a_1.jsonl") == ["a_2", "a_3", "a_1"]
    by_split = [DataSource("b.jsonl"), DataSource("b.jsonl", split="dev"), DataSource("b_dev.jsonl")]
    assert name_sets(by_split) == ["b_train", "b_2", "b_dev"]
    assert name_sets([DataSource("ORG/SET", split="test"), DataSource("ORG/SET", split="dev")]) == [
        "SET_test",
        "SET_dev",
    ]


@pytest.mark.parametrize(
    ("metric", "less"),
    [("loss", True), ("eval_held_out_wer", True), ("cer", True), ("hearing", False), ("eval_some_accuracy", False)],
)
def test_what_is_better(metric, less):
    assert less_is_better(metric) == less


def test_a_metric_that_is_not_measured_is_refused_before_training():
    check_metric(SimpleNamespace(metric_for_best_model="eval_some_hearing"), ["some", "others"])
    with pytest.raises(ValueError, match=r"'some_losses' is not measured in this run \(nearest: eval_some_loss\)"):
        check_metric(SimpleNamespace(metric_for_best_model="some_losses"), ["some", "others"])
    rates = [*METRICS, "exact_match", "some_wer", "others_cer"]
    check_metric(SimpleNamespace(metric_for_best_model="others_cer"), ["some", "others"], rates)
    for metric, nearest in (("wer", "some_wer"), ("others_wer", "others_cer")):
        with pytest.raises(ValueError, match=rf"'{metric}' is not measured in this run \(nearest: eval_{nearest}\)"):
            check_metric(SimpleNamespace(metric_for_best_model=metric), ["some", "others"], rates)
    with pytest.raises(ValueError, match="is not measured"):  # a metric of one set is not one of another's
        check_metric(SimpleNamespace(metric_for_best_model="others_some_wer"), ["some", "others"], rates)


def test_no_number_is_no_best():
    arguments = SimpleNamespace(greater_is_better=False, output_dir="run")
    state = TrainerState(global_step=3)
    assert not note_best(arguments, state, math.nan) and state.best_metric is None
    assert note_best(arguments, state, 2.0) and not note_best(arguments, state, 2.0)
    assert (state.best_metric, state.best_global_step, state.best_model_checkpoint) == (2.0, 3, "run/checkpoint-3")
