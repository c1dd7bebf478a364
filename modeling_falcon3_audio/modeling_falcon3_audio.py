# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Falcon3-Audio: Whisper encoder -> average pooling -> projector -> any causal language model (arXiv 2509.07526).

The audio takes the places of placeholder tokens in the prompt; the vocabulary keeps the language model's shape. A
prompt's audio is encoded exactly once, also with beams. Encoder, pooling and projector are in modeling_falcon3_audio_encoder.py.

These files travel with every saved checkpoint and run on transformers 5.16 to 5.24.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .backbones_falcon3_audio import combine_backbones
from .configuration_falcon3_audio import Falcon3AudioConfig
from .modeling_falcon3_audio_encoder import (
    FRAMES_PER_POSITION,
    Falcon3AudioEncoder,
    Falcon3AudioMultiModalProjector,
    Falcon3AudioPreTrainedModel,
    average_pool,
)
from .releases_falcon3_audio import CACHE, takes_cache
from .shared_prefix_falcon3_audio import shared_prefix_mask


# PEFT `target_modules` per tower. Bare names such as "q_proj" match Whisper's layers as well as the language model's.
# Join two with "|" to train both. Covers decoders named like Llama's (Falcon3, Qwen, Gemma, Mistral, Phi-3, ...).
LORA_TARGET_MODULES = {
    "audio_tower": r"model\.audio_tower\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)",
    "language_model": r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj",
}


# What stays as it is in a model of 8 or 4 bits (`llm_int8_skip_modules`, `modules_to_not_convert`). Whole paths: transformers
# matches from the start, and passes over shorter names in silence.
FULL_PRECISION_MODULES = ["model.audio_tower", "model.multi_modal_projector", "lm_head"]


def _holds_a_prompt(cache: Cache | None) -> bool:
    # The length of a cache is no constant for the compiler; compiled code continues prompts, it does not begin them.
    return cache is not None and (torch.compiler.is_compiling() or int(cache.get_seq_length()) > 0)


def _audio_at(tokens: slice, places: torch.Tensor, audio_embeds: torch.Tensor) -> torch.Tensor:
    """The audio of these tokens of each prompt, where a cache holds those before them, or those behind come later."""
    if audio_embeds.shape[0] != int(places.sum()):
        return audio_embeds  # the forward says what is wrong
    rows = places.flatten().cumsum(0).view_as(places) - 1
    return audio_embeds[rows[:, tokens][places[:, tokens]].to(audio_embeds.device)]


@dataclass
class Falcon3AudioModelOutputWithPast(BaseModelOutputWithPast):
    r"""
    audio_hidden_states (`torch.Tensor` of shape `(audio tokens, hidden_size)`, *optional*):
        Projected audio of all prompts of the batch, in order.
    """

    audio_hidden_states: torch.Tensor | None = None


@dataclass
class Falcon3AudioCausalLMOutputWithPast(CausalLMOutputWithPast):
    r"""
    audio_hidden_states (`torch.Tensor` of shape `(audio tokens, hidden_size)`, *optional*):
        Projected audio of all prompts of the batch, in order.
    """

    audio_hidden_states: torch.Tensor | None = None


