"""Which recordings are usable: readable, neither silent nor clipped, and without duplicates.

A recording with copies on both sides of the split stays on the tested side, so that nothing that is tested was trained
on; tested sounds that are an altered copy of a training clip (cut, louder, re-encoded) are refused.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr
from tqdm.auto import tqdm

from falcon3_audio.evaluation.questions import file_sha256
from falcon3_audio.whole_files import write_json

from .clips import Clip


SECONDS = (0.1, 30.0)
CHARACTERS_A_SECOND = 30  # no one speaks faster: the text is not what is said
MIN_PEAK, MIN_RMS = 0.01, 0.0015
CLIPPED, MAX_CLIPPED = 0.999, 0.02  # level, and share of the samples at it
MAX_MEAN = 0.2
NOTED_EVERY = 2000  # clips; a killed run has to check at most this many again
# Peak of the normalised cross-correlation above which two recordings are the same.
SAME = 0.7
SPECTRUM_RATE, SPECTRUM_SECONDS = 8000, 4

Refused = Counter[tuple[str, str]]  # (package, reason)


def read_audio(path: Path, rate: int | None = None, seconds: float | None = None) -> tuple[np.ndarray, int]:
    """Mono float32 samples (the mean of the channels) and their rate: the file's own, or `rate`; the first `seconds`."""
    with soundfile.SoundFile(path) as file:
        own = file.samplerate
        frames = int(seconds * own) if seconds else -1
        samples = file.read(frames, dtype="float32", always_2d=True).mean(1)
    if rate and rate != own and len(samples):
        samples = soxr.resample(samples, own, rate)
    return samples, rate or own


def find_fault(path: Path) -> tuple[str, float]:
    """Why a recording cannot be used, or an empty string; and its length in seconds."""
    try:
        samples, rate = read_audio(path)
    except (soundfile.LibsndfileError, OSError):
        return "unreadable", 0.0
    seconds = round(len(samples) / rate, 3)
    if not SECONDS[0] <= seconds <= SECONDS[1]:
        return "too short" if seconds < SECONDS[0] else "too long", seconds
    return _fault_of(samples), seconds


def _fault_of(samples: np.ndarray) -> str:
    if np.abs(samples).max() < MIN_PEAK or np.sqrt(np.mean(samples**2)) < MIN_RMS:
        return "silent"
    if np.mean(np.abs(samples) >= CLIPPED) > MAX_CLIPPED:
        return "clipped"
    return "constant" if abs(samples.mean()) > MAX_MEAN else ""


class Checked:
    """Faults by the digest of a file, kept in a file of the cache: a second run need not check again."""

    def __init__(self, path: Path):
        self.path = path
        self.known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.noted = len(self.known)

    def find(self, file: Path, digest: str) -> tuple[str, float]:
        if digest not in self.known:
            self.known[digest] = find_fault(file)
            if len(self.known) - self.noted >= NOTED_EVERY:
                self.note()
        fault, seconds = self.known[digest]
        return fault, seconds

    def note(self) -> None:
        if len(self.known) > self.noted:
            write_json(self.path, self.known)
            self.noted = len(self.known)


def accept(clips: Iterable[Clip], refused: Refused, notes: Path, progress: bool = False) -> list[Clip]:
    """The usable clips, tested ones first; refused ones are counted."""
    tested_first = sorted(clips, key=lambda clip: not clip.is_tested)
    bar = tqdm(tested_first, "listening", unit="clip", disable=not progress)
    kept, disputed = _once_each(bar, refused, Checked(notes))
    refused.update((kept[digest].source, "copies with other labels") for digest in disputed)
    usable = [clip for digest, clip in kept.items() if digest not in disputed]
    for clip in usable:
        _drop_unspoken_text(clip, refused)
    tested = [index for index, clip in enumerate(usable) if clip.is_tested]
    twins = near_copies(usable, tested, [index for index, clip in enumerate(usable) if not clip.is_tested])
    refused.update((usable[index].source, "near copy of a training clip") for index in twins)
    return [clip for index, clip in enumerate(usable) if index not in twins]


def _once_each(clips: Iterable[Clip], refused: Refused, checked: Checked) -> tuple[dict[str, Clip], set[str]]:
    """Usable clips by digest, the first of each; and digests of files that have different labels."""
    kept: dict[str, Clip] = {}
    disputed: set[str] = set()
    for clip in clips:
        digest = file_sha256(clip.file)
        fault, clip.seconds = checked.find(clip.file, digest)
        if digest in kept:
            if _contradict(clip, kept[digest]):
                disputed.add(digest)
            fault = "copy"
        if fault:
            refused[clip.source, fault] += 1
        else:
            kept[digest] = clip
    checked.note()
    return kept, disputed


def _contradict(one: Clip, other: Clip) -> bool:
    return any(one.labels.get(key) != other.labels.get(key) for key in ("language", "sound", "instrument"))


def _drop_unspoken_text(clip: Clip, refused: Refused) -> None:
    if len(clip.labels.get("text", "")) > CHARACTERS_A_SECOND * clip.seconds:
        refused[clip.source, "text too long for the clip (only the text)"] += 1
        clip.facts = [fact for fact in clip.facts if fact.kind not in ("phrase", "transcription", "meaning")]
        clip.labels = {key: value for key, value in clip.labels.items() if key not in ("text", "english")}


def near_copies(clips: Sequence[Clip], held_out: Iterable[int], trained: Iterable[int]) -> set[int]:
    """Indices of held-out sounds and instruments that are an altered copy of a training clip of the same label."""
    trained_by_name = _by_name(clips, trained)
    found = set()
    for name, indices in _by_name(clips, held_out).items():
        spectra = [spectrum(clips[index].file) for index in trained_by_name.get(name, ())]
        found |= {index for index in indices if _is_among(spectrum(clips[index].file), spectra)}
    return found


def _by_name(clips: Sequence[Clip], indices: Iterable[int]) -> dict[str, list[int]]:
    """Indices of recordings by what is heard; chords of one guitar sound alike and are not copies."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index in indices:
        if clips[index].domain != "speech" and "chord" not in clips[index].labels:
            groups[clips[index].name].append(index)
    return groups


def _is_among(own: np.ndarray, spectra: Iterable[np.ndarray]) -> bool:
    return any(np.abs(np.fft.irfft(own * np.conj(other))).max() > SAME for other in spectra)


def spectrum(path: Path) -> np.ndarray:
    """The spectrum of the first seconds at unit energy, padded to twice their length to correlate at all shifts."""
    length = SPECTRUM_RATE * SPECTRUM_SECONDS
    samples = read_audio(path, SPECTRUM_RATE, SPECTRUM_SECONDS)[0][:length]
    return np.fft.rfft(samples / (np.linalg.norm(samples) + 1e-9), 2 * length)
