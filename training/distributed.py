"""What a run on several devices or machines needs besides accelerate: whole models while loading, the right
checkpoint, an exclusive folder.

training/accelerate/README.md says how such runs are started. Runs in one process also use this module, but cannot
resume from checkpoints of FSDP or DeepSpeed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from falcon3_audio.locks import locked

from .run_folder import other_than, start_or_go_on


LOCK = "run.lock"
# Files in every checkpoint written under a strategy: the first is in no other strategy's. Each process has its own
# random state, and the number of processes can change. DeepSpeed may have the scheduler in its own files.
_STATES = ("scheduler.pt", "rng_state*.pth")
_FILES = {
    "one process or DDP": ("optimizer.pt", *_STATES),
    "FSDP": ("pytorch_model_fsdp*", "optimizer*", *_STATES),
    "DeepSpeed": ("latest", _STATES[1]),
}


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """
    Models loaded in this context are whole on every process, also under DeepSpeed ZeRO-3.

    There transformers would build them in shards (whatever `zero3_init_flag` says), with collectives between all
    processes; but only one process composes the base model, and would wait for the others forever. DeepSpeed shards
    the model when training starts.
    """
    if args.deepspeed_plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        args.deepspeed_plugin.set_deepspeed_weakref()


@contextmanager
def begin_run(args: TrainingArguments, recipe: dict[str, Any], options: Sequence[Any]) -> Iterator[Path | None]:
    """
    `start_or_go_on` in all processes: the checkpoint to resume from, the same in each, or `None` for a new run. In
    this context no other run can start in the folder.
    """
    folder, is_first = Path(str(args.output_dir)), args.process_index == 0
    if is_first:
        folder.mkdir(parents=True, exist_ok=True)
    # Workers of the data loader inherit the lock and can outlive the run.
    with locked(folder / LOCK) if is_first else nullcontext(True) as is_ours:
        if not all(gather_object([is_ours])):
            raise ValueError(
                f"Another process is training in {folder}. Wait until it finishes, or stop it; or give another "
                "output_dir."
            )
        checkpoint = start_or_go_on(folder, recipe, is_first, args.resume_from_checkpoint, options)
        check_same_checkpoint(checkpoint, str(folder))
        yield checkpoint


def check_same_checkpoint(checkpoint: Path | None, output_dir: str):
    """Raises a `ValueError` in every process unless all of them are about to resume from the same checkpoint."""
    found = gather_object([checkpoint.name if checkpoint else "none"])
    if len(set(found)) > 1:
        raise ValueError(
            f"The processes do not see the same checkpoints in {output_dir} (by rank: {', '.join(found)}). It must be a "
            "folder that all machines share, given by the same path on each."
        )


def check_same_strategy(checkpoint: Path, trainer: Trainer):
    """
    Raises a `ValueError` if the checkpoint was written under another strategy than the trainer's, or lacks a file
    needed to resume. transformers would silently resume from some of these with a new optimizer or schedule.
    """
    strategy = (
        "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else "one process or DDP"
    )
    missing = [file for file in _FILES[strategy] if not any(checkpoint.glob(file))]
    others = [name for name, (mark, *_) in _FILES.items() if name != strategy and any(checkpoint.glob(mark))]
    if others and _FILES[strategy][0] in missing:
        raise ValueError(
            f"{checkpoint} was written by {' or '.join(others)}, but this run uses {strategy}. Resume with the config "
            "of training/accelerate that the run was started with."
        )
    if missing:
        raise ValueError(f"{checkpoint} is incomplete: {', '.join(missing)} is missing. {other_than(checkpoint)}")


def broken_weights(model: nn.Module) -> list[str]:
    """
    Names of the trained weights that are not finite in a process; the same in all of them, which must all call this.
    Of a model that DeepSpeed ZeRO-3 has sharded, none is found.
    """
    broken = []
    for name, weight in model.named_parameters():
        shard = weight.to_local() if isinstance(weight, DTensor) else weight
        if weight.requires_grad and not torch.isfinite(shard).all():
            broken.append(name)
    return sorted({name for names in gather_object([broken]) for name in names})


def reshard(model: nn.Module):
    """
    Reshards a model of FSDP2. After a forward without a backward its outermost unit stays whole, and weights of a
    checkpoint (`load_best_model_at_end`) would not fit. Other models are unchanged.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def leave_group(code: int) -> int:
    """
    Destroys the process group, as the last thing a process does, and returns its exit code. Left to the interpreter's
    shutdown, the group's threads occasionally abort a process whose work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code
