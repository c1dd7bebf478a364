"""What GRPO and DPO, the trainings after the supervised one, share: start, printed plan, and saved files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from falcon3_audio.peak_memory import peak_memory_gib
from falcon3_audio.processing import Falcon3AudioProcessor

from .arguments import LoraArguments, ModelArguments
from .callbacks import SaveAtSigterm
from .distributed import begin_run, check_same_strategy, whole_weights
from .learning import count_parameters, describe_parts
from .loss_curve import plot_loss
from .model import check_precision, load_model
from .run_folder import save_state
from .workers import outlive_sigterm


class AfterSFT:
    """
    For trainers: logs have the peak memory, workers outlive SIGTERM, and a finished run that is started again takes no
    further step.
    """

    def log(self, logs, start_time=None):
        if "loss" in logs:  # of training
            logs["peak_memory_gib"] = peak_memory_gib(self.args.device.type)
        super().log(logs, start_time)

    def get_train_dataloader(self):
        return outlive_sigterm(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset=None):
        return outlive_sigterm(super().get_eval_dataloader(eval_dataset))

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.state.global_step >= self.state.max_steps:  # transformers would take one step first
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)


@contextmanager
def begin_with_model(
    args: TrainingArguments, model_args: ModelArguments, recipe: dict[str, Any], options: Sequence[Any]
) -> Iterator[tuple[Path | None, PreTrainedModel, Falcon3AudioProcessor]]:
    """`begin_run`; yields besides the checkpoint the model that the run starts from, and its processor."""
    with begin_run(args, recipe, options) as checkpoint:
        with whole_weights(args):
            model, processor = load_model(model_args, str(args.output_dir), args.seed, anew=checkpoint is None)
        check_precision(model, args)
        yield checkpoint, model, processor


def print_plan(model: nn.Module, lora: LoraArguments, lines: dict[str, str], checkpoint: Path | None):
    """Prints what is trained, `lines`, and the checkpoint that the run resumes from."""
    counts = count_parameters(model)
    plan = dict(describe_parts(counts, lora))
    total, trained = (sum(values) for values in zip(*counts.values()))
    plan |= {"parameters": f"{total / 1e6:,.2f} M, {trained / total:.2%} trained"} | lines
    plan |= {"resuming from": str(checkpoint)} if checkpoint else {}
    for name, text in plan.items():
        print(f"{name:<22} {text}", flush=True)


def run_and_save(trainer: Trainer, checkpoint: Path | None, stopper: SaveAtSigterm, loss: str):
    """
    Trains to the end, from the checkpoint if there is one, and saves model, processor, log and loss curve.

    Args:
        loss: its name, for the curve.

    Raises `Terminated` if SIGTERM stopped the run, and a `ValueError` if the checkpoint is from another strategy.
    """
    if checkpoint:
        check_same_strategy(checkpoint, trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stopper.raise_if_stopped()
    trainer.save_model()
    if trainer.is_world_process_zero():
        folder = Path(str(trainer.args.output_dir))
        save_state(trainer.state, folder)
        plot_loss(trainer.state.log_history, folder / "loss_curve.png", loss)
        print(f"saved in {folder}", flush=True)
