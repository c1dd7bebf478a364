"""Fixtures shared by all tests: backbones as on the Hub, and a composed checkpoint."""

import errno
import fcntl
import gc
import logging
import os
import shutil
import sys
import tempfile


os.environ.setdefault("HF_HUB_OFFLINE", "1")
# For data that `datasets` converts.
if "falcon3-audio-tests-" in os.environ.get(
    "HF_DATASETS_CACHE", "falcon3-audio-tests-"
):  # each worker has its own folder
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="falcon3-audio-tests-")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Models this small are faster on one thread, much faster if other programs run at the same time: here, and in the
# processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tiny import make_llm, make_tokenizer, make_whisper
from transformers import WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor


# Files whose tests start other processes or train. `make test` starts with them, so its two workers finish together.
LONGEST = (
    "multi_process",
    "transformers_suite",
    "sft",
    "interrupted_runs",
    "study",
    "grpo",
    "grpo_runs",
    "trainer",
    "demo",
    "demo_browser",
    "real",
    "package",
)


def pytest_collection_finish():
    # Every run of the trainer collects garbage; scanning what has been imported by now takes a second and finds none.
    gc.freeze()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def converted_data_is_removed():
    yield
    if "falcon3-audio-tests-" in os.environ["HF_DATASETS_CACHE"]:
        shutil.rmtree(os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def uvicorn_logs_as_before():
    """A page of gradio turns off the access log of every uvicorn server in its process, and for good."""
    loggers = [logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "uvicorn.error", "uvicorn.asgi")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


@pytest.fixture
def switch_often():
    """Makes threads switch after nearly every step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def whisper():
    return make_whisper()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory):
    """(audio, text): saved backbones, as on the Hub."""
    audio, text = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("llm")
    make_whisper().save_pretrained(audio)
    WhisperFeatureExtractor().save_pretrained(audio)
    make_llm().save_pretrained(text)
    make_tokenizer().save_pretrained(text)
    return str(audio), str(text)


@pytest.fixture
def processor(backbone_folders):
    return Falcon3AudioProcessor.from_backbones(*backbone_folders)


@pytest.fixture(scope="session")
def model(backbone_folders):
    torch.manual_seed(0)
    return Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders).eval()


@pytest.fixture(scope="session")
def checkpoint(model, backbone_folders, tmp_path_factory):
    """A saved composed checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    Falcon3AudioProcessor.from_backbones(*backbone_folders).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sensitive(checkpoint, tmp_path_factory):
    """A checkpoint with large weights, whose answers depend on every clip and word, and are letters only."""
    model = Falcon3AudioForConditionalGeneration.from_pretrained(checkpoint)
    processor = Falcon3AudioProcessor.from_pretrained(checkpoint)
    torch.manual_seed(0)
    model.model.language_model.embed_tokens.weight.data.normal_(0, 1)
    for part in (model.model.language_model.layers, model.lm_head):
        for weight in part.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.3)
    for part in (model.model.audio_tower, model.model.multi_modal_projector):
        for weight in part.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, weight[0].numel() ** -0.5)
    words = processor.tokenizer.batch_decode([[index] for index in range(model.config.text_config.vocab_size)])
    letters = {index for index, word in enumerate(words) if word.isascii() and word.isalpha()}
    model.generation_config.suppress_tokens = sorted(set(range(len(words))) - letters)
    path = tmp_path_factory.mktemp("sensitive")
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return str(path)


@pytest.fixture
def disk_without_locks(monkeypatch):
    """Such as Lustre that is mounted without `flock`."""

    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture(scope="session")
def recipe(backbone_folders, tmp_path_factory):
    """A recipe for tiny runs on a mix: chats, clips with all their questions, and a clip that is too long."""
    from training_runs import CLIP_FEATURES, SETTINGS, clip_row, write_chats, write_clips, write_recipe

    from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard

    folder = tmp_path_factory.mktemp("training")
    clips = write_clips(folder / "clips", 3, seconds=0.5)
    shards = folder / "shards"
    with begin_set(shards, {}) as report:
        write_shard(shards / "0.arrow", [clip_row(path, 2) for path in clips], CLIP_FEATURES)
        finish_set(shards, report, {"0.arrow": 3})
    audio, text = backbone_folders
    data = [
        {"path": str(write_chats(folder / "chats", silent=True)), "sound": "some"},
        {"path": str(shards), "weight": 0.5},
        {"path": str(write_chats(folder / "long", 1, 4.0, silent=True)), "weight": 0.25, "sound": "some"},
    ]
    return write_recipe(folder / "recipe.yaml", audio_model=audio, text_model=text, train_data=data, **SETTINGS)


@pytest.fixture(scope="session")
def finished_run(recipe, tmp_path_factory):
    """The trainer of an uninterrupted run; its folder is `Path(trainer.args.output_dir)`."""
    from training_runs import parse

    from falcon3_audio.training import sft

    run = tmp_path_factory.mktemp("runs") / "finished"
    arguments = ("--config", recipe, "--output_dir", str(run), "--report_to", "tensorboard", "--save_total_limit", "9")
    return sft.train(*parse(*arguments))
