# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Goes on with a chat from the keys and values of its earlier turns, so that a turn computes only what is new; and computes
what the prompts of a batch have in common, such as their clip, once.

Kept is what the language model computed for the chats answered last, by content: token ids, with the digest of its clip
in the place of each audio token, so that two clips of equal length are told apart. The least recently used chats go
first when there are too many tokens. Other weights make other states: the cache empties itself when weights or adapters
were changed. Travels with every saved checkpoint.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from .audio_cache_falcon3_audio import Lock, fingerprint
from .releases_falcon3_audio import CACHE


# A token id, or the digest of the clip that an audio token stands for.
Token = int | str
# Settings of `generate` that leave each prompt one sequence, computed token by token in an ordinary cache, and that look
# at the prompt's tokens as a set if at all: a prompt may begin in a cache, and padding may lie anywhere. A list of what
# is allowed: settings that a later release adds take the plain path until they stand here.
# fmt: off
_ALLOWED = {
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "max_time", "stop_strings", "forced_eos_token_id",
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
    "remove_invalid_values", "renormalize_logits", "return_dict_in_generate", "output_scores", "output_logits",
    "pad_token_id", "bos_token_id", "eos_token_id", "generation_config", "streamer", "tokenizer", "transformers_version",
}
# And those that look at the order of the prompt's tokens: for a single prompt, where no padding gets in between.
_ALLOWED_FOR_ONE = _ALLOWED | {
    "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "watermarking_config", "prefix_allowed_tokens_fn",
    "logits_processor", "stopping_criteria",
}
# fmt: on
# Values that say of a setting that it changes nothing; of others `False` does.
_CHANGES_NOTHING = {"use_cache": True, "num_beams": 1, "num_return_sequences": 1}
# Tokens that prompts of a batch have to have in common: for fewer, a forward of their own does not pay.
WORTH_SHARING = 32


class PromptCache:
    """
    Keys and values of the chats answered last. Threads may share it. For one chat at a time:

        cache = prompts.take(content)
        tokens = model.generate(..., cache=cache)
        prompts.put([*content, *answer], cache)

    Args:
        model: whose cache can be cropped, see `can_be_cropped`.
        max_tokens (`int`): How many tokens are kept, of `2 * layers * key-value heads * head_dim` numbers each. Of a
            longer chat its beginning is kept.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int):
        self.model = model
        self.max_tokens = max_tokens
        self._chats: list[tuple[list[Token], DynamicCache]] = []  # the one used last at the end
        self._state = fingerprint(model)
        self._lock = Lock()

    def take(self, content: list[Token]) -> DynamicCache:
        """
        A cache that holds the longest beginning of a prompt that is known, without its last token, whose logits begin
        the answer. Nobody else has it: `generate` may write into it.
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
        # Another chat that merely begins alike (a system prompt, the same clip) stays, and its beginning is copied.
        if 2 * length < len(known):
            return self._beginning(cache, length)
        del self._chats[index]
        cache.crop(length - len(known))
        return cache

    def put(self, content: list[Token], cache: DynamicCache):
        """Keeps the cache of a chat and its answer, whose last token is in no cache yet."""
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
        """A copy, which keeps nothing of the rest in memory."""
        copy = _empty_cache(self.model)
        for index, layer in enumerate(cache.layers):
            copy.update(layer.keys[..., :length, :], layer.values[..., :length, :], index)
        return copy


def can_be_cropped(model: torch.nn.Module) -> bool:
    """
    Whether what is kept of a prompt's beginning is what a longer prompt would have: sliding windows and recurrent states
    cannot go back, and some rotary embeddings change with the length.
    """
    config = model.config.get_text_config(decoder=True)
    if (getattr(config, "rope_parameters", None) or {}).get("rope_type") in ("dynamic", "longrope"):
        return False
    return all(type(layer) is DynamicLayer for layer in _empty_cache(model).layers)


def has_learned_prompt(model: torch.nn.Module) -> bool:
    """Whether PEFT may put a learned beginning before each prompt (prompt tuning, prefixes), which no cache of ours knows."""
    configs = getattr(model, "peft_config", {}).values()
    return any(getattr(config, "is_prompt_learning", False) for config in configs)


def allows_prompt_cache(settings: dict[str, Any]) -> bool:
    """Whether a single prompt may begin in a cache, by the settings of `generate` that are set."""
    return _used(settings) <= _ALLOWED_FOR_ONE


def allows_common_beginning(settings: dict[str, Any]) -> bool:
    """Whether the prompts of a batch may share what they begin with, by the settings of `generate` that are set."""
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
    A prompt by content.

    Args:
        input_ids: of the prompt.
        clips: digest of each clip of the prompt, in order.
        counts: how many audio tokens each clip takes.

    Where the sum is another, the model says so.
    """
    names = iter([name for name, count in zip(clips, counts) for _ in range(count)])
    return [next(names, "") if token == audio_token else token for token in input_ids]


def count_audio(content: list[Token]) -> int:
    """How many audio tokens a prompt, or a part of it, has."""
    return sum(isinstance(token, str) for token in content)


@torch.no_grad()
def begin_together(model: torch.nn.Module, inputs: dict[str, Any], contents: list[list[Token]]) -> dict[str, Any]:
    """
    Inputs of `generate` for prompts that begin alike: with a cache that holds their common beginning, computed once.

    Args:
        model: whose cache can be cropped, see `can_be_cropped`.
        inputs: `input_ids` and `attention_mask` of shape `(prompts, tokens)`, padded on the left, and, where there is
            audio, `audio_embeds` of shape `(audio tokens, hidden_size)`.
        contents: each prompt by content.

    Returns:
        Inputs of the same shape, with a cache; padding lies behind the common beginning. Those that were given
        where too little is shared, where padding is on the right, and where audio and prompts do not match, which the
        model says better.
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
    # Each prompt's beginning moves to the left, and its padding behind it.
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
