"""TRL's SFTTrainer for audio: this project's sampler, exact logs, and a stop if training diverges.

TRL does not support audio; its trainer works with a collator that does the preparation (`AudioChatCollator`) and this
class. With `tokens_per_device` the loader returns a step's questions together, packed into micro-batches of at most
that many tokens. Besides loss, learning rate and gradient norm, every log line has: questions, audio seconds and
tokens per second over all devices, the share of time that the slowest process waited for data, peak memory, and
totals so far: seconds of training, and examples that were shortened or left out. Evaluations log the mean negative
log-likelihood of an answer token, whatever the training loss is, and how much of it depends on the audio (hearing.py).
"""

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch.utils.data import DataLoader, Dataset
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging
from trl import SFTTrainer

from falcon3_audio.peak_memory import peak_memory_gib
from falcon3_audio.processing.audio_inputs_falcon3_audio import FRAMES_PER_SECOND

from .best import METRICS, EarlyStopping, check_metric, measured
from .callbacks import EpochOrder, EvaluateAfterSaving, EvaluateAtTheEnd, LogTheEnd, TimeToGo
from .collator import ASKED, COUNTERS, IGNORED, QUESTIONS, augmenting, newly_dropped
from .data.sampler import MixtureSampler, WithPass
from .data.stream import TrainingStream
from .distributed import broken_weights, reshard
from .generated import Asked, Examination, measured_of
from .hearing import (
    HEARING,
    Numbered,
    Scored,
    first_step_to_judge,
    new_deafness,
    no_hearing,
    questions_of_tokens,
    score,
    silenced,
    summarise,
    summarise_sets,
)
from .learning import learning_rates, parameter_groups
from .model import check_loss, compile_layers, train_in_float32
from .streaming import ShareOfTheRun, pass_on, save_stream, stream_loader
from .workers import outlive_sigterm


logger = logging.get_logger(__name__)

MICRO_BATCHES = "micro_batches"


