"""The processor against Whisper's feature extractor (clips padded to 30 s), the language model's own chat template,
and token counts by hand."""

import copy
import logging
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from jinja2 import TemplateError
from tiny import audio_tokens, make_processor, make_tokenizer, question, tokenized, tone
from transformers import AutoProcessor, WhisperFeatureExtractor

from falcon3_audio.processing import load_audio, processing_falcon3_audio


def features_of(processor, clip) -> np.ndarray:
    return processor(audio=clip, sampling_rate=16_000)["input_features"][0].numpy()


def stock_features(clip, mels=80) -> np.ndarray:
    """Whisper's input for a window: the features of the clip padded to 30 s."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    return extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0]


# Features.

SOUND = tone(61.0)


@pytest.mark.parametrize(
    "samples, mels",
    [(samples, 80) for samples in (1, 159, 161, 321, 480, 16_000, 47_999, 479_520, 479_841, 479_999, 480_000)]
    + [(samples, 128) for samples in (1, 641, 16_001, 480_000)],
)
def test_features_are_whispers(samples, mels):
    clip, processor = SOUND[:samples], make_processor(mels=mels)
    inputs = processor(audio=clip, sampling_rate=16_000)
    frames = math.ceil(samples / 160)
    assert inputs["input_features_mask"].sum() == inputs["input_features_mask"][0, :frames].sum() == frames
    # Two frames make a position, and the convolutions look one frame ahead.
    read = min(2 * math.ceil(frames / 2) + 1, 3000)
    assert inputs["input_features"].shape == (1, mels, read)
    stock = stock_features(clip, mels)[:, :read]
    np.testing.assert_allclose(inputs["input_features"][0, :, :read].numpy(), stock, atol=1e-6, rtol=0)


@pytest.mark.parametrize("clip", [np.zeros(5_000), np.ones(5_000), 1e-6 * tone(1.0)], ids=["silence", "DC", "faint"])
def test_features_of_unusual_sounds(processor, clip):
    clip = clip.astype(np.float32)
    frames = math.ceil(len(clip) / 160) + 1
    stock = stock_features(clip)[:, :frames]
    np.testing.assert_allclose(features_of(processor, clip)[:, :frames], stock, atol=1e-6, rtol=0)


def test_features_do_not_depend_on_the_batch(processor):
    clips = [SOUND[:SECOND], SOUND[5_000:5_777], SOUND[: 31 * 16_000], 3 * SOUND[:100]]
    batch = processor(text=[processor.audio_token] * 4, audio=clips, sampling_rate=16_000)
    for clip, row, mask in zip(clips, batch["input_features"], batch["input_features_mask"]):
        alone = processor(audio=clip, sampling_rate=16_000)
        width = alone["input_features"].shape[-1]
        assert torch.equal(row[:, :width], alone["input_features"][0])
        assert torch.equal(mask[:width], alone["input_features_mask"][0])
        assert not row[:, width:].any() and not mask[width:].any()


def test_long_audio_is_windows_side_by_side(processor):
    inputs = processor(audio=SOUND, sampling_rate=16_000)
    assert inputs["input_features"].shape[0] == 1 and int(inputs["input_features_mask"].sum()) == 6_100
    for start, frames in ((0, 3000), (3000, 3000), (6000, 100)):
        stock = stock_features(SOUND[start * 160 :][:480_000])[:, :frames]
        window = inputs["input_features"][0, :, start : start + frames].numpy()
        np.testing.assert_allclose(window, stock, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seconds", [2.5, 31])
def test_pad_to_window_gives_stock_features(seconds):
    clip = SOUND[: int(seconds * 16_000)]
    inputs = make_processor(pad_to_window=True)(audio=clip, sampling_rate=16_000)
    windows = [stock_features(clip[start : start + 480_000]) for start in range(0, len(clip), 480_000)]
    np.testing.assert_allclose(inputs["input_features"][0].numpy(), np.concatenate(windows, 1), atol=1e-6, rtol=0)
    assert int(inputs["input_features_mask"].sum()) == seconds * 100


@pytest.mark.parametrize("silence", [0.01, 0.5, 1.23, 30])
@pytest.mark.parametrize("samples", [1, 16_000, 16_161, 480_000 - 321, 480_000, 500_000])
def test_silence_is_that_of_the_clip_padded_to_30_seconds(samples, silence):
    """And the mask marks only the clip's own frames."""
    clip = SOUND[:samples]
    inputs = make_processor(trailing_silence=silence)(audio=clip, sampling_rate=16_000)
    windows = [stock_features(clip[start : start + 480_000]) for start in range(0, len(clip), 480_000)]
    frames = math.ceil(samples / 160)
    last = min(3000, frames % 3000 + round(100 * silence)) if frames % 3000 else 3000
    kept = inputs["input_features"][0].numpy()
    assert kept.shape[1] == 3000 * (len(windows) - 1) + min(3000, math.ceil(last / 2) * 2 + 1)
    np.testing.assert_allclose(kept, np.concatenate(windows, 1)[:, : kept.shape[1]], atol=1e-6, rtol=0)
    assert inputs["input_features_mask"].tolist() == [[1] * frames + [0] * (kept.shape[1] - frames)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trailing_silence": -1}, "`trailing_silence` must be 0 or from 0.01 to the 30 s of a window, got -1"),
        ({"trailing_silence": math.nan}, "`trailing_silence` must be .* got nan"),
        ({"trailing_silence": 31}, "`trailing_silence` must be .* got 31"),
        ({"trailing_silence": 0.001}, "`trailing_silence` must be .* got 0.001"),
        ({"trailing_silence": "1.0"}, "`trailing_silence` must be .* got '1.0'"),
        ({"trailing_silence": None}, "`trailing_silence` must be .* got None"),
        ({"trailing_silence": True}, "`trailing_silence` must be .* got True"),
        ({"pad_to_window": "no"}, "`pad_to_window` must be True or False, got 'no'"),
        ({"read_trailing_silence": None}, "`read_trailing_silence` must be True or False, got None"),
        ({"trailing_silence": 1, "pad_to_window": True}, "leave out `trailing_silence`"),
        ({"read_trailing_silence": False, "pad_to_window": True}, "leave out `trailing_silence`"),
        (
            {"max_audio_seconds": None},
            "`max_audio_seconds` must be a number of seconds above 0, got None. For no limit",
        ),
        ({"max_audio_seconds": math.inf}, "`max_audio_seconds` must be .* got inf"),
        ({"max_audio_seconds": 0}, "`max_audio_seconds` must be .* got 0"),
        ({"max_audio_seconds": -1}, "`max_audio_seconds` must be .* got -1"),
        ({"max_audio_seconds": math.nan}, "`max_audio_seconds` must be .* got nan"),
        ({"max_audio_seconds": True}, "`max_audio_seconds` must be .* got True"),
        ({"pooling_window": True}, "`pooling_window` must be .* got True"),
        ({"pooling_window": 0}, "`pooling_window` must be a whole number that divides the 1500 positions .* got 0"),
        ({"pooling_window": 7}, "`pooling_window` must be .* got 7"),
        ({"pooling_window": 2.0}, "`pooling_window` must be .* got 2.0"),
    ],
)
def test_settings_that_cannot_be_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**options)


