# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Continues a chat from the keys and values of its earlier turns, so that a turn computes only its new tokens; and
computes the common beginning of a batch's prompts, such as their clip, once.

The cache holds keys and values of the most recent chats, by content: token ids, with the digest of its clip in place
of each audio token, so that two clips of equal length are told apart. The least recently used chats are evicted when
there are too many tokens. States depend on the weights: the cache is cleared when weights or adapters change. Travels
with every saved checkpoint.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .audio_cache_falcon3_audio import Lock, fingerprint
from .releases_falcon3_audio import CACHE


# A token id, or the digest of the clip that an audio token stands for.
Token = int | str
# Settings of `generate` that keep each prompt a single sequence, computed token by token in an ordinary cache, and
# that look at the prompt's tokens only as a set, if at all: a prompt can start in a cache, and padding can be
# anywhere. This is an allow-list: settings that a later release adds take the plain path until they are added here.
# fmt: off
_ALLOWED = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "forced_eos_token_id",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "remove_invalid_values", "renormalize_logits", "return_dict_in_generate", "output_scores", "output_logits",
    "pad_token_id", "bos_token_id", "eos_token_id", "generation_config", "streamer", "tokenizer", "transformers_version",
}
# And those that look at the order of the prompt's tokens: only for a single prompt, which has no padding in between.
_ALLOWED_FOR_ONE = _ALLOWED | {
    "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "watermarking_config", "prefix_allowed_tokens_fn",
    "logits_processor", "stopping_criteria",
}
# fmt: on
# Values with which these settings change nothing; for all others that is `False`.
_CHANGES_NOTHING = {"use_cache": True, "num_beams": 1, "num_return_sequences": 1}
# Number of tokens that a batch's prompts must share: for fewer, a separate forward does not pay off.
WORTH_SHARING = 32


