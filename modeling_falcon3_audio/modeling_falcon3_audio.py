# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Falcon3-Audio: Whisper encoder -> average pooling -> projector -> any causal language model (arXiv 2509.07526).

The audio replaces placeholder tokens in the prompt; embedding and head keep the language model's shape, even if the
placeholder is a token beyond its vocabulary. Encoder, pooling and projector are in modeling_falcon3_audio_encoder.py,
the path from clips to tokens in audio_features_falcon3_audio.py, and what `generate` needs in
generation_falcon3_audio.py. These files travel with every saved checkpoint and run on transformers 5.16 to 5.24.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .audio_features_falcon3_audio import Falcon3AudioFeatures
from .backbones_falcon3_audio import combine_backbones, load_composed
from .configuration_falcon3_audio import Falcon3AudioConfig
from .generation_falcon3_audio import (
    Falcon3AudioGenerationMixin,
    check_positions,
    holds_a_prompt,
    learned_positions,
)
from .modeling_falcon3_audio_encoder import (
    Falcon3AudioEncoder,
    Falcon3AudioMultiModalProjector,
    Falcon3AudioPreTrainedModel,
)
from .releases_falcon3_audio import CACHE, takes_cache
from .shared_prefix_falcon3_audio import shared_prefix_mask


# PEFT `target_modules` per tower. Bare names such as "q_proj" match Whisper's layers as well as the language model's.
# Join two with "|" to train both. Covers decoders named like Llama's (Falcon3, Qwen, Gemma, Mistral, Phi-3, Falcon-H1).
LORA_TARGET_MODULES = {
    "audio_tower": r"model\.audio_tower\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)",
    "language_model": r"model\.language_model\.layers\.\d+\.(self_attn|mlp|feed_forward)\.\w+_proj",
}

# What is not quantised in an 8-bit or 4-bit model (`llm_int8_skip_modules`, `modules_to_not_convert`). Full paths:
# transformers matches from the start and silently ignores shorter names.
FULL_PRECISION_MODULES = ["model.audio_tower", "model.multi_modal_projector", "lm_head"]


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


