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
SECONDS = 10
WIDTH, HEIGHT, MARGIN, GAP = 900, 190, 12, 34
BOX = (WIDTH - 2 * MARGIN - 4 * GAP) / 5, 96


def stages() -> list[tuple[str, str, str, str]]:
    """Name, what it is, what comes out of it, colour: from a clip of `SECONDS` to the answer."""
    frames = SECONDS * FRAMES_PER_SECOND
    positions = frames // FRAMES_PER_POSITION
    tokens = positions // POOLING_WINDOW
    return [
        ("Clip", f"{SAMPLING_RATE // 1000} kHz, mono", f"{SECONDS} s", "#e8eaf6"),
        ("Mel frames", f"{FRAMES_PER_SECOND} a second", f"{frames:,} frames", "#e8eaf6"),
        ("Whisper encoder", "LoRA", f"{positions:,} positions", "#c5cae9"),
        ("Pooling, projector", "trained in full", f"{tokens:,} audio tokens", "#9fa8da"),
        ("LLM", "LoRA", "an answer in text", "#c5cae9"),
    ]


def architecture() -> str:
    """The SVG of the way from a clip to an answer."""
    width, height = BOX
    top = 24
    parts = []
    for number, (name, what, out, colour) in enumerate(stages()):
        left = MARGIN + number * (width + GAP)
        middle = left + width / 2
        parts += [
            f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{height}" rx="8" fill="{colour}" stroke="#3949ab"/>',
            _text(middle, top + 42, name, "bold"),
            _text(middle, top + 66, what),
            _text(middle, top + height + 30, out),
        ]
        if number:
            parts.append(_arrow(left - GAP, left, top + height / 2))
    parts.append(_text(WIDTH / 2, HEIGHT - 8, "the question's text goes to the LLM beside the audio tokens"))
    return _svg(parts)


def _text(x: float, y: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" font-weight="{weight}">{text}</text>'


def _arrow(start: float, end: float, y: float) -> str:
    tip = end - 4
    return (
        f'<path d="M{start + 4:.0f} {y:.0f} H{tip:.0f} M{tip - 7:.0f} {y - 5:.0f} L{tip:.0f} {y:.0f} L{tip - 7:.0f} {y + 5:.0f}" '
        'fill="none" stroke="#3949ab" stroke-width="2"/>'
    )


def _svg(parts: list[str]) -> str:
    style = 'font-family="sans-serif" font-size="14" fill="#1a237e"'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>'
    body = "\n".join(["<title>From a clip to an answer</title>", background, f"<g {style}>", *parts, "</g>"])
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n{body}\n</svg>\n'


def main(folder: Path = IMAGES):
    folder.mkdir(exist_ok=True)
    (folder / "architecture.svg").write_text(architecture(), encoding="utf-8")


if __name__ == "__main__":
    main()
