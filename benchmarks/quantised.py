"""What 8 and 4 bits cost in accuracy and save in bytes: one checkpoint in several precisions, on the same questions.

    python -m benchmarks.quantised runs/demo/model --data runs/demo/world/test.json
    python -m benchmarks.quantised CHECKPOINT --data test.json --only float32 "bitsandbytes 8 bit"

Needs bitsandbytes and torchao (`pip install -e ".[quantised]"`). Only the language model's layers are quantised; the
rest is bfloat16 (`FULL_PRECISION_MODULES`). Reported for each precision: bytes of the weights in memory per tower,
scales included; right answers of `pipeline()`, greedy, by the content rule as in training/world/demo.py; how many
replies differ from those in float32; and the mean loss on the tokens of the right answers, which changes before
answers do. Speed is not measured.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    TorchAoConfig,
    pipeline,
)
from transformers.utils import logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from falcon3_audio import FULL_PRECISION_MODULES
from falcon3_audio.adapters import load_model
from falcon3_audio.evaluation.load_mmau import load_mmau
from falcon3_audio.evaluation.local_model import model_digest
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction
from falcon3_audio.evaluation.prompts import PROMPTS
from falcon3_audio.evaluation.questions import Question
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor, load_audio
from falcon3_audio.training.world.demo import ASKED

from .measure import print_table, record, run_script


PROMPT = ASKED["prompt"]
TOWERS = ("audio_tower", "multi_modal_projector")
LANGUAGE_MODEL = "language_model"  # with its head
BATCH = ASKED["batch_size"]
MIB = 2**20


def bitsandbytes_8_bit() -> QuantizationConfigMixin:
    return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=FULL_PRECISION_MODULES)


def bitsandbytes_4_bit() -> QuantizationConfigMixin:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=FULL_PRECISION_MODULES,
    )


def torchao_int8() -> QuantizationConfigMixin:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=FULL_PRECISION_MODULES)


def torchao_int4() -> QuantizationConfigMixin:
    """In groups of 32. On a CPU torchao 0.18 has only a prototype int4 kernel, whose result it cannot save."""
    if torch.cuda.is_available():
        from torchao.quantization import Int4WeightOnlyConfig

        config = Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d")
    else:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        config = PrototypeInt4WeightOnlyConfig(group_size=32)
    return TorchAoConfig(config, modules_to_not_convert=FULL_PRECISION_MODULES)


# name -> (dtype of the unquantised part, quantisation of the rest)
PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], QuantizationConfigMixin | None]]] = {
    "float32": (torch.float32, lambda: None),
    "bfloat16": (torch.bfloat16, lambda: None),
    "bitsandbytes 8 bit": (torch.bfloat16, bitsandbytes_8_bit),
    "bitsandbytes 4 bit (NF4)": (torch.bfloat16, bitsandbytes_4_bit),
    "torchao int8": (torch.bfloat16, torchao_int8),
    "torchao int4": (torch.bfloat16, torchao_int4),
}
REFERENCE = "float32"


def load(checkpoint: str, precision: str) -> PreTrainedModel:
    """
    Loads the checkpoint, on the first GPU if there is one.

    Raises a `ValueError` if the precision's library is not installed, and the errors of `from_pretrained`.
    """
    dtype, quantisation = PRECISIONS[precision]
    try:
        return load_model(checkpoint, dtype=dtype, quantization_config=quantisation(), device_map="auto").eval()
    except ImportError as error:
        raise ValueError(f'{precision} needs what `pip install -e ".[quantised]"` installs: {error}') from error


def weight_bytes(model: PreTrainedModel) -> dict[str, int]:
    """
    Bytes of each tower, with the scales of quantised weights. Call it before the model computes anything: on a CPU
    bitsandbytes then packs 4-bit weights in another order, and reading them unpacks them.
    """
    sizes = dict.fromkeys((*TOWERS, LANGUAGE_MODEL), 0)
    for name, tensor in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            sizes[next((tower for tower in TOWERS if f".{tower}." in name), LANGUAGE_MODEL)] += _bytes(tensor)
    return sizes


def _bytes(tensor: torch.Tensor) -> int:
    """Tensor subclasses, such as torchao's, list the tensors they consist of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def ask(
    model: PreTrainedModel, processor: Falcon3AudioProcessor, questions: Sequence[Question]
) -> tuple[list[str], float]:
    """The replies, and the mean loss on the tokens of the right answers, end tokens included."""
    pipe = pipeline("audio-text-to-text", model=model, processor=processor)
    replies: list[str] = []
    loss = count = 0.0
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        chats = [_chat(question) for question in batch]
        found = pipe(chats, batch_size=BATCH, max_new_tokens=ASKED["max_new_tokens"], do_sample=False)
        replies += [reply[0]["generated_text"].strip() for reply in found]
        answered = [chat + [{"role": "assistant", "content": question.answer}] for chat, question in zip(chats, batch)]
        inputs = processor.apply_chat_template(
            answered,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_labels": True, "padding": True, "return_tensors": "pt"},
        ).to(model.device, model.dtype)
        learned = int((inputs["labels"][:, 1:] >= 0).sum())
        with torch.no_grad():
            loss += model(**inputs).loss.item() * learned
        count += learned
    return replies, loss / count


