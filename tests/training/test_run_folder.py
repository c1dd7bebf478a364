"""A run's folder: which checkpoint to resume from, changed recipes, files that are damaged or cannot be written."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from training_runs import files_up_to, parse
from transformers import TrainerState

from falcon3_audio.training.arguments import COMPOSED, AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from falcon3_audio.training.dpo import AudioDPOConfig
from falcon3_audio.training.grpo import AudioGRPOConfig
from falcon3_audio.training.run_folder import (
    DATA_SHA256,
    NOT_DECIDING,
    NOT_DECIDING_FAMILIES,
    OF_BATCHES,
    OF_EVALUATION,
    RECIPE,
    STATE,
    check_readable,
    describe_recipe,
    explain,
    find_checkpoint,
    is_complete,
    is_write_failure,
    local_names,
    save_state,
    start_or_go_on,
    with_defaults,
)
from falcon3_audio.whole_files import write_json


@pytest.fixture(scope="module")
def options(recipe):
    return describe_recipe(*parse("--config", recipe, "--output_dir", "anywhere"))


@pytest.fixture(scope="module")
def trained_with(finished_run):
    """What the finished run recorded: its options, and the sizes of its sets."""
    return yaml.safe_load((Path(finished_run.args.output_dir) / RECIPE).read_text())


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of a finished run's folder."""
    return Path(shutil.copytree(finished_run.args.output_dir, tmp_path / "run"))


def cut(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])


def test_a_recipe_is_what_decides_the_result(options, recipe):
    assert options["lora_r"] == 8 and options["learning_rate"] == 1e-2 and options["max_steps"] == 6
    assert options["lr_scheduler_type"] == "cosine" and options["global_batch_size"] == 4
    assert options["train_data"][1]["weight"] == 0.5
    assert yaml.safe_load(yaml.safe_dump(options)) == options
    # The same result, with other batching, saving and logging.
    other = ("--per_device_train_batch_size", "4", "--save_steps", "3", "--logging_steps", "7", "--report_to", "none")
    assert describe_recipe(*parse("--config", recipe, "--output_dir", "elsewhere", *other)) == options
    for changed in (
        ("--seed", "7"),
        ("--neftune_noise_alpha", "5"),
        ("--questions_per_row", "1"),
        ("--lora_r", "4"),
        ("--global_batch_size", "8"),
    ):
        assert describe_recipe(*parse("--config", recipe, "--output_dir", "anywhere", *changed)) != options, changed


GROUPS = [ModelArguments(model="a/base"), LoraArguments(), DataArguments(["some.jsonl"])]
TRAINERS = (AudioSFTConfig, AudioDPOConfig, AudioGRPOConfig)


def recorded_by(trainer, **options):
    return describe_recipe(*GROUPS, trainer(output_dir="anywhere", bf16=False, **options))


@pytest.mark.parametrize(
    ("trainer", "changed"),
    [
        *((trainer, {"average_tokens_across_devices": False}) for trainer in TRAINERS),
        *((trainer, {"optim_target_modules": "all-linear"}) for trainer in TRAINERS),
        *((AudioDPOConfig, changed) for changed in ({"beta": 0.2}, {"gradient_accumulation_steps": 2})),
        *((AudioDPOConfig, changed) for changed in ({"train_sampling_strategy": "sequential"}, {"ld_alpha": 0.5})),
        (AudioGRPOConfig, {"delta": 4.0}),
        (AudioGRPOConfig, {"importance_sampling_level": "sequence"}),
        (AudioGRPOConfig, {"mask_truncated_completions": True}),
        (AudioGRPOConfig, {"top_entropy_quantile": 0.2}),
        (AudioGRPOConfig, {"entropy_coef": 0.1}),
        (AudioGRPOConfig, {"use_bias_correction_kl": False}),
        (AudioGRPOConfig, {"multi_objective_aggregation": "normalize_then_sum"}),
        (AudioGRPOConfig, {"off_policy_mask_threshold": 0.5}),
        (AudioGRPOConfig, {"generation_kwargs": {"no_repeat_ngram_size": 3}}),
        (AudioGRPOConfig, {"generation_batch_size": 16}),
        (AudioGRPOConfig, {"shuffle_dataset": False}),
    ],
)
def test_every_option_that_decides_is_recorded(trainer, changed):
    assert recorded_by(trainer, **changed) != recorded_by(trainer)


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    "changed",
    [
        {"logging_steps": 3, "save_steps": 7, "report_to": "none", "run_name": "mine", "hub_model_id": "a/b"},
        {
            "dataloader_num_workers": 2,
            "per_device_eval_batch_size": 3,
            "ddp_timeout": 9,
            "activation_checkpointing": False,
        },
        {"eval_strategy": "steps", "eval_steps": 4},
    ],
)
def test_how_a_run_is_executed_is_not(trainer, changed):
    assert recorded_by(trainer, **changed) == recorded_by(trainer)


