"""Requests per second: our checkpoint in vLLM, in a batched `pipeline()`, and AudioFlamingo3 of the same size in vLLM.

    python -m benchmarks.serving

All run on this CPU, in float32 with random weights, and take turns. Each turn asks one question about every clip of a
new set (engines cache clips), with 1, 8 and 32 concurrent clients; `pipeline()` gets batches of that many clips.
Lengths are drawn from the training mix; all answers have the same length. Requests hold wav files as base64, and
decoding them counts for all. Both servers stay up throughout, one of them idle. vLLM's environment is that of
`make test-serving`.
"""

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3EncoderConfig,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    Qwen2Config,
    WhisperFeatureExtractor,
    pipeline,
    set_seed,
)
from transformers.utils import logging

from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor, load_tokenizer
from falcon3_audio.training.world.demo import BACKBONES
from falcon3_audio.user_errors import user_errors
from tests.vllm_server import MODEL, Server, chat_body, make_environment

from .clips import FRAMES_PER_SECOND, open_asqa_step
from .measure import alternate, compare, options, print_shape, print_table, record, seconds
from .models import FLAMINGO, OURS, build
from .shapes import AUDIO_TOKEN, MEL_BANDS, Shape, narrow_shape


CLIENTS = (1, 8, 32)
PIPELINE = "pipeline"
QUESTION = "What do you hear?"


def save_ours(folder: Path, shape: Shape, seed: int) -> Falcon3AudioProcessor:
    build(OURS, shape, seed=seed).save_pretrained(folder)
    tokenizer = load_tokenizer(str(BACKBONES / "llm"))
    extractor = WhisperFeatureExtractor(feature_size=MEL_BANDS)
    token = tokenizer.convert_ids_to_tokens(AUDIO_TOKEN)
    processor = Falcon3AudioProcessor.from_backbones(extractor, tokenizer, audio_token=token)
    processor.save_pretrained(folder)
    return processor


def save_flamingo(folder: Path, shape: Shape, seed: int, ours: Falcon3AudioProcessor) -> None:
    """With Qwen2 instead of Llama, which differs by its attention biases: vLLM's AudioFlamingo3 takes only Qwen2."""
    names = shape.text.keys() - {"model_type", "head_dim"}
    text = Qwen2Config(**{name: shape.text[name] for name in names})
    encoder = AudioFlamingo3EncoderConfig(**shape.audio)
    config = AudioFlamingo3Config(audio_config=encoder, text_config=text, audio_token_id=AUDIO_TOKEN)
    set_seed(seed)
    AudioFlamingo3ForConditionalGeneration(config).save_pretrained(folder)
    AudioFlamingo3Processor(
        ours.feature_extractor,
        ours.tokenizer,
        chat_template=ours.chat_template,
        audio_token=ours.audio_token,
        max_audio_len=30,
    ).save_pretrained(folder)


def clips(count: int, seed: int) -> list[bytes]:
    """Wav files of noise, all different, with lengths from the training mix."""
    rng = np.random.default_rng(seed)
    lengths = [question.frames / FRAMES_PER_SECOND for question in open_asqa_step(count, seed)]
    files = []
    for length in lengths:
        file = io.BytesIO()
        soundfile.write(file, rng.normal(0, 0.1, round(length * SAMPLING_RATE)), SAMPLING_RATE, format="WAV")
        files.append(file.getvalue())
    return files


class Contender:
    """Each call gets answers about a fresh set of clips and returns the seconds that took."""

    def __init__(self, given: argparse.Namespace, clients: int, answer: Callable[[list[bytes]], Any]):
        self.given, self.clients, self.answer = given, clients, answer
        self._turn = 0

    def __call__(self) -> float:
        self._turn += 1
        # The same sets for all contenders, different ones for each number of clients.
        files = clips(self.given.requests, self.given.seed + 1000 * self.clients + self._turn)
        return seconds(lambda: self.answer(files))


def in_pipeline(pipe: Any, clients: int, tokens: int) -> Callable[[list[bytes]], Any]:
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    return lambda files: pipe(files, text=QUESTION, batch_size=clients, **length)


def in_vllm(server: Server, clients: int, tokens: int) -> Callable[[list[bytes]], None]:
    def ask(file: bytes) -> tuple[int, Any]:
        url = "data:audio/wav;base64," + base64.b64encode(file).decode()
        content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        fields = {"max_tokens": tokens, "ignore_eos": True}
        return server.post(chat_body([{"role": "user", "content": content}], **fields))

    def ask_all(files: list[bytes]) -> None:
        with ThreadPoolExecutor(clients) as pool:
            for status, answer in pool.map(ask, files):
                if status != 200 or answer["usage"]["completion_tokens"] != tokens:
                    raise ValueError(f"the server answered with status {status}: {answer}")

    return ask_all


def measure(given: argparse.Namespace) -> dict[str, Any]:
    shape = narrow_shape(given.preset)
    print_shape(shape)
    make_environment()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processor = save_ours(folder / OURS, shape, given.seed)
        save_flamingo(folder / FLAMINGO, shape, given.seed, processor)
        servers = {}
        for kind in (OURS, FLAMINGO):
            command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / kind)]
            command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager"]
            command += ["--max-num-seqs", str(max(CLIENTS)), "--max-model-len", "2048"]
            servers[kind] = stack.enter_context(Server(command, folder / f"{kind}.log"))
        pipe = pipeline("audio-text-to-text", model=str(folder / OURS), dtype="float32")
        results = {}
        for clients in CLIENTS:
            answers = {kind: in_vllm(server, clients, given.tokens) for kind, server in servers.items()}
            answers[PIPELINE] = in_pipeline(pipe, clients, given.tokens)
            contenders = {kind: Contender(given, clients, answer) for kind, answer in answers.items()}
            result = compare(alternate(contenders, given.repeats))
            results[f"{clients} clients"] = result
            report(clients, given.requests, result)
    record(given, shape, results)
    return results


def report(clients: int, requests: int, result: dict[str, Any]) -> None:
    names = {OURS: f"{OURS} in vLLM", FLAMINGO: f"{FLAMINGO} in vLLM", PIPELINE: f"{OURS} in pipeline()"}
    rows = [
        [name, requests / result["median seconds"][kind], result["ratios"].get(kind, "-")]
        for kind, name in names.items()
    ]
    print_table(f"{requests} requests by {clients} clients", ["", "requests / s", "time / ours in vLLM"], rows)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/serving.json", repeats=3, size=False)
    parser.set_defaults(size="small")  # on a CPU only narrow models can be measured
    parser.add_argument("--requests", type=int, default=32, help="requests per turn (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens per answer (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.set_verbosity_error()
    with user_errors("serving", RuntimeError) as end:
        measure(given)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
