"""The model of a run: composed, loaded, or merged from an earlier run's adapter.

Frozen weights keep the run's dtype; trained weights are float32 (also the new projector, which PEFT would leave in
bfloat16). A model composed from backbones is saved first, under `base` in the run's folder, so that the adapter has a
base model to load it onto, and every process and every resumed run starts from the same projector. If an earlier run
is trained further, its adapter merged into its base model is saved there too. A new run always recreates `base`: an
earlier attempt may have used another model, or the model of that name may have changed. learning.py decides what is
trained.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
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
from transformers.utils import CONFIG_NAME, logging

from falcon3_audio import FULL_PRECISION_MODULES
from falcon3_audio.adapters import BASE
from falcon3_audio.compose import compose
from falcon3_audio.processing import Falcon3AudioProcessor

from .arguments import COMPOSED, ModelArguments
from .collator import QUESTIONS, AudioChatCollator
from .projector_start import fit_projector
from .publishing.merge import merge
from .run_folder import find_checkpoint, makes_base


logger = logging.get_logger(__name__)

CLIPS_TO_FIT = 96  # over all sets; enough for means and variances, at 25 tokens per second of each clip


def load_model(
    arguments: ModelArguments,
    output_dir: str | Path,
    seed: int = 0,
    sets: Sequence[Dataset] = (),
    skip_bad_audio: bool = False,
    anew: bool = False,
) -> tuple[PreTrainedModel, Falcon3AudioProcessor]:
    """
    The model to train, as loaded, and its processor.

    Args:
        sets: the training sets, to fit the projector to.
        skip_bad_audio: whether clips in them that cannot be read are left out, or are errors.
        anew: whether to recreate a base model that is already in `output_dir`.

    Raises the errors of `compose`, of `from_pretrained` and of `merge`, and a `ValueError` if `arguments.model` was composed with
    other options than `arguments` has, or is a folder without a model.
    """
    folder = str(arguments.model)
    if makes_base(arguments.model):
        write = partial(_write_base, arguments, seed, sets, skip_bad_audio)
        folder = _make_base(Path(output_dir).resolve() / BASE, write, anew)
    _check_is_model(Path(folder))
    # Absolute if it is a folder: adapters record it, and the Auto classes then find it from any directory.
    folder = str(Path(folder).resolve()) if Path(folder).is_dir() else folder
    processor = AutoProcessor.from_pretrained(folder)
    if arguments.model:
        _check_composed(arguments, processor, AutoConfig.from_pretrained(folder))
        if arguments.projector_start != ModelArguments.projector_start:
            logger.warning(
                f"projector_start={arguments.projector_start} has no effect: {arguments.model} already has a projector. To fit a "
                "new one, give audio_model and text_model instead of model."
            )
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
        # bitsandbytes 0.50 repacks 4-bit weights on CPUs with bfloat16 units as soon as a model is evaluated, only for
        # widths that are multiples of 32, and training does not undo that.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, processor


def _check_composed(arguments: ModelArguments, processor: Falcon3AudioProcessor, config: PreTrainedConfig):
    found = {name: getattr(config, name, getattr(processor, name, None)) for name in COMPOSED}
    asked = {
        name: getattr(arguments, name)
        for name, default in COMPOSED.items()
        if name in arguments.given or getattr(arguments, name) != default
    }
    differing = [f"{name}={asked[name]!r} but it has {found[name]!r}" for name in asked if asked[name] != found[name]]
    if differing:
        raise ValueError(
            f"{arguments.model} is already composed with other options: {', '.join(differing)}. Leave them out, or "
            "give `audio_model` and `text_model` to compose a model with them."
        )


def _check_is_model(folder: Path):
    if not folder.is_dir() or (folder / CONFIG_NAME).exists():
        return  # else it is a name on the Hub
    last = find_checkpoint(folder)
    if last is not None:
        raise ValueError(
            f"{folder} is an unfinished run. Start it again to resume it, or train from its last checkpoint: `--model "
            f"{last}`."
        )
    raise ValueError(f"{folder} holds no model: there is no {CONFIG_NAME}. Give a composed checkpoint, or a run.")


def _make_base(folder: Path, make: Callable[[Path], Any], anew: bool) -> str:
    """Returns the folder, which the first process creates if it is missing or `anew`."""
    state = PartialState()
    if state.is_main_process and (anew or not (folder / CONFIG_NAME).exists()):
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        make(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    state.wait_for_everyone()
    if not (folder / CONFIG_NAME).exists():
        raise ValueError(
            f"{folder}, which the first process created, is not visible to process {state.process_index}: "
            "output_dir must be a folder that all machines share."
        )
    return str(folder)


def _write_base(arguments: ModelArguments, seed: int, sets: Sequence[Dataset], skip_bad_audio: bool, draft: Path):
    if arguments.model:
        draft.parent.mkdir(parents=True, exist_ok=True)
        merge(arguments.model, draft)
        return
    set_seed(seed)  # of the new projector
    compose(
        str(arguments.audio_model),
        str(arguments.text_model),
        draft,
        dtype=arguments.dtype,
        **{name: getattr(arguments, name) for name in COMPOSED},
    )
    if arguments.projector_start == "fitted":
        _fit(draft, sets, skip_bad_audio)


def _fit(folder: Path, sets: Sequence[Dataset], skip_bad_audio: bool):
    """Fits the projector of a composed model to the same number of clips from each set, and saves it."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForMultimodalLM.from_pretrained(folder, dtype="auto")
    collate = AudioChatCollator(processor, skip_bad_audio=skip_bad_audio)
    each = math.ceil(CLIPS_TO_FIT / max(1, len(sets)))
    examples = (part[index] for part in sets for index in torch.randperm(len(part))[:each].tolist())
    batches = (collate([example]) for example in examples)
    fit_projector(model, (batch for batch in batches if batch[QUESTIONS]))  # else its example was left out
    model.save_pretrained(folder)


