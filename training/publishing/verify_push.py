"""Loads a model as outside users would and asks one question about a tone: `trust_remote_code=True`, no falcon3_audio.

`ask` does this in a separate process with an empty cache, in which importing falcon3_audio fails, so that the code
saved with the checkpoint runs. This file is that process's script, so it imports nothing from the package.

    python -I training/publishing/verify_push.py ORG/NAME [REVISION]       # or a folder
"""

import json
import os
import subprocess
import sys
import tempfile


SAMPLING_RATE = 16_000  # Hz
QUESTION = "What do you hear?"
RESULT = "ANSWER "
# Variables that can place caches outside of HF_HOME.
CACHES = ("HF_HUB_CACHE", "HF_MODULES_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE")


def ask(model: str, revision: str | None = None, token: str | None = None) -> str:
    """
    The model's answer about one second of 440 Hz, decoded greedily.

    Args:
        model: Hub id, of a plain checkpoint or an adapter (which needs PEFT), or a folder.
        revision: commit, branch or `refs/pr/N`, of a Hub id.
        token: for reading a private repository.

    Raises a `ValueError` with the last line of the process's stderr if it fails.
    """
    with tempfile.TemporaryDirectory(prefix="falcon3-audio-verify-") as home:
        environment = {name: value for name, value in os.environ.items() if name not in CACHES} | {"HF_HOME": home}
        if token:
            environment["HF_TOKEN"] = token
        command = [sys.executable, "-I", __file__, model, *([revision] if revision else [])]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
    answers = [line for line in run.stdout.splitlines() if line.startswith(RESULT)]
    if run.returncode or not answers:
        said = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
        raise ValueError(f"{model} does not answer where falcon3_audio is not installed: {said}")
    return json.loads(answers[-1].removeprefix(RESULT))


def _answer(model: str, revision: str | None = None) -> str:
    sys.modules["falcon3_audio"] = None  # type: ignore[assignment]  # importing it fails
    import numpy as np
    from huggingface_hub import file_exists, snapshot_download
    from transformers import pipeline

    if revision and file_exists(model, "adapter_config.json", revision=revision):
        # transformers would look for this revision in the base model's repository too.
        model, revision = snapshot_download(model, revision=revision), None
    tone = np.sin(2 * np.pi * 440 * np.arange(SAMPLING_RATE) / SAMPLING_RATE).astype(np.float32)
    # For this task, it loads AutoModelForMultimodalLM, AutoProcessor and the checkpoint's own pipeline.
    pipe = pipeline("audio-text-to-text", model=model, revision=revision, trust_remote_code=True)
    answer = pipe(tone, text=QUESTION, sampling_rate=SAMPLING_RATE, max_new_tokens=16, do_sample=False)
    return answer[0]["generated_text"]


if __name__ == "__main__":
    print(RESULT + json.dumps(_answer(*sys.argv[1:])))
