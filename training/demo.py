"""From nothing to answers about sounds, on a CPU, in a few minutes.

Generates a small world of spoken words, sound events and music as wav files, trains a tiny model of this architecture
on questions about them with TRL's SFTTrainer (all weights, from scratch), saves it, loads it back through the Auto
classes, and asks the pipeline about clips it has not heard, with held-out voices, pitches and durations.

    python -m falcon3_audio.training.demo runs/demo
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    pipeline,
    set_seed,
)
from trl import SFTConfig, SFTTrainer

from falcon3_audio import Falcon3AudioConfig, Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.processing import SAMPLING_RATE, load_audio

from .audio_world import build_prompt, generate_world
from .collator import AudioChatCollator


SIZES = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 384}
PAD, END, AUDIO, UNKNOWN = "<|pad|>", "<|endoftext|>", "<|audio|>", "<|unknown|>"
BATCH_SIZE = 16
LEARNING_RATE = 2e-3
MAX_ANSWER_TOKENS = 24


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """One token per word and mark of the world's questions and answers, which keeps sequences short."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special_tokens = [END, PAD, AUDIO, UNKNOWN, "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special_tokens, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, unk_token=UNKNOWN)


def make_model(processor: Falcon3AudioProcessor) -> Falcon3AudioForConditionalGeneration:
    """Half a million random parameters in the shape of the real thing."""
    tokenizer = processor.tokenizer
    text_config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    config = Falcon3AudioConfig(
        audio_config=dict(SIZES), text_config=text_config, audio_token_id=processor.audio_token_id
    )
    model = Falcon3AudioForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [processor.audio_token_id]  # nobody is to say the placeholder
    return model


def read_training_rows(world: Path) -> list[dict[str, Any]]:
    """Open-ASQA rows as chats. The transcript under `input` is not shown: it would give the answer away."""
    return [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "audio", "path": str(world / row["audio_id"])},
                        {"type": "text", "text": row["instruction"]},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "text": row["output"]}]},
            ]
        }
        for row in json.loads((world / "train.json").read_text())
    ]


def train(rows: list[dict[str, Any]], output: Path, steps: int, seed: int):
    """Trains a new tiny model on chats and leaves a checkpoint folder in `output`."""
    set_seed(seed)
    # Matrices this small make two threads wait for each other; the second core loads the data.
    torch.set_num_threads(1)
    texts = [item["text"] for row in rows for turn in row["messages"] for item in turn["content"] if "text" in item]
    processor = Falcon3AudioProcessor.from_backbones(
        WhisperFeatureExtractor(), make_tokenizer(texts), audio_token=AUDIO
    )
    model = make_model(processor)
    print(f"training {model.num_parameters() / 1e6:.2f} M parameters on {len(rows)} questions for {steps} steps")
    arguments = SFTConfig(
        output_dir=str(output.with_name("trainer")),
        max_steps=steps,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=steps // 20,
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to="none",
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_num_workers=1,
        # The processor prepares the rows, sound included; TRL must neither tokenize nor cut nor drop columns.
        max_length=None,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=processor,
        data_collator=AudioChatCollator(processor),
    )
    trainer.train()
    trainer.save_model(str(output))
    processor.save_pretrained(output)


def ask(checkpoint: Path, world: Path, silence: bool = False) -> list[dict[str, Any]]:
    """The held-out questions with the model's answers, through the Auto classes and the pipeline."""
    pipe = pipeline(
        "audio-text-to-text",
        model=AutoModelForMultimodalLM.from_pretrained(checkpoint),
        processor=AutoProcessor.from_pretrained(checkpoint),
    )
    rows = json.loads((world / "test.json").read_text())
    paths = [str(world / row["audio_id"]) for row in rows]
    clips = [np.zeros_like(load_audio(path)) for path in paths] if silence else paths
    prompts = [build_prompt(row["question"], row["choices"]) for row in rows]
    replies = pipe(clips, text=prompts, sampling_rate=SAMPLING_RATE, batch_size=16, max_new_tokens=MAX_ANSWER_TOKENS)
    return [row | {"reply": reply[0]["generated_text"].strip()} for row, reply in zip(rows, replies)]


def is_right(row: dict[str, Any]) -> bool:
    """Whether the reply is the right option, word by word."""
    return re.findall(r"\w+", row["reply"].lower()) == re.findall(r"\w+", row["answer"].lower())


def accuracy(answered: list[dict[str, Any]]) -> dict[str, float]:
    """Share of right replies, over all questions and per task."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for row in answered:
        for name in ("all", row["task"]):
            asked[name] += 1
            right[name] += is_right(row)
    return {name: right[name] / count for name, count in asked.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the world and the checkpoint")
    parser.add_argument("--steps", type=int, default=1200, help="training steps (default: 1200)")
    parser.add_argument("--train-clips", type=int, default=900)
    parser.add_argument("--test-clips", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    world, checkpoint = options.output / "world", options.output / "model"
    begin = time.monotonic()
    generate_world(world, train_clips=options.train_clips, test_clips=options.test_clips, seed=options.seed)
    print(f"world ready after {time.monotonic() - begin:.0f} s")
    train(read_training_rows(world), checkpoint, options.steps, options.seed)
    print(f"model saved in {checkpoint} after {time.monotonic() - begin:.0f} s")
    answered, deaf = ask(checkpoint, world), ask(checkpoint, world, silence=True)
    for row in answered[:: max(1, len(answered) // 10)][:10]:
        mark = "right" if is_right(row) else f"wrong, it is {row['answer']!r}"
        print(f"  {row['audio_id']}: {row['question']}  ->  {row['reply']!r} ({mark})")
    hears, guesses = accuracy(answered), accuracy(deaf)
    for name in hears:
        print(f"{name:<8} {hears[name]:6.1%} right on clips never heard, {guesses[name]:6.1%} when fed silence")
    print(f"done after {time.monotonic() - begin:.0f} s; try: pipeline('audio-text-to-text', model='{checkpoint}')")
    return 0


if __name__ == "__main__":
    sys.exit(main())
