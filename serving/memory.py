"""The memory that serving a checkpoint takes, computed from its shapes: weights by precision, and keys and values.

    python -m falcon3_audio.serving.memory [MODEL|PRESET ...]

Nothing is measured, and only a config is downloaded. In 8 and 4 bits, only the linear layers of the language model are
quantised; encoder, projector, embedding and output head are bfloat16 (`FULL_PRECISION_MODULES`). Keys and values are
bfloat16, for all layers. Not included are activations and the engine's own memory (libraries, captured graphs): vLLM
measures both when it starts, and uses the rest of its share (`--gpu-memory-utilization`) for keys and values.
"""

import argparse
import sys
from dataclasses import dataclass

import torch

from falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioForConditionalGeneration
from falcon3_audio.adapters import whole_model_config
from falcon3_audio.model_cards.card import GIB
from falcon3_audio.pipeline_falcon3_audio import DEFAULT_MAX_NEW_TOKENS
from falcon3_audio.processing.audio_inputs_falcon3_audio import POSITIONS_PER_SECOND, WINDOW_SECONDS
from falcon3_audio.text_sizes import cache_values_per_token, nf4_bytes, quantizable_layers
from falcon3_audio.user_errors import user_errors

from .request_limits import MIB


BYTES = 2  # of a number in bfloat16
BYTES_OF_SCALE = 4  # in 8 bits: a float32 for each row of a matrix


@dataclass(frozen=True)
class Memory:
    """
    Attributes:
        weights: bytes by precision.
        cache: bytes of keys and values for each token.
        tokens: of a request with a clip of 30 s and `DEFAULT_MAX_NEW_TOKENS` of text (question and answer).
    """

    weights: dict[str, float]
    cache: int
    tokens: int


def compute_memory(config: Falcon3AudioConfig) -> Memory:
    """From the shapes only; no weights are created."""
    with torch.device("meta"):
        model = Falcon3AudioForConditionalGeneration(config)
    layers = [layer.weight for layer in quantizable_layers(model.model.language_model)]
    quantised = sum(weight.numel() for weight in layers)
    total = sum(weight.numel() for weight in model.parameters())
    rest = BYTES * (total - quantised)
    return Memory(
        {
            "bfloat16": BYTES * total,
            "8 bits": rest + quantised + BYTES_OF_SCALE * sum(weight.shape[0] for weight in layers),
            "4 bits (NF4)": nf4_bytes(total, quantised),
        },
        BYTES * cache_values_per_token(config.text_config),
        WINDOW_SECONDS * POSITIONS_PER_SECOND // config.pooling_window + DEFAULT_MAX_NEW_TOKENS,
    )


def load_config(name: str) -> Falcon3AudioConfig:
    """The config of a preset, or of a checkpoint (folder or Hub). Raises the errors of `whole_model_config`."""
    if name in PRESETS:
        return Falcon3AudioConfig.from_preset(name)
    return whole_model_config(name)


def make_table(models: dict[str, Memory]) -> str:
    """A Markdown table with a row for each model."""
    precisions = next(iter(models.values())).weights
    head = ["", *(f"weights, {name}" for name in precisions), "cache, 1,000 tokens", "cache, a request of 30 s"]
    rows = [head, ["---"] * len(head)]
    for name, memory in models.items():
        weights = [f"{size / GIB:.2f} GiB" for size in memory.weights.values()]
        cache = [f"{tokens * memory.cache / MIB:.0f} MiB" for tokens in (1000, memory.tokens)]
        rows.append([name, *weights, *cache])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "models", metavar="MODEL", nargs="*", default=list(PRESETS), help="checkpoint or preset (default: all presets)"
    )
    given = parser.parse_args(arguments)
    known = f"{', '.join(given.models)}: presets are {', '.join(PRESETS)}."
    with user_errors("memory", explain=lambda error: f"{known} {error}") as end:
        print(make_table({name: compute_memory(load_config(name)) for name in given.models}))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
