"""Draws the pictures of the documentation that are not results: `python docs/make_figures.py` writes docs/images/*.svg.

Numbers in them are computed from the package's own constants, so a picture cannot say something else than the code.
"""

from pathlib import Path

from falcon3_audio.processing.audio_inputs_falcon3_audio import (
    FRAMES_PER_POSITION,
    FRAMES_PER_SECOND,
    POOLING_WINDOW,
    SAMPLING_RATE,
)


IMAGES = Path(__file__).parent / "images"
WIDTH, MARGIN = 900, 12
LINE, PALE, MIDDLE, STRONG, WHITE = "#3949ab", "#e8eaf6", "#c5cae9", "#9fa8da", "#ffffff"
SECONDS = 10  # of the clip in the first picture
GAP = 34
BOX = (WIDTH - 2 * MARGIN - 4 * GAP) / 5, 96
LABELS = 190  # width of what stands before a row
WINDOW = 30  # seconds that stock Whisper encodes


def stages() -> list[tuple[str, str, str, str]]:
    """Name, what it is, what comes out of it, colour: from a clip of `SECONDS` to the answer."""
    frames = SECONDS * FRAMES_PER_SECOND
    positions = frames // FRAMES_PER_POSITION
    return [
        ("Clip", f"{SAMPLING_RATE // 1000} kHz, mono", f"{SECONDS} s", PALE),
        ("Mel frames", f"{FRAMES_PER_SECOND} a second", f"{frames:,} frames", PALE),
        ("Whisper encoder", "LoRA", f"{positions:,} positions", MIDDLE),
        ("Pooling, projector", "trained in full", f"{tokens_of(SECONDS)} audio tokens", STRONG),
        ("LLM", "LoRA", "an answer in text", MIDDLE),
    ]


def tokens_of(seconds: float) -> int:
    return int(seconds * FRAMES_PER_SECOND) // FRAMES_PER_POSITION // POOLING_WINDOW


def architecture() -> str:
    """From a clip to an answer."""
    width, height = BOX
    top = 24
    parts = []
    for number, (name, what, out, colour) in enumerate(stages()):
        left = MARGIN + number * (width + GAP)
        middle = left + width / 2
        parts += [
            _box(left, top, width, height, colour, radius=8),
            _text(middle, top + 42, name, "bold"),
            _text(middle, top + 66, what),
            _text(middle, top + height + 30, out),
        ]
        if number:
            parts.append(_arrow(left - GAP, left, top + height / 2))
    parts.append(_text(WIDTH / 2, 182, "the question's text goes to the LLM along with the audio tokens"))
    return _svg("From a clip to an answer", 190, parts)


def time_grid() -> str:
    """What a fifth of a second becomes: frames, positions, tokens, one row of boxes each, on one axis of time."""
    milliseconds = 1000 // FRAMES_PER_SECOND
    sizes = (milliseconds, milliseconds * FRAMES_PER_POSITION, milliseconds * FRAMES_PER_POSITION * POOLING_WINDOW)
    shown = 5 * sizes[-1]
    scale = (WIDTH - LABELS - MARGIN) / shown
    parts = []
    for row, (name, size, colour) in enumerate(
        zip(("mel frame", "position", "audio token"), sizes, (PALE, MIDDLE, STRONG))
    ):
        top = 14 + 46 * row
        parts.append(_text(LABELS - 14, top + 22, f"{name}: {size} ms", anchor="end"))
        parts += [
            _box(LABELS + start * scale, top, size * scale, 34, colour, radius=3) for start in range(0, shown, size)
        ]
    times = range(0, shown + 1, sizes[-1])
    parts += [_text(min(LABELS + time * scale, WIDTH - 28), 172, f"{time} ms") for time in times]
    return _svg("The time grid", 184, parts)


def shared_row() -> str:
    """Three questions about a clip in one row, and which of its parts (across) each part (down) reads."""
    names = ["clip", "question 1", "answer 1", "question 2", "answer 2", "question 3", "answer 3"]
    width, height, top = (WIDTH - LABELS - MARGIN) / len(names), 30, 34
    parts = [_text(LABELS + (column + 0.5) * width, 22, name, "bold") for column, name in enumerate(names)]
    for row, reader in enumerate(names):
        parts.append(_text(LABELS - 14, top + row * height + 20, f"{reader} reads", anchor="end"))
        for column, read in enumerate(names):
            reads = column <= row and (column == 0 or reader[-1] == read[-1])
            colour = (STRONG if column == 0 else MIDDLE) if reads else WHITE
            parts.append(_box(LABELS + column * width, top + row * height, width, height, colour, radius=0))
    return _svg("Rows that share audio", top + len(names) * height + 14, parts)


def trailing_silence(clip: int = 5, silence: int = 1) -> str:
    """How much is encoded of a clip of 5 s: as stock Whisper does, as here, and with a second of silence."""
    rows = [
        ("pad_to_window=True", WINDOW - clip),
        ("default", 0),
        (f"trailing_silence={silence:.1f}", silence),
    ]
    scale = (WIDTH - LABELS - MARGIN - 110) / WINDOW
    parts = []
    for row, (name, behind) in enumerate(rows):
        top, end = 14 + 46 * row, LABELS + (clip + behind) * scale
        parts += [
            _text(LABELS - 14, top + 22, name, anchor="end"),
            _box(LABELS, top, clip * scale, 34, STRONG, radius=0),
            _text(LABELS + clip * scale / 2, top + 22, f"clip, {clip} s"),
            _text(end + 10, top + 22, f"{tokens_of(clip + behind)} tokens", anchor="start"),
        ]
        if behind:
            parts.append(_box(LABELS + clip * scale, top, behind * scale, 34, PALE, radius=0))
        if behind > silence:
            parts.append(_text(LABELS + (clip + behind / 2) * scale, top + 22, f"silence, {behind} s"))
    return _svg("Silence after a clip", 152, parts)


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "middle") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" font-weight="{weight}">{text}</text>'


def _box(left: float, top: float, width: float, height: float, colour: str, radius: int) -> str:
    place = f'x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius}"'
    return f'<rect {place} fill="{colour}" stroke="{LINE}"/>'


def _arrow(start: float, end: float, y: float) -> str:
    tip = end - 4
    return (
        f'<path d="M{start + 4:.0f} {y:.0f} H{tip:.0f} M{tip - 7:.0f} {y - 5:.0f} L{tip:.0f} {y:.0f} L{tip - 7:.0f} {y + 5:.0f}" '
        f'fill="none" stroke="{LINE}" stroke-width="2"/>'
    )


def _svg(title: str, height: float, parts: list[str]) -> str:
    style = 'font-family="sans-serif" font-size="14" fill="#1a237e"'
    background = f'<rect width="{WIDTH}" height="{height}" fill="{WHITE}"/>'
    body = "\n".join([f"<title>{title}</title>", background, f"<g {style}>", *parts, "</g>"])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">\n{body}\n</svg>\n'


def main(folder: Path = IMAGES):
    folder.mkdir(exist_ok=True)
    for draw in (architecture, time_grid, shared_row, trailing_silence):
        (folder / f"{draw.__name__}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
