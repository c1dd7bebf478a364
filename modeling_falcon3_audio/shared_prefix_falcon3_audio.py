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


def shared_prefix_mask(
    config: PreTrainedConfig, inputs_embeds: torch.Tensor, segment_ids: torch.Tensor, prefix_ids: torch.Tensor
):
    """
    The language model's attention mask for rows with shared prefixes.

    Args:
        config: of the language model.
        inputs_embeds (`torch.Tensor` of shape `(rows, tokens, hidden_size)`)
        segment_ids (`torch.LongTensor` of shape `(rows, tokens)`): the segment of each token, 0 for padding.
        prefix_ids (`torch.LongTensor` of shape `(rows, tokens)`): the segment that each token's segment continues;
            its own for a prefix.

    Returns:
        The mask that the attention implementation takes: a 4-D tensor for sdpa and eager, a `BlockMask` for flex
        attention.

    Raises:
        `ValueError`: if attention takes no mask (flash attention), or the language model does not attend to all tokens
        in every layer.
    """
    if config._attn_implementation not in MASKED_ATTENTION:
        raise ValueError(
            f"Rows with shared prefixes need attention with a mask: set attn_implementation to one of "
            f"{', '.join(MASKED_ATTENTION)}, got {config._attn_implementation!r}."
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        raise ValueError(
            f"Rows with shared prefixes need a language model with full attention in every layer, got {sorted(kinds)}. "
            "Train it with one question per row."
        )

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        seen = segment_ids[row, key]
        return (seen == segment_ids[row, query]) | (seen == prefix_ids[row, query])

    return create_causal_mask(config, inputs_embeds, attention_mask=None, and_mask_function=sees, **{CACHE: None})


__all__ = ["shared_prefix_mask"]
