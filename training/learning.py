"""What is trained, and at which rate: LoRA by tower, a tower or its last layers in full, the projector always in full.

Each tower has its own LoRA pattern, because bare layer names such as `q_proj` exist in both. If no tower uses LoRA,
PEFT is not needed and the run saves a plain checkpoint. If one tower uses LoRA and the other is trained in full, the
layers of the second are saved whole in the adapter, as the projector is. Trained weights are float32.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from falcon3_audio import LORA_TARGET_MODULES

from .arguments import AudioSFTConfig, LoraArguments


logger = logging.get_logger(__name__)
TOWERS = ("audio_tower", "language_model")
PROJECTOR = "multi_modal_projector"
# In the order of the optimizer's groups: `learning_rate` in the log is that of the first group without its own rate.
PARTS = (PROJECTOR, *TOWERS)
# PEFT `target_modules` by tower and choice.
LORA_PATTERNS = {
    "audio_tower": {
        "all": LORA_TARGET_MODULES["audio_tower"],
        "attention": r"model\.audio_tower\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
        "qv": r"model\.audio_tower\.layers\.\d+\.self_attn\.(q|v)_proj",
    },
    "language_model": {
        "all": LORA_TARGET_MODULES["language_model"],
        "attention": r"model\.language_model\.layers\.\d+\.self_attn\.\w+_proj",
        "qv": r"model\.language_model\.layers\.\d+\.self_attn\.(q|v)_proj",
    },
}


def choose_trained_weights(model: PreTrainedModel, arguments: LoraArguments) -> LoraConfig | None:
    """
    The LoRA configuration for `SFTTrainer(peft_config=...)`, or `None` if no tower uses LoRA: then all other weights
    of `model` are frozen. In both cases, converts what is trained in full to float32.

    Raises a `ValueError` if a tower has no layer with the requested LoRA names, has fewer layers than requested, or
    should be trained in full in 4 bits.
    """
    whole = _learn_in_full(model, arguments)
    for module in whole:
        model.get_submodule(module).to(torch.float32)
    targets = [pattern for tower in TOWERS for pattern in _patterns(model, arguments, tower)]
    if not targets:
        _freeze_all_but(model, whole)
        return None
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        use_rslora=arguments.use_rslora,
        use_dora=arguments.use_dora,
        rank_pattern=_ranks(arguments),
        target_modules="|".join(targets),
        modules_to_save=[_short(module) for module in whole],
        task_type="CAUSAL_LM",
    )


def _ranks(arguments: LoraArguments) -> dict[str, int]:
    ranks = {tower: getattr(arguments, f"lora_r_{tower}") for tower in TOWERS}
    return {rf"model\.{tower}\..+": rank for tower, rank in ranks.items() if rank not in (None, arguments.lora_r)}


def _short(module: str) -> str:
    """The name as PEFT matches it, by suffix."""
    return PROJECTOR if module.endswith(PROJECTOR) else module


def _learn_in_full(model: PreTrainedModel, arguments: LoraArguments) -> list[str]:
    """The names of the modules trained in full."""
    names = [f"model.{PROJECTOR}"]
    for tower in TOWERS:
        if getattr(arguments, f"lora_{tower}") != "full":
            continue
        if tower == "language_model" and getattr(model, "is_quantized", False):
            raise ValueError(
                "load_in_4bit freezes the language model's layers; leave it out, or set lora_language_model to `all`."
            )
        last = getattr(arguments, f"{tower}_trainable_layers")
        names += _last_layers(model, tower, last) if last is not None else _parts(model, tower)
    return names


def _last_layers(model: PreTrainedModel, tower: str, count: int) -> list[str]:
    layers = len(model.get_submodule(f"model.{tower}.layers"))
    if count > layers:
        raise ValueError(
            f"{tower}_trainable_layers={count} is more than the {layers} layers of the {tower}. To train all layers, "
            "leave it out."
        )
    return [f"model.{tower}.layers.{number}" for number in range(layers - count, layers)]


def _parts(model: PreTrainedModel, tower: str) -> list[str]:
    """All parts of a tower, layer by layer, except Whisper's fixed sinusoids. The language model includes the head."""
    parts = ["lm_head"] if tower == "language_model" else []
    for name, module in model.get_submodule(f"model.{tower}").named_children():
        layers = range(len(module)) if isinstance(module, nn.ModuleList) else None
        parts += (
            [f"model.{tower}.{name}"] if layers is None else [f"model.{tower}.{name}.{number}" for number in layers]
        )
    return [part for part in parts if any(weight.requires_grad for weight in model.get_submodule(part).parameters())]


def _freeze_all_but(model: PreTrainedModel, modules: Sequence[str]):
    learns = {
        id(weight) for name in modules for weight in model.get_submodule(name).parameters() if weight.requires_grad
    }
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in learns)


