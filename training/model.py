"""The model of a run: composed, loaded, or made of a former run's adapter.

Frozen weights keep the run's dtype; what is trained is float32 (the new projector too, which PEFT would leave in bfloat16). A
model that is composed from backbones is saved first, under `base` in the run's folder: the adapter then has a base model to be
loaded onto, and every process and every resumed run starts from the same projector. So is a run that is trained on: its
adapter merged into its base model. What of the model learns is in learning.py.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForMultimodalLM,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    TrainingArguments,
    set_seed,
)

from falcon3_audio import FULL_PRECISION_MODULES
from falcon3_audio.compose import compose
from falcon3_audio.processing import Falcon3AudioProcessor

from .arguments import COMPOSED, ModelArguments
from .collator import AudioChatCollator
from .projector_start import fit_projector
from .publishing.merge import ADAPTER_CONFIG, merge
from .run_folder import BASE


CLIPS_TO_FIT = 96  # over all sets; each has 25 tokens a second, and what is estimated are means and variances


def load_model(
    arguments: ModelArguments, output_dir: str | Path, seed: int = 0, sets: Sequence[Dataset] = ()
) -> tuple[PreTrainedModel, Falcon3AudioProcessor]:
    """
    The model to train, everything in it still as loaded, and its processor.

    Args:
        sets: the training sets, for a projector that is fitted to them.

    Raises the errors of `compose`, of `from_pretrained` and of `merge`, and a `ValueError` if `arguments.model` was composed with
    other options than `arguments` has.
    """
    folder = arguments.model
    if folder is None or (Path(folder) / ADAPTER_CONFIG).exists():
        base = Path(output_dir).resolve() / BASE
        folder = _make_base(
            base, lambda draft: _merge(arguments, draft) if arguments.model else _compose(arguments, draft, seed, sets)
        )
    # Absolute where it is a folder: so adapters name it, and the Auto classes find it from anywhere.
    folder = str(Path(folder).resolve()) if Path(folder).is_dir() else folder
    processor = AutoProcessor.from_pretrained(folder)
    if arguments.model:
        _check_composed(arguments, processor, AutoConfig.from_pretrained(folder))
    quantization = None
    if arguments.load_in_4bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=arguments.dtype if arguments.dtype != "auto" else "bfloat16",
            llm_int8_skip_modules=FULL_PRECISION_MODULES,
        )
    try:
        model = AutoModelForMultimodalLM.from_pretrained(
            folder,
            dtype=arguments.dtype,
            attn_implementation=arguments.attn_implementation,
            quantization_config=quantization,
        )
    except SafetensorError as error:
        raise ValueError(
            f"The weights in {folder} cannot be read: {error}. Copy or compose that model again."
        ) from error
    for module in model.modules():
        # bitsandbytes 0.50 repacks 4-bit weights on CPUs with bfloat16 units as soon as a model is evaluated, for widths
        # that are multiples of 32 alone, and training does not take that back.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, processor


def _check_composed(arguments: ModelArguments, processor: Falcon3AudioProcessor, config: PreTrainedConfig):
    found = {name: getattr(config, name, getattr(processor, name, None)) for name in COMPOSED}
    asked = {
        name: getattr(arguments, name) for name, default in COMPOSED.items() if getattr(arguments, name) != default
    }
    differing = [
        f"{name}={asked[name]!r} but that has {found[name]!r}" for name in asked if asked[name] != found[name]
    ]
    if differing:
        raise ValueError(
            f"{arguments.model} is composed already, and with other options: {', '.join(differing)}. Leave them out, or give "
            "`audio_model` and `text_model` to compose a model that has them."
        )


def _make_base(folder: Path, make: Callable[[Path], Any]) -> str:
    """The folder, which the first process makes, if it is not there yet."""
    state = PartialState()
    if state.is_main_process and not (folder / "config.json").exists():
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        make(draft)
        draft.rename(folder)
    state.wait_for_everyone()
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder}, which the first process made, is not to be seen from process {state.process_index}: "
            "output_dir must be a folder that all machines share."
        )
    return str(folder)


def _merge(arguments: ModelArguments, draft: Path):
    draft.parent.mkdir(parents=True, exist_ok=True)
    merge(str(arguments.model), draft)


def _compose(arguments: ModelArguments, draft: Path, seed: int, sets: Sequence[Dataset]):
    set_seed(seed)  # of the new projector
    compose(
        str(arguments.audio_model),
        str(arguments.text_model),
        draft,
        dtype=arguments.dtype,
        **{name: getattr(arguments, name) for name in COMPOSED},
    )
    if arguments.projector_start == "fitted":
        _fit(draft, sets)


def _fit(folder: Path, sets: Sequence[Dataset]):
    """Fits the projector of a composed model to as many clips of each set, and saves it."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto")
    collate = AudioChatCollator(processor)
    each = math.ceil(CLIPS_TO_FIT / max(1, len(sets)))
    examples = (part[index] for part in sets for index in torch.randperm(len(part))[:each].tolist())
    fit_projector(model, (collate([example]) for example in examples))
    model.save_pretrained(folder)


def check_precision(model: PreTrainedModel, training: TrainingArguments):
    """Raises a `ValueError` if the frozen weights are halves and computation is not: what is trained is float32."""
    if model.dtype != torch.float32 and not (training.bf16 or training.fp16):
        raise ValueError(
            f"The frozen weights are {model.dtype}, what is trained is float32: set bf16 (with use_cpu on a CPU) or fp16, "
            "which compute with both, or dtype to float32."
        )


def compile_layers(model: PreTrainedModel):
    """
    Has the language model's layers compiled when they are first called, for any number of tokens; in place, so that names
    and checkpoints stay the same.

    The encoder is left alone: what it runs depends on how many lengths of window a batch has, so it would be compiled again
    and again, until dynamo gives up. For the same reason transformers' `torch_compile` does not fit.
    """
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def train_in_float32(model: nn.Module):
    """TRL makes what is trained beside a quantised model bfloat16, where small steps round to nothing; this mends it."""
    if getattr(model, "is_quantized", False):
        for weight in model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
