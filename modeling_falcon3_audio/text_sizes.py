"""Sizes of a language model by its config. Not every config has `head_dim`, or fewer heads for keys and values."""

from transformers import PreTrainedConfig


def head_size(text: PreTrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def cache_values_per_token(text: PreTrainedConfig) -> int:
    """Numbers that the cache keeps for each token: a key and a value for each layer and key-value head."""
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_size(text)
