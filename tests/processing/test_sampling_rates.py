"""The sampling rate of samples, wherever it is given, and arguments that look like one."""

import copy

import numpy as np
import pytest
import soundfile
import torch
from tiny import SAMPLING_RATE, audio_tokens, features_of, tokenized, tone

from falcon3_audio.processing import load_audio


SECOND = SAMPLING_RATE
SOUND = tone(61.0)


def rate_arguments(rate):
    """Every place where a user can give an array's sampling rate."""
    return {
        "of the item": ({"sampling_rate": rate}, {}),
        "of the call": ({}, {"sampling_rate": rate}),
        "of the call, the item has none": ({"sampling_rate": None}, {"sampling_rate": rate}),
        "in processor_kwargs": ({}, {"processor_kwargs": {"sampling_rate": rate}}),
        "in audio_kwargs": ({}, {"processor_kwargs": {"audio_kwargs": {"sampling_rate": rate}}}),
        "in audio_kwargs of the call": ({}, {"audio_kwargs": {"sampling_rate": rate}}),
        "in common_kwargs": ({}, {"processor_kwargs": {"common_kwargs": {"sampling_rate": rate}}}),
        "in common_kwargs of the call": ({}, {"common_kwargs": {"sampling_rate": rate}}),
    }


@pytest.mark.parametrize("place", rate_arguments(0))
def test_the_sampling_rate_is_heard_wherever_it_is_given(processor, place):
    clip = tone(1.0, rate=44_100)
    item, kwargs = rate_arguments(44_100)[place]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": clip, **item}]}]
    wanted = features_of(processor, load_audio(clip, 44_100))
    inputs = tokenized(processor, chat, **copy.deepcopy(kwargs))
    assert audio_tokens(processor, inputs["input_ids"]) == 25
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


@pytest.mark.parametrize("place", rate_arguments(0))
def test_a_file_is_resampled_once(processor, tmp_path, place):
    clip = tone(1.0, rate=44_100)
    soundfile.write(tmp_path / "clip.wav", clip, 44_100, subtype="FLOAT")
    item, kwargs = rate_arguments(44_100)[place]
    chat = [{"role": "user", "content": [{"type": "audio", "path": str(tmp_path / "clip.wav"), **item}]}]
    inputs = tokenized(processor, chat, **copy.deepcopy(kwargs))
    wanted = features_of(processor, load_audio(clip, 44_100))
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


@pytest.mark.parametrize("place", rate_arguments(0))
def test_an_impossible_sampling_rate_is_an_error_wherever_it_is_given(processor, place):
    item, kwargs = rate_arguments(0)[place]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": SOUND[:SECOND], **item}]}]
    with pytest.raises(ValueError, match="message 0.*whole number of Hz.*got 0"):
        tokenized(processor, chat, **copy.deepcopy(kwargs))


def test_the_sampling_rate_of_a_call(processor):
    clip = tone(1.0, rate=8_000)
    wanted = features_of(processor, load_audio(clip, 8_000))
    rate = {"sampling_rate": 8_000}
    for kwargs in (rate, {"audio_kwargs": rate}, {"common_kwargs": rate}):
        inputs = processor(audio=[clip, clip], **kwargs)
        np.testing.assert_array_equal(inputs["input_features"][1].numpy(), wanted)
    for pair in ((clip, 8_000), (torch.tensor(8_000), clip), [torch.from_numpy(clip), np.array(8_000)]):
        for audio in (pair, [pair]):
            np.testing.assert_array_equal(processor(audio=audio)["input_features"].numpy(), wanted[None])


UNREAD = {
    "of the call": ({}, {"sample_rate": 8_000}),
    "of the call, short": ({}, {"sr": 8_000}),
    "of the call, as text": ({}, {"sr": "8000"}),
    "of the call, as a tensor": ({}, {"sr": torch.tensor(8_000)}),
    "in processor_kwargs": ({}, {"processor_kwargs": {"sample_rate": 8_000}}),
    "in audio_kwargs": ({}, {"processor_kwargs": {"audio_kwargs": {"rate": 8_000}}}),
    "in audio_kwargs of the call": ({}, {"audio_kwargs": {"rate": 8_000}}),
    "in common_kwargs of the call": ({}, {"common_kwargs": {"fs": 8_000}}),
    "of the item": ({"sample_rate": 8_000}, {}),
    "of the item, short": ({"sr": 8_000}, {}),
    "of the item, with that of the model in the call": ({"rate": 8_000}, {"sampling_rate": 16_000}),
}


