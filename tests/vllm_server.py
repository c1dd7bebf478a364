"""vLLM in its own environment, and a server in it on 127.0.0.1, for test_vllm.py.

The environment is created from the package index once, in `.cache/vllm`, and again when requirements-vllm.txt or
torch's pin changes. This package is installed into it as a wheel before every run.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "vllm"
REQUIREMENTS = Path(__file__).with_name("requirements-vllm.txt")
PYTHON = FOLDER / "bin" / "python"
START_UP = 300  # seconds; half a minute on an idle machine
KEY = "a-key-of-the-tests"
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TEST_KEY": KEY}
MODEL = "tiny"


def make_environment() -> None:
    """Builds what is missing, and installs the package as it is now."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(pin for pin in pins if pin.startswith("torch=="))
    wanted = hashlib.sha256((torch + REQUIREMENTS.read_text()).encode()).hexdigest()
    ready = FOLDER / "ready"
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if not ready.exists() or ready.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
        # With its dependencies, which a build for GPUs needs; the rest only from the list.
        subprocess.run([*pip, torch], check=True)
        subprocess.run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)], check=True)
        ready.write_text(wanted)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--force-reinstall", str(ROOT)], check=True)


class Server:
    """
    Args:
        command: arguments of Python; the port is added.
        log: file for its output.
    """

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        at = command.index("--") if "--" in command else len(command)
        command = [str(PYTHON), *command[:at], "--port", str(self.port), *command[at:]]
        self.log = log
        # Not run in the repository, whose folders would be found instead of the wheel.
        with open(log, "w") as file:
            self._process = subprocess.Popen(
                command,
                cwd=log.parent,
                env=os.environ | CPU | (environment or {}),
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def __enter__(self) -> "Server":
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        finally:
            # The engine's processes, which a killed server leaves behind.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + START_UP
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(f"The server did not start. The end of {self.log}:\n{self.log.read_text()[-4000:]}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read().decode()

    def running(self) -> int:
        """Requests in the engine, by its own metrics."""
        found = re.findall(
            r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", self.get("/metrics"), re.MULTILINE
        )
        assert len(found) == 2, found
        return sum(int(float(count)) for count in found)

    def post(
        self, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", key: str = KEY
    ) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, messages: list[dict[str, Any]], **fields: Any) -> tuple[int, Any]:
        return self.post(chat_body(messages, **fields))


def chat_body(messages: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """
    A request with a chat whose audio items hold encoded files as bytes, `{"type": "audio", "audio": b"..."}`, as
    transformers takes them.
    """
    return {"model": MODEL, "messages": [_openai(message) for message in messages], "temperature": 0} | fields


def _openai(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return message | {"content": content if isinstance(content, str) else [_item(item) for item in content]}


def _item(item: dict[str, Any]) -> dict[str, Any]:
    return input_audio(base64.b64encode(item["audio"]).decode()) if item.get("type") == "audio" else item


def input_audio(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