def check_precision(model: PreTrainedModel, training: TrainingArguments):
    """Raises a `ValueError` if the frozen weights are 16-bit without bf16 or fp16: trained weights are float32."""
    if model.dtype != torch.float32 and not (training.bf16 or training.fp16):
        raise ValueError(
            f"The frozen weights are {model.dtype}, the trained ones are float32: set bf16 (with use_cpu on a CPU) or "
            "fp16, which compute with both, or set dtype to float32."
        )


def check_loss(loss: torch.Tensor, step: int):
    """Raises a `FloatingPointError` if the loss of the step after `step` is not finite, before any of it is saved."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss.item()} in step {step + 1}. Nothing of this step is saved; the checkpoints of earlier steps are "
            "intact. Usual causes are a learning rate that is too high and float16; look at the gradient norms of the "
            "last log lines."
        )


def compile_layers(model: PreTrainedModel):
    """
    Marks the language model's layers to be compiled on their first call, for any number of tokens; in place, so that
    names and checkpoints stay the same. With `pad_to_window` also the encoder's, which then always get whole windows.

    Without it the encoder is not compiled: its operations depend on how many groups of similar lengths a batch has, so
    it would be recompiled until dynamo gives up. For the same reason transformers' `torch_compile` is not used.
    """
    layers = [*model.model.language_model.layers]
    if model.config.pad_to_window:
        layers += model.model.audio_tower.layers
    for layer in layers:
        layer.compile(dynamic=True)


def disable_functional_dropout(model: torch.nn.Module):
    """
    Turns off the dropout that layers apply as a function, as Whisper's do; TRL's `disable_dropout` turns off modules.
    The config, with which the model is saved, keeps its values.
    """
    for module in model.modules():
        for name, value in vars(module).items():
            if name.endswith(("dropout", "layerdrop")) and isinstance(value, float):
                setattr(module, name, 0.0)


def train_in_float32(model: nn.Module):
    """TRL casts a quantised model's trained weights to bfloat16, where small steps round to 0; this undoes it."""
    if getattr(model, "is_quantized", False):
        for weight in model.parameters():
            weight.data = weight.data.float() if weight.requires_grad else weight.data
