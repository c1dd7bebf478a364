"""Converts a Whisper from CTranslate2's format to that of transformers: weights, configs, tokenizer, processor."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from .real_backbones_ctranslate2 import read_ctranslate2, to_whisper_names


END = "<|endoftext|>"
END_MULTILINGUAL = 50257  # its id in the multilingual vocabulary; it is 50256 in the English one
TIMESTAMPS, TIMESTAMP_STEP = 1501, 0.02  # tokens, and seconds from one to the next


def make_whisper(folders: Sequence[Path], out: Path) -> None:
    """
    Write the Whisper whose files model.bin (also in parts), tokenizer.json and config.json are in `folders`.

    Raises:
        `ValueError`: files that are not a Whisper of format 6 with float weights.
    """
    parts = sorted(path for folder in folders for path in folder.rglob("model.bin*"))
    (source,) = [path.parent for folder in folders for path in folder.rglob("tokenizer.json")]
    variables = read_ctranslate2(b"".join(path.read_bytes() for path in parts))
    tokenizer = make_tokenizer(source)
    config = make_config(variables, tokenizer.eos_token_id)
    model = make_model(variables, config)
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    model.generation_config = make_generation_config(config, settings, tokenizer)
    model.save_pretrained(out)
    extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(extractor, tokenizer).save_pretrained(out)
    extractor.save_pretrained(out)  # preprocessor_config.json, where older transformers look


def make_model(variables: Mapping[str, np.ndarray], config: WhisperConfig) -> WhisperForConditionalGeneration:
    """The model in float16. Raises a `ValueError` if weights are missing or left over."""
    model = WhisperForConditionalGeneration(config).to(torch.float16)
    weights = {name: torch.from_numpy(value.copy()) for name, value in to_whisper_names(variables).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if set(missing) - {"proj_out.weight"} or unexpected:
        raise ValueError(f"Weights do not fit: missing {missing}, unexpected {unexpected}.")
    model.tie_weights()
    return model


def make_config(variables: Mapping[str, np.ndarray], end: int) -> WhisperConfig:
    """Shapes from the weights, the rest as OpenAI published it; `end` is the id of the end-of-text token."""
    vocab_size, width = variables["decoder/embeddings/weight"].shape
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": end + 1}
    return WhisperConfig(
        vocab_size=vocab_size,
        num_mel_bins=variables["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=_layers(variables, "encoder"),
        decoder_layers=_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        **ends,
    )


def _layers(variables: Mapping[str, np.ndarray], side: str) -> int:
    return sum(name.startswith(side) and name.endswith("self_attention/linear_1/bias") for name in variables)


def make_tokenizer(folder: Path) -> WhisperTokenizer:
    """
    The tokenizer of tokenizer.json, with the 1,501 timestamps that it leaves out.

    Raises:
        `ValueError`: if added tokens would get other ids than in the file.
    """
    source = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = sorted(source["added_tokens"], key=lambda token: token["id"])
    tokenizer = WhisperTokenizer(
        vocab=source["model"]["vocab"],
        merges=[tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in source["model"]["merges"]],
        unk_token=END,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[token["content"] for token in added],
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    times = (f"<|{number * TIMESTAMP_STEP:.2f}|>" for number in range(TIMESTAMPS))
    tokenizer.add_tokens([AddedToken(time, normalized=False, special=False) for time in times])
    expected = {token["content"]: token["id"] for token in added}
    if tokenizer.convert_tokens_to_ids(list(expected)) != list(expected.values()):
        raise ValueError(f"The added tokens of {folder / 'tokenizer.json'} would get other ids than in that file.")
    return tokenizer


def make_generation_config(
    config: WhisperConfig, settings: Mapping[str, Any], tokenizer: WhisperTokenizer
) -> GenerationConfig:
    """What Whisper's `generate` needs; suppressed tokens and alignment heads from CTranslate2's config.json."""
    find = tokenizer.convert_tokens_to_ids
    multilingual = config.eos_token_id == END_MULTILINGUAL
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        alignment_heads=settings["alignment_heads"],
        is_multilingual=multilingual,
        max_initial_timestamp_index=50,
        max_length=config.max_target_positions,
        no_timestamps_token_id=find("<|notimestamps|>"),
        prev_sot_token_id=find("<|startofprev|>"),
        return_timestamps=False,
        **(_languages_and_tasks(tokenizer) if multilingual else {}),
    )


def _languages_and_tasks(tokenizer: WhisperTokenizer) -> dict[str, dict[str, int]]:
    find, known = tokenizer.convert_tokens_to_ids, tokenizer.get_vocab()
    languages = [f"<|{code}|>" for code in LANGUAGES if f"<|{code}|>" in known]
    tasks = {task: find(f"<|{task}|>") for task in ("transcribe", "translate")}
    return {"lang_to_id": {language: find(language) for language in languages}, "task_to_id": tasks}
