"""All options of a training run, as dataclasses that check themselves and suggest what to set instead.

The defaults are the paper's recipe (arXiv 2509.07526): one stage, LoRA of rank 8 on encoder and language model, the
projector in full, bf16, one epoch, 256 questions a step, learning rate 2e-4. What the paper does not report (alpha,
dropout, schedule, clipping) follows LTU-AS, which trained on the same data with the same rank, batch and rate.
A YAML recipe sets any of them (`--config recipe.yaml`), the command line overrides the recipe.
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers.integrations import get_available_reporting_integrations
from transformers.trainer_utils import SaveStrategy
from trl import SFTConfig

from .augmentation import read_augmentation
from .best import less_is_better
from .data.sources import DataSource, read_sources
from .model_arguments import COMPOSED, OF_COMPOSED, LoraArguments, ModelArguments


# Options of TRL's and transformers' trainers that would change batches behind the collator's and sampler's backs, or that
# these two would silently ignore.
NOT_OURS = (
    *("packing", "padding_free", "assistant_only_loss", "completion_only_loss", "remove_unused_columns"),
    *("eval_packing", "chat_template_path", "eos_token", "pad_token", "shuffle_dataset"),
    *("auto_find_batch_size", "ignore_data_skip", "model_init_kwargs"),
)
AT_ONCE = 8  # questions per device if nothing else is set; transformers' own default


@dataclass
class DataArguments:
    train_data: list[DataSource] = field(
        default_factory=list,
        metadata={
            "help": "Training sets: paths or Hub ids; in YAML also {path, name, split, weight, sound, prompt, columns, streaming}."
        },
    )
    eval_data: list[DataSource] = field(
        default_factory=list,
        metadata={
            "help": "Sets to evaluate on: the loss, and how much worse it is without the audio (docs/fine-tune.md)."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "Rows of each set with `streaming: true` that a worker buffers and shuffles (1: no shuffling)."
        },
    )

    def __post_init__(self):
        self.train_data = read_sources(self.train_data, "train_data")
        self.eval_data = read_sources(self.eval_data, "eval_data")
        if not self.train_data:
            raise ValueError("There is no training data: give at least one set in `train_data`.")
        if any(source.weight != 1 for source in self.eval_data):
            raise ValueError("Sets in `eval_data` are scored once, in full; leave out their weights.")
        if any(source.streaming for source in self.eval_data):
            raise ValueError(
                "Sets in `eval_data` are scored in full, so they cannot be streamed; leave out `streaming`. To use "
                'part of a large set, give `split: "validation[:1000]"`.'
            )
        loaded = [str(source) for source in self.train_data if not source.streaming]
        if loaded and len(loaded) < len(self.train_data):
            raise ValueError(
                f"Some sets of `train_data` are streamed and others are not ({', '.join(loaded)}): set `streaming: "
                "true` for all of them or for none."
            )
        if self.shuffle_buffer_size < 1:
            raise ValueError(f"shuffle_buffer_size must be at least 1 row, got {self.shuffle_buffer_size}.")

    @property
    def is_streamed(self) -> bool:
        """Whether the training sets are streamed: either all are or none."""
        return self.train_data[0].streaming


@dataclass
class AudioSFTConfig(SFTConfig):
    """`trl.SFTConfig` with this project's defaults; `global_batch_size` determines the gradient accumulation."""

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate of AdamW."})
    audio_tower_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the encoder (default: learning_rate)."}
    )
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the projector (default: learning_rate)."}
    )
    language_model_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of the language model (default: learning_rate)."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule after the warm-up."})
    warmup_steps: float = field(
        default=0.05, metadata={"help": "Warm-up steps, or their fraction of the run if below 1."}
    )
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the training data."})
    global_batch_size: int | None = field(
        default=None,
        metadata={"help": "Questions per step over all devices; determines gradient accumulation."},
    )
    per_device_train_batch_size: int = field(
        default=0,
        metadata={
            "help": "Questions that a device processes at a time (default, or 0: 8, or the largest number up to 8 "
            "that divides its share of global_batch_size)."
        },
    )
    max_length: int | None = field(
        default=2048,
        metadata={"help": "Longest example in tokens, audio included. Longer text is cut and counted, audio never."},
    )
    questions_per_row: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of questions about a clip that share its audio in one row (default: all). 1: each "
            "has its own row and encoder pass."
        },
    )
    tokens_per_device: int | None = field(
        default=None,
        metadata={
            "help": "Maximum tokens (rows times the longest) in a micro-batch on each device. A step's questions are "
            "packed into as many micro-batches as needed; `global_batch_size` still counts questions. Must be at "
            "least max_length. Default: micro-batches of per_device_train_batch_size questions."
        },
    )
    # On unless it is set under either of its names (transformers renames `gradient_checkpointing`).
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]  # TRL knows no "not set"
        default=None, metadata={"help": "Old name of activation_checkpointing."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations in the backward pass to save memory (default: on)."}
    )
    # Not recorded as deciding the result, so a run that stopped at a bad clip can resume with `skip`.
    on_bad_audio: Literal["raise", "skip"] = field(
        default="raise",
        metadata={
            "help": "What to do if a clip cannot be read: `raise` stops the run; `skip` leaves its questions out, "
            "counts and names them."
        },
    )
    max_bad_audio: float = field(
        default=0.05, metadata={"help": "With `skip`: the largest share of the run's questions that may be left out."}
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile the language model's layers (torch.compile). On a CPU compiling takes minutes; after "
            "that, steps take less than two thirds of the time. Needs a C++ compiler."
        },
    )
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "tensorboard, wandb, trackio, none, ..."}
    )
    save_steps: float = field(
        default=500, metadata={"help": "Steps between checkpoints, or a fraction of the run if below 1."}
    )
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints to keep."})
    augmentation: dict | str | None = field(
        default=None,
        metadata={
            "help": "Augmentation of training clips: {speed: [0.9, 1.1], noise_snr_db: [5, 30], ...}, see "
            "docs/fine-tune.md; JSON on the command line."
        },
    )
    eval_generate: int = field(
        default=0,
        metadata={
            "help": "Number of held-out questions per set that the model answers at every evaluation, for accuracy, "
            "exact match and error rates (0: none)."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop the run when metric_for_best_model (loss) has not improved in N consecutive evaluations."
        },
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "Smallest improvement that counts for early_stopping_patience."}
    )
    push_to_hub: bool = field(
        default=False, metadata={"help": "Push the results to the Hub, in one commit, when the run has finished."}
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay False."})
    # Every micro-batch has at least one clip (see the collator), so every trained weight gets a gradient.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Not needed here."})

    def __post_init__(self):
        self._check_stays_off()
        self._check_ranges()
        self._set_best()
        self.augmentation = read_augmentation(self.augmentation)
        if self.activation_checkpointing is None and self.gradient_checkpointing is None:
            self.activation_checkpointing = True
        # The processor prepares the rows in the collator; TRL must not tokenize them.
        self.dataset_kwargs = {"skip_prepare_dataset": True} | (self.dataset_kwargs or {})
        is_given = self.per_device_train_batch_size != 0
        if not is_given:
            self.per_device_train_batch_size = AT_ONCE
        super().__post_init__()
        self._check_report_to()
        for name in ("dispatch_batches", "split_batches"):
            if getattr(self.accelerator_config, name):
                raise ValueError(f"accelerator_config.{name} must stay off: each device reads the sampler's batches.")
        if self.global_batch_size is not None:
            self._set_batch(self.global_batch_size, is_given)

    def _check_stays_off(self):
        for name in NOT_OURS:
            if getattr(self, name):
                raise ValueError(
                    f"{name} must stay off: the collator prepares the rows and masks the prompts itself, and the sampler "
                    "determines their order and number."
                )
        if self.enable_jit_checkpoint:
            raise ValueError("enable_jit_checkpoint must stay off: SIGTERM saves a checkpoint without it.")
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy must stay `random`, got {self.train_sampling_strategy!r}: the sampler "
                "determines the order."
            )
        if self.save_only_model:
            raise ValueError("save_only_model must stay off: a run could not resume from such checkpoints.")
        if self.label_smoothing_factor and self.loss_type == "dft":
            raise ValueError("label_smoothing_factor has no effect with loss_type `dft`; leave one of the two out.")

    def _check_ranges(self):
        if not 0 <= self.max_bad_audio <= 1:
            raise ValueError(f"max_bad_audio must be a share from 0 to 1, got {self.max_bad_audio}.")
        if self.eval_generate < 0:
            raise ValueError(f"eval_generate must be a number of questions, 0 for none; got {self.eval_generate}.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 token, or null for no limit; got {self.max_length}.")
        if self.questions_per_row is not None and self.questions_per_row < 1:
            raise ValueError(f"questions_per_row must be at least 1, or null for all; got {self.questions_per_row}.")
        if self.tokens_per_device and self.include_num_input_tokens_seen not in (False, "no"):
            raise ValueError(
                "include_num_input_tokens_seen cannot count the micro-batches of tokens_per_device; leave it out: "
                "every log line has num_tokens and tokens_per_second."
            )
        if self.tokens_per_device and self.tokens_per_device < (self.max_length or 1):
            raise ValueError(
                f"tokens_per_device={self.tokens_per_device} is less than the longest example, max_length={self.max_length}. Raise "
                "it, or lower max_length."
            )

    def _set_batch(self, questions: int, is_given: bool):
        """Divides the questions of a step; `is_given`: whether `per_device_train_batch_size` was."""
        if self.tokens_per_device:
            needed = self._questions_per_device(questions)
            self._check_packed(self.per_device_train_batch_size if is_given else needed, needed)
            self.per_device_train_batch_size = needed
            return
        if not is_given:
            share = self._questions_per_device(questions)
            self.per_device_train_batch_size = max(n for n in range(1, AT_ONCE + 1) if share % n == 0)
        self.gradient_accumulation_steps = self._accumulation(questions)

    def _set_best(self):
        """Sets what choosing the best step needs: a metric, its direction, and a checkpoint of each evaluated step."""
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(
                f"early_stopping_patience must be at least 1 evaluation, got {self.early_stopping_patience}."
            )
        if not self.load_best_model_at_end and self.early_stopping_patience is None:
            if self.metric_for_best_model is not None and self.greater_is_better is None:
                self.greater_is_better = not less_is_better(self.metric_for_best_model)
            return
        if self.eval_strategy == "no":
            raise ValueError(
                "load_best_model_at_end and early_stopping_patience compare evaluations: give eval_data, and set eval_strategy to "
                "`steps` (with eval_steps) or `epoch`."
            )
        self.metric_for_best_model = self.metric_for_best_model or "loss"
        if self.greater_is_better is None:
            self.greater_is_better = not less_is_better(self.metric_for_best_model)
        if self.load_best_model_at_end:
            self._save_what_is_evaluated()

    def _save_what_is_evaluated(self):
        if self.save_total_limit == 1:
            raise ValueError(
                "save_total_limit must be at least 2 with load_best_model_at_end: the best checkpoint, and the last "
                "one to resume from."
            )
        if self.save_strategy == SaveStrategy.BEST:
            return
        steps = self.eval_steps or self.logging_steps  # as transformers completes it
        default = type(self).save_steps
        if self.eval_strategy == "steps" and self.save_steps not in (default, steps):
            raise ValueError(
                f"With load_best_model_at_end every evaluated step is saved: leave out save_steps={self.save_steps:g}, or set "
                f"eval_steps to the same value (now {steps:g})."
            )
        self.save_strategy = SaveStrategy(getattr(self.eval_strategy, "value", self.eval_strategy))
        self.save_steps = steps

    def _check_report_to(self):
        """Raises a `ValueError` for what is not installed; transformers notices only after the model is loaded."""
        available = get_available_reporting_integrations()
        missing = [name for name in self.report_to if name not in available]
        if missing:
            raise ValueError(
                f"report_to: {', '.join(missing)} is not installed; available: {', '.join(available) or 'none'}. "
                "Install it with pip, or set `none`."
            )

    def _questions_per_device(self, batch: int) -> int:
        if batch < 1 or batch % self.world_size:
            raise ValueError(f"global_batch_size={batch} cannot be divided evenly among {self.world_size} device(s).")
        return batch // self.world_size

    def _check_packed(self, given: int, needed: int):
        if given != needed or self.gradient_accumulation_steps != 1:
            raise ValueError(
                f"tokens_per_device={self.tokens_per_device} packs the {needed} questions that each device gets per "
                "step, so per_device_train_batch_size and gradient_accumulation_steps are not needed. Leave them out "
                "and lower tokens_per_device to save memory, or set tokens_per_device to 0."
            )

    def _accumulation(self, batch: int) -> int:
        at_once = self.per_device_train_batch_size * self.world_size
        if batch < 1 or batch % at_once:
            raise ValueError(
                f"global_batch_size={batch} is not a multiple of the {at_once} questions that {self.world_size} "
                f"device(s) process at a time ({self.per_device_train_batch_size} each). Change "
                "per_device_train_batch_size."
            )
        given, needed = self.gradient_accumulation_steps, batch // at_once
        if given not in (1, needed):
            raise ValueError(
                f"global_batch_size={batch} needs {needed} gradient accumulation step(s) of {at_once} questions, but "
                f"got gradient_accumulation_steps={given}. Leave one of the two out."
            )
        return needed


__all__ = [
    "COMPOSED",
    "OF_COMPOSED",
    "AudioSFTConfig",
    "DataArguments",
    "DataSource",
    "LoraArguments",
    "ModelArguments",
]
