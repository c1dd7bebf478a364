# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From log-mel frames to what the language model reads: the audio tower, average pooling, the projector.

The audio tower is Whisper's encoder, made to compute only the frames that carry sound; stock Whisper computes and
attends to 30 s whatever the clip. The windows of a batch are grouped by length; layers
that act on each position alone run on all of them packed into one sequence, convolutions and attention run group by
group, so no window sees padding or another window. Layers, attention and parameter names are transformers' Whisper's.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperEncoderLayer, sinusoids
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_falcon3_audio import Falcon3AudioConfig, Falcon3AudioEncoderConfig
from .releases_falcon3_audio import CACHE


# Mel frames per encoder position: the stride of Whisper's second convolution.
FRAMES_PER_POSITION = 2


class Falcon3AudioAttention(WhisperAttention):
    """Whisper's attention, over windows of different lengths that lie packed in one sequence."""

    def forward(self, hidden_states: torch.Tensor, runs: list[tuple[int, int]] | None = None, **kwargs):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(windows, positions, width)`, or `(1, total, width)` with `runs`).
            runs (`list[tuple[int, int]]`, *optional*):
                (windows, positions) of each run of equally long windows in a packed sequence. A window attends to
                itself only. Attention weights are not returned for a packed sequence.
        """
        if runs is None:
            return super().forward(hidden_states, **kwargs)
        sizes = [windows * positions for windows, positions in runs]
        outputs = [
            super(Falcon3AudioAttention, self).forward(part.unflatten(0, run), **kwargs)[0].flatten(0, 1)
            for run, part in zip(runs, hidden_states[0].split(sizes))
        ]
        return torch.cat(outputs)[None], None


class Falcon3AudioEncoderLayer(WhisperEncoderLayer):
    def __init__(self, config: Falcon3AudioEncoderConfig):
        super().__init__(config)
        self.self_attn = Falcon3AudioAttention(
            embed_dim=config.hidden_size,
            num_heads=config.num_attention_heads,
            dropout=config.attention_dropout,
            config=config,
        )


class Falcon3AudioPositions(nn.Embedding):
    """
    Whisper's fixed sinusoidal positions. A class of its own, because transformers initialises, of models outside of
    its own tree, only modules that hold parameters themselves.
    """


class Falcon3AudioPreTrainedModel(PreTrainedModel):
    config: Falcon3AudioConfig
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Falcon3AudioEncoderLayer", "Falcon3AudioMultiModalProjector"]
    _skip_keys_device_placement = [CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading makes every parameter trainable; Whisper's sinusoidal positions are not meant to be.
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, Falcon3AudioPositions):
                module.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, Falcon3AudioPositions):
            init.copy_(module.weight, sinusoids(*module.weight.shape))


class Falcon3AudioEncoder(Falcon3AudioPreTrainedModel):
    """Whisper's encoder that computes real frames only. Without a mask on a full window it is Whisper's, bit for bit."""

    config: Falcon3AudioEncoderConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _input_embed_layer = "conv1"
    _can_record_outputs = {"hidden_states": Falcon3AudioEncoderLayer, "attentions": Falcon3AudioAttention}

    def __init__(self, config: Falcon3AudioEncoderConfig):
        super().__init__(config)
        width = config.hidden_size
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1)
        self.embed_positions = Falcon3AudioPositions(config.max_source_positions, width)
        self.embed_positions.requires_grad_(False)
        self.layers = nn.ModuleList([Falcon3AudioEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.layer_norm = nn.LayerNorm(width)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.conv1

    def set_input_embeddings(self, value: nn.Module):
        self.conv1 = value

    def _get_feat_extract_output_lengths(self, input_lengths: torch.Tensor) -> torch.Tensor:
        """Encoder positions of `input_lengths` real mel frames."""
        return (input_lengths + FRAMES_PER_POSITION - 1) // FRAMES_PER_POSITION

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_features: torch.Tensor,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutput:
        r"""
        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_mel_bins, frames)`):
                Log-mel frames, 100 per second. Audio longer than a window (30 s) lies window after window on the time
                axis. After the last real frame there should be the frames of a following silence, up to the second
                (the convolutions look that far); the processor provides them.
            input_features_mask (`torch.Tensor` of shape `(batch_size, frames)`, *optional*):
                1 for real frames, then 0 for padding. Without it every frame is real.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch_size, positions, hidden_size)`, 50 positions
            per second, zero behind each audio's own end. `hidden_states` are `(windows, positions, hidden_size)` if
            all windows have one length, otherwise packed as `(1, total positions, hidden_size)`.

        Raises:
            `ValueError`: for features of another number of mel bands, and for a mask with padding before real frames.
        """
        if input_features.dim() != 3 or input_features.shape[1] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` must be (batch, {self.config.num_mel_bins} mel bands, frames) for this encoder, got "
                f"{tuple(input_features.shape)}. Use the processor that was saved with the model."
            )
        frames = _count_frames(input_features, input_features_mask)
        by_length = self._windows_by_length(frames)
        if not by_length:
            return BaseModelOutput(last_hidden_state=input_features.new_zeros(len(frames), 0, self.config.hidden_size))
        packed = [self._embed(input_features, windows, length) for length, windows in by_length.items()]
        if len(packed) == 1:
            hidden_states, runs = packed[0], None
        else:
            hidden_states = torch.cat([part.flatten(0, 1) for part in packed])[None]
            runs = [(part.shape[0], part.shape[1]) for part in packed]

        hidden_states = nn.functional.dropout(hidden_states, p=self.config.dropout, training=self.training)
        for layer in self.layers:
            if self.training and self.config.layerdrop > 0.0 and torch.rand([]) < self.config.layerdrop:
                continue
            hidden_states = layer(hidden_states, None, runs=runs, **kwargs)
        hidden_states = self.layer_norm(hidden_states)
        return BaseModelOutput(last_hidden_state=self._unpack(hidden_states, by_length, frames))

    def _windows_by_length(self, frames: list[int]) -> dict[int, list[tuple[int, int]]]:
        """All windows of the batch as {positions: [(audio, first position), ...]}."""
        limit = self.config.max_source_positions
        by_length: dict[int, list[tuple[int, int]]] = {}
        for audio, count in enumerate(frames):
            positions = -(-count // FRAMES_PER_POSITION)
            for start in range(0, positions, limit):
                by_length.setdefault(min(limit, positions - start), []).append((audio, start))
        return by_length

    def _embed(self, features: torch.Tensor, windows: list[tuple[int, int]], length: int) -> torch.Tensor:
        """Convolutions and positions of equally long windows: `(windows, length, hidden_size)`."""
        # One frame of right context, except at the end of a full window, where Whisper itself sees zero padding.
        frames = min(length * FRAMES_PER_POSITION + 1, self.config.max_source_positions * FRAMES_PER_POSITION)
        parts = []
        for audio, start in windows:
            part = features[audio, :, start * FRAMES_PER_POSITION :][:, :frames]
            parts.append(nn.functional.pad(part, (0, frames - part.shape[-1])))
        hidden_states = torch.stack(parts).to(self.conv1.weight.dtype)
        hidden_states = nn.functional.gelu(self.conv1(hidden_states))
        hidden_states = nn.functional.gelu(self.conv2(hidden_states))[..., :length].transpose(1, 2)
        return hidden_states + self.embed_positions(torch.arange(length, device=hidden_states.device))

    def _unpack(
        self, hidden_states: torch.Tensor, by_length: dict[int, list[tuple[int, int]]], frames: list[int]
    ) -> torch.Tensor:
        """From packed windows to `(batch, positions, hidden_size)`, in the order of the batch."""
        positions = -(-max(frames) // FRAMES_PER_POSITION)
        index = [
            torch.arange(length) + audio * positions + start
            for length, windows in by_length.items()
            for audio, start in windows
        ]
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        output = flat.new_zeros(len(frames) * positions, flat.shape[-1])
        output = output.index_copy(0, torch.cat(index).to(flat.device), flat)
        return output.unflatten(0, (len(frames), positions))


def _count_frames(input_features: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """Real frames of each audio, as integers on the host: they decide shapes."""
    if mask is None:
        return [input_features.shape[-1]] * input_features.shape[0]
    if mask.shape != (input_features.shape[0], input_features.shape[-1]):
        raise ValueError(
            f"`input_features_mask` must be (batch, frames) like `input_features`, got {tuple(mask.shape)} for "
            f"features of shape {tuple(input_features.shape)}."
        )
    real = mask.bool()
    last = (
        (real * torch.arange(1, mask.shape[-1] + 1, device=mask.device)).amax(-1) if mask.shape[-1] else real.sum(-1)
    )
    counts, ends = torch.stack((real.sum(-1), last)).tolist()
    if counts != ends:
        raise ValueError(
            "`input_features_mask` must be 1 for each audio's first frames and 0 after them (padding right)."
        )
    return counts


class Falcon3AudioMultiModalProjector(nn.Module):
    """LayerNorm, Linear, GELU, Linear, LayerNorm (`"mlp"`), or one Linear between the LayerNorms (`"linear"`)."""

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__()
        audio_width, text_width = config.audio_config.hidden_size, config.text_config.hidden_size
        self.norm_in = nn.LayerNorm(audio_width)
        self.linear_1 = nn.Linear(audio_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width) if config.projector_type == "mlp" else None
        self.norm_out = nn.LayerNorm(text_width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., audio width)` to `(..., text width)`."""
        hidden_states = self.linear_1(self.norm_in(hidden_states))
        if self.linear_2 is not None:
            hidden_states = self.linear_2(nn.functional.gelu(hidden_states))
        return self.norm_out(hidden_states)


def average_pool(hidden_states: torch.Tensor, lengths: torch.Tensor, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Means over `window` neighbouring positions; the last mean of an audio is over the positions that are left.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, positions, width)`): zero behind each audio's end.
        lengths (`torch.Tensor` of shape `(batch,)`): real positions of each audio.
        window (`int`): positions per mean.

    Returns:
        The means, `(batch, ceil(positions / window), width)`, and how many of them are real, `(batch,)`.
    """
    padding = -hidden_states.shape[1] % window
    grouped = nn.functional.pad(hidden_states, (0, 0, 0, padding)).unflatten(1, (-1, window))
    starts = torch.arange(grouped.shape[1], device=lengths.device) * window
    counts = (lengths[:, None] - starts).clamp(1, window).to(hidden_states.device)
    means = grouped.sum(2, dtype=torch.float32) / counts[..., None]
    return means.to(hidden_states.dtype), (lengths + window - 1) // window


__all__ = ["Falcon3AudioEncoder", "Falcon3AudioMultiModalProjector", "Falcon3AudioPreTrainedModel", "average_pool"]
