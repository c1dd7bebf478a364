"""The benchmarks by name: how the questions of each are loaded, asked and scored.

A row here holds the defaults of `falcon3-audio evaluate` and `score`; both print what they used. `load` takes the
benchmark's file as published, the folder of its clips, and what to do with faulty rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .caption_metrics import CAPTION_METRICS
from .load_air_bench import FOUNDATION, load_chat, load_foundation
from .load_asr import load_asr
from .load_captions import load_audiocaps, load_clotho
from .load_esc50 import CLIPS, KIND_OF, load_esc50
from .load_jsonl import load_jsonl
from .load_mmau import load_mmar, load_mmau
from .load_mmau_pro import CATEGORIES as MMAU_PRO_CATEGORIES
from .load_mmau_pro import QUESTIONS as MMAU_PRO_QUESTIONS
from .load_mmau_pro import load_mmau_pro
from .load_mmsu import QUESTIONS as MMSU_QUESTIONS
from .load_mmsu import TASKS as MMSU_TASKS
from .load_mmsu import load_mmsu
from .load_voicebench import load_voicebench
from .questions import QuestionSet


@dataclass(frozen=True)
class Benchmark:
    """
    Attributes:
        load: `load(path, audio_root=None, on_error="raise")`, which returns a `QuestionSet`.
        prompt: name in `prompts.PROMPTS`.
        rules: names in `rules.RULES`, `word_errors.UNITS` or `caption_metrics.CAPTION_METRICS`, the official one
            first; empty if a judge scores.
        breakdowns: the groups that scores are broken down by; empty: all groups of the questions.
        title: its published name.
        ids_sha256: `ids_digest` of each published version's questions. Content has changed under one name, ids hardly.
        size: the number of questions, if no digest of their ids is known.
        tasks: the names, or the number of names, in the first breakdown of a benchmark with a `size`.
        plain: suffixes of files whose rows contain everything that scoring needs; the loader reads others, with their
            clips.
        hub_id: the id of the data set on the Hub that holds its questions, if there is one.
    """

    load: Callable[..., QuestionSet]
    prompt: str
    rules: tuple[str, ...]
    breakdowns: tuple[str, ...]
    title: str
    ids_sha256: tuple[str, ...] = ()
    size: int | None = None
    tasks: frozenset[str] | int = frozenset()
    plain: tuple[str, ...] = (".json", ".jsonl")
    hub_id: str | None = None


BENCHMARKS = {
    "mmau": Benchmark(
        load_mmau,
        "plain",
        ("mmau-official", "content"),
        ("task", "difficulty", "category", "sub-category"),
        "MMAU",
        # mmau-test-mini.json in the history of github.com/Sakshi113/MMAU: before and after the ids changed.
        (
            "00215abf6c8778e8e9876796975e954de1da4651337e098ed5b9797c19943fe4",
            "c9ab3b5bdcbf55a62fd07125c5f17a6a91a362ef8548d3c3f265e29c25790750",
        ),
        hub_id="gamma-lab-umd/MMAU-test-mini",
    ),
    "mmar": Benchmark(
        load_mmar,
        "mmar",
        ("mmau-official", "content"),
        ("modality", "category", "sub-category", "language"),
        "MMAR",
        # MMAR-meta.jsonl of github.com/ddlBoJack/MMAR.
        ("28797555f96cdbd5a18ca29f968c6b2baae4bf9dc8d2cd4de458820d0820e27e",),
        hub_id="BoJack/MMAR",
    ),
    "air-bench-foundation": Benchmark(
        load_foundation,
        "air-bench-foundation",
        ("air-bench-official", "content"),
        ("task", "domain"),
        "AIR-Bench Foundation",
        # AIR-Bench's ids are numbers, which any set could have. "Over 19k data samples" in all its tasks: arXiv
        # 2402.07729, section 3.2.
        size=19_000,
        tasks=frozenset(FOUNDATION),
    ),
    "air-bench-chat": Benchmark(load_chat, "question", (), ("task", "domain"), "AIR-Bench Chat"),
    "mmau-pro": Benchmark(
        load_mmau_pro,
        "plain",
        # The published rule for questions with options takes the nearest option by NV-Embed-v2.
        ("mmau-pro",),
        ("category", "length_type", "sub-cat"),
        "MMAU-Pro",
        size=MMAU_PRO_QUESTIONS,
        tasks=frozenset(MMAU_PRO_CATEGORIES),
        plain=(".json", ".jsonl", ".parquet"),
        hub_id="gamma-lab-umd/MMAU-Pro",
    ),
    "mmsu": Benchmark(
        load_mmsu,
        "mmsu",
        ("mmsu-official", "content"),
        ("task", "category", "sub-category", "sub-sub-category"),
        "MMSU",
        size=MMSU_QUESTIONS,
        tasks=MMSU_TASKS,
        hub_id="ddwang2000/MMSU",
    ),
    "voicebench": Benchmark(load_voicebench, "sound-alone", (), ("task",), "VoiceBench"),
    "esc-50": Benchmark(
        load_esc50,
        "plain",
        ("content",),
        ("label", "kind", "fold"),
        "ESC-50",
        size=CLIPS,
        tasks=frozenset(KIND_OF),
        plain=(),
    ),
    "audiocaps": Benchmark(
        load_audiocaps,
        "question",
        tuple(CAPTION_METRICS),
        (),
        "AudioCaps",
        # test.csv of github.com/cdjkim/audiocaps; AudioCaps 2.0's has the same clips.
        ("c57e4406111c4ef9082e438a4257b0973845581a6c7e2d55bdadcc3efdff2a8e",),
        plain=(),
    ),
    "clotho": Benchmark(
        load_clotho,
        "question",
        tuple(CAPTION_METRICS),
        (),
        "Clotho",
        # clotho_captions_evaluation.csv of Clotho 2.1.
        ("a1326648e7a1662d244437bbf2de02bf05a17cddfe1d1493507ce8861074a107",),
        plain=(),
    ),
    "asr": Benchmark(load_asr, "question", ("wer", "cer"), ("split", "dataset", "language"), "Transcripts", plain=()),
    "jsonl": Benchmark(load_jsonl, "plain", ("content",), (), "Own questions"),
}

OWN = ("asr", "jsonl")  # formats for the user's own questions, which have no published name to protect


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of the sorted ids as a JSON list."""
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()


def title_of(benchmark: str, ids: Iterable[str], tasks: Iterable[str] = ()) -> str:
    """
    The title of a set of questions: the benchmark's name only if they are the benchmark's own, and all of them.

    Args:
        benchmark: a name in `BENCHMARKS`.
        ids: of all questions.
        tasks: of the questions, in the benchmark's first breakdown.
    """
    known, ids = BENCHMARKS[benchmark], list(ids)
    if benchmark in OWN:
        return known.title
    found = set(tasks)
    whole = known.size is not None and len(ids) >= known.size and known.tasks in (found, len(found))
    return known.title if whole or ids_digest(ids) in known.ids_sha256 else f"Own questions in {known.title}'s format"
