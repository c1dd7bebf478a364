"""Tests other releases of transformers: `python tests/compat.py VERSION ...`.

Each version gets its own environment in .cache/. A checkpoint saved here must load there with
`trust_remote_code=True`, without the package, and generate the same tokens. Releases that the package allows
(setup.cfg) must also pass its tests of model, processor, pipeline and trainer.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import transformers
from packaging.requirements import Requirement
from tiny import SAMPLING_RATE, make_llm, make_tokenizer, make_whisper, question, tone
from transformers import WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor


ROOT = Path(__file__).resolve().parent.parent
# fmt: off
PACKAGE_TESTS = [
    "tests/modeling/test_modeling.py", "tests/modeling/test_backbones.py", "tests/modeling/test_generation.py", "tests/modeling/test_modeling_encoder.py",
    "tests/modeling/test_shared_prefix.py", "tests/modeling/test_any_to_any.py", "tests/modeling/test_pipeline_options.py", "tests/processing/test_processing.py",
    "tests/processing/test_chats.py", "tests/processing/test_sampling_rates.py",
    "tests/processing/test_messages.py", "tests/modeling/test_pipeline.py", "tests/modeling/test_prompt_cache.py", "tests/modeling/test_common_beginnings.py",
    "tests/modeling/test_generation_settings.py", "tests/modeling/test_releases.py", "tests/training/test_trainer.py", "tests/training/test_merge.py",
]
# fmt: on


def is_allowed(version: str) -> bool:
    """Whether setup.cfg allows the package with that version of transformers."""
    requirements = map(Requirement, metadata.requires("falcon3-audio") or [])
    return next(one for one in requirements if one.name == "transformers").specifier.contains(version)


def make_environment(version: str) -> Path:
    """The Python of an environment with that transformers, and with the package if it allows that; created once."""
    folder = ROOT / ".cache" / f"transformers-{version}"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        constraints = folder / "constraints.txt"
        # huggingface-hub is left to transformers, whose releases need different versions.
        pins = (ROOT / "constraints.txt").read_text().splitlines()
        kept = [pin for pin in pins if not pin.startswith(("transformers==", "huggingface_hub=="))]
        constraints.write_text("\n".join([*kept, f"transformers=={version}"]))
        pip = [folder / "bin" / "pip", "install", "--quiet", "--constraint", constraints]
        subprocess.run([*pip, "torch"], check=True)
        wanted = ["--editable", f"{ROOT}[dev]"] if is_allowed(version) else ["transformers", "soundfile", "soxr"]
        subprocess.run([*pip, *wanted], check=True)
        (folder / "ready").touch()
    return folder / "bin" / "python"


# Placeholders: an unused token, and a new one beyond the vocabulary.
PLACEHOLDERS = {">>UNUSED_1<<": True, "<sound>": False}


def save_checkpoint(folder: Path, placeholder: str) -> list[int]:
    """Saves a tiny checkpoint and a clip; returns the tokens that this environment generates."""
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
    print(f"saved code: {len(versions) * len(PLACEHOLDERS) - failed} passed, {failed} failed")
    return int(failed + test_package(versions) > 0)


def load_everywhere(versions: list[str], placeholder: str) -> int:
    """The number of versions that fail."""
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
            failed += not good
    return failed


def test_package(versions: list[str]) -> int:
    """The number of allowed versions that fail; the installed one is tested by `make test`."""
    others = [version for version in versions if is_allowed(version) and version != transformers.__version__]
    options = ["--numprocesses", "2", "--dist", "loadfile"]
    runs = [
        subprocess.run([make_environment(version).parent / "pytest", *options, *PACKAGE_TESTS], cwd=ROOT)
        for version in others
    ]
    return sum(run.returncode != 0 for run in runs)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
