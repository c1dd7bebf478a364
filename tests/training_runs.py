"""Shared by the tests of training: a small set of every kind, and runs of `sft` on the tiny backbones."""

import contextlib
import importlib
import json
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml
from datasets import Audio, Features, List, Value
from safetensors.torch import load_file
from tiny import SAMPLING_RATE, tone

from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from falcon3_audio.training.recipe import parse_options


ANSWERS = ("a bell", "a dog")
TEXT = {"type": "text", "text": "What do you hear?"}
CLIP_FEATURES = Features(
    {
        "audio_id": Value("string"),
        "audio": Audio(sampling_rate=SAMPLING_RATE, decode=False),
        "input": Value("string"),
        "seconds": Value("float32"),
        "questions": List({"instruction": Value("string"), "output": Value("string"), "task": Value("string")}),
    }
)
# A run of 6 steps that crosses the end of an epoch, with dropout. Loss and time of every step are logged.
SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "bf16": False,
    "use_cpu": True,
    "per_device_train_batch_size": 2,
    "global_batch_size": 4,
    "max_length": 64,
    "max_steps": 6,
    "save_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "lora_dropout": 0.2,
    "report_to": "none",
    "disable_tqdm": True,
}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if content and isinstance(content[0], str) else list(content)}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def heard(path: Any) -> dict[str, Any]:
    return {"type": "audio", "path": str(path)}


def write_clips(folder: Path, count: int, seconds: float = 0.3) -> list[Path]:
    """wav files of slightly increasing length; even ones are low, odd ones high."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number}.wav" for number in range(count)]
    for number, path in enumerate(paths):
        soundfile.write(path, tone(seconds + 0.02 * number, 300 + 500 * (number % 2) + number), SAMPLING_RATE)
    return paths


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_chats(folder: Path, count: int = 8, seconds: float = 0.3, silent: bool = False) -> Path:
    """
    Chats about clips in the same folder, one with several turns and one with several clips: `count + 2` rows. With
    `silent` also one without audio, for sets with `sound: some`.
    """
    clips = [path.name for path in write_clips(folder, count, seconds)]
    rows = [[user(heard(clip), TEXT), assistant(ANSWERS[n % 2])] for n, clip in enumerate(clips)]
    rows.append([user(heard(clips[0]), TEXT), assistant("a bell"), user("Sure?"), assistant("yes")])
    rows.append([user(heard(clips[0]), heard(clips[-1]), TEXT), assistant("a bell, a dog")])
    rows += [[user("Hi"), assistant("ho")]] * silent
    return write_jsonl(folder / "chats.jsonl", [{"messages": row} for row in rows])


def clip_row(path: Path, questions: int) -> dict[str, Any]:
    """All questions of a clip in one row, as `falcon3-audio open-asqa prepare` stores them."""
    asked = [{"instruction": f"Question {n}?", "output": f"answer {n}", "task": "event"} for n in range(questions)]
    audio = {"bytes": path.read_bytes(), "path": None}
    return {"audio_id": path.name, "audio": audio, "input": "the secret", "seconds": 1.0, "questions": asked}


def write_recipe(path: Path, **options: Any) -> str:
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return str(path)


def parse(*arguments: str) -> tuple[Any, ...]:
    """The options of `sft`, from a command line."""
    groups = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
    return parse_options(groups, list(arguments), prog="falcon3-audio train")


def run_here(command, log, environment, lock, stop, echo):
    """Runs a step of a study in this process, which has imported everything already: replaces `study._run_process`."""
    name, *arguments = command
    with open(log, "a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            return importlib.import_module(name).main(arguments)
        except Exception:
            traceback.print_exc()
            return 1


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log entries of a run's training steps."""
    return [entry for entry in history_of(run) if "loss" in entry]


def history_of(run: Path) -> list[dict[str, Any]]:
    """All log entries of a run."""
    return json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def weights_of(folder: Path) -> dict[str, Any]:
    """Tensors of an adapter, or of a plain checkpoint."""
    path = folder / "adapter_model.safetensors"
    return load_file(path if path.exists() else folder / "model.safetensors")


def farthest(some: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between any two weights of the same name."""
    assert some.keys() == other.keys()
    return max(float((some[name].float() - other[name].float()).abs().max()) for name in some)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file can grow over `size` bytes: writing more fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def check_same_result(run, finished_run):
    """Both have the same weights, and the same log from the first step to the last."""
    finished = Path(finished_run.args.output_dir)
    assert farthest(weights_of(run), weights_of(finished)) <= 1e-6
    assert json.loads((run / "trainer_state.json").read_text())["global_step"] == 6
    for entry, expected in zip(log_of(run), log_of(finished), strict=True):
        for name in ("step", "num_dropped", "num_shortened", "learning_rate", "epoch"):
            assert entry[name] == expected[name], (name, entry["step"])
        for name in ("loss", "grad_norm"):
            assert entry[name] == pytest.approx(expected[name], abs=1e-6), (name, entry["step"])


def asked(text, *paths):
    content = [*({"type": "audio", "path": path} for path in paths), {"type": "text", "text": text}]
    return {"prompt": [{"role": "user", "content": content}], "answer": "a dog"}


def length_reward(completions, **_):
    """Differs between the replies to a prompt unless they all have the same length."""
    return [len(completion[0]["content"]) / 10 for completion in completions]
