"""Whether a run hears: how much worse its answers are when silence replaces the clips.

A model can learn the form of the answers, with falling loss and rising token accuracy, and never listen to a clip. So
each evaluation asks every question twice, with its clips and with digital silence of the same length. `hearing` is
the loss with silence minus the loss with the clips, in nats per answer token, over the questions that have clips:
above 0 the model hears, at 0 it is deaf. Questions about one clip are not independent, so the clips are the sample:
the 95 % interval is that of a ratio of two sums over clips. Chats with one clip are about the same clip if its path,
URL or bytes are equal; a chat with several counts as its own clip. A run without `eval_data` asks some of its
training questions instead. Hearing above 0 shows that the answers depend on the audio, not that this makes them
right: silence is also unlike the training clips. `falcon3-audio evaluate` with the controls `silence` and `shuffled`
tells more about a checkpoint.

Losses are summed over questions and divided once by the number of their tokens, so they do not depend on the
evaluation batch size or the number of devices. `AudioSFTTrainer` does all this in `evaluate`; nothing here needs to
be called.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from scipy import stats
from transformers.trainer_utils import IntervalStrategy

from falcon3_audio.evaluation.clip_intervals import FEWEST_DIFFERING, TAIL, standard_error
from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor

from .arguments import AudioSFTConfig
from .collator import COUNTERS, NUMBER, SILENCE
from .data.packing import IGNORED


HEARING = "hearing"
TOGETHER = f"eval_{HEARING}"  # of all sets of `eval_data`
TRAINING_QUESTIONS = "train"  # name of the set of training questions: logged as `eval_train_hearing`
# Number of training questions that are asked if there is no set to evaluate on, and the steps and questions between
# two evaluations. On the audio world one takes 5.2 CPU seconds and the training between two takes 166, so 3 %
# (measured); less with more questions per step.
SAMPLE = 64
SAMPLE_STEPS = 50
SAMPLE_QUESTIONS = 2048
SAMPLE_SEED = 0
# Steps after the warm-up before a run can be called deaf. On the audio world the interval was above 0 after 10 steps
# (with 64 training questions) and 20 (with 150 held-out ones).
PATIENCE = 50


class Scored(NamedTuple):
    """
    A question with the model's results: sums over its answer tokens, losses and entropy in nats.

    `clip` is a number shared by questions about one clip; `sounds` is whether there is a clip at all.
    """

    number: int
    clip: int
    sounds: bool
    tokens: int
    loss: float
    entropy: float
    right: float
    silent_loss: float


class Numbered(torch.utils.data.Dataset):
    """A set with numbered examples: several devices get some examples twice, to fill the last round of batches."""

    def __init__(self, examples: Any):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.examples[number] | {NUMBER: number}


def silenced(inputs: dict[str, torch.Tensor], processor: Falcon3AudioProcessor) -> dict[str, torch.Tensor]:
    """
    A batch with digital silence instead of its clips, of the same lengths, so with the same tokens.

    All frames of silence are equal, whatever its length: a log-mel frame at the floor, which is not 0.
    """
    frame = processor(audio=SILENCE, sampling_rate=SAMPLING_RATE)["input_features"][0, :, :1]
    features = inputs["input_features"]
    return inputs | {"input_features": frame.to(features).expand_as(features)}


def questions_of_tokens(labels: torch.Tensor, segment_ids: torch.Tensor | None = None) -> torch.Tensor:
    """
    The question that each learned token belongs to, `(learned tokens,)`, numbered within a batch of the collator.

    Args:
        labels, segment_ids: `(rows, tokens)`. A row has one question, or one in each of its segments with labels.
    """
    learned = labels[:, 1:] != IGNORED
    keys = torch.arange(len(labels), device=labels.device)[:, None].expand_as(learned)
    if segment_ids is not None:
        keys = keys * (segment_ids.max() + 1) + segment_ids[:, 1:]
    return torch.unique_consecutive(keys[learned], return_inverse=True)[1]


def score(heard: Any, silent: Any, questions: torch.Tensor, asked: torch.Tensor) -> list[Scored]:
    """
    The questions of a batch.

    Args:
        heard, silent: TRL's fused-head outputs for the batch and for its `silenced` copy; `log_probs`, `entropy` and
            `is_top1` have the learned tokens in order.
        questions: from `questions_of_tokens`.
        asked: from the collator, `(questions, 3)`: number, clip, and whether there is one.
    """
    if not len(asked):
        return []
    columns = (-heard.log_probs, heard.entropy, heard.is_top1, -silent.log_probs)
    indices = questions.cpu().numpy()
    tokens = np.bincount(indices, minlength=len(asked))
    sums = [np.bincount(indices, _flat(column), minlength=len(asked)) for column in columns]
    return [
        Scored(number, clip, bool(sounds), int(count), *(float(value) for value in values))
        for (number, clip, sounds), count, *values in zip(asked.tolist(), tokens, *sums, strict=True)
    ]


def _flat(values: torch.Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy().ravel()


def summarise(scored: Iterable[Scored]) -> dict[str, float]:
    """
    `loss`, `entropy` and `mean_token_accuracy` per answer token over all questions, and, if any has a clip, `hearing`
    over those; with at least `FEWEST_DIFFERING` clips also `hearing_low` and `hearing_high`, its 95 % interval. All
    three are NaN if the loss with silence is not finite.

    Raises a `ValueError` if there are no questions.
    """
    scored = sorted(scored)  # a fixed order of summation, however they were distributed to devices
    tokens = sum(question.tokens for question in scored)
    if not tokens:
        raise ValueError(
            "No example of the set to evaluate on fits into max_length. Raise max_length, or use shorter examples."
        )
    metrics = {
        "loss": sum(question.loss for question in scored) / tokens,
        "entropy": sum(question.entropy for question in scored) / tokens,
        "mean_token_accuracy": sum(question.right for question in scored) / tokens,
    }
    with_clips = [question for question in scored if question.sounds]
    return metrics | (_hearing(with_clips) if with_clips else {})


def summarise_sets(scored: Mapping[int, Scored], sizes: Mapping[str, int], prefix: str) -> dict[str, float]:
    """
    The metrics of `summarise` for each of several sets, and how many of its questions were left out (`num_dropped`),
    which is the only metric of a set if nothing in it fits into max_length.

    Args:
        scored: the questions by their numbers, which count through all sets.
        sizes: of the sets, by name and in order.
        prefix: of the names, such as `eval`.
    """
    metrics: dict[str, float] = {}
    start = 0
    for name, size in sizes.items():
        part = [scored[number] for number in range(start, start + size) if number in scored]
        start += size
        found = (summarise(part) if part else {}) | {COUNTERS[1]: size - len(part)}
        metrics |= {f"{prefix}_{name}_{metric}": value for metric, value in found.items()}
    return metrics


def _hearing(scored: Sequence[Scored]) -> dict[str, float]:
    clips = np.unique([question.clip for question in scored], return_inverse=True)[1]
    sizes = np.bincount(clips, [question.tokens for question in scored])
    differences = np.bincount(clips, [question.silent_loss - question.loss for question in scored])
    value = float(differences.sum() / sizes.sum())
    if not math.isfinite(value):  # the loss with silence; a loss with clips that is not finite stops the evaluation
        return dict.fromkeys((HEARING, f"{HEARING}_low", f"{HEARING}_high"), math.nan)
    if len(sizes) < FEWEST_DIFFERING:  # too few to generalise to other clips
        return {HEARING: value}
    # Student's t, because the error is estimated from possibly few clips.
    margin = float(stats.t.ppf(1 - TAIL, len(sizes) - 1)) * standard_error(differences, sizes)
    return {HEARING: value, f"{HEARING}_low": value - margin, f"{HEARING}_high": value + margin}


def not_shown(entry: dict[str, Any], first_step: int) -> list[str]:
    """
    The names of `hearing` in a log entry that are not shown to be above 0, if the entry is from `first_step` or
    later. If the one over all sets is among them, those of single sets are left out.
    """
    names = [
        name for name in hearing_names([entry]) if entry["step"] >= first_step and entry.get(f"{name}_low", 1) <= 0
    ]
    return [TOGETHER] if TOGETHER in names else names


def new_deafness(log_history: Sequence[dict[str, Any]], first_step: int) -> list[str]:
    """Lines about the last entry of a run's log: one for each hearing that no earlier entry failed to show."""
    *before, last = log_history
    return [
        describe_deafness(name, last)
        for name in not_shown(last, first_step)
        if not any(name in not_shown(entry, first_step) for entry in before)
    ]


