"""Which step of a run is the best: by `metric_for_best_model`, on the sets that are evaluated.

With one set the metrics are called `loss`, `hearing`, `accuracy`, ... (with or without prefix `eval_`). With several,
each metric is measured over all sets together and for each set: `held_out_loss` for a file `held_out.jsonl`. With
`load_best_model_at_end` every evaluated step is saved, and the run's final model is the best of them; the last line of
its log says which (`loaded_step`). The checkpoint is saved before the step is evaluated (callbacks.py), so a failed
evaluation costs nothing: the resumed run starts with it.
"""

import difflib
import itertools
import math
import operator
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy

from .data.sources import DataSource


PREFIX = "eval_"
# For these, lower is better; transformers knows that only of losses.
LESS_IS_BETTER = ("loss", "entropy", "wer", "cer")
# Metrics of all sets together and of each, see hearing.py.
METRICS = ("loss", "entropy", "mean_token_accuracy", "hearing", "hearing_low", "hearing_high")
LOADED = "loaded_step"


def less_is_better(metric: str) -> bool:
    """Whether a metric, such as `loss` or `eval_held_out_wer`, is better the lower it is."""
    return re.split(r"[_/]", metric)[-1] in LESS_IS_BETTER


def whole_name(metric: str) -> str:
    """The name under which a metric is logged, as transformers completes it."""
    return metric if metric.startswith(PREFIX) else f"{PREFIX}{metric}"


def name_sets(sources: Sequence[DataSource]) -> list[str]:
    """
    Unique names of the sets in metrics: the last part of the path without its suffix. If two are equal, the split is
    appended; if that is not enough, a number, counting up from the set's own.
    """
    stems = [re.sub(r"\W+", "_", Path(source.path).name.partition(".")[0]).strip("_") or "set" for source in sources]
    splits = [f"{stem}_{source.split}" for stem, source in zip(stems, sources)]
    alone = {stem for stem in stems if stems.count(stem) == 1}
    names: list[str] = []
    for number, (stem, split) in enumerate(zip(stems, splits), 1):
        by_split = [split] if splits.count(split) == 1 else []
        others = itertools.chain(by_split, (f"{stem}_{count}" for count in itertools.count(number)))
        names.append(stem if stem in alone else next(name for name in others if name not in {*alone, *names}))
    return names


def check_metric(arguments: TrainingArguments, sets: Sequence[str], metrics: Collection[str] = METRICS):
    """
    Raises a `ValueError` before training if `metric_for_best_model` will not be measured.

    Args:
        sets: names of the sets, if there are several.
        metrics: that are measured, but for those in `METRICS` of each of several sets.
    """
    if arguments.metric_for_best_model is None:
        return
    known = [f"{PREFIX}{name}" for name in metrics] + [f"{PREFIX}{of}_{name}" for of in sets for name in METRICS]
    _expect(arguments.metric_for_best_model, known)


def measured(arguments: TrainingArguments, metrics: dict[str, Any]) -> float | None:
    """The value of `metric_for_best_model`, `None` if it is not set. Raises a `ValueError` if it was not measured."""
    if arguments.metric_for_best_model is None:
        return None
    _expect(arguments.metric_for_best_model, [name for name, value in metrics.items() if isinstance(value, float)])
    return metrics[whole_name(arguments.metric_for_best_model)]


def _expect(metric: str, known: Sequence[str]):
    name = whole_name(metric)
    if name not in known:
        nearest = ", ".join(difflib.get_close_matches(name, known, 1, 0))
        raise ValueError(
            f"metric_for_best_model={metric!r} is not measured in this run (nearest: {nearest}). Measured: "
            f"{', '.join(known)}."
        )


def note_best(arguments: TrainingArguments, state: TrainerState, value: float | None) -> bool:
    """Records the step in `state` if it is the best yet, as transformers would if it evaluated first. NaN never is."""
    better = operator.gt if arguments.greater_is_better else operator.lt
    if value is None or math.isnan(value) or not (state.best_metric is None or better(value, state.best_metric)):
        return False
    state.best_metric, state.best_global_step = value, state.global_step
    state.best_model_checkpoint = str(checkpoint_of(arguments, state.global_step))
    return True


def checkpoint_of(arguments: TrainingArguments, step: int) -> Path:
    return Path(str(arguments.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def find_best(arguments: TrainingArguments, state: TrainerState):
    """
    Updates the path of a resumed run's best checkpoint: the run's folder may have been moved.

    Raises a `ValueError` if it is missing: transformers would keep the last step instead.
    """
    if not arguments.load_best_model_at_end or not state.best_global_step:
        return
    best = checkpoint_of(arguments, state.best_global_step)
    if not best.is_dir():
        raise ValueError(
            f"{best}, the best checkpoint of this run so far, is missing. Restore it; or set load_best_model_at_end "
            "to false in a new output_dir, with an earlier step as its model."
        )
    state.best_model_checkpoint = str(best)


class EarlyStopping(EarlyStoppingCallback):
    """
    transformers' callback, which keeps its count when a run resumes (transformers would start over), saves the step
    that it stops at, and immediately stops a run that it had stopped before. With more patience such a run continues.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        super().on_train_begin(args, state, control, **kwargs)
        name, past = whole_name(args.metric_for_best_model), TrainerState()
        for entry in state.log_history:
            if name in entry:
                self.check_metric_value(args, past, control, entry[name])
                note_best(args, past, entry[name])
        self._stop_if_due(control)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if whole_name(args.metric_for_best_model) in metrics:  # with several sets in turn, only one has it
            super().on_evaluate(args, state, control, metrics, **kwargs)
            if self._stop_if_due(control) and args.save_strategy != SaveStrategy.NO:
                control.should_save = True

    def _stop_if_due(self, control) -> bool:
        due = self.early_stopping_patience_counter >= self.early_stopping_patience
        control.should_training_stop = control.should_training_stop or due
        return due


def describe_best(state: TrainerState) -> dict[str, Any]:
    """
    The last log line of a run whose final model is its best step, `loaded_step`. Raises a `ValueError` if there is no
    best step: all values of the metric were NaN.
    """
    if not state.best_model_checkpoint:
        raise ValueError(
            "load_best_model_at_end found no best step: metric_for_best_model was always NaN. The checkpoints are "
            "intact; choose another metric in a new output_dir, or merge the checkpoint-N that you want."
        )
    return {LOADED: state.best_global_step, "loaded_metric": state.best_metric}
