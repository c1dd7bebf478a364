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
from pathlib import Path

from transformers import TrainerCallback, TrainerState

from .arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from .best import describe_best, name_sets
from .callbacks import SaveAtSigterm
from .checks import check_learning_rates, check_push, check_streaming, check_together
from .collator import AudioChatCollator
from .data.stream import open_streams
from .data.training_sets import load_training_data, questions_per_clip
from .data_digests import data_digests
from .distributed import begin_run, check_same_strategy, leave_group, whole_weights
from .generated import draw_questions
from .hearing import ask_training_questions, first_step_to_judge, last_deafness
from .learning import choose_trained_weights
from .loss_curve import plot_loss
from .model import check_precision, load_model
from .plan import describe_plan
from .publishing.push import check_token, push_finished, whole_repo_id
from .recipe import run_recipe
from .run_folder import STATE, describe_recipe, save_state
from .streaming import make_stream
from .trainer import AudioSFTTrainer


def train(
    model_args: ModelArguments,
    lora_args: LoraArguments,
    data_args: DataArguments,
    args: AudioSFTConfig,
    callbacks: Sequence[TrainerCallback] = (),
):
    """Runs a recipe from the start, or from its last checkpoint, and returns the trainer."""
    ################
    # Data, and the run's folder
    ################
    check_together(data_args, args)
    check_learning_rates(lora_args, args)
    check_streaming(data_args, args)
    check_push(args)
    # Not left to the trainer, which would upload everything in the folder, and unfinished results during training.
    to_hub, args.push_to_hub = args.push_to_hub, False
    if to_hub:
        check_token()
        repo_id = whole_repo_id(args.hub_model_id, args.output_dir)
    streamed, (train_dataset, sizes) = (
        open_streams(data_args.train_data) if data_args.is_streamed else ([], load_training_data(data_args.train_data))
    )
    eval_dataset, eval_sizes = load_training_data(data_args.eval_data) if data_args.eval_data else (None, [])
    options = model_args, lora_args, data_args, args
    examples = [None] * len(sizes) if streamed else sizes
    recipe = describe_recipe(*options) | {"examples": examples} | data_digests(data_args)
    names = name_sets(data_args.eval_data)
    held_out = dict(zip(names, eval_sizes))
    asked = draw_questions(eval_dataset, held_out, args.eval_generate) if args.eval_generate else []
    if not eval_dataset and args.eval_strategy == "no":
        eval_dataset = ask_training_questions(train_dataset, args, recipe["global_batch_size"])
    with begin_run(args, recipe, options) as checkpoint:
        before = TrainerState.load_from_json(str(checkpoint / STATE)) if checkpoint else TrainerState()
        stream = make_stream(streamed, args, data_args.shuffle_buffer_size, checkpoint) if streamed else None

        ################
        # Model, processor
        ################
        with whole_weights(args):
            ends = list(itertools.accumulate(sizes))
            sets = [train_dataset.select(range(end - size, end)) for end, size in zip(ends, sizes)]
            skip = args.on_bad_audio == "skip"
            model, processor = load_model(
                model_args, args.output_dir, args.seed, sets, skip_bad_audio=skip, anew=checkpoint is None
            )
        check_precision(model, args)
        peft_config = choose_trained_weights(model, lora_args)

        ################
        # Training
        ################
        stopper = SaveAtSigterm()
        trainer = AudioSFTTrainer(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            set_sizes=[] if stream else sizes,
            set_weights=[] if stream else [source.weight for source in data_args.train_data],
            stream=stream,
            clips=None if stream else questions_per_clip(train_dataset, sizes),
            questions_per_row=args.questions_per_row,
            eval_sets=held_out if len(held_out) > 1 else {},
            asked=asked,
            processing_class=processor,
            data_collator=AudioChatCollator(processor, args.max_length, args.questions_per_row, skip),
            peft_config=peft_config,
            callbacks=[*callbacks, stopper],
        )
        if checkpoint:
            check_same_strategy(checkpoint, trainer)
        if trainer.is_world_process_zero():
            print(describe_plan(trainer, lora_args, recipe["global_batch_size"], before.global_step), flush=True)
            for line in last_deafness(before.log_history, first_step_to_judge(args, before.max_steps)):
                print(f"{'NOTE':<22} {line}", flush=True)
            if checkpoint:
                print(f"{'resuming from':<22} {checkpoint}", flush=True)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopper.raise_if_stopped()

        ################
        # Results
        ################
        if args.load_best_model_at_end:
            trainer.log(describe_best(trainer.state))
        trainer.save_model()
        if trainer.is_world_process_zero():
            if args.load_best_model_at_end:
                print(
                    f"best step: {trainer.state.best_global_step}, {args.metric_for_best_model} "
                    f"{trainer.state.best_metric:.4g}"
                )
            save_state(trainer.state, args.output_dir)
            plot_loss(trainer.state.log_history, Path(args.output_dir) / "loss_curve.png")
            print(f"saved in {args.output_dir}", flush=True)
        if to_hub and trainer.is_world_process_zero():
            commit = push_finished(Path(args.output_dir), repo_id, bool(args.hub_private_repo), args.hub_revision)
            print(f"pushed: {commit.commit_url}", flush=True)
        return trainer


def main(arguments: list[str] | None = None) -> int:
    options = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
    return run_recipe(train, options, arguments, prog="falcon3-audio train")


if __name__ == "__main__":
    sys.exit(leave_group(main()))
