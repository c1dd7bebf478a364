# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From log-mel features to audio tokens: which frames are encoded, and how many tokens the language model reads.

The processor adds the silence that `trailing_silence` and `pad_to_window` require; here its absence raises an error.
"""

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_falcon3_audio import FRAMES_PER_POSITION, Falcon3AudioConfig
from .modeling_falcon3_audio_encoder import Falcon3AudioPreTrainedModel, average_pool, read_frames


class Falcon3AudioFeatures(Falcon3AudioPreTrainedModel):
    """The audio half of [`Falcon3AudioModel`]: `audio_tower`, pooling and `multi_modal_projector`."""

    def __init__(self, config: Falcon3AudioConfig):
        # `from_pretrained` sets options one by one, on a config that was already validated.
        config.validate_options()
        config.validate_silence()
        super().__init__(config)

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
            input_features_mask (`torch.Tensor` of shape `(audios, frames)`, *optional*): 1 for real frames. They
                are followed by the silence that `config.trailing_silence` and `pad_to_window` require, masked with 0.

        Returns:
            `BaseModelOutputWithPooling`: the encoder's `last_hidden_state`, silence included, and in `pooler_output`
            the embeddings that replace the audio tokens, `(audio tokens of all audios, text hidden_size)`, in the
            order of the audios.

        Raises:
            `ValueError`: if that silence is missing, because the features come from a processor with other settings.
        """
        if isinstance(input_features_mask, list):  # vLLM passes a list if clips differ in length
            input_features_mask = torch.stack(input_features_mask)
        frames = self._read_frames(input_features, input_features_mask)
        encoded = self._count_encoded_frames(frames)
        weights = self.multi_modal_projector.layer_weights
        if weights is not None:
            kwargs["layer_weights"] = weights()
        outputs = self.audio_tower(input_features, frames=encoded.tolist(), return_dict=True, **kwargs)
        lengths = self.audio_tower._get_feat_extract_output_lengths(encoded)
        pooled = average_pool(outputs.last_hidden_state, lengths, self.config.pooling_window)
        is_token = torch.arange(pooled.shape[1]) < self._count_tokens(frames)[:, None]
        tokens = is_token.flatten().nonzero().squeeze(-1).to(pooled.device)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=self.multi_modal_projector(pooled.flatten(0, 1).index_select(0, tokens)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def count_audio_tokens(self, input_features_mask: torch.Tensor) -> torch.Tensor:
        """Number of tokens of each audio, `(audios,)`, from the mask `(audios, frames)`, 1 for real frames."""
        return self._count_tokens(input_features_mask.bool().sum(-1))

    def _count_tokens(self, frames: torch.Tensor) -> torch.Tensor:
        """Number of tokens of audios with these numbers of real frames."""
        read = self._count_encoded_frames(frames) if self.config.read_trailing_silence else frames
        lengths = self.audio_tower._get_feat_extract_output_lengths(read)
        return (lengths + self.config.pooling_window - 1) // self.config.pooling_window

    @property
    def _window_frames(self) -> int:
        return self.audio_tower.config.max_source_positions * FRAMES_PER_POSITION

    def _count_encoded_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Real frames plus the silence after them, up to the end of the last window."""
        whole_windows = -(-frames // self._window_frames) * self._window_frames
        if self.config.pad_to_window:
            return whole_windows
        return torch.minimum(frames + self.config.trailing_silence_frames, whole_windows)

    def _read_frames(self, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Real frames of each audio, on the host; checks that the silence to encode with them is present."""
        if self.config.pad_to_window and features.shape[-1] % self._window_frames:
            raise ValueError(
                f"This model was made with pad_to_window=True and expects whole windows of {self._window_frames} "
                f"frames, got {features.shape[-1]} frames. Use the processor that was saved with it."
            )

        def has_silence(frames: torch.Tensor) -> torch.Tensor:
            # Log-mel frames of silence have a clip's lowest value, -1.5 or slightly more; batch padding is zero.
            encoded = self._count_encoded_frames(frames)
            last = (encoded - 1).clamp(0, max(0, features.shape[-1] - 1)).to(features.device)
            is_there = features[torch.arange(len(last), device=last.device), :, last].any(-1).to(encoded.device)
            return (encoded == frames) | (is_there & (encoded <= features.shape[-1]))

        frames, are_complete = read_frames(features, mask, has_silence if self.config.trailing_silence else None)
        if not all(are_complete):
            raise ValueError(
                f"This model was made with trailing_silence={self.config.trailing_silence:g}: it expects "
                f"{self.config.trailing_silence_frames} frames of silence after each clip (fewer at a window's end), "
                f"which are missing after audio {are_complete.index(False)} of these features. Use the processor that "
                "was saved with the model, or one with the same trailing_silence."
            )
        return torch.tensor(frames, dtype=torch.long)

    def _describe_options(self) -> str:
        """The options, shared by model and processor, that decide how many tokens a clip has."""
        names = ("pooling_window", "pad_to_window", "trailing_silence", "read_trailing_silence")
        return ", ".join(f"{name}={getattr(self.config, name)}" for name in names)


__all__ = ["Falcon3AudioFeatures"]
