# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Configuration of Falcon3-Audio: a Whisper encoder, a projector and any causal language model.

The options are the ones the paper ablates (arXiv 2509.07526): pooling window, projector type, padding. `PRESETS` holds
the shapes of the three published sizes. This file travels with every saved checkpoint, so it imports only
transformers and huggingface_hub and runs on transformers 5.16 to 5.24.

    config = Falcon3AudioConfig.from_preset("falcon3-audio-1b", pooling_window=1)
"""

import copy
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from .releases_falcon3_audio import CACHE, SubConfigSpec


# From Whisper's front end and the stride of its second convolution.
FRAMES_PER_SECOND = 100  # mel frames
FRAMES_PER_POSITION = 2

# What a saved config.json says about the code next to it. PEFT's `AutoPeftModelForCausalLM` needs
# `AutoModelForCausalLM`; `AutoModelForSpeechSeq2Seq` is left out, because with it the speech-recognition pipeline
# accepts the model and then fails.
_MODEL_CLASS = "modeling_falcon3_audio.Falcon3AudioForConditionalGeneration"
AUTO_MAP = {
    "AutoConfig": "configuration_falcon3_audio.Falcon3AudioConfig",
    "AutoModel": "modeling_falcon3_audio.Falcon3AudioModel",
    "AutoModelForMultimodalLM": _MODEL_CLASS,
    "AutoModelForSeq2SeqLM": _MODEL_CLASS,
    "AutoModelForCausalLM": _MODEL_CLASS,
    "AutoProcessor": "processing_falcon3_audio.Falcon3AudioProcessor",
}
CUSTOM_PIPELINES = {
    "audio-text-to-text": {
        "impl": "pipeline_falcon3_audio.AudioTextToTextPipeline",
        "pt": ["AutoModelForMultimodalLM"],
        "type": "multimodal",
    }
}

# Shapes as published in the config.json files of openai/whisper-* and tiiuae/Falcon3-*-Instruct.
_WHISPER_SMALL = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_WHISPER_MEDIUM = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_FALCON3 = {
    "model_type": "llama",
    "vocab_size": 131072,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000042.0,
    "bos_token_id": None,
    "eos_token_id": 11,
    "pad_token_id": 2023,
    "tie_word_embeddings": False,
}


def _falcon3(hidden: int, intermediate: int, layers: int, heads: int, positions: int) -> dict[str, Any]:
    return _FALCON3 | {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
    }


# name -> Hub ids of the two backbones, and their shapes. The paper gives whisper-medium's width for the encoder;
# whisper-small for the smallest model is this project's choice.
PRESETS: dict[str, dict[str, Any]] = {
    "falcon3-audio-1b": {
        "audio": "openai/whisper-small.en",
        "text": "tiiuae/Falcon3-1B-Instruct",
        "audio_config": _WHISPER_SMALL,
        "text_config": _falcon3(2048, 8192, 18, 8, 8192),
    },
    "falcon3-audio-3b": {
        "audio": "openai/whisper-medium.en",
        "text": "tiiuae/Falcon3-3B-Instruct",
        "audio_config": _WHISPER_MEDIUM,
        "text_config": _falcon3(3072, 9216, 22, 12, 32768),
    },
    "falcon3-audio-7b": {
        "audio": "openai/whisper-medium.en",
        "text": "tiiuae/Falcon3-7B-Instruct",
        "audio_config": _WHISPER_MEDIUM,
        "text_config": _falcon3(3072, 23040, 28, 12, 32768),
    },
}


def get_preset(name: str) -> dict[str, Any]:
    """One entry of `PRESETS`. Raises a `ValueError` that lists the names if `name` is unknown."""
    if name not in PRESETS:
        raise ValueError(f"Unknown preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return PRESETS[name]


@strict
class Falcon3AudioEncoderConfig(PreTrainedConfig):
    r"""
    Shape of the Whisper encoder. Whisper's own field names (`d_model`, `encoder_layers`, ...) are accepted too.

    Args:
        num_mel_bins (`int`, defaults to 80): Mel bands of the input features (128 for whisper-large-v3).
        hidden_size (`int`, defaults to 768): Width of the encoder.
        num_hidden_layers (`int`, defaults to 12): Number of encoder layers.
        num_attention_heads (`int`, defaults to 12): Attention heads per layer; must divide `hidden_size`.
        intermediate_size (`int`, defaults to 3072): Width of the feed-forward layers.
        activation_function (`str`, defaults to `"gelu"`): Activation of the feed-forward layers.
        dropout, attention_dropout, activation_dropout, layerdrop (`float`, default to 0.0): As in Whisper.
        initializer_range (`float`, defaults to 0.02): Standard deviation of new weights.
        max_source_positions (`int`, defaults to 1500): Encoder positions of one window (1500 = 30 s at 50 per second).
    """

    model_type = "falcon3_audio_encoder"
    base_config_key = "audio_config"
    attribute_map = {
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
        "encoder_layerdrop": "layerdrop",
        "init_std": "initializer_range",
    }

    num_mel_bins: int = 80
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    activation_function: str = "gelu"
    dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    layerdrop: float | int = 0.0
    initializer_range: float = 0.02
    max_source_positions: int = 1500

    @classmethod
    def from_whisper(cls, whisper_config: dict[str, Any]) -> "Falcon3AudioEncoderConfig":
        """The encoder config from a Whisper configuration given as a dict; decoder fields are ignored."""
        names = [*cls.attribute_map, "num_mel_bins", "activation_function", "max_source_positions"]
        names += ["dropout", "attention_dropout", "activation_dropout"]
        return cls(**{name: whisper_config[name] for name in names if name in whisper_config})

    def validate_shape(self):
        for name in ("num_mel_bins", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`num_attention_heads` must divide `hidden_size`, got {self.num_attention_heads} heads for a width "
                f"of {self.hidden_size}."
            )


@strict
class Falcon3AudioConfig(PreTrainedConfig):
    r"""
    Configuration of [`Falcon3AudioForConditionalGeneration`].

    Args:
        audio_config (`Falcon3AudioEncoderConfig`, `WhisperConfig` or `dict`, *optional*): Shape of the encoder.
        text_config (`PreTrainedConfig` or `dict`, *optional*): Configuration of any causal language model; a dict
            names its family in `model_type` (default `"llama"`, Falcon3's). Defaults to Falcon3-1B's.
        audio_token_id (`int`, defaults to 2022): Id of the placeholder for audio tokens in prompts. Text must never
            contain it; `from_backbones` takes it from the tokenizer. The language model is never resized: an id of
            `text_config.vocab_size` or more is a token of the tokenizer that the embedding has no row for.
        pooling_window (`int`, defaults to 2): Encoder positions averaged into one audio token (2: 50 -> 25 per
            second; 1: no pooling). Must divide `audio_config.max_source_positions`.
        projector_type (`"mlp"` or `"linear"`, defaults to `"mlp"`): LayerNorm-Linear-GELU-Linear-LayerNorm as in the
            paper, or a single Linear between the same two LayerNorms.
        use_weighted_layer_sum (`bool`, defaults to `False`): Whether the projector reads a learned weighted mean over
            the outputs of all encoder layers (before Whisper's last LayerNorm) instead of the last layer's output.
        pad_to_window (`bool`, defaults to `False`): Whether every clip is encoded as full windows of 30 s whose
            padding is attended to, as stock Whisper does. `False`: only real audio is encoded and becomes tokens.
            The two give different results, so a checkpoint keeps the value it was trained with.
        trailing_silence (`float`, defaults to 0.0): Seconds of silence encoded after each clip and attended to, in
            whole mel frames of 10 ms. It ends with the clip's last window at the latest (a clip of 30 s gets none).
            Whisper stores information about the whole clip in the silence after it. Cannot be combined with
            `pad_to_window`; as there, a checkpoint keeps the value it was trained with.
        read_trailing_silence (`bool`, defaults to `True`): Whether the language model reads the tokens of that silence
            too. `False`: only those of the clip, the last of which can average over silence, as it does if `True`.
        tie_word_embeddings (`bool`, *optional*): Taken from `text_config` when left out.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the projector's new weights.
    """

    model_type = "falcon3_audio"
    if SubConfigSpec is None:
        sub_configs = {"audio_config": Falcon3AudioEncoderConfig, "text_config": AutoConfig}
    else:
        sub_configs_defaults = {
            "audio_config": Falcon3AudioEncoderConfig,
            "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        }
    keys_to_ignore_at_inference = [CACHE, "audio_hidden_states"]

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 2022
    pooling_window: int = 2
    projector_type: Literal["mlp", "linear"] = "mlp"
    use_weighted_layer_sum: bool = False
    pad_to_window: bool = False
    trailing_silence: float | int = 0.0
    read_trailing_silence: bool = True
    tie_word_embeddings: bool | None = None
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        self.audio_config = _audio_config(self.audio_config)
        self.text_config = _text_config(self.text_config)
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        kwargs.pop("custom_pipelines", None)  # a property here, written by `to_dict`
        self.auto_map = AUTO_MAP | (kwargs.pop("auto_map", None) or {})
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **options) -> "Falcon3AudioConfig":
        """
        The configuration of one of the `PRESETS` ("falcon3-audio-1b", "-3b", "-7b"), with any field replaced.

        Raises a `ValueError` that lists the names if `name` is unknown.
        """
        preset = copy.deepcopy(get_preset(name))
        return cls(**{"audio_config": preset["audio_config"], "text_config": preset["text_config"]} | options)

    @property
    def audio_token_is_embedded(self) -> bool:
        """Whether the audio token has an embedding row and a logit; it needs neither."""
        return self.audio_token_id < self.get_text_config(decoder=True).vocab_size

    @property
    def custom_pipelines(self) -> dict[str, Any]:
        """
        Pipelines that must be loaded from the checkpoint's own code: none if the task is already registered.

        `transformers.pipeline` requires `trust_remote_code=True` for every task named here, even for one whose
        implementation is installed. Saved checkpoints always name the task (see `to_dict`).
        """
        from transformers.pipelines import PIPELINE_REGISTRY

        registered = PIPELINE_REGISTRY.get_supported_tasks()
        # A copy: `pipeline` replaces the names in it with classes.
        return {task: copy.deepcopy(entry) for task, entry in CUSTOM_PIPELINES.items() if task not in registered}

    @custom_pipelines.setter
    def custom_pipelines(self, value: dict[str, Any]):
        """Ignored: `Pipeline.save_pretrained` assigns what `to_dict` writes anyway."""

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"custom_pipelines": copy.deepcopy(CUSTOM_PIPELINES)}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        # Never called: transformers copies and downloads the files that this file imports, and a checkpoint must
        # include its pipeline even when it is saved again from remote code without use of the pipeline.
        def _travels_along():
            from .pipeline_falcon3_audio import AudioTextToTextPipeline

            return AudioTextToTextPipeline

        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def trailing_silence_frames(self) -> int:
        """`trailing_silence` in mel frames."""
        return round(self.trailing_silence * FRAMES_PER_SECOND)

    def validate_silence(self):
        window = self.audio_config.max_source_positions * FRAMES_PER_POSITION / FRAMES_PER_SECOND
        check_trailing_silence(self.trailing_silence, self.read_trailing_silence, self.pad_to_window, window)

    def validate_options(self):
        positions = self.audio_config.max_source_positions
        if self.pooling_window < 1 or positions % self.pooling_window:
            allowed = [window for window in range(1, 51) if positions % window == 0]
            raise ValueError(
                f"`pooling_window` must divide the {positions} positions of a window, so that long audio stays "
                f"evenly spaced across windows: got {self.pooling_window}, allowed are {allowed} and larger divisors."
            )
        if self.audio_token_id < 0:
            raise ValueError(
                f"`audio_token_id` must be an id of the tokenizer, 0 or more, got {self.audio_token_id}. Use that of "
                "a token that text never contains."
            )


def check_trailing_silence(seconds: float, read: bool, pad_to_window: bool, window: float):
    """
    Raises a `ValueError` if `trailing_silence` is not between 0 and a window (`window`, in seconds) or is shorter than
    a frame, and for options that `pad_to_window` makes meaningless.
    """
    if not 0 <= seconds <= window:
        raise ValueError(
            f"`trailing_silence` must be from 0 to the {window:g} s of a window, got {seconds}. Use {window:g} to "
            "encode every window in full."
        )
    if 0 < seconds < 1 / FRAMES_PER_SECOND:
        raise ValueError(
            f"`trailing_silence` must be 0 or at least one mel frame ({1 / FRAMES_PER_SECOND} s), got {seconds}."
        )
    if pad_to_window and (seconds or not read):
        raise ValueError(
            f"`pad_to_window` already encodes and reads the whole window: got it with trailing_silence={seconds} and "
            f"read_trailing_silence={read}. Omit one; trailing_silence={window:g} with read_trailing_silence=False "
            "encodes the whole window and reads only the clip."
        )


def _audio_config(value: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    # Checked by `model_type`, not `isinstance`: in remote code, two copies of this file have different classes.
    if value is None:
        return Falcon3AudioEncoderConfig()
    fields = value if isinstance(value, dict) else value.to_dict()
    model_type = fields.get("model_type", Falcon3AudioEncoderConfig.model_type)
    if model_type == "whisper":
        config = Falcon3AudioEncoderConfig.from_whisper(fields)
        config.name_or_path = fields.get("_name_or_path") or ""
        return config
    if model_type != Falcon3AudioEncoderConfig.model_type:
        raise ValueError(
            f"`audio_config` must describe a Whisper encoder (model_type 'whisper' or "
            f"'{Falcon3AudioEncoderConfig.model_type}'), got model_type {model_type!r}."
        )
    return Falcon3AudioEncoderConfig(**value) if isinstance(value, dict) else value


def _text_config(value: dict | PreTrainedConfig | None) -> PreTrainedConfig:
    if isinstance(value, PreTrainedConfig):
        return value
    fields = dict(PRESETS["falcon3-audio-1b"]["text_config"] if value is None else value)
    model_type = fields.pop("model_type", "llama")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"`text_config` has the unknown model_type {model_type!r}: use one that transformers has.")
    return CONFIG_MAPPING[model_type](**fields)


# The any-to-any pipeline and `transformers serve` look up class names in this table, not registered classes. This is
# done here because the config is the first of a checkpoint's own code to be loaded.
MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[Falcon3AudioConfig.model_type] = _MODEL_CLASS.rpartition(".")[2]

__all__ = ["PRESETS", "Falcon3AudioConfig", "Falcon3AudioEncoderConfig", "check_trailing_silence", "get_preset"]