class PromptCache:
    """
    Keys and values of the most recent chats. Threads can share it. For one chat at a time:

        cache = prompts.take(content)
        tokens = model.generate(..., cache=cache)
        prompts.put([*content, *answer], cache)

    Args:
        model: must have a cache that can be cropped, see `can_be_cropped`.
        max_tokens (`int`): Maximum number of tokens to keep, each of `2 * layers * key-value heads * head_dim`
            numbers. For a longer chat, only its beginning is kept.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int):
        self.model = model
        self.max_tokens = max_tokens
        self._chats: list[tuple[list[Token], DynamicCache]] = []  # the most recently used one is last
        self._state = fingerprint(model)
        self._lock = Lock()

    def take(self, content: list[Token]) -> DynamicCache:
        """
        A cache with the longest known beginning of a prompt, without the prompt's last token, whose logits start the
        answer. It is not shared: `generate` can write into it.
        """
        with self._lock:
            return self._take(content)

    def _take(self, content: list[Token]) -> DynamicCache:
        state = fingerprint(self.model)
        if state != self._state:
            self._chats.clear()
            self._state = state
        shared = [min(_shared_length(known, content), len(content) - 1) for known, _ in self._chats]
        length = max(shared, default=0)
        if length == 0:
            return _empty_cache(self.model)
        index = shared.index(length)
        known, cache = self._chats[index]
        # Another chat that only starts alike (a system prompt, the same clip) stays, and its beginning is copied.
        if 2 * length < len(known):
            return self._beginning(cache, length)
        del self._chats[index]
        cache.crop(length - len(known))
        return cache

    def put(self, content: list[Token], cache: DynamicCache):
        """Keeps the cache of a chat and its answer, whose last token is not in the cache yet."""
        length = min(cache.get_seq_length(), self.max_tokens)
        if length < cache.get_seq_length():
            cache = self._beginning(cache, length)
        with self._lock:
            self._chats.append((content[:length], cache))
            while sum(len(known) for known, _ in self._chats) > self.max_tokens:
                del self._chats[0]

    def clear(self):
        with self._lock:
            self._chats.clear()

    def _beginning(self, cache: DynamicCache, length: int) -> DynamicCache:
        """A copy, which does not keep the rest in memory."""
        copy = _empty_cache(self.model)
        for index, layer in enumerate(cache.layers):
            copy.update(layer.keys[..., :length, :], layer.values[..., :length, :], index)
        return copy


def can_be_cropped(model: torch.nn.Module) -> bool:
    """
    Whether the cached beginning of a prompt equals that of a longer prompt: sliding windows and recurrent states
    cannot be rewound, and some rotary embeddings change with the length.
    """
    config = model.config.get_text_config(decoder=True)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return False
    return all(type(layer) is DynamicLayer for layer in _empty_cache(model).layers)


def has_learned_prompt(model: torch.nn.Module) -> bool:
    """Whether PEFT can prepend a learned beginning to prompts (prompt tuning, prefixes), unknown to our caches."""
    configs = getattr(model, "peft_config", {}).values()
    return any(getattr(config, "is_prompt_learning", False) for config in configs)


def allows_prompt_cache(settings: dict[str, Any]) -> bool:
    """Whether a single prompt can start in a cache, given the settings of `generate` that are set."""
    return _used(settings) <= _ALLOWED_FOR_ONE


def allows_common_beginning(settings: dict[str, Any]) -> bool:
    """Whether the prompts of a batch can share their beginning, given the settings of `generate` that are set."""
    return _used(settings) <= _ALLOWED


def _used(settings: dict[str, Any]) -> set[str]:
    """Names of the settings that change something."""
    return {
        name
        for name, value in settings.items()
        if not name.startswith("_") and not (isinstance(value, int) and value == _CHANGES_NOTHING.get(name, False))
    }


def content_of(input_ids: list[int], audio_token: int, clips: list[str], counts: list[int]) -> list[Token]:
    """
    The content of a prompt: token ids, with its clip's digest in place of each audio token.

    Args:
        input_ids: of the prompt.
        clips: digest of each clip of the prompt, in order.
        counts: how many audio tokens each clip takes.

    If the counts do not match the prompt, the model raises the error.
    """
    names = iter([name for name, count in zip(clips, counts) for _ in range(count)])
    return [next(names, "") if token == audio_token else token for token in input_ids]


def count_audio(content: list[Token]) -> int:
    """Number of audio tokens in a prompt or a part of it."""
    return sum(isinstance(token, str) for token in content)


@torch.no_grad()
def begin_together(model: torch.nn.Module, inputs: dict[str, Any], contents: list[list[Token]]) -> dict[str, Any]:
    """
    Inputs of `generate` for prompts that start alike, with a cache that holds their common beginning, computed once.

    Args:
        model: must have a cache that can be cropped, see `can_be_cropped`.
        inputs: `input_ids` and `attention_mask` of shape `(prompts, tokens)`, padded on the left, and, if there is
            audio, `audio_embeds` of shape `(audio tokens, hidden_size)`.
        contents: the content of each prompt, see `content_of`.

    Returns:
        Inputs of the same shape, with a cache and with padding after the common beginning. The given inputs are
        returned unchanged if too little is shared, if padding is on the right, or if audio and prompts do not match,
        for which the model raises a better error.
    """
    length = min(min(_shared_length(contents[0], other), len(other) - 1) for other in contents)
    counts = [count_audio(content) for content in contents]
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    matches = sum(counts) == len(inputs.get("audio_embeds", ()))
    if len(contents) == 1 or length < WORTH_SHARING or not matches or not mask[:, -1].all():
        return inputs
    beginning = ids[0][mask[0]][:length]
    held = count_audio(contents[0][:length])
    audio: dict[str, Any] = {}
    if "audio_embeds" in inputs:
        by_prompt = inputs["audio_embeds"].split(counts)
        audio = {"audio_embeds": by_prompt[0][:held]} if held else {}
        if sum(counts) > held * len(counts):
            inputs = inputs | {"audio_embeds": torch.cat([part[held:] for part in by_prompt])}
        else:
            inputs = {name: value for name, value in inputs.items() if name != "audio_embeds"}
    cache = _empty_cache(model)
    model(input_ids=beginning[None], cache=cache, use_cache=True, logits_to_keep=1, **audio)
    cache.batch_repeat_interleave(len(contents))
    # Each prompt's beginning moves to the left, and its padding after it.
    rest, rest_mask = ids.clone(), mask.clone()
    rest[:, :length] = beginning
    rest_mask[:, :length] = True
    for row, content in enumerate(contents):
        padding = ids.shape[1] - len(content)
        rest[row, length : length + padding] = ids[row, :padding]
        rest_mask[row, length : length + padding] = False
    return inputs | {
        "input_ids": rest,
        "attention_mask": rest_mask.to(inputs["attention_mask"].dtype),
        CACHE: cache,
    }


def _empty_cache(model: torch.nn.Module) -> DynamicCache:
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def _shared_length(first: list[Token], second: list[Token]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))


__all__ = [
    "PromptCache",
    "allows_common_beginning",
    "allows_prompt_cache",
    "begin_together",
    "can_be_cropped",
    "content_of",
    "count_audio",
    "has_learned_prompt",
]
