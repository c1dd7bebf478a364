"""Pretrains a Llama of 3 M parameters on text from the audio world: it answers questions about a clip's description.

The chat format and the unused slots of the vocabulary are Falcon3's. A clip's description takes the place of its later
audio, followed by the question; the loss is on the answer and its end token. In half of the rows each token of the
description is repeated a few times, because audio takes about that many tokens: the model learns to read slow text
too. With `--without` it never sees some types of question, so that it must be taught those later: a frozen model
cannot learn them.
Run: `python -m falcon3_audio.training.tiny_backbones.make_llm OUT --clips 20480 --seed 0`
"""

import argparse
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from falcon3_audio.processing.tokenizer_falcon3_audio import FALCON3_CHAT_TEMPLATE

from ..world.audio_world import QUESTION_TYPES, draw_train
from .world_texts import END, ENOUGH_CLIPS, PAD, UNUSED, describe, make_tokenizer


SIZES = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 6, "num_attention_heads": 4}
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHUNK, BATCH_SIZE = 1024, 32  # clips whose conversations are sorted by length together, and conversations per step
MOST_REPEATS = 6
LEARNING_RATE = 1.5e-3


class Described(IterableDataset):
    """
    Batches of `input_ids`, `attention_mask` and `labels`, `(rows, tokens)`, about newly drawn clips, without questions
    of the types in `without`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chunks: int, seed: int, without: Collection[str] = ()):
        self.tokenizer, self.chunks, self.seed, self.without = tokenizer, chunks, seed, without

    def __len__(self) -> int:
        return self.chunks * (CHUNK // BATCH_SIZE)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        torch.set_num_threads(1)
        for chunk in range(self.chunks):
            rng = np.random.default_rng([self.seed, chunk])
            rows = []
            for clip, asked in draw_train(CHUNK, rng):
                asked = [question for question in asked if question["task"] not in self.without]
                rows += [self._row(describe(clip), asked, rng)] if asked else []
            rows.sort(key=lambda row: len(row[0]))
            for start in rng.permutation(np.arange(0, len(rows), BATCH_SIZE)).tolist():
                yield self._batch(rows[start : start + BATCH_SIZE])

    def _row(
        self, description: str, asked: list[dict[str, str]], rng: np.random.Generator
    ) -> tuple[list[int], list[int]]:
        """Ids and labels of one conversation: a description and all questions about its clip, in random order."""
        encode = self.tokenizer.encode
        ids = encode(description)
        if rng.random() < 0.5:
            ids = np.repeat(ids, rng.integers(1, MOST_REPEATS + 1, len(ids))).tolist()
        turns = [asked[index] for index in rng.permutation(len(asked))]
        before, after = ask(self.tokenizer, UNUSED[0] + turns[0]["instruction"]).split(UNUSED[0])
        prompt = [*encode(before), *ids, *encode(after)]
        labels: list[int] = []
        ids = []
        for turn in turns:
            prompt = prompt or encode("\n" + ask(self.tokenizer, turn["instruction"]))
            answer = encode(turn["output"] + END)
            ids += prompt + answer
            labels += [-100] * len(prompt) + answer
            prompt = []
        return ids, labels

    def _batch(self, rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
        shape = len(rows), max(len(ids) for ids, _ in rows)
        batch = {
            "input_ids": torch.full(shape, self.tokenizer.convert_tokens_to_ids(PAD)),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
        }
        for index, (ids, labels) in enumerate(rows):
            batch["input_ids"][index, : len(ids)] = torch.tensor(ids)
            batch["attention_mask"][index, : len(ids)] = 1
            batch["labels"][index, : len(ids)] = torch.tensor(labels)
        return batch


def ask(tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The prompt of one question, up to where the answer begins."""
    chat = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def make_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    model = LlamaForCausalLM(config)
    # The scale that the projector's LayerNorm gives to audio, so that both weigh the same in the residual stream.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=1.0)
    return model


def train(model: LlamaForCausalLM, rows: Described) -> None:
    """One pass over the rows: AdamW, cosine schedule, bfloat16 where it is faster."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(rows) // 20, len(rows))
    model.train()
    for batch in (progress := tqdm(DataLoader(rows, batch_size=None), total=len(rows), unit="batch", mininterval=20)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.no_grad()
def score(model: LlamaForCausalLM, rows: Described) -> float:
    """Share of correct answer tokens, end tokens included."""
    model.eval()
    right = told = 0
    for batch in rows:
        wanted = batch.pop("labels")[:, 1:]
        likeliest = model(**batch).logits[:, :-1].argmax(-1)
        right += int((likeliest == wanted).sum())
        told += int((wanted != -100).sum())
    return right / told


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the model")
    parser.add_argument("--clips", type=int, default=20_480, help="clips to ask about (default: %(default)s)")
    parser.add_argument(
        "--without",
        nargs="+",
        metavar="TYPE",
        choices=QUESTION_TYPES,
        default=[],
        help="types of question that it never sees: " + ", ".join(QUESTION_TYPES),
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    set_seed(options.seed)
    torch.set_num_threads(1)
    texts = []
    for clip, rows in draw_train(ENOUGH_CLIPS, np.random.default_rng(options.seed)):
        texts += [describe(clip), *(text for row in rows for text in (row["instruction"], row["output"]))]
    special = [*UNUSED, END, PAD, *ROLES]
    template: dict[str, Any] = {"chat_template": FALCON3_CHAT_TEMPLATE}
    tokenizer = make_tokenizer(texts, 1024, special, True, eos_token=END, pad_token=PAD, **template)
    model = make_model(tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(tokenizer)} tokens")
    chunks = -(-options.clips // CHUNK)
    train(model, Described(tokenizer, chunks, options.seed, options.without))
    print(score(model, Described(tokenizer, 1, options.seed + 1000, options.without)))
    model.to(torch.float16).save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
