"""Which checkpoints a run resumes from under each strategy; runs in several processes are in test_multi_process.py."""

from types import SimpleNamespace

import pytest

from falcon3_audio.training.distributed import check_same_strategy


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
