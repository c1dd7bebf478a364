"""Writes SmolLM2, which comes as GGUF, as transformers saves a Llama: dequantised, with its own tokenizer.

transformers reads GGUF, but it treats control tokens as normal words and groups digits; and it does not save a model
that it has read from GGUF. Both are fixed here.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from gguf import GGUFReader, TokenType
from tokenizers import Tokenizer, decoders, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|im_end|>",
}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
CONTEXT = 8192  # tokens


def make_smollm2(folders: Sequence[Path], out: Path, dtype: str) -> None:
    """Write the model of the only GGUF file in the first folder."""
    (path,) = folders[0].rglob("*.gguf")
    tokenizer = make_tokenizer(path)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    fields = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    # A new model: transformers does not save one that it read from GGUF.
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields | IDS | {"tie_word_embeddings": True}))
    model.load_state_dict(loaded.state_dict())
    model.to(getattr(torch, dtype)).generation_config = GenerationConfig(**IDS)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def make_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The GGUF file's tokenizer with SmolLM2's own pre-tokenizer (digits one by one), which GGUF only names."""
    loaded = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    digits, byte_level = (
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        extra_special_tokens=control_tokens(path),
        chat_template=loaded.chat_template,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        **TOKENS,
    )


def control_tokens(path: Path) -> list[str]:
    """The special tokens of a GGUF file."""
    fields = GGUFReader(path).fields
    tokens, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    return [token for token, kind in zip(tokens, kinds) if kind == TokenType.CONTROL]
