"""Our model and its peers in transformers, built from one description of widths and depths, with random weights.

The peers' classes take a Whisper-like encoder and any language model, as ours does; all get the same Llama. The
remaining differences are theirs: a one-layer projector in Qwen2-Audio, the last norm after pooling in both. LoRA is
the same for all (rank 8 on the linear layers of both towers, the projector in full, no dropout), as their layers have
Whisper's and Llama's names.
"""

import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3EncoderConfig,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioEncoderConfig,
    set_seed,
)

from falcon3_audio import Falcon3AudioConfig
from falcon3_audio.training.arguments import LoraArguments
from falcon3_audio.training.learning import choose_trained_weights

from .shapes import AUDIO_TOKEN, END_TOKEN, PAD_TOKEN, Shape


OURS = "falcon3-audio"
FLAMINGO = "audio-flamingo-3"
QWEN = "qwen2-audio"
KINDS = (OURS, FLAMINGO, QWEN)


def build(kind: str, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0):
    """A model of one of the `KINDS` with random weights, in evaluation mode."""
    set_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(_config(kind, shape), dtype=dtype)
    # Answers have the requested length.
    model.generation_config.pad_token_id = shape.text["pad_token_id"]
    model.generation_config.eos_token_id = shape.text["eos_token_id"]
    return model.eval()


def with_lora(model: PreTrainedModel, rank: int = 8) -> PeftModel:
    lora = choose_trained_weights(model, LoraArguments(lora_r=rank, lora_dropout=0.0))
    assert lora is not None  # None only if no tower has LoRA
    return get_peft_model(model, lora)


def _config(kind: str, shape: Shape):
    text = LlamaConfig(**{name: value for name, value in shape.text.items() if name != "model_type"})
    if kind == OURS:
        return Falcon3AudioConfig(audio_config=dict(shape.audio), text_config=text, audio_token_id=AUDIO_TOKEN)
    if kind == FLAMINGO:
        encoder = AudioFlamingo3EncoderConfig(**shape.audio)
        return AudioFlamingo3Config(audio_config=encoder, text_config=text, audio_token_id=AUDIO_TOKEN)
    encoder = Qwen2AudioEncoderConfig(
        num_mel_bins=shape.audio["num_mel_bins"],
        d_model=shape.audio["hidden_size"],
        encoder_layers=shape.audio["num_hidden_layers"],
        encoder_attention_heads=shape.audio["num_attention_heads"],
        encoder_ffn_dim=shape.audio["intermediate_size"],
    )
    return Qwen2AudioConfig(audio_config=encoder, text_config=text, audio_token_index=AUDIO_TOKEN)


def tokenizer() -> PreTrainedTokenizerFast:
    """A minimal tokenizer, for trainers that need the names of the pad and end tokens."""
    words = {"<end>": END_TOKEN, "<pad>": PAD_TOKEN, "<audio>": AUDIO_TOKEN}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), eos_token="<end>", pad_token="<pad>"
    )
