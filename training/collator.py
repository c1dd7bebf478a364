"""From conversations with sounds to a training batch, through the processor.

The loss is on the assistant's answers and their end tokens only (labels come from the chat template's generation
markers). Audio is never cut: an example over `max_length` loses the end of its text, or is left out where its audio and
question alone are too long or a clip exceeds the processor's `max_audio_seconds`; both are counted in the batch. A batch
always holds a clip, so that encoder and projector get a gradient on every device; one without any gets a hundredth of
a second of silence that nothing is learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence

from falcon3_audio.processing import SAMPLING_RATE, AudioTooLongError, Falcon3AudioProcessor


IGNORED = -100  # the label of what is not learned, as in torch's cross entropy
# What a batch says about itself; `AudioSFTTrainer` takes these out before the model sees them.
COUNTERS = ("num_shortened", "num_dropped")


@dataclass
class AudioChatCollator:
    """
    Data collator for TRL's `SFTTrainer` (with `remove_unused_columns=False` and
    `dataset_kwargs={"skip_prepare_dataset": True}`, since the processor does all preparation here).

    Args:
        processor (`Falcon3AudioProcessor`): The one that belongs to the model.
        max_length (`int`, *optional*): Longest example in tokens, audio included. `None`: no limit.
    """

    processor: Falcon3AudioProcessor
    max_length: int | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: Rows with `messages`, chats as `Falcon3AudioProcessor.apply_chat_template` takes them, and
                *optionally* `origin`, what errors call them.

        Returns:
            `input_ids`, `attention_mask` and `labels` of shape `(rows, tokens)`, padded on the right;
            `input_features` `(audios, mel bands, frames)` and `input_features_mask` `(audios, frames)`; and the
            scalars `num_shortened` and `num_dropped`.

        Raises:
            `ValueError`: for an example that has no answer, that the chat template refuses or whose audio cannot be
                used, by its `origin`.
        """
        encoded = [self._encode(example) for example in examples]
        fitting = [self._fit(row) for row in encoded]
        rows = [row for row in fitting if row is not None]
        shortened = sum(row is not None and row is not whole for row, whole in zip(fitting, encoded))
        counters = {"num_shortened": shortened, "num_dropped": len(fitting) - len(rows)}
        if not any("input_features" in row for row in rows):
            rows.append(self._silent_row())
        return self._pad(rows) | {name: torch.tensor(count) for name, count in counters.items()}

    def _encode(self, example: dict[str, Any]) -> dict[str, torch.Tensor] | None:
        """One example: 1-D `input_ids` and `labels`, and the features of its audios; `None` if a clip is too long."""
        options = {"return_labels": True, "truncation": False}
        try:
            row = self.processor.apply_chat_template(
                example["messages"], tokenize=True, return_dict=True, processor_kwargs=options
            )
        except AudioTooLongError:
            return None
        except (ValueError, TypeError, TemplateError) as error:
            raise ValueError(f"{example.get('origin', 'A training example')}: {error}") from error
        return {name: value[0] if name in ("input_ids", "labels") else value for name, value in row.items()}

    def _fit(self, row: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor] | None:
        """The row within `max_length`: as it is, without the end of its text, or `None` where that is not enough."""
        if row is None or self.max_length is None or len(row["input_ids"]) <= self.max_length:
            return row
        kept = row["labels"][: self.max_length] != IGNORED
        cut_audio = row["input_ids"][self.max_length :] == self.processor.audio_token_id
        if cut_audio.any() or not kept.any():
            return None
        return row | {name: row[name][: self.max_length] for name in ("input_ids", "labels")}

    def _silent_row(self) -> dict[str, torch.Tensor]:
        silence = np.zeros(SAMPLING_RATE // 100, dtype=np.float32)
        row = self.processor(text=self.processor.audio_token, audio=silence, sampling_rate=SAMPLING_RATE)
        ids = row["input_ids"][0]
        return dict(row) | {"input_ids": ids, "labels": torch.full_like(ids, IGNORED)}

    def _pad(self, rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in rows]
        features = [row["input_features"] for row in rows if "input_features" in row]
        masks = [row["input_features_mask"] for row in rows if "input_features" in row]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
            "input_features": join_on_time(features),
            "input_features_mask": join_on_time(masks),
        }


def join_on_time(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches of different lengths on the last axis, as one batch padded with zeros."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])
