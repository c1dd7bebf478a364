"""
Which checkpoints a run resumes from under each strategy, and weights that are not finite; runs in several processes
are in test_multi_process.py.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from ports import free_port
from torch import nn

from falcon3_audio.training.distributed import broken_weights, check_same_strategy


ALONE, FSDP, DEEPSPEED = ("one process or DDP", "FSDP", "DeepSpeed")
# The file names of transformers and accelerate.
FILES = {
    ALONE: ["optimizer.pt", "scheduler.pt", "rng_state.pth"],
    FSDP: ["pytorch_model_fsdp_0", "optimizer_0", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"],
    DEEPSPEED: ["latest", "global_step2", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"],
}


@pytest.fixture
def check(tmp_path):
    """Checks a checkpoint with these files in a run with this strategy."""

    def check(files, strategy):
        checkpoint = tmp_path / "checkpoint-2"
        checkpoint.mkdir()
        for name in files:
            (checkpoint / name).touch()
        check_same_strategy(
            checkpoint, SimpleNamespace(is_fsdp_enabled=strategy == FSDP, is_deepspeed_enabled=strategy == DEEPSPEED)
        )

    return check


@pytest.mark.parametrize("strategy", FILES)
@pytest.mark.parametrize("other", FILES)
def test_only_what_the_same_strategy_wrote_is_gone_on_from(check, strategy, other):
    if strategy == other:
        check(FILES[strategy], strategy)
        return
    with pytest.raises(
        ValueError, match=f"was written by {other}, but this run uses {strategy}. Resume with the config"
    ):
        check(FILES[other], strategy)


@pytest.mark.parametrize(
    ("strategy", "gone", "said"),
    [
        *((ALONE, [name], name) for name in ("optimizer.pt", "scheduler.pt")),
        (ALONE, FILES[ALONE], r"optimizer.pt, scheduler.pt, rng_state\*.pth"),
        (ALONE, ["rng_state.pth"], r"rng_state\*.pth"),
        (FSDP, ["optimizer_0"], r"optimizer\*"),
        (FSDP, ["scheduler.pt"], "scheduler.pt"),
        (DEEPSPEED, ["rng_state_0.pth", "rng_state_1.pth"], r"rng_state\*.pth"),
        (DEEPSPEED, ["latest"], "latest"),
    ],
)
def test_a_state_that_is_missing_is_named(check, strategy, gone, said):
    with pytest.raises(
        ValueError, match=f"checkpoint-2 is incomplete: {said} is missing. Remove .*checkpoint-2 to resume"
    ):
        check([name for name in FILES[strategy] if name not in gone], strategy)


def test_the_number_of_processes_may_change(check):
    check(["optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"], ALONE)


def test_only_trained_weights_can_be_broken():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert broken_weights(model) == []
    for layer in model:
        nn.init.constant_(layer.bias, torch.inf)
    model[0].requires_grad_(False)
    assert broken_weights(model) == ["1.bias"]


SHARDED = """
import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import fully_shard
from falcon3_audio.training.distributed import broken_weights

state = PartialState(cpu=True, backend="gloo")
model = fully_shard(nn.Linear(4, 4), mesh=torch.distributed.init_device_mesh("cpu", (2,)))
if state.process_index == 1:  # of the last rows alone, which are in this process
    with torch.no_grad():
        model.weight.to_local().fill_(torch.nan)
print(state.num_processes, *broken_weights(model))
torch.distributed.destroy_process_group()
"""


def test_a_shard_that_is_broken_is_in_all_processes():
    """Otherwise one would raise an error while the others wait for it."""
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].strip() for process in processes] == ["2 weight", "2 weight"]