class Falcon3AudioModel(Falcon3AudioFeatures):
    """Encoder, projector and language model without its head."""

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__(config)
        self.audio_tower = Falcon3AudioEncoder._from_config(config.audio_config)
        self.multi_modal_projector = Falcon3AudioMultiModalProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self._learned_positions = learned_positions(self.language_model)
        if config.use_weighted_layer_sum:
            # Computed before the rest of the projector, so FSDP gathers it separately; other models must not list it.
            self._no_split_modules = [*Falcon3AudioPreTrainedModel._no_split_modules, "Falcon3AudioLayerWeights"]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, audio_features: torch.Tensor
    ) -> torch.Tensor:
        """
        Marks where the audio goes: a bool tensor of the shape of `inputs_embeds`.

        Raises a `ValueError` with both numbers if the prompts have more or fewer audio tokens than there are features.
        """
        if audio_features.shape[-1] != inputs_embeds.shape[-1]:
            raise ValueError(
                f"The audio embeddings are {audio_features.shape[-1]} wide, the language model's "
                f"{inputs_embeds.shape[-1]}; they must come from `get_audio_features` of this model."
            )
        is_audio = self._is_audio_token(input_ids, inputs_embeds)
        tokens, features = int(is_audio.sum()), audio_features.shape[0]
        if tokens != features:
            raise ValueError(
                f"The prompts hold {tokens} audio tokens (id {self.config.audio_token_id}), but the audio gives "
                f"{features}; they must match. Prompts and audio must come from one call of the processor saved with "
                f"this model (made with {self._describe_options()}), and audio tokens must not be truncated."
            )
        return is_audio.unsqueeze(-1).expand_as(inputs_embeds).to(inputs_embeds.device)

    def _is_audio_token(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        token = self.config.audio_token_id
        if inputs_embeds is None or (input_ids is not None and input_ids.numel() > 0):
            return input_ids == token
        if not self.config.audio_token_is_embedded:
            raise ValueError(
                f"The audio token (id {token}) has no embedding, so `inputs_embeds` cannot show where the audio goes. "
                "Pass `input_ids` instead, with `audio_embeds` for audio that is already encoded; or insert the "
                "output of `get_audio_features` into `inputs_embeds` yourself, and pass only that."
            )
        placeholder = self.get_input_embeddings()(torch.full((), token, dtype=torch.long, device=inputs_embeds.device))
        return (inputs_embeds == placeholder.to(inputs_embeds.dtype)).all(-1)

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        if not self.config.audio_token_is_embedded:  # any row will do where the audio goes
            input_ids = input_ids.masked_fill(input_ids == self.config.audio_token_id, 0)
        return self.get_input_embeddings()(input_ids)

    # The number of audio tokens and whether they match depend on data: this part runs outside of compiled graphs.
    # A compiled forward breaks here once per prompt; decoding steps carry no audio and do not get here.
    @torch.compiler.disable
    def _place_audio(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        input_features: torch.Tensor | None,
        input_features_mask: torch.Tensor | None,
        audio_embeds: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replaces audio tokens with the audio; returns the embeddings of the prompts and those of the audio."""
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
                Prompts, with one audio token per audio embedding. Either this or `inputs_embeds`.
            input_features (`torch.Tensor` of shape `(audios, num_mel_bins, frames)`, *optional*):
                Log-mel features of all audios of the batch, in the order in which they appear in the prompts.
            input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*): 1 for real frames.
            audio_embeds (`torch.Tensor` of shape `(audio tokens, hidden_size)`, *optional*):
                Audio that `get_audio_features` encoded earlier (its `pooler_output`), instead of `input_features`.
            segment_ids, prefix_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                With `position_ids`, instead of `attention_mask`, if questions share audio: see [`shared_prefix_mask`].
            kept_positions (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Return only these positions, as one row: `(1, kept, hidden_size)`. Training keeps positions with a
                loss, so that the head, which is many times as wide, sees nothing else.

        Raises:
            `ValueError`: if audio and audio tokens do not match, if only one of the two is given, or if both or
                neither of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Specify exactly one of `input_ids` and `inputs_embeds`.")
        if input_features is not None and audio_embeds is not None:
            raise ValueError("Specify at most one of `input_features` and `audio_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self._embed(input_ids)

        if input_features is not None or audio_embeds is not None:
            inputs_embeds, audio_embeds = self._place_audio(
                input_ids, inputs_embeds, input_features, input_features_mask, audio_embeds
            )
        elif input_ids is not None and input_ids.shape[1] > 1 and not holds_a_prompt(cache):
            self._check_no_audio_expected(input_ids)

        if segment_ids is not None:
            if prefix_ids is None or position_ids is None or cache is not None:
                raise ValueError("`segment_ids` need `prefix_ids` and `position_ids`, and no `cache`.")
            rows = (segment_ids, prefix_ids, position_ids)
            attention_mask = shared_prefix_mask(self.config.text_config, inputs_embeds, *rows)
        elif self._learned_positions is not None:
            check_positions(self._learned_positions, inputs_embeds, position_ids, cache)
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


class Falcon3AudioForConditionalGeneration(Falcon3AudioPreTrainedModel, Falcon3AudioGenerationMixin):
    """Falcon3-Audio with the language model's head: generates text from prompts of text and audio."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    # The language model's plan covers its layers; the head belongs to this class.
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
        use_weighted_layer_sum: bool = False,
        pad_to_window: bool = False,
        trailing_silence: float = 0.0,
        read_trailing_silence: bool = True,
        dtype: str | torch.dtype = "auto",
        audio_token: str | None = None,
        **kwargs,
    ) -> "Falcon3AudioForConditionalGeneration":
        r"""
        Builds a model from a pretrained Whisper and a pretrained causal language model; only the projector is new.
        Model objects are not copied: the result shares their weights.

        Args:
            audio (`str` or `PreTrainedModel`): Whisper: Hub id, local folder or model.
            text (`str` or `PreTrainedModel`): causal language model: Hub id, local folder or model.
            audio_token_id (`int`, *optional*): Id of the placeholder token. Defaults to the one that
                `Falcon3AudioProcessor.from_backbones(audio, text, audio_token)` chooses; required if `text` is a model
                without a tokenizer. Weights keep their shape even if the id is beyond the vocabulary.
            audio_token (`str`, *optional*): The placeholder token itself, as for the processor.
            pooling_window, projector_type, use_weighted_layer_sum, pad_to_window: see [`Falcon3AudioConfig`].
            trailing_silence, read_trailing_silence: see [`Falcon3AudioConfig`].
            dtype (`torch.dtype` or `str`, defaults to `"auto"`): `"auto"` uses the language model's.
            **kwargs: passed to `from_pretrained`: `device_map`, `attn_implementation`, `quantization_config`, ...

        Raises:
            `ValueError`: if `audio` is not a Whisper; if either is quantised; if `text` has no end token, or its base
                model and head, run on embeddings, do not reproduce it (scaled or soft-capped logits, states for a
                cache, several modalities); and the processor's errors about the placeholder.
        """
        backbones = combine_backbones(audio, text, audio_token, audio_token_id, dtype)
        config = Falcon3AudioConfig(
            audio_config=backbones.audio_config,
            text_config=backbones.text_config,
            audio_token_id=backbones.audio_token_id,
            pooling_window=pooling_window,
            projector_type=projector_type,
            use_weighted_layer_sum=use_weighted_layer_sum,
            pad_to_window=pad_to_window,
            trailing_silence=trailing_silence,
            read_trailing_silence=read_trailing_silence,
        )
        model = load_composed(cls, config, backbones, **kwargs)
        model.generation_config = backbones.generation_config
        if config.audio_token_is_embedded:
            # The placeholder must never be generated, neither by the model nor by a draft copied from the prompt.
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
                Token ids to predict, -100 for positions without a loss. Not shifted: the loss does that.
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
            if "kept_positions" in kwargs and "shift_labels" not in kwargs:
                raise ValueError(
                    "`labels` cover all positions: pass `shift_labels` with `kept_positions`, or neither."
                )
            if not self.config.audio_token_is_embedded:  # labels that are the prompt's own ids
                labels = labels.masked_fill(labels == self.config.audio_token_id, -100)
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
