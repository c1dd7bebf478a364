"""Requests per second: our checkpoint in vLLM, in a batched `pipeline()`, and AudioFlamingo3 of the same size in vLLM.

    python -m benchmarks.serving

All run on this CPU, in float32 with random weights, and take turns: each turn asks one question about every clip of a set that
none has heard before (engines keep what they have heard), by 1, 8 and 32 clients at once; `pipeline()` takes as many clips in a
batch. Lengths are drawn from the training mix, answers have one length. Requests hold wav files as base64, and decoding them
counts for all. Both servers stay up meanwhile, one of them idle. vLLM's environment is that of `make test-serving`.
"""

import argparse
import base64
import io
import sys
import tempfile
from collections.abc import Sequence
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
from falcon3_audio.training.demo import BACKBONES
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
    """With Qwen2 for Llama, which differs by the biases of its attention: vLLM's AudioFlamingo3 takes no other."""
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
    """Answers a fresh set of clips with every call, and returns the seconds it took."""

    def __init__(self, given: argparse.Namespace, clients: int):
        self.given, self.clients = given, clients
        self._turn = 0

    def __call__(self) -> float:
        self._turn += 1
        # The same sets for all contenders, and other ones for other numbers of clients.
        files = clips(self.given.requests, self.given.seed + 1000 * self.clients + self._turn)
        return self.time(files)

    def time(self, files: Sequence[bytes]) -> float:
        raise NotImplementedError


class InPipeline(Contender):
    def __init__(self, given: argparse.Namespace, clients: int, pipe: Any):
        super().__init__(given, clients)
        self.pipe = pipe

    def time(self, files: Sequence[bytes]) -> float:
        tokens = self.given.tokens
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return seconds(lambda: self.pipe(list(files), text=QUESTION, batch_size=self.clients, **length))


class InVllm(Contender):
    def __init__(self, given: argparse.Namespace, clients: int, server: Server):
        super().__init__(given, clients)
        self.server = server

    def time(self, files: Sequence[bytes]) -> float:
        def ask_all() -> None:
            with ThreadPoolExecutor(self.clients) as pool:
                for status, answer in pool.map(self._ask, files):
                    if status != 200 or answer["usage"]["completion_tokens"] != self.given.tokens:
                        raise ValueError(f"the server answered with status {status}: {answer}")

        return seconds(ask_all)

    def _ask(self, file: bytes) -> tuple[int, Any]:
        url = "data:audio/wav;base64," + base64.b64encode(file).decode()
        content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": QUESTION}]
        fields = {"max_tokens": self.given.tokens, "ignore_eos": True}
        return self.server.post(chat_body([{"role": "user", "content": content}], **fields))


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
            contenders: dict[str, Contender] = {
                OURS: InVllm(given, clients, servers[OURS]),
                FLAMINGO: InVllm(given, clients, servers[FLAMINGO]),
                PIPELINE: InPipeline(given, clients, pipe),
            }
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
    print_table(f"{requests} requests by {clients} at once", ["", "requests / s", "time / ours in vLLM"], rows)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/serving.json", repeats=3)
    parser.add_argument("--requests", type=int, default=32, help="in a turn (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    logging.set_verbosity_error()
    try:
        if given.size != "small":
            raise ValueError("only the narrow models are measured here, on a CPU")
        measure(given)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"serving: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
