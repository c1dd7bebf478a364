"""Direct preference optimisation with TRL's DPOTrainer, on preference rows with audio (preferences.py).

    falcon3-audio dpo --config training/recipes/dpo.yaml --model runs/mine --train_data preferences.jsonl --output_dir runs/dpo

DPOTrainer needs only a collator: it passes everything in a batch to the model, so the audio reaches policy and
reference. The chosen answers are the first half of a batch, the rejected ones the second, each half with the audio of
its prompts; the loss is on the answers and their end tokens. A batch without clips gets silence, as in collator.py. The
reference is the model without its adapter.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer

from falcon3_audio.processing import Falcon3AudioProcessor

from .after_sft import AfterSFT, print_plan
from .arguments import DataArguments, LoraArguments, ModelArguments
from .callbacks import SaveAtSigterm
from .checks import check_together
from .collator import AUDIO_INPUTS, IGNORED, Chat, as_chat, end_in_silence, join_audio
from .data.chats import clips_of, fill_in
from .data_digests import data_digests
from .distributed import leave_group
from .learning import choose_trained_weights
from .model import check_loss, disable_functional_dropout, train_in_float32
from .preferences import check_preference, check_preferences, load_preferences
from .recipe import run_recipe
from .run_folder import describe_recipe
from .running import begin_with_model, run_and_save


NOT_OURS = ("padding_free", "precompute_ref_log_probs", "sync_ref_model", "remove_unused_columns", "push_to_hub")


@dataclass
class AudioPreferenceCollator:
    """
    Data collator for TRL's `DPOTrainer` (with `remove_unused_columns=False`), for rows with an empty column `images`:
    without it TRL would tokenize all rows, and process all their audio, before training. Nothing is cut: `max_length`
    of `DPOConfig` has no effect.

    Args:
        processor (`Falcon3AudioProcessor`): The model's processor.
    """

    processor: Falcon3AudioProcessor

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: Rows with `prompt`, a chat that ends with the user's message; `chosen` and `rejected`, each a
                list of one assistant message; *optionally* `audio` or `audios`, the clips of audio items that have no
                source; and *optionally* `origin`, the row's name in errors.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` of shape `(2 * rows, tokens)`, padded on the right, the
            mask 1 for the answer and its end token; and `input_features` `(audios, mel bands, frames)` and
            `input_features_mask` `(audios, frames)`: every audio once per half, or, if there is none, silence once, at
            the end of the shortest row.

        Raises:
            `ValueError`: for a row of another form or with audio that cannot be used; names its `origin`.
        """
        rows = [self._encode(example, answer) for answer in ("chosen", "rejected") for example in examples]
        if not any(AUDIO_INPUTS[0] in row for row in rows):
            rows = end_in_silence(rows, self.processor)
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "completion_mask": pad_sequence([_last_answer(row["labels"]) for row in rows], batch_first=True),
        } | join_audio(rows)

    def _encode(self, example: dict[str, Any], answer: str) -> Chat:
        try:
            clips = clips_of(example)
            # In rows from `load_preferences` the clips are in place already, so a remaining tag is plain text.
            prompt, reply = fill_in(example["prompt"], clips, Path(), tags=bool(clips)), example[answer]
            check_preference(prompt, reply, answer)
            options = {"return_labels": True, "truncation": False}  # of audio: too long a clip is an error
            return as_chat(
                self.processor.apply_chat_template(
                    [*prompt, *reply], tokenize=True, return_dict=True, processor_kwargs=options
                )
            )
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{example.get('origin', 'A preference row')}: {error}") from error


def _last_answer(labels: torch.Tensor) -> torch.Tensor:
    """1 for the last unbroken stretch of labels: earlier answers of the chat belong to the prompt."""
    learned = labels != IGNORED
    last = int(learned.nonzero()[-1])
    before = (~learned[:last]).nonzero()
    mask = torch.zeros_like(labels)
    mask[int(before[-1]) + 1 : last + 1] = 1
    return mask


@dataclass
class AudioDPOConfig(DPOConfig):
    """`trl.DPOConfig` for rows with audio: nothing is cut, and all columns are kept."""

    max_length: int | None = field(default=None, metadata={"help": "Must stay off: nothing is cut."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay False."})
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none, ..."}
    )

    def __post_init__(self):
        given = [name for name in NOT_OURS if getattr(self, name)] + ["max_length"] * (self.max_length is not None)
        if given:
            raise ValueError(
                f"{', '.join(given)} must stay off: the collator prepares the rows and cuts nothing, the reference is the model "
                "without its adapter, and `falcon3-audio push` pushes the results."
            )
        super().__post_init__()


class AudioDPOTrainer(AfterSFT, DPOTrainer):
    """TRL's trainer, which raises a `FloatingPointError` if the loss is not finite; nothing of that step is saved."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        check_loss(result[0] if return_outputs else result, self.state.global_step)
        return result


def train(
    model_args: ModelArguments, lora_args: LoraArguments, data_args: DataArguments, args: AudioDPOConfig
) -> AudioDPOTrainer:
    """Runs a recipe from the start, or from its last checkpoint, and returns the trainer."""
    check_together(data_args, args)
    if {lora_args.lora_audio_tower, lora_args.lora_language_model} <= {"none", "full"}:
        raise ValueError(
            "DPO compares with the model without its adapter: use LoRA on at least one tower (lora_language_model: "
            "all)."
        )
    rows, sizes = load_preferences(data_args.train_data)
    held_out = load_preferences(data_args.eval_data)[0] if data_args.eval_data else None
    for some in filter(None, (rows, held_out)):
        check_preferences(some)
    options = model_args, lora_args, data_args, args
    recipe = describe_recipe(*options) | {"examples": sizes} | data_digests(data_args)
    with begin_with_model(args, model_args, recipe, options) as (checkpoint, model, processor):
        if args.disable_dropout:
            disable_functional_dropout(model)
        stopper = SaveAtSigterm()
        trainer = AudioDPOTrainer(
            model,
            args=args,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=processor,
            data_collator=AudioPreferenceCollator(processor),
            peft_config=choose_trained_weights(model, lora_args),
            callbacks=[stopper],
        )
        train_in_float32(trainer.model)
        if trainer.is_world_process_zero():
            pairs = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
            lines = {"data": f"{len(rows):,} preferences", "a step": f"{pairs} pairs of answers; beta {args.beta:g}"}
            print_plan(trainer.model, lora_args, lines, checkpoint)
        run_and_save(trainer, checkpoint, stopper, "DPO loss")
        return trainer


def main(arguments: list[str] | None = None) -> int:
    options = [ModelArguments, LoraArguments, DataArguments, AudioDPOConfig]
    return run_recipe(train, options, arguments, prog="falcon3-audio dpo")


if __name__ == "__main__":
    sys.exit(leave_group(main()))
