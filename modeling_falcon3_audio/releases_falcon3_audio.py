# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where releases of transformers differ, in one place: each difference with its release, and when it can go.

Saved checkpoints run on transformers 5.16 (August 2026) and later. A difference goes when the releases before it are no
longer supported. Travels with every saved checkpoint.
"""

import dataclasses
import functools
from collections.abc import Callable

from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg


try:
    # Added by 5.20; older releases declare sub-configs as a plain dict. Goes when 5.20 is the oldest release.
    from transformers.configuration_utils import SubConfigSpec
except ImportError:
    SubConfigSpec = None

# 5.24 calls the keys and values of earlier tokens `cache`, releases before it `past_key_values`: in `generate`, in
# forwards and in outputs. Goes when 5.24 is the oldest release.
CACHE = (
    "cache" if "cache" in {field.name for field in dataclasses.fields(BaseModelOutputWithPast)} else "past_key_values"
)



def _renamed_to_cache(forward: Callable) -> Callable:
    @functools.wraps(forward)
    def with_cache(*args, **kwargs):
        if "past_key_values" in kwargs:
            kwargs["cache"] = kwargs.pop("past_key_values")
        return forward(*args, **kwargs)

    return with_cache


# Lets a forward whose argument is `cache` be called with `past_key_values`: the only name that older releases' `generate`
# knows, and deprecated by newer ones until 5.40. Goes when 5.40 is the oldest release.
if CACHE == "cache":
    takes_cache = deprecate_kwarg("past_key_values", version="5.40.0", new_name="cache")
else:
    takes_cache = _renamed_to_cache

__all__ = ["CACHE", "SubConfigSpec", "takes_cache"]
