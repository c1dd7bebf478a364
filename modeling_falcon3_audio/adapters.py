"""Loads a run's adapter onto its base model, wherever the run's folder is now.

PEFT records the base model as an absolute path, and transformers follows it. After a run was moved or renamed that
path is gone, and that in a copy leads to the original's base, which another training may have replaced since. So the
programs of this package load an adapter's folder with the functions here.
"""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers import AutoConfig, AutoModelForMultimodalLM, PreTrainedModel, pipeline
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, PROCESSOR_NAME, is_peft_available

from .configuration_falcon3_audio import Falcon3AudioConfig
from .pipeline_falcon3_audio import AudioTextToTextPipeline
from .saved_json import read_object, readable_json


TASK = "audio-text-to-text"
BASE = "base"  # in a run's folder: the model that it composed, and on which its adapter was trained


def root_of(run: Path) -> Path:
    """The folder of a run, given that folder or one of its checkpoints."""
    return run.parent if re.fullmatch(r"checkpoint-\d+", run.name) else run


def find_base(run: str | Path) -> str:
    """
    The location of an adapter's base model: if the run composed it, `base` in the run's folder, wherever that is now;
    otherwise as named in the adapter.

    Raises a `ValueError` if `run` names no base model, or one that is gone.
    """
    path = Path(run) / ADAPTER_CONFIG_NAME
    named = read_object(path).get("base_model_name_or_path")
    if not isinstance(named, str | None):
        raise ValueError(f"{path} names {named!r} as the base model, expected a folder or a Hub id.")
    if not named:
        raise ValueError(
            f"The adapter of {path} comes without its base model. Give the backbones that it is composed of to "
            "`falcon3-audio merge` (`--audio-model`, `--text-model`); backbones.json there names those that it was "
            "trained on."
        )
    places = [Path(named)]
    if PureWindowsPath(named).name == BASE:  # look here first: the recorded path may now hold another run
        places.insert(0, root_of(Path(run).resolve()) / BASE)
    found = next((place for place in places if (place / CONFIG_NAME).exists()), None)
    if found is None and any(kind(named).is_absolute() for kind in (PurePosixPath, PureWindowsPath)):
        raise ValueError(f"The base model of {run} is gone: looked in {', '.join(map(str, places))}.")
    return str(found or named)  # otherwise a Hub id


def _is_adapter(folder: Path) -> bool:
    """With a config.json it is a whole model that contains an adapter."""
    return (folder / ADAPTER_CONFIG_NAME).exists() and not (folder / CONFIG_NAME).exists()


def base_of(model: str | Path) -> str | None:
    """
    The base model of an adapter's folder; `None` for a whole model and for a Hub id.

    Raises the errors of `find_base`, and an `ImportError` without PEFT.
    """
    if not _is_adapter(Path(model)):
        return None
    if not is_peft_available():
        raise ImportError(f"{model} is an adapter, which PEFT loads: pip install peft")
    return find_base(model)


def whole_model_config(model: str | Path) -> Falcon3AudioConfig:
    """
    The config of a whole checkpoint, for programs that cannot load an adapter on its base model.

    Raises a `ValueError` for an adapter and for other models, and an `OSError` if there is no model.
    """
    if _is_adapter(Path(model)):
        raise ValueError(f"{model} is an adapter; merge it into a checkpoint first: falcon3-audio merge {model} OUT")
    with readable_json(model):
        config = AutoConfig.from_pretrained(model)
    if config.model_type != "falcon3_audio":
        raise ValueError(f"{model} is a model of type {config.model_type!r}; expected one of Falcon3-Audio.")
    return config


def load_model(model: str | Path, **options: Any) -> PreTrainedModel:
    """`AutoModelForMultimodalLM.from_pretrained`, with an adapter on the base model of `find_base`."""
    base = base_of(model)
    if base is None:
        return AutoModelForMultimodalLM.from_pretrained(model, **options)
    loaded = AutoModelForMultimodalLM.from_pretrained(base, **options)
    loaded.load_adapter(str(model))
    return loaded


def load_pipeline(model: str, **options: Any) -> AudioTextToTextPipeline:
    """`pipeline("audio-text-to-text")`, with an adapter, and its processor, on the base model of `find_base`."""
    base = base_of(model)
    if base is None:
        return pipeline(TASK, model=model, **options)
    processor = model if (Path(model) / PROCESSOR_NAME).exists() else base
    pipe = pipeline(TASK, model=base, processor=processor, **options)
    pipe.model.load_adapter(model)
    return pipe


__all__ = ["BASE", "base_of", "find_base", "load_model", "load_pipeline", "root_of", "whole_model_config"]