def test_what_does_not_decide_exists():
    """A misspelt or former name would leave its option recorded."""
    names = {field.name for trainer in TRAINERS for field in dataclasses.fields(trainer)}
    assert set((*NOT_DECIDING, *OF_EVALUATION, *OF_BATCHES)) <= names
    assert all(any(name.startswith(family) for name in names) for family in NOT_DECIDING_FAMILIES)


@pytest.mark.parametrize(
    "decides",
    [{"load_best_model_at_end": True}, {"early_stopping_patience": 2}, {"lr_scheduler_type": "reduce_lr_on_plateau"}],
)
def test_evaluations_are_recorded_where_they_decide(decides):
    evaluates = {"eval_strategy": "steps", "eval_steps": 4}
    whole = recorded_by(AudioSFTConfig, **decides, **evaluates)
    assert (whole["eval_strategy"], whole["eval_steps"], whole["eval_generate"]) == ("steps", 4, 0)
    for changed in ({"eval_steps": 8}, {"eval_strategy": "epoch"}, {"eval_delay": 2}, {"eval_generate": 3}):
        assert recorded_by(AudioSFTConfig, **decides, **(evaluates | changed)) != whole


# What was recorded of trainers before everything was.
FORMERLY = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("max_length", "questions_per_row", "loss_type", "bf16", "fp16", "seed", "data_seed"),
    *("neftune_noise_alpha", "label_smoothing_factor", "dataloader_drop_last", "global_batch_size"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("early_stopping_patience", "early_stopping_threshold"),
    *("augmentation", "audio_tower_learning_rate", "projector_learning_rate", "language_model_learning_rate"),
)
FORMERLY_OF = {
    AudioSFTConfig: (),
    AudioDPOConfig: (
        *("beta", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef"),
        *("use_weighting", "discopop_tau", "disable_dropout", "per_device_train_batch_size"),
        "gradient_accumulation_steps",
    ),
    AudioGRPOConfig: (
        *("beta", "epsilon", "epsilon_high", "num_generations", "num_iterations", "steps_per_generation"),
        *("scale_rewards", "max_completion_length", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("reward_weights", "per_device_train_batch_size", "gradient_accumulation_steps", "disable_dropout"),
    ),
}


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            "eval_strategy": "steps",
            "eval_steps": 4,
            "load_best_model_at_end": True,
            "save_strategy": "steps",
            "save_steps": 4,
        },
    ],
)
def test_runs_of_earlier_versions_resume(trainer, given, tmp_path):
    """Their records have fewer options; what they lack was the default, as far as can be known."""
    options = [*GROUPS, trainer(output_dir=str(tmp_path), bf16=False, per_device_train_batch_size=8, **given)]
    now = describe_recipe(*options)
    names = {field.name for group in GROUPS for field in dataclasses.fields(group)} | {
        *FORMERLY,
        *FORMERLY_OF[trainer],
    }
    before = {name: value for name, value in now.items() if name in names}
    assert len(before) < len(now) and names - before.keys() <= {*FORMERLY, *COMPOSED}
    assert with_defaults(before, now, options) == now

    def resume(**changed):
        (tmp_path / RECIPE).write_text(yaml.safe_dump(before))
        return start_or_go_on(tmp_path, now | changed, options=options)

    (tmp_path / "checkpoint-2").mkdir()
    write_json(tmp_path / "checkpoint-2" / "trainer_state.json", {"global_step": 2})
    assert resume() == tmp_path / "checkpoint-2"
    assert yaml.safe_load((tmp_path / RECIPE).read_text()) == now  # from then on
    with pytest.raises(ValueError) as error:
        resume(average_tokens_across_devices=False, learning_rate=0.5)
    assert "average_tokens_across_devices: True -> False" in str(error.value)
    assert str(error.value).endswith(
        "recipe.yaml there lacks average_tokens_across_devices; if the run was started with the value given now, add it."
    )
    assert yaml.safe_load((tmp_path / RECIPE).read_text()) == before


