"""Speak text with espeak-ng, the small formant synthesiser in the PyPI package `espeakng-loader`.

espeak-ng keeps pitch flutter, glottal phase and noise in C statics that carry over from one utterance to the next, and
it seeds its noise from the clock. So every call loads a fresh copy of the library, seeds it, speaks and unloads it
again (about 5 ms): the same text, voice, speed and pitch give the same samples in any process, regardless of earlier
speech. If another package has loaded the same file, unloading has no effect: the speech is correct, but its samples
are not reproducible. Run: `from falcon3_audio.training.prepare.espeak import speak; waveform, rate = speak("hello")`.
"""

import ctypes
import difflib
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import espeakng_loader
import numpy as np


SPEED_RANGE = (80, 450)  # words per minute
PITCH_RANGE = (0, 99)  # 50 is the voice's own pitch, 0 about half of it, 99 about twice

# Names and values from espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_DONT_EXIT = 0x8000
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_POSITION_CHARACTER, _CHARS_UTF8 = 1, 1
_GENDERS = {1: "male", 2: "female"}
_SAMPLES_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)

_LOCK = threading.Lock()  # the library is one global state per process
if hasattr(os, "register_at_fork"):  # after a fork while another thread speaks, the child could never take the lock
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


class _Voice(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),  # one priority byte before each tag
        ("identifier", ctypes.c_char_p),  # the voice's file, relative to the data folder's voices or lang
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("reserved", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


def speak(text: str, voice: str = "en-us", speed: int = 160, pitch: int = 50) -> tuple[np.ndarray, int]:
    """Speak `text`.

    Args:
        text: what to say; plain text, no SSML.
        voice: a language tag of `voices()`, alone (`"en-us"`) or with one of `variants()` (`"en-us+f3"`).
        speed: words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the voice's own pitch.

    Returns:
        The mono waveform, float32 of shape `(samples,)` in [-1, 1), and its sampling rate in Hz (22050).

    Raises:
        ValueError: the text is empty or has nothing to pronounce, the voice is unknown, speed or pitch out of range.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"got the text {text!r}; espeak-ng needs at least one word, and no NUL: pass what to say")
    _check_range("speed", speed, SPEED_RANGE, "words per minute")
    _check_range("pitch", pitch, PITCH_RANGE, "where 50 is the voice's own")
    name = _espeak_name(voice)
    chunks: list[bytes] = []

    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _SAMPLES_CALLBACK(collect)  # a local name keeps it alive for as long as the library is loaded
    with _fresh_library() as (library, rate):
        library.espeak_SetSynthCallback(callback)
        _check_status(library.espeak_SetVoiceByName(name.encode()), f"select the voice {voice!r}")
        _check_status(library.espeak_SetParameter(_PARAMETER_RATE, speed, 0), f"set the speed {speed}")
        _check_status(library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0), f"set the pitch {pitch}")
        data = text.encode()
        size = ctypes.c_size_t(len(data) + 1)
        status = library.espeak_Synth(data, size, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        _check_status(status, f"speak {text!r}")
        library.espeak_Synchronize()
    waveform = np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float32) / 32768
    if not waveform.any():
        raise ValueError(f"got the text {text!r}, of which espeak-ng pronounces nothing; pass at least one word")
    return waveform, rate


def voices(language: str = "en") -> list[str]:
    """The tags of the voices for `language` (`"en"` gives `"en-gb"`, `"en-us"`, ...), sorted; `""` gives all."""
    return sorted(tag for tag in _catalogue()[0] if not language or f"{tag}-".startswith(f"{language}-"))


def variants() -> dict[str, str]:
    """The variants that any voice can take after a `+`, each with its gender, `"male"` or `"female"`."""
    return dict(sorted(_catalogue()[1].items()))


@contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    with _LOCK:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
        try:
            data_path = os.fsencode(espeakng_loader.get_data_path())
            rate = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data_path, _INITIALIZE_DONT_EXIT)
            if rate <= 0:
                raise RuntimeError(f"espeak-ng found no data in {data_path!r}; reinstall the package espeakng-loader")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield library, rate
            library.espeak_Terminate()
        finally:
            _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    if sys.platform == "win32":
        ctypes.windll.kernel32.FreeLibrary(ctypes.c_void_p(library._handle))
    else:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))


@lru_cache(maxsize=1)
def _catalogue() -> tuple[dict[str, str], dict[str, str]]:
    """Voice files by language tag, and genders by variant; read once, since the data folder does not change."""
    with _fresh_library() as (library, _):
        library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_Voice))
        listed = [(voice.languages[1:].decode(), voice.identifier.decode()) for voice in _listed(library, None)]
        wanted = ctypes.byref(_Voice(languages=b"variant"))
        genders = {
            voice.identifier.decode().removeprefix("!v/"): _GENDERS.get(voice.gender, "male")
            for voice in _listed(library, wanted)
        }
    # Reversed, so that of two voices for one tag the first, which espeak-ng prefers, is kept.
    return dict(reversed(listed)), genders


def _listed(library: ctypes.CDLL, wanted: object) -> Iterator[_Voice]:
    """The entries of a voice list, which ends with a null pointer."""
    entries = library.espeak_ListVoices(wanted)
    index = 0
    while entries[index]:
        yield entries[index].contents
        index += 1


def _espeak_name(voice: str) -> str:
    """The name by which espeak-ng selects a voice; it silently ignores unknown variants, so they are checked here."""
    tag, plus, variant = voice.partition("+")
    files, genders = _catalogue()
    _check_known("voice", tag, files, "voices('')", voice)
    if plus:
        _check_known("variant", variant, genders, "variants()", voice)
    return files[tag] + plus + variant


def _check_known(what: str, got: str, known: Iterable[str], listing: str, voice: str) -> None:
    if got not in known:
        near = difflib.get_close_matches(got, list(known), n=4, cutoff=0.4)
        hint = f"; similar ones are {', '.join(near)}" if near else ""
        raise ValueError(f"got the voice {voice!r}, but espeak-ng has no {what} {got!r}{hint}; see {listing} for all")


def _check_range(what: str, got: int, limits: tuple[int, int], unit: str) -> None:
    if not limits[0] <= got <= limits[1]:
        raise ValueError(f"got {what}={got}; expected {limits[0]} to {limits[1]}, {unit}: pass a {what} in that range")


def _check_status(status: int, action: str) -> None:
    if status != 0:
        raise RuntimeError(f"espeak-ng could not {action} (status {status})")
