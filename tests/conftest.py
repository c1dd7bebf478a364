"""Fixtures shared by all tests: backbones as from the Hub, and a composed checkpoint."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tiny import make_llm, make_tokenizer, make_whisper
from transformers import WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor


# Models this small are faster on one thread, by far where other programs run beside the tests.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def whisper():
    return make_whisper()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def backbone_folders(tmp_path_factory):
    """(audio, text): saved backbones, as from the Hub."""
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
