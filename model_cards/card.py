"""Model cards: one template for all checkpoints, filled only from facts and measured results.

`facts/*.yaml` hold what is known about a checkpoint before it is trained; training/publishing/run_facts.py collects
the same facts from a finished run, and card.py next to it reads both. A missing fact is an error that names it; the
card of a checkpoint without results says so. Licences and training sets come from sources.py, scores from results.json
(see results.py).
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from falcon3_audio.text_sizes import nf4_bytes

from .card_facts import check_facts
from .results import check_entry, eval_results, table
from .sources import APACHE, TINY, is_english_encoder, is_hub_id, licence_of


TAGS = ("audio-language-model", "audio-question-answering", "falcon3-audio", "speech", "sound", "music")
POSITIONS_PER_SECOND = 50  # of Whisper's encoder
GIB = 2**30


def render_card(facts: dict[str, Any], results: list[dict[str, Any]]) -> ModelCard:
    """
    The card of a checkpoint.

    Args:
        facts: as in `facts/*.yaml`, with `repo_id` (ORG/NAME on the Hub), `data` (what it was trained on: a list of
            `sources.Dataset` fields with `examples` and `weight`) and the settings in `training`.
        results: entries of results.json, all for this checkpoint.

    Raises:
        `ValueError`: if facts are missing or invalid, or a result is for another model or has no provenance.
    """
    check_facts(facts)
    for entry in results:
        check_entry(entry)
        if entry["model"] != facts["repo_id"]:
            raise ValueError(f"got a result of {entry['model']} for the card of {facts['repo_id']}; leave it out.")
    data = metadata(facts, results)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(facts, results)}")


def metadata(facts: dict[str, Any], results: list[dict[str, Any]]) -> ModelCardData:
    """What the Hub reads: task, base models, data, licence, and the model index of the results."""
    backbones = [facts["backbones"][name] for name in ("text", "audio")]
    bases = [facts["adapter_of"]] if facts["relation"] == "adapter" else backbones
    bases = [base for base in dict.fromkeys(bases) if base and is_hub_id(base)]
    data = [source["hub_id"] for source in facts.get("data", []) if source["hub_id"]]
    adapter = ("lora", "peft") if facts["relation"] == "adapter" else ()
    others: dict[str, Any] = _licence(backbones)
    if bases and facts["relation"]:
        others["base_model_relation"] = facts["relation"]
    return ModelCardData(
        pipeline_tag="audio-text-to-text",
        library_name="transformers",
        base_model=bases or None,
        datasets=data or None,
        language=facts["languages"] or None,
        tags=[*TAGS, *adapter, "arxiv:2509.07526"],
        model_name=facts["name"] if results else None,
        eval_results=eval_results(results) or None,
        **others,
    )


def _licence(backbones: list[str | None]) -> dict[str, str]:
    """
    The strictest licence: the first of language model and encoder that the Hub has no name for, else the first. Empty
    if that is not known.
    """
    licences = [licence_of(base) if base else None for base in backbones]
    known = [licence.metadata for licence in licences if licence]
    strict = next((terms for terms in known if terms["license"] == "other"), None)
    return dict(strict or ({} if None in licences else known[0]))


def _text(facts: dict[str, Any], results: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"fenced": _fenced, "cell": _cell}
    template = environment.from_string((files(__package__) / "template.md.jinja").read_text(encoding="utf-8"))
    backbones = facts["backbones"]
    parts = (("encoder", backbones["audio"]), ("language model", backbones["text"]))
    rate = POSITIONS_PER_SECOND / facts["audio"]["pooling_window"]
    return template.render(
        {
            "adapter_of": None,
            "vllm": None,
            "data": [],
            "packages": [],
            **facts,
            "training": {"outcome": [], **facts["training"]},
        },
        backbones={name: _linked(base) for name, base in backbones.items()},
        licences=[(part, _linked(base), licence_of(base) if base else None) for part, base in parts],
        apache=APACHE,
        results=results,
        table=table,
        memory=memory(facts["parameters"]),
        english_encoder=is_english_encoder(str(backbones["audio"])),
        cache=_size(facts["cache_values_per_token"] * 2 * rate * 60),
        tokens_per_second=f"{rate:g}",
    )


def _fenced(text: str, mark: str) -> str:
    """Unchanged text in a fence of the character `mark`, "`" or "~", longer than any run of it in the text."""
    longest = max(map(len, re.findall(f"{re.escape(mark)}+", text)), default=0)
    line = mark * max(3, longest + 1)
    return f"{line}text\n{text}\n{line}"


def _cell(value: Any) -> str:
    """The content of a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def memory(parameters: dict[str, int]) -> list[tuple[str, str]]:
    """Memory for the weights: (precision, GiB)."""
    total = sum(parameters[part] for part in ("audio_tower", "multi_modal_projector", "language_model"))
    sizes = {
        "float32": 4 * total,
        "bfloat16 or float16": 2 * total,
        "4 bits (NF4) in the language model's layers, 16 bits elsewhere": nf4_bytes(total, parameters["quantizable"]),
    }
    return [(precision, f"{size / GIB:.3g}") for precision, size in sizes.items()]


def _size(size: float) -> str:
    return f"{size / GIB:.2g} GiB" if size >= GIB / 10 else f"{size / 2**20:.2g} MiB"


def _linked(base: str | None) -> str:
    """A base model as Markdown; for local folders only the name."""
    if not base:
        return "not recorded"
    if is_hub_id(base):
        return f"[{base}](https://huggingface.co/{base})"
    name = Path(base).name
    return f"`tiny_backbones/{name}` of this project" if TINY in f"/{base}" else f"a local folder, `{name}`"


__all__ = ["render_card"]
