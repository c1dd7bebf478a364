"""From conversations with sounds to a training batch, through the processor.

The loss is on the assistant's answers and their end tokens only (labels come from the chat template's generation
markers), and nothing is truncated: a conversation that lost its answer would be an error, not a silent skip.
"""

from dataclasses import dataclass
from typing import Any

import torch

from falcon3_audio.processing import Falcon3AudioProcessor


@dataclass
class AudioChatCollator:
    """
    Data collator for `Trainer` and TRL's `SFTTrainer` (with `remove_unused_columns=False` and
    `dataset_kwargs={"skip_prepare_dataset": True}`, since the processor does all preparation here).

    Args:
        processor (`Falcon3AudioProcessor`): The one that belongs to the model.
    """

    processor: Falcon3AudioProcessor

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: Rows with `messages`, chats as `Falcon3AudioProcessor.apply_chat_template` takes them.

        Returns:
            `input_ids`, `attention_mask` and `labels` of shape `(batch, tokens)`, and where there is sound
            `input_features` `(audios, mel bands, frames)` and `input_features_mask` `(audios, frames)`.
        """
        batch = self.processor.apply_chat_template(
            [example["messages"] for example in examples],
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_labels": True},
        )
        return dict(batch)
