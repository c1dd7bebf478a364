"""How long an audio file is by its header, before anything is decoded: a small file can hold hours."""

from typing import BinaryIO

import soundfile

from .audio_files_falcon3_audio import UNKNOWN_FRAMES


def announced_length(file: str | BinaryIO) -> tuple[int | None, int, int] | None:
    """
    Frames, their rate in Hz, and channels. The frames are `None` where the header does not say how many, as in FLAC that
    was written to a stream.

    Returns `None` for what soundfile does not know or finds damaged; `load_audio` says what is wrong with it, or reads it by
    other means.
    """
    try:
        about = soundfile.info(file)
    except soundfile.LibsndfileError:
        return None
    return about.frames if about.frames < UNKNOWN_FRAMES else None, about.samplerate, about.channels


__all__ = ["announced_length"]