def test_an_option_of_a_later_release_is_recorded(tmp_path):
    later = dataclasses.make_dataclass("Later", [("new_coefficient", float, 0.5)], bases=(AudioGRPOConfig,))
    options = [*GROUPS, later(output_dir=str(tmp_path), bf16=False)]
    now = describe_recipe(*options)
    assert now["new_coefficient"] == 0.5
    assert with_defaults(recorded_by(AudioGRPOConfig), now, options) == now


@pytest.mark.parametrize(
    ("text", "reason"), [("a: [1\n", "is not valid YAML"), ("", "must be a YAML mapping"), ("a: 1\na: 2\n", "twice")]
)
def test_a_recorded_recipe_that_was_edited_wrongly(options, tmp_path, text, reason):
    (tmp_path / RECIPE).write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)recipe\.yaml .*{reason}"):
        start_or_go_on(tmp_path, options)
    assert (tmp_path / RECIPE).read_text() == text


def test_what_was_local_stays_so(options, tmp_path):
    start_or_go_on(tmp_path, options | {"local": ["a/b.jsonl", "c/d"]})
    start_or_go_on(tmp_path, options | {"local": ["c/d", "e"]})  # in the meantime a/b.jsonl was removed
    recipe = yaml.safe_load((tmp_path / RECIPE).read_text())
    assert recipe["local"] == ["a/b.jsonl", "c/d", "e"] and local_names(recipe) == {"a/b.jsonl", "c/d", "e"}


def test_a_state_that_cannot_be_written_leaves_the_former_one(tmp_path, monkeypatch):
    save_state(TrainerState(global_step=1), tmp_path)

    def fill_the_disk(self, path):
        Path(path).write_text('{"global_')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_state(TrainerState(global_step=2), tmp_path)
    assert os.listdir(tmp_path) == [STATE] and is_complete(tmp_path)
    assert TrainerState.load_from_json(str(tmp_path / STATE)).global_step == 1


def test_a_new_run_records_its_recipe(options, tmp_path):
    assert start_or_go_on(tmp_path / "a" / "run", options) is None
    assert yaml.safe_load((tmp_path / "a" / "run" / RECIPE).read_text()) == options
    assert os.listdir(tmp_path / "a" / "run") == [RECIPE]
    assert start_or_go_on(tmp_path / "b", options, write=False) is None
    assert not (tmp_path / "b").exists()


def test_a_run_goes_on_from_its_last_whole_checkpoint(trained_with, run, capsys):
    assert start_or_go_on(run, trained_with) == run / "checkpoint-6"
    (run / "checkpoint-6").rename(run / "checkpoint-10")  # ten is after four
    assert find_checkpoint(run) == run / "checkpoint-10"
    (run / "checkpoint-10" / "trainer_state.json").unlink()
    assert find_checkpoint(run) == run / "checkpoint-4"
    assert capsys.readouterr().out == f"{run}/checkpoint-10 was interrupted while it was written; skipping it.\n"
    for content in ("[]", "{}", '{"global_step": 4'):
        (run / "checkpoint-4" / "trainer_state.json").write_text(content)
        assert find_checkpoint(run) == run / "checkpoint-2"
    (run / "checkpoint-best").mkdir()
    shutil.rmtree(run / "checkpoint-2")
    assert find_checkpoint(run) is None
    assert find_checkpoint(run / "nowhere") is None


