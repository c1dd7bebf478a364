"""One process at a time: who gets a lock, how long it is held, and systems without locks."""

import errno
import importlib.util
import os
import sys
import time
from multiprocessing import get_context
from queue import Queue
from threading import Thread

import pytest

from falcon3_audio import locks


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
    with open(tmp_path / "lock", "ab") as one, open(tmp_path / "lock", "ab") as other:
        assert locks.lock(one) and locks.lock(one)
        assert not locks.lock(other)
        one.close()
        assert locks.lock(other)


def test_a_file_is_free_behind_though_a_worker_has_it_open(tmp_path):
    worker = get_context("fork").Process(target=time.sleep, args=(60,))
    with open(tmp_path / "lock", "ab") as other:
        with locks.locked(tmp_path / "lock") as is_ours, locks.locked(tmp_path / "lock") as is_theirs:
            worker.start()
            assert is_ours and not is_theirs and not locks.lock(other)
        assert locks.lock(other)
    worker.kill()
    worker.join()


def test_who_waits_gets_the_lock_when_it_is_free(tmp_path):
    got = Queue()

    def wait():
        with locks.locked(tmp_path / "lock", wait=True) as is_ours:
            got.put(is_ours)

    with locks.locked(tmp_path / "lock"):
        second = Thread(target=wait)
        second.start()
        second.join(0.2)
        assert second.is_alive() and got.empty()
    assert got.get(timeout=20)
    second.join()


@pytest.mark.parametrize(("number", "goes_on"), [(errno.ENOLCK, True), (errno.ENOSYS, True), (errno.EBADF, False)])
def test_disks_without_locks_stop_nothing(tmp_path, monkeypatch, number, goes_on):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with open(tmp_path / "lock", "ab") as file:
        if goes_on:
            assert locks.lock(file)
        else:
            with pytest.raises(OSError):
                locks.lock(file)


def test_nor_do_systems_without_them(tmp_path, monkeypatch):
    """Such as Windows, which lacks the module."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("locks_elsewhere", locks.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    with open(tmp_path / "lock", "ab") as one, open(tmp_path / "lock", "ab") as other:
        assert elsewhere.lock(one) and elsewhere.lock(other)
    with elsewhere.locked(tmp_path / "lock") as is_ours:
        assert is_ours