class AudioSFTTrainer(SFTTrainer):
    """
    Args:
        set_sizes: number of examples of each set in `train_dataset`, in order (see `load_training_data`).
        set_weights: passes over each set per epoch.
        stream: trained on instead of `train_dataset`, which is then only a sample for inspection.
        clips: examples of each clip, by set (see `questions_per_clip`).
        questions_per_row: maximum number of questions about a clip that stay together, `None` for all.
        eval_sets: number of examples of each set in `eval_dataset`, by name and in order, if there are several.
        asked: questions of `eval_dataset` that the model answers at each evaluation, see generated.py.
        *args, **kwargs: those of `SFTTrainer`.
    """

    def __init__(
        self,
        *args,
        set_sizes: Sequence[int] = (),
        set_weights: Sequence[float] = (),
        stream: TrainingStream | None = None,
        clips: Sequence[np.ndarray] | None = None,
        questions_per_row: int | None = 1,
        eval_sets: Mapping[str, int] | None = None,
        asked: Sequence[Asked] = (),
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        at_once = self.args.train_batch_size
        step = at_once * self.args.gradient_accumulation_steps * self.args.world_size
        self._questions_of_a_step = step
        self.stream = stream
        self.sampler = MixtureSampler(set_sizes, set_weights, seed, clips, questions_per_row, step, at_once)
        if stream is not None:
            self.args.ignore_data_skip = True  # the stream resumes by itself; transformers would read everything again
            self.add_callback(ShareOfTheRun())
        elif self.args.dataloader_drop_last and len(self.sampler) < at_once * self.args.world_size:
            raise ValueError(
                f"dataloader_drop_last drops all {len(self.sampler)} questions of an epoch: each of "
                f"{self.args.world_size} device(s) takes {at_once} at a time. Leave it off, or lower "
                "per_device_train_batch_size."
            )
        self._eval_sets = dict(eval_sets or {})
        check_metric(self.args, list(self._eval_sets), [*METRICS, *measured_of(asked)])
        self.examination = self._examination(asked) if asked else None
        self._train_collator = augmenting(self.data_collator, self.args.augmentation, seed)
        self.add_callback(EpochOrder(self.sampler))
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStopping(self.args.early_stopping_patience, self.args.early_stopping_threshold))
        for callback in (LogTheEnd(), EvaluateAtTheEnd(), EvaluateAfterSaving(self)):
            self.add_callback(callback)
        self._to_go = TimeToGo()
        self.add_callback(self._to_go)
        self._scored: list[Scored] = []  # on this device, in this evaluation
        self._evaluation = ""  # its name, such as `eval_train`
        self._seen: defaultdict[str, float] = defaultdict(float)  # on this device, since the last log
        self._last_log = time.monotonic()
        train_in_float32(self.model)
        if self.args.compile_layers:
            compile_layers(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    def create_optimizer(self, model=None):
        rates = learning_rates(self.args)
        if rates and self.optimizer is None:
            network = self.model if model is None else model
            given = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, network)
            groups = parameter_groups(
                network,
                self.get_decay_parameter_names(network),
                self.args.weight_decay,
                rates,
                self.args.learning_rate,
            )
            self.optimizer_cls_and_kwargs = given[0], given[1] | {"params": groups}
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader:
        self._last_log = time.monotonic()  # training starts
        arguments = self.args
        tokens = arguments.tokens_per_device
        collate = partial(self._train_collator.micro_batches, tokens=tokens) if tokens else self._train_collator
        options: dict[str, Any] = {
            "batch_size": arguments.train_batch_size,
            "num_workers": arguments.dataloader_num_workers,
            "prefetch_factor": arguments.dataloader_prefetch_factor,
            "persistent_workers": arguments.dataloader_persistent_workers,
            "pin_memory": arguments.dataloader_pin_memory and torch.cuda.is_available(),
        }
        if self.stream is not None:
            return outlive_sigterm(stream_loader(self.stream, collate, **options))
        options |= {"sampler": self.sampler, "drop_last": arguments.dataloader_drop_last}
        loader = DataLoader(WithPass(self.train_dataset), collate_fn=collate, **options)
        return outlive_sigterm(self.accelerator.prepare(loader))

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        given = self.eval_dataset[given] if isinstance(given, str) else given
        if given is None:
            raise ValueError("There is no evaluation data: give `eval_dataset`.")
        loader = DataLoader(
            Numbered(given),
            batch_size=self.args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory and torch.cuda.is_available(),
            # A loader draws a seed for its workers; without this, it would change the random numbers of dropout.
            generator=torch.Generator(),
        )
        return outlive_sigterm(self.accelerator.prepare(loader))

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        began, self._scored, self._evaluation = time.monotonic(), [], metric_key_prefix
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if isinstance(dataloader.dataset, Numbered):
            scored = {question.number: question for question in gather_object(self._scored)}
            metrics = summarise(scored.values()) | {COUNTERS[1]: len(dataloader.dataset) - len(scored)}
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
            if dataloader.dataset.examples is self.eval_dataset:
                output.metrics.update(summarise_sets(scored, self._eval_sets, metric_key_prefix))
                output.metrics.update(self._of_answers(metric_key_prefix))
            if math.isnan(metrics.get(HEARING, 0.0)) and self.is_world_process_zero():
                logger.warning_once(no_hearing(metric_key_prefix))
        reshard(self.model)
        self._last_log += time.monotonic() - began  # so that rates in the next log line cover only training
        return output

    def _examination(self, asked: Sequence[Asked]) -> Examination:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "eval_generate needs the whole model on each device: leave it out, or train with training/accelerate/ddp.yaml. "
                "`falcon3-audio evaluate` evaluates a checkpoint."
            )
        skip = self.args.on_bad_audio == "skip"
        return Examination(asked, self.processing_class, self.args.eval_batch_size, skip)

    @torch.no_grad()
    def _of_answers(self, prefix: str) -> dict[str, float]:
        if self.examination is None:
            return {}
        with self.accelerator.autocast():  # generation encodes the audio outside the model's forward
            found = self.examination.hold(self.model, self.args.process_index, self.args.world_size)
        return {f"{prefix}_{name}": value for name, value in found.items()}

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.is_in_train and metric_key_prefix == "eval":
            measured(self.args, metrics)
        return metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        asked = inputs.pop(ASKED, None)
        if asked is None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        _, logits, labels = (
            (None, None, None)
            if prediction_loss_only
            else super().prediction_step(model, dict(inputs), prediction_loss_only, ignore_keys)
        )
        inputs = self._prepare_inputs({name: inputs[name] for name in inputs if name not in (QUESTIONS, *COUNTERS)})
        # Without a loss transformers does not average over batches, which would depend on the batch size.
        self._scored += self._score(model, inputs, asked)
        return None, logits, labels

    @torch.no_grad()
    def _score(self, model, inputs: dict[str, torch.Tensor], asked: torch.Tensor) -> list[Scored]:
        heard = self._answer(model, inputs)
        self._check_evaluated(heard.log_probs.sum())
        # All devices or none: with FSDP and DeepSpeed all must take part in every forward.
        sounds = asked[:, 2].any().reshape(1).to(self.accelerator.device)
        silent = heard
        if self.accelerator.gather(sounds).any():
            silent = self._answer(model, silenced(inputs, self.processing_class))
        return score(heard, silent, questions_of_tokens(inputs["labels"], inputs.get("segment_ids")), asked)

    def _answer(self, model, inputs: dict[str, torch.Tensor]):
        """TRL's output with `log_probs`, `entropy` and `is_top1` of the learned tokens, as in its `compute_loss`."""
        with self.compute_loss_context_manager():
            return model(**(inputs | _only_learned(inputs["labels"])), use_cache=False, fused_lm_head=True)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            # A finished run that is started again: transformers would take one more step before it checks.
            self.control.should_training_stop = True
            return [], None
        began = time.monotonic()
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._seen["waited"] += time.monotonic() - began
        batches = pass_on(self.stream, batches) if self.stream is not None else batches
        if not self.args.tokens_per_device:
            return super().get_batch_samples(iter(batches), num_batches, device)
        parts = [part for batch in batches for part in batch]
        _, num_items = super().get_batch_samples(iter(parts), len(parts), device)
        return [{MICRO_BATCHES: self._as_many_everywhere(batch)} for batch in batches], num_items

    def _as_many_everywhere(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        """Adds batches of silence up to the largest number on any device: all must take part in every forward."""
        count = torch.tensor([len(batch)], device=self.accelerator.device)
        most = int(self.accelerator.gather(count).max())
        return batch + [self.data_collator([]) for _ in range(most - len(batch))]

    def training_step(self, model, inputs, num_items_in_batch=None):
        if MICRO_BATCHES not in inputs:
            return super().training_step(model, inputs, num_items_in_batch)
        *others, last = inputs[MICRO_BATCHES]
        losses = []
        for part in others:
            with self._more_to_come(model):
                losses.append(super().training_step(model, part, num_items_in_batch))
        return sum(losses, super().training_step(model, last, num_items_in_batch))

    @contextmanager
    def _more_to_come(self, model) -> Iterator[None]:
        """As transformers does between micro-batches of a step: gradients stay on the device, DeepSpeed takes no step."""
        state = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)  # private, but transformers' own loop uses it too
        try:
            with self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(before)

    def floating_point_ops(self, inputs):
        return sum(
            super(AudioSFTTrainer, self).floating_point_ops(part) for part in inputs.get(MICRO_BATCHES, [inputs])
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        counts = {name: inputs.pop(name, 0) for name in (QUESTIONS, *COUNTERS)}
        if model.training:
            self._count(inputs, counts)
        wants_all_logits = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        if not wants_all_logits:
            inputs = inputs | _only_learned(inputs["labels"])
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        if model.training:
            check_loss(loss, self.state.global_step)
        else:
            self._check_evaluated(loss)
        return result

    def _check_evaluated(self, loss: torch.Tensor):
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss of the questions with their clips is {loss.item()} in the evaluation {self._evaluation!r} after step "
                f"{self.state.global_step}. The training loss was finite so far, and the checkpoints of earlier steps "
                "are intact. Usual causes are clips or answers unlike the training data, float16, and a learning rate "
                "that is too high."
            )

    def _count(self, inputs: dict[str, torch.Tensor], counts: dict[str, Any]):
        self._seen["samples"] += int(counts.pop(QUESTIONS))
        learned = (inputs["labels"] != IGNORED).any(-1)  # excludes rows of silence only
        self._seen["tokens"] += int(inputs["attention_mask"][learned].sum())
        self._seen["audio_seconds"] += int(inputs["input_features_mask"].sum()) / FRAMES_PER_SECOND
        for name, count in counts.items():
            self._seen[name] += int(count)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self._throughput())
            if self._to_go.seconds is not None:
                logs["seconds_to_go"] = self._to_go.seconds
        elif "train_runtime" in logs:  # the end, including the time since the last line above
            logs["training_seconds"] = self._seconds(time.monotonic())
        super().log(logs, start_time)
        if self.is_in_train and self.is_world_process_zero():
            first_step = first_step_to_judge(self.args, self.state.max_steps)
            history = self.state.log_history
            for line in [*new_deafness(history, first_step), *newly_dropped(history, self._questions_of_a_step)]:
                logger.warning(line)

    def _throughput(self) -> dict[str, Any]:
        """Rates since the last log over all devices, and totals, which continue those in a resumed run's log."""
        now = time.monotonic()
        names = ["samples", "tokens", "audio_seconds", *COUNTERS]
        seen = torch.tensor([float(self._seen[name]) for name in names], device=self.accelerator.device)
        everywhere = dict(zip(names, self.accelerator.reduce(seen, reduction="sum").tolist()))
        elapsed, seconds = now - self._last_log, self._seconds(now)
        self._last_log = now
        waited = torch.tensor([self._seen["waited"]], dtype=torch.float32, device=self.accelerator.device)
        waiting = float(self.accelerator.gather(waited).max()) / elapsed
        self._seen.clear()
        totals = {name: self._before(name) + int(everywhere.pop(name)) for name in COUNTERS}
        self._check_bad_audio(totals[COUNTERS[2]])
        totals["training_seconds"] = seconds
        rates = {f"{name}_per_second": round(count / elapsed, 2) for name, count in everywhere.items()}
        return (
            rates
            | totals
            | {"data_wait_share": round(waiting, 3), "peak_memory_gib": peak_memory_gib(self.args.device.type)}
        )

    def _check_bad_audio(self, count: int):
        total = self.state.max_steps * self._questions_of_a_step
        if count > self.args.max_bad_audio * total:
            raise ValueError(
                f"{count} of the run's {total} questions were left out up to step {self.state.global_step}, because their clips cannot be "
                f"read; the limit is a share of {self.args.max_bad_audio:g} (max_bad_audio). The warnings above name "
                "them; `falcon3-audio check-data` lists all. Fix or remove them, and start the run again."
            )

    def _before(self, name: str) -> Any:
        """A total as of the last log line, which can be from before the run was resumed."""
        return next((entry[name] for entry in reversed(self.state.log_history) if name in entry), 0)

    def _seconds(self, now: float) -> float:
        """Seconds of training that led here, without loading and without steps lost when a run was stopped."""
        return round(self._before("training_seconds") + now - self._last_log, 3)

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None):
        """Does nothing: TRL's card has no audio and no licence. Pushing a finished run creates this project's card."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False):
        if broken := broken_weights(self.model):
            raise FloatingPointError(
                f"{len(broken)} trained weights are no longer finite ({broken[0]} for one), so nothing is saved; the "
                "checkpoints of earlier steps are intact. Lower the learning rate and resume from one of them."
            )
        # Only checkpoints, which transformers saves this way, need it; there it must precede the state, the last file.
        if self.stream is not None and _internal_call and output_dir:
            save_stream(self.stream, Path(output_dir))
        super().save_model(output_dir, _internal_call)


def _only_learned(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Inputs that pass only the positions with a loss to the head, from labels of shape `(rows, tokens)`. TRL's fused
    head selects them itself on GPUs; elsewhere it would compute logits for all.
    """
    learned = torch.zeros_like(labels, dtype=torch.bool)
    learned[:, :-1] = labels[:, 1:] != IGNORED
    if not learned.any():
        return {}
    return {"kept_positions": learned, "shift_labels": labels[:, 1:][learned[:, :-1]][None]}