def test_another_recipe_in_the_folder_of_a_run_names_what_changed(trained_with, run):
    changed = trained_with | {"learning_rate": 0.5, "lora_r": 4}
    for gone in ("nothing", "checkpoint-2", "checkpoint-4", "checkpoint-6"):
        shutil.rmtree(run / gone, ignore_errors=True)  # in the end, only the results are left
        with pytest.raises(ValueError) as error:
            start_or_go_on(run, changed)
        assert str(error.value) == (
            f"{run} holds a run that was started with other options (lora_r: 8 -> 4, learning_rate: 0.01 -> 0.5). Give "
            "another output_dir, or remove that folder."
        )
    assert yaml.safe_load((run / RECIPE).read_text()) == trained_with
    with pytest.raises(ValueError) as error:
        start_or_go_on(run, trained_with)
    assert str(error.value).startswith(f"{run} holds a finished run without checkpoints")
    assert f"`--model {run} --output_dir ANOTHER`" in str(error.value)


def test_other_data_in_files_of_the_same_name_are_not_gone_on_with(trained_with, run):
    """A run from before digests existed resumes, and records them from then on."""
    without = {name: value for name, value in trained_with.items() if name != DATA_SHA256}
    (run / RECIPE).write_text(yaml.safe_dump(without))
    assert start_or_go_on(run, trained_with) == run / "checkpoint-6"
    one, two, three = trained_with[DATA_SHA256]["train_data"]
    edited = trained_with | {DATA_SHA256: {"train_data": [one, "other", three], "eval_data": []}}
    with pytest.raises(ValueError) as error:
        start_or_go_on(run, edited)
    path = trained_with["train_data"][1]["path"]
    assert str(error.value).startswith(
        f"{path} changed since the run in {run} was started, so it would resume with other data."
    )
    assert "Restore the original data; or start over: give another output_dir" in str(error.value)
    first, *others = trained_with["examples"]
    shorter = trained_with | {"examples": [first - 1, *others]}
    for now, names in (
        (shorter, trained_with["train_data"][0]["path"]),  # a set without a digest
        (shorter | {DATA_SHA256: edited[DATA_SHA256]}, path),
        (trained_with | {"examples": 7}, ", ".join(source["path"] for source in trained_with["train_data"])),
    ):
        with pytest.raises(ValueError) as error:
            start_or_go_on(run, now)
        assert str(error.value).startswith(f"{names} changed since the run in {run} was started")
    for path in (*run.glob("checkpoint-*"), run / "trainer_state.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert start_or_go_on(run, edited) is None  # nothing has been trained yet


def test_fields_of_a_set_that_are_new_had_their_defaults(trained_with, run, recipe):
    """A run from before `sound` existed."""
    before = [
        {name: source[name] for name in source if (name, source[name]) != ("sound", True)}
        for source in trained_with["train_data"]
    ]
    assert any("sound" not in source for source in before)
    (run / RECIPE).write_text(yaml.safe_dump(trained_with | {"train_data": before}))
    options = parse("--config", recipe, "--output_dir", "anywhere")
    assert start_or_go_on(run, trained_with, options=options[:3]) == run / "checkpoint-6"
    changed = [source | {"sound": False} for source in trained_with["train_data"]]
    (run / RECIPE).write_text(yaml.safe_dump(trained_with | {"train_data": before}))
    with pytest.raises(ValueError, match="other options .*train_data.*'sound': False"):
        start_or_go_on(run, trained_with | {"train_data": changed}, options=options[:3])


def test_before_the_first_checkpoint_everything_may_change(options, tmp_path):
    start_or_go_on(tmp_path, options)
    (tmp_path / "base").mkdir()
    changed = options | {"learning_rate": 0.5, "projector_type": "linear"}
    assert start_or_go_on(tmp_path, changed) is None
    assert yaml.safe_load((tmp_path / RECIPE).read_text()) == changed


def test_a_base_model_takes_the_place_of_that_of_a_former_attempt_alone(options, tmp_path):
    """It does not replace a user's model, whether it is the one to train or unrelated."""
    (tmp_path / "base").mkdir()
    with pytest.raises(
        ValueError, match=f"{tmp_path}/base is where .* may not be from a run. Move or remove it, or give"
    ):
        start_or_go_on(tmp_path, options)
    assert not (tmp_path / RECIPE).exists()
    plain = options | {"model": str(tmp_path / "base"), "audio_model": None, "text_model": None}
    assert start_or_go_on(tmp_path, plain) is None
    with pytest.raises(ValueError, match="may not be from a run"):
        start_or_go_on(tmp_path, options)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_an_error_and_another_can_be_named(trained_with, run, name):
    check_readable(run / "checkpoint-6")
    cut(run / "checkpoint-6" / name)
    with pytest.raises(ValueError) as error:
        start_or_go_on(run, trained_with)
    message = str(error.value)
    assert message.startswith(f"{run}/checkpoint-6/{name} cannot be read: ")
    assert f"Remove {run}/checkpoint-6" in message and "--resume_from_checkpoint" in message
    # Both fixes that the message offers.
    assert start_or_go_on(run, trained_with, resume=str(run / "checkpoint-4")) == run / "checkpoint-4"
    shutil.rmtree(run / "checkpoint-6")
    assert start_or_go_on(run, trained_with) == run / "checkpoint-4"


def test_flipped_bits_in_the_optimizer_are_noticed(run):
    path = run / "checkpoint-6" / "optimizer.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match="optimizer.pt cannot be read: .* in it is damaged"):
        find_checkpoint(run)


def test_a_named_checkpoint_must_be_one(trained_with, run):
    for name in ("checkpoint-44", "base", "."):
        (run / "trainer_state.json").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=f"{name} is not a complete checkpoint"):
            start_or_go_on(run, trained_with, resume=str(run / name))


