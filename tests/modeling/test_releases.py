"""Differences between transformers releases: both variants are tested, whichever release is installed."""

import inspect

import pytest
import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast

from falcon3_audio import releases_falcon3_audio as releases


def forward(self, input_ids, cache=None, use_cache=None):
    return cache


def test_the_cache_has_the_name_of_the_release():
    expected = "cache" if Version(transformers.__version__) >= Version("5.24.0.dev0") else "past_key_values"
    assert expected == releases.CACHE
    output = BaseModelOutputWithPast(**{releases.CACHE: "kept"})
    assert getattr(output, releases.CACHE) == "kept"


def test_a_forward_takes_the_older_name():
    both = releases.takes_cache(forward)
    assert both(None, 1, cache="kept") == "kept"
    if releases.CACHE == "cache":
        with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
            assert both(None, 1, past_key_values="kept") == "kept"
    else:
        assert both(None, 1, past_key_values="kept") == "kept"


def test_generate_of_older_releases_finds_the_older_name():
    older = releases._renamed_to_cache(forward)
    assert older(None, 1, past_key_values="kept") == older(None, 1, cache="kept") == "kept"
    assert list(inspect.signature(older).parameters) == ["self", "input_ids", "past_key_values", "use_cache"]

    class Model:
        forward = older

    assert "past_key_values" in inspect.signature(Model().forward).parameters
