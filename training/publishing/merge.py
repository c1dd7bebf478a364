"""Merges a run's LoRA into the weights: a plain checkpoint that needs no PEFT.

    falcon3-audio merge RUN OUT          # RUN: a run's folder, or one of its checkpoint-N
    falcon3-audio merge ADAPTER OUT --audio-model openai/whisper-base --text-model HuggingFaceTB/SmolLM2-135M-Instruct

The base model is `base` in the run's folder if the run composed it, else the one that the adapter names; that of an
exported adapter (export_adapter.py) is composed again from the given backbones. The result has the base model's dtype
and processor, and the code to load it with `trust_remote_code=True`; the folder is written completely or not at all.
A run in 4 bits is merged into the unquantised base, so its logits differ by the quantisation error. A run that trained
only the projector has a model without an adapter, which is saved in its dtype: a float32 projector is rounded to it.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForMultimodalLM, AutoProcessor
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.adapters import BASE, find_base
from falcon3_audio.processing import Falcon3AudioProcessor
from falcon3_audio.saved_json import readable_json
from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import whole_folder

from ..run_folder import STATE, explain, find_checkpoint
from .adapter_base import compose_base


# After a lost connection `push` resends at most this much. The same here: the pushed files must be the scored ones.
SHARD_SIZE = "5GB"


def merge(run: str | Path, output: str | Path, audio_model: str | None = None, text_model: str | None = None) -> Path:
    """
    Merges the adapter in `run` into its base model, saves the result in `output` and returns that path. Without LoRA there
    is nothing to merge: the trained model is saved there.

    Args:
        audio_model, text_model: backbones of an exported adapter: folders or Hub ids. Warns if their weights are not
            those that the adapter was trained on.

    Raises:
        `FileExistsError`: if `output` is not empty.
        `ValueError`: if `run` is not a training run, its base model cannot be found, or one of them is damaged.
        `OSError`, `SafetensorError`: if the result cannot be written.
    """
    run, output = Path(run), Path(output)
    if (audio_model is None) != (text_model is None):
        raise ValueError(
            "A base model is composed of two backbones; give both audio_model and text_model, or neither."
        )
    is_whole = not (run / ADAPTER_CONFIG_NAME).exists() and (run / STATE).exists() and (run / CONFIG_NAME).exists()
    if is_whole and audio_model:
        raise ValueError(f"{run} holds a whole model and no adapter: leave out audio_model and text_model.")
    if not is_whole:
        _check_adapter(run)
    with whole_folder(output) as folder:
        if audio_model and text_model:
            _merge_composed(run, audio_model, text_model, folder)
        else:
            _save(load_merged(run), load_processor(run), folder)
    return output


def load_merged(run: Path) -> Falcon3AudioForConditionalGeneration:
    """The model of a run with its adapter merged, or that of a checkpoint without one. Errors as in `merge`."""
    return load_adapted(run).merge_and_unload() if (run / ADAPTER_CONFIG_NAME).exists() else _load(run)


def _merge_composed(adapter: Path, audio_model: str, text_model: str, folder: Path):
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", suffix=".base", dir=folder.parent) as work:
        base = Path(work) / BASE
        for line in compose_base(adapter, audio_model, text_model, base):
            print(f"NOTE: {line}", file=sys.stderr)
        _save(load_adapted(adapter, base).merge_and_unload(), load_processor(base), folder)


def _save(model: Falcon3AudioForConditionalGeneration, processor: Falcon3AudioProcessor, folder: Path):
    forget_folders(model)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    processor.save_pretrained(folder)


def forget_folders(model: Falcon3AudioForConditionalGeneration):
    """Removes backbone names that are local folders from the configuration: a checkpoint is shared."""
    for config in (model.config.audio_config, model.config.text_config):
        if Path(config.name_or_path).is_absolute():
            config.name_or_path = ""


def load_adapted(run: Path, base: str | Path | None = None) -> PeftModel:
    """The base model (`base`, or the adapter's own) with the adapter of `run` on it, not merged. Errors as in `merge`."""
    _check_adapter(run)
    base = base or find_base(run)
    model = _load(base)
    with _readable(run):
        return PeftModel.from_pretrained(model, run)


def _load(folder: str | Path) -> Falcon3AudioForConditionalGeneration:
    with _readable(folder):
        return AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto")


def load_processor(folder: str | Path) -> Falcon3AudioProcessor:
    """Raises a `ValueError` if JSON files of the folder are damaged."""
    with _readable(folder):
        return AutoProcessor.from_pretrained(folder)


@contextmanager
def _readable(folder: str | Path) -> Iterator[None]:
    try:
        with readable_json(folder):
            yield
    except SafetensorError as error:
        raise ValueError(f"The weights in {folder} cannot be read: {error}.") from error


def _check_adapter(run: Path):
    if not (run / ADAPTER_CONFIG_NAME).exists():
        last = find_checkpoint(run)
        if last is not None:
            raise ValueError(f"{run} is a run that has not finished. Start it again to resume, or merge {last}.")
        plain = ": it is already a plain checkpoint" if (run / CONFIG_NAME).exists() else ""
        raise ValueError(f"{run} holds no adapter ({ADAPTER_CONFIG_NAME}){plain}. Give the folder of a training run.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio merge", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "run", metavar="RUN", help="folder of a training run, one of its checkpoints, or an exported adapter"
    )
    parser.add_argument("output", metavar="OUT", help="folder to create")
    parser.add_argument("--audio-model", help="for an exported adapter: Whisper, Hub id or folder")
    parser.add_argument("--text-model", help="for an exported adapter: language model, Hub id or folder")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog, explain=explain) as end:
        print(f"merged model saved in {merge(**vars(options))}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