# Tokens.

SECOND = 16_000


@pytest.mark.parametrize(
    "samples, options, tokens",
    [
        (1, {}, 1),
        (640, {}, 1),
        (641, {}, 2),
        (SECOND, {}, 25),
        (10 * SECOND, {}, 250),
        (30 * SECOND - 1, {}, 750),
        (30 * SECOND, {}, 750),
        (30 * SECOND + 1, {}, 751),
        (61 * SECOND, {}, 1525),
        (10 * SECOND, {"pooling_window": 1}, 500),
        (SECOND, {"pooling_window": 4}, 13),
        (30 * SECOND + 1, {"pooling_window": 4}, 376),
        (1, {"pad_to_window": True}, 750),
        (30 * SECOND, {"pad_to_window": True}, 750),
        (30 * SECOND + 1, {"pad_to_window": True}, 1500),
        (61 * SECOND, {"pad_to_window": True}, 2250),
        (SECOND, {"pad_to_window": True, "pooling_window": 4}, 375),
        (1, {"trailing_silence": 1.0}, 26),
        (SECOND, {"trailing_silence": 1.0}, 50),
        (SECOND, {"trailing_silence": 1.0, "read_trailing_silence": False}, 25),
        (SECOND, {"trailing_silence": 0.01}, 26),
        (SECOND + 1, {"trailing_silence": 0.5, "pooling_window": 1}, 76),  # 101 and 50 frames
        (30 * SECOND - 8_000, {"trailing_silence": 1.0}, 750),
        (30 * SECOND, {"trailing_silence": 1.0}, 750),
        (61 * SECOND, {"trailing_silence": 1.0}, 1550),
        (61 * SECOND, {"trailing_silence": 30, "read_trailing_silence": False}, 1525),
    ],
)
def test_token_counts_by_hand(samples, options, tokens):
    processor = make_processor(**options)
    inputs = processor(text="a" + processor.audio_token, audio=SOUND[:samples], sampling_rate=16_000)
    assert inputs["input_ids"].tolist() == [[*processor.tokenizer.encode("a"), *[processor.audio_token_id] * tokens]]
    assert processor._get_num_multimodal_tokens(audio_lengths=[samples, samples])["num_audio_tokens"] == [tokens] * 2


