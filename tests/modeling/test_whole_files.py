"""Folders that appear only when complete: their contents and permissions."""

import os
import signal

import pytest
import torch
from child import in_child
from safetensors.torch import save_file

from falcon3_audio.whole_files import whole_folder


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_weights_are_for_those_whom_the_umask_allows(umask, tmp_path):
    """safetensors makes files readable only by the owner; colleagues could not load a model from a shared disk."""
    with whole_folder(tmp_path / "deep" / "model") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "part").mkdir()
        for place in (folder, folder / "part"):
            save_file({"weight": torch.zeros(2)}, place / "model.safetensors")
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "deep" / "model").rglob("*.*")}
    assert modes == {0o640}


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with (
        pytest.raises(FileExistsError, match="full exists and is not an empty folder"),
        whole_folder(tmp_path / "full"),
    ):
        pass
    assert (tmp_path / "full" / "mine").exists()


def test_a_second_process_does_not_touch_what_the_first_is_writing(tmp_path):
    with whole_folder(tmp_path / "model") as first:
        (first / "config.json").write_text("first")
        with (
            pytest.raises(FileExistsError, match="Another process is writing .*model; wait until it finishes"),
            whole_folder(tmp_path / "model"),
        ):
            pass
        assert (first / "config.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_run_left_is_removed(tmp_path):
    def killed():
        with whole_folder(tmp_path / "model") as folder:
            (folder / "half").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed) == -signal.SIGKILL and list(tmp_path.iterdir())
    with whole_folder(tmp_path / "model") as folder:
        (folder / "config.json").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/config.json"]
