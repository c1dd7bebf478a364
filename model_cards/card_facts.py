"""The facts of a card: which ones are required, and how a recipe and its training sets are described."""

from collections.abc import Callable
from typing import Any

from .sources import Dataset, is_hub_id


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


MISSING = object()  # null is a fact too
TEXT, TEXTS, COUNT, NUMBER = "a string", "a list of strings", "a whole number", "a number over 0"
FLAG, MAPPING, LIST = "true or false", "a mapping", "a list"
KINDS: dict[str, Callable[[Any], bool]] = {
    TEXT: lambda value: isinstance(value, str),
    TEXTS: lambda value: isinstance(value, list) and all(isinstance(text, str) for text in value),
    COUNT: lambda value: _is_number(value) and value >= 0 and float(value).is_integer(),
    NUMBER: lambda value: _is_number(value) and value > 0,
    FLAG: lambda value: isinstance(value, bool),
    MAPPING: lambda value: isinstance(value, dict),
    LIST: lambda value: isinstance(value, list),
}
# The facts that every card needs, and their types; dots separate keys of nested mappings.
REQUIRED = {
    **dict.fromkeys(("repo_id", "name", "relation", "training.status"), TEXT),
    **dict.fromkeys(("backbones.audio", "backbones.text", "dtype", "prompt"), TEXT),
    **dict.fromkeys(("languages", "limitations"), TEXTS),
    **dict.fromkeys(("parameters.audio_tower", "parameters.multi_modal_projector"), COUNT),
    **dict.fromkeys(("parameters.language_model", "parameters.quantizable", "cache_values_per_token"), COUNT),
    **dict.fromkeys(("context", "audio.max_audio_seconds", "audio.pooling_window"), NUMBER),
    "audio.pad_to_window": FLAG,
}
# Facts that are null if they are not known.
MAY_BE_NULL = {
    *("relation", "backbones.audio", "backbones.text", "dtype", "prompt", "languages", "limitations", "context"),
    "audio.max_audio_seconds",
}
# How the Hub relates a model to its base models; null if that is not known.
RELATIONS = ("finetune", "adapter", "merge", None)
# How a model was trained, and which facts that requires: a recipe not run yet, a recipe that was run for this project,
# a run that recorded its settings, no training, or not recorded.
STATUSES: dict[str | None, tuple[str, ...]] = {
    "planned": ("training.recipe",),
    "trained": ("training.recipe", "training.outcome"),
    "run": ("training.method", "training.settings", "training.outcome", "data"),
    "composed": (),
    "unknown": (),
}
OF_STATUS = {
    **dict.fromkeys(("training.recipe", "training.method"), TEXT),
    **{"training.outcome": TEXTS, "training.settings": MAPPING, "data": LIST},
}
# Recipe options shown on a card.
SETTINGS = {
    "lora_r": "LoRA rank",
    "lora_alpha": "LoRA alpha",
    "lora_dropout": "LoRA dropout",
    "lora_audio_tower": "layers with LoRA, encoder",
    "lora_language_model": "layers with LoRA, language model",
    "audio_tower_trainable_layers": "last layers fully trained, encoder",
    "language_model_trainable_layers": "last layers fully trained, language model",
    "lora_target_modules": "layers with LoRA, by name",
    "lora_r_audio_tower": "LoRA rank, encoder",
    "lora_r_language_model": "LoRA rank, language model",
    "projector_type": "projector",
    "use_weighted_layer_sum": "learned mean over encoder layers",
    "learning_rate": "learning rate",
    "audio_tower_learning_rate": "learning rate, encoder",
    "projector_learning_rate": "learning rate, projector",
    "language_model_learning_rate": "learning rate, language model",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warm-up (steps, or fraction of steps)",
    "global_batch_size": "questions per step",
    "augmentation": "augmentation of training clips",
    "num_train_epochs": "epochs",
    "max_steps": "maximum steps (-1: no limit)",
    "optim": "optimiser",
    "weight_decay": "weight decay",
    "max_grad_norm": "maximum gradient norm",
    "max_length": "maximum example length (tokens)",
    "dtype": "frozen weights",
    "bf16": "computed in bfloat16",
    "load_in_4bit": "language model in 4 bits",
    "num_generations": "answers per question",
    "max_completion_length": "maximum answer length (tokens)",
    "temperature": "temperature",
    "beta": "beta (strength of the tie to the model before)",
    "seed": "seed",
}
SUPERVISED = (
    "Supervised, in one stage: LoRA as listed in the table; the projector, and what the table lists as full or fully "
    "trained, trained in full; everything else frozen. The loss is on answers only."
)
GRPO = (
    "GRPO, after supervised training: several answers are sampled for each question, and those with a higher reward "
    "than the others become more likely. LoRA is applied as listed in the table, and the projector is trained in full."
)
DPO = (
    "DPO, after supervised training: of two answers to each question, the preferred one becomes more likely than the "
    "other. LoRA is applied as listed in the table, and the projector is trained in full."
)


def check_facts(facts: dict[str, Any]):
    """Raises a `ValueError` that names all missing facts, or the invalid one."""
    status = _value(facts, "training.status")
    needed = (*REQUIRED, *(STATUSES.get(status, ()) if isinstance(status, str) else ()))
    missing = [name for name in needed if _value(facts, name) is MISSING]
    if missing:
        raise ValueError(
            f"The card of {facts.get('repo_id') or facts.get('name') or '?'} lacks facts: {', '.join(missing)}."
        )
    for name in needed:
        value, kind = _value(facts, name), (REQUIRED | OF_STATUS)[name]
        if not (KINDS[kind](value) or value is None and name in MAY_BE_NULL):
            raise ValueError(f"{name} must be {kind}{' or null' * (name in MAY_BE_NULL)}, got {value!r:.100}.")
    if not is_hub_id(str(facts["repo_id"])):
        raise ValueError(f"repo_id must be ORG/NAME on the Hub, got {facts['repo_id']!r}.")
    for name, value, known in (
        ("relation", facts["relation"], RELATIONS),
        ("training.status", status, tuple(STATUSES)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}; got {value!r}.")
    if facts["relation"] == "adapter" and not is_hub_id(str(facts.get("adapter_of"))):
        raise ValueError(
            "The card of an adapter must name its base model by its Hub id (adapter_of), got "
            f"{facts.get('adapter_of')!r}."
        )


def _value(facts: dict[str, Any], name: str) -> Any:
    """The fact with that name, or `MISSING`."""
    value: Any = facts
    for part in name.split("."):
        value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
    return value


def describe_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """`method` and `settings` of the facts, from a recipe or from a run's record."""
    found = {label: recipe[name] for name, label in SETTINGS.items() if recipe.get(name) is not None}
    settings = {label: _plain(value) for label, value in found.items()}
    method = GRPO if "num_generations" in recipe else DPO if "beta" in recipe else SUPERVISED
    return {"method": method, "settings": settings}


def _plain(value: Any) -> Any:
    """A setting as a card shows it; of mappings the names and values, but only the names of strings (folders, say)."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(name if isinstance(part, str) else f"{name} {_plain(part)}" for name, part in value.items())
    return value


def describe_source(source: dict[str, Any], dataset: Dataset, examples: int | None = None) -> dict[str, Any]:
    """One set of the facts' `data`, from an entry of `train_data` in a recipe and its description."""
    weight, streamed = source.get("weight", 1), source.get("streaming", False)
    return {**vars(dataset), "examples": examples, "weight": weight, "streamed": streamed}