def test_the_model_makes_as_many_tokens(processor, model):
    lengths = [1, 641, 7_777, 16_000, 479_999, 480_001]
    inputs = processor(audio=[SOUND[:length] for length in lengths], sampling_rate=16_000)
    with torch.no_grad():
        made = model.model.get_audio_features(**inputs).pooler_output.shape[0]
    assert made == sum(processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"])


# The limit.


def test_what_is_over_the_limit_is_cut_with_a_warning(caplog):
    processor, clip = make_processor(max_audio_seconds=2), SOUND[: int(3.2 * SECOND)]
    with caplog.at_level(logging.WARNING):
        inputs = processor(text=processor.audio_token, audio=clip, sampling_rate=16_000)
    assert "3.2 s" in caplog.text and "first 2 s" in caplog.text and "max_audio_seconds" in caplog.text
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), features_of(processor, clip[: 2 * SECOND]))
    assert inputs["input_ids"].shape == (1, 50)
    assert processor._get_num_multimodal_tokens(audio_lengths=[len(clip)])["num_audio_tokens"] == [50]


def test_the_limit_itself_is_heard_without_a_warning(caplog):
    processor = make_processor(max_audio_seconds=2)
    with caplog.at_level(logging.WARNING):
        processor(audio=SOUND[: 2 * SECOND], sampling_rate=16_000)
    assert not caplog.text


@pytest.mark.parametrize("kwargs", [{"truncation": False}, {"audio_kwargs": {"truncation": False}}])
def test_what_is_over_the_limit_can_be_refused(kwargs):
    processor, clip = make_processor(max_audio_seconds=2), SOUND[: int(3.2 * SECOND)]
    with pytest.raises(ValueError, match=r"audio 0 is 3\.2 s long, over the limit of 2 s.*Split it"):
        processor(audio=clip, sampling_rate=16_000, **kwargs)
    with pytest.raises(ValueError, match=r"3\.2 s long"):
        tokenized(processor, question(clip), processor_kwargs=kwargs)


# Arguments.


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_length": 90, "padding": "max_length"},
        {"max_length": 90, "padding": "max_length", "truncation": True},
        {"max_length": 90, "padding": "max_length", "truncation": False},
        {"padding": "longest", "pad_to_multiple_of": 90},
        {"text_kwargs": {"max_length": 90, "padding": "max_length"}},
    ],
)
def test_arguments_for_the_text_leave_the_audio_alone(processor, kwargs):
    clip = SOUND[: 2 * SECOND]
    inputs = processor(text=processor.audio_token + "hello", audio=clip, sampling_rate=16_000, **kwargs)
    assert inputs["input_ids"].shape == (1, 90) and audio_tokens(processor, inputs["input_ids"]) == 50
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), features_of(processor, clip))


def test_text_is_not_cut_through_the_audio(processor):
    prompt = processor.audio_token + "hello"
    cut = processor(text=prompt, audio=SOUND[:SECOND], sampling_rate=16_000, truncation=True, max_length=27)
    assert cut["input_ids"].shape == (1, 27) and audio_tokens(processor, cut["input_ids"]) == 25
    with pytest.raises(ValueError, match="truncation"):
        processor(text=prompt, audio=SOUND[:SECOND], sampling_rate=16_000, truncation=True, max_length=24)
    with pytest.raises(ValueError, match="truncation"):
        options = {"truncation": True, "max_length": 24}
        tokenized(processor, question(SOUND[:SECOND]), processor_kwargs=options)


def test_placeholders_and_audios_must_match(processor):
    token, clip = processor.audio_token, SOUND[:SECOND]
    for text, audio in (
        (["hi", token], [clip, clip]),
        (token + token, [clip]),
        (token, None),
        ("hi", clip),
        ([token, token], [clip] * 3),
    ):
        with pytest.raises(ValueError, match=r"Got \d audios, but the texts hold \d audio placeholders"):
            processor(text=text, audio=audio, sampling_rate=16_000)


