"""How every training starts and ends: its folder and model, and what it saves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from falcon3_audio.compose import check_answers_can_be_learned
from falcon3_audio.processing import Falcon3AudioProcessor

from .arguments import DataArguments, ModelArguments
from .augmentation import FOLDERS
from .best import describe_best
from .callbacks import SaveAtSigterm
from .distributed import begin_run, check_same_strategy, whole_weights
from .loss_curve import NATS, plot_loss
from .model import check_precision, load_model
from .run_folder import LOCAL, save_state


def _local(model_args: ModelArguments, options: Sequence[Any]) -> dict[str, list[str]]:
    """For the recipe: which of its names are local, since a relative path of two parts looks like a Hub id."""
    (data,) = (group for group in options if isinstance(group, DataArguments))
    names = [model_args.model, model_args.audio_model, model_args.text_model]
    names += [source.path for source in (*data.train_data, *data.eval_data)]
    augmentation = getattr(options[-1], "augmentation", None) or {}
    names += [augmentation.get(name) for name in FOLDERS]
    return {LOCAL: sorted({name for name in names if name and Path(name).exists()})}


@contextmanager
def begin_with_model(
    args: TrainingArguments,
    model_args: ModelArguments,
    recipe: dict[str, Any],
    options: Sequence[Any],
    sets: Sequence[Dataset] = (),
    skip_bad_audio: bool = False,
    samples_answers: bool = False,
) -> Iterator[tuple[Path | None, PreTrainedModel, Falcon3AudioProcessor]]:
    """
    `begin_run`; yields besides the checkpoint the model that the run starts from, and its processor.

    `sets` and `skip_bad_audio` are those of `load_model`. Unless the run `samples_answers` itself (GRPO), those of its
    data must be found in rendered chats: otherwise a `ValueError` is raised.
    """
    with begin_run(args, recipe | _local(model_args, options), options) as checkpoint:
        with whole_weights(args):
            model, processor = load_model(
                model_args, str(args.output_dir), args.seed, sets, skip_bad_audio, anew=checkpoint is None
            )
        if not samples_answers:
            check_answers_can_be_learned(processor)
        check_precision(model, args)
        yield checkpoint, model, processor


def run_and_save(trainer: Trainer, checkpoint: Path | None, stopper: SaveAtSigterm, loss: str = NATS):
    """
    Trains to the end, from the checkpoint if there is one, and saves model, processor, log and loss curve.

    Args:
        loss: its name, for the curve.

    Raises `Terminated` if SIGTERM stopped the run, and a `ValueError` if the checkpoint is from another strategy, or
    the best step was to be saved and there is none.
    """
    if checkpoint:
        check_same_strategy(checkpoint, trainer)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stopper.raise_if_stopped()
    is_best = trainer.args.load_best_model_at_end
    if is_best:
        trainer.log(describe_best(trainer.state))
    trainer.save_model()
    if trainer.is_world_process_zero():
        state, folder = trainer.state, Path(str(trainer.args.output_dir))
        if is_best:
            metric = trainer.args.metric_for_best_model
            print(f"best step: {state.best_global_step}, {metric} {state.best_metric:.4g}")
        save_state(state, folder)
        plot_loss(state.log_history, folder / "loss_curve.png", loss)
        print(f"saved in {folder}", flush=True)
