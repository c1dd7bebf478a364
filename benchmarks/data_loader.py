"""Training questions that one core can prepare per second: reading, decoding, features, tokens and batching.

    python -m benchmarks.data_loader

Ours: shards as written by `falcon3-audio open-asqa prepare`, in the sampler's order, through `AudioChatCollator`. A
clip is decoded once for all its questions, and features are computed only for its audio. A peer: the same questions in
the same order from the same shards; each clip is decoded per question and passed to the peer's own processor, which
computes features of 30 s. All use the tokenizer of `training/tiny_backbones`, in one process on one thread.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Features, List, Value
from transformers import AudioFlamingo3Processor, AutoTokenizer, Qwen2AudioProcessor, WhisperFeatureExtractor

from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor, load_audio
from falcon3_audio.training.arguments import DataSource
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.sampler import MixtureSampler
from falcon3_audio.training.data.shards import AUDIO, begin_set, encode_flac, finish_set, write_shard
from falcon3_audio.training.data.training_sets import load_training_data, questions_per_clip

from .clips import FRAMES_PER_SECOND, Question, describe, open_asqa_step
from .measure import alternate, compare, options, positive, print_table, record, run_script, seconds
from .models import FLAMINGO, OURS, QWEN


TOKENIZER = Path(__file__).resolve().parent.parent / "training" / "tiny_backbones" / "llm"
SOUNDS = {FLAMINGO: "<sound>", QWEN: "<|AUDIO|>"}  # the peers' placeholders
COLUMNS = Features({"audio": AUDIO, "questions": List({"instruction": Value("string"), "output": Value("string")})})
WORDS = ["what", "is", "heard", "a", "dog", "barks", "and", "somebody", "speaks", "while", "rain", "falls", "far"]


def write_set(folder: Path, questions: Sequence[Question], seed: int) -> None:
    """Writes a set of FLAC clips (tones in noise) with their questions, in one shard."""
    rng = np.random.default_rng(seed)
    rows: dict[int, dict[str, Any]] = {}
    for question in questions:
        if question.clip not in rows:
            rows[question.clip] = {
                "audio": {"bytes": encode_flac(_sound(question.frames, rng)), "path": None},
                "questions": [],
            }
        # A word is about one token of the tiny tokenizer.
        asked, answered = (" ".join(rng.choice(WORDS, count)) for count in (question.question, question.answer))
        rows[question.clip]["questions"].append({"instruction": asked, "output": answered})
    with begin_set(folder, {}) as report:
        write_shard(folder / "0.arrow", list(rows.values()), COLUMNS)
        finish_set(folder, report, {"0.arrow": len(rows)})


def _sound(frames: int, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(frames * SAMPLING_RATE // FRAMES_PER_SECOND) / SAMPLING_RATE
    tones = [0.2 * np.sin(2 * np.pi * pitch * time) for pitch in rng.uniform(80, 4000, 3)]
    return (sum(tones) + 0.02 * rng.standard_normal(len(time))).astype(np.float32)


class PeerCollator:
    """Passes each question with its decoded clip to a peer's processor: features of a window, tokens (no labels)."""

    def __init__(self, kind: str):
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
        tokenizer.add_special_tokens({"additional_special_tokens": [SOUNDS[kind]]})
        processors = {FLAMINGO: AudioFlamingo3Processor, QWEN: Qwen2AudioProcessor}
        self.sound = SOUNDS[kind]
        self.processor = processors[kind](WhisperFeatureExtractor(), tokenizer, chat_template=tokenizer.chat_template)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        clips = [load_audio(example["messages"][0]["content"][0]["audio"]) for example in examples]
        texts = [
            self.processor.tokenizer.apply_chat_template(self._as_text(example["messages"]), tokenize=False)
            for example in examples
        ]
        return self.processor(text=texts, audio=clips, sampling_rate=SAMPLING_RATE, padding=True, return_tensors="pt")

    def _as_text(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
        return [
            {
                "role": message["role"],
                "content": "".join(
                    self.sound if item["type"] == "audio" else item["text"] for item in message["content"]
                ),
            }
            for message in messages
        ]


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    questions = open_asqa_step(given.questions, given.seed)
    print("  ".join(f"{name}: {value:.3g}" for name, value in describe(questions).items()))
    write_set(folder / "set", questions, given.seed)
    examples, sizes = load_training_data([DataSource(str(folder / "set"))])
    sampler = MixtureSampler(
        sizes, [1.0], given.seed, questions_per_clip(examples, sizes), None, step_size=given.batch_size
    )
    processor = Falcon3AudioProcessor.from_backbones(WhisperFeatureExtractor(), str(TOKENIZER))
    collators: dict[str, Callable] = {OURS: AudioChatCollator(processor, questions_per_row=None)}
    collators |= {kind: PeerCollator(kind) for kind in SOUNDS}
    order = list(sampler)

    def load(kind: str) -> Callable[[], float]:
        def epoch():
            for start in range(0, len(order), given.batch_size):
                collators[kind]([examples[number] for number in order[start : start + given.batch_size]])

        return lambda: seconds(epoch)

    results = compare(alternate({kind: load(kind) for kind in collators}, given.repeats))
    results |= {"mix": describe(questions)}
    rows = []
    for kind, median in results["median seconds"].items():
        rows.append([kind, len(order) / median, results["ratios"].get(kind, "-")])
    print_table("Data loader, one core", ["processor", "questions / s", "/ ours"], rows)
    record(given, None, results)
    return results


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/data_loader.json", repeats=3, preset=False, size=False)
    parser.add_argument("--questions", type=positive, default=128, help="questions in the set (default: %(default)s)")
    parser.add_argument("--batch-size", type=positive, default=32, help="questions per batch (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return run_script("data_loader", lambda: measure(given, Path(folder)))
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
