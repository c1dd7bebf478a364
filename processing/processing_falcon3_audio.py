# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The processor of Falcon3-Audio: Whisper's feature extractor, the language model's tokenizer, and the chat template.

Design: features of a clip never depend on the rest of the batch; audio over 30 s is split into 30 s windows, joined in
one row; the placeholder is a token that text never contains, without resizing the language model; labels come from the
chat template's generation markers (transformers 5.23 or later). Saved with every checkpoint; runs on 5.16 to 5.24.

    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
"""

import copy
import math
import os
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.audio_utils import AudioInput
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessingKwargs, ProcessorMixin, TextKwargs, Unpack
from transformers.tokenization_utils_base import TextInput
from transformers.utils import logging

from .audio_inputs_falcon3_audio import (
    FRAMES_PER_POSITION,
    FRAMES_PER_SECOND,
    HOP_LENGTH,
    POOLING_WINDOW,
    SAMPLING_RATE,
    TAIL_SAMPLES,
    check_limit,
    check_pooling_window,
    check_silence,
    count_encoded_frames,
    count_frames,
    count_tokens,
    is_list_of_clips,
    load_audio,
    whisper_feature_extractor,
)
from .call_arguments_falcon3_audio import given_rate, unread_arguments
from .messages_falcon3_audio import plain_messages, prepare_messages
from .tokenizer_falcon3_audio import (
    NEW_AUDIO_TOKEN,
    choose_audio_token,
    load_tokenizer,
    make_chat_template,
    own_chat_template,
    tokenizing,
)


logger = logging.get_logger(__name__)

# Defaults for tokenization, unless the call or the tokenizer overrides them.
TEXT_DEFAULTS = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
# 5 minutes are 7,500 tokens, which still fit in the smallest model (8,192 positions) together with a question.
MAX_AUDIO_SECONDS = 300.0


class AudioTooLongError(ValueError):
    """A clip longer than `max_audio_seconds` that must not be cut (`truncation=False`)."""


class _Clips(list):
    """Loaded clips; `features` holds their model inputs once they are computed."""

    features: dict[str, Any] | None = None


class Falcon3AudioTextKwargs(TextKwargs, total=False):
    """
    return_labels (`bool`): With `apply_chat_template(..., tokenize=True, return_dict=True)`, add `labels`: the token
        ids of the assistant's answers and their end tokens; -100 everywhere else, and for audio tokens.
    """

    return_labels: bool


class Falcon3AudioProcessorKwargs(ProcessingKwargs, total=False):
    text_kwargs: Falcon3AudioTextKwargs

    # Empty; releases before 5.23 (2026-11-13) expect it. Can be removed on 2027-11-13.
    _defaults = {}  # type: ignore[var-annotated]


class Falcon3AudioProcessor(ProcessorMixin):
    r"""
    Args:
        feature_extractor (`WhisperFeatureExtractor`): Whisper's, with 80 or 128 mel bands.
        tokenizer (`PreTrainedTokenizerBase`): The language model's.
        chat_template (`str`, *optional*): See `from_backbones`, which builds it from the language model's own.
        audio_token (`str`, defaults to `"<|audio|>"`): The placeholder; a token of the tokenizer's vocabulary.
        pooling_window (`int`, defaults to 2): As in the model's config.
        pad_to_window (`bool`, defaults to `False`): As in the model's config.
        trailing_silence (`float`, defaults to 0.0), read_trailing_silence (`bool`, defaults to `True`): As in the
            model's config. `input_features` include that silence, `input_features_mask` marks only the clip's frames.
        max_audio_seconds (`float`, defaults to 300): Maximum length of a clip. A longer one is cut with a warning that
            gives its length; with `truncation=False` it raises an `AudioTooLongError` (a `ValueError`).

    Raises a `ValueError` for an `audio_token` that is not a single token, and for a number that is out of range.
    """

    valid_processor_kwargs = Falcon3AudioProcessorKwargs
    plain_messages = staticmethod(plain_messages)  # for the pipeline, which is saved next to this file or installed

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template=None,
        audio_token: str = NEW_AUDIO_TOKEN,
        pooling_window: int = POOLING_WINDOW,
        pad_to_window: bool = False,
        trailing_silence: float = 0.0,
        read_trailing_silence: bool = True,
        max_audio_seconds: float = MAX_AUDIO_SECONDS,
    ):
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if tokenizer.encode(audio_token, add_special_tokens=False) != [self.audio_token_id]:
            raise ValueError(
                f"`audio_token` must be a single token of the tokenizer, but {audio_token!r} is tokenized as "
                f"{tokenizer.tokenize(audio_token)}. `Falcon3AudioProcessor.from_backbones` chooses a free one."
            )
        self.pooling_window = pooling_window
        self.pad_to_window = pad_to_window
        self.trailing_silence = trailing_silence
        self.read_trailing_silence = read_trailing_silence
        self.max_audio_seconds = max_audio_seconds
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        window = self.window_samples / SAMPLING_RATE
        check_pooling_window(pooling_window, window)
        check_silence(trailing_silence, read_trailing_silence, pad_to_window, window)
        check_limit(max_audio_seconds)

    @classmethod
    def from_backbones(
        cls,
        audio,
        text,
        audio_token: str | None = None,
        vocab_size: int | None = None,
        chat_template: str | None = None,
        **options,
    ) -> "Falcon3AudioProcessor":
        r"""
        The processor that fits `Falcon3AudioForConditionalGeneration.from_backbones(audio, text)`.

        Args:
            audio (`str` or `WhisperFeatureExtractor`): Whisper: Hub id, local folder or feature extractor.
            text (`str` or `PreTrainedTokenizerBase`): Language model: Hub id, local folder or tokenizer.
            audio_token (`str`, *optional*): Placeholder. By default one is chosen or added, see `choose_audio_token`.
            vocab_size (`int`, *optional*): Rows of the language model's embedding; read from its config when `text`
                is a name.
            chat_template (`str`, *optional*): The language model's template; by default the tokenizer's own, or
                Falcon3's format, with a warning, if it has none.
            **options: `pooling_window`, `pad_to_window`, `trailing_silence`, `read_trailing_silence`, `max_audio_seconds`.

        Raises a `ValueError` for features that are not of a Whisper, a tokenizer without an end token or with tokens
        without an embedding row, an `audio_token` that text can contain, and several chat templates without a default.
        """
        if isinstance(text, (str, os.PathLike)) and vocab_size is None:
            vocab_size = AutoConfig.from_pretrained(text, trust_remote_code=False).get_text_config().vocab_size
        text = load_tokenizer(text)
        audio = whisper_feature_extractor(audio)
        token, _ = choose_audio_token(text, vocab_size, audio_token)
        template = own_chat_template(text, chat_template)
        return cls(audio, text, chat_template=make_chat_template(template, token), audio_token=token, **options)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "input_features", "input_features_mask"]

    @property
    def _silence_frames(self) -> int:
        """Mel frames of silence encoded after each clip, as far as its last window has room for them."""
        whole = self.window_samples // HOP_LENGTH
        return whole if self.pad_to_window else round(self.trailing_silence * FRAMES_PER_SECOND)

    @property
    def window_samples(self) -> int:
        """Samples of one window (30 s: 480,000)."""
        return int(self.feature_extractor.chunk_length * SAMPLING_RATE)

    @property
    def _most_samples(self) -> int:
        return int(self.max_audio_seconds * SAMPLING_RATE)

    def __call__(
        self,
        text: TextInput | list[TextInput] | None = None,
        audio: AudioInput | None = None,
        **kwargs: Unpack[Falcon3AudioProcessorKwargs],
    ) -> BatchFeature:
        """
        Model inputs for texts with placeholders and their audio, or for only one of the two. Threads can share a
        processor, but must not use its tokenizer directly at the same time.

        Args:
            text (`str` or `list[str]`, *optional*): Prompts; each placeholder is repeated once per token of its audio.
            audio (*optional*): One clip or a list of clips, in the order of the placeholders; see `load_audio`.

        Raises a `ValueError` if placeholders and clips do not match, and for audio that cannot be used.
        """
        said = {**(kwargs.get("common_kwargs") or {}), **self.tokenizer.init_kwargs, **kwargs}
        defaults = {name: value for name, value in TEXT_DEFAULTS.items() if name not in said}
        kwargs["text_kwargs"] = defaults | (kwargs.get("text_kwargs") or {})
        if text is not None and audio is not None:
            # Before the tokenizer is locked, or threads would wait for each other's audio.
            clips = _Clips(self.prepare_inputs_layout(audio=audio, **kwargs)[3] or [])
            if clips:
                clips.features = super().__call__(audio=clips, **kwargs).data
            audio = clips
        with nullcontext() if text is None else tokenizing():
            outputs = super().__call__(text=text, audio=audio, **kwargs)
        if kwargs.get("return_text_replacement_offsets") and "offset_mapping" in outputs:
            # `apply_chat_template` iterates over these for every answer: with a tensor, 25 s for 400 answers.
            outputs["offset_mapping"] = np.asarray(outputs["offset_mapping"]).tolist()
        return outputs

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Turns audio of any accepted kind, a clip or a list, into a list of mono 16 kHz arrays; see `load_audio`."""
        if images is not None or videos is not None:
            raise ValueError("Falcon3-Audio takes text and audio, got images or videos.")
        if "audios" in kwargs:
            raise ValueError("Pass clips as `audio`, not `audios`.")
        if isinstance(audio, (list, tuple)) and len(audio) == 0:
            audio = None
        if audio is not None and not isinstance(audio, _Clips):
            clips = audio if is_list_of_clips(audio) else [audio]
            rate, unread = given_rate(self, kwargs)
            audio = [load_audio(clip, rate, f"audio {index}", None, unread) for index, clip in enumerate(clips)]
        if text is not None:
            text = [text] if isinstance(text, str) else list(text)
        return None, text, None, audio

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Checks that the texts have exactly one placeholder per clip."""
        if kwargs.get("return_labels") or (kwargs.get("text_kwargs") or {}).get("return_labels"):
            raise ValueError("`return_labels` needs the roles of the messages: use `apply_chat_template`.")
        if text is None and audio is None:
            raise ValueError("Give the processor `text`, `audio` or both.")
        if text is None:
            return
        if not text:
            raise ValueError("`text` is an empty list; give at least one text.")
        if not all(isinstance(sample, str) for sample in text):
            kinds = ", ".join(sorted({type(sample).__name__ for sample in text}))
            raise ValueError(f"`text` must be a string or a list of strings, got {kinds}; pass clips as `audio`.")
        counts = [sample.count(self.audio_token) for sample in text]
        clips = 0 if audio is None else len(audio)
        if sum(counts) != clips:
            raise ValueError(
                f"The number of {self.audio_token} tokens in the prompts should be the same as the number of audios "
                f"passed. Got {clips} audios, but the texts hold {sum(counts)} audio placeholders ({counts} per "
                "text). `apply_chat_template` inserts them automatically."
            )

    def _process_audio(self, audio: list[np.ndarray], **kwargs) -> tuple[dict[str, np.ndarray], list[str]]:
        inputs = getattr(audio, "features", None) or self._hear(audio, **kwargs)
        return inputs, [self.replace_audio_token(inputs, audio_idx=index) for index in range(len(audio))]

    def _hear(self, audio: list[np.ndarray], **kwargs) -> dict[str, np.ndarray]:
        # Only `truncation` is read from the kwargs: it decides whether a clip over the limit is cut or refused, never
        # where it is cut. Padding and lengths apply only to the text.
        refuse = kwargs.get("truncation", True) in (False, "do_not_truncate")
        clips = [self._limit(clip, f"audio {index}", refuse) for index, clip in enumerate(audio)]
        rows = [self._features(clip) for clip in clips]
        width = max(row.shape[1] for row in rows)
        features = np.zeros((len(rows), rows[0].shape[0], width), dtype=np.float32)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for index, (row, clip) in enumerate(zip(rows, clips)):
            features[index, :, : row.shape[1]] = row
            mask[index, : count_frames(len(clip), self.window_samples)] = 1
        return {"input_features": features, "input_features_mask": mask}

    def _limit(self, clip: np.ndarray, name: str, refuse: bool) -> np.ndarray:
        if len(clip) <= self._most_samples:
            return clip
        what = f"{name} is {len(clip) / SAMPLING_RATE:.1f} s long, over the limit of {self.max_audio_seconds:g} s"
        remedy = "Split it, or raise `max_audio_seconds` of the processor if the language model has enough positions."
        if refuse:
            raise AudioTooLongError(f"{what}. {remedy}")
        logger.warning(f"{what}: only the first {self.max_audio_seconds:g} s are used. {remedy}")
        return clip[: self._most_samples]

    def _features(self, clip: np.ndarray) -> np.ndarray:
        """Log-mel frames of one clip, `(mel bands, frames)`: its windows joined."""
        windows = []
        for start in range(0, len(clip), self.window_samples):
            samples = clip[start : start + self.window_samples]
            kept = self._count_frames_to_keep(len(samples))
            wanted = min(len(samples) + self._silence_frames * HOP_LENGTH + TAIL_SAMPLES, self.window_samples)
            samples = np.pad(samples, (0, max(0, wanted - len(samples))))
            # One window at a time: in a batch the last bits would depend on the other clips.
            frames = self.feature_extractor(
                samples, sampling_rate=SAMPLING_RATE, padding=False, truncation=False, return_tensors="np"
            )["input_features"][0]
            windows.append(frames[:, :kept])
        return np.concatenate(windows, axis=1)

    def _count_frames_to_keep(self, samples: int) -> int:
        """Frames that the encoder reads for a window: the clip's, those of the silence, and one of right context."""
        encoded = self._count_encoded_frames(math.ceil(samples / HOP_LENGTH))
        positions = math.ceil(encoded / FRAMES_PER_POSITION)
        return min(positions * FRAMES_PER_POSITION + 1, self.window_samples // HOP_LENGTH)

    def _count_encoded_frames(self, frames: int) -> int:
        return count_encoded_frames(frames, self._silence_frames, self.window_samples // HOP_LENGTH)

    def _count_tokens(self, frames: int) -> int:
        read = self._count_encoded_frames(frames) if self.read_trailing_silence else frames
        return count_tokens(read, self.pooling_window)

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """The text of one clip in the prompt: one placeholder per audio token."""
        return self.audio_token * self._count_tokens(int(audio_inputs["input_features_mask"][audio_idx].sum()))

    def _get_num_multimodal_tokens(self, audio_lengths: list[int] | None = None, **kwargs) -> MultiModalData:
        """Number of audio tokens for clips of `audio_lengths` samples at 16 kHz; serving engines use it to plan."""
        if audio_lengths is None:
            return MultiModalData()
        lengths = [min(int(length), self._most_samples) for length in audio_lengths]
        frames = [count_frames(length, self.window_samples) for length in lengths]
        return MultiModalData(num_audio_tokens=[self._count_tokens(count) for count in frames])

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs) -> Any:
        r"""
        As in transformers, for messages whose content is a string or a list of `{"type": "text", "text": ...}` and
        `{"type": "audio", ...}` items; messages can also be objects, see `plain_messages`. An audio item has its
        source under `audio`, `path` or `url` (anything that `load_audio` takes) and can have its own `sampling_rate`.

        With `processor_kwargs={"return_labels": True}` (and `tokenize=True, return_dict=True`) the result has
        `labels`, of the shape and type (tensor or array) of `input_ids`, for training on the assistant's answers only.

        Raises a `ValueError` that names the message for an audio item without a source, unreadable audio, and text
        that contains the placeholder token.
        """
        processor_kwargs = copy.deepcopy(kwargs.pop("processor_kwargs", None) or {})
        for group in ("text_kwargs", "audio_kwargs", "common_kwargs"):  # transformers accepts them in both places
            if group in kwargs:
                processor_kwargs[group] = kwargs.pop(group) | (processor_kwargs.get(group) or {})
        return_labels = _take("return_labels", kwargs, processor_kwargs, processor_kwargs.get("text_kwargs"))
        groups = [processor_kwargs.get(group) for group in ("audio_kwargs", "common_kwargs")]
        rate = _take("sampling_rate", kwargs, processor_kwargs, *groups)
        if unread := unread_arguments(self, processor_kwargs | kwargs):
            of_template = set(re.findall(r"\w+", str(chat_template or self.chat_template))) - processor_kwargs.keys()
            unread = [name for name in unread if name not in kwargs.keys() & of_template]
        load = kwargs.get("tokenize", False)
        conversation = prepare_messages(
            conversation, self.audio_token, rate, load, any_items=chat_template is not None, unread=unread
        )
        if return_labels:
            if not (kwargs.get("tokenize") and kwargs.get("return_dict")):
                raise ValueError("`return_labels` needs `tokenize=True` and `return_dict=True`.")
            kwargs["return_assistant_tokens_mask"] = True
        # The template writes all special tokens; a tokenizer that adds its own would duplicate them.
        processor_kwargs.setdefault("add_special_tokens", False)
        outputs = super().apply_chat_template(
            conversation, chat_template=chat_template, processor_kwargs=processor_kwargs, **kwargs
        )
        if not return_labels:
            return outputs
        chats = conversation if isinstance(conversation[0], list) else [conversation]
        answers = [sum(message["role"] == "assistant" for message in chat[1:]) for chat in chats]
        return _with_labels(outputs, answers, self.audio_token_id)


def _take(name: str, *places: dict | None) -> Any:
    """Removes an argument from all `places`; returns its first value that is not `None`."""
    values = [place.pop(name) for place in places if place and name in place]
    return next((value for value in values if value is not None), None)


def _with_labels(outputs: BatchFeature, answers: list[int], audio_token_id: int) -> BatchFeature:
    """
    Adds `labels`; `answers` is the number of assistant messages of each conversation. Audio in them gets -100.
    """
    masks = torch.as_tensor(np.asarray(outputs.pop("assistant_masks"))).bool()
    input_ids = torch.as_tensor(outputs["input_ids"])
    begins = masks & ~torch.nn.functional.pad(masks, (1, 0))[:, :-1]
    found = begins.sum(-1).tolist()
    for row, (count, wanted) in enumerate(zip(found, answers)):
        if count == 0 or count < wanted:
            raise ValueError(
                f"Conversation {row} has {wanted} answers to learn from, but {count} were found in the prompt. Each "
                "must be an assistant message that is not truncated away, and the chat template must append it "
                "without changing the text before it; otherwise put each answer in its own conversation."
            )
    labels = input_ids.masked_fill(~masks | (input_ids == audio_token_id), -100)
    outputs["labels"] = labels.numpy() if isinstance(outputs["input_ids"], np.ndarray) else labels
    return outputs


__all__ = ["AudioTooLongError", "Falcon3AudioProcessor"]
