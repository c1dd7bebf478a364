"""Sizes by the config, against the cache of a model."""

import pytest
import torch
from transformers import (
    BloomConfig,
    DeepseekV2Config,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    MptConfig,
    Qwen2Config,
    Qwen3NextConfig,
)
from transformers.models.auto import AutoModelForCausalLM

from falcon3_audio.text_sizes import cache_values_per_token, context_length, head_size


SMALL = {"vocab_size": 20, "hidden_size": 24, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4}

LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
LATENT |= {"n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (LlamaConfig(**SMALL, num_key_value_heads=2, head_dim=10), 10),
        (Qwen2Config(**SMALL, num_key_value_heads=2), 6),  # no head_dim
        (GPTNeoXConfig(**SMALL), 6),  # no heads of its own for keys and values
        (FalconConfig(**SMALL), 6),  # one head for all
        (LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), 6),
        (MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2), 6),
        (
            Qwen3NextConfig(
                **SMALL,
                head_dim=8,
                num_experts=2,
                num_experts_per_tok=1,
                layer_types=["linear_attention"] * 2 + ["full_attention"],
            ),
            8,
        ),
        (DeepseekV2Config(**SMALL, **LATENT), 4),  # keys are wider than values
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_the_cache_of_a_model_has_this_size(config, size):
    cache = AutoModelForCausalLM.from_config(config)(torch.arange(5)[None]).past_key_values
    assert head_size(config) == size
    kept = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    assert cache_values_per_token(config) == sum(
        part[0, :, 0].numel() for layer in kept for part in (layer.keys, layer.values)
    )


@pytest.mark.parametrize(
    ("config", "positions"),
    [(LlamaConfig(max_position_embeddings=70), 70), (GPT2Config(n_positions=80), 80), (MptConfig(max_seq_len=90), 90)],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_families_name_their_context_differently(config, positions):
    assert context_length(config) == positions
    assert context_length(BloomConfig()) is None
