"""Whisper's encoder with padding masked, as a reference for the audio tower."""

import math

import numpy as np
import torch
from tiny import SAMPLING_RATE, make_whisper
from transformers import WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioConfig, Falcon3AudioEncoder


WINDOW = 30 * SAMPLING_RATE


def make_pair(num_mel_bins: int = 80):
    """Whisper's encoder and ours with its weights, loaded by name."""
    whisper = make_whisper(num_mel_bins).get_encoder()
    encoder = Falcon3AudioEncoder(Falcon3AudioConfig(audio_config=whisper.config).audio_config)
    encoder.load_state_dict(whisper.state_dict())
    return whisper, encoder.eval()


@torch.no_grad()
def masked_reference(whisper, samples: np.ndarray, silence: float = 0.0) -> torch.Tensor:
    """
    Whisper's encoder over all 3000 frames of one window, attending only to the positions of real audio and of
    `silence` seconds of zeros after it.
    """
    padded = np.pad(samples, (0, WINDOW - len(samples)))
    extractor = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)
    features = extractor(padded, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    hidden = torch.nn.functional.gelu(whisper.conv1(features))
    hidden = torch.nn.functional.gelu(whisper.conv2(hidden)).transpose(1, 2) + whisper.embed_positions.weight
    positions = min(1500, math.ceil((math.ceil(len(samples) / 160) + round(silence * 100)) / 2))
    mask = torch.zeros(1, 1, 1500, 1500)
    mask[..., positions:] = torch.finfo(torch.float32).min
    for layer in whisper.layers:
        hidden = layer(hidden, mask)
    return whisper.layer_norm(hidden)[0, :positions]


def features_of(processor, *clips):
    text = [processor.audio_token] * len(clips)
    inputs = processor(text=text, audio=list(clips), sampling_rate=SAMPLING_RATE)
    return {name: inputs[name] for name in ("input_features", "input_features_mask")}