def last_deafness(log_history: Sequence[dict[str, Any]], first_step: int) -> list[str]:
    """Lines about a whole log: one for each hearing that was not shown when it was last measured."""
    last = {name: entry for entry in log_history for name in hearing_names([entry])}
    return [describe_deafness(name, entry) for name, entry in last.items() if name in not_shown(entry, first_step)]


def describe_deafness(name: str, entry: dict[str, Any]) -> str:
    """A line about a hearing that a log entry does not show, with what to try."""
    return (
        f"After {entry['step']} steps no hearing can be shown: {name} is {entry[name]:.4f} nats per answer token, with a 95 % interval "
        f"from {entry[f'{name}_low']:.4f} to {entry[f'{name}_high']:.4f} that is not above 0. The run may be learning "
        "only the form of the answers. Check that the clips are audible and belong to their questions; try more "
        "steps, another learning_rate, or training only the projector first "
        "(training/recipes/ablations/two_stage_1_projector.yaml). `falcon3-audio evaluate --control silence` shows "
        "what a checkpoint answers to silence."
    )


def no_hearing(evaluation: str) -> str:
    """A line about an evaluation in which the loss with silence instead of the clips was not finite."""
    return (
        f"In the evaluation {evaluation!r} the loss with silence in place of the clips is not finite, so {evaluation}_{HEARING} is "
        "logged as NaN. The loss with the clips is finite, so training continues. A usual cause is float16; use "
        "bfloat16."
    )


