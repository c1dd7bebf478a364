"""Initialisation of a new projector: its two LayerNorms are set from clips of the training data.

Whisper's states are similar for all inputs: in whisper-base, the mean states of two clips have a cosine of 0.87 on
average. A randomly initialised projector preserves that, at the scale of its LayerNorm (1) and not of the language
model's embeddings (0.14 in SmolLM2-135M), so at first clips look like each other and unlike any text. Fitted, the
first norm removes the mean over clips and scales each feature to variance 1; the last one gives each feature the mean
and variance that it has over the language model's embeddings. The linear layers stay random.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from falcon3_audio import Falcon3AudioForConditionalGeneration


LEAST = 1e-5  # of a variance, as the epsilon of a LayerNorm


@torch.no_grad()
def fit_projector(model: Falcon3AudioForConditionalGeneration, clips: Iterable[dict[str, torch.Tensor]]):
    """
    Sets weight and bias of the projector's `norm_in` and `norm_out`, in place; computes in float32.

    Args:
        model: freshly composed.
        clips: batches with `input_features` `(audios, num_mel_bins, frames)` and `input_features_mask` `(audios, frames)`.

    Raises a `ValueError` if there are no clips.
    """
    projector = model.model.multi_modal_projector
    dtype = next(projector.parameters()).dtype
    with _inputs_of(projector) as inputs:
        for clip in clips:
            model.get_audio_features(clip["input_features"].to(model.dtype), clip["input_features_mask"])
    if not inputs:
        raise ValueError("No training clip to fit the projector to; set projector_start to `random`.")
    projector.float()
    states = torch.cat([states.reshape(-1, states.shape[-1]).float() for states in inputs])
    embed = model.get_input_embeddings()
    # Not its weight: Gemma's embeddings are the weight times a scale.
    embeddings = embed(torch.arange(embed.num_embeddings, device=embed.weight.device)).float()
    _standardise(projector.norm_in, states, torch.zeros(()), torch.ones(()))
    states = projector.linear_1(projector.norm_in(states))
    if projector.linear_2 is not None:
        states = projector.linear_2(nn.functional.gelu(states))
    _standardise(projector.norm_out, states, embeddings.mean(0), embeddings.var(0))
    projector.to(dtype)


def _standardise(norm: nn.LayerNorm, states: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor):
    """Gives `norm(states)`, `(tokens, width)`, that mean and variance in each feature."""
    plain = nn.functional.layer_norm(states, states.shape[-1:], eps=norm.eps)
    norm.weight.copy_((variance / plain.var(0).clamp(min=LEAST)).sqrt())
    norm.bias.copy_(mean - plain.mean(0) * norm.weight)


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        yield seen
    finally:
        handle.remove()
