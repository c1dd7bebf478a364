"""Training from streams, end to end on tiny backbones: what it prints, where it resumes, and what it refuses."""

import json
from pathlib import Path

import pytest
import yaml
from training_runs import (
    CLIP_FEATURES,
    SETTINGS,
    assistant,
    clip_row,
    farthest,
    heard,
    log_of,
    parse,
    user,
    weights_of,
    write_chats,
    write_clips,
    write_jsonl,
    write_recipe,
)

from falcon3_audio.training import sft
from falcon3_audio.training.data import stream as module
from falcon3_audio.training.data.shards import write_shard
from falcon3_audio.training.publishing.run_facts import _data, describe_outcome


STEPS, QUESTIONS = 6, 4


@pytest.fixture(scope="module")
def streams(backbone_folders, tmp_path_factory):
    """A recipe with two sets, one of which ends during the run."""
    folder = tmp_path_factory.mktemp("streams")
    clips = [clip_row(path, 1 + number % 3) for number, path in enumerate(write_clips(folder / "clips", 6))]
    write_shard(folder / "clips.parquet", clips, CLIP_FEATURES)
    audio, text = backbone_folders
    data = [
        {"path": str(write_chats(folder / "chats")), "streaming": True},
        {"path": str(folder / "clips.parquet"), "streaming": True, "weight": 2},
    ]
    options = SETTINGS | {"shuffle_buffer_size": 4, "max_steps": STEPS, "save_steps": 3}
    return write_recipe(folder / "recipe.yaml", audio_model=audio, text_model=text, train_data=data, **options)


@pytest.fixture(scope="module")
def whole(streams, tmp_path_factory):
    """An uninterrupted run: its folder, the origins of its rows, and its trainer."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        rows = spy(patch)
        trainer = sft.train(*parse("--config", streams, "--output_dir", str(run)))
    return run, rows, trainer


def spy(patch):
    """The origins of the examples that are read from streams from now on."""
    origins, read = [], module.read_example

    def note(*args):
        example = read(*args)
        origins.append(example["origin"])
        return example

    patch.setattr(module, "read_example", note)
    return origins


def test_a_run_that_goes_on_sees_the_same_rows(streams, whole, tmp_path, monkeypatch):
    run, rows, _ = whole
    assert len(rows) == STEPS * QUESTIONS
    again = spy(monkeypatch)
    checkpoint = str(run / "checkpoint-3")
    sft.train(*parse("--config", streams, "--output_dir", str(tmp_path), "--resume_from_checkpoint", checkpoint))
    assert again == rows[3 * QUESTIONS :]
    for ours, theirs in zip(log_of(tmp_path), log_of(run), strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "epoch", "num_dropped"):
            assert ours[name] == theirs[name], name
    assert farthest(weights_of(tmp_path), weights_of(run)) == 0
    assert log_of(run)[-1]["loss"] < log_of(run)[0]["loss"]
    assert [entry["epoch"] for entry in log_of(run)] == pytest.approx([step / STEPS for step in range(1, 7)], abs=1e-4)


def test_packed_steps_with_workers_go_on_too(streams, tmp_path):
    """Rows that the workers had read ahead are read again."""
    options = ["--tokens_per_device", "100", "--per_device_train_batch_size", "0", "--dataloader_num_workers", "2"]

    def run(name, *more):
        sft.train(*parse("--config", streams, "--output_dir", str(tmp_path / name), *options, *more))
        return [(entry["loss"], entry["num_shortened"]) for entry in log_of(tmp_path / name)]

    whole = run("whole")
    assert run("on", "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-3")) == whole
    with pytest.raises(ValueError, match=r"read by 1 process\(es\) with 2 worker\(s\).*now there are 1 with 1"):
        run("other", "--dataloader_num_workers", "0", "--resume_from_checkpoint", str(tmp_path / "whole/checkpoint-3"))


def test_what_a_run_says(streams, whole, tmp_path, capsys):
    """A finished run that is started again prints the plan, and trains no further."""
    run, _, _ = whole
    assert sft.main(["--config", streams, "--output_dir", str(run)]) == 0
    plan = capsys.readouterr().out
    assert "chats.jsonl: a stream of unknown length; by its first 10 rows, read as chats" in plan
    assert "steps                  0 to go of 6, the data is a stream of unknown length" in plan
    assert "per epoch" not in plan and "(mean of the first 22 questions)" in plan
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["examples"] == [None, None] and recipe["shuffle_buffer_size"] == 4
    outcome = describe_outcome(json.loads((run / "trainer_state.json").read_text()), streamed=True)
    assert outcome[0] == "6 steps of a stream."
    assert [(one["examples"], one["weight"], one["streamed"]) for one in _data(recipe, run)] == [
        (None, 1.0, True),
        (None, 2, True),
    ]


def test_a_model_that_is_fitted_to_a_stream(streams, tmp_path):
    trainer = sft.train(
        *parse("--config", streams, "--output_dir", str(tmp_path), "--projector_start", "fitted", "--max_steps", "1")
    )
    assert trainer.state.global_step == 1


def test_clips_that_cannot_be_read_are_left_out(streams, tmp_path):
    """Up to a share of the run's questions."""
    clips = [path.name for path in write_clips(tmp_path, 8)]
    (tmp_path / clips[3]).write_bytes(b"no sound")
    rows = [{"messages": [user(heard(clip), {"type": "text", "text": "What?"}), assistant("a")]} for clip in clips]
    data = [{"path": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "streaming": True}]
    recipe = write_recipe(Path(streams).with_name("bad.yaml"), extends=Path(streams).name, train_data=data)

    def run(name, *options):
        sft.train(*parse("--config", recipe, "--output_dir", str(tmp_path / name), "--max_steps", "2", *options))
        return log_of(tmp_path / name)

    with pytest.raises(ValueError, match=r"rows.jsonl, row 3"):
        run("raise")
    assert run("skip", "--on_bad_audio", "skip", "--max_bad_audio", "0.2")[-1]["num_bad_audio"] == 1  # of 8
    with pytest.raises(
        ValueError, match="1 of the run's 8 questions were left out up to step .*the limit is a share of 0.05"
    ):
        run("limit", "--on_bad_audio", "skip", "--max_bad_audio", "0.05")


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["--max_steps", "-1"],
            "is streamed, so its length is not known: set max_steps, the number of steps to train",
        ),
        (
            ["--max_steps", "2", "--num_train_epochs", "2"],
            "sets how long to train, so num_train_epochs=2 would be ignored: leave it out.\n",
        ),
        (["--save_strategy", "epoch"], "there are no epochs: set save_strategy to `steps`"),
        (["--eval_strategy", "epoch", "--eval_data", "held_out.jsonl"], "set eval_strategy to `steps`"),
        (["--shuffle_buffer_size", "0"], "shuffle_buffer_size must be at least 1 row, got 0"),
    ],
)
def test_what_does_not_go_with_a_stream(streams, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sft, "open_streams", lambda *args: pytest.fail("something was opened"))
    assert sft.main(["--config", streams, "--output_dir", str(tmp_path / "run"), *options]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
