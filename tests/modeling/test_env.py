"""What `falcon3-audio env` prints, and what it does not."""

import getpass
import os
import socket

import torch
import transformers

from falcon3_audio_cli import main


def test_versions_of_what_is_installed_and_of_nothing_private(capsys):
    assert main(["env"]) == 0
    said = capsys.readouterr().out
    lines = dict(line.split(None, 1) for line in said.splitlines())
    assert lines["torch"].strip() == torch.__version__ and lines["transformers"].strip() == transformers.__version__
    assert lines["vllm"].strip() == "not installed"
    assert "ruff" not in lines and lines["peft"].strip()[0].isdigit()
    assert os.getcwd() not in said and os.path.expanduser("~") not in said
    assert not {socket.gethostname(), getpass.getuser()} & set(said.split())


def test_accelerators_are_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")
    assert main(["env"]) == 0
    assert "Some GPU (CUDA" in capsys.readouterr().out
