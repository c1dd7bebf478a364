"""Preference sets with audio, as stored and as DPO gets them; and the verb end to end."""

import json
import shutil

import pytest
import soundfile
import torch
from datasets import Audio, Features, Value
from tiny import SAMPLING_RATE
from training_runs import TEXT, assistant, farthest, heard, history_of, user, weights_of, write_clips, write_jsonl

from falcon3_audio.training import dpo
from falcon3_audio.training.data.shards import write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.preferences import check_preferences, load_preferences
from falcon3_audio.training.publishing.merge import merge


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path, 4)


def read(path, **options):
    return load_preferences([DataSource(str(path), **options)])[0]


def test_texts_and_chats_are_the_same(clips, tmp_path):
    rows = [
        {"prompt": "What do you hear?", "chosen": "a dog", "rejected": "a bell", "audio": clips[0].name},
        {
            "prompt": [user(heard(clips[0].name), TEXT)],
            "chosen": [assistant("a dog")],
            "rejected": [assistant("a bell")],
        },
        {
            "prompt": [user({"type": "audio"}, TEXT)],
            "chosen": assistant("a dog"),
            "rejected": "a bell",
            "audios": [clips[0].name],
        },
        {"prompt": "<audio>What do you hear?", "chosen": "a dog", "rejected": "a bell", "audio": clips[0].name},
    ]
    for number, row in enumerate(rows):
        (found,) = read(write_jsonl(tmp_path / f"{number}.jsonl", [row]))
        (question,) = found["prompt"]
        sound, text = question["content"]
        assert str(next(sound[key] for key in ("path", "audio") if sound.get(key))) == str(clips[0])
        assert (text["text"], question["role"]) == (TEXT["text"], "user")
        assert found["chosen"] == [assistant("a dog")] and found["rejected"] == [assistant("a bell")]
        assert found["images"] == [] and found["origin"] == f"{tmp_path}/{number}.jsonl, row 0"


def test_clips_in_parquet_stay_as_they_are_stored(clips, tmp_path, processor):
    row = {"prompt": "What?", "chosen": "a dog", "rejected": "a bell"}
    features = Features({name: Value("string") for name in row} | {"audio": Audio(decode=False)})
    row["audio"] = {"bytes": clips[0].read_bytes(), "path": None}
    write_shard(tmp_path / "set.parquet", [row], features)
    (row,) = read(tmp_path / "set.parquet")
    batch = dpo.AudioPreferenceCollator(processor)([row])
    assert batch["input_features"].shape[0] == 2
    samples = soundfile.info(clips[0]).frames
    assert int(batch["input_features_mask"][0].sum()) == pytest.approx(samples / SAMPLING_RATE * 100, abs=1.5)


def test_in_a_set_of_texts_a_tag_is_a_text(tmp_path, processor):
    row = {"prompt": "What does <audio> mean in HTML?", "chosen": "a sound", "rejected": "no"}
    (row,) = read(write_jsonl(tmp_path / "rows.jsonl", [row]), sound=False)
    batch = dpo.AudioPreferenceCollator(processor)([row])
    assert batch["input_features_mask"].sum() == 1  # silence, as in every batch without clips
    assert all("What does <audio> mean in HTML?" in processor.decode(ids) for ids in batch["input_ids"])


