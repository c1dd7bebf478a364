"""The folder of a run: its settings, the checkpoint to resume from, and errors for unreadable or unwritable files.

`recipe.yaml` records every option that affects the result; restarting a run with others is an error. The trainer
writes `trainer_state.json` last, so a checkpoint without one was interrupted and is skipped with a note. One that is
complete but damaged is an error that names the file: the user then decides which one to resume from. Before the first
checkpoint nothing is trained, and all options can change.
"""

import dataclasses
import errno
import json
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils import ADAPTER_CONFIG_NAME

from falcon3_audio.adapters import BASE
from falcon3_audio.whole_files import whole_file
from falcon3_audio.yaml_files import read_yaml

from .data.sources import DataSource
from .model_arguments import COMPOSED


RECIPE = "recipe.yaml"
DATA_SHA256 = "data_sha256"  # key in RECIPE, see data_digests.py
EXAMPLES = "examples"  # likewise: how many each set has, or all together
STATE = "trainer_state.json"
# Options of trainers that do not affect the result: they control execution, logging, saving and the Hub, or have no
# effect here. All others are recorded, also those that a later release of transformers or TRL adds.
NOT_DECIDING = (
    *("output_dir", "resume_from_checkpoint", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    *("do_train", "do_eval", "do_predict", "run_name", "project", "report_to", "disable_tqdm", "debug"),
    *("include_num_input_tokens_seen", "skip_memory_metrics", "push_to_hub", "num_completions_to_print"),
    *("use_cpu", "local_rank", "accelerator_config", "parallelism_config", "deepspeed", "ds3_gather_for_generation"),
    *("full_determinism", "tf32", "use_cache", "compile_layers", "use_liger_kernel", "liger_kernel_config"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "activation_offloading"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "pad_to_multiple_of", "tokens_per_device"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context", "dataloader_in_order"),
    *("per_device_eval_batch_size", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object"),
    *("eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval"),
    *("label_names", "dataset_text_field", "dataset_kwargs", "dataset_num_proc", "truncation_mode"),
    *("model_init_kwargs", "trust_remote_code", "precompute_ref_log_probs", "precompute_ref_batch_size", "use_vllm"),
    "generation_batch_size",  # follows from steps_per_generation
    *("on_bad_audio", "max_bad_audio"),  # a run that stopped at a bad clip can resume with `skip`
)
# The same, by how their names begin.
NOT_DECIDING_FAMILIES = (
    *("ddp_", "fsdp", "hub_", "log_", "logging_", "save_", "torch_compile", "torch_empty_cache", "trackio_", "vllm_"),
)
# These count if evaluations decide which step is the result, or how the run goes on.
OF_EVALUATION = (
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_generate", "num_generations_eval"),
)
# And these unless `global_batch_size` is an option: then it alone counts, however a batch is divided.
OF_BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")
LOCAL = "local"  # in a recipe: the names in it of local files and folders; others are Hub ids
# Recorded, but they can change on resuming: the result is as if they had been given from the start.
MAY_CHANGE = ("early_stopping_patience", "early_stopping_threshold", LOCAL)
# Disk full, over quota, file too large for the file system, a broken or read-only disk.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# Messages of torch and safetensors when a file cannot be written; they do not raise OSError.
_WRITE_FAILURES = ("PytorchStreamWriter", "unexpected pos", *(f"(os error {number})" for number in _DISK_ERRORS))


def describe_recipe(*options: Any) -> dict[str, Any]:
    """
    Everything that affects the result of a run, as plain values.

    Args:
        *options: dataclasses of which every field counts, and last the trainer's own (`TrainingArguments`), of which
            those in `NOT_DECIDING` do not.
    """
    *groups, training = options
    recipe: dict[str, Any] = {}
    for group in groups:
        recipe |= dataclasses.asdict(group)
    if recipe.get("model"):  # which was composed with its own
        recipe = {name: value for name, value in recipe.items() if name not in COMPOSED}
    recipe |= {name: getattr(training, name) for name in _deciding(training)}
    recipe["global_batch_size"] = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    return json.loads(json.dumps(recipe, default=str))


def _deciding(training: TrainingArguments) -> list[str]:
    """The options of a trainer that affect the result."""
    names = [field.name for field in dataclasses.fields(training)]
    without = {*NOT_DECIDING, *(OF_BATCHES if "global_batch_size" in names else ())}
    without |= set() if _evaluations_decide(training) else {*OF_EVALUATION}
    return [name for name in names if name not in without and not name.startswith(NOT_DECIDING_FAMILIES)]


def _evaluations_decide(training: TrainingArguments) -> bool:
    stops_early = getattr(training, "early_stopping_patience", None) is not None
    by_plateau = training.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
    return training.load_best_model_at_end or stops_early or by_plateau


def with_defaults(before: dict[str, Any], now: dict[str, Any], options: Sequence[Any]) -> dict[str, Any]:
    """
    The recipe `before`, completed with the defaults of the options in the recipe `now`, and in its sets, that were not
    recorded yet when it was.

    Args:
        options: the dataclasses of the recipe's options, or instances of them.
    """
    fields = [field for group in options for field in dataclasses.fields(group) if field.name in now]
    made = dataclasses.MISSING
    defaults = {
        field.name: field.default if field.default_factory is made else field.default_factory() for field in fields
    }
    # Earlier versions did not record when a run evaluates, and where this decides, it was not the default.
    defaults |= {name: now[name] for name in OF_EVALUATION if name in now}
    sources = {
        name: _source_defaults(before[name], now.get(name)) for name in ("train_data", "eval_data") if name in before
    }
    # Earlier versions recorded these also for a model that was composed before.
    before = {name: value for name, value in before.items() if name in now or name not in COMPOSED}
    return json.loads(json.dumps(defaults, default=str)) | before | sources


def _source_defaults(before: Any, now: Any) -> Any:
    """Sets as recorded, completed with the defaults of fields that only `now` has."""
    if not (isinstance(before, list) and isinstance(now, list) and len(before) == len(now)):
        return before
    defaults = {field.name: field.default for field in dataclasses.fields(DataSource) if field.name != "path"}
    return [
        {name: value for name, value in defaults.items() if name in new} | old
        if isinstance(old, dict) and isinstance(new, dict)
        else old
        for old, new in zip(before, now)
    ]


def start_or_go_on(
    output_dir: str | Path,
    recipe: dict[str, Any],
    write: bool = True,
    resume: str | None = None,
    options: Sequence[Any] = (),
) -> Path | None:
    """
    Records the recipe in the run's folder and returns the checkpoint to resume from, `None` for a new run.

    Args:
        output_dir: the run's folder; created if missing.
        recipe: from `describe_recipe`.
        write: whether this process records (only one does).
        resume: the checkpoint to resume from, instead of the last one.
        options: those that the recipe describes, see `with_defaults`.

    Raises a `ValueError` if the folder holds a run with another recipe or other data, a finished run without
    checkpoints, or a base model that was not created by a run; or if the checkpoint is damaged.
    """
    folder = Path(output_dir)
    path = folder / RECIPE
    checkpoint = _given_checkpoint(Path(resume)) if resume else find_checkpoint(output_dir)
    recorded = read_yaml(path) if path.exists() else {}
    before = with_defaults(recorded, recipe, options) if recorded else {}
    has_ended = (folder / STATE).exists()
    if before and (checkpoint or has_ended):
        _check_unchanged(folder, before, recipe, has_ended, recipe.keys() - recorded.keys())
    if has_ended and not checkpoint:
        raise ValueError(
            f"{folder} holds a finished run without checkpoints: there is nothing to resume, and its results are "
            f"kept. To continue training from them: `--model {folder} --output_dir ANOTHER`. To train again, give "
            "another output_dir, or remove that folder."
        )
    if not checkpoint:
        _check_place_of_base(folder, before, recipe)
    if LOCAL in recipe:  # what was local may be gone by now
        recipe = recipe | {LOCAL: sorted({*recorded.get(LOCAL, ()), *recipe[LOCAL]})}
    if write and recorded != recipe:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(yaml.safe_dump(recipe, sort_keys=False).encode())
    return checkpoint


def local_names(recipe: dict[str, Any]) -> set[str]:
    """The names in a recorded recipe that were local. Older records know it only of sets with a digest."""
    if LOCAL in recipe:
        return set(recipe[LOCAL])
    return {
        source["path"]
        for option, digests in (recipe.get(DATA_SHA256) or {}).items()
        for source, digest in zip(recipe.get(option) or (), digests)
        if digest is not None
    }


def _check_unchanged(
    folder: Path, before: dict[str, Any], recipe: dict[str, Any], has_ended: bool, assumed: Collection[str]
):
    """
    Raises a `ValueError` that names the options, or else the sets, that changed since the run was started.

    Args:
        assumed: options that were not recorded, so that `before` has their defaults.
    """
    known = (*MAY_CHANGE, DATA_SHA256, EXAMPLES)
    changed = [name for name in recipe if name not in known and before.get(name) != recipe[name]]
    if changed:
        differences = ", ".join(f"{name}: {before.get(name)!r} -> {recipe[name]!r}" for name in changed)
        advice = "Give another output_dir, or remove that folder."
        if set(changed) <= {"num_train_epochs", "max_steps"} and has_ended:
            # Its learning rate has decayed; raising it again in the middle would not be the schedule.
            advice = (
                f"It is finished, and so is its schedule. To continue training from its result: `--model {folder} "
                "--output_dir ANOTHER`, with the number of additional epochs, instead of the options that give its "
                "model."
            )
        unsure = ", ".join(name for name in changed if name in assumed)
        if unsure:
            advice += f" {RECIPE} there lacks {unsure}; if the run was started with the value given now, add it."
        raise ValueError(f"{folder} holds a run that was started with other options ({differences}). {advice}")
    edited = _edited(before, recipe)
    if edited:
        raise ValueError(
            f"{', '.join(edited)} changed since the run in {folder} was started, so it would resume with other data. "
            "Restore the original data; or start over: give another output_dir, or remove that folder."
        )


def _edited(before: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    """The sets whose files, or else whose numbers of examples, changed since a run of the same sets was started."""
    recorded = before.get(DATA_SHA256) or {}
    edited = [
        source["path"]
        for option, digests in recipe.get(DATA_SHA256, {}).items()
        for source, was, now in zip(recipe[option], recorded.get(option, ()), digests)
        if was != now
    ]
    was, now = before.get(EXAMPLES), recipe.get(EXAMPLES)
    if edited or was == now:
        return edited
    paths = [source["path"] for source in recipe["train_data"]]
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now) == len(paths):
        return [path for path, *counts in zip(paths, was, now) if counts[0] != counts[1]]
    return paths


def _check_place_of_base(folder: Path, before: dict[str, Any], recipe: dict[str, Any]):
    """A new run can overwrite the base model of an earlier attempt, but nothing else."""
    was_made = before and makes_base(before.get("model"))
    if makes_base(recipe.get("model")) and (folder / BASE).exists() and not was_made:
        raise ValueError(
            f"{folder / BASE} is where this run would save the model that it starts from, but it already exists and "
            "may not be from a run. Move or remove it, or give another output_dir."
        )


def makes_base(model: str | None) -> bool:
    """Whether a run on this model (`None`: backbones) first creates a base model to start from."""
    return model is None or (Path(model) / ADAPTER_CONFIG_NAME).exists()


def save_state(state: TrainerState, folder: str | Path):
    """Writes a trainer's state, the last file of a checkpoint or a run, completely or not at all."""
    with whole_file(Path(folder) / STATE) as file:
        state.save_to_json(file.name)


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """
    The last complete checkpoint of a run, or `None` if there is none yet.

    Raises a `ValueError` that names the damaged file if the last complete checkpoint cannot be read.
    """
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        if is_complete(path):
            check_readable(path)
            return path
        print(f"{path} was interrupted while it was written; skipping it.")
    return None


def _given_checkpoint(path: Path) -> Path:
    if not is_complete(path):
        raise ValueError(
            f"{path} is not a complete checkpoint: it has no readable {STATE}. Give a folder checkpoint-N of a run."
        )
    check_readable(path)
    return path


def check_readable(checkpoint: Path):
    """Raises a `ValueError` that names the first file of a checkpoint that is truncated or damaged."""
    for path in sorted(checkpoint.rglob("*")):
        problem = find_damage(path)
        if problem:
            raise ValueError(f"{path} cannot be read: {problem}. {other_than(checkpoint)}")


def other_than(checkpoint: Path) -> str:
    """Advice if a run cannot resume from its last checkpoint."""
    return f"Remove {checkpoint} to resume from the previous one, or give another one with --resume_from_checkpoint."


def find_damage(path: Path) -> str | None:
    """What is wrong with a file of weights or of a training's state; `None` for files that can be read."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                return None
        if path.suffix in (".pt", ".pth", ".bin"):  # .bin: from FSDP
            with zipfile.ZipFile(path) as archive:  # torch's format
                damaged = archive.testzip()
                return f"{damaged} in it is damaged" if damaged else None
    except (SafetensorError, zipfile.BadZipFile, OSError) as error:
        return str(error)
    return None


def is_write_failure(error: Exception) -> bool:
    """Whether an error means that a file could not be written (a full disk, say)."""
    if isinstance(error, OSError):
        return error.errno in _DISK_ERRORS
    return any(mark in str(error) for mark in _WRITE_FAILURES)


def explain(error: Exception) -> str:
    """The message to the user about an error that stopped a run."""
    message = str(error).strip()
    if message.startswith("Caught "):
        # From a worker of the data loader, with its whole traceback; the message is at the end of that.
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    if is_write_failure(error):
        return (
            f"A file could not be written: {message}. Earlier checkpoints are intact; free disk space and run the "
            "same command again."
        )
    return message


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint, or the folder of a run, has its last file."""
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and isinstance(state.get("global_step"), int)
