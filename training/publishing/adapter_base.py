"""Composes the base model of an exported adapter again from its backbones.

An exported adapter (export_adapter.py) comes without its base model. `backbones.json` names the backbones, with
digests of their weights: other weights of the same shape would load without an error.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from falcon3_audio.compose import compose
from falcon3_audio.yaml_files import read_yaml

from ..arguments import COMPOSED
from ..run_folder import RECIPE


BACKBONES = "backbones.json"
# Prefixes of a backbone's weights in the composed model, by the option that names the backbone.
WEIGHTS = {"audio_model": ("model.audio_tower.",), "text_model": ("model.language_model.", "lm_head.")}


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
    recipe = read_yaml(path) if path.exists() else {}
    if not recipe.get("audio_model"):
        raise ValueError(
            f"{path} names no audio_model and text_model: the model was not composed in this run. Its adapter belongs to the "
            "model that it was trained from; merge it into that model (`falcon3-audio merge`)."
        )
    return recipe
