"""What a recipe will cost, computed from shapes before anything is rented: minutes and GiB per device.

    python -m falcon3_audio.training.estimate training/recipes/falcon3_audio_7b.yaml --devices 8 --card h100

Only matrix products are counted. A token costs 2 FLOPs per weight in the forward pass, 2 more for the gradient of the
activations (frozen weights have no weight gradient, LoRA's is negligible), and 2 for recomputing activations. The
time is what the card needs for that at a stated share of its peak. This prints the first line of each recipe: an
estimate, not a measurement. To measure, train with `--max_steps 20` and look at samples_per_second and
peak_memory_gib.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoConfig, PreTrainedConfig

from falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioForConditionalGeneration
from falcon3_audio.adapters import base_of
from falcon3_audio.processing.audio_inputs_falcon3_audio import POSITIONS_PER_SECOND
from falcon3_audio.text_sizes import head_size, nf4_bytes, quantizable_layers
from falcon3_audio.user_errors import user_errors

from .arguments import OF_COMPOSED, AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from .learning import PROJECTOR, choose_trained_weights, count_parameters
from .recipe import parse_options


# (bf16 FLOP/s without sparsity, bytes of memory) from NVIDIA's data sheets of the SXM cards.
CARDS = {"h100": (989e12, 80e9), "h200": (989e12, 141e9), "a100": (312e12, 80e9)}
# Model FLOP utilisation that well-tuned training of this size commonly reaches; not measured with this code.
UTILISATION = 0.4
# Folder of the recipes -> (questions, clips, mean seconds of audio). Open-ASQA v2 as published (10,324,230 questions
# about 1,089,204 clips, 26 K hours); the paper gives no length for the 440 K voice instructions, 5 s is our guess.
PUBLISHED = {"data/open_asqa": (10_324_230, 1_089_204, 9.2), "data/voice_instructions": (440_000, 440_000, 5.0)}
TEXT_TOKENS = 60  # of a question with its answer and the chat format, about what Open-ASQA has
BYTES_TRAINED = 16  # float32: weight, gradient and Adam's two moments
BYTES_ACTIVATION = 2  # bfloat16
OVERHEAD = 2 * 2**30  # CUDA context, loss chunks, fragmentation: a guess


@dataclass(frozen=True)
class Cost:
    minutes: float
    gib: float
    questions: int


def estimate(
    model: ModelArguments, lora: LoraArguments, data: DataArguments, training: AudioSFTConfig, devices: int, card: str
) -> Cost:
    """
    Minutes for the whole run on `devices` cards of type `card`, and GiB on each.

    Raises a `ValueError` for a card or a training set of unknown size.
    """
    if card not in CARDS:
        raise ValueError(f"got the card {card!r}; expected one of {', '.join(CARDS)}")
    config = _config(model)
    with torch.device("meta"):
        network = Falcon3AudioForConditionalGeneration(config)
    quantizable = sum(layer.weight.numel() for layer in quantizable_layers(network.model.language_model))
    adapter = choose_trained_weights(network, lora)
    trained = count_parameters(network if adapter is None else get_peft_model(network, adapter))
    passes = _passes(trained, bool(training.activation_checkpointing))
    flops = questions = 0.0
    longest = 0.0, 0.0  # positions and audio tokens of a question
    for source in data.train_data:
        if source.streaming:
            raise ValueError(
                f"{source} is streamed, so its size is not known; leave out `streaming` to estimate a run"
            )
        if source.path not in PUBLISHED:
            raise ValueError(f"got the data {source.path!r}; sizes are known only for {', '.join(PUBLISHED)}")
        published, clips, seconds = PUBLISHED[source.path]
        count = published * source.weight * training.num_train_epochs
        questions += count
        limit = min(_questions_at_once(training, devices), training.questions_per_row or published)
        shared_by = min(limit, published / clips)
        positions, heard = _count_positions(config, seconds)
        longest = max(longest, (positions / shared_by, heard / shared_by))
        forward = _forward_flops(config, trained, seconds, shared_by)
        flops += count * sum(forward[part] * passes[part] for part in forward)
    minutes = flops / (devices * CARDS[card][0] * UTILISATION) / 60
    gib = _bytes(model, config, trained, quantizable, training, devices, *longest) / 2**30
    return Cost(minutes, gib, round(questions))


def _questions_at_once(training: AudioSFTConfig, devices: int) -> int:
    """Questions that a device packs: its part of a step, or a micro-batch of a fixed number of questions."""
    if training.tokens_per_device and training.global_batch_size:
        return max(1, training.global_batch_size // devices)
    return training.per_device_train_batch_size


def _config(model: ModelArguments) -> Falcon3AudioConfig:
    """Shapes by name: those of the presets need no network access."""
    if model.model is not None:
        return AutoConfig.from_pretrained(base_of(model.model) or model.model)
    audio = _shape(str(model.audio_model), "audio")
    text = _shape(str(model.text_model), "text")
    vocabulary = text["vocab_size"] if isinstance(text, dict) else text.vocab_size
    options = {name: getattr(model, name) for name in OF_COMPOSED}
    return Falcon3AudioConfig(audio_config=audio, text_config=text, audio_token_id=vocabulary - 1, **options)


def _shape(name: str, role: str) -> dict[str, Any] | PreTrainedConfig:
    known = next((preset for preset in PRESETS.values() if preset[role] == name), None)
    return dict(known[f"{role}_config"]) if known else AutoConfig.from_pretrained(name)


def _passes(parameters: dict[str, tuple[int, int]], recomputed: bool) -> dict[str, int]:
    """How many times the forward FLOPs are spent on each part: the gradient has to reach everything trained."""
    learning = 2 + recomputed
    return {
        "audio_tower": learning if parameters["audio_tower"][1] else 1,
        PROJECTOR: learning + 1,  # trained in full: weight gradients too
        "language_model": learning,  # also if it is frozen, since the gradient passes through it to the projector
    }


def _forward_flops(
    config: Falcon3AudioConfig, parameters: dict[str, tuple[int, int]], seconds: float, shared_by: float
) -> dict[str, float]:
    """
    FLOPs of one question, if `shared_by` questions share a clip of `seconds`: 2 per weight and token, and 4 x width
    per pair of positions that attend to each other.
    """
    audio, text = config.audio_config, config.text_config
    positions, heard = _count_positions(config, seconds)
    pairs = heard**2 / 2 / shared_by + heard * TEXT_TOKENS + TEXT_TOKENS**2 / 2
    width = text.num_attention_heads * head_size(text)
    embedding = text.vocab_size * text.hidden_size  # looked up, not multiplied
    return {
        "audio_tower": positions
        / shared_by
        * (2 * parameters["audio_tower"][0] + 4 * audio.hidden_size * positions * audio.num_hidden_layers),
        PROJECTOR: heard / shared_by * 2 * parameters[PROJECTOR][0],
        "language_model": (heard / shared_by + TEXT_TOKENS) * 2 * (parameters["language_model"][0] - embedding)
        + 4 * width * text.num_hidden_layers * pairs,
    }


def _count_positions(config: Falcon3AudioConfig, seconds: float) -> tuple[float, float]:
    """Encoder positions of a clip and its trailing silence, up to a window, and tokens the language model reads."""
    window = config.audio_config.max_source_positions / POSITIONS_PER_SECOND
    silence = window if config.pad_to_window else config.trailing_silence
    encoded = max(seconds, min(seconds + silence, window))
    read = encoded if config.read_trailing_silence else seconds
    return encoded * POSITIONS_PER_SECOND, read * POSITIONS_PER_SECOND / config.pooling_window


def _bytes(
    model: ModelArguments,
    config: Falcon3AudioConfig,
    parameters: dict[str, tuple[int, int]],
    quantizable: int,
    training: AudioSFTConfig,
    devices: int,
    positions: float,
    heard: float,
) -> float:
    """Memory of one device that holds all weights; `positions` and `heard` (audio tokens) are those per question."""
    element = 4 if model.dtype == "float32" else 2
    frozen = {part: total - trained for part, (total, trained) in parameters.items()}
    weights = nf4_bytes(sum(frozen.values()), quantizable) if model.load_in_4bit else element * sum(frozen.values())
    learned = BYTES_TRAINED * sum(trained for _, trained in parameters.values())
    tokens = heard + TEXT_TOKENS
    questions: float = _questions_at_once(training, devices)
    if training.tokens_per_device:
        questions = min(questions, training.tokens_per_device / tokens)
    positions, tokens = questions * positions, questions * tokens
    recomputed = bool(training.activation_checkpointing)
    activations = _activations(config.text_config, tokens, recomputed, gated=True)
    if parameters["audio_tower"][1]:
        activations += _activations(config.audio_config, positions, recomputed, gated=False)
    return weights + learned + activations + OVERHEAD


def _activations(config: PreTrainedConfig, tokens: float, recomputed: bool, gated: bool) -> float:
    """
    Bytes kept for the backward pass: per layer its input, eight tensors of the model's width (norms, q, k, v,
    attention, residuals) and those of the feed-forward part (two, or four if gated). With recomputation, all layers
    keep only their input, and one layer at a time the rest.
    """
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size  # GPT-2 does not name its own
    inside = 8 * config.hidden_size + (4 if gated else 2) * inner
    layers = config.num_hidden_layers
    kept = layers * config.hidden_size + inside if recomputed else layers * inside
    return BYTES_ACTIVATION * tokens * kept


def describe(cost: Cost, devices: int, card: str, training: AudioSFTConfig) -> str:
    """The first line of a recipe."""
    at_once = f"{training.per_device_train_batch_size} questions each"
    if training.tokens_per_device:
        at_once = f"up to {training.tokens_per_device:,} tokens each"
    return (
        f"# {devices} x {card.upper()} {CARDS[card][1] / 1e9:.0f} GB: about {cost.minutes:,.0f} minutes and {cost.gib:.0f} GiB per GPU at {at_once}. "
        "Estimated (falcon3_audio.training.estimate), not measured."
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", metavar="RECIPE", type=Path)
    parser.add_argument("--devices", type=int, default=8, help="cards (default: %(default)s)")
    parser.add_argument("--card", choices=CARDS, default="h100")
    given = parser.parse_args(arguments)
    with user_errors("estimate") as end:
        options = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
        # transformers refuses bf16, which the recipes set, on a machine without a GPU; nothing is computed here.
        recipe = parse_options(options, ["--config", str(given.recipe), "--bf16", "false"], prog=parser.prog)
        model, lora, data, training = recipe
        cost = estimate(model, lora, data, training, given.devices, given.card)
        print(describe(cost, given.devices, given.card, training))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