def hearing_names(log_history: Iterable[dict[str, Any]]) -> list[str]:
    """The names under which hearing was logged, such as `eval_hearing`; with several sets there is one for each."""
    return sorted({name for entry in log_history for name in entry if name.endswith(f"_{HEARING}")})


def first_step_to_judge(arguments: AudioSFTConfig, max_steps: int) -> int:
    """The first step at which a run can be called deaf: `PATIENCE` steps after the warm-up, or the last."""
    return min(max_steps, arguments.get_warmup_steps(max_steps) + PATIENCE)


def ask_training_questions(examples: Dataset, arguments: AudioSFTConfig, global_batch: int) -> dict[str, Dataset]:
    """
    The sets to evaluate on if none was given: `SAMPLE` training questions, drawn once. Sets `arguments` accordingly.

    Holding some out would silently change the recipe's training data, and a deaf run should be noticed even if no
    evaluation was requested. These questions cannot tell hearing from memorisation; `eval_data` can. They are
    evaluated every `SAMPLE_STEPS` steps, or less often if steps have few questions.
    """
    arguments.eval_strategy = IntervalStrategy.STEPS
    arguments.eval_steps = max(SAMPLE_STEPS, math.ceil(SAMPLE_QUESTIONS / global_batch))
    drawn = np.random.default_rng(SAMPLE_SEED).choice(len(examples), min(SAMPLE, len(examples)), replace=False)
    return {TRAINING_QUESTIONS: examples.select(sorted(drawn.tolist()))}
