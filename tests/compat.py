"""The code that travels with a checkpoint, on other releases of transformers: `python tests/compat.py VERSION ...`.

Each version gets an environment of its own in .cache/, with nothing but torch, transformers and the audio libraries. A
checkpoint saved here must load there with `trust_remote_code=True`, and generate the same tokens.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from tiny import SAMPLING_RATE, make_llm, make_tokenizer, make_whisper, question, tone
from transformers import WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor


ROOT = Path(__file__).resolve().parent.parent


def make_environment(version: str) -> Path:
    """The Python of an environment with that transformers; made once."""
    folder = ROOT / ".cache" / f"transformers-{version}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [folder / "bin" / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        subprocess.run([*pip, "torch"], check=True)
        # huggingface-hub is left to transformers, whose releases ask for different ones.
        subprocess.run([*pip[:3], f"transformers=={version}", "soundfile", "soxr"], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


# Placeholders: an unused token, and a new one beyond the vocabulary.
PLACEHOLDERS = {">>UNUSED_1<<": True, "<sound>": False}


def save_checkpoint(folder: Path, placeholder: str) -> list[int]:
    """A tiny checkpoint, a clip beside it, and the tokens this environment generates."""
    tokenizer = make_tokenizer()
    llm = make_llm(vocab_size=len(tokenizer))
    processor = Falcon3AudioProcessor.from_backbones(WhisperFeatureExtractor(), tokenizer, audio_token=placeholder)
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        make_whisper(), llm, audio_token_id=processor.audio_token_id
    ).eval()
    assert model.config.audio_token_is_embedded == PLACEHOLDERS[placeholder]
    model.save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    clip = tone(1.3)
    np.save(folder / "clip.npy", clip)
    inputs = processor.apply_chat_template(question(clip), add_generation_prompt=True, tokenize=True, return_dict=True)
    tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def main(versions: list[str]) -> int:
    failed = sum(load_everywhere(versions, placeholder) for placeholder in PLACEHOLDERS)
    print(f"{len(versions) * len(PLACEHOLDERS) - failed} passed, {failed} failed")
    return int(failed > 0)


def load_everywhere(versions: list[str], placeholder: str) -> int:
    """How many versions fail."""
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = save_checkpoint(folder, placeholder)
        for version in versions:
            python = make_environment(version)
            script = Path(__file__).with_name("load_remote_code.py")
            arguments = [folder / "checkpoint", folder / "clip.npy", SAMPLING_RATE, folder / f"again-{version}"]
            run = subprocess.run(
                [python, "-I", script, *map(str, arguments)], capture_output=True, text=True, cwd=folder
            )
            rounds = [json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("RESULT ")]
            good = len(rounds) == 2 and all(
                result["tokens"] == expected and result["alone"] == result["together"] for result in rounds
            )
            print(
                f"transformers {version}, {placeholder}: {'same tokens, loaded and saved again' if good else 'FAILED'}"
            )
            if not good:
                print(run.stderr[-4000:], rounds, expected, sep="\n")
                failed += 1
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
