# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loads a pretrained Whisper and a pretrained causal language model and renames their weights for Falcon3-Audio.

The weights then go through `from_pretrained` like those of any checkpoint, so transformers handles dtype, device_map,
quantisation and attention.
"""

import copy
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, logging

from .releases_falcon3_audio import CACHE


NAME = (str, os.PathLike)

# What some families do to the logits after `lm_head`: the config field, and the value that changes nothing.
_AFTER_THE_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}


@dataclass(frozen=True)
class Backbones:
    audio_config: PreTrainedConfig
    text_config: PreTrainedConfig
    audio_token_id: int
    dtype: torch.dtype
    generation_config: GenerationConfig
    state_dict: dict[str, torch.Tensor]


def combine_backbones(
    audio: str | PreTrainedModel,
    text: str | PreTrainedModel,
    audio_token: str | None,
    audio_token_id: int | None,
    dtype: str | torch.dtype,
) -> Backbones:
    """
    Loads the backbones given by name and collects both models' configs and weights under Falcon3-Audio's names.

    Raises a `ValueError` if `audio` is not a Whisper, if the placeholder's id cannot be determined, if a backbone is
    quantised, or if the language model is more than a base model and a linear head or has no end token.
    """
    _check_text_config(text)
    if audio_token_id is None:
        audio_token_id = _find_audio_token_id(text, audio_token)
    elif audio_token is not None:
        raise ValueError("Specify at most one of `audio_token` and `audio_token_id`.")
    encoder = _load_whisper(audio).get_encoder()
    language_model = _load(AutoModelForCausalLM, text) if isinstance(text, NAME) else text
    _check_language_model(language_model)
    head = language_model.get_output_embeddings()
    tensors = {f"model.audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for name, tensor in language_model.base_model.state_dict().items():
        tensors[f"model.language_model.{name}"] = tensor
    tensors["lm_head.weight"] = head.weight
    audio_config, text_config = copy.deepcopy(encoder.config), copy.deepcopy(language_model.config)
    for config in (audio_config, text_config):
        # Relative folders look like Hub ids, and mean another one elsewhere.
        if os.path.isdir(config.name_or_path):
            config.name_or_path = os.path.abspath(config.name_or_path)
    return Backbones(
        audio_config=audio_config,
        text_config=text_config,
        audio_token_id=audio_token_id,
        dtype=language_model.dtype if dtype == "auto" else dtype,
        generation_config=copy.deepcopy(language_model.generation_config),
        state_dict=tensors,
    )


def load_composed(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, backbones: Backbones, **options: Any
) -> PreTrainedModel:
    """
    The model with the backbones' weights and a new projector; `options` are those of `from_pretrained`.

    Raises a `ValueError` if the weights do not match the model, or it does not fit into memory.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers would report the projector as missing
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=backbones.state_dict,
            dtype=backbones.dtype,
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)
    _check_loaded(model, info)
    return model


def _check_loaded(model: PreTrainedModel, info: dict[str, Any]):
    strangers = {key for key in info["missing_keys"] if not key.startswith("model.multi_modal_projector.")}
    strangers |= set(info["unexpected_keys"]) | {str(key) for key in info["mismatched_keys"]}
    if strangers:
        raise ValueError(
            f"These backbones do not fit the architecture. Weights without a counterpart: {sorted(strangers)}"
        )
    if "disk" in getattr(model, "hf_device_map", {}).values():
        raise ValueError(
            f"These backbones do not fit into memory, and newly composed weights cannot be offloaded to disk "
            f"(device_map: {model.hf_device_map}). Save the composed model on a larger machine, then load that."
        )


def _load_whisper(audio: str | PreTrainedModel) -> PreTrainedModel:
    config = config_of(audio)
    if config.model_type != "whisper":
        raise ValueError(
            f"The audio backbone must be a Whisper model, got {_name_of(audio)} of type {config.model_type!r}. Use "
            "for example 'openai/whisper-medium.en'."
        )
    _check_not_quantised(audio, config)
    model = _load(AutoModel, audio, part="encoder.") if isinstance(audio, NAME) else audio
    if not hasattr(model, "get_encoder"):
        raise ValueError(f"The audio backbone must contain Whisper's encoder, got a {type(model).__name__}.")
    return model


def _load(auto_class: Any, name: str | os.PathLike, part: str = "") -> PreTrainedModel:
    """Loads a backbone. Raises a `ValueError` if weights of it, or of the part used here, are not in its files."""
    model, info = auto_class.from_pretrained(name, dtype="auto", output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if key.startswith(part))
    if missing:
        others = sorted(info["unexpected_keys"])
        found = f", but {len(others)} others, such as {others[0]}" if others else ""
        raise ValueError(
            f"{_name_of(name)} has no weights for {len(missing)} tensors of a {type(model).__name__}, such as "
            f"{missing[0]}{found}: they would stay random. Give the files of the whole model, as its "
            "`save_pretrained` writes them."
        )
    return model


