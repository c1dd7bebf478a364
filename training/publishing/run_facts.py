"""The facts about a checkpoint for its card, from its run's records and its own configuration.

Reads the run's `recipe.yaml` and `trainer_state.json`, `config.json` (of an adapter: its base model's), the processor,
and the `report.json` of prepared training sets that still exist. Nothing is guessed: the card says what was not
recorded. It never contains local paths; base models and sets are named by Hub id or described.
Run: `facts_of_run(Path("runs/mine"), Path("runs/mine-merged"), "ORG/NAME")`, or `card_for_run` in card.py.
"""

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedConfig
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.adapters import BASE
from falcon3_audio.model_cards.card_facts import describe_settings, describe_source
from falcon3_audio.model_cards.sources import (
    DATASETS,
    FALCON,
    FALCON_LANGUAGES,
    Dataset,
    is_english_encoder,
    is_hub_id,
    licence_of,
)
from falcon3_audio.saved_json import read_object, readable_json
from falcon3_audio.text_sizes import cache_values_per_token, context_length, quantizable_layers
from falcon3_audio.yaml_files import read_yaml

from ..best import LOADED
from ..data.open_dataset import ALL
from ..data.shards import REPORT
from ..hearing import hearing_names
from ..learning import count_parameters
from ..run_folder import RECIPE, STATE, local_names


QUESTION = "What sound is heard?"


def facts_of_run(run: Path, checkpoint: Path, repo_id: str, base_model: str | None = None) -> dict[str, Any]:
    """The facts that `render_card` takes. Arguments and errors as in `card.card_for_run`."""
    recipe, status = _read_recipe(run)
    adapter_of = _base_of_adapter(checkpoint, base_model)
    config = _config(run, checkpoint, recipe, adapter_of)
    backbones = _backbones(recipe, config, run)
    relation = {"run": "finetune", "composed": "merge"}.get(status)
    training = {"status": status, **(describe_settings(recipe) if status == "run" else {})}
    if status == "run":
        if recipe.get("model"):
            training["method"] += (
                " It started from an earlier checkpoint, whose data and training are not listed here."
            )
        streamed = any(source.get("streaming") for source in recipe.get("train_data", []))
        training["outcome"] = describe_outcome(_last_state(run, checkpoint), streamed)
    return {
        "repo_id": repo_id,
        "name": repo_id.partition("/")[2],
        "relation": "adapter" if adapter_of else relation,
        "adapter_of": adapter_of,
        "backbones": backbones,
        "training": training,
        "data": _data(recipe, run) if status == "run" else [],
        "languages": _languages(backbones),
        **_shape(config),
        **_prompt(checkpoint),
        "limitations": [],
    }


def _read_recipe(run: Path) -> tuple[dict[str, Any], str]:
    """The run's recipe, and the `training.status` of the facts."""
    for folder, status in ((run, "run"), (run.resolve().parent, "composed")):
        path = folder / RECIPE
        if path.exists() and (status == "run" or run.resolve().name == BASE):
            return read_yaml(path), status
    return {}, "unknown"


def _base_of_adapter(checkpoint: Path, base_model: str | None) -> str | None:
    config = checkpoint / ADAPTER_CONFIG_NAME
    if not config.exists():
        return None
    base = base_model or read_object(config).get("base_model_name_or_path")
    if not isinstance(base, str) or not is_hub_id(base) or Path(base).exists():
        raise ValueError(
            f"The base model of the adapter in {checkpoint} is {base!r}, which others cannot load. Push that first, "
            "and give its Hub id as base_model."
        )
    return base


def _config(run: Path, checkpoint: Path, recipe: dict[str, Any], adapter_of: str | None) -> PreTrainedConfig:
    composed = run / BASE
    place: str | Path = checkpoint
    if adapter_of is not None:
        place = composed if (composed / CONFIG_NAME).exists() else recipe.get("model") or adapter_of
    with readable_json(place):
        return AutoConfig.from_pretrained(place)


def _backbones(recipe: dict[str, Any], config: PreTrainedConfig, run: Path) -> dict[str, str | None]:
    """Hub ids or absolute local paths; if training started from a checkpoint, its id in both roles."""
    model = recipe.get("model")
    if model and _is_on_hub(model, recipe, run):
        return {"audio": model, "text": model}
    recorded = {"audio": config.audio_config.name_or_path, "text": config.text_config.name_or_path}
    names = {part: recipe.get(f"{part}_model") or name or None for part, name in recorded.items()}
    return {
        part: name
        if not name or _is_on_hub(name, recipe, run)
        else str((_find_local(name, run) or Path(name)).absolute())
        for part, name in names.items()
    }


def _is_on_hub(name: str, recipe: dict[str, Any], run: Path) -> bool:
    """Whether a name of the recipe is a Hub id: a relative path of two parts, which may be gone by now, looks like one."""
    is_file = Path(name).suffix.lower() in ALL
    return is_hub_id(name) and not is_file and name not in local_names(recipe) and not _find_local(name, run)


def _find_local(name: str, run: Path) -> Path | None:
    """
    A local folder or file that a recipe names, relative to here or to where the run was started, if it is still there.
    """
    places = (folder / name for folder in (Path.cwd(), *run.resolve().parents))
    return next((place.resolve() for place in places if place.exists()), None)