def _patterns(model: PreTrainedModel, arguments: LoraArguments, tower: str) -> list[str]:
    choice = getattr(arguments, f"lora_{tower}")
    if choice in ("none", "full"):
        return []
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and f".{tower}." in name]
    if arguments.lora_target_modules is None:
        pattern = LORA_PATTERNS[tower][choice]
        if not any(re.fullmatch(pattern, name) for name in linear):
            raise ValueError(
                f"LoRA found no layers to adapt: nothing in the {tower} matches {pattern!r}. Its layers are "
                f"{_layers(linear)}. Name them with lora_target_modules (those of the other tower, too), set lora_{tower} to "
                "`none`, or choose a model whose layers are named like Llama's."
            )
        if choice == "all":
            _warn_of_others(model, tower, [name for name in linear if not re.fullmatch(pattern, name)])
        return [pattern]
    named = [name for name in arguments.lora_target_modules if _is_in(name, linear)]
    everywhere = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    unknown = [name for name in arguments.lora_target_modules if not _is_in(name, everywhere)]
    if unknown or not named:
        raise ValueError(
            f"lora_target_modules: {', '.join(unknown) or 'none of them'} is not a layer of the {tower}, which has "
            f"{_layers(linear)}. Name existing layers, or set lora_{tower} to `none`."
        )
    return [rf"model\.{tower}\.(?:.+\.)?(?:{'|'.join(map(re.escape, named))})"]


def _warn_of_others(model: PreTrainedModel, tower: str, linear: Sequence[str]):
    """Tells of layers that are neither attention nor a feed-forward layer by their name, such as experts and Mamba."""
    layers = f"model.{tower}.layers."
    experts = [
        f"{name}.{weight}"
        for name, module in model.named_modules()
        for weight, value in module.named_parameters(recurse=False)
        if value.dim() == 3 and not isinstance(module, nn.Conv1d)
    ]
    others = _layers(name for name in [*linear, *experts] if name.startswith(layers))
    if others:
        logger.warning(
            f"lora_{tower}=all adapts attention and feed-forward layers. Without LoRA are {', '.join(others)}. To adapt other "
            "linear layers, name all that should learn with lora_target_modules; PEFT cannot adapt experts in one tensor so."
        )


def _is_in(name: str, layers: Iterable[str]) -> bool:
    """Whether a layer's name ends with this one, as PEFT matches it."""
    return any(layer == name or layer.endswith(f".{name}") for layer in layers)


def _layers(names: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"\d+", "N", name) for name in names})


def part_of(name: str) -> str:
    """The part of the model that a weight belongs to, one of `PARTS`; the head is part of the language model."""
    return next((part for part in ("audio_tower", PROJECTOR) if f".{part}." in name), "language_model")


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """
    (all, trained) parameters of each part: `audio_tower`, `multi_modal_projector`, `language_model` with its head.

    Adapters count as trained parameters of their tower; PEFT's untrained originals of modules saved whole do not
    count. 4-bit weights count by their unpacked number.
    """
    counts = {part: [0, 0] for part in ("audio_tower", PROJECTOR, "language_model")}
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        size = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        counts[part_of(name)][0] += size
        counts[part_of(name)][1] += size if parameter.requires_grad else 0
    return {part: (total, trained) for part, (total, trained) in counts.items()}


def describe_parts(
    counts: Mapping[str, tuple[int, int]], arguments: LoraArguments, rates: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """
    For the plan of a run: the parts, with their size, how they are trained, and their learning rate if they have
    their own; and all of them together.

    Args:
        counts, rates: from `count_parameters` and `learning_rates`.
    """
    lines = []
    for part, (total, trained) in counts.items():
        how = _describe_part(part, arguments) if trained else "frozen"
        how += f", at a rate of {rates[part]:g}" if rates and part in rates and trained else ""
        lines.append((part, f"{total / 1e6:,.2f} M parameters, {trained / 1e6:,.2f} M trained ({how})"))
    total, trained = (sum(values) for values in zip(*counts.values()))
    return [*lines, ("together", f"{total / 1e6:,.2f} M parameters, {trained / total:.2%} trained")]


def _describe_part(part: str, arguments: LoraArguments) -> str:
    choice = "full" if part == PROJECTOR else getattr(arguments, f"lora_{part}")
    last = None if part == PROJECTOR else getattr(arguments, f"{part}_trainable_layers")
    if choice == "full":
        return "in full" if last is None else f"the last {last} layer(s) in full"
    kind = "DoRA" if arguments.use_dora else "LoRA"
    rank = getattr(arguments, f"lora_r_{part}") or arguments.lora_r
    return f"{kind} of rank {rank} on: {', '.join(arguments.lora_target_modules or [choice])}"


def learning_rates(arguments: AudioSFTConfig) -> dict[str, float]:
    """The peak rates of the parts that have their own."""
    given = {PROJECTOR: "projector_learning_rate"} | {tower: f"{tower}_learning_rate" for tower in TOWERS}
    rates = {part: getattr(arguments, option) for part, option in given.items()}
    return {part: rate for part, rate in rates.items() if rate is not None}


def parameter_groups(
    model: nn.Module, decayed: Iterable[str], weight_decay: float, rates: dict[str, float], rate: float
) -> list[dict[str, Any]]:
    """
    The optimizer's groups: for each part its weights with and without weight decay.

    Args:
        decayed: names of the weights with weight decay.
        rates: of the parts with their own rate; the others use `rate`.
    """
    decayed = set(decayed)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    groups = []
    for part, decays in itertools.product(sorted(PARTS, key=lambda part: part in rates), (True, False)):
        weights = [weight for name, weight in trained if part_of(name) == part and (name in decayed) == decays]
        if weights:
            groups.append(
                {"params": weights, "lr": rates.get(part, rate), "weight_decay": weight_decay if decays else 0.0}
            )
    return groups