def test_calls_without_sense(processor):
    for arguments, message in (
        ({}, "Give the processor `text`, `audio` or both"),
        ({"text": [3]}, "must be a string or a list of strings, got int;"),
        ({"text": np.zeros(16_000, np.float32)}, "got float32; pass clips as `audio`"),
        ({"text": "a", "images": [np.zeros((3, 8, 8))]}, "got images or videos"),
        ({"text": "a", "return_labels": True}, "use `apply_chat_template`"),
        ({"text": "a", "text_kwargs": {"return_labels": True}}, "use `apply_chat_template`"),
        ({"text": "a", "audios": [SOUND[:SECOND]]}, "audio"),  # the old name, easily ignored by mistake
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            processor(**arguments)


def test_no_audio_at_all(processor):
    alone = processor(text="hi")
    assert set(alone) == {"input_ids", "attention_mask"}
    assert processor(text="hi", audio=[])["input_ids"].tolist() == alone["input_ids"].tolist()


def test_one_clip_or_a_list_of_them(processor, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:SECOND], 16_000, subtype="FLOAT")
    wanted = features_of(processor, SOUND[:SECOND])
    samples = SOUND[:SECOND]
    for audio in (samples, [samples], samples.tolist(), list(samples), torch.from_numpy(samples), str(path), [path]):
        inputs = processor(text=processor.audio_token, audio=audio, sampling_rate=16_000)
        np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)
    for pair in ([path.read_bytes(), str(path)], (samples, {"array": samples, "sampling_rate": 16_000})):
        inputs = processor(text=processor.audio_token * 2, audio=pair, sampling_rate=16_000)
        for row in inputs["input_features"].numpy():
            np.testing.assert_array_equal(row, wanted)


def test_numpy_tensors(processor):
    inputs = processor(text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    np.testing.assert_array_equal(inputs["input_features"][0], features_of(processor, SOUND[:SECOND]))


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


def test_padding_is_on_the_left(processor):
    inputs = processor(text=["a", "bell"])
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][0, -1] == 1
    assert processor(text=["a", "bell"], padding_side="right")["attention_mask"][0, -1] == 0


def test_a_tokenizer_object_is_made_ready_as_one_by_name_is(tmp_path):
    """It pads on the left, also after saving."""
    tokenizer = make_tokenizer([">>UNUSED_0<<", "<|endoftext|>"], eos_token="<|endoftext|>", padding_side="right")
    processor = make_processor(tokenizer)
    processor.save_pretrained(tmp_path)
    for made in (processor, AutoProcessor.from_pretrained(tmp_path)):
        inputs = made(text=["a", "bell"])
        assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][0, -1] == 1


# Messages.


def test_audios_of_a_batch_stay_with_their_prompts(processor):
    lengths = [SECOND, 3 * SECOND, 2 * SECOND, SECOND // 2]
    a, b, c, d = (tone(length / SECOND, 300 + length) for length in lengths)
    chats = [
        question(a, b),
        question(text="Only words."),
        [*question(c), {"role": "assistant", "content": "a dog"}, *question(d, text="And this?")],
    ]
    inputs = tokenized(processor, chats, add_generation_prompt=True)
    assert [audio_tokens(processor, row) for row in inputs["input_ids"]] == [25 + 75, 0, 50 + 13]
    for clip, row in zip((a, b, c, d), inputs["input_features"].numpy(), strict=True):
        alone = features_of(processor, clip)
        np.testing.assert_array_equal(row[:, : alone.shape[1]], alone)
    for chat, row, mask in zip(chats, inputs["input_ids"], inputs["attention_mask"]):
        alone = tokenized(processor, chat, add_generation_prompt=True)
        assert row[mask.bool()].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize("key", ["audio", "path", "url"])
def test_sources_in_messages(processor, tmp_path, key):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(1.0, rate=44_100), 44_100, subtype="FLOAT")
    inputs = tokenized(processor, [{"role": "user", "content": [{"type": "audio", key: str(path)}]}])
    wanted = features_of(processor, load_audio(tone(1.0, rate=44_100), 44_100))
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


