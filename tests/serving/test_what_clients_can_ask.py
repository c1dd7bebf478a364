"""The table in serving/README.md: each OpenAI client call and curl line is answered; each named test exists."""

import json
import re
import shlex
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from running_server import QUESTION, Running, audio, openai_chat, user, wav


ROOT = Path(__file__).resolve().parents[2]
TESTS = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
README = (ROOT / "serving" / "README.md").read_text(encoding="utf-8")
SECTION = README.split("## What clients can ask")[1].split("\n## ")[0]
TABLE = [line for line in SECTION.splitlines() if line.startswith("| ")]
ROWS = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in TABLE[1:]]
MESSAGES = openai_chat([user(audio(0.5), QUESTION)])


@pytest.fixture(scope="module")
def server(checkpoint):
    with Running(checkpoint) as running:
        yield running


def test_every_row_has_a_test():
    assert len(ROWS) > 10
    for name in re.findall(r"`(test_\w+)`", SECTION):
        assert f"def {name}(" in TESTS, name


@pytest.mark.parametrize("feature, call", [(row[0], row[1]) for row in ROWS if row[1]])
def test_openais_client(server, feature, call):
    create = server.client.chat.completions.create, server.client.audio.transcriptions.create
    chat, ask = (partial(function, model="tiny") for function in create)
    answer = eval(
        call, {"client": server.client, "chat": chat, "ask": ask, "messages": MESSAGES, "clip": ("a.wav", wav(1))}
    )
    assert list(answer) if "stream=True" in call else answer


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize("feature, line", [(row[0], row[2]) for row in ROWS])
def test_curl(server, feature, line, tmp_path):
    (tmp_path / "clip.wav").write_bytes(wav(1))
    words = [word.replace("$URL", server.url).replace("$CHAT", json.dumps(MESSAGES)) for word in shlex.split(line)]
    kind = ["-H", "Content-Type: application/json"] if "-d" in words else []
    curl = ["curl", "-s", "--noproxy", "*", "-w", "\n%{http_code}", *kind, *words]
    run = subprocess.run(curl, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.rstrip().endswith("\n200"), run.stdout[-500:]
