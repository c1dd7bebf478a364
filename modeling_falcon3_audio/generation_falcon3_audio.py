# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What `generate` needs for prompts with audio.

A prompt's audio is encoded exactly once, even with beams, and inserted where its tokens are computed: all together, in
chunks, or after a cache. The placeholder is never generated. Some steps of `generate` look up the logits of the
prompt's tokens: if the placeholder has neither an embedding row nor a logit, they get minus infinity, so answers are
those of a model whose vocabulary has one. A draft is made by a model that hears the clip too. Travels with every saved
checkpoint.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.generation import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PromptLookupCandidateGenerator,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.utils import logging

from .releases_falcon3_audio import CACHE


logger = logging.get_logger(__name__)

# Processors that change the logits of tokens because the prompt contains them.
_READ_THE_PROMPT = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)


class WithPlaceholder(LogitsProcessor):
    """Runs `processor` on logits padded to include `audio_token_id`, and returns as many as were passed."""

    def __init__(self, processor: LogitsProcessor, audio_token_id: int):
        self.processor, self.audio_token_id = processor, audio_token_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        width = scores.shape[-1]
        missing = max(0, self.audio_token_id + 1 - width)
        return self.processor(input_ids, nn.functional.pad(scores, (0, missing), value=-torch.inf))[..., :width]