def test_messages_are_not_changed(processor, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:SECOND], 16_000)
    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
    options = {"return_labels": True, "audio_kwargs": {"sampling_rate": 16_000}}
    before = copy.deepcopy((chat, options))
    tokenized(processor, chat, processor_kwargs=options)
    tokenized(processor, [chat, chat])
    assert (chat, options) == before
    clip = SOUND[:SECOND].copy()
    chat = question(clip)
    tokenized(processor, chat)
    assert chat[0]["content"][0]["audio"] is clip and np.array_equal(clip, SOUND[:SECOND])


def message_errors(token):
    user = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
    return {
        "empty": ([], "conversation is empty"),
        "placeholder in a string": ([*user, {"role": "user", "content": "a" + token}], f"Message 2.*{token}"),
        "placeholder in an item": ([*user, *question(text=token)], f"Message 2.*{token}"),
        "no source": ([*user, {"role": "user", "content": [{"type": "audio"}]}], "message 2 needs exactly one"),
        "two sources": (
            [{"role": "user", "content": [{"type": "audio", "audio": SOUND, "path": "a.wav"}]}],
            "message 0 needs exactly one",
        ),
        "bad audio": ([*user, *question(np.zeros(0))], "message 2 is empty"),
        "no file": ([{"role": "user", "content": [{"type": "audio", "path": "nowhere.wav"}]}], "message 0.*no file"),
        "OpenAI audio": ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'.*'text' or 'audio'"),
        "image": ([{"role": "user", "content": [{"type": "image", "path": "a"}]}], "'image'.*'text' or 'audio'"),
        "text under another key": ([*user, {"role": "user", "content": [{"type": "text", "content": "a"}]}], "text"),
        "text that is a list": ([*user, *question(text=["What?", "Where?"])], "text"),
        "text that is None": ([*user, *question(text=None)], "text"),
        "words among items": ([*user, {"role": "user", "content": ["What?"]}], "message 2"),
        "text and audio in one item": (
            [*user, {"role": "user", "content": [{"type": "text", "text": "What?", "audio": "a.wav"}]}],
            "message 2 is of type 'text', but has 'audio'",
        ),
        "audio with words": (
            [{"role": "user", "content": [{"type": "audio", "audio": SOUND, "text": "What?"}]}],
            "message 0 is of type 'audio', but has 'text'",
        ),
        "neither": ([*user, {"role": "user", "content": [{}]}], "Message 2.*type None"),
        "both without a type": ([{"role": "user", "content": [{"audio": SOUND, "text": "What?"}]}], "Message 0.*None"),
        "sound beside the content": (
            [*user, {"role": "user", "content": "What?", "audio": SOUND}],
            "2.*'audio'.*ignored",
        ),
        "clips beside the content": (
            [{"role": "user", "content": "What?", "audios": ["a.wav"]}],
            "0.*'audios'.*ignored",
        ),
        "no role": ([{"content": "What?"}], "Message 0 needs a 'role'"),
        "a role of nothing": ([*user, {"role": None, "content": "What?"}], "Message 2 needs a 'role'"),
        "one item without a list": ([{"role": "user", "content": {"type": "text", "text": "a"}}], "message 0"),
    }


@pytest.mark.parametrize("case", message_errors(""))
def test_bad_messages_are_named(processor, case):
    chat, message = message_errors(processor.audio_token)[case]
    with pytest.raises(ValueError, match=message):
        tokenized(processor, chat)


def test_what_arrow_fills_up_is_nothing(processor):
    """In Arrow, all items of a list have the same keys; missing values are None or a dict of None."""
    chat = question(SOUND[:SECOND], text="What?")
    filled = [{"role": "user", "audio": None, "content": [
        {"type": "audio", "text": None, "audio": SOUND[:SECOND]},
        {"type": "text", "text": "What?", "audio": {"bytes": None, "path": None}},
    ]}]  # fmt: skip
    assert torch.equal(tokenized(processor, filled)["input_ids"], tokenized(processor, chat)["input_ids"])


@pytest.mark.parametrize("as_items", [True, False])
def test_the_template_alone_refuses_the_placeholder_in_texts(as_items):
    """Engines that render the chat themselves would mistake it for the place of a clip."""
    processor = make_processor()
    text = f"Is {processor.audio_token} heard?"
    chat = [{"role": "user", "content": [{"type": "text", "text": text}] if as_items else text}]
    with pytest.raises(TemplateError, match="The text contains the audio placeholder .*Remove it"):
        processor.tokenizer.apply_chat_template(chat, chat_template=processor.chat_template, tokenize=False)


