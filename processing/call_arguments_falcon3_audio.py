# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a call of the processor says of the sampling rate, and which of its arguments nothing reads.

transformers warns of an argument that a processor does not have, and goes on: samples whose rate was given as
`sample_rate` would be read at 16 kHz. Saved with every checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from .audio_inputs_falcon3_audio import could_be_rate


# Of `apply_chat_template`, besides those of the template and of the processor's call.
_OF_CHATS = {"tools", "documents", "add_generation_prompt", "continue_final_message", "return_assistant_tokens_mask"}
_OF_CHATS |= {"tokenize", "return_tensors", "return_dict", "load_audio_from_video", "sanitize_control_tokens"}


def given_rate(processor: Any, arguments: Mapping[str, Any]) -> tuple[int | None, list[str]]:
    """The rate that a call gives, and without one the names of its arguments that could be meant as the rate."""
    rates = [place.get("sampling_rate") for place in _places(arguments)]
    rate = next((rate for rate in rates if rate is not None), None)
    return rate, unread_arguments(processor, arguments) if rate is None else []


def unread_arguments(processor: Any, arguments: Mapping[str, Any]) -> list[str]:
    """The names of the arguments that no part of a processor has, and whose values could be a rate."""
    given = {name for place in _places(arguments) for name, value in place.items() if could_be_rate(value)}
    if not given:  # as nearly always
        return []
    groups = processor.valid_processor_kwargs.__annotations__
    parts = [getattr(part, "valid_kwargs", None) for part in (processor.tokenizer, processor.feature_extractor)]
    known = {"common_kwargs", *groups, *_OF_CHATS}
    known |= {name for part in (*groups.values(), *parts) for name in getattr(part, "__annotations__", ())}
    return sorted(given - known)


def _places(arguments: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [arguments, *(arguments.get(group) or {} for group in ("audio_kwargs", "common_kwargs"))]


__all__ = ["given_rate", "unread_arguments"]
