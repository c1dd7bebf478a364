"""Fields of OpenAI's requests, and of the engines that extend them, that change nothing here.

Clients send many fields at their defaults. Those that only say how a request is handled are ignored; others are
accepted at the values that ask for what is done anyway. Everything else would change the answer, and is refused.
"""

import json
from collections.abc import Mapping, Set
from typing import Any

from .request_audio import RefusedRequest


# How a request is accounted for, cached or kept.
IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("request_id", "cache_salt"),
}
OFF, EITHER = (False,), (True, False)
# Values that ask for what is done anyway: one answer in text, from the model's own probabilities, without tools.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "use_beam_search": OFF,
    "length_penalty": (1,),  # of beams
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "logit_bias": ({}, []),
    "top_k": (-1, 0),
    "top_a": (0,),
    "min_p": (0,),
    "typical_p": (1,),
    "mirostat": (0,),
    # Where an answer ends, and how its tokens become text.
    "min_tokens": (0,),
    "ignore_eos": OFF,
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "include_stop_str_in_output": OFF,
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": EITHER,  # those are skipped
    "detokenize": (True,),
    "return_token_ids": OFF,
    "echo": OFF,
    # How the prompt is made.
    "add_generation_prompt": (True,),
    "continue_final_message": OFF,
    "add_special_tokens": OFF,
    "chat_template_kwargs": ({},),
    "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},),
    "documents": ([],),
    # What an answer holds.
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": EITHER,
    "functions": ([],),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "include_reasoning": EITHER,
    "verbosity": ("medium",),
    "priority": (0,),
}


def check_fields(
    fields: Mapping[str, Any], read: Set[str], kind: str, neutral: Mapping[str, tuple[Any, ...]] = NEUTRAL
) -> None:
    """
    Raises a `RefusedRequest` for a field that would change the answer and is not read; null changes nothing.

    Args:
        fields: names and values, as in JSON.
        read: names of the fields that are read.
        kind: of the requests, for the message.
        neutral: values that change nothing.
    """
    for name, value in fields.items():
        if value is None or name in read or name in IGNORED:
            continue
        if name not in neutral:
            known = ", ".join(sorted(read))
            raise RefusedRequest(
                f"This server does not support {name[:100]!r} in {kind}; it reads {known}.", name[:100]
            )
        if value not in neutral[name]:
            expected = " or ".join(json.dumps(known) for known in neutral[name])
            raise RefusedRequest(f"{name} can only be {expected} here, got {json.dumps(value)[:100]}.", name)


__all__ = ["NEUTRAL", "check_fields"]
