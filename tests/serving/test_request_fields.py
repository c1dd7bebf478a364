"""Fields that change nothing are accepted, in chats and in forms, and nothing else is."""

import json

import pytest

from falcon3_audio.serving.chat_requests import READ, ChatReader
from falcon3_audio.serving.request_audio import AudioReader, RefusedRequest
from falcon3_audio.serving.request_fields import IGNORED, NEUTRAL, check_fields


# What other clients send, by hand.
SENT = [
    *({"top_k": -1}, {"top_k": 0}, {"min_p": 0}, {"min_p": 0.0}, {"repetition_penalty": 1.0}, {"length_penalty": 1.0}),
    *({"n": 1}, {"best_of": 1}, {"min_tokens": 0}, {"ignore_eos": False}, {"use_beam_search": False}),
    *({"presence_penalty": 0.0}, {"frequency_penalty": 0}, {"logit_bias": {}}, {"typical_p": 1.0}, {"bad_words": []}),
    *({"echo": False}, {"continue_final_message": False}, {"add_generation_prompt": True}, {"documents": []}),
    *({"skip_special_tokens": True}, {"include_stop_str_in_output": False}, {"stop_token_ids": []}),
    *({"chat_template_kwargs": {}}, {"mm_processor_kwargs": {}}, {"add_special_tokens": False}),
    *({"functions": []}, {"function_call": "none"}, {"tools": []}, {"tool_choice": "auto"}, {"modalities": ["text"]}),
    *({"reasoning_effort": "none"}, {"include_reasoning": True}, {"verbosity": "medium"}, {"priority": 0}),
    *({"response_format": {"type": "text"}}, {"parallel_tool_calls": True}, {"stream_options": {}}),
    *({"request_id": "x"}, {"prompt_cache_retention": "24h"}, {"prompt_cache_key": "x"}, {"cache_salt": "x"}),
    *({"user": "x"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "flex"}),
]
WANTED = {
    "top_k": 40,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "best_of": 2,
    "min_tokens": 5,
    "ignore_eos": True,
    "use_beam_search": True,
    "echo": True,
    "continue_final_message": True,
    "add_generation_prompt": False,
    "skip_special_tokens": False,
    "stop_token_ids": [3],
    "chat_template_kwargs": {"enable_thinking": False},
    "documents": [{"text": "a"}],
    "function_call": {"name": "f"},
    "reasoning_effort": "minimal",
    "priority": 1,
}


@pytest.fixture
def plain(processor):
    reader = ChatReader("tiny", processor, 1000, 50, 3, AudioReader(30, (), 2**20))
    said = [{"role": "user", "content": "a"}]
    return lambda **fields: reader.chat(json.dumps({"messages": said, **fields}).encode())


@pytest.mark.parametrize("fields", SENT, ids=str)
def test_what_changes_nothing_is_accepted(plain, fields):
    assert plain(**fields) == plain()


def test_null_is_as_if_not_sent(plain):
    assert plain(**dict.fromkeys([*NEUTRAL, *IGNORED, "no_such_field"])) == plain()


@pytest.mark.parametrize("name", WANTED)
def test_what_would_change_an_answer_is_refused_with_what_is_possible(plain, name):
    with pytest.raises(RefusedRequest, match=f"{name} can only be .* here, got ") as refused:
        plain(**{name: WANTED[name]})
    assert refused.value.param == name and json.dumps(WANTED[name]) in str(refused.value)


def test_a_table_never_hides_a_field_that_is_read():
    assert not READ & NEUTRAL.keys() and not (READ | NEUTRAL.keys()) & IGNORED
    check_fields({"top_k": 40}, {"top_k"}, "tests")


def test_unknown_fields_are_refused_with_those_that_are_read():
    with pytest.raises(RefusedRequest) as refused:
        check_fields({"a": None, "user": 1, "no_such_field": 0}, {"b", "a"}, "tests")
    assert str(refused.value) == "This server does not support 'no_such_field' in tests; it reads a, b."
    assert refused.value.param == "no_such_field"
