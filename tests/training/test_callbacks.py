"""A run prints between steps how long it will take. The other callbacks are tested where they act (test_sft.py)."""

from itertools import count
from types import SimpleNamespace

import pytest
from training_runs import history_of
from transformers import TrainerState

from falcon3_audio.training import callbacks, sft


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_the_time_to_go_is_that_of_the_pace_so_far(clock, capsys):
    """For a run resumed at step 100: its slow first step does not count, evaluations do."""
    timer, state = callbacks.TimeToGo(), TrainerState(global_step=100, max_steps=1000, is_world_process_zero=True)
    for step in range(101, 126):
        state.global_step = step
        clock.now += 500 if step == 101 else 2
        clock.now += 38 if step == 110 else 0  # an evaluation, after ten steps
        timer.on_step_end(None, state, None)
        if step < 120:
            assert timer.seconds is None
        if step == 120:
            assert timer.seconds == 880 * (19 * 2 + 38) / 19 == 3520
    assert timer.seconds == round(875 * (24 * 2 + 38) / 24)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "about 3,520 s (0:58:40) at 4 s a step, for 880 steps" in said


def test_a_log_has_the_seconds_to_go(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(callbacks, "STEPS_TO_TIME", 3)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=count().__next__))  # a second a step
    assert sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run")]) == 0
    assert "about 3 s (0:00:03) at 1 s a step, for 3 steps" in capsys.readouterr().out
    entries = [entry for entry in history_of(tmp_path / "run") if "loss" in entry]
    assert ["seconds_to_go" in entry for entry in entries] == [False, False, True, True, True, True]
    assert entries[-1]["seconds_to_go"] == 0
