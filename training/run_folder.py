"""The folder of a run: what it was started with, where it goes on, and what to say when files cannot be written or read.

`recipe.yaml` records every option that decides the result; a run that is started again with others is an error. The
trainer writes `trainer_state.json` last, so a checkpoint without one was interrupted and is passed over with a note.
One that is complete but damaged is an error that names the file: which one to go on from is then for the user to say.
"""

import dataclasses
import errno
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from falcon3_audio.whole_files import whole_file

from .arguments import COMPOSED
from .data.sources import DataSource


RECIPE = "recipe.yaml"
STATE = "trainer_state.json"
BASE = "base"  # the model that a run composed, see `load_model`
# Options of the trainer that decide the result; the others say how it is run, logged and saved.
DECIDING = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("max_length", "questions_per_row", "loss_type", "bf16", "fp16", "seed", "data_seed"),
    *("neftune_noise_alpha", "label_smoothing_factor", "dataloader_drop_last"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *("early_stopping_patience", "early_stopping_threshold"),
    *("augmentation", "audio_tower_learning_rate", "projector_learning_rate", "language_model_learning_rate"),
)
# Those of them that a run may go on with other values of: it is as if they had been given at first.
MAY_CHANGE = ("early_stopping_patience", "early_stopping_threshold")
# Options that decide what is composed.
DECIDING_BASE = ("audio_model", "text_model", *COMPOSED, "projector_start", "dtype", "seed")
# No room, too much for the quota or the file system, a broken or read-only disk.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# What torch and safetensors say when a file could not be written; they raise no OSError.
_WRITE_FAILURES = ("PytorchStreamWriter", "unexpected pos", *(f"(os error {number})" for number in _DISK_ERRORS))


def describe_recipe(*options: Any, also: Sequence[str] = ()) -> dict[str, Any]:
    """
    Everything that decides the result of a run, as plain values.

    Args:
        *options: dataclasses of which every field counts, and last the trainer's own (`TrainingArguments`), of which
            those in `DECIDING` and `also` do.
        also: what else decides.
    """
    *groups, training = options
    recipe: dict[str, Any] = {}
    for group in groups:
        recipe |= dataclasses.asdict(group)
    recipe |= {name: getattr(training, name) for name in (*DECIDING, *also) if hasattr(training, name)}
    recipe["global_batch_size"] = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    return json.loads(json.dumps(recipe, default=str))


def with_defaults(before: dict[str, Any], now: dict[str, Any], options: Sequence[Any]) -> dict[str, Any]:
    """
    The recipe `before` with those options of the recipe `now`, and of its sets, that did not exist yet when it was recorded:
    they had their defaults.

    Args:
        options: the dataclasses of the recipe's options, or instances of them.
    """
    fields = [field for group in options for field in dataclasses.fields(group) if field.name in now]
    made = dataclasses.MISSING
    defaults = {
        field.name: field.default if field.default_factory is made else field.default_factory() for field in fields
    }
    sources = {
        name: _source_defaults(before[name], now.get(name)) for name in ("train_data", "eval_data") if name in before
    }
    return json.loads(json.dumps(defaults, default=str)) | before | sources


def _source_defaults(before: Any, now: Any) -> Any:
    """Sets as they were recorded, with the fields that only `now` has of them."""
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
    Records the recipe in the run's folder and returns the checkpoint to go on from, `None` for a new run.

    Args:
        output_dir: the run's folder; made if it is missing.
        recipe: from `describe_recipe`.
        write: whether this process records (one of them does).
        resume: the checkpoint to go on from, instead of the last one.
        options: which the recipe describes, see `with_defaults`.

    Raises a `ValueError` if the folder holds a run with another recipe, or the checkpoint is damaged.
    """
    folder = Path(output_dir)
    path = folder / RECIPE
    checkpoint = _given_checkpoint(Path(resume)) if resume else find_checkpoint(output_dir)
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    if before:
        before = with_defaults(before, recipe, options)
    changed = [name for name in recipe if before and name not in MAY_CHANGE and before.get(name) != recipe[name]]
    if not checkpoint and not (folder / STATE).exists():  # nothing is trained yet
        changed = [name for name in changed if name in DECIDING_BASE and (folder / BASE).exists()]
    if changed:
        differences = ", ".join(f"{name}: {before.get(name)!r} -> {recipe[name]!r}" for name in changed)
        advice = "Give another output_dir, or remove that folder."
        if set(changed) <= {"num_train_epochs", "max_steps"} and (folder / STATE).exists():
            # Its learning rate has come down; one that went up again in the middle would be no schedule.
            advice = (
                f"It has ended, and so has its schedule. To train on from what it left: `--model {output_dir} --output_dir ANOTHER`, with "
                "the epochs that are to come on top, in the place of the options that name its model."
            )
        raise ValueError(f"{output_dir} holds a run that was started with other options ({differences}). {advice}")
    if write and before != recipe:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(yaml.safe_dump(recipe, sort_keys=False).encode())
    return checkpoint


def root_of(run: Path) -> Path:
    """The folder of a run, given that or one of its checkpoints."""
    return run.parent if run.name.startswith("checkpoint-") else run


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """
    The last whole checkpoint of a run, or `None` where there is none yet.

    Raises a `ValueError` that names the damaged file if the last complete checkpoint cannot be read.
    """
    paths = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(paths, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        if _is_complete(path):
            check_readable(path)
            return path
        print(f"{path} was interrupted while it was written; passing it over.")
    return None


def _given_checkpoint(path: Path) -> Path:
    if not _is_complete(path):
        raise ValueError(
            f"{path} is no whole checkpoint: it has no readable {STATE}. Name a folder checkpoint-N of a run."
        )
    check_readable(path)
    return path


def check_readable(checkpoint: Path):
    """Raises a `ValueError` that names the first file of a checkpoint that is cut off or damaged."""
    for path in sorted(checkpoint.rglob("*")):
        problem = _problem(path)
        if problem:
            raise ValueError(
                f"{path} cannot be read: {problem}. Remove {checkpoint} to go on from the checkpoint before it, or "
                "name another one with --resume_from_checkpoint."
            )


def _problem(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                return None
        if path.suffix in (".pt", ".pth", ".bin"):  # .bin: of FSDP
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
    """What to tell the user about an error that ended a run."""
    message = str(error).strip()
    if message.startswith("Caught "):
        # From a worker of the data loader, with its whole traceback; what was said stands at the end of that.
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    if is_write_failure(error):
        return (
            f"A file could not be written: {message}. Checkpoints written before are whole; make room and start the same "
            "command again."
        )
    return message


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
