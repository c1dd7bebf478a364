"""The processor against Whisper's feature extractor (clips padded to 30 s), the language model's own chat template,
and token counts by hand."""

import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from tiny import SAMPLING_RATE, audio_tokens, features_of, make_processor, make_tokenizer, question, tokenized, tone
from transformers import AutoProcessor, WhisperFeatureExtractor


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

SECOND = SAMPLING_RATE


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


@pytest.mark.parametrize(
    "kwargs", [{"truncation": False}, {"truncation": "do_not_truncate"}, {"audio_kwargs": {"truncation": False}}]
)
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
