"""Which model a run trains, and which parts of it: self-checking option dataclasses. For others see arguments.py."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from falcon3_audio.configuration_falcon3_audio import check_trailing_silence
from falcon3_audio.processing.audio_inputs_falcon3_audio import WINDOW_SECONDS, check_pooling_window


# `all`: attention and feed-forward layers; `attention`: the four attention projections; `qv`: two of them; `full`:
# the tower itself, without LoRA.
LoraTargets = Literal["all", "attention", "qv", "none", "full"]

# Options that apply only when a model is composed, and their defaults; an existing model has these built in.
OF_COMPOSED = {
    "pooling_window": 2,
    "projector_type": "mlp",
    "use_weighted_layer_sum": False,
    "pad_to_window": False,
    "trailing_silence": 0.0,
    "read_trailing_silence": True,
}
# With the placeholder, which is not a field of the config.
COMPOSED = OF_COMPOSED | {"audio_token": None}


@dataclass
class ModelArguments:
    """`given`: the names of options that a recipe or a command line gives, also with their default (not a field)."""

    given = frozenset[str]()

    model: str | None = field(
        default=None,
        metadata={
            "help": "Composed checkpoint to train: folder or Hub id. Alternatively, audio_model and text_model."
        },
    )
    audio_model: str | None = field(default=None, metadata={"help": "Whisper to compose from: folder or Hub id."})
    text_model: str | None = field(
        default=None, metadata={"help": "Instruction-tuned causal language model to compose from: folder or Hub id."}
    )
    pooling_window: int = field(default=2, metadata={"help": "Encoder positions per audio token (1: no pooling)."})
    projector_type: Literal["mlp", "linear"] = field(default="mlp", metadata={"help": "Type of the new projector."})
    use_weighted_layer_sum: bool = field(
        default=False,
        metadata={"help": "Use a learned weighted mean over the encoder's layers instead of the last layer."},
    )
    projector_start: Literal["random", "fitted"] = field(
        default="random",
        metadata={
            "help": "Initialisation of the new projector: random, or with its norms fitted to training clips and to "
            "the language model's embeddings."
        },
    )
    pad_to_window: bool = field(default=False, metadata={"help": "Always encode 30 s, as stock Whisper does."})
    trailing_silence: float = field(
        default=0.0,
        metadata={
            "help": "Seconds of silence encoded after each clip, where Whisper keeps facts about the whole clip."
        },
    )
    read_trailing_silence: bool = field(
        default=True, metadata={"help": "Whether the language model also reads the tokens of the trailing silence."}
    )
    audio_token: str | None = field(
        default=None, metadata={"help": "Placeholder for audio (default: an unused token, or a new one)."}
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(
        default="bfloat16", metadata={"help": "Dtype of the frozen weights; trained weights are float32."}
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "sdpa, eager, flash_attention_2, ... (default: transformers' choice)."}
    )
    load_in_4bit: bool = field(
        default=False, metadata={"help": "QLoRA: the language model's linear layers in 4-bit NF4 (bitsandbytes)."}
    )

    def __post_init__(self):
        check_values(self)
        composed = self.audio_model is not None or self.text_model is not None
        if (self.model is None) != composed or composed and not (self.audio_model and self.text_model):
            raise ValueError(
                "Give either `model`, a composed checkpoint, or both `audio_model` and `text_model`; got "
                f"model={self.model!r}, audio_model={self.audio_model!r}, text_model={self.text_model!r}."
            )
        check_pooling_window(self.pooling_window, WINDOW_SECONDS)
        silence = self.trailing_silence, self.read_trailing_silence
        check_trailing_silence(*silence, self.pad_to_window, window=WINDOW_SECONDS)


@dataclass
class LoraArguments:
    lora_r: int = field(default=8, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA scale: updates are multiplied by alpha / r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the inputs of the adapters."})
    lora_audio_tower: LoraTargets = field(
        default="all",
        metadata={"help": "Layers of the encoder with LoRA; `none` freezes it, `full` trains all its weights."},
    )
    lora_language_model: LoraTargets = field(
        default="all",
        metadata={"help": "Layers of the language model with LoRA; `none` freezes it, `full` trains all its weights."},
    )
    audio_tower_trainable_layers: int | None = field(
        default=None, metadata={"help": "With lora_audio_tower `full`: train only its last N layers."}
    )
    language_model_trainable_layers: int | None = field(
        default=None, metadata={"help": "With lora_language_model `full`: train only its last N layers."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the layers with LoRA (q_proj v_proj ...) in the towers that use LoRA; replaces `all`, "
            "`attention`, `qv`."
        },
    )
    lora_r_audio_tower: int | None = field(default=None, metadata={"help": "Rank in the encoder (default: lora_r)."})
    lora_r_language_model: int | None = field(
        default=None, metadata={"help": "Rank in the language model (default: lora_r)."}
    )
    use_dora: bool = field(default=False, metadata={"help": "DoRA: learn magnitudes separately (arXiv 2402.09353)."})
    use_rslora: bool = field(
        default=False, metadata={"help": "Scale by alpha / sqrt(r) instead of alpha / r (arXiv 2312.03732)."}
    )

    def __post_init__(self):
        check_values(self)
        for name in ("lora_r", "lora_r_audio_tower", "lora_r_language_model"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}; to train without LoRA set both towers to `none`."
                )
        self._check_full()
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout}.")

    def _check_full(self):
        choices = {"audio_tower": self.lora_audio_tower, "language_model": self.lora_language_model}
        for tower, choice in choices.items():
            last = getattr(self, f"{tower}_trainable_layers")
            if last is not None and (choice != "full" or last < 1):
                raise ValueError(
                    f"{tower}_trainable_layers={last} needs lora_{tower}: full and must be at least 1; got "
                    f"lora_{tower}: {choice}."
                )
        with_lora = [tower for tower, choice in choices.items() if choice not in ("none", "full")]
        if self.lora_language_model == "full" and with_lora and self.language_model_trainable_layers is None:
            raise ValueError(
                "An adapter cannot hold a whole language model with its embeddings: with lora_language_model `full` set "
                "lora_audio_tower to `full` or `none`, or train only its last layers "
                "(language_model_trainable_layers)."
            )
        if not with_lora and (self.use_dora or self.use_rslora or self.lora_target_modules):
            raise ValueError(
                "use_dora, use_rslora and lora_target_modules are for LoRA, which no tower uses; leave them out."
            )


def check_values(options: Any):
    """Checks choices and types: values from recipes bypass the command line's own checks."""
    for name, kind in get_type_hints(type(options)).items():
        value = getattr(options, name)
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}.")
            continue
        kinds = [get_origin(one) or one for one in get_args(kind) or (kind,)]
        check_type(name, value, kinds)


def check_type(name: str, value: Any, kinds: Collection[type]):
    """Raises a `ValueError` for a value of none of the types; an int is also a float, a bool is not an int."""
    if type(value) not in kinds and not (float in kinds and type(value) is int):
        names = " or ".join(kind.__name__.replace("NoneType", "null") for kind in kinds)
        raise ValueError(f"{name} must be of type {names}, got {value!r} of type {type(value).__name__}.")