def test_several_sets_follow_each_other(clips, tmp_path):
    def write(name, *answers):
        rows = [{"prompt": "?", "chosen": answer, "rejected": "no", "audio": str(clips[0])} for answer in answers]
        return DataSource(str(write_jsonl(tmp_path / name, rows)))

    rows, sizes = load_preferences([write("a.jsonl", "one", "two"), write("b.jsonl", "three")])
    assert sizes == [2, 1]
    assert [row["chosen"][0]["content"] for row in rows] == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"prompt": "?", "chosen": "a"}, {}, "has no rejected; its columns are prompt, chosen"),
        ({"prompt": "?", "chosen": "a", "rejected": "b"}, {}, "row 0: the row has no audio"),
        ({"prompt": "?", "chosen": "a", "rejected": "a"}, {"sound": False}, "are the same, so there is nothing to prefer"),
        (
            {"prompt": "?", "chosen": [user("?"), assistant("a")], "rejected": "b"},
            {"sound": "some"},
            "`chosen` must be a text or one assistant message",
        ),
        (
            {"prompt": "?", "chosen": "a", "rejected": "b", "audio": "a.wav", "offset": 0.1, "duration": 0.25},
            {},
            "row 0: the row has `offset`, which is not read in preferences. Cut the file",
        ),
        (
            {"prompt": [user(heard("a.wav") | {"start": 0.1}, TEXT)], "chosen": "a", "rejected": "b"},
            {},
            "row 0: a clip has `start`: 0.1, which is not read there. Cut the file, or move",
        ),
        ({"prompt": "?", "chosen": "a", "rejected": "b", "images": ["a.png"]}, {"sound": "some"}, "'images', which is not read"),
        *(
            (
                {"prompt": "?", "chosen": "a", "rejected": "b"} | {name: value},
                {"sound": False},
                f"row 0: `{name}` must be a text or one assistant message, got {value}",
            )
            for name in ("chosen", "rejected")
            for value in (None, 7)
        ),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, {"sound": False}, "row 0: .* must be a list of objects with `role`"),
        ({"prompt": "?", "chosen": "a", "rejected": "b"}, {"weight": 2}, "leave out weight, columns and prompt"),
    ],
)  # fmt: skip
def test_what_is_no_preference(tmp_path, row, options, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        list(read(path, **options))


@pytest.fixture
def launch(checkpoint, clips, tmp_path):
    """Starts the verb on four preferences; returns its exit code. The run's folder is `tmp_path / "run"`."""
    rows = [
        {"prompt": f"What is it, {n}?", "chosen": "a dog", "rejected": "a long bell", "audio": str(clip)}
        for n, clip in enumerate(clips)
    ]
    options = {"model": checkpoint, "train_data": write_jsonl(tmp_path / "rows.jsonl", rows), "dtype": "float32"}
    options |= {"output_dir": tmp_path / "run", "per_device_train_batch_size": 2, "max_steps": 5, "save_steps": 2}
    options |= {"bf16": "false", "use_cpu": "true", "report_to": "none", "learning_rate": 0.01, "logging_steps": 1}
    options |= {"gradient_accumulation_steps": 1, "save_total_limit": 9, "dataloader_num_workers": 0}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    recipe = str(dpo.__file__).replace("dpo.py", "recipes/dpo.yaml")
    return lambda *more: dpo.main(["--config", recipe, *arguments, *more])


def test_all_rows_that_cannot_be_used_are_listed(clips, tmp_path):
    """A run would stop at the first of them, and could not resume with a shorter set."""
    good = {"prompt": "What?", "chosen": "a dog", "rejected": "a bell", "audio": clips[0].name}
    check_preferences(read(write_jsonl(tmp_path / "good.jsonl", [good])))
    rows = [good, good | {"audio": "gone.wav"}, good | {"chosen": ""}, good | {"rejected": "a dog"}, good]
    with pytest.raises(ValueError, match="^3 of 5 preferences cannot be used: ") as error:
        check_preferences(read(write_jsonl(tmp_path / "bad.jsonl", rows)))
    said = str(error.value)
    assert "row 1: there is no file" in said and "gone.wav" in said
    assert (
        "row 2: message 0, an answer, has no text to learn" in said
        and "row 3: `chosen` and `rejected` are the same" in said
    )


def test_a_run_learns_to_prefer_and_goes_on(launch, tmp_path, capsys):
    assert launch() == 0
    run = tmp_path / "run"
    said = capsys.readouterr().out
    assert "2 pairs of answers; beta 0.1" in said and "LoRA of rank 8 on: all" in said
    history = [entry for entry in history_of(run) if "loss" in entry]
    assert history[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are still the same
    assert history[-1]["rewards/margins"] > history[0]["rewards/margins"]
    assert (run / "loss_curve.png").exists() and (run / "recipe.yaml").exists()
    weights = weights_of(run)
    assert any("multi_modal_projector" in name for name in weights) and any("audio_tower" in name for name in weights)
    assert launch() == 0  # it is finished
    assert farthest(weights_of(run), weights) == 0
    assert launch("--resume_from_checkpoint", str(run / "checkpoint-2")) == 0
    assert farthest(weights_of(run), weights) <= 1e-5
    assert launch("--beta", "0.3") == 1
    assert "started with other options (beta: 0.1 -> 0.3)" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists() and weights_of(merge(run, tmp_path / "merged"))
    for checkpoint in run.glob("checkpoint-*"):  # to free disk space
        shutil.rmtree(checkpoint)
    assert launch() == 1
    assert (
        f"{run} holds a finished run without checkpoints" in capsys.readouterr().err
        and farthest(weights_of(run), weights) <= 1e-5
    )


def test_mistakes_are_said_before_training(launch, capsys, monkeypatch):
    def said(*options):
        assert launch(*options) == 1
        return capsys.readouterr().err

    assert "max_length must stay off" in said("--max_length", "128")
    assert "push_to_hub must stay off" in said("--push_to_hub", "true")
    none = ("--lora_audio_tower", "none", "--lora_language_model", "none")
    assert "use LoRA on at least one tower" in said(*none)
    monkeypatch.setattr(
        dpo.DPOTrainer, "compute_loss", lambda *args, **kwargs: torch.tensor(float("nan"), requires_grad=True)
    )
    assert "The loss is nan in step 1. Nothing of this step is saved" in said()


def test_from_a_former_run(launch, finished_run, tmp_path):
    assert launch("--model", finished_run.args.output_dir, "--max_steps", "1") == 0
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "run" / "base")
