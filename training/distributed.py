"""What a run on several devices or machines needs besides accelerate: whole models while loading, the right checkpoint.

How such runs are started is in training/accelerate/README.md. Runs in one process pass through here unchanged, but do
not go on from what FSDP or DeepSpeed saved.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config

from falcon3_audio.training.run_folder import start_or_go_on


# What is in every checkpoint that was written under a strategy, and in none of the others.
_FILES = {"one process or DDP": "optimizer.pt", "FSDP": "pytorch_model_fsdp*", "DeepSpeed": "latest"}


@contextmanager
def whole_weights(args: TrainingArguments) -> Iterator[None]:
    """
    Models that are loaded in here are whole on every process, under DeepSpeed ZeRO-3 too.

    transformers would build them in pieces there (whatever `zero3_init_flag` says), by messages between all processes;
    but one process alone composes the base model, and would wait for the others for ever. DeepSpeed cuts the model up
    when training begins.
    """
    if args.deepspeed_plugin is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        args.deepspeed_plugin.set_deepspeed_weakref()


def begin_run(args: TrainingArguments, recipe: dict[str, Any], options: Sequence[Any]) -> Path | None:
    """`start_or_go_on` in all processes: the checkpoint to go on from, the same in each, or `None` for a new run."""
    checkpoint = start_or_go_on(args.output_dir, recipe, args.process_index == 0, args.resume_from_checkpoint, options)
    check_same_checkpoint(checkpoint, args.output_dir)
    return checkpoint


def check_same_checkpoint(checkpoint: Path | None, output_dir: str):
    """Raises a `ValueError` in every process unless all of them are about to go on from the same checkpoint."""
    found = gather_object([checkpoint.name if checkpoint else "none"])
    if len(set(found)) > 1:
        raise ValueError(
            f"The processes do not see the same checkpoints in {output_dir} (by rank: {', '.join(found)}). It must be a "
            "folder that all machines share, given by the same path on each."
        )


def check_same_strategy(checkpoint: Path, trainer: Trainer):
    """
    Raises a `ValueError` if the checkpoint was written under another strategy than the trainer's. transformers would go
    on from some of these without a word, but with a new optimizer.
    """
    strategy = (
        "DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP" if trainer.is_fsdp_enabled else "one process or DDP"
    )
    if not any(checkpoint.glob(_FILES[strategy])):
        writers = [name for name, file in _FILES.items() if any(checkpoint.glob(file))]
        raise ValueError(
            f"{checkpoint} was written by {' or '.join(writers) or 'nothing that is known here'}, this run is one of "
            f"{strategy}. Go on with the config of training/accelerate that the run was started with."
        )


def reshard(model: nn.Module):
    """
    Divides a model of FSDP2 among the processes again. After a forward without a backward its outermost unit stays whole, and
    weights of a checkpoint (`load_best_model_at_end`) would not fit. Other models stay as they are.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def leave_group(code: int) -> int:
    """
    Ends what this process had in common with others, as the last thing it does, and hands on its exit code. Left to the
    interpreter's end, the group's threads now and then abort a process whose work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return code
