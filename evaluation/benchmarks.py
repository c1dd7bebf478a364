"""The benchmarks by name: how the questions of each are loaded, put to a model, and scored.

A row here is the default of `falcon3-audio evaluate` and `score`; both print what they used. `load` takes the
benchmark's file as it is published, where its clips are, and what to do with faulty rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from .load_air_bench import load_chat, load_foundation
from .load_jsonl import load_jsonl
from .load_mmau import load_mmar, load_mmau
from .questions import QuestionSet


@dataclass(frozen=True)
class Benchmark:
    """
    Attributes:
        load: `load(path, audio_root=None, on_error="raise")`, which returns a `QuestionSet`.
        prompt: name in `prompts.PROMPTS`.
        rules: names in `rules.RULES`, the official one first; none where a judge scores.
        breakdowns: the groups that scores are broken down by; none: all that the questions have.
    """

    load: Callable[..., QuestionSet]
    prompt: str
    rules: tuple[str, ...]
    breakdowns: tuple[str, ...]


BENCHMARKS = {
    "mmau": Benchmark(
        load_mmau, "plain", ("mmau-official", "content"), ("task", "difficulty", "category", "sub-category")
    ),
    "mmar": Benchmark(
        load_mmar, "mmar", ("mmau-official", "content"), ("modality", "category", "sub-category", "language")
    ),
    "air-bench-foundation": Benchmark(
        load_foundation, "air-bench-foundation", ("air-bench-official", "content"), ("task", "domain")
    ),
    "air-bench-chat": Benchmark(load_chat, "question", (), ("task", "domain")),
    "jsonl": Benchmark(load_jsonl, "plain", ("content",), ()),
}
