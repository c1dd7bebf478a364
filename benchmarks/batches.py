"""Precomputed features and token ids of a step, for our collator and a plain padding one: no tokenizer, no front end.

Ours goes through the project's own `AudioChatCollator`, with a stub processor that returns the precomputed tensors.
A peer's row is a question with its clip in a window of 30 s. Its collator pads rows to the longest, as its users do.
"""

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from falcon3_audio.training.collator import AudioChatCollator, join_on_time
from falcon3_audio.training.data.packing import IGNORED

from .clips import FRAMES_PER_SECOND, HEAD_TOKENS, LONGEST, Question
from .models import OURS, QWEN
from .shapes import AUDIO_TOKEN, END_TOKEN, FIRST_WORD, HEAD_TOKEN, PAD_TOKEN, Shape


WINDOW = LONGEST * FRAMES_PER_SECOND  # mel frames
MASKS = {QWEN: "feature_attention_mask"}  # a peer's name for the mask of its mel frames


class Step:
    """Features and ids of some questions, `features[clip]` of shape `(mel bands, frames)` and `words[number]`."""

    def __init__(self, questions: Sequence[Question], shape: Shape, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        frames = {question.clip: question.frames for question in questions}
        bands, vocabulary = shape.audio["num_mel_bins"], shape.text["vocab_size"]
        self.questions = list(questions)
        # One frame past the end, which the convolutions see; a peer's window has it too.
        self.features = {
            clip: torch.randn(bands, min(count + 1, WINDOW), generator=generator) for clip, count in frames.items()
        }
        self.words = [
            torch.randint(FIRST_WORD, vocabulary, (question.question + question.answer,), generator=generator)
            for question in questions
        ]
        for words in self.words:
            words[-1] = END_TOKEN

    def row(self, number: int, audio_tokens: int | None = None) -> dict[str, torch.Tensor]:
        """1-D `input_ids` and `labels` of a question (with `audio_tokens` audio tokens, by default its own number)."""
        question, words = self.questions[number], self.words[number]
        count = question.audio_tokens if audio_tokens is None else audio_tokens
        ids = torch.cat([torch.full((HEAD_TOKENS,), HEAD_TOKEN), torch.full((count,), AUDIO_TOKEN), words])
        labels = ids.clone()
        labels[: -question.answer] = IGNORED
        return {"input_ids": ids, "labels": labels}

    def audio(self, number: int, width: int | None = None) -> dict[str, torch.Tensor]:
        """`input_features` `(1, mel bands, width)` and their mask `(1, width)`, by default unpadded."""
        question = self.questions[number]
        features = self.features[question.clip]
        width = width or features.shape[1]
        mask = (torch.arange(width) < question.frames).long()
        padded = pad(features, (0, width - features.shape[1]))
        return {"input_features": padded[None], "input_features_mask": mask[None]}

    def first(self, count: int) -> "Step":
        """Only the step's first questions."""
        part = copy.copy(self)
        part.questions = self.questions[:count]
        return part

    def dataset(self) -> Dataset:
        """Rows as read from a training set: the inputs of our collator, and the number of the question."""

        def read(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            examples = [self._example(number) for number in batch["question"]]
            return {name: [example[name] for example in examples] for name in examples[0]}

        return Dataset.from_dict({"question": list(range(len(self.questions)))}).with_transform(read)

    def questions_per_clip(self) -> list[int]:
        clips = [question.clip for question in self.questions]
        return [clips.count(clip) for clip in dict.fromkeys(clips)]

    def _example(self, number: int) -> dict[str, Any]:
        sound = {"type": "audio", "audio": number}
        messages = [
            {"role": "user", "content": [sound, {"type": "text", "question": number}]},
            {"role": "assistant", "content": "looked up"},
        ]
        return {"question": number, "messages": messages, "origin": str(number), "clip": self.questions[number].clip}


class ReadyProcessor:
    """Replaces `Falcon3AudioProcessor` in `AudioChatCollator`: looks chats up in a `Step`."""

    audio_token, audio_token_id = "<audio>", AUDIO_TOKEN
    tokenizer = SimpleNamespace(pad_token_id=PAD_TOKEN)

    def __init__(self, step: Step):
        self.step = step

    def apply_chat_template(self, messages: Sequence[dict[str, Any]], **kwargs: Any) -> dict[str, torch.Tensor]:
        sound, text = messages[0]["content"]
        # The collator passes silence instead of a clip that it already has.
        heard = isinstance(sound["audio"], int)
        row = self.step.row(text["question"], None if heard else 1)
        audio = self.step.audio(text["question"]) if heard else {}
        return {name: value[None] for name, value in row.items()} | audio

    def __call__(self, **kwargs: Any) -> dict[str, torch.Tensor]:
        """A clip of one position of silence, the only thing that the collator requests without a chat."""
        bands = self.step.features[self.step.questions[0].clip].shape[0]
        silence = {"input_features": torch.zeros(1, bands, 3), "input_features_mask": torch.tensor([[1, 0, 0]])}
        return {"input_ids": torch.full((1, 1), AUDIO_TOKEN)} | silence


def our_collator(step: Step) -> AudioChatCollator:
    return AudioChatCollator(ReadyProcessor(step), questions_per_row=None)  # type: ignore[arg-type]


def prompts(kind: str, step: Step, numbers: Sequence[int]) -> dict[str, torch.Tensor]:
    """Inputs of `generate` for some questions without their answers, padded on the left; a clip for each."""
    rows = [step.row(number)["input_ids"][: -step.questions[number].answer] for number in numbers]
    audio = [step.audio(number, None if kind == OURS else WINDOW) for number in numbers]
    return {
        "input_ids": pad_sequence(rows, batch_first=True, padding_value=PAD_TOKEN, padding_side="left"),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left"),
        "input_features": join_on_time([clip["input_features"] for clip in audio]),
        MASKS.get(kind, "input_features_mask"): join_on_time([clip["input_features_mask"] for clip in audio]),
    }


class PaddingCollator:
    """A peer's collator: a row for each question, padded on the right to the longest; all windows are 30 s."""

    def __init__(self, kind: str, step: Step):
        self.kind, self.step = kind, step

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [example["question"] for example in examples]
        rows = [self.step.row(number) for number in numbers]
        ids = [row["input_ids"] for row in rows]
        audio = [self.step.audio(number, WINDOW) for number in numbers]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=PAD_TOKEN),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
            "input_features": torch.cat([clip["input_features"] for clip in audio]),
            MASKS.get(self.kind, "input_features_mask"): torch.cat([clip["input_features_mask"] for clip in audio]),
        }
