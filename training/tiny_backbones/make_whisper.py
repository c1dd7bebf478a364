"""Pretrains a Whisper of 2.7 M parameters on the audio world: it learns to describe what it hears in text.

Trains transformers' own Whisper on clips that are rendered on the fly, each seen once. Stock Whisper computes a full
window of 30 s; here the window of each batch is as long as its clips, which costs a twentieth of that, and the saved
model has Whisper's usual 30 s (its sinusoidal positions do not depend on the window). The text of speech includes who
speaks and how, that of sounds and music their kind, number, order and movement.
Run: `python -m falcon3_audio.training.tiny_backbones.make_whisper OUT --clips 51200 --seed 0`
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import (
    PreTrainedTokenizerBase,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    get_cosine_schedule_with_warmup,
    set_seed,
)
from transformers.models.whisper.modeling_whisper import sinusoids

from ..world.audio_world import draw_train
from ..world.audio_world_sounds import render
from ..world.sound_synthesis import SAMPLE_RATE
from .world_texts import END, ENOUGH_CLIPS, PAD, START, describe, make_tokenizer


SIZES = {"d_model": 192, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 768}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 384, "max_target_positions": 64}
SAMPLES_PER_POSITION = 320  # 20 ms
CHUNK, BATCH_SIZE = 1024, 32  # clips that are sorted by length together, and clips per step
LEARNING_RATE = 1e-3


class Captioned(IterableDataset):
    """Batches of (features `(clips, mel bands, frames)`, labels `(clips, tokens)`) of newly drawn clips."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chunks: int, seed: int):
        self.tokenizer, self.chunks, self.seed = tokenizer, chunks, seed
        self.extract = WhisperFeatureExtractor()

    def __len__(self) -> int:
        return self.chunks * (CHUNK // BATCH_SIZE)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        torch.set_num_threads(1)
        for chunk in range(self.chunks):
            rng = np.random.default_rng([self.seed, chunk])
            clips = [clip for clip, _ in draw_train(CHUNK, rng)]
            heard = sorted(((render(clip, rng), describe(clip)) for clip in clips), key=lambda pair: len(pair[0]))
            for start in rng.permutation(np.arange(0, CHUNK, BATCH_SIZE)).tolist():
                yield self._batch(heard[start : start + BATCH_SIZE], rng)

    def _batch(
        self, heard: list[tuple[np.ndarray, str]], rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        longest = -(-len(heard[-1][0]) // SAMPLES_PER_POSITION) * SAMPLES_PER_POSITION
        waveforms = []
        for waveform, _ in heard:  # filled up with the noise that clips end with, so that there is no padding
            after = 0.001 * rng.standard_normal(longest - len(waveform))
            waveforms.append(np.concatenate([waveform, after]).astype(np.float32))
        features = self.extract(waveforms, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")
        texts = self.tokenizer([text + END for _, text in heard], padding=True, return_tensors="pt")
        labels = texts["input_ids"].masked_fill(~texts["attention_mask"].bool(), -100)
        return features["input_features"], labels


def set_window(whisper: WhisperForConditionalGeneration, positions: int) -> None:
    """Give the encoder a window of that many positions (50 per second), with the same sinusoids as any other."""
    encoder = whisper.get_encoder()
    encoder.config.max_source_positions = positions
    encoder.max_source_positions = positions
    table = sinusoids(positions, whisper.config.d_model).to(whisper.dtype)
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(table, freeze=True)


def mask_some(features: torch.Tensor) -> torch.Tensor:
    """SpecAugment's masks (arXiv 1904.08779): with probability 1/4 each, up to 8 mels or 12 frames are silent."""
    features = features.clone()
    for row in features:
        for dimension, most in ((0, 8), (1, 12)):
            if torch.rand(()) < 0.25:
                width = int(torch.randint(1, most + 1, ()))
                start = int(torch.randint(row.shape[dimension] - width, ()))
                row.narrow(dimension, start, width).fill_(row.min())
    return features


def make_model(tokenizer: PreTrainedTokenizerBase) -> WhisperForConditionalGeneration:
    start, end, pad = tokenizer.convert_tokens_to_ids([START, END, PAD])
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        decoder_start_token_id=start,
        bos_token_id=start,
        eos_token_id=end,
        pad_token_id=pad,
        dropout=0.05,
        **SIZES,
        **DECODER,
    )
    return WhisperForConditionalGeneration(config)


def train(model: WhisperForConditionalGeneration, batches: Captioned) -> None:
    """One pass over the clips: AdamW, cosine schedule, bfloat16 where it is faster."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1 and parameter.requires_grad]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, len(batches) // 20, len(batches))
    progress = tqdm(
        DataLoader(batches, batch_size=None, num_workers=1), total=len(batches), unit="batch", mininterval=20
    )
    model.train()
    for features, labels in progress:
        set_window(model, features.shape[-1] // 2)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_features=mask_some(features), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def score(model: WhisperForConditionalGeneration, batches: Captioned) -> dict[str, float]:
    """Share of clips that are described exactly, over all and for speech, music and sound."""
    model.eval()
    right: dict[str, list[bool]] = {}
    for features, labels in batches:
        set_window(model, features.shape[-1] // 2)
        written = model.generate(features, max_new_tokens=40)
        wanted = batches.tokenizer.batch_decode(
            labels.masked_fill(labels < 0, batches.tokenizer.pad_token_id), skip_special_tokens=True
        )
        for got, text in zip(batches.tokenizer.batch_decode(written, skip_special_tokens=True), wanted):
            right.setdefault("all", []).append(got == text)
            kind = "speech" if ":" in text else "music" if " on " in text else "sound"
            right.setdefault(kind, []).append(got == text)
    return {kind: sum(marks) / len(marks) for kind, marks in right.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the model")
    parser.add_argument("--clips", type=int, default=51_200, help="clips to train on (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    set_seed(options.seed)
    torch.set_num_threads(1)
    texts = [describe(clip) for clip, _ in draw_train(ENOUGH_CLIPS, np.random.default_rng(options.seed))]
    tokenizer = make_tokenizer(texts, 256, [END, PAD, START], False, eos_token=END, pad_token=PAD, bos_token=START)
    model = make_model(tokenizer)
    window = model.config.max_source_positions
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    batches = Captioned(tokenizer, -(-options.clips // CHUNK), options.seed)
    train(model, batches)
    print(score(model, Captioned(tokenizer, 1, options.seed + 1000)))
    set_window(model, window)
    model.to(torch.float16).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    batches.extract.save_pretrained(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
