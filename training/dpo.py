"""Direct preference optimisation: preference rows with sound become the batch that TRL's DPOTrainer wants.

DPOTrainer needs no subclass, only this collator: it hands whatever a batch holds to the model, so that the audio reaches
policy and reference. The chosen answers are the first half of a batch, the rejected ones the second, each half with the
audio of its prompts; the loss is on the answers and their end tokens.

    rows = rows.add_column("images", [[]] * len(rows))  # by it TRL knows rows that the collator prepares
    args = DPOConfig(output_dir, remove_unused_columns=False)
    DPOTrainer(model, args=args, train_dataset=rows, processing_class=processor, peft_config=lora,
               data_collator=AudioPreferenceCollator(processor)).train()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence

from falcon3_audio.processing import Falcon3AudioProcessor

from .collator import IGNORED, join_on_time
from .data.chats import audio_items, check_answers, clips_of, fill_in


@dataclass
class AudioPreferenceCollator:
    """
    Data collator for TRL's `DPOTrainer`, used as shown at the top of this file. Without the column `images` TRL would
    tokenize all rows, and hear all their audio, before training. Nothing is cut: `max_length` of `DPOConfig` has no
    effect.

    Args:
        processor (`Falcon3AudioProcessor`): The one that belongs to the model.
    """

    processor: Falcon3AudioProcessor

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: Rows with `prompt`, a chat that ends with the user's message; `chosen` and `rejected`, each a
                list of one assistant message; *optionally* `audio` or `audios`, the clips of audio items that have no
                source; and *optionally* `origin`, what errors call the row.

        Returns:
            `input_ids`, `attention_mask` and `completion_mask` of shape `(2 * rows, tokens)`, padded on the right, the
            mask 1 for the answer and its end token; and where there is sound `input_features` `(audios, mel bands,
            frames)` and `input_features_mask` `(audios, frames)`, every audio once per half.

        Raises:
            `ValueError`: for a row of another form or with audio that cannot be used, by its `origin`.
        """
        rows = [self._encode(example, answer) for answer in ("chosen", "rejected") for example in examples]
        ids = [row["input_ids"][0] for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "completion_mask": pad_sequence([_last_answer(row["labels"][0]) for row in rows], batch_first=True),
        }
        for name in ("input_features", "input_features_mask"):
            audio = [row[name] for row in rows if name in row]
            batch |= {name: join_on_time(audio)} if audio else {}
        return batch

    def _encode(self, example: dict[str, Any], answer: str) -> dict[str, torch.Tensor]:
        try:
            prompt, reply = fill_in(example["prompt"], clips_of(example), Path()), example[answer]
            if [message["role"] for message in [*prompt[-1:], *reply]] != ["user", "assistant"]:
                raise ValueError(
                    f"`prompt` must end with a user's message and `{answer}` be one assistant message, got {reply}"
                )
            check_answers(reply)
            if audio_items(reply):
                raise ValueError(f"`{answer}` must be text, got {reply}")
            options = {"return_labels": True, "truncation": False}  # of audio: too long a clip is an error
            return self.processor.apply_chat_template(
                [*prompt, *reply], tokenize=True, return_dict=True, processor_kwargs=options
            )
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{example.get('origin', 'A preference row')}: {error}") from error


def _last_answer(labels: torch.Tensor) -> torch.Tensor:
    """1 for the last unbroken stretch of labels: earlier answers of the chat belong to the prompt."""
    learned = labels != IGNORED
    last = int(learned.nonzero()[-1])
    before = (~learned[:last]).nonzero()
    mask = torch.zeros_like(labels)
    mask[int(before[-1]) + 1 : last + 1] = 1
    return mask
