"""The picture of a clip: the features and tokens that the model gets, under a correct grid."""

import io

import numpy as np
import pytest
from tiny import audio_tokens, make_processor, question, tokenized, tone
from transformers import WhisperFeatureExtractor

from falcon3_audio.demo.conversation import Clip
from falcon3_audio.demo.spectrogram import band_of, draw, hear, tokens_per_line


def test_the_picture_shows_what_the_model_hears(processor):
    clip = Clip("high.wav", tone(1.2, 2000))
    features, tokens = hear(processor, clip)
    inputs = tokenized(processor, question(clip.samples))
    assert tokens == audio_tokens(processor, inputs["input_ids"][0]) == 30  # 1.2 s, 25 a second
    assert features.shape == (80, 120)
    (axes,) = draw(processor, [clip]).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), features)
    assert axes.images[0].get_extent()[:2] == [0, 1.2] and axes.get_xlim() == (0, 1.2)
    np.testing.assert_allclose([line.get_xdata()[0] for line in axes.lines], np.arange(1, 30) * 0.04)
    assert "high.wav: 1.20 s, 30 tokens; a line every token (40 ms)" in axes.get_title()
    # The 2 kHz tone is brightest at the 2 kHz mark.
    brightest = features.mean(1).argmax()
    marks = dict(zip((label.get_text() for label in axes.get_yticklabels()), axes.get_yticks()))
    assert abs(marks["2,000"] - brightest) <= 0.5


def test_the_name_of_a_clip_is_no_formula(processor):
    figure = draw(processor, [Clip("x^$\\frac$.wav", tone(0.5))])
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_title().startswith("x^$\\frac$.wav: ")


def test_long_clips_have_wider_lines_and_borders_of_windows(processor):
    (axes,) = draw(processor, [Clip("long.wav", tone(65))]).axes
    dashed = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    solid = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "-"]
    assert dashed == [30, 60]
    np.testing.assert_allclose(solid, np.arange(1, 65))
    assert "1625 tokens; a line every 25 tokens (1000 ms)" in axes.get_title()
    (scale,) = axes.child_axes
    axes.figure.draw_without_rendering()
    assert scale.get_xlim() == pytest.approx((0, 1625))


@pytest.mark.parametrize(
    "options, tokens, silence",
    [
        ({"trailing_silence": 1.0}, 55, 1.0),
        ({"trailing_silence": 1.0, "read_trailing_silence": False}, 30, 0),
        ({"pad_to_window": True}, 750, 28.8),
    ],
)
def test_silence_that_the_model_hears_is_part_of_the_picture(options, tokens, silence):
    processor = make_processor(**options)
    (axes,) = draw(processor, [Clip("a.wav", tone(1.2))]).axes
    assert axes.images[0].get_array().shape == (80, 120 + 100 * silence)
    assert axes.images[0].get_extent()[1] == axes.get_xlim()[1] == pytest.approx(1.2 + silence)
    said = f" and {silence:.2f} s of silence" if silence else ""
    assert axes.get_title().startswith(f"a.wav: 1.20 s{said}, {tokens} tokens; ")
    axes.figure.draw_without_rendering()
    assert axes.child_axes[0].get_xlim() == pytest.approx((0, tokens))


def test_lines_stay_apart():
    assert [tokens_per_line(tokens) for tokens in (1, 100, 101, 500, 501, 2500, 2501, 7500, 10**6)] == [
        1, 1, 5, 5, 25, 25, 125, 125, 750,
    ]  # fmt: skip


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("hertz", [1000, 2000, 4000, 6000])
def test_frequencies_lie_where_whispers_filters_peak(hertz, bands):
    filters = WhisperFeatureExtractor(feature_size=bands).mel_filters  # 201 frequencies from 0 to 8 kHz, 40 Hz apart
    assert abs(band_of(hertz, bands) - filters[hertz // 40].argmax()) <= 0.6
