# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Rows in which several questions share one audio prefix, and their attention mask.

A row consists of segments: a prefix (the audio and everything before it), followed by branches, each a question with
its answer, that attend to the prefix and themselves; then possibly another prefix with its own branches. Positions
restart after the prefix, so that every token has the hidden state that it would have in a row with only its own
question. The collator builds such rows; the model gets the mask here. Travels with every saved checkpoint.
"""

import torch
from transformers import PreTrainedConfig
from transformers.masking_utils import create_causal_mask

from .releases_falcon3_audio import CACHE


MASKED_ATTENTION = ("sdpa", "eager", "flex_attention")


def check_can_share_rows(config: PreTrainedConfig):
    """
    Raises a `ValueError` if the language model with this config cannot be given rows with shared prefixes: if its
    attention takes no mask (flash attention), if its layers attend in different ways or without a mask, or if it
    ignores positions (ALiBi).
    """
    if config._attn_implementation not in MASKED_ATTENTION:
        raise ValueError(
            f"Rows with shared prefixes need attention with a mask: set attn_implementation to one of "
            f"{', '.join(MASKED_ATTENTION)}, got {config._attn_implementation!r}."
        )
    kinds = set(_layer_types(config) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"Rows with shared prefixes need a language model with full attention in every layer, got "
            f"{sorted(kinds)}. Set questions_per_row: 1 to train it."
        )
    if config.model_type in ("bloom", "mpt") or getattr(config, "alibi", False):
        raise ValueError(
            f"Rows with shared prefixes need a language model that reads position ids, but {config.model_type} uses "
            "ALiBi. Set questions_per_row: 1 to train it."
        )


def _layer_types(config: PreTrainedConfig) -> list[str] | None:
    return getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)  # GPT-Neo's name


def shared_prefix_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    segment_ids: torch.Tensor,
    prefix_ids: torch.Tensor,
    position_ids: torch.Tensor,
):
    """
    The language model's attention mask for rows with shared prefixes.

    Args:
        config: of the language model.
        inputs_embeds (`torch.Tensor` of shape `(rows, tokens, hidden_size)`)
        segment_ids (`torch.LongTensor` of shape `(rows, tokens)`): the segment of each token, 0 for padding.
        prefix_ids (`torch.LongTensor` of shape `(rows, tokens)`): the segment that each token's segment continues;
            its own for a prefix.
        position_ids (`torch.LongTensor` of shape `(rows, tokens)`): they restart after each prefix. A sliding window
            that all layers share (Mistral, Phi-3) is measured in them.

    Returns:
        The mask that the attention implementation takes: a 4-D tensor for sdpa and eager, a `BlockMask` for flex
        attention.

    Raises the errors of `check_can_share_rows`.
    """
    check_can_share_rows(config)
    # Families that do not list their layers have one window for all of them, or none.
    window = None if _layer_types(config) else getattr(config, "sliding_window", None)

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = segment_ids[row, key]
        joined = (seen == segment_ids[row, query]) | (seen == prefix_ids[row, query])
        if window is None:
            return joined
        return joined & (position_ids[row, query] - position_ids[row, key] < window)

    return create_causal_mask(config, inputs_embeds, attention_mask=None, and_mask_function=sees, **{CACHE: None})


__all__ = ["check_can_share_rows", "shared_prefix_mask"]
