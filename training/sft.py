"""Single-stage training of Falcon3-Audio with TRL's SFTTrainer: LoRA on both towers, the projector in full, one epoch.

    falcon3-audio train --config training/recipes/falcon3_audio_3b.yaml                     # one GPU
    accelerate launch --config_file training/accelerate/ddp.yaml --num_processes 8 \
        -m falcon3_audio.training.sft --config training/recipes/falcon3_audio_7b.yaml       # several
    python -m falcon3_audio.training.sft --config training/recipes/audio_world.yaml --learning_rate 1e-3

Any option of a recipe can be overridden on the command line; unknown options are errors. Started again with the same
output_dir, a run resumes from its last complete checkpoint, at the exact question where it was written. SIGTERM saves
a checkpoint (callbacks.py). Saved in output_dir: the adapter (or the model, if no tower uses LoRA), the processor,
recipe.yaml, log and loss_curve.png.
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, TrainerState

from .arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from .best import name_sets
from .callbacks import SaveAtSigterm
from .checks import check_fits, check_learning_rates, check_push, check_streaming, check_together
from .collator import AudioChatCollator
from .data.stream import StreamedSet, open_streams
from .data.training_sets import load_training_data, questions_per_clip
from .data_digests import data_digests
from .distributed import leave_group
from .generated import Asked, draw_questions
from .hearing import ask_training_questions, first_step_to_judge, last_deafness
from .learning import choose_trained_weights
from .plan import describe_plan
from .publishing.push import check_token, push_finished, whole_repo_id
from .recipe import run_recipe
from .run_folder import STATE, describe_recipe
from .running import begin_with_model, run_and_save
from .streaming import make_stream
from .trainer import AudioSFTTrainer


@dataclass
class Data:
    """
    What a run reads.

    Attributes:
        streamed: the training sets, if they are streamed.
        train: all examples of the training sets; if these are streamed, a sample.
        sizes: how many of them each set has.
        held_out: all examples to evaluate, if there are any; a few of the training, by name, if none were given.
        held_out_sizes: how many of the given ones each set has, by name.
        asked: questions of them that are answered at each evaluation.
    """

    streamed: list[StreamedSet]
    train: Dataset
    sizes: list[int]
    held_out: Dataset | dict[str, Dataset] | None
    held_out_sizes: dict[str, int]
    asked: list[Asked]

    def has_shared_clips(self) -> bool:
        """Whether a clip may have several questions; of streams that is not known."""
        sets = [(self.train, self.sizes)]
        if isinstance(self.held_out, Dataset):
            sets.append((self.held_out, list(self.held_out_sizes.values())))
        counts = (count for examples, sizes in sets for count in questions_per_clip(examples, sizes))
        return bool(self.streamed) or any(bool((count > 1).any()) for count in counts)

    def sets(self) -> list[Dataset]:
        """The training sets one by one."""
        ends = itertools.accumulate(self.sizes)
        return [self.train.select(range(end - size, end)) for end, size in zip(ends, self.sizes)]


def train(
    model_args: ModelArguments,
    lora_args: LoraArguments,
    data_args: DataArguments,
    args: AudioSFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
):
    """Runs a recipe from the start, or from its last checkpoint, and returns the trainer."""
    check_together(data_args, args)
    check_learning_rates(lora_args, args)
    check_streaming(data_args, args)
    check_push(args)
    # Not left to the trainer, which would upload everything in the folder, and unfinished results during training.
    to_hub, args.push_to_hub = args.push_to_hub, False
    if to_hub:
        check_token()
        repo_id = whole_repo_id(args.hub_model_id, args.output_dir)
    data = _read_data(data_args, args)
    options = model_args, lora_args, data_args, args
    examples = [None] * len(data.sizes) if data.streamed else data.sizes
    recipe = describe_recipe(*options) | {"examples": examples} | data_digests(data_args)
    if not data.held_out and args.eval_strategy == "no":
        data.held_out = ask_training_questions(data.train, args, recipe["global_batch_size"])
    skip = args.on_bad_audio == "skip"
    with begin_with_model(args, model_args, recipe, options, data.sets(), skip) as (checkpoint, model, processor):
        if checkpoint is None:  # an earlier release may have begun the run, with options that cannot change any more
            check_fits(model, args, data.has_shared_clips())
        stopper = SaveAtSigterm()
        trainer = AudioSFTTrainer(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            **_order_of_questions(data, data_args, args, checkpoint),
            questions_per_row=args.questions_per_row,
            eval_sets=data.held_out_sizes if len(data.held_out_sizes) > 1 else {},
            asked=data.asked,
            processing_class=processor,
            data_collator=AudioChatCollator(processor, args.max_length, args.questions_per_row, skip),
            peft_config=choose_trained_weights(model, lora_args),
            callbacks=[*callbacks, stopper],
        )
        if trainer.is_world_process_zero():
            _print_plan(trainer, lora_args, recipe["global_batch_size"], checkpoint)
        run_and_save(trainer, checkpoint, stopper)
        if to_hub and trainer.is_world_process_zero():
            commit = push_finished(Path(args.output_dir), repo_id, bool(args.hub_private_repo), args.hub_revision)
            print(f"pushed: {commit.commit_url}", flush=True)
        return trainer


def _read_data(data_args: DataArguments, args: AudioSFTConfig) -> Data:
    if data_args.is_streamed:
        streamed, (examples, sizes) = open_streams(data_args.train_data)
    else:
        streamed, (examples, sizes) = [], load_training_data(data_args.train_data)
    held_out, held_out_sizes = load_training_data(data_args.eval_data) if data_args.eval_data else (None, [])
    by_name = dict(zip(name_sets(data_args.eval_data), held_out_sizes))
    asked = draw_questions(held_out, by_name, args.eval_generate) if args.eval_generate else []
    return Data(streamed, examples, sizes, held_out, by_name, asked)


def _order_of_questions(
    data: Data, data_args: DataArguments, args: AudioSFTConfig, checkpoint: Path | None
) -> dict[str, Any]:
    """What the trainer needs to draw questions from the sets, or to read their streams."""
    if data.streamed:
        return {"stream": make_stream(data.streamed, args, data_args.shuffle_buffer_size, checkpoint)}
    return {
        "set_sizes": data.sizes,
        "set_weights": [source.weight for source in data_args.train_data],
        "clips": questions_per_clip(data.train, data.sizes),
    }


def _print_plan(trainer: AudioSFTTrainer, lora: LoraArguments, global_batch: int, checkpoint: Path | None):
    before = TrainerState.load_from_json(str(checkpoint / STATE)) if checkpoint else TrainerState()
    print(describe_plan(trainer, lora, global_batch, before.global_step), flush=True)
    for line in last_deafness(before.log_history, first_step_to_judge(trainer.args, before.max_steps)):
        print(f"{'NOTE':<22} {line}", flush=True)
    if checkpoint:
        print(f"{'resuming from':<22} {checkpoint}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
    return run_recipe(train, options, arguments, prog="falcon3-audio train")


if __name__ == "__main__":
    sys.exit(leave_group(main()))
