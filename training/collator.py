"""From conversations with audio to a training batch, through the processor.

The loss is on the assistant's answers and their end tokens only (labels come from the chat template's generation
markers). Audio is never cut: an example over `max_length` loses the end of its text, or is left out if its audio and
question already exceed it or a clip exceeds the processor's `max_audio_seconds`; both are counted in the batch, as are
skipped examples whose clip cannot be read. A batch always has a clip, so that encoder and projector get a gradient on
every device; one without clips gets a hundredth of a second of silence that carries no loss.

Questions about one clip in the same batch (if clips are augmented: in the same pass over their set) share its audio: it
is decoded and encoded once, and appears once in a row, followed by each question and answer as a separate branch
(data/packing.py). Losses are those of separate rows.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from transformers.utils import logging

from falcon3_audio.processing import SAMPLING_RATE, AudioTooLongError, Falcon3AudioProcessor, UnreadableAudioError

from .augmentation import Augmentation, Augmenter
from .data.chats import check_answers, check_is_answered
from .data.packing import IGNORED, Row, Unit, join_branches, pack_units, pad_rows, split_rows
from .data.sampler import PASS


logger = logging.get_logger(__name__)

# Statistics in a batch; `AudioSFTTrainer` removes them before the model sees it.
COUNTERS = ("num_shortened", "num_dropped", "num_bad_audio")
MANY_DROPPED = 0.05  # a share of questions that a warning is worth
QUESTIONS = "num_questions"
# For evaluation: each example's number, and in batches which questions they have; see hearing.py.
NUMBER = "number"
ASKED = "asked"
SILENCE = np.zeros(SAMPLING_RATE // 100, dtype=np.float32)
AUDIO_INPUTS = ("input_features", "input_features_mask")
Chat = dict[str, torch.Tensor]


@dataclass
class AudioChatCollator:
    """
    Data collator for TRL's `SFTTrainer` (with `remove_unused_columns=False` and
    `dataset_kwargs={"skip_prepare_dataset": True}`, since the processor does all preparation here).

    Args:
        processor (`Falcon3AudioProcessor`): The model's processor.
        max_length (`int`, *optional*): Longest example in tokens, audio included. `None`: no limit.
        questions_per_row (`int`, *optional*): Maximum number of examples with the same `clip` that share a row and its
            audio; 1 for no sharing, `None` for all.
        skip_bad_audio (`bool`): Leave out examples whose clip cannot be read, with a warning that names them, instead of
            raising an error.
        augmenter (`Augmenter`, *optional*): Applied to training clips. Not for evaluation.
    """

    processor: Falcon3AudioProcessor
    max_length: int | None = None
    questions_per_row: int | None = 1
    skip_bad_audio: bool = False
    augmenter: Augmenter | None = None

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples: Rows with `messages`, chats as `Falcon3AudioProcessor.apply_chat_template` takes them, each item of
                content with its `type`, and *optionally* `origin`, their name in errors, and `clip`, equal in chats
                about the same audio: those that are also equal up to their last clip can share a row.

        Returns:
            `input_ids`, `attention_mask` and `labels` of shape `(rows, tokens)`, padded on the right;
            `input_features` `(audios, mel bands, frames)` and `input_features_mask` `(audios, frames)`; and the
            scalars `num_questions`, `num_shortened`, `num_dropped` and `num_bad_audio`. If a clip is shared, also
            `position_ids`, `segment_ids` and `prefix_ids`, see data/packing.py. If examples have a `number`, also
            `asked` `(questions, 3)`: for each question, in the order of the answers in the rows, its number, its
            clip's number, and 1 if there is a clip.

        Raises:
            `ValueError`: for an example with no answer or an empty one, that the chat template rejects or whose audio
                cannot be used; names its `origin`.
        """
        groups, counts = self._read(examples)
        batch = self._batches(groups, None)[0] | counts
        if any(NUMBER in example for example in examples):
            batch.setdefault(ASKED, torch.zeros(0, 3, dtype=torch.int64))
        return batch

    def micro_batches(self, examples: Sequence[dict[str, Any]], tokens: int) -> list[dict[str, torch.Tensor]]:
        """
        The same examples as batches of at most `tokens` positions (rows times tokens) each, as many as needed. A
        longer example gets its own batch; silence in a batch without audio can add a row. The counts are in the first
        batch.
        """
        groups, counts = self._read(examples)
        first, *others = self._batches(groups, tokens)
        return [first | counts, *others]

    def _read(self, examples: Sequence[dict[str, Any]]) -> tuple[list[list[Chat]], dict[str, torch.Tensor]]:
        """The chats that fit, grouped by clip, and the counts."""
        read = [(clip, self._encode_readable(clip)) for clip in self._by_clip(examples)]
        unread = sum(len(clip) for clip, chats in read if chats is None)
        groups = [
            [_numbered(chat, example) for chat, example in zip(chats, clip)]
            for clip, chats in read
            if chats is not None
        ]
        fitting = [[self._fit(chat) for chat in group] for group in groups]
        kept = [[chat for chat in group if chat is not None] for group in fitting]
        counts = {
            QUESTIONS: sum(map(len, kept)),
            COUNTERS[0]: sum(
                chat is not None and chat is not whole
                for group, wholes in zip(fitting, groups)
                for chat, whole in zip(group, wholes)
            ),
            COUNTERS[1]: len(examples) - unread - sum(map(len, kept)),
            COUNTERS[2]: unread,
        }
        return [group for group in kept if group], {name: torch.tensor(count) for name, count in counts.items()}

    def _batches(self, groups: Sequence[Sequence[Chat]], tokens: int | None) -> list[dict[str, torch.Tensor]]:
        if self.questions_per_row != 1 and (tokens is not None or any(len(group) > 1 for group in groups)):
            units = [unit for group in groups for unit in self._join(group, tokens)]
            return [self._share(rows) for rows in pack_units(units, tokens)]
        rows = split_rows([chat for group in groups for chat in group], _length, tokens)
        return [self._pad(some) for some in rows]

    def _join(self, group: Sequence[Chat], tokens: int | None) -> list[Unit]:
        """Chats about one clip as one unit, or as several if one would exceed `tokens`."""
        unit = join_branches(group, self.processor.audio_token_id)
        if len(group) == 1 or tokens is None or len(unit) <= tokens:
            return [unit]
        half = len(group) // 2
        return [*self._join(group[:half], tokens), *self._join(group[half:], tokens)]

    def _by_clip(self, examples: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        if self.questions_per_row == 1:
            return [[example] for example in examples]
        clips: dict[Any, list[dict[str, Any]]] = {}
        for number, example in enumerate(examples):
            clip = example.get("clip")
            # In another pass the same clip is augmented differently.
            turn = example.get(PASS) if self.augmenter else None
            key = number if clip is None else (clip, turn, _up_to_the_sound(example["messages"]))
            clips.setdefault(key, []).append(example)
        limit = self.questions_per_row or len(examples)
        return [group[start : start + limit] for group in clips.values() for start in range(0, len(group), limit)]

    def _encode_readable(self, examples: Sequence[dict[str, Any]]) -> list[Chat | None] | None:
        """As `_encode_clip`; `None` for a clip that cannot be read, if these are skipped."""
        try:
            return self._encode_clip(examples)
        except UnreadableAudioError as error:
            if not self.skip_bad_audio:
                raise
            logger.warning_once(f"Left out: {error}")
            return None

    def _encode_clip(self, examples: Sequence[dict[str, Any]]) -> list[Chat | None]:
        """Encodes examples about one clip, which is decoded only for the first; the others reuse its tokens."""
        first = self._augment(examples[0], self.augmenter) if self.augmenter else self._encode(examples[0])
        if first is None:
            return [None] * len(examples)
        return [first, *(self._encode_words(example, first) for example in examples[1:])]

    def _augment(self, example: dict[str, Any], augmenter: Augmenter) -> Chat | None:
        with _told_of(example):
            augmented = augmenter.of_example(example)
        chat = self._encode(augmented)
        if chat is None or "input_features" not in chat:
            return chat
        features = augmenter.of_features(example, chat["input_features"], chat["input_features_mask"])
        return chat | {"input_features": features}

    def _encode_words(self, example: dict[str, Any], first: Chat) -> Chat:
        """An example encoded with silence for its clip, with as many audio tokens as the clip has in `first`."""
        silent = self._encode(example | {"messages": _silenced(example["messages"])})
        if silent is None:
            raise ValueError(f"{example.get('origin')}: the processor's max_audio_seconds is below 0.01 s; raise it.")
        token = self.processor.audio_token_id
        counts = [end - start for start, end in _stretches(first["input_ids"] == token)]
        places = _stretches(silent["input_ids"] == token)
        return first | {
            name: _refill(silent[name], places, counts, value)
            for name, value in (("input_ids", token), ("labels", IGNORED))
        }

    def _encode(self, example: dict[str, Any]) -> Chat | None:
        """One example: 1-D `input_ids` and `labels`, and the features of its audios; `None` if a clip is too long."""
        options = {"return_labels": True, "truncation": False}
        try:
            with _told_of(example):
                check_is_answered(example["messages"])
                check_answers(example["messages"])
                row = self.processor.apply_chat_template(
                    example["messages"], tokenize=True, return_dict=True, processor_kwargs=options
                )
        except AudioTooLongError:
            return None
        return as_chat(row)

    def _fit(self, row: Chat | None) -> Chat | None:
        """The row within `max_length`: unchanged, without the end of its text, or `None` if that is not enough."""
        if row is None or self.max_length is None or len(row["input_ids"]) <= self.max_length:
            return row
        kept = row["labels"][: self.max_length] != IGNORED
        cut_audio = row["input_ids"][self.max_length :] == self.processor.audio_token_id
        if cut_audio.any() or not kept.any():
            return None
        return row | {name: row[name][: self.max_length] for name in ("input_ids", "labels")}

    def _share(self, rows: Sequence[Sequence[Unit]]) -> dict[str, torch.Tensor]:
        if not any(unit.audio for row in rows for unit in row):
            silence = join_branches([silent_chat(self.processor)], self.processor.audio_token_id)
            rows = _add_row(rows, [silence], lambda row: sum(map(len, row)), lambda row, last: [*row, *last])
        audio = [audio for row in rows for unit in row for audio in unit.audio]
        asked = [question for row in rows for unit in row for question in unit.asked]
        return pad_rows(rows, self.processor.tokenizer.pad_token_id) | join_audio(audio) | _join_asked(asked)

    def _pad(self, rows: Sequence[Chat]) -> dict[str, torch.Tensor]:
        asked = [row[ASKED] for row in rows if ASKED in row]
        if not any("input_features" in row for row in rows):
            rows = _add_row(rows, silent_chat(self.processor), _length, _behind)
        ids = [row["input_ids"] for row in rows]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=IGNORED),
        } | (join_audio(rows) | _join_asked(asked))