def _audio_at(tokens: slice, places: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
    """The audio of these tokens of each prompt; a cache holds those before them, and those after come later."""
    if audio_embeds.shape[0] != int(places.sum()):
        return audio_embeds  # the forward raises the error
    rows = places.flatten().cumsum(0).view_as(places) - 1
    return audio_embeds[rows[:, tokens][places[:, tokens]].to(audio_embeds.device)]


def holds_a_prompt(cache: Cache | None) -> bool:
    # A cache's length is not a constant for the compiler; compiled code continues prompts, it does not start them.
    return cache is not None and (torch.compiler.is_compiling() or int(cache.get_seq_length()) > 0)


def learned_positions(language_model: nn.Module) -> int | None:
    """The number of positions that a language model has learned (GPT-2, OPT); `None` if it computes them."""
    number = getattr(language_model.config, "max_position_embeddings", None)
    words = language_model.get_input_embeddings()
    others = [one for one in language_model.modules() if isinstance(one, nn.Embedding) and one is not words]
    # OPT's table has two more rows.
    return number if number and any(0 <= one.num_embeddings - number <= 2 for one in others) else None


def check_positions(
    positions: int, inputs_embeds: torch.Tensor, position_ids: torch.Tensor | None, cache: Cache | None
):
    """
    Raises a `ValueError` for more tokens than there are learned positions, which is an IndexError in the model. Not in
    compiled code, where numbers in tensors are not known.
    """
    if torch.compiler.is_compiling():
        return
    if position_ids is not None:
        tokens = int(position_ids.max()) + 1
    else:
        tokens = inputs_embeds.shape[1] + (0 if cache is None else int(cache.get_seq_length()))
    if tokens > positions:
        raise ValueError(
            f"got {tokens} tokens of text and audio, but this language model has learned only {positions} positions. "
            "Use shorter clips or texts, or a smaller max_length."
        )


class Falcon3AudioGenerationMixin(GenerationMixin):
    """`GenerationMixin` for [`Falcon3AudioForConditionalGeneration`]."""

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: torch.LongTensor | None = None,
        **model_kwargs,
    ):
        # Called once per `generate`, before beams or several answers repeat each prompt. Encoding here, and not in
        # the first forward, runs the encoder once per prompt, and repeats each prompt's audio as a block: rows of
        # audio repeated one by one would belong to the wrong prompts as soon as a prompt has several. (transformers
        # 5.24 does this by itself, as `mm_encoder_outputs`, only for images and videos.)
        audio_embeds = model_kwargs.pop("audio_embeds", None)
        clips = (model_kwargs.pop("input_features", None), model_kwargs.pop("input_features_mask", None))
        model_kwargs.pop("audio_places", None)  # from a caller that uses this model as an assistant
        inputs_embeds, cache = model_kwargs.get("inputs_embeds"), model_kwargs.get(CACHE)
        held = 0 if cache is None else int(cache.get_seq_length())
        self._warn_of_long_prompt(input_ids, inputs_embeds)
        if clips[0] is not None:
            if audio_embeds is not None:
                raise ValueError("Specify at most one of `input_features` and `audio_embeds`.")
            audio_embeds = self.get_audio_features(*clips, return_dict=True).pooler_output
        elif audio_embeds is None and inputs_embeds is None and input_ids is not None:
            # Audio that is already in a cache need not be passed again; a single token is the model's last output.
            rest = input_ids[:, held:]
            if rest.shape[1] > 1:
                self.model._check_no_audio_expected(rest)
        if audio_embeds is not None:
            places = self.model._is_audio_token(input_ids, inputs_embeds)
            if audio_embeds.shape[0] == int(places[:, held:].sum()):
                places[:, :held] = False  # audio in the cache was not passed again
            per_prompt = places.sum(-1).tolist()
            if sum(per_prompt) != audio_embeds.shape[0]:
                self._refuse_audio(None if input_ids is None else input_ids[:, held:], inputs_embeds, audio_embeds)
            parts = [part for part in audio_embeds.split(per_prompt) for _ in range(expand_size)]
            audio_embeds = torch.cat(parts)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if audio_embeds is not None:
            model_kwargs["audio_embeds"] = audio_embeds
            model_kwargs["audio_places"] = places.repeat_interleave(expand_size, dim=0)
            model_kwargs["clips"] = clips  # for an assistant
        return input_ids, model_kwargs

    def _warn_of_long_prompt(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None):
        """transformers' reminder looks for the number of positions in `config`, where it is not."""
        positions = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        tokens = max(given.shape[1] for given in (input_ids, inputs_embeds) if given is not None)
        if positions and tokens > positions:
            logger.warning_once(
                f"A prompt has {tokens} tokens of text and audio, but this language model was made for {positions} "
                "positions: its answer can be wrong. Use fewer or shorter clips or texts."
            )

    def _refuse_audio(self, input_ids: torch.Tensor | None, inputs_embeds: Any, audio_embeds: torch.Tensor):
        """Raises the forward's error for audio that does not match, with the numbers of the prompts as given."""
        if inputs_embeds is None:
            inputs_embeds = self.model._embed(input_ids)
        self.model.get_placeholder_mask(input_ids, inputs_embeds, audio_embeds)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_places: torch.Tensor | None = None,
        clips: tuple[torch.Tensor | None, torch.Tensor | None] | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        tokens = model_inputs["inputs_embeds"] if model_inputs["input_ids"] is None else model_inputs["input_ids"]
        # An assistant's prompt is not marked as the first iteration; only single tokens certainly contain no audio.
        begins = is_first_iteration or not kwargs.get("use_cache", True) or tokens.shape[1] > 1
        if audio_embeds is not None and begins:
            cache = kwargs.get(CACHE)
            start = 0 if cache is None else int(cache.get_seq_length())
            audio_embeds = _audio_at(slice(start, start + tokens.shape[1]), audio_places, audio_embeds)
            if audio_embeds.shape[0] > 0:
                model_inputs["audio_embeds"] = audio_embeds
        return model_inputs

    # transformers (5.16 to 5.24) has no public hook to change the processors that it builds from its settings.
    def _get_logits_processor(self, *args, **kwargs) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        token = self.config.audio_token_id
        device = kwargs.get("device")  # that of the inputs: with offloaded weights, the model's is "meta"
        if self.config.audio_token_is_embedded:
            # First, before samplers choose from the best tokens. The generation config that `from_backbones` makes
            # says the same, but not that of a model resized later, nor a caller's own.
            return LogitsProcessorList([SuppressTokensLogitsProcessor([token], device=device), *processors])
        return LogitsProcessorList(
            WithPlaceholder(processor, token) if isinstance(processor, _READ_THE_PROMPT) else processor
            for processor in processors
        )

    def _get_candidate_generator(self, generation_config: GenerationConfig, *args, **kwargs):
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"got `assistant_early_exit={generation_config.assistant_early_exit}`, which transformers supports only "
                "for text models. Remove it, or pass a smaller Falcon3-Audio as `assistant_model`."
            )
        assistant, given = kwargs.get("assistant_model"), kwargs["model_kwargs"]
        kwargs["model_kwargs"] = {name: value for name, value in given.items() if name != "clips"}
        if assistant is not None and assistant is not self and given.get("audio_embeds") is not None:
            kwargs["model_kwargs"]["audio_embeds"] = self._heard_by(assistant, given["clips"], given["audio_embeds"])
        generator = super()._get_candidate_generator(generation_config, *args, **kwargs)
        if isinstance(generator, PromptLookupCandidateGenerator) and not self.config.audio_token_is_embedded:
            # It runs the processors on logits of its own to decide which tokens can be drafted.
            token = self.config.audio_token_id
            generator.vocab_size = token + 1
            forbidden = SuppressTokensLogitsProcessor([token], device=self.device)
            generator.logits_processor = LogitsProcessorList([*generator.logits_processor, forbidden])
        return generator

    def _heard_by(self, assistant: nn.Module, clips: tuple, audio_embeds: torch.Tensor) -> torch.Tensor:
        """The audio as an assistant's own encoder and projector hear it: another model's means nothing to it."""
        if assistant.config.model_type != self.config.model_type:
            raise ValueError(
                f"`assistant_model` must hear the audio of these prompts, but a {type(assistant).__name__} takes only "
                "text. Pass a smaller Falcon3-Audio, or leave it out."
            )
        features, mask = clips
        if features is None:
            raise ValueError(
                "`assistant_model` has to encode the audio itself: pass `input_features` and `input_features_mask`, "
                "not `audio_embeds`."
            )
        device = assistant.device
        heard = assistant.get_audio_features(
            features.to(device), None if mask is None else mask.to(device), return_dict=True
        ).pooler_output
        token, count = assistant.config.audio_token_id, len(heard)
        if (token, count) != (self.config.audio_token_id, len(audio_embeds)):
            raise ValueError(
                f"`assistant_model` reads this audio as {count} tokens with the id {token}, this model as "
                f"{len(audio_embeds)} with the id {self.config.audio_token_id}. Use an assistant with the same "
                f"tokenizer and settings ({self.model._describe_options()})."
            )
        return heard


__all__ = ["Falcon3AudioGenerationMixin"]
