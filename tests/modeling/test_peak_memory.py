"""The peak memory that logs and reports show."""

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from falcon3_audio import peak_memory as module
from falcon3_audio.peak_memory import peak_memory, peak_memory_gib


def test_on_windows(monkeypatch):
    """Windows has no `resource` module."""
    monkeypatch.setattr(module.sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=3 << 30))
    assert peak_memory() == 3 << 30 and peak_memory_gib() == 3


def test_it_is_that_of_the_process():
    before = peak_memory()
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        assert before == pytest.approx(int(peak.split()[1]) * 1024, rel=0.05)
    assert peak_memory() >= before > 50 * 2**20  # torch by itself takes more