def newly_dropped(history: Sequence[dict[str, Any]], questions_of_a_step: int) -> list[str]:
    """A warning if the log's last line is the first by which many questions did not fit into `max_length`."""
    logged = [entry for entry in history if COUNTERS[1] in entry and entry["step"]]
    shares = [entry[COUNTERS[1]] / (entry["step"] * questions_of_a_step) for entry in logged]
    if not shares or shares[-1] <= MANY_DROPPED or max(shares[:-1], default=0) > MANY_DROPPED:
        return []
    return [
        f"{shares[-1]:.0%} of the questions so far were left out: their clips are longer than the processor's max_audio_seconds, or "
        "do not fit into max_length with an answer. Raise max_length, or split the clips."
    ]


def augmenting(collator: AudioChatCollator, options: dict[str, Any] | None, seed: int) -> AudioChatCollator:
    """The collator of training questions: unchanged, or with an augmenter."""
    if not options:
        return collator
    augmenter = Augmenter(Augmentation(**options), seed, collator.processor.max_audio_seconds)
    return replace(collator, augmenter=augmenter)


@contextmanager
def _told_of(example: dict[str, Any]) -> Iterator[None]:
    """Re-raises the errors of an example with its name."""
    origin = example.get("origin", "A training example")
    try:
        yield
    except AudioTooLongError:
        raise
    except UnreadableAudioError as error:
        raise UnreadableAudioError(f"{origin}: {error}") from error
    except (ValueError, TypeError, TemplateError) as error:
        raise ValueError(f"{origin}: {error}") from error


