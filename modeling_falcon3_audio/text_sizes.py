"""Sizes of a language model: by its config, and in 4 bits."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig
from transformers.cache_utils import DynamicCache

from .releases_falcon3_audio import CACHE


# Bits per weight in NF4 with double quantisation: 4, an 8-bit scale per 64 weights, and 32 bits per 256 such scales.
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)


def head_size(text: PreTrainedConfig) -> int:
    """Width of one attention head. Not every config has `head_dim`."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def cache_values_per_token(text: PreTrainedConfig) -> int:
    """
    Numbers that the cache keeps for each token: keys and values of all layers that have them.

    Counted on one token in a model without weights, since families differ: one head for all (Falcon's first models),
    layers without keys (Qwen3-Next), keys wider than values (DeepSeek-V2). Where that model cannot run, since its code
    reads values (dynamic RoPE), each layer counts a key and a value for each key-value head.
    """
    with torch.device("meta"):
        # Experts run there only in bfloat16.
        model = AutoModel.from_config(text, dtype=torch.bfloat16, attn_implementation="eager")
    width = model.get_input_embeddings().weight.shape[1]
    cache = DynamicCache(config=text)
    try:
        with torch.no_grad():
            model(
                inputs_embeds=torch.zeros(1, 1, width, dtype=torch.bfloat16, device="meta"),
                use_cache=True,
                **{CACHE: cache},
            )
    except RuntimeError:
        # Not every config has fewer heads for keys and values.
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        return 2 * text.num_hidden_layers * heads * head_size(text)
    kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(layer.keys.numel() + layer.values.numel() for layer in kept)


def context_length(text: PreTrainedConfig) -> int | None:
    """Positions that a prompt and its answer can take together; `None` for families without a limit (Bloom's ALiBi)."""
    return getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)  # MPT's name


def quantizable_layers(language_model: nn.Module) -> list[nn.Linear]:
    """The layers that are quantised in 8 and 4 bits: all linear ones. Embedding and output head stay as they are."""
    return [module for module in language_model.modules() if isinstance(module, nn.Linear)]


def nf4_bytes(parameters: int, quantizable: int) -> float:
    """Memory for a number of parameters, of which `quantizable` are in NF4 and the others have 16 bits."""
    return 2 * (parameters - quantizable) + NF4_BITS / 8 * quantizable
