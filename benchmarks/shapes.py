"""Widths and depths for the measurements: the published ones, and narrow ones with the same proportions for a CPU.

A narrow model is useful only if it spends its time where the large one does. So the narrow language model and its
vocabulary are computed from the narrow encoder such that the proportions of FLOPs per encoder position, per token of
the language model and per token of its head are the preset's. Only products with weights count (2 per weight);
attention scores are not in the proportions, and weigh more in a narrow encoder. flops.py counts a real step, scores
included.
"""

import math
from dataclasses import dataclass
from typing import Any

from falcon3_audio import PRESETS


NAMES = {"1b": "falcon3-audio-1b", "3b": "falcon3-audio-3b", "7b": "falcon3-audio-7b"}
MEL_BANDS = 80
# Ids that every vocabulary here has room for; text is drawn from FIRST_WORD on.
END_TOKEN, PAD_TOKEN, AUDIO_TOKEN, HEAD_TOKEN, FIRST_WORD = 2, 3, 4, 5, 10
# Sizes of the narrow models; all others follow from these. On two cores the slowest takes about a second per question.
NARROW = {"hidden_size": 256, "layers": 2, "heads": 4, "text_layers": 6, "head_dim": 64}
# For checking that a script runs, not for measuring.
TINY = {"hidden_size": 32, "layers": 1, "heads": 2, "text_layers": 1, "head_dim": 16}


@dataclass(frozen=True)
class Shape:
    """Widths and depths of encoder and language model, as fields of their configs (`PRESETS` has the same)."""

    name: str
    audio: dict[str, Any]
    text: dict[str, Any]

    @property
    def encoder_weights(self) -> int:
        """Weights of the matrices in the encoder's layers."""
        width, inner = self.audio["hidden_size"], self.audio["intermediate_size"]
        return self.audio["num_hidden_layers"] * (4 * width**2 + 2 * width * inner)

    @property
    def text_weights(self) -> int:
        """Weights of the matrices in the language model's layers, without head and embedding."""
        width, inner, heads, kv, size = (
            self.text[name]
            for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        )
        return self.text["num_hidden_layers"] * width * (2 * heads * size + 2 * kv * size + 3 * inner)

    @property
    def head_weights(self) -> int:
        return self.text["hidden_size"] * self.text["vocab_size"]

    @property
    def proportions(self) -> dict[str, float]:
        """FLOPs per token of the language model's layers, and of its head, over those per encoder position."""
        return {
            "llm token / encoder position": self.text_weights / self.encoder_weights,
            "head token / encoder position": self.head_weights / self.encoder_weights,
        }


def real_shape(preset: str) -> Shape:
    """As published. Raises a `KeyError` for a preset that is not in `NAMES`."""
    found = PRESETS[NAMES[preset]]
    return Shape(
        f"{preset} (real)", found["audio_config"] | {"num_mel_bins": MEL_BANDS}, _with_tokens(found["text_config"])
    )


def narrow_shape(preset: str, sizes: dict[str, int] | None = None) -> Shape:
    """The preset's proportions at the width of `sizes` (`NARROW`); the language model keeps its ratios of widths and of heads."""
    real, sizes = real_shape(preset), sizes or NARROW
    width = sizes["hidden_size"]
    audio = {
        "hidden_size": width,
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": 4 * width,
        "num_mel_bins": MEL_BANDS,
    }
    scale = Shape("", audio, real.text).encoder_weights / real.encoder_weights
    layer = scale * real.text_weights / sizes["text_layers"]  # weights of a layer
    group = real.text["num_attention_heads"] // real.text["num_key_value_heads"]
    attention = 2 + 2 / group  # weights of a layer's attention over hidden_size squared
    inner = real.text["intermediate_size"] / real.text["hidden_size"]
    ideal = math.sqrt(layer / (attention + 3 * inner))
    kv_heads = max(1, round(ideal / sizes["head_dim"] / group))
    hidden = kv_heads * group * sizes["head_dim"]
    text = real.text | {
        "hidden_size": hidden,
        "intermediate_size": round((layer - attention * hidden**2) / (3 * hidden)),
        "num_hidden_layers": sizes["text_layers"],
        "num_attention_heads": kv_heads * group,
        "num_key_value_heads": kv_heads,
        "head_dim": sizes["head_dim"],
        "vocab_size": round(scale * real.head_weights / hidden),
    }
    return Shape(f"{preset} ({'tiny' if sizes is TINY else 'narrow'})", audio, text)


def shape_of(preset: str, size: str) -> Shape:
    """A preset as published (`real`), narrow (`small`) or `tiny`."""
    return real_shape(preset) if size == "real" else narrow_shape(preset, {"small": NARROW, "tiny": TINY}[size])


def _with_tokens(text: dict[str, Any]) -> dict[str, Any]:
    return text | {"eos_token_id": END_TOKEN, "pad_token_id": PAD_TOKEN}
