# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""From log-mel frames to the language model's inputs: the audio tower, average pooling, the projector.

The audio tower is Whisper's encoder, changed to compute only real frames; stock Whisper always computes and attends to
30 s. Layers that act on each position separately run on all windows of a batch packed into one sequence; in
convolutions and attention no window sees padding or another window (packed_windows_falcon3_audio.py). Layers,
attention and parameter names are those of transformers' Whisper.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.whisper.modeling_whisper import (
    WhisperAttention,
    WhisperEncoderLayer,
    eager_attention_forward,
    sinusoids,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_falcon3_audio import FRAMES_PER_POSITION, Falcon3AudioConfig, Falcon3AudioEncoderConfig
from .packed_windows_falcon3_audio import PackedWindows
from .releases_falcon3_audio import CACHE


class Falcon3AudioAttention(WhisperAttention):
    """Whisper's attention over windows of different lengths that are packed into one sequence."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        windows: PackedWindows | None = None,
        masks: list[torch.Tensor | None] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(windows, positions, width)`, or `(1, total, width)` if packed).
            windows (`PackedWindows`, *optional*), masks (`list[torch.Tensor | None]`, *optional*):
                How a packed sequence is split, and its `PackedWindows.masks`. Projections run on the whole sequence,
                attention on groups of windows; attention weights are not returned.
        """
        if windows is None:
            return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        # Whisper scales queries, not scores.
        queries = self.q_proj(hidden_states) * self.scaling
        states = torch.cat((queries, self.k_proj(hidden_states), self.v_proj(hidden_states)), dim=-1)[0]
        states = states.unflatten(-1, (3, self.num_heads, self.head_dim))
        outputs = []
        for part, mask in zip(windows.split(states), masks or ()):
            # (windows, positions, q k v, heads, head size) to three of (windows, heads, positions, head size)
            qkv = part.permute(2, 0, 3, 1, 4).unbind()
            mask = None if mask is None else mask.to(part.device, part.dtype)
            outputs.append(attend(self, *qkv, mask, dropout=dropout, scaling=1.0, **kwargs)[0])
        hidden_states = windows.join(outputs)
        return self.out_proj(hidden_states.flatten(1))[None], None


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
    Whisper's fixed sinusoidal positions. A separate class, because in models outside its own tree transformers
    initialises only modules that hold parameters themselves.
    """


class Falcon3AudioPreTrainedModel(PreTrainedModel):
    config: Falcon3AudioConfig
    base_model_prefix = "model"
    input_modalities: tuple[str, ...] = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: list[str] = ["Falcon3AudioEncoderLayer", "Falcon3AudioMultiModalProjector"]
    _skip_keys_device_placement = [CACHE]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Decoding steps compile without a graph break, and so does the encoder on windows without a mask. Prompts do not:
    # the number of audio tokens and the clip lengths are data that is checked and decides shapes.
    _can_compile_fullgraph = False

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        # Loading makes every parameter trainable; Whisper's sinusoidal positions must stay frozen.
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, Falcon3AudioPositions):
                module.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, Falcon3AudioPositions):
            init.copy_(module.weight, sinusoids(*module.weight.shape))
        if isinstance(module, Falcon3AudioLayerWeights):
            init.zeros_(module.weight)


class Falcon3AudioEncoder(Falcon3AudioPreTrainedModel):
    """Whisper's encoder, computing only real frames. On a full window without a mask it equals Whisper bit for bit."""

    config: Falcon3AudioEncoderConfig
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _input_embed_layer = "conv1"
    _can_record_outputs = {"hidden_states": Falcon3AudioEncoderLayer, "attentions": Falcon3AudioAttention}

    def __init__(self, config: Falcon3AudioEncoderConfig):
        super().__init__(config)
        width = config.hidden_size
        self.dropout, self.layerdrop = config.dropout, config.layerdrop
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
        frames: list[int] | None = None,
        layer_weights: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutput:
        r"""
        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_mel_bins, frames)`):
                Log-mel frames, 100 per second. Windows of audio longer than 30 s follow one another on the time axis.
                Up to two frames of silence should follow the last real frame (the convolutions look that far); the
                processor provides them.
            input_features_mask (`torch.Tensor` of shape `(batch_size, frames)`, *optional*):
                1 for real frames, then 0 for padding. Without it every frame is real.
            frames (`list[int]`, *optional*):
                Number of real frames of each audio, instead of the mask. Shapes depend on it, so a mask on a device
                has to be waited for.
            layer_weights (`torch.Tensor` of shape `(num_hidden_layers,)`, *optional*):
                Weights, which sum to 1, of the layers' outputs in the input of the last LayerNorm. Without them the
                input is the last layer's output.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch_size, positions, hidden_size)`, 50 positions
            per second, zero after each audio's end. `hidden_states` are `(windows, positions, hidden_size)` if
            all windows have the same length, otherwise packed as `(1, total positions, hidden_size)`, the shortest
            window first; attention weights are returned only in the first case.

        Raises:
            `ValueError`: if the number of mel bands does not match, or the mask has padding before real frames.
        """
        if input_features.dim() != 3 or input_features.shape[1] != self.config.num_mel_bins:
            raise ValueError(
                f"`input_features` must be (batch, {self.config.num_mel_bins} mel bands, frames) for this encoder, "
                f"got {tuple(input_features.shape)}. Use the processor that was saved with the model."
            )
        if frames is None:
            frames, _ = read_frames(input_features, input_features_mask)
        positions = [-(-count // FRAMES_PER_POSITION) for count in frames]
        if not any(positions):
            return BaseModelOutput(last_hidden_state=input_features.new_zeros(len(frames), 0, self.config.hidden_size))
        windows = PackedWindows(positions, self.config.max_source_positions, input_features.device)
        # A frozen encoder needs no graph. Without this, gradient checkpointing with adapters elsewhere (which makes
        # embeddings require gradients) would run its backward for nothing.
        learns = input_features.requires_grad or any(weight.requires_grad for weight in self.parameters())
        outputs = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            hidden_states = self._embed(input_features, windows)
            hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
            arguments = {"attention_mask": None} | windows.attention_arguments(self.config, hidden_states)
            for layer in self.layers:
                dropped = self.training and self.layerdrop > 0.0 and torch.rand([]) < self.layerdrop
                if not dropped:
                    hidden_states = layer(hidden_states, **arguments, **kwargs)
                if layer_weights is not None:
                    outputs.append(hidden_states)
        if layer_weights is not None:
            hidden_states = _weighted_mean(outputs, layer_weights)
        hidden_states = self.layer_norm(hidden_states)
        flat = hidden_states.flatten(0, 1)
        if windows.places is not None:
            empty = flat.new_zeros(len(frames) * max(positions), flat.shape[-1])
            flat = empty.index_copy(0, windows.places.to(flat.device), flat)
        return BaseModelOutput(last_hidden_state=flat.unflatten(0, (len(frames), -1)))

    def _embed(self, features: torch.Tensor, windows: PackedWindows) -> torch.Tensor:
        """
        Convolutions and positions: `(windows, positions, hidden_size)` if all windows have the same length, otherwise
        packed as `(1, total positions, hidden_size)`.
        """
        full = self.config.max_source_positions * FRAMES_PER_POSITION
        # A window is read with one frame of right context, except at the end of a full one, where Whisper itself sees
        # zero padding. Anything after that in a padded row is out of reach for the window's positions.
        longest = min(windows.groups[-1][1] * FRAMES_PER_POSITION + 1, full)
        width = longest if windows.per_audio == 1 else windows.per_audio * full
        features = nn.functional.pad(features, (0, width - features.shape[-1])).to(self.conv1.weight.dtype)
        if windows.per_audio > 1:
            features = features.unflatten(-1, (windows.per_audio, full)).transpose(1, 2).flatten(0, 1)
        positions = self.embed_positions(torch.arange(windows.groups[-1][1], device=features.device))
        parts = []
        for rows, (_, length) in zip(windows.rows, windows.groups):
            part = features.index_select(0, rows)[..., : length * FRAMES_PER_POSITION + 1]
            part = nn.functional.gelu(self.conv1(part))
            part = nn.functional.gelu(self.conv2(part))[..., :length].transpose(1, 2)
            parts.append(part + positions[:length])
        return parts[0] if windows.is_even else windows.join(parts)[None]


def _weighted_mean(outputs: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Computed in float32 and rounded once; the layers may be on different devices."""
    last = outputs[-1]
    mean = torch.zeros_like(last, dtype=torch.float32)
    for output, weight in zip(outputs, weights):
        mean = mean + weight.to(last.device) * output.to(last.device, torch.float32)
    return mean.to(last.dtype)


def read_frames(
    input_features: torch.Tensor,
    mask: torch.Tensor | None,
    check: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[list[int], list[bool]]:
    """
    Number of real frames of each audio, as integers on the host, since they decide shapes. Waits for the device once
    if there is a mask.

    `check` gets the same numbers on the device, `(audios,)`, and returns a bool for each, transferred with them.

    Raises a `ValueError` if the mask has another shape, or padding before real frames.
    """
    if mask is None and check is None:
        return [input_features.shape[-1]] * input_features.shape[0], []
    if mask is None:
        mask = torch.ones(input_features.shape[0], input_features.shape[-1], device=input_features.device)
    if mask.shape != (input_features.shape[0], input_features.shape[-1]):
        raise ValueError(
            f"`input_features_mask` must be (batch, frames) like `input_features`, got {tuple(mask.shape)} for "
            f"features of shape {tuple(input_features.shape)}."
        )
    real = mask.bool()
    numbered = real * torch.arange(1, mask.shape[-1] + 1, device=mask.device)
    read = [real.sum(-1), numbered.amax(-1) if mask.shape[-1] else real.sum(-1)]
    if check is not None:
        read.append(check(read[0]).to(read[0]))
    counts, ends, *checked = torch.stack(read).tolist()
    if counts != ends:
        raise ValueError(
            "`input_features_mask` must be 1 for each audio's first frames and 0 after them (padding right)."
        )
    return counts, [bool(value) for values in checked for value in values]


class Falcon3AudioLayerWeights(nn.Module):
    """Weights of the encoder's layers in a mean, equal at first. A module, so that hooks can move its parameter."""

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.audio_config.num_hidden_layers))

    def forward(self) -> torch.Tensor:
        """`(num_hidden_layers,)`, float32, sums to 1."""
        return self.weight.softmax(0, dtype=torch.float32)


class Falcon3AudioMultiModalProjector(nn.Module):
    """
    LayerNorm, Linear, GELU, Linear, LayerNorm (`"mlp"`), or one Linear between the LayerNorms (`"linear"`). With
    `use_weighted_layer_sum` it also holds the weights of the encoder's layers.
    """

    def __init__(self, config: Falcon3AudioConfig):
        super().__init__()
        audio_width, text_width = config.audio_config.hidden_size, config.text_config.hidden_size
        self.norm_in = nn.LayerNorm(audio_width)
        self.linear_1 = nn.Linear(audio_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width) if config.projector_type == "mlp" else None
        self.norm_out = nn.LayerNorm(text_width)
        self.layer_weights = Falcon3AudioLayerWeights(config) if config.use_weighted_layer_sum else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., audio width)` to `(..., text width)`."""
        hidden_states = self.linear_1(self.norm_in(hidden_states))
        if self.linear_2 is not None:
            hidden_states = self.linear_2(nn.functional.gelu(hidden_states))
        return self.norm_out(hidden_states)


def average_pool(hidden_states: torch.Tensor, lengths: torch.Tensor, window: int) -> torch.Tensor:
    """
    Means over `window` neighbouring positions; the last mean of an audio is over the remaining positions.

    Args:
        hidden_states (`torch.Tensor` of shape `(batch, positions, width)`): zero after each audio's end.
        lengths (`torch.Tensor` of shape `(batch,)`): real positions of each audio.
        window (`int`): positions per mean.

    Returns:
        The means, `(batch, ceil(positions / window), width)`; of each audio, the first `ceil(length / window)`
        are real.
    """
    padding = -hidden_states.shape[1] % window
    grouped = nn.functional.pad(hidden_states, (0, 0, 0, padding)).unflatten(1, (-1, window))
    starts = torch.arange(grouped.shape[1], device=lengths.device) * window
    counts = (lengths[:, None] - starts).clamp(1, window).to(hidden_states.device)
    means = grouped.sum(2, dtype=torch.float32) / counts[..., None]
    return means.to(hidden_states.dtype)


__all__ = ["Falcon3AudioEncoder", "Falcon3AudioMultiModalProjector", "Falcon3AudioPreTrainedModel", "average_pool"]
