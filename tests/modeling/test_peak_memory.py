"""The peak memory that logs and reports show."""

import resource
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from falcon3_audio import peak_memory as module
from falcon3_audio.peak_memory import peak_memory, peak_memory_gib


# Without torch, which would need more memory than this parent holds.
CHILD = """
import runpy, sys, types
sys.modules["torch"] = types.ModuleType("torch")
print(runpy.run_path(sys.argv[1])["peak_memory"]("cpu"))
"""
PARENT = """
import subprocess, sys
held = b"x" * (300 << 20)
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True)
"""


def test_on_windows(monkeypatch):
    """Windows has no `resource` module."""
    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=3 << 30))
    assert peak_memory("cpu") == 3 << 30 and peak_memory_gib("cpu") == 3


def test_it_is_that_of_the_process():
    before = peak_memory("cpu")
    if sys.platform == "linux":
        assert before == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.05)
    assert peak_memory("cpu") >= before > 50 * 2**20  # torch by itself takes more


def test_without_proc(monkeypatch, tmp_path):
    """As on macOS, and where /proc has no peak."""
    (tmp_path / "status").write_text("Name:\tpython\n")
    for name in ("status", "missing"):
        monkeypatch.setattr(module, "STATUS", tmp_path / name)
        assert peak_memory("cpu") > 50 * 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="a rule of Linux")
def test_the_memory_of_the_process_that_started_it_does_not_count():
    """A child inherits `ru_maxrss` from its parent, also through exec."""
    output = subprocess.run(
        [sys.executable, "-c", PARENT, CHILD, module.__file__], capture_output=True, text=True, check=True
    )
    assert int(output.stdout) < 200 * 2**20


def test_it_is_that_of_the_device_the_model_is_on(monkeypatch):
    """A model can be on the CPU of a machine with GPUs, and on a GPU that is not the current one."""
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(module.torch.cuda, "max_memory_allocated", lambda device=0: (0, 5 << 30, 2 << 30)[device])
    assert peak_memory("cuda") == 5 << 30 and peak_memory_gib("cuda") == 5
    assert 50 * 2**20 < peak_memory("cpu") < 5 << 30
