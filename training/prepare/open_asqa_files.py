"""Finds the audio file of an Open-ASQA clip by the end of its path; no two clips can have the same file.

The names are paths on another machine, so in a folder with fewer levels `spk1/clip.wav` and `spk2/clip.wav` can both
be `clip.wav`. One of them would then be trained on with the other's audio, so two clips with one file are an error.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

import numpy as np


# Tried in this order if a folder lacks the exact file that the JSON names.
AUDIO_SUFFIXES = (".flac", ".wav", ".mp3", ".ogg", ".opus", ".m4a")

Roots = Sequence[tuple[str, str]]


def find_audio(dataset: str, audio_id: str, roots: Roots, home: str) -> str | None:
    """
    The audio file of a clip, or None.

    `audio_id` is a path on another machine. The folder of each root whose pattern (`*` and `?` as in a shell) matches
    the sub-dataset is searched for its ends, longest first: for /x/audio/a.flac these are x/audio/a.flac,
    audio/a.flac and a.flac; then the same with other audio suffixes. `audio_id` itself, relative to `home`, is last.
    """
    path = PurePosixPath(audio_id)
    parts = [part for part in path.parts if part not in ("/", "..")]
    folders = [folder for pattern, folder in roots if fnmatchcase(dataset, pattern)]
    stem = path.stem if path.suffix in AUDIO_SUFFIXES else path.name
    for name in dict.fromkeys((path.name, *(stem + suffix for suffix in AUDIO_SUFFIXES))):
        for folder in folders:
            for start in range(len(parts)):
                candidate = os.path.join(folder, *parts[start:-1], name)
                if os.path.isfile(candidate):
                    return candidate
    itself = os.path.join(home, audio_id)
    return itself if os.path.isfile(itself) else None


def numbers_of(path: str, audio_id: str) -> tuple[int, int]:
    """A file and a clip as 64-bit numbers, since millions of them are compared."""
    return _number(path), _number(audio_id)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def name_shared_files(
    found: Sequence[np.ndarray], clips: Iterable[Mapping[str, Any]], look: Callable[[Mapping[str, Any]], str | None]
) -> str | None:
    """
    The error message for files that were found for several clips, with an example; `None` if there are none.

    Args:
        found: arrays of `numbers_of`, uint64, `(clips, 2)`. A clip may be in several sub-datasets.
        clips: all clips again, to name an example.
        look: finds the file of a clip.
    """
    pairs = np.unique(np.concatenate([*found, np.zeros((0, 2), np.uint64)]), axis=0)
    files, counts = np.unique(pairs[:, 0], return_counts=True)
    shared = set(files[counts > 1].tolist())
    if not shared:
        return None
    named: dict[str, str] = {}
    for clip in clips:
        path = look(clip)
        if path is None or _number(path) not in shared:
            continue
        other = named.setdefault(path, clip["audio_id"])
        if other != clip["audio_id"]:
            return (
                f"{len(shared)} audio files are found for more than one clip, such as {path} for {other} and for "
                f"{clip['audio_id']}. Keep folders with the same file names separate, as in the JSON, or give each "
                "sub-dataset its own --audio-root"
            )
    return None
