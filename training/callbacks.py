"""What happens between steps: the order of an epoch, when evaluations run, and how a run stops on SIGTERM.

SLURM and spot machines announce the end with SIGTERM: the run finishes the current step, saves a checkpoint and exits
with code 143. With several processes, the first that gets the signal makes all of them stop at the same step. torchrun
forwards the signal, and kills after 30 s.
"""

import signal
import threading
import time
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from .best import PREFIX, checkpoint_of, find_best, measured, note_best
from .data.sampler import MixtureSampler
from .run_folder import STATE, save_state


STEPS_TO_TIME = 20  # steps of a run before it prints how long it will take
EXIT_CODE = 128 + signal.SIGTERM  # as a shell reports a program killed by it


class EpochOrder(TrainerCallback):
    """
    Tells the sampler which epoch it is. Accelerate's loaders would, except for the one it creates to resume in the
    middle of an epoch on several devices: that would silently restart with the first epoch's order.
    """

    def __init__(self, sampler: MixtureSampler):
        self.sampler = sampler

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.sampler.set_epoch(int(state.epoch or 0))


class EvaluateAtTheEnd(TrainerCallback):
    """A run that evaluates every N steps also evaluates its last step: the final result matters most."""

    def on_step_end(self, args, state, control, **kwargs):
        if args.eval_strategy == IntervalStrategy.STEPS and state.global_step >= state.max_steps:
            control.should_evaluate = True


class LogTheEnd(TrainerCallback):
    """The last step is always logged, however short the run, so that the checks made while logging run then too."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_log = True


class EvaluateAfterSaving(TrainerCallback):
    """
    A step that is both evaluated and saved is saved first, so a failed evaluation costs nothing. The results are then
    added to the saved state: its log, and whether the step is the best (best.py), for which transformers evaluates
    first. A resumed run evaluates the step that it starts from, if that evaluation was due and is compared with
    others.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._due = False

    def on_train_begin(self, args, state, control, **kwargs):
        find_best(args, state)
        evaluated = [entry["step"] for entry in state.log_history if any(name.startswith(PREFIX) for name in entry)]
        if (
            args.metric_for_best_model
            and state.global_step
            and state.global_step not in evaluated
            and _is_due(args, state)
        ):
            self._evaluate(args, state, control)

    def on_step_end(self, args, state, control, **kwargs):
        # A schedule that depends on metrics reads them in transformers' own evaluation.
        if (
            control.should_save
            and control.should_evaluate
            and args.lr_scheduler_type != SchedulerType.REDUCE_ON_PLATEAU
        ):
            control.should_evaluate = False
            self._due = True

    on_epoch_end = on_step_end

    def on_save(self, args, state, control, **kwargs):
        if not self._due:
            return
        self._due = False
        self._evaluate(args, state, control)

    def _evaluate(self, args, state, control):
        note_best(args, state, measured(args, self.trainer.evaluate()))
        control.should_save = False  # early stopping requests it, but the step is saved already
        saved = checkpoint_of(args, state.global_step)
        if state.is_world_process_zero and (saved / STATE).exists():
            save_state(state, saved)


def _is_due(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step should be evaluated."""
    if args.eval_strategy == IntervalStrategy.EPOCH:
        return float(state.epoch or 0).is_integer()
    by_steps = args.eval_strategy == IntervalStrategy.STEPS
    return by_steps and (state.global_step % state.eval_steps == 0 or state.global_step >= state.max_steps)


class TimeToGo(TrainerCallback):
    """
    The remaining time of the run at its pace so far on this machine, evaluations and checkpoints included: printed
    once after `STEPS_TO_TIME` steps, and then available for each log line.
    """

    def __init__(self):
        self._first: tuple[int, float] | None = None  # step and time: the first step takes longer than others
        self.seconds: int | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if self._first is None or state.global_step <= self._first[0]:  # `train` was called again
            self._first = state.global_step, time.monotonic()
            return
        step, began = self._first
        steps = state.global_step - step
        pace = (time.monotonic() - began) / steps
        if steps + 1 >= STEPS_TO_TIME:
            known = self.seconds is not None
            self.seconds = round(pace * (state.max_steps - state.global_step))
            if not known and self.seconds and state.is_world_process_zero:
                print(
                    f"{'to go':<22} about {self.seconds:,} s ({timedelta(seconds=self.seconds)}) at {pace:.3g} s a step, for "
                    f"{state.max_steps - state.global_step:,} steps",
                    flush=True,
                )


class Terminated(Exception):
    """A run stopped on request: the checkpoint of its last step is saved."""


class SaveAtSigterm(TrainerCallback):
    """Saves a checkpoint and stops training on SIGTERM; `raise_if_stopped` then reports it."""

    def __init__(self):
        self._asked = False
        self._stopped_after: int | None = None
        self._before = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is threading.main_thread():  # elsewhere no handler can be set
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self._asked = True

    def on_step_end(self, args, state, control, **kwargs):
        if self._asked_anywhere(args.world_size) and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # there may be no time
            self._stopped_after = state.global_step

    def on_epoch_end(self, args, state, control, **kwargs):
        if self._stopped_after is not None:
            control.should_save = control.should_evaluate = False

    def _asked_anywhere(self, processes: int) -> bool:
        if processes == 1:
            return self._asked
        return bool(gather(torch.tensor([self._asked], device=PartialState().device)).any())

    def on_train_end(self, args, state, control, **kwargs):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def raise_if_stopped(self):
        """Raises `Terminated` if the signal stopped training."""
        if self._stopped_after is not None:
            raise Terminated(
                f"stopped by SIGTERM after step {self._stopped_after}, which is saved. Run the same command again to "
                "resume."
            )
