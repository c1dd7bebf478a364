"""Finds the base model of an adapter, or composes it again from its backbones.

An exported adapter (export_adapter.py) comes without its base model. `backbones.json` names the backbones, with
digests of their weights: other weights of the same shape would load without an error.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftConfig
from safetensors import safe_open

from falcon3_audio.compose import compose

from ..arguments import COMPOSED
from ..run_folder import BASE, RECIPE, root_of


BACKBONES = "backbones.json"
# Prefixes of a backbone's weights in the composed model, by the option that names the backbone.
WEIGHTS = {"audio_model": ("model.audio_tower.",), "text_model": ("model.language_model.", "lm_head.")}


def find_base(run: Path) -> str:
    """
    The location of an adapter's base model: if the run composed it, `base` in the run's folder, wherever that is now;
    otherwise as named in the adapter.
    """
    try:
        named = PeftConfig.from_pretrained(str(run)).base_model_name_or_path
    except (TypeError, KeyError) as error:  # JSON, but not a configuration
        raise ValueError(
            f"{run / 'adapter_config.json'} is not a PEFT configuration ({error!r}). Use another checkpoint of "
            "the run."
        ) from error
    if not isinstance(named, str | None):
        raise ValueError(
            f"{run / 'adapter_config.json'} names {named!r} as the base model, expected a folder or a Hub id."
        )
    if not named:
        raise ValueError(
            f"The adapter in {run} comes without its base model. Give the backbones that it is composed of (`--audio-model`, "
            f"`--text-model`); {BACKBONES} there names those that it was trained on."
        )
    places = [Path(named)]
    if Path(named).name == BASE:  # look here first: the recorded path may now hold another run
        places.insert(0, root_of(run) / BASE)
    found = next((place for place in places if (place / "config.json").exists()), None)
    if found is None and Path(named).is_absolute():
        raise ValueError(f"The base model of {run} is gone: looked in {', '.join(map(str, places))}.")
    return str(found or named)  # otherwise a Hub id


def compose_base(adapter: Path, audio_model: str, text_model: str, folder: Path) -> list[str]:
    """
    Composes the base model of an exported adapter into `folder`, following its recipe. Returns warnings: a line for
    each backbone whose weights are not those that the adapter was trained on.

    Raises a `ValueError` if `adapter` was not exported, or a backbone has another size, and the errors of `compose`.
    """
    if not (adapter / BACKBONES).exists():
        raise ValueError(
            f"{adapter} has no {BACKBONES}, which describes its base model. Create a folder that has it with "
            "`falcon3-audio export-adapter`, or leave out the backbones."
        )
    recipe = recipe_of(adapter)
    options = {name: recipe.get(name, default) for name, default in COMPOSED.items()}
    compose(audio_model, text_model, folder, **options, dtype=recipe["dtype"])
    known = json.loads((adapter / BACKBONES).read_text(encoding="utf-8"))
    said = []
    for option, found in describe_backbones(folder).items():
        given, trained_on = {"audio_model": audio_model, "text_model": text_model}[option], known[option]
        if found["parameters"] != trained_on["parameters"]:
            raise ValueError(
                f"{given} has {found['parameters']:,} parameters, but the adapter was trained on {trained_on['name']}, which has "
                f"{trained_on['parameters']:,}; give that as {option}."
            )
        if found["sha256"] != trained_on["sha256"]:
            said.append(
                f"the weights of {given} are not those of the {trained_on['name']} that the adapter was trained on (sha256 "
                f"{found['sha256'][:16]}, expected {trained_on['sha256'][:16]}). They load, but the model may answer "
                "worse: evaluate it."
            )
    return said


def describe_backbones(model: Path) -> dict[str, dict[str, Any]]:
    """
    For each backbone of a composed model: `parameters`, their number, and `sha256` over names, shapes, dtypes and
    bytes of its weights in the order of their names, however they are split into files.
    """
    files = {name: path for path in sorted(model.glob("*.safetensors")) for name in _names(path)}
    described = {}
    for option, parts in WEIGHTS.items():
        digest, parameters = hashlib.sha256(), 0
        for name in sorted(name for name in files if name.startswith(parts)):
            with safe_open(files[name], framework="pt") as file:
                weight = file.get_tensor(name)
            parameters += weight.numel()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.reshape(-1).view(torch.uint8).numpy())
        described[option] = {"parameters": parameters, "sha256": digest.hexdigest()}
    return described


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def recipe_of(folder: Path) -> dict[str, Any]:
    """The recipe of a run that composed its model."""
    path = folder / RECIPE
    recipe = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not recipe.get("audio_model"):
        raise ValueError(
            f"{path} names no audio_model and text_model: the model was not composed in this run. Its adapter belongs to the "
            "model that it was trained from; merge it into that model (`falcon3-audio merge`)."
        )
    return recipe
