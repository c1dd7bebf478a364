"""A tiny random VITS model with its tokenizer."""

import json
from pathlib import Path

import torch
from transformers import VitsConfig, VitsModel, VitsTokenizer


VITS_LETTERS = "k abcdefghijlmnopqrstuvwxyz'"  # the first is the padding, as in MMS, where it is a letter, too
SAMPLES_PER_FRAME = 64


def make_vits(folder: Path, letters: str = VITS_LETTERS, num_speakers: int = 3, **options) -> str:
    """Saves model and tokenizer, and returns the folder; `options` are of the `VitsConfig`."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, ffn_dim=16, flow_size=16)
    sizes |= dict(spectrogram_bins=9, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=1)
    sizes |= dict(duration_predictor_num_flows=2, duration_predictor_filter_channels=16)
    vocoder = dict(upsample_initial_channel=16, upsample_rates=[8, 8], upsample_kernel_sizes=[16, 16])
    vocoder |= dict(resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3]])
    speakers = dict(num_speakers=num_speakers, speaker_embedding_size=4 if num_speakers > 1 else 0)
    config = VitsConfig(vocab_size=len(letters), sampling_rate=16_000, **(sizes | vocoder | speakers | options))
    VitsModel(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(letters)}))
    tokenizer = VitsTokenizer(
        str(folder / "vocab.json"), pad_token=letters[0], unk_token="<unk>", phonemize=False, language="eng"
    )
    tokenizer.save_pretrained(folder)
    return str(folder)