def _up_to_the_sound(messages: Sequence[dict[str, Any]]) -> tuple[Any, ...]:
    """The text up to the last clip, with the positions of the clips."""
    parts = [
        (number, item["type"], item.get("text")) for number, message in enumerate(messages) for item in _items(message)
    ]
    last = max((place for place, (_, kind, _) in enumerate(parts) if kind == "audio"), default=-1)
    return tuple(parts[: last + 1])


def _items(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _stretches(mask: torch.Tensor) -> list[tuple[int, int]]:
    """Start and end of each run of `True`."""
    steps = torch.diff(mask.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int))
    begins, ends = ((steps == step).nonzero().flatten().tolist() for step in (1, -1))
    return list(zip(begins, ends))


def _refill(
    values: torch.Tensor, places: Sequence[tuple[int, int]], counts: Sequence[int], value: int
) -> torch.Tensor:
    """The values with `places[i]` replaced by `counts[i]` times `value`."""
    parts, done = [], 0
    for (start, end), count in zip(places, counts):
        parts += [values[done:start], torch.full((count,), value)]
        done = end
    return torch.cat([*parts, values[done:]])


def as_chat(batch: Mapping[str, torch.Tensor]) -> Chat:
    """The processor's batch of one chat, with 1-D `input_ids` and `labels`."""
    return {name: value[0] if name in ("input_ids", "labels") else value for name, value in batch.items()}