def config_of(backbone: str | PreTrainedModel) -> PreTrainedConfig:
    """
    The config of a backbone, loaded if it is given by name.

    Raises a `ValueError` for a folder without a model, and for a model whose code is not part of transformers.
    """
    if not isinstance(backbone, NAME):
        return backbone.config
    if os.path.isdir(backbone) and CONFIG_NAME not in os.listdir(backbone):
        if ADAPTER_CONFIG_NAME in os.listdir(backbone):
            raise ValueError(f"{_name_of(backbone)} is an adapter: merge it into its model first, and give that.")
        raise ValueError(f"{_name_of(backbone)} holds no model: there is no {CONFIG_NAME}. Save the model there.")
    try:
        return AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{_name_of(backbone)} needs code that is not part of transformers. Choose a model whose family is."
        ) from error


def _name_of(backbone: str | PreTrainedModel) -> str:
    return repr(str(backbone)) if isinstance(backbone, NAME) else type(backbone).__name__


def _check_not_quantised(backbone: str | PreTrainedModel, config: PreTrainedConfig):
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    fields = quantization if isinstance(quantization, dict) else quantization.to_dict()
    method = fields.get("quant_method", "by an unknown method")
    raise ValueError(
        f"{_name_of(backbone)} is quantised ({getattr(method, 'value', method)}), and quantised weights cannot be "
        "composed. Use the original, unquantised model, and quantise the composed model when loading it "
        "(`quantization_config` of `from_pretrained`, `load_in_4bit` in training)."
    )


def _check_text_config(text: str | PreTrainedModel):
    """Checks that need only the config, before weights are loaded."""
    config = config_of(text)
    if config.get_text_config() is not config:
        raise ValueError(
            f"{_name_of(text)} of type {config.model_type!r} takes more than text; the text backbone must be a "
            "text-only causal language model, such as 'tiiuae/Falcon3-1B-Instruct'."
        )
    if isinstance(text, NAME) and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"The text backbone must be a causal language model, got {_name_of(text)} of type {config.model_type!r}, "
            "which is not one in transformers. Use for example 'tiiuae/Falcon3-1B-Instruct'."
        )
    _check_not_quantised(text, config)


def _check_language_model(language_model: PreTrainedModel):
    """Falcon3-Audio runs the base model on embeddings and applies the head; rejects models that need more."""
    name, config = type(language_model).__name__, language_model.config
    if language_model.generation_config.eos_token_id is None:
        raise ValueError(
            f"{name} has no end token (eos_token_id in its generation_config), so generation would never stop. Set it "
            "to its tokenizer's, in generation_config.json or on the model."
        )
    head = language_model.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        what = "no output head" if head is None else "a bias in its output head"
        raise ValueError(
            f"{name} has {what}; the text backbone's logits must be a plain linear map. Choose another one."
        )
    for field, neutral in _AFTER_THE_HEAD.items():  # a soft cap does not show on small logits
        value = getattr(config, field, neutral)
        if value not in (neutral, None):
            raise ValueError(
                f"{name} changes its logits after the output head ({field}={value}), which Falcon3-Audio does not do. "
                "Choose another text backbone."
            )
    training = language_model.training
    try:
        same = _works_from_embeddings(language_model.eval(), head)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be run on embeddings ({error}). Choose another text backbone.") from error
    finally:
        language_model.train(training)
    if not same:
        raise ValueError(
            f"{name} gives other logits, or no key-value cache, when its base model is run on embeddings and its head "
            "is applied to the output. Choose another text backbone."
        )


@torch.no_grad()
def _works_from_embeddings(language_model: PreTrainedModel, head: torch.nn.Module) -> bool:
    ids = torch.arange(4, device=language_model.device)[None]
    embeddings = language_model.get_input_embeddings()(ids)
    expected = language_model(input_ids=ids, use_cache=False).logits
    # The cache that `generate` makes for the composed model. Some families generate only with a class of their own.
    cache = DynamicCache(config=language_model.config.get_text_config(decoder=True))
    outputs = language_model.base_model(inputs_embeds=embeddings, use_cache=True, **{CACHE: cache})
    language_model.base_model(inputs_embeds=embeddings.flip(-1))  # embeddings that belong to no token
    # Recurrent layers keep states instead.
    cached = any(getattr(layer, "keys", None) is not None for layer in cache.layers)
    return cached and torch.allclose(head(outputs.last_hidden_state), expected, rtol=1e-3, atol=1e-5)


def _find_audio_token_id(text: str | PreTrainedModel, audio_token: str | None) -> int:
    """The processor chooses the placeholder; this asks it, so that both always agree."""
    name = text if isinstance(text, NAME) else text.name_or_path
    remedy = "Pass `audio_token_id=processor.audio_token_id` of the processor that fits these backbones."
    if not name:
        raise ValueError(
            f"The text backbone is a model that was not loaded from a checkpoint, so it has no tokenizer. {remedy}"
        )
    try:
        # The processor lives in another folder of the package, and this file is also loaded as remote code.
        from falcon3_audio.processing import choose_audio_token, load_tokenizer
    except ImportError as error:
        raise ImportError(f"Choosing the placeholder token needs the falcon3-audio package. {remedy}") from error
    return choose_audio_token(load_tokenizer(name), config_of(text).get_text_config().vocab_size, audio_token)[1]


__all__ = ["Backbones", "combine_backbones", "config_of", "load_composed"]
