# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Differences between transformers releases, in one place: each with its release, and when its code can be removed.

Saved code runs on 5.16 (August 2026) and later, and in general on the releases of the twelve months before it; the
table is in docs/compatibility.md. (The processor, in another folder, has its own: an empty `_defaults`.) Travels with
every saved checkpoint.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable

from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg


try:
    # Added by 5.20 (2026-10-15); older releases declare sub-configs as a plain dict. Remove on 2027-10-15.
    from transformers.configuration_utils import SubConfigSpec
except ImportError:
    SubConfigSpec = None

# 5.24 (2026-11-21) calls the keys and values of earlier tokens `cache`, releases before it `past_key_values`: in
# `generate`, in forwards and in outputs. Remove on 2027-11-21.
CACHE = (
    "cache" if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
)


def _renamed_to_cache(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def with_cache(*args, **kwargs):
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    # `generate` of these releases accepts only arguments that are in the signature.
    signature = inspect.signature(forward)
    parameters = [
        parameter.replace(name="past_key_values") if parameter.name == "cache" else parameter
        for parameter in signature.parameters.values()
    ]
    with_cache.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return with_cache


# Lets a forward whose argument is `cache` be called with `past_key_values`: the only name that `generate` of older
# releases knows, and deprecated by newer ones until 5.40. Remove on 2027-11-21, or with 5.40 if that is later.
if CACHE == "cache":
    takes_cache = deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
else:
    takes_cache = _renamed_to_cache

__all__ = ["CACHE", "SubConfigSpec", "takes_cache"]