def silent_chat(processor: Falcon3AudioProcessor) -> Chat:
    """A hundredth of a second of silence, of which nothing is learned."""
    chat = as_chat(processor(text=processor.audio_token, audio=SILENCE, sampling_rate=SAMPLING_RATE))
    return chat | {"labels": torch.full_like(chat["input_ids"], IGNORED)}


def end_in_silence(chats: Sequence[Chat], processor: Falcon3AudioProcessor) -> list[Chat]:
    """Chats without clips, with silence appended to the shortest."""
    return _join_shortest(chats, silent_chat(processor), _length, _behind)


def _length(chat: Chat) -> int:
    return len(chat["input_ids"])


def _behind(chat: Chat, silence: Chat) -> Chat:
    """Silence appended to a chat, where nothing attends to it."""
    return silence | {name: torch.cat([chat[name], silence[name]]) for name in ("input_ids", "labels")}


def _add_row(
    rows: Sequence[Row], more: Row, length: Callable[[Row], int], join: Callable[[Row, Row], Row]
) -> list[Row]:
    """Rows with one more, appended to the shortest row if the result is no longer than the longest."""
    lengths = [length(row) for row in rows]
    if not rows or min(lengths) + length(more) > max(lengths):
        return [*rows, more]
    return _join_shortest(rows, more, length, join)


def _join_shortest(
    rows: Sequence[Row], more: Row, length: Callable[[Row], int], join: Callable[[Row, Row], Row]
) -> list[Row]:
    place = min(range(len(rows)), key=lambda number: length(rows[number]))
    return [*rows[:place], join(rows[place], more), *rows[place + 1 :]]


def _numbered(chat: Chat | None, example: dict[str, Any]) -> Chat | None:
    """The chat with its entry of `asked`, if the example has a number."""
    if chat is None or NUMBER not in example:
        return chat
    number, clip = example[NUMBER], example.get("clip")
    clip = _only_source(example["messages"]) if clip is None else clip
    # A chat without exactly one clip counts as its own clip.
    clip = -1 - number if clip is None else clip_number(clip)
    return chat | {ASKED: torch.tensor([number, clip, int("input_features" in chat)])}


def _only_source(messages: Sequence[dict[str, Any]]) -> str | bytes | None:
    """Path, URL or bytes of a chat's clip, which other chats can share; `None` without a clip, or with several."""
    clips = [item for message in messages for item in _items(message) if item["type"] == "audio"]
    if len(clips) != 1:
        return None
    source = next((clips[0][key] for key in ("audio", "path", "url") if clips[0].get(key) is not None), None)
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    return source if isinstance(source, (str, bytes)) else None


def clip_number(clip: str | bytes) -> int:
    """A number for a clip's name, path or bytes, the same in every process."""
    return int.from_bytes(hashlib.sha256(clip if isinstance(clip, bytes) else clip.encode()).digest()[:7])


def _join_asked(asked: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    return {ASKED: torch.stack(list(asked))} if asked else {}


def join_audio(chats: Sequence[Chat]) -> dict[str, torch.Tensor]:
    """The clips of all chats in order, padded to the longest: `AUDIO_INPUTS`; empty if there are none."""
    audio = [chat for chat in chats if AUDIO_INPUTS[0] in chat]
    return {name: join_on_time([chat[name] for chat in audio]) for name in AUDIO_INPUTS} if audio else {}


def _silenced(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat with a hundredth of a second of silence instead of each clip."""
    silent = {"type": "audio", "audio": SILENCE, "sampling_rate": SAMPLING_RATE}
    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": [silent if item["type"] == "audio" else item for item in message["content"]]}
        for message in messages
    ]


def join_on_time(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches with different lengths of the last axis as one batch, padded with zeros."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return torch.cat([torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors])
