"""Checks for combinations of options that are each valid on their own."""

import sys
from pathlib import Path

from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy

from falcon3_audio.generation_falcon3_audio import learned_positions
from falcon3_audio.shared_prefix_falcon3_audio import check_can_share_rows

from .arguments import AudioSFTConfig, DataArguments, LoraArguments


def check_push(training: TrainingArguments):
    """Raises a `ValueError` for options of `push_to_hub` that this project does not support."""
    if not training.push_to_hub:
        return
    if training.hub_token:
        raise ValueError("hub_token would be saved in training_args.bin. Set HF_TOKEN, or log in (hf auth login).")
    if training.hub_strategy not in (HubStrategy.END, HubStrategy.EVERY_SAVE):  # the latter is the default
        raise ValueError(
            f"Leave out hub_strategy, got {training.hub_strategy.value}: the results are pushed when the run has "
            "finished, in one commit. To push a checkpoint, use `falcon3-audio push RUN/checkpoint-N ORG/NAME`."
        )


def check_together(data: DataArguments, training: TrainingArguments):
    """Raises a `ValueError` for options that would silently be ignored, or do something other than the recipe says."""
    check_ignored(data, training)
    if Path(str(training.output_dir)).is_file():
        raise ValueError(f"output_dir must be a folder, but {training.output_dir} is a file. Give another output_dir.")
    if training.n_gpu > 1:
        # transformers would use DataParallel: larger batches than requested, and audio separated from its text.
        raise ValueError(
            f"One process sees {training.n_gpu} GPUs. Start one process per GPU (`accelerate launch --config_file "
            "training/accelerate/ddp.yaml ...`), or make only one visible: CUDA_VISIBLE_DEVICES=0."
        )


def check_fits(model: PreTrainedModel, training: AudioSFTConfig, may_share: bool):
    """
    Raises a `ValueError` for rows that the language model cannot take; it would do so only at the first such row.

    Args:
        may_share: whether any clip has several questions.
    """
    if training.questions_per_row != 1 and (may_share or training.tokens_per_device):
        check_can_share_rows(model.config.text_config)
    positions = learned_positions(model.model.language_model)
    if positions is not None and (training.max_length or sys.maxsize) > positions:
        raise ValueError(
            f"max_length is {training.max_length}, but the language model has learned only {positions} positions: set "
            f"max_length to at most {positions}."
        )


def check_streaming(data: DataArguments, training: TrainingArguments):
    """Raises a `ValueError` for options that need the length of a set, if sets are streamed."""
    streamed = next((source for source in data.train_data if source.streaming), None)
    if streamed is None:
        return
    what = f"{streamed} is streamed, so its length is not known"
    if training.max_steps <= 0:
        raise ValueError(f"{what}: set max_steps, the number of steps to train.")
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if getattr(training, name) == IntervalStrategy.EPOCH.value:
            raise ValueError(f"{what}, and there are no epochs: set {name} to `steps`.")


def check_ignored(data: DataArguments, training: TrainingArguments):
    """
    Raises a `ValueError` for `eval_data` or `eval_generate` that would never be used, an evaluation without data, epochs
    next to `max_steps`, and a run without steps.
    """
    if getattr(training, "eval_generate", 0) and not data.eval_data:
        raise ValueError(
            "eval_generate runs the model on held-out questions, and there are none: give eval_data, or leave it out."
        )
    if training.max_steps > 0 and training.num_train_epochs != type(training).num_train_epochs:
        by_epochs = "" if data.is_streamed else ", or set max_steps to -1 to train by epochs"
        raise ValueError(
            f"max_steps={training.max_steps} sets how long to train, so num_train_epochs="
            f"{training.num_train_epochs:g} would be ignored: leave it out{by_epochs}."
        )
    if training.max_steps <= 0 and training.num_train_epochs <= 0:
        raise ValueError(
            f"num_train_epochs must be above 0, got {training.num_train_epochs:g}: the run would train nothing."
        )
    if not data.eval_data and training.eval_strategy != "no":
        raise ValueError(
            f"eval_strategy is `{IntervalStrategy(training.eval_strategy).value}`, but there is nothing to evaluate: "
            "give eval_data, or leave out eval_strategy."
        )
    if data.eval_data and training.eval_strategy == "no":
        raise ValueError(
            "`eval_data` would never be scored: set eval_strategy to `steps` or `epoch`, or leave out eval_data."
        )


def check_sound_everywhere(data: DataArguments, trainer: Trainer):
    """
    Raises a `ValueError` for sets with and without clips if the model is sharded: the processes whose prompts have no
    clips would leave out the encoder, and the others wait forever for their shards of it.
    """
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return
    for option in ("train_data", "eval_data"):
        sources = getattr(data, option)
        kinds = {source.sound for source in sources}
        if kinds not in (set(), {True}, {False}):
            named = ", ".join(f"{source}: `sound: {str(source.sound).lower()}`" for source in sources)
            raise ValueError(
                f"{option} has prompts with and without clips ({named}), but here every process must have a clip in "
                "every batch, since FSDP or DeepSpeed shards the encoder. Use only sets with `sound: true`, or train "
                "with training/accelerate/ddp.yaml."
            )


def check_learning_rates(lora: LoraArguments, training: AudioSFTConfig):
    """Raises a `ValueError` for the learning rate of a tower that is frozen."""
    for tower in ("audio_tower", "language_model"):
        rate = getattr(training, f"{tower}_learning_rate")
        if rate is not None and getattr(lora, f"lora_{tower}") == "none":
            raise ValueError(
                f"{tower}_learning_rate={rate:g} would be ignored, because lora_{tower}: none freezes that tower: "
                "leave out one of the two."
            )