def test_items_stay_in_the_order_in_which_they_are_written(processor):
    """With a line break between two texts and nothing around audio."""
    sounds = [{"type": "audio", "audio": SOUND[: SECOND * seconds]} for seconds in (1, 2)]
    texts = [{"type": "text", "text": text} for text in ("This", "or that", "?")]
    chat = [{"role": "user", "content": [texts[0], sounds[1], texts[1], texts[2], sounds[0], sounds[1]]}]
    inputs = tokenized(processor, chat)
    token = processor.audio_token
    said = processor.decode(inputs["input_ids"][0])
    assert said == f"<|user|>\nThis{token * 50}or that\n?{token * 75}\n"
    assert inputs["input_features_mask"].sum(-1).tolist() == [200, 100, 200]


def test_sound_in_an_answer_is_not_learned(processor):
    items = [
        {"type": "text", "text": "as"},
        {"type": "audio", "audio": SOUND[:SECOND]},
        {"type": "text", "text": "is"},
    ]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": items}]
    row = tokenized(processor, chat, processor_kwargs={"return_labels": True})
    assert audio_tokens(processor, row["input_ids"]) == 25
    assert processor.decode(row["labels"][row["labels"] != -100]) == "asis<|endoftext|>"


def test_labels_are_arrays_where_the_inputs_are(processor):
    chat = [*question(SOUND[:SECOND]), {"role": "assistant", "content": "a dog"}]
    options = {"return_labels": True, "sampling_rate": 16_000}
    arrays = tokenized(processor, chat, processor_kwargs=options, return_tensors="np")
    tensors = tokenized(processor, chat, processor_kwargs=options)
    assert isinstance(arrays["labels"], np.ndarray) and isinstance(tensors["labels"], torch.Tensor)
    np.testing.assert_array_equal(arrays["labels"], tensors["labels"].numpy())


def test_threads_with_settings_of_their_own_share_a_processor(processor):
    """A tokenizer keeps padding and truncation from the previous call, which can come from another thread."""
    texts = ["a b c", "What do you hear?", "a long question " * 20]
    calls = [
        lambda: processor(text=texts)["input_ids"].tolist(),
        lambda: processor(text=texts, padding=False, return_tensors=None)["input_ids"],
        lambda: processor(text=texts, padding=False, truncation=True, max_length=3, return_tensors=None)["input_ids"],
        lambda: processor(text=texts, padding_side="right")["input_ids"].tolist(),
    ]
    expected = [call() for call in calls]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda number: calls[number % 4](), range(800)))
    finally:
        sys.setswitchinterval(before)
    assert all(ids == expected[number % 4] for number, ids in enumerate(found))


@pytest.mark.parametrize("what", ["load_audio", "features"])
def test_threads_do_not_wait_for_each_others_sound(processor, monkeypatch, what):
    """While one thread fetches a clip or computes features, another can process its question."""
    begun, let = threading.Event(), threading.Event()
    expected = processor(text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000)
    place, name = (processing_falcon3_audio, what) if what == "load_audio" else (processor, "_features")
    function = getattr(place, name)

    def slow(*arguments):
        begun.set()
        assert let.wait(60)
        return function(*arguments)

    monkeypatch.setattr(place, name, slow)
    with ThreadPoolExecutor(2) as pool:
        heard = pool.submit(processor, text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000)
        assert begun.wait(60)
        read = pool.submit(processor, text="What do you hear?")
        try:
            assert read.result(timeout=30)["input_ids"].numel()
        finally:
            let.set()
        assert heard.result().keys() == expected.keys()
        assert all(torch.equal(heard.result()[key], value) for key, value in expected.items())


def test_labels_of_a_long_chat_do_not_walk_tensors(processor, monkeypatch):
    """transformers looks at every token for every answer, which is slow if each token is a separate tensor."""
    walks = []
    walk = torch.Tensor.__iter__
    monkeypatch.setattr(torch.Tensor, "__iter__", lambda tensor: (walks.append(1), walk(tensor))[1])
    chat = [*question(SOUND[:SECOND], text="What?"), {"role": "assistant", "content": "a dog"}]
    tokenized(processor, chat * 5, processor_kwargs={"return_labels": True})
    few = len(walks)
    tokenized(processor, chat * 10, processor_kwargs={"return_labels": True})
    assert len(walks) - few <= few + 5


def test_an_empty_list_of_texts_is_an_error(processor):
    with pytest.raises(ValueError, match="`text` is an empty list"):
        processor(text=[])
