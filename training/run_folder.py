"""The folder of a run: what it was started with, where it goes on, and what to say when files cannot be written or read.

`recipe.yaml` records every option that decides the result; a run that is started again with others is an error. The
trainer writes `trainer_state.json` last, so a checkpoint without one was interrupted and is passed over with a note.
One that is complete but damaged is an error that names the file: which one to go on from is then for the user to say.
"""

import dataclasses
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open

from .arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from .shards import whole_file


RECIPE = "recipe.yaml"
STATE = "trainer_state.json"
# Options of the trainer that decide the result; the others say how it is run, logged and saved.
DECIDING = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("max_length", "loss_type", "bf16", "fp16", "seed", "data_seed"),
)
# What torch and safetensors say when a file could not be written; they raise no OSError.
_WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "os error", "I/O error")


def describe_recipe(
    model: ModelArguments, lora: LoraArguments, data: DataArguments, training: AudioSFTConfig
) -> dict[str, Any]:
    """Everything that decides the result of a run, as plain values."""
    recipe = dataclasses.asdict(model) | dataclasses.asdict(lora) | dataclasses.asdict(data)
    recipe |= {name: getattr(training, name) for name in DECIDING}
    recipe["global_batch_size"] = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    return json.loads(json.dumps(recipe, default=str))


def start_or_go_on(output_dir: str | Path, recipe: dict[str, Any], write: bool = True) -> Path | None:
    """
    Records the recipe in the run's folder and returns the checkpoint to go on from, `None` for a new run.

    Args:
        output_dir: the run's folder; made if it is missing.
        recipe: from `describe_recipe`.
        write: whether this process records (one of them does).

    Raises a `ValueError` if the folder holds a run with another recipe, or its last checkpoint is damaged.
    """
    path = Path(output_dir) / RECIPE
    checkpoint = find_checkpoint(output_dir)
    if checkpoint is not None and path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        changed = [name for name in recipe if before.get(name) != recipe[name]]
        if changed:
            differences = ", ".join(f"{name}: {before.get(name)!r} -> {recipe[name]!r}" for name in changed)
            raise ValueError(
                f"{output_dir} holds a run that was started with other options ({differences}). Give another "
                "output_dir, or remove that folder."
            )
    elif write:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(yaml.safe_dump(recipe, sort_keys=False).encode())
    return checkpoint


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
        if path.suffix in (".pt", ".pth"):
            with zipfile.ZipFile(path) as archive:  # torch's format
                damaged = archive.testzip()
                return f"{damaged} in it is damaged" if damaged else None
    except (SafetensorError, zipfile.BadZipFile, OSError) as error:
        return str(error)
    return None


def is_write_failure(error: Exception) -> bool:
    """Whether an error means that a file could not be written (a full disk, say)."""
    return isinstance(error, OSError) or any(mark in str(error) for mark in _WRITE_FAILURES)


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