def test_failed_writes_are_told_from_other_errors(tmp_path):
    """The errors that torch, safetensors and Python really raise when a file cannot grow."""
    tensor = torch.zeros(100_000)
    ways = {
        "torch": lambda path: torch.save(tensor, path),
        "safetensors": lambda path: save_file({"a": tensor}, path),
        "python": lambda path: path.write_bytes(bytes(400_000)),
    }
    for size in (100, 4096, 100_000, 399_000):
        for name, write in ways.items():
            with files_up_to(size), pytest.raises(Exception) as error:
                write(tmp_path / f"{name}-{size}")
            assert is_write_failure(error.value), (name, size, error.value)
            assert explain(error.value).startswith(f"A file could not be written: {str(error.value).strip()}")
            assert "free disk space" in explain(error.value)
    assert is_write_failure(OSError(errno.ENOSPC, "No space left on device"))
    reads = {
        "torch": lambda: torch.load(tmp_path / "torch-399000"),
        "safetensors": lambda: load_file(tmp_path / "safetensors-399000"),
        "python": lambda: (tmp_path / "nowhere").read_text(),
    }
    for name, read in reads.items():
        with pytest.raises(Exception) as error:
            read()
        assert not is_write_failure(error.value), name
        assert explain(error.value) == str(error.value).strip()


class Broken:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise ValueError("the cause")
        except ValueError as error:
            raise ValueError(f"set, row {index}: there is no file: gone.wav\nor it is hidden") from error


def test_an_error_of_a_worker_is_said_without_its_traceback():
    said = []
    try:  # (pytest.raises would keep the loader, whose worker then lingers)
        next(iter(DataLoader(Broken(), num_workers=1)))
    except ValueError as error:
        said = [str(error), explain(error)]
    assert "Traceback" in said[0]
    assert said[1] == "set, row 0: there is no file: gone.wav\nor it is hidden"
