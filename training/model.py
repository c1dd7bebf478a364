"""The model of a run: composed or loaded, with LoRA on the towers that are to learn, the projector trained in full.

Each tower has a LoRA pattern of its own, because bare layer names such as `q_proj` exist in both. Frozen weights keep the
run's dtype; what is trained is float32 (the new projector too, which PEFT would leave in bfloat16). A model that is composed
from backbones is saved first, under `base` in the run's folder: the adapter then has a base model to be loaded onto, and
every process and every resumed run starts from the same projector.
"""

import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
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

from falcon3_audio import FULL_PRECISION_MODULES, LORA_TARGET_MODULES
from falcon3_audio.compose import compose
from falcon3_audio.processing import Falcon3AudioProcessor

from .arguments import COMPOSED, LoraArguments, ModelArguments
from .collator import AudioChatCollator
from .projector_start import fit_projector
from .run_folder import BASE


CLIPS_TO_FIT = 96  # over all sets; each has 25 tokens a second, and what is estimated are means and variances
TOWERS = ("audio_tower", "language_model")
PROJECTOR = "multi_modal_projector"
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


def load_model(
    arguments: ModelArguments, output_dir: str | Path, seed: int = 0, sets: Sequence[Dataset] = ()
) -> tuple[PreTrainedModel, Falcon3AudioProcessor]:
    """
    The model to train, everything in it still as loaded, and its processor.

    Args:
        sets: the training sets, for a projector that is fitted to them.

    Raises the errors of `compose` and of `from_pretrained`, and a `ValueError` if `arguments.model` is an adapter, or was
    composed with other options than `arguments` has.
    """
    if arguments.model and (Path(arguments.model) / "adapter_config.json").exists():
        raise ValueError(
            f"{arguments.model} is an adapter; merge it into its model first (`falcon3-audio merge`) and give the result."
        )
    # Absolute where it is a folder: so adapters name it, and the Auto classes find it from anywhere.
    folder = arguments.model or str(_compose_base(arguments, Path(output_dir).resolve() / BASE, seed, sets))
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


def _compose_base(arguments: ModelArguments, folder: Path, seed: int, sets: Sequence[Dataset]) -> Path:
    state = PartialState()
    if state.is_main_process and not (folder / "config.json").exists():
        set_seed(seed)  # of the new projector
        draft = folder.with_name(f"{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        compose(
            str(arguments.audio_model),
            str(arguments.text_model),
            draft,
            dtype=arguments.dtype,
            **{name: getattr(arguments, name) for name in COMPOSED},
        )
        if arguments.projector_start == "fitted":
            _fit(draft, sets)
        draft.rename(folder)
    state.wait_for_everyone()
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{folder}, which the first process composed, is not to be seen from process {state.process_index}: "
            "output_dir must be a folder that all machines share."
        )
    return folder


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


def choose_trained_weights(model: PreTrainedModel, arguments: LoraArguments) -> LoraConfig | None:
    """
    The LoRA configuration for `SFTTrainer(peft_config=...)`, or `None` where no tower has LoRA: then the projector is
    all that is left trainable in `model`. Makes the projector float32 in either case.

    Raises a `ValueError` if a tower that is to have LoRA holds no layer of the names looked for.
    """
    projector = model.model.multi_modal_projector.to(torch.float32)
    chosen = {tower: getattr(arguments, f"lora_{tower}") for tower in TOWERS}
    patterns = [LORA_PATTERNS[tower][choice] for tower, choice in chosen.items() if choice != "none"]
    for pattern in patterns:
        _check_pattern(model, pattern)
    if not patterns:
        model.requires_grad_(False)
        projector.requires_grad_(True)
        return None
    return LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules="|".join(patterns),
        modules_to_save=[PROJECTOR],
        task_type="CAUSAL_LM",
    )


def _check_pattern(model: PreTrainedModel, pattern: str):
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not any(re.fullmatch(pattern, name) for name in linear):
        tower = pattern.split(r"\.")[1]
        names = sorted({re.sub(r"\d+", "N", name) for name in linear if f".{tower}." in name})
        raise ValueError(
            f"LoRA found no layers to adapt: nothing in the {tower} matches {pattern!r}. It has the layers {names}. Set "
            f"lora_{tower} to `none`, or choose a model whose layers are named like Llama's."
        )


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """
    (all, trained) parameters of each part: `audio_tower`, `multi_modal_projector`, `language_model` with its head.

    Adapters count as trained parameters of their tower; the untrained original that PEFT keeps of the projector does
    not count. 4-bit weights count as what they stand for.
    """
    counts = {part: [0, 0] for part in ("audio_tower", PROJECTOR, "language_model")}
    for name, parameter in model.named_parameters():
        if "original_module" in name:
            continue
        part = next((part for part in ("audio_tower", PROJECTOR) if f".{part}." in name), "language_model")
        size = parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
        counts[part][0] += size
        counts[part][1] += size if parameter.requires_grad else 0
    return {part: (total, trained) for part, (total, trained) in counts.items()}