class Falcon3AudioModel(Falcon3AudioPreTrainedModel):
    """Encoder, projector and language model without its head."""

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__(config)
        self.audio_tower = Falcon3AudioEncoder._from_config(config.audio_config)
        self.multi_modal_projector = Falcon3AudioMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_audio_features(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Args:
            input_features (`torch.Tensor` of shape `(audios, num_mel_bins, frames)`): see [`Falcon3AudioEncoder`].
            input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*): 1 for real frames.

        Returns:
            `BaseModelOutputWithPooling`: the encoder's `last_hidden_state`, and in `pooler_output` what takes the
            places of the audio tokens, `(audio tokens of all audios, text hidden_size)`, in the order of the audios.
        """
        if input_features_mask is None:
            input_features_mask = input_features.new_ones(input_features.shape[0], input_features.shape[-1])
        if isinstance(input_features_mask, list):  # as vLLM gives it where a batch has clips of different lengths
            input_features_mask = torch.stack(input_features_mask)
        if self.config.pad_to_window:
            input_features_mask = self._whole_windows(input_features_mask)
        # A frozen encoder needs no graph. Without this, gradient checkpointing with adapters elsewhere (which makes
        # embeddings require gradients) would run its backward for nothing.
        frozen = not input_features.requires_grad and not any(p.requires_grad for p in self.audio_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            outputs = self.audio_tower(
                input_features, input_features_mask=input_features_mask, return_dict=True, **kwargs
            )
        lengths = self.audio_tower._get_feat_extract_output_lengths(input_features_mask.bool().sum(-1))
        pooled, counts = average_pool(outputs.last_hidden_state, lengths, self.config.pooling_window)
        is_token = torch.arange(pooled.shape[1], device=counts.device) < counts[:, None]
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.multi_modal_projector(pooled[is_token.to(pooled.device)]),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def count_audio_tokens(self, input_features_mask: torch.Tensor) -> torch.Tensor:
        """How many tokens each audio takes, `(audios,)`, by its mask `(audios, frames)`, 1 for real frames."""
        if self.config.pad_to_window:
            input_features_mask = self._whole_windows(input_features_mask)
        lengths = self.audio_tower._get_feat_extract_output_lengths(input_features_mask.bool().sum(-1))
        return (lengths + self.config.pooling_window - 1) // self.config.pooling_window

    def _whole_windows(self, mask: torch.Tensor) -> torch.Tensor:
        """Counts every frame of a begun window as real, as stock Whisper does."""
        window = self.config.audio_config.max_source_positions * FRAMES_PER_POSITION
        if mask.shape[-1] % window:
            raise ValueError(
                f"This model was made with pad_to_window=True and expects whole windows of {window} frames, got "
                f"{mask.shape[-1]} frames. Use the processor that was saved with it."
            )
        begun = mask.bool().unflatten(-1, (-1, window)).any(-1)
        return begun.repeat_interleave(window, dim=-1)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Where the audio goes: a bool tensor of the shape of `inputs_embeds`.

        Raises a `ValueError` with both numbers if the prompts have more or fewer audio tokens than there are features.
        """
        if audio_features.shape[-1] != inputs_embeds.shape[-1]:
            raise ValueError(
                f"The audio embeddings are {audio_features.shape[-1]} wide, the language model's {inputs_embeds.shape[-1]}; "
                "they must come from `get_audio_features` of this very model."
            )
        is_audio = self._is_audio_token(input_ids, inputs_embeds)
        tokens, features = int(is_audio.sum()), audio_features.shape[0]
        if tokens != features:
            raise ValueError(
                f"The prompts hold {tokens} audio tokens (id {self.config.audio_token_id}), but the audio gives "
                f"{features}; they must match. Prompts and audio have to come from one call of the processor saved "
                "with this model, and no audio token may be cut off."
            )
        return is_audio.unsqueeze(-1).expand_as(inputs_embeds).to(inputs_embeds.device)

    def _is_audio_token(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        token = self.config.audio_token_id
        if inputs_embeds is None or (input_ids is not None and input_ids.numel() > 0):
            return input_ids == token
        placeholder = self.get_input_embeddings()(torch.full((), token, dtype=torch.long, device=inputs_embeds.device))
        return (inputs_embeds == placeholder.to(inputs_embeds.dtype)).all(-1)

    # How many audio tokens there are is data, and so is whether they fit: this part runs outside of compiled graphs.
    # A compiled forward breaks here once per prompt; decoding steps carry no audio and do not come here.
    @torch.compiler.disable
    def _place_audio(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        input_features: torch.Tensor | None,
        input_features_mask: torch.Tensor | None,
        audio_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts the audio in the places of its tokens; returns the embeddings and the audio alone."""
        if audio_embeds is None:
            audio_embeds = self.get_audio_features(input_features, input_features_mask, return_dict=True).pooler_output
        places = self.get_placeholder_mask(input_ids, inputs_embeds, audio_embeds)
        audio_embeds = audio_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(places, audio_embeds), audio_embeds

    @torch.compiler.disable
    def _check_no_audio_expected(self, input_ids: torch.Tensor):
        if bool((input_ids == self.config.audio_token_id).any()):
            raise ValueError(
                f"The prompts hold {int((input_ids == self.config.audio_token_id).sum())} audio tokens (id "
                f"{self.config.audio_token_id}), but no audio was given. Pass the processor's `input_features` and "
                "`input_features_mask` along with `input_ids`."
            )

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        segment_ids: torch.LongTensor | None = None,
        prefix_ids: torch.LongTensor | None = None,
        kept_positions: torch.BoolTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Falcon3AudioModelOutputWithPast:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Prompts, with one audio token per audio embedding. This or `inputs_embeds`.
            input_features (`torch.Tensor` of shape `(audios, num_mel_bins, frames)`, *optional*):
                Log-mel features of all audios of the batch, in the order in which the prompts name them.
            input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*): 1 for real frames.
            audio_embeds (`torch.Tensor` of shape `(audio tokens, hidden_size)`, *optional*):
                Audio that `get_audio_features` encoded before (its `pooler_output`), instead of `input_features`.
            segment_ids, prefix_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Of rows in which questions share their audio, with `position_ids`: see [`shared_prefix_mask`].
                They take the place of `attention_mask`.
            kept_positions (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Return the last hidden states of these positions alone, as one row: `(1, kept, hidden_size)`. Training
                keeps what a loss is on, so that the head, with a vocabulary many times as wide, sees nothing else.

        Raises:
            `ValueError`: if audio and audio tokens do not match, one is there without the other, or both or neither
            of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Specify exactly one of `input_ids` and `inputs_embeds`.")
        if input_features is not None and audio_embeds is not None:
            raise ValueError("Specify at most one of `input_features` and `audio_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        if input_features is not None or audio_embeds is not None:
            inputs_embeds, audio_embeds = self._place_audio(
                input_ids, inputs_embeds, input_features, input_features_mask, audio_embeds
            )
        elif input_ids is not None and input_ids.shape[1] > 1 and not _holds_a_prompt(cache):
            self._check_no_audio_expected(input_ids)

        if segment_ids is not None:
            if prefix_ids is None or position_ids is None or cache is not None:
                raise ValueError("`segment_ids` need `prefix_ids` and `position_ids`, and no `cache`.")
            attention_mask = shared_prefix_mask(self.config.text_config, inputs_embeds, segment_ids, prefix_ids)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        last_hidden_state = outputs.last_hidden_state
        if kept_positions is not None:
            last_hidden_state = last_hidden_state[kept_positions.to(last_hidden_state.device)][None]
        return Falcon3AudioModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
            audio_hidden_states=audio_embeds,
        )


class Falcon3AudioForConditionalGeneration(Falcon3AudioPreTrainedModel, GenerationMixin):
    """Falcon3-Audio with the language model's head: answers in text to prompts of text and audio."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # The language model's plan covers its layers; the head is this class's own.
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__(config)
        self.model = Falcon3AudioModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # Not every family calls its embedding `embed_tokens`.
        embedding = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    @classmethod
    def from_backbones(
        cls,
        audio,
        text,
        audio_token_id: int | None = None,
        pooling_window: int = 2,
        projector_type: str = "mlp",
        pad_to_window: bool = False,
        dtype: str | torch.dtype = "auto",
        **kwargs,
    ) -> "Falcon3AudioForConditionalGeneration":
        r"""
        A model from a pretrained Whisper and a pretrained causal language model; only the projector is new. Model
        objects are taken over: the result shares their weights.

        Args:
            audio (`str` or `PreTrainedModel`): Whisper: Hub id, local folder or model.
            text (`str` or `PreTrainedModel`): causal language model: Hub id, local folder or model.
            audio_token_id (`int`, *optional*): Id of the placeholder token. By default the one that
                `Falcon3AudioProcessor.from_backbones(audio, text)` chooses; needed where `text` is a model without a
                tokenizer beside it.
            pooling_window, projector_type, pad_to_window: see [`Falcon3AudioConfig`].
            dtype (`torch.dtype` or `str`, defaults to `"auto"`): `"auto"` is the language model's.
            **kwargs: to `from_pretrained`: `device_map`, `attn_implementation`, `quantization_config`, ...

        Raises:
            `ValueError`: if `audio` is no Whisper, or `text` is a model that base model and head, fed with embeddings,
            do not reproduce (scaled or soft-capped logits, states instead of a key-value cache, several modalities).
        """
        backbones = combine_backbones(audio, text, audio_token_id, dtype)
        config = Falcon3AudioConfig(
            audio_config=backbones.audio_config,
            text_config=backbones.text_config,
            audio_token_id=backbones.audio_token_id,
            pooling_window=pooling_window,
            projector_type=projector_type,
            pad_to_window=pad_to_window,
        )
        model, info = cls.from_pretrained(
            None,
            config=config,
            state_dict=backbones.state_dict,
            dtype=backbones.dtype,
            output_loading_info=True,
            **kwargs,
        )
        strangers = {key for key in info["missing_keys"] if not key.startswith("model.multi_modal_projector.")}
        strangers |= set(info["unexpected_keys"]) | {str(key) for key in info["mismatched_keys"]}
        if strangers:
            raise ValueError(
                f"These backbones do not fit the architecture. Weights without a counterpart: {sorted(strangers)}"
            )
        if "disk" in getattr(model, "hf_device_map", {}).values():
            raise ValueError(
                f"These backbones do not fit into memory, and weights that are only now composed cannot be left on disk "
                f"(device_map: {model.hf_device_map}). Save the composed model on a larger machine and load that."
            )
        model.generation_config = backbones.generation_config
        # Nobody is to say the placeholder, neither the model nor a draft that is copied from the prompt.
        suppressed = model.generation_config.suppress_tokens or []
        model.generation_config.suppress_tokens = [*suppressed, config.audio_token_id]
        return model

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None, **kwargs
    ):
        """See [`Falcon3AudioModel.get_audio_features`]."""
        return self.model.get_audio_features(input_features, input_features_mask, **kwargs)

    def count_audio_tokens(self, input_features_mask: torch.Tensor) -> torch.Tensor:
        """See [`Falcon3AudioModel.count_audio_tokens`]."""
        return self.model.count_audio_tokens(input_features_mask)

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
        # 5.24 does this by itself, as `mm_encoder_outputs`, for images and videos alone.)
        audio_embeds = model_kwargs.pop("audio_embeds", None)
        features, mask = model_kwargs.pop("input_features", None), model_kwargs.pop("input_features_mask", None)
        model_kwargs.pop("audio_places", None)  # of whoever calls this model as an assistant
        inputs_embeds, cache = model_kwargs.get("inputs_embeds"), model_kwargs.get(CACHE)
        held = 0 if cache is None else int(cache.get_seq_length())
        if features is not None:
            if audio_embeds is not None:
                raise ValueError("Specify at most one of `input_features` and `audio_embeds`.")
            audio_embeds = self.get_audio_features(features, mask, return_dict=True).pooler_output
        elif audio_embeds is None and inputs_embeds is None and input_ids is not None:
            # Audio that a cache holds already need not be given again; a single token is what the model said last.
            rest = input_ids[:, held:]
            if rest.shape[1] > 1:
                self.model._check_no_audio_expected(rest)
        places = None
        if audio_embeds is not None:
            places = self.model._is_audio_token(input_ids, inputs_embeds)
            if audio_embeds.shape[0] == int(places[:, held:].sum()):
                places[:, :held] = False  # audio that the cache holds was not given again
            per_prompt = places.sum(-1).tolist()
            if sum(per_prompt) == audio_embeds.shape[0]:  # otherwise the forward says what is wrong
                parts = [part for part in audio_embeds.split(per_prompt) for _ in range(expand_size)]
                audio_embeds = torch.cat(parts)
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        if audio_embeds is not None:
            model_kwargs["audio_embeds"] = audio_embeds
            model_kwargs["audio_places"] = places.repeat_interleave(expand_size, dim=0)
        return input_ids, model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        audio_places: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        tokens = model_inputs["inputs_embeds"] if model_inputs["input_ids"] is None else model_inputs["input_ids"]
        # An assistant's prompt is not called the first iteration; only single tokens are sure to hold no audio.
        begins = is_first_iteration or not kwargs.get("use_cache", True) or tokens.shape[1] > 1
        if audio_embeds is not None and begins:
            cache = kwargs.get(CACHE)
            start = 0 if cache is None else int(cache.get_seq_length())
            audio_embeds = _audio_at(slice(start, start + tokens.shape[1]), audio_places, audio_embeds)
            if audio_embeds.shape[0] > 0:
                model_inputs["audio_embeds"] = audio_embeds
        return model_inputs

    @can_return_tuple
    @takes_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        audio_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | Falcon3AudioCausalLMOutputWithPast:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Token ids to predict, -100 where nothing is to be learned. Not shifted: the loss does that.
            logits_to_keep (`int` or `torch.Tensor`, defaults to 0): Positions to compute logits for: the last n (0:
                all), or an index.

        The other arguments and errors are those of [`Falcon3AudioModel.forward`].

        Example:

        ```python
        >>> from transformers import AutoModelForMultimodalLM, AutoProcessor

        >>> processor = AutoProcessor.from_pretrained(folder)
        >>> model = AutoModelForMultimodalLM.from_pretrained(folder)
        >>> content = [{"type": "audio", "path": "clip.wav"}, {"type": "text", "text": "What do you hear?"}]
        >>> inputs = processor.apply_chat_template(
        ...     [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        ... )
        >>> tokens = model.generate(**inputs, max_new_tokens=32)
        >>> processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```"""
        outputs = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            audio_embeds=audio_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return Falcon3AudioCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
            audio_hidden_states=outputs.audio_hidden_states,
        )


__all__ = [
    "FULL_PRECISION_MODULES",
    "LORA_TARGET_MODULES",
    "Falcon3AudioForConditionalGeneration",
    "Falcon3AudioModel",
]
