"""Small benchmark files in the published formats: clips, JSON and JSON lines. Shared by the tests of loaders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile


def write_clip(path: Path, pitch: float = 440.0) -> bytes:
    """A tone of 0.1 s in the format given by the name; returns the file's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.sin(2 * np.pi * pitch * np.arange(1600) / 16_000), 16_000)
    return path.read_bytes()


def write_json(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}
