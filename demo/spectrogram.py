"""Plots what the model hears of a clip: Whisper's log-mel frames under the time grid of the audio tokens.

The plot shows exactly the features and the number of tokens that go into the prompt, taken from the processor. One
token covers 40 ms (two encoder positions of 20 ms, unless the checkpoint pools differently). Lines mark tokens; in
longer clips only every fifth, twenty-fifth and so on, to keep them apart. Dashed lines are the borders of Whisper's
30 s windows. If the model also hears silence after a clip (`trailing_silence`, `pad_to_window`), it is part of the plot.

    draw(processor, [clip]).savefig("clip.png")
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from transformers.audio_utils import hertz_to_mel

from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor
from falcon3_audio.processing.audio_inputs_falcon3_audio import FRAMES_PER_SECOND, POSITIONS_PER_SECOND

from .conversation import Clip


HERTZ = (250, 500, 1000, 2000, 4000)  # marked on the frequency axis
TOKENS_PER_LINE = (1, 5, 25, 125, 750)
MAX_LINES = 100
GREY = "#808890"  # readable on light and dark pages
WIDTH, HEIGHT = 6.0, 2.8  # inches, per clip


def draw(processor: Falcon3AudioProcessor, clips: Sequence[Clip]) -> Figure:
    """A figure with one panel per clip and a transparent background; clips are at most `max_audio_seconds` long."""
    figure = Figure(figsize=(WIDTH, HEIGHT * len(clips)), dpi=150, layout="constrained", facecolor="none")
    for axes, clip in zip(figure.subplots(len(clips), squeeze=False)[:, 0], clips):
        features, tokens = hear(processor, clip)
        _draw_features(axes, features)
        _draw_grid(axes, clip, features.shape[1] / FRAMES_PER_SECOND, tokens, processor)
    return figure


def hear(processor: Falcon3AudioProcessor, clip: Clip) -> tuple[np.ndarray, int]:
    """
    Log-mel frames of the clip, and of the silence after it that the language model reads, `(mel bands, frames)`, and the
    number of tokens that both have in a prompt.
    """
    inputs = processor(text=processor.audio_token, audio=clip.samples, sampling_rate=SAMPLING_RATE)
    frames = int(inputs["input_features_mask"][0].sum())
    tokens = int((inputs["input_ids"][0] == processor.audio_token_id).sum())
    token_frames = processor.pooling_window * FRAMES_PER_SECOND // POSITIONS_PER_SECOND
    if tokens * token_frames - frames >= token_frames:
        frames = tokens * token_frames
    return np.asarray(inputs["input_features"][0][:, :frames]), tokens


def band_of(hertz: float, bands: int) -> float:
    """
    Which of Whisper's mel bands a frequency falls into, as a fractional index.

    The centres of the bands are evenly spaced on Slaney's mel scale between 0 and 8 kHz, at 1 ... `bands` of
    `bands` + 1 steps (`transformers.audio_utils.mel_filter_bank`).
    """
    share = hertz_to_mel(hertz, "slaney") / hertz_to_mel(SAMPLING_RATE / 2, "slaney")
    return float(share) * (bands + 1) - 1


def tokens_per_line(tokens: int) -> int:
    """The number of tokens between two lines, for a clip of `tokens` tokens."""
    return next((step for step in TOKENS_PER_LINE if tokens / step <= MAX_LINES), TOKENS_PER_LINE[-1])


def _draw_features(axes: Axes, features: np.ndarray):
    bands, frames = features.shape
    extent = (0.0, frames / FRAMES_PER_SECOND, -0.5, bands - 0.5)
    axes.imshow(features, origin="lower", aspect="auto", extent=extent, cmap="magma", interpolation="nearest")
    axes.set_yticks([band_of(hertz, bands) for hertz in HERTZ], [f"{hertz:,}" for hertz in HERTZ])
    axes.set_ylabel("Hz", color=GREY)
    axes.set_xlabel("seconds", color=GREY)
    axes.tick_params(colors=GREY)
    axes.spines[:].set_color(GREY)


def _draw_grid(axes: Axes, clip: Clip, heard: float, tokens: int, processor: Falcon3AudioProcessor):
    token_seconds = processor.pooling_window / POSITIONS_PER_SECOND
    window_seconds = processor.window_samples / SAMPLING_RATE
    step = tokens_per_line(tokens)
    for time in np.arange(1, tokens / step) * step * token_seconds:
        axes.axvline(time, color="white", alpha=0.25, linewidth=1.0)
    for time in np.arange(1, clip.seconds / window_seconds) * window_seconds:
        axes.axvline(time, color="white", linestyle="--", linewidth=1.5)
    silence = heard - clip.seconds if heard - clip.seconds >= token_seconds else 0
    axes.set_xlim(0, clip.seconds + silence)
    scale = axes.secondary_xaxis(
        "top", functions=(lambda s: np.divide(s, token_seconds), lambda t: np.multiply(t, token_seconds))
    )
    scale.set_xlabel("audio tokens", color=GREY)
    scale.tick_params(colors=GREY)
    every = "token" if step == 1 else f"{step} tokens"
    length = f"{clip.seconds:.2f} s" + (f" and {silence:.2f} s of silence" if silence else "")
    axes.set_title(
        f"{clip.name}: {length}, {tokens} tokens; a line every {every} ({1000 * step * token_seconds:g} ms)",
        color=GREY,
        fontsize=10,
        parse_math=False,  # names may hold dollar signs
    )
