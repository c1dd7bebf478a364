# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads a pretrained Whisper and a pretrained causal language model and names their weights as Falcon3-Audio does.

The weights then go through `from_pretrained` like those of any checkpoint, so that dtype, device_map, quantisation and
attention are handled in one place, transformers'.
"""

import copy
import os
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig
from transformers.modeling_utils import PreTrainedModel

from .releases_falcon3_audio import CACHE


NAME = (str, os.PathLike)

# What some families do to the logits behind `lm_head`, by the field of their config, with the value that means "nothing".
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
    audio: str | PreTrainedModel, text: str | PreTrainedModel, audio_token_id: int | None, dtype: str | torch.dtype
) -> Backbones:
    """
    Loads what is given by name and collects both models' configs and weights under Falcon3-Audio's names.

    Raises a `ValueError` if `audio` is no Whisper, if the placeholder's id cannot be found out, or if the language
    model is more than a base model and a linear head.
    """
    if audio_token_id is None:
        audio_token_id = _default_audio_token_id(text)
    encoder = _load_whisper(audio).get_encoder()
    language_model = AutoModelForCausalLM.from_pretrained(text, dtype="auto") if isinstance(text, NAME) else text
    _check_language_model(language_model)
    head = language_model.get_output_embeddings()
    tensors = {f"model.audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for name, tensor in language_model.base_model.state_dict().items():
        tensors[f"model.language_model.{name}"] = tensor
    tensors["lm_head.weight"] = head.weight
    text_config = copy.deepcopy(language_model.config)
    return Backbones(
        audio_config=encoder.config,
        text_config=text_config,
        audio_token_id=audio_token_id,
        dtype=language_model.dtype if dtype == "auto" else dtype,
        generation_config=copy.deepcopy(language_model.generation_config),
        state_dict=tensors,
    )


def _load_whisper(audio: str | PreTrainedModel) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(audio) if isinstance(audio, NAME) else audio.config
    if config.model_type != "whisper":
        raise ValueError(
            f"The audio backbone must be a Whisper model, got {audio if isinstance(audio, NAME) else type(audio).__name__!r} of "
            f"type {config.model_type!r}. Take for example 'openai/whisper-medium.en'."
        )
    model = AutoModel.from_pretrained(audio, config=config, dtype="auto") if isinstance(audio, NAME) else audio
    if not hasattr(model, "get_encoder"):
        raise ValueError(f"The audio backbone must hold Whisper's encoder, got a {type(model).__name__}.")
    return model


def _check_language_model(language_model: PreTrainedModel):
    """Falcon3-Audio feeds embeddings to the base model and puts the head on top; refuses models that need more."""
    name, config = type(language_model).__name__, language_model.config
    if config.get_text_config() is not config:
        raise ValueError(
            f"{name} takes more than text; the text backbone must be a causal language model of text alone."
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
                f"{name} changes its logits behind the output head ({field}={value}), which Falcon3-Audio does not do. "
                "Choose another text backbone."
            )
    training = language_model.training
    try:
        same = _works_from_embeddings(language_model.eval(), head)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be fed with embeddings ({error}). Choose another text backbone.") from error
    finally:
        language_model.train(training)
    if not same:
        raise ValueError(
            f"{name} gives other logits, or no key-value cache, when its base model is fed with embeddings and its head "
            "is put on top. Choose another text backbone."
        )


@torch.no_grad()
def _works_from_embeddings(language_model: PreTrainedModel, head: torch.nn.Module) -> bool:
    ids = torch.arange(4, device=language_model.device)[None]
    embeddings = language_model.get_input_embeddings()(ids)
    expected = language_model(input_ids=ids, use_cache=False).logits
    outputs = language_model.base_model(inputs_embeds=embeddings, use_cache=True)
    language_model.base_model(inputs_embeds=embeddings.flip(-1))  # embeddings that belong to no token
    # Since 5.24 purely recurrent models return their states under the same name; older releases could not generate with them.
    layers = getattr(getattr(outputs, CACHE, None), "layers", [])
    cached = any(getattr(layer, "keys", None) is not None for layer in layers)
    return cached and torch.allclose(head(outputs.last_hidden_state), expected, rtol=1e-3, atol=1e-5)


def _default_audio_token_id(text: str | PreTrainedModel) -> int:
    """The processor chooses the placeholder; this asks it, so that both always agree."""
    name = text if isinstance(text, NAME) else text.name_or_path
    remedy = "Pass `audio_token_id=processor.audio_token_id` of the processor that fits these backbones."
    if not name:
        raise ValueError(
            f"The text backbone is a model that was not loaded from anywhere, so it has no tokenizer. {remedy}"
        )
    try:
        # The processor lives in another folder of the package, and this file is also loaded as remote code.
        from falcon3_audio.processing import choose_audio_token, load_tokenizer
    except ImportError as error:
        raise ImportError(f"Choosing the placeholder token needs the falcon3-audio package. {remedy}") from error
    config = AutoConfig.from_pretrained(name) if isinstance(text, NAME) else text.config
    return choose_audio_token(load_tokenizer(name), vocab_size=config.get_text_config().vocab_size)[1]


__all__ = ["Backbones", "combine_backbones"]
