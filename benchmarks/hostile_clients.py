"""Many requests to a server, some of them hostile: do the other answers stay the same, and does memory stay constant?

    python -m benchmarks.hostile_clients MODEL --requests 10000

`falcon3-audio serve` serves the checkpoint. Clients ask about a few clips, by chat and as transcriptions, and every
answer is compared with the one that the idle server gave before. A hundredth of the requests are broken JSON, invalid
audio, truncated bodies, slow bodies, and clients that disconnect during the answer. The server's resident memory
(Linux) is read after a warm-up of such requests and after each tenth of the others. It grows until each thread has its
share of the allocator, for any requests; a leak shows in the later half, whose slope is printed.
"""

import argparse
import base64
import http.client
import io
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import soundfile

from falcon3_audio.processing import SAMPLING_RATE

from .measure import options, positive, print_table, record, run_script


QUESTION = "What do you hear?"
MODEL, CHAT = "served", "/v1/chat/completions"
SLOW_BYTES, SLOW_PAUSE = 20, 0.1  # bytes one by one, seconds between them
LONG_ANSWER = 2000  # tokens, for clients that disconnect
MIB = 2**20
TENTHS = 10


class Server:
    """`falcon3-audio serve` in its own process."""

    def __init__(self, process: subprocess.Popen[str], url: str):
        self.process, self.url = process, url
        self.address = (urlsplit(url).hostname or "", urlsplit(url).port or 0)
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)

    def resident_mib(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024 / MIB


@contextmanager
def serving(model: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "falcon3_audio.serving.serve", model, "--port", "0"]
    with tempfile.NamedTemporaryFile("w", suffix=".log") as log:
        process = subprocess.Popen([*command, "--served-model-name", MODEL], stderr=log, text=True)
        try:
            yield Server(process, _address(process, Path(log.name)))
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    while process.poll() is None:
        for line in log.read_text().splitlines():
            if "is served at" in line:
                return line.split()[-1]
        time.sleep(0.1)
    raise ValueError(f"the server exited with status {process.returncode}: {log.read_text()[-500:]}")


def _clips(count: int, seed: int) -> Iterator[bytes]:
    """Wav files of noise, all different, of 0.5 to 3 s."""
    rng = np.random.default_rng(seed)
    for seconds in rng.uniform(0.5, 3, count):
        file = io.BytesIO()
        soundfile.write(file, rng.normal(0, 0.1, round(seconds * SAMPLING_RATE)), SAMPLING_RATE, format="WAV")
        yield file.getvalue()


def ask(server: Server, number: int, files: list[bytes], tokens: int) -> str:
    """One valid request, chosen by its number."""
    file, transcribe = files[number % len(files)], number // len(files) % 2
    if transcribe:
        heard = server.client.audio.transcriptions.create(model=MODEL, file=("clip.wav", file))
        return heard.text
    reply = server.client.chat.completions.create(model=MODEL, messages=_messages(file), max_tokens=tokens)
    return reply.choices[0].message.content or ""


def _messages(file: bytes) -> Any:
    sound = {"data": base64.b64encode(file).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": sound}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def bad_json(server: Server, file: bytes) -> str:
    return _posted(server, json.dumps({"messages": _messages(file)}).encode()[:-1])


def wrong_audio(server: Server, file: bytes) -> str:
    return _posted(server, json.dumps({"messages": _messages(b"no sound " * len(file[:1000]))}).encode())


def _posted(server: Server, body: bytes) -> str:
    connection = http.client.HTTPConnection(*server.address, timeout=600)
    try:
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        return str(connection.getresponse().status)
    finally:
        connection.close()


def truncated_body(server: Server, file: bytes) -> str:
    body = json.dumps({"messages": _messages(file)}).encode()
    with _begun(server, len(body)) as connection:
        connection.sendall(body[: len(body) // 2])
    return "gone"


def slow_body(server: Server, file: bytes) -> str:
    with _begun(server, SLOW_BYTES + 1) as connection:
        for _ in range(SLOW_BYTES):
            connection.sendall(b"{")
            time.sleep(SLOW_PAUSE)
    return "gone"


def gone_while_answered(server: Server, file: bytes) -> str:
    body = json.dumps({"messages": _messages(file), "max_tokens": LONG_ANSWER, "stream": True}).encode()
    with _begun(server, len(body)) as connection:
        connection.sendall(body)
        connection.recv(1)
    return "gone"


def _begun(server: Server, length: int) -> socket.socket:
    connection = socket.create_connection(server.address, 600)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode())
    return connection


HOSTILE: dict[str, Callable[[Server, bytes], str]] = {
    "bad JSON": bad_json,
    "wrong audio": wrong_audio,
    "truncated body": truncated_body,
    "slow body": slow_body,
    "gone while answered": gone_while_answered,
}


def attack(server: Server, given: argparse.Namespace) -> dict[str, Any]:
    files = list(_clips(given.clips, given.seed))
    kinds = range(2 * given.clips)
    wanted = [ask(server, kind, files, given.tokens) for kind in kinds]
    rng, numbers = random.Random(given.seed), list(range(given.warm_up + given.requests))
    hostile = dict(zip(rng.sample(numbers, round(given.hostile * len(numbers))), list(HOSTILE) * len(numbers)))
    endings: Counter[str] = Counter()

    def one(number: int) -> None:
        if kind := hostile.get(number):
            endings[f"{kind}: {HOSTILE[kind](server, files[number % len(files)])}"] += 1
            return
        same = ask(server, number, files, given.tokens) == wanted[number % len(kinds)]
        endings["same answer" if same else "another answer"] += 1

    cold, begun = server.resident_mib(), time.monotonic()
    parts = [numbers[: given.warm_up], *_tenths(numbers[given.warm_up :])]
    memory = []
    with ThreadPoolExecutor(given.clients) as pool:
        for part in parts:
            list(pool.map(one, part))
            memory.append(server.resident_mib())
    seconds = time.monotonic() - begun
    after = [ask(server, kind, files, given.tokens) for kind in kinds]
    return {
        "endings": dict(endings),
        "same afterwards": after == wanted,
        "different answers": len(set(wanted)),
        "resident MiB before the warm-up": cold,
        "resident MiB": memory,
        "MiB per 1,000 requests, later half": slope(memory, given.requests),
        "seconds": seconds,
    }


def _tenths(numbers: list[int]) -> list[list[int]]:
    return [numbers[n * len(numbers) // TENTHS : (n + 1) * len(numbers) // TENTHS] for n in range(TENTHS)]


def slope(memory: Sequence[float], requests: int) -> float:
    """Least-squares slope of the second half of readings evenly spaced over `requests`: MiB per thousand requests."""
    later = memory[len(memory) // 2 :]
    thousands = np.arange(len(later)) * requests / (len(memory) - 1) / 1000
    return float(np.polyfit(thousands, later, 1)[0])


def measure(given: argparse.Namespace) -> dict[str, Any]:
    with serving(given.model) as server:
        results = attack(server, given)
    report(results, given)
    record(given, None, results)
    return results


def report(results: dict[str, Any], given: argparse.Namespace) -> None:
    rows = sorted(results["endings"].items())
    title = f"{given.warm_up + given.requests} requests by {given.clients} clients, in {results['seconds']:.0f} s"
    print_table(title, ["", "requests"], rows)
    memory = " ".join(f"{size:.0f}" for size in results["resident MiB"])
    cold = results["resident MiB before the warm-up"]
    print(
        f"resident MiB: {cold:.0f}, after {given.warm_up} warm-up requests and after each tenth of the rest: {memory}"
    )
    print(f"in the later half: {results['MiB per 1,000 requests, later half']:+.2f} MiB per 1,000 requests")
    print(f"the answers afterwards are {'the same' if results['same afterwards'] else 'OTHERS'}")


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/hostile_clients.json", 1, preset=False, size=False, turns=False)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a checkpoint")
    parser.add_argument("--requests", type=positive, default=10_000, help="(default: %(default)s)")
    parser.add_argument("--warm-up", type=positive, default=1000, help="warm-up requests (default: %(default)s)")
    parser.add_argument("--clients", type=positive, default=16, help="concurrent clients (default: %(default)s)")
    parser.add_argument("--hostile", type=float, default=0.01, help="share of hostile requests (default: %(default)s)")
    parser.add_argument("--clips", type=positive, default=8, help="number of different clips (default: %(default)s)")
    parser.add_argument("--tokens", type=positive, default=8, help="tokens per answer (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("hostile_clients", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
