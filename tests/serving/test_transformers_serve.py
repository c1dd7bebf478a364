"""`transformers serve` with a saved folder and its own code, as a user without this package runs it."""

import os
import subprocess
import sys
import time

import httpx
import openai
from ports import free_port
from running_server import QUESTION, audio, openai_chat, user
from transformers import pipeline


COMMAND = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--trust-remote-code", "--device", "cpu"]


def wait_for(process: subprocess.Popen, url: str) -> None:
    while True:
        assert process.poll() is None, process.stdout.read()
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(0.1)


def test_its_answers_are_the_pipelines(sensitive, tmp_path):
    chat = [user(audio(1.7), audio(0.4, 900), QUESTION)]
    expected = pipeline("audio-text-to-text", model=sensitive)(chat, max_new_tokens=8)[0]["generated_text"]
    port = free_port()
    here = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, "--host", "127.0.0.1", "--port", str(port), sensitive]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | here, **pipes) as process:
        try:
            wait_for(process, f"http://127.0.0.1:{port}/v1/models")
            with httpx.Client(trust_env=False) as http:
                client = openai.OpenAI(
                    base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, http_client=http
                )
                answer = client.chat.completions.create(model=sensitive, messages=openai_chat(chat), max_tokens=8)
        finally:
            process.kill()
    assert answer.choices[0].message.content == expected != ""
