"""The plan of a run, printed before it starts: what is trained, in which precision, how much per step, how long."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from datasets import Dataset

from falcon3_audio.processing.audio_inputs_falcon3_audio import FRAMES_PER_SECOND, POSITIONS_PER_SECOND

from .arguments import LoraArguments
from .augmentation import Augmentation
from .best import whole_name
from .collator import COUNTERS
from .data.training_sets import describe_sets
from .hearing import TRAINING_QUESTIONS
from .learning import count_parameters, describe_parts, learning_rates
from .trainer import AudioSFTTrainer


SAMPLE = 32  # questions read to estimate a step


def describe_plan(trainer: AudioSFTTrainer, lora: LoraArguments, global_batch: int, done: int) -> str:
    """
    The lines to print.

    Args:
        trainer: ready to train.
        lora: the requested LoRA options.
        global_batch: questions per step over all devices.
        done: steps already done in the checkpoint to resume from.
    """
    lines = [("data", line) for line in describe_sets(trainer.train_dataset)]
    if isinstance(trainer.eval_dataset, Dataset):
        lines += [("eval data", line) for line in describe_sets(trainer.eval_dataset)]
    lines += describe_parts(count_parameters(trainer.model), lora, learning_rates(trainer.args))
    lines.append(("precision", _precision(trainer)))
    lines.append(("attention", _attention(trainer)))
    lines.append(("batch", _batch(trainer, global_batch)))
    estimate = estimate_step(trainer, global_batch)
    lines.append(("a step", str(estimate)))
    if estimate.dropped:
        lines.append(("NOTE", _too_long(trainer, estimate)))
    if trainer.args.augmentation:
        options = Augmentation(**trainer.args.augmentation)
        lines.append(
            ("augmentation", f"of training clips, each with a probability of {options.prob:g}: {options.described()}")
        )
    lines.append(("hearing", _hearing(trainer)))
    if trainer.examination is not None:
        asked, longest = trainer.examination.asked, trainer.examination.max_new_tokens
        each = f"{len(asked)} questions of eval_data are answered at each evaluation, in at most {longest} tokens"
        lines.append(("answers", each))
    lines += [("best", line) for line in _best(trainer)]
    lines += _length(trainer, global_batch, done)
    return "\n".join(f"{name:<22} {text}" for name, text in lines)


def _batch(trainer: AudioSFTTrainer, global_batch: int) -> str:
    arguments = trainer.args
    times = f"{arguments.gradient_accumulation_steps} times"
    if arguments.tokens_per_device:
        times = f"in micro-batches of at most {arguments.tokens_per_device:,} tokens"
    each = f"{arguments.per_device_train_batch_size} on each of {arguments.world_size} device(s)"
    return f"{global_batch} questions: {each}, {times}"


@dataclass(frozen=True)
class StepEstimate:
    """
    What a step has, going by the first questions.

    Attributes:
        tokens, hours: of text and audio, and of audio.
        questions: how many were read, `dropped` ones among them.
        dropped: how many are too long.
    """

    tokens: float
    hours: float
    questions: int
    dropped: int

    def __str__(self) -> str:
        return (
            f"about {self.tokens:,.0f} tokens and {self.hours:.3f} h of audio (mean of the first {self.questions} "
            "questions)"
        )


def _too_long(trainer: AudioSFTTrainer, estimate: StepEstimate) -> str:
    """Raises a `ValueError` if all questions are too long."""
    length, processor = trainer.args.max_length, trainer.processing_class
    seconds = "" if length is None else f" ({length * processor.pooling_window / POSITIONS_PER_SECOND:.0f} s of audio)"
    said = (
        f"{estimate.dropped} of the first {estimate.questions} questions are left out: their clips are longer than "
        f"max_audio_seconds={processor.max_audio_seconds:g} of the processor, or do not fit into max_length={length}{seconds} with an "
        "answer. Raise max_length, or split the clips."
    )
    if estimate.dropped == estimate.questions:
        raise ValueError(said)
    return said


def _length(trainer: AudioSFTTrainer, global_batch: int, done: int) -> list[tuple[str, str]]:
    arguments, lines = trainer.args, []
    length = "the data is a stream of unknown length"
    if trainer.stream is None:
        length = f"{len(trainer.sampler):,} questions per epoch"
    steps = math.ceil(math.ceil(len(trainer.sampler) / global_batch) * arguments.num_train_epochs)
    steps = arguments.max_steps if arguments.max_steps > 0 else steps
    if steps <= arguments.get_warmup_steps(steps):
        advice = "Use a smaller global_batch_size, or more num_train_epochs."
        lines.append(("NOTE", f"all {steps} step(s) are warm-up, so hardly anything is learned. {advice}"))
    return [*lines, ("steps", f"{steps - done} to go of {steps}, {length}")]


def estimate_step(trainer: AudioSFTTrainer, global_batch: int) -> StepEstimate:
    """From the first training batches; at least `SAMPLE` questions."""
    order: Iterator[int] = iter(trainer.sampler if trainer.stream is None else range(len(trainer.train_dataset)))
    read = tokens = frames = dropped = 0
    while read < SAMPLE and (indices := list(itertools.islice(order, trainer.args.train_batch_size))):
        batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
        read += len(indices)
        dropped += int(batch[COUNTERS[1]])
        tokens += int(batch["attention_mask"].sum())
        frames += int(batch["input_features_mask"].sum())
    share = global_batch / max(1, read)
    return StepEstimate(tokens * share, frames * share / FRAMES_PER_SECOND / 3600, read, dropped)


def _hearing(trainer: AudioSFTTrainer) -> str:
    arguments, sets = trainer.args, trainer.eval_dataset
    if sets is None or arguments.eval_strategy == "no":
        return "not measured: there is no evaluation"
    when = "every epoch"
    if arguments.eval_strategy == "steps":
        steps = arguments.eval_steps
        when = f"every {steps:g} steps and at the end" if steps >= 1 else f"every {steps:.1%} of the steps"
    if isinstance(sets, dict) and TRAINING_QUESTIONS in sets:
        what = f"{len(sets[TRAINING_QUESTIONS])} training questions; give eval_data to use held-out ones"
    else:
        what = f"{sum(map(len, sets.values())) if isinstance(sets, dict) else len(sets):,} questions of eval_data"
    return f"loss with silence minus loss with the clips, {when}, on {what}"


def _best(trainer: AudioSFTTrainer) -> list[str]:
    arguments, lines = trainer.args, []
    if arguments.metric_for_best_model is not None:
        metric = (
            f"{'highest' if arguments.greater_is_better else 'lowest'} {whole_name(arguments.metric_for_best_model)}"
        )
        if arguments.load_best_model_at_end:
            lines.append(f"the final model is the step with the {metric}; each evaluated step is saved")
        if arguments.early_stopping_patience is not None:
            lines.append(
                f"the run stops after {arguments.early_stopping_patience} evaluation(s) without a better one "
                f"({metric})"
            )
    return lines


def _precision(trainer: AudioSFTTrainer) -> str:
    arguments = trainer.args
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for name, weight in trainer.model.named_parameters():
        if "original_module" not in name:  # PEFT's untrained copy of the projector, which is not used
            kinds[weight.requires_grad].add(str(weight.dtype).removeprefix("torch."))
    frozen, trained = kinds[False], kinds[True]
    computed = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32"
    return f"frozen weights {', '.join(sorted(frozen)) or '-'}, trained {', '.join(sorted(trained))}, computed in {computed}"


def _attention(trainer: AudioSFTTrainer) -> str:
    config = trainer.model.config
    return f"{config.audio_config._attn_implementation} (encoder), {config.text_config._attn_implementation} (language model)"