def _chat(question: Question) -> list[dict[str, Any]]:
    clips = [
        {"type": "audio", "audio": load_audio(clip.read(), name=clip.name), "sampling_rate": SAMPLING_RATE}
        for clip in question.audio
    ]
    return [{"role": "user", "content": [*clips, {"type": "text", "text": PROMPTS[PROMPT](question)}]}]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Raises a `ValueError` or `OSError` for questions without answers, and the errors of `load`."""
    asked = load_mmau(given.data)
    questions = asked.questions
    if not questions or any(question.answer is None for question in questions):
        raise ValueError(f"{given.data} has questions without an answer; give questions that all have one.")
    processor = AutoProcessor.from_pretrained(given.checkpoint)
    found: dict[str, dict[str, Any]] = {}
    for precision in dict.fromkeys((REFERENCE, *given.only)):
        model = load(given.checkpoint, precision)
        sizes = weight_bytes(model)
        replies, loss = ask(model, processor, questions)
        right = sum(_is_right(reply, question) for reply, question in zip(replies, questions))
        reference = found[REFERENCE]["replies"] if found else replies
        found[precision] = {
            "bytes": sizes | {"together": sum(sizes.values())},
            "right": right,
            "differ": sum(reply != wanted for reply, wanted in zip(replies, reference)),
            "loss": loss,
            "replies": replies,
        }
        print(f"{precision}: {right} of {len(questions)} right", flush=True)
    _print(found, len(questions))
    results = {
        "questions": len(questions),
        "data_sha256": asked.sha256,
        "model_sha256": model_digest(Path(given.checkpoint)) if Path(given.checkpoint).is_dir() else None,
        "quantisers": {name: _version(name) for name in ("bitsandbytes", "torchao")},
        "precisions": found,
    }
    record(given, None, results)
    return results


def _is_right(reply: str, question: Question) -> bool:
    return is_right(Prediction(question.id, ANSWERED, reply, choices=question.choices, answer=question.answer))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None


def _print(found: dict[str, dict[str, Any]], questions: int):
    columns = ["", "encoder MiB", "projector MiB", "LLM MiB", "total MiB", "right", "differ", "loss"]
    rows = [
        [
            precision,
            *(f"{size / MIB:.2f}" for size in result["bytes"].values()),
            f"{result['right'] / questions:.1%}",
            str(result["differ"]),
            f"{result['loss']:.4f}",
        ]
        for precision, result in found.items()
    ]
    print_table(f"{questions} questions", columns, rows)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="questions in MMAU's format")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=PRECISIONS,
        default=list(PRECISIONS),
        metavar="PRECISION",
        help=f"precisions besides {REFERENCE} (default: {', '.join(PRECISIONS)})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmarks/quantised.json"),
        help="JSON to write (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.disable_progress_bar()
    return run_script("quantised", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