def _data(recipe: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    sources = recipe.get("train_data", [])
    counts = recipe.get("examples")  # of each set; GRPO records their sum
    counts = counts if isinstance(counts, list) else [counts] if len(sources) == 1 else [None] * len(sources)
    return [describe_source(source, _dataset(source, recipe, run), count) for source, count in zip(sources, counts)]


def _dataset(source: dict[str, Any], recipe: dict[str, Any], run: Path) -> Dataset:
    path = source["path"]
    local = _find_local(path, run)
    known = DATASETS.get(path)
    if known is None and _is_on_hub(path, recipe, run):
        parts = [f"{key} `{source[key]}`" for key in ("name", "split") if source.get(key)]
        return Dataset(path, ", ".join(parts) + ".", hub_id=path)
    known = known or Dataset("A local set", "it is not on the Hub.")
    report = local / REPORT if local else None
    prepared = read_object(report) if report and report.exists() else {}
    return Dataset(known.name, known.description + _describe_report(prepared))


def _describe_report(report: dict[str, Any]) -> str:
    """The counts of `falcon3-audio open-asqa prepare`; empty for other sets."""
    if report.get("parameters", {}).get("source") != "open-asqa" or not report.get("finished"):
        return ""
    total, annotations = report["total"], report["parameters"]["annotations"]
    return (
        f" Used here: {total['clips']:,} clips, {total['hours']:,g} hours and {total['questions']:,} questions of "
        f"{', '.join(report['datasets'])}; sha256 of the annotations `{annotations['sha256']}`."
    )


def _last_state(run: Path, checkpoint: Path) -> dict[str, Any]:
    paths = [folder / STATE for folder in (checkpoint, run)]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise ValueError(f"The run in {run} has no {STATE}: it has not finished. Resume it, or give a checkpoint-N.")
    return read_object(path)


def describe_outcome(state: dict[str, Any], streamed: bool = False) -> list[str]:
    """Lines about the outcome of a training, from its `trainer_state.json`; streamed sets have no epochs."""
    passes = " of a stream" if streamed else f", {state['epoch']:.4g} epochs"
    lines = [f"{state['global_step']:,} steps{passes}."]
    kept = next((entry for entry in state["log_history"] if LOADED in entry), None)
    if kept:
        lines.append(
            f"The weights are those of step {kept[LOADED]:,}, the best by its evaluation ({kept['loaded_metric']:.4g})."
        )
    logs = [entry for entry in state["log_history"] if "loss" in entry]
    if logs:
        before = logs[-2]["step"] if len(logs) > 1 else 0
        ended = [f"{key} {logs[-1][key]:.4g}" for key in ("loss", "reward") if key in logs[-1]]
        lines.append(f"At the end: {', '.join(ended)} (mean of steps {before + 1:,} to {logs[-1]['step']:,}).")
        if "num_dropped" in logs[-1]:
            lines.append(
                f"{logs[-1]['num_shortened']:,} examples were shortened and {logs[-1]['num_dropped']:,} left out."
            )
    until = kept[LOADED] if kept else state["global_step"]
    lines += _describe_hearing([entry for entry in state["log_history"] if entry.get("step", 0) <= until])
    peaks = [entry["peak_memory_gib"] for entry in logs if "peak_memory_gib" in entry]
    if peaks:
        lines.append(f"{max(peaks):.3g} GiB of memory at most in one process (measured).")
    return lines


def _describe_hearing(log_history: list[dict[str, Any]]) -> list[str]:
    """The last result of each evaluated set: whether the answers depend on the audio."""
    last = {name: entry for entry in log_history for name in hearing_names([entry])}
    return [
        f"After {entry['step']:,} steps silence in place of the clips costs {entry[name]:.4g} nats per answer token "
        f"({name}{_interval(name, entry)})."
        if isfinite(entry[name])
        else f"After {entry['step']:,} steps {name} could not be measured: with silence the loss is not finite."
        for name, entry in last.items()
    ]


def _interval(name: str, entry: dict[str, Any]) -> str:
    if f"{name}_low" not in entry:  # too few clips
        return ""
    return f"; 95 % interval {entry[f'{name}_low']:.4g} to {entry[f'{name}_high']:.4g}"


def _languages(backbones: dict[str, str | None]) -> list[str]:
    audio = str(backbones["audio"])
    if licence_of(audio) is None:  # an encoder that is not listed
        return []
    if is_english_encoder(audio):
        return ["en"]
    return list(FALCON_LANGUAGES) if licence_of(str(backbones["text"])) is FALCON else []


def _shape(config: PreTrainedConfig) -> dict[str, Any]:
    with torch.device("meta"):
        network = Falcon3AudioForConditionalGeneration(config)
    network.tie_weights()
    text = config.text_config
    layers = quantizable_layers(network.model.language_model)
    return {
        "parameters": {part: total for part, (total, _) in count_parameters(network).items()}
        | {"quantizable": sum(layer.weight.numel() for layer in layers)},
        "cache_values_per_token": cache_values_per_token(text),
        "context": context_length(text),
        "dtype": str(config.dtype).removeprefix("torch.") if config.dtype else None,
    }


def _prompt(checkpoint: Path) -> dict[str, Any]:
    with readable_json(checkpoint):
        processor = AutoProcessor.from_pretrained(checkpoint)
    content = [{"type": "audio", "path": "clip.wav"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    options = ("pooling_window", "pad_to_window", "trailing_silence", "read_trailing_silence", "max_audio_seconds")
    return {
        "prompt": prompt.replace(processor.audio_token, "{audio}"),
        "audio": {name: getattr(processor, name) for name in options},
    }


__all__ = ["facts_of_run"]