@pytest.mark.parametrize("place", UNREAD)
def test_a_sampling_rate_under_another_name_is_refused(processor, tmp_path, place):
    """Otherwise the samples would be read at 16 kHz."""
    item, kwargs = UNREAD[place]
    clip = tone(1.0, rate=8_000)
    name = next(name for name in ("sample_rate", "sr", "rate", "fs") if repr(name) in repr(UNREAD[place]))
    refused = pytest.raises(ValueError, match=rf"not under 'sampling_rate'; there is \['{name}'\]")
    for source in (clip, clip.tolist(), {"array": clip}):
        chat = [{"role": "user", "content": [{"type": "audio", "audio": source, **item}]}]
        with refused:
            tokenized(processor, chat, **copy.deepcopy(kwargs))
        if not item:
            with refused:
                processor(text=processor.audio_token, audio=source, **kwargs.get("processor_kwargs", kwargs))
    wanted = features_of(processor, load_audio(clip, 8_000))
    soundfile.write(tmp_path / "clip.wav", clip, 8_000, subtype="FLOAT")
    for source in ((clip, 8_000), {"array": clip, "sampling_rate": 8_000}, tmp_path / "clip.wav"):  # which have a rate
        chat = [{"role": "user", "content": [{"type": "audio", "audio": source, **item}]}]
        inputs = tokenized(processor, chat, **copy.deepcopy(kwargs))
        np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


def test_arguments_that_are_read_go_with_samples_of_unknown_rate(processor):
    chat = [{"role": "user", "content": [{"type": "audio", "audio": SOUND[:SECOND], "text": None, "tags": []}]}]
    read = {"padding": True, "truncation": False, "text_kwargs": {"max_length": 99}, "return_tensors": "np"}
    template = "{{ word }}" + processor.audio_token
    options = {"add_generation_prompt": True, "tools": None, "documents": None, "return_tensors": "np"}
    options |= {"enable_thinking": False, "reasoning_effort": "low"}  # of other models' templates; no rates
    tokenized(processor, chat, chat_template=template, word="Hi", processor_kwargs=read, **options)
    processor(text=processor.audio_token, audio=SOUND[:SECOND], **read)


OTHERS = [{"id": "a"}, {"cache_control": {"type": "ephemeral"}}, {"name": "dog.wav"}, {"index": 0}, {"loss": False}]


@pytest.mark.parametrize("more", [*OTHERS, {"tags": ["a"]}, {"offset": np.array(0.5)}])
@pytest.mark.parametrize("rate", [{}, {"sampling_rate": 8_000}])
def test_keys_that_are_no_rate_go_with_samples_of_unknown_rate(processor, more, rate):
    wanted = features_of(processor, load_audio(SOUND[:SECOND], *rate.values()))
    for item in ({"audio": SOUND[:SECOND], **more}, {"audio": {"array": SOUND[:SECOND], **more}}):
        inputs = tokenized(processor, [{"role": "user", "content": [{"type": "audio", **item}]}], **rate)
        np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


@pytest.mark.parametrize("more", [{"legacy": 1}, {"num_frames": 3}, {"unknown": object()}])
def test_arguments_that_are_no_rate_go_with_samples_of_unknown_rate(processor, more):
    processor(text=processor.audio_token, audio=SOUND[:SECOND], **more)
    processor(text=processor.audio_token, audio=SOUND[:SECOND], dtype=torch.float32)


def test_a_tuple_that_is_no_pair_is_not_taken_for_several_clips(processor):
    for audio in ((SOUND[None], 16_000, "a dog", 7), (SOUND, "16000"), (SOUND, None), ("clip.wav", 16_000)):
        with pytest.raises(ValueError, match=r"audio 0 is the tuple \(.*expected .*\(samples, rate\)"):
            processor(text=processor.audio_token, audio=audio)
