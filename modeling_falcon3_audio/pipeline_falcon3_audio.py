# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`pipeline("audio-text-to-text")`: ask a question about a clip, or continue a chat.

transformers 5.24 has no such task. Design choices: every input becomes a chat and goes through the processor's
template; the answer is split from the prompt by token count, not by comparing texts; a batch is one call of the
processor. Any transformers model with an audio chat template can be used. Travels with every saved checkpoint.

    pipe = pipeline("audio-text-to-text", model=folder)
    pipe("clip.wav", text="What do you hear?")[0]["generated_text"]
"""

import copy
import os
from collections.abc import Iterator, Sized
from itertools import accumulate
from typing import Any

import torch
from transformers.generation import GenerationConfig
from transformers.pipelines.base import Pipeline
from transformers.utils import logging

from .audio_cache_falcon3_audio import AudioCache, digests
from .pipeline_inputs_falcon3_audio import (
    Request,
    check_batch_size,
    in_batches,
    is_audio,
    is_begun,
    is_many,
    make_request,
    make_requests,
    naming_input,
    pair,
    with_answer,
)
from .prompt_cache_falcon3_audio import (
    PromptCache,
    Token,
    allows_common_beginning,
    allows_prompt_cache,
    begin_together,
    can_be_cropped,
    content_of,
    count_audio,
    has_learned_prompt,
)
from .releases_falcon3_audio import CACHE


logger = logging.get_logger(__name__)

DEFAULT_MAX_NEW_TOKENS = 256
DEFAULT_AUDIO_CACHE_TOKENS = (
    15_000  # 10 minutes of audio at 25 tokens per second; 92 MB for hidden size 3072 in bfloat16
)
# Arguments of `generate` besides the fields of a GenerationConfig.
_GENERATE_ARGUMENTS = {
    "generation_config",
    "streamer",
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "assistant_model",
    "assistant_tokenizer",
    "tokenizer",
    "cache",
    "past_key_values",
}
# Arguments that go to the chat template under their own names.
_TEMPLATE_ARGUMENTS = ("chat_template", "documents", "enable_thinking", "tools")


class AudioTextToTextPipeline(Pipeline):
    """
    See `__call__`. Generation parameters (`max_new_tokens`, `streamer`, ...) go to `pipeline(...)` or to the call.

    Falcon3-Audio computes the common beginning of a batch's prompts once, and encodes a clip once for all questions
    and turns about it, also across calls. `audio_cache_tokens` is the number of audio tokens kept for that (default
    15,000, which is 10 minutes of audio; 0: none). Other models encode every prompt.

    With `prompt_cache_tokens=4096` the language model's keys and values of the most recent chats are kept as well, up
    to that many tokens in total (default 0: none). A prompt that starts like one of them, such as the next turn of a
    chat or another question about a clip, then computes only the rest; answers are the same up to rounding. A token
    takes `2 * layers * key-value heads * head_dim` numbers, in bfloat16 72 KiB for Falcon3-1B, 88 for 3B and 112 for
    7B. Batches, language models with sliding windows, prompts that PEFT learned, and settings of `generate` that are
    not known to work with this cache (beams, several answers to a prompt, drafts, a custom cache) do not use it.
    """

    _load_processor = True
    _load_tokenizer = False
    _load_feature_extractor = False
    _load_image_processor = False

    def __init__(
        self, *args, audio_cache_tokens: int = DEFAULT_AUDIO_CACHE_TOKENS, prompt_cache_tokens: int = 0, **kwargs
    ):
        super().__init__(*args, **kwargs)
        # Not in `_forward_params`, since a call's `generation_config` replaces them, as in transformers' pipelines.
        fields = (vars(GenerationConfig()).keys() | {"generation_config"}) & self._forward_params.keys()
        self._made_with = {name: self._forward_params.pop(name) for name in fields}
        self._cache_sizes = (audio_cache_tokens, prompt_cache_tokens)
        self._make_caches()
        modalities = self.model.input_modalities
        modalities = (modalities,) if isinstance(modalities, str) else modalities
        if "audio" not in modalities:
            raise ValueError(
                f"{type(self.model).__name__} takes {', '.join(modalities)}, but audio-text-to-text "
                "needs a model that takes audio."
            )

    def _make_caches(self):
        audio_tokens, prompt_tokens = self._cache_sizes
        self._cached_model = self.model
        own = hasattr(self.model, "count_audio_tokens")
        # With a prompt cache, only part of a clip may be inserted, which needs its embeddings, even if none are kept.
        reuses = own and max(audio_tokens, prompt_tokens) > 0
        self._audio_cache = AudioCache(self.model, audio_tokens) if reuses else None
        self._begins_together = own and can_be_cropped(self.model)
        goes_on = self._begins_together and prompt_tokens > 0
        self._prompt_cache = PromptCache(self.model, prompt_tokens) if goes_on else None
        if prompt_tokens > 0 and not goes_on:
            logger.warning(
                f"`prompt_cache_tokens={prompt_tokens}` has no effect: {type(self.model).__name__} is not a "
                "Falcon3-Audio, or its language model keeps only part of a prompt (sliding windows, recurrent states)."
            )

    def __call__(self, audio: Any = None, text: Any = None, sampling_rate: int | None = None, **kwargs):
        r"""
        Answers questions about audio with text.

        Args:
            audio: A clip (path, URL, bytes, array, tensor, dict with `array` and `sampling_rate`, tuple of an array
                and its rate, row of a data set with `audio`); a list of clips, one prompt for each (a batch); or a
                list of lists, where each inner list goes into one prompt. Or a chat or list of chats (messages as
                dicts; Falcon3-Audio's processor takes objects as well); or dicts with `audio`, `text` and
                `sampling_rate`, as a list, dataset, stream or generator, read when the answer is requested.
            text (`str`, list of `str`, or chats): The question. One question is asked about every clip of a list;
                several questions about one clip each get their own answer.
            sampling_rate (`int`, *optional*): Sampling rate of arrays, in Hz. Files contain their own.
            **kwargs: Generation parameters; `batch_size` and `num_workers`; `return_full_text=True` for the whole
                chat with the answer instead of only the answer; `processor_kwargs`; for the chat template `tools`,
                `documents`, `enable_thinking`, `chat_template`, and `chat_template_kwargs` for its other arguments;
                `continue_final_message`, whether to continue the last message (default: if it is assistant text).

        Returns:
            For one input a list of `{"input_text": messages, "generated_text": answer}`, one per returned sequence.
            For several inputs a list of such lists, for a dataset or generator an iterator over them.

        Raises:
            `ValueError`: if audio cannot be read (see the processor), lists differ in length, or there is no input.
            `TypeError`: for parameters that neither the pipeline nor `generate` has.
        """
        if audio is None and text is None:
            raise ValueError("Got no input: pass `audio` and `text`, or a chat.")
        if self.model is not self._cached_model:  # `pipe.model = ...`
            self._make_caches()
        rows = pair(audio, text)
        # Falcon3-Audio's processor handles messages that are objects; others get them unchanged.
        plain = getattr(self.processor, "plain_messages", _messages)
        # How to read an item that is neither a chat nor a dict with `audio` and `text`.
        bare = "text" if audio is None else "audio"
        how = (bare, sampling_rate, plain)
        if not is_many(rows):
            return super().__call__(make_request(rows, *how), **kwargs)
        if isinstance(rows, Sized) and len(rows) == 0:
            raise ValueError("Got no input: the list of inputs is empty.")
        requests = make_requests(rows, *how)
        return super().__call__(list(requests) if isinstance(rows, (list, tuple)) else requests, **kwargs)

    def _sanitize_parameters(
        self,
        return_full_text: bool | None = None,
        skip_special_tokens: bool | None = None,
        processor_kwargs: dict | None = None,
        generate_kwargs: dict | None = None,
        continue_final_message: bool | None = None,
        chat_template_kwargs: dict | None = None,
        **kwargs,
    ):
        template = {name: kwargs.pop(name) for name in _TEMPLATE_ARGUMENTS if name in kwargs} | (
            chat_template_kwargs or {}
        )
        twice = sorted(kwargs.keys() & (generate_kwargs or {}).keys())
        if twice:
            raise ValueError(f"Passed twice, by name and in `generate_kwargs`: {', '.join(twice)}. Pass each once.")
        allowed = set(vars(GenerationConfig())) | _GENERATE_ARGUMENTS
        unknown = sorted(set(kwargs) - allowed)
        if unknown:
            raise TypeError(
                f"audio-text-to-text has no parameter {', '.join(unknown)}. It takes the fields of GenerationConfig, "
                f"{', '.join(sorted(_GENERATE_ARGUMENTS))}, return_full_text, skip_special_tokens, processor_kwargs, "
                f"continue_final_message, {', '.join(_TEMPLATE_ARGUMENTS)} and chat_template_kwargs."
            )
        settings = {**(generate_kwargs or {}), **kwargs}
        _check_settings(settings)
        preprocess: dict[str, Any] = {} if processor_kwargs is None else {"processor_kwargs": processor_kwargs}
        if continue_final_message is not None:
            preprocess["continue_final_message"] = continue_final_message
        preprocess |= template
        options = {"return_full_text": return_full_text, "skip_special_tokens": skip_special_tokens}
        postprocess = {name: value for name, value in options.items() if value is not None}
        return preprocess, settings, postprocess

    def get_iterator(self, inputs, num_workers, batch_size, preprocess_params, forward_params, postprocess_params):
        check_batch_size(batch_size)
        # Clips of a batch differ in length, and only the processor can pad them: it gets whole batches.
        if isinstance(inputs, Sized):
            batches = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
        else:
            batches = in_batches(inputs, batch_size)
        answered = super().get_iterator(batches, num_workers, 1, preprocess_params, forward_params, postprocess_params)
        return (records for batch in answered for records in batch)

    def run_single(self, inputs, preprocess_params, forward_params, postprocess_params):
        return super().run_single([inputs], preprocess_params, forward_params, postprocess_params)[0]

    def preprocess(
        self,
        requests: list[Request],
        processor_kwargs: dict | None = None,
        continue_final_message: bool | None = None,
        **template,
    ) -> dict[str, Any]:
        """Model inputs of a batch of chats. By default, a chat that ends with assistant text is continued."""
        if continue_final_message is None:
            continues = {is_begun(request.messages[-1]) for request in requests}
        else:
            continues = {continue_final_message}
        if len(continues) > 1:
            raise ValueError(
                "Some chats of this batch end with an assistant message to continue, some do not. Use batch_size=1."
            )
        if (processor_kwargs or {}).get("padding_side", "left") != "left":
            raise ValueError(
                "Prompts are padded on the left, since answers continue after the last token; omit `padding_side`."
            )
        go_on = continues.pop()
        with naming_input(requests):
            self._check_sampling_rates(requests)
            inputs = self.processor.apply_chat_template(
                [request.messages for request in requests],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=not go_on,
                continue_final_message=go_on,
                # Answers continue after the last token, and some models' tokenizers pad on the right.
                processor_kwargs={"padding": True, "padding_side": "left"} | (processor_kwargs or {}),
                **template,
            )
        has_audio = self._audio_cache is not None and "input_features" in inputs
        clips = digests(inputs["input_features"], inputs["input_features_mask"]) if has_audio else None
        return {"requests": requests, "go_on": go_on, "inputs": dict(inputs.to(dtype=self.dtype)), "clips": clips}

    def _check_sampling_rates(self, requests: list[Request]):
        """Other models' processors do not resample arrays, and would treat any rate as their own."""
        if hasattr(self.processor, "max_audio_seconds"):
            return
        rate = self.processor.feature_extractor.sampling_rate
        for request in requests:
            for item in _audio_items(request.messages):
                if item.get("sampling_rate", rate) != rate:
                    raise ValueError(f"{type(self.processor).__name__} expects audio at {rate} Hz; resample it first.")

    def _forward(self, model_inputs: dict[str, Any], **generate_kwargs) -> dict[str, Any]:
        inputs, clips = model_inputs["inputs"], model_inputs["clips"]
        several = len(inputs["input_ids"]) > 1
        if generate_kwargs.get("generation_config") is None:
            generate_kwargs = {**self._made_with, **generate_kwargs}
        settings = self._settings(generate_kwargs)
        is_known = not has_learned_prompt(self.model)
        prompts = self._prompt_cache if is_known and not several and allows_prompt_cache(settings) else None
        # Only if there is a cache: reading the mask waits for the device.
        if prompts is not None and not inputs.get("attention_mask", torch.ones(1)).all():
            prompts = None
        together = is_known and several and self._begins_together and allows_common_beginning(settings)
        # Without an audio cache it is unknown which clips are equal.
        together = together and "attention_mask" in inputs and (clips is not None or "input_features" not in inputs)
        contents = self._contents(inputs, clips) if together or prompts is not None else []
        held = 0  # audio tokens
        if prompts is not None:
            cache = generate_kwargs[CACHE] = prompts.take(contents[0])
            held = count_audio(contents[0][: cache.get_seq_length()])
        # An assistant encodes the clips itself.
        if self._audio_cache is not None and clips is not None and "assistant_model" not in settings:
            self._embed_audio(self._audio_cache, inputs, clips, held)
        if together:
            inputs = begin_together(self.model, inputs, contents)
        if "max_length" not in generate_kwargs and "max_new_tokens" not in settings:
            _limit_length(generate_kwargs, settings.get("max_length"))
        generate_kwargs.setdefault("tokenizer", self.tokenizer)  # needed for stop strings, for example
        tokens = self.model.generate(**inputs, **generate_kwargs)
        tokens = getattr(tokens, "sequences", tokens)
        if prompts is not None:
            prompts.put([*contents[0], *tokens[0, len(contents[0]) :].tolist()], cache)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return {"requests": model_inputs["requests"], "go_on": model_inputs["go_on"], "tokens": answers}

    def _settings(self, generate_kwargs: dict[str, Any]) -> dict[str, Any]:
        """All settings of `generate` that are set: by the call, else by its generation config, else by the model's."""
        given = generate_kwargs.get("generation_config")
        configs = [vars(self.model.generation_config), {} if given is None else vars(given)]
        settings: dict[str, Any] = {}
        for place in (*configs, generate_kwargs):
            settings |= {name: value for name, value in place.items() if value is not None}
        return settings

    def _contents(self, inputs: dict[str, Any], clips: list[str] | None) -> list[list[Token]]:
        """The content of each prompt, see `content_of`."""
        counts = [] if clips is None else self.model.count_audio_tokens(inputs["input_features_mask"]).tolist()
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
        content = content_of(ids[mask].tolist(), self.model.config.audio_token_id, clips or [], counts)
        lengths = mask.sum(-1).tolist()
        return [content[end - length : end] for end, length in zip(accumulate(lengths), lengths)]

    def _embed_audio(self, cache: AudioCache, inputs: dict[str, Any], clips: list[str], held: int):
        """Replaces features with `audio_embeds`, without the first `held` tokens, which are in a cache."""
        features, mask = inputs.pop("input_features"), inputs.pop("input_features_mask")
        for count in self.model.count_audio_tokens(mask).tolist():
            if count > held:
                break
            held, clips, features, mask = held - count, clips[1:], features[1:], mask[1:]
        if clips:
            inputs["audio_embeds"] = cache.embed(clips, features, mask)[held:]

    def postprocess(
        self, model_outputs: dict[str, Any], return_full_text: bool = False, skip_special_tokens: bool = True
    ) -> list[list[dict[str, Any]]]:
        requests, go_on, tokens = (model_outputs[name] for name in ("requests", "go_on", "tokens"))
        answers = self.tokenizer.batch_decode(tokens, skip_special_tokens=skip_special_tokens)
        each = len(answers) // len(requests)
        return [
            [
                {
                    "input_text": request.messages,
                    "generated_text": with_answer(request.messages, answer, go_on) if return_full_text else answer,
                }
                for answer in answers[index * each : (index + 1) * each]
            ]
            for index, request in enumerate(requests)
        ]

    def forget_audio(self):
        """Clears the caches of encoded clips and of the chats about them."""
        for cache in (self._audio_cache, self._prompt_cache):
            if cache is not None:
                cache.clear()

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and processor with their code, as a folder that `pipeline` can load."""
        # transformers passes these model arguments to the tokenizer too, and could not serialise them.
        for name in ("dtype", "quantization_config"):
            self.processor.tokenizer.init_kwargs.pop(name, None)
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


def _messages(chat: Any) -> list:
    return list(getattr(chat, "messages", chat))


def _audio_items(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        content = message.get("content")  # there is none with a tool call
        if content is not None and not isinstance(content, str):
            yield from filter(is_audio, content)


def _check_settings(settings: dict[str, Any]):
    config, assistant = settings.get("generation_config"), settings.get("assistant_model")
    if not isinstance(config, GenerationConfig | None):
        raise ValueError(
            f"`generation_config` must be a GenerationConfig, got a {type(config).__name__}. Pass its fields by name "
            "instead, or as `generate_kwargs`."
        )
    if isinstance(assistant, (str, os.PathLike)):
        raise ValueError(
            f"`assistant_model` must be a model, got {str(assistant)!r}. Load it first, with "
            "AutoModelForMultimodalLM.from_pretrained: for prompts with audio it must be a Falcon3-Audio as well."
        )


def _limit_length(generate_kwargs: dict[str, Any], max_length: int | None):
    """Sets the pipeline's default if neither call nor config has a length; 20 is `generate`'s in older releases."""
    if max_length not in (None, 20):
        return
    config = generate_kwargs.get("generation_config")
    if config is None:
        generate_kwargs["max_new_tokens"] = DEFAULT_MAX_NEW_TOKENS
    else:  # `generate` takes a config or settings by name, not both
        generate_kwargs["generation_config"] = copy.deepcopy(config)
        generate_kwargs["generation_config"].max_new_tokens = DEFAULT_MAX_NEW_TOKENS


__all__ = ["AudioTextToTextPipeline"]
