"""The length of an audio file according to its header, without decoding it: a small file can hold hours."""

from typing import BinaryIO

import soundfile

from .audio_files_falcon3_audio import UNKNOWN_FRAMES


def announced_length(file: str | BinaryIO) -> tuple[int | None, int, int] | None:
    """
    Number of frames, their rate in Hz, and number of channels. The number of frames is `None` if the header does not
    give it, as in files written to a stream: FLAC, or WAV with 0.

    Returns `None` for files that soundfile does not support or finds damaged; `load_audio` reports what is wrong, or
    reads them another way.
    """
    try:
        about = soundfile.info(file)
    except soundfile.LibsndfileError:
        return None
    return about.frames if 0 < about.frames < UNKNOWN_FRAMES else None, about.samplerate, about.channels


__all__ = ["announced_length"]
