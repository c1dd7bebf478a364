"""SIGTERM to all processes of a run, as SLURM and torchrun send it, leaves the loader's workers to their work."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from child import in_child
from torch.utils.data import DataLoader
from training_runs import write_chats

from falcon3_audio.training import sft
from falcon3_audio.training.after_sft import AfterSFT
from falcon3_audio.training.run_folder import find_checkpoint
from falcon3_audio.training.trainer import AudioSFTTrainer
from falcon3_audio.training.workers import outlive_sigterm


pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere workers cannot tell who sends it"
)


def terminate_group():
    """From another process: workers end when the trainer itself sends it."""
    subprocess.run(["kill", "-TERM", "--", f"-{os.getpgid(0)}"], start_new_session=True, check=True)


@pytest.mark.parametrize("method", ["training_step", "prediction_step"])
def test_a_run_saves_a_checkpoint(recipe, tmp_path, monkeypatch, capfd, method):
    take = getattr(AudioSFTTrainer, method)

    def told(self, *args, **kwargs):
        if self.state.global_step == 2:
            terminate_group()
        return take(self, *args, **kwargs)

    run = tmp_path / "run"
    options = ["--config", recipe, "--output_dir", str(run), "--dataloader_num_workers", "1"]
    if method == "prediction_step":
        options += [
            "--eval_data",
            str(write_chats(tmp_path / "held_out")),
            "--eval_strategy",
            "steps",
            "--eval_steps",
            "2",
        ]

    def launch():
        os.setsid()
        sys.exit(sft.main(options))

    monkeypatch.setattr(AudioSFTTrainer, method, told)
    assert in_child(launch, seconds=120) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 3, which is saved" in capfd.readouterr().err
    assert find_checkpoint(run) == run / "checkpoint-3"


class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return index**2


def loader(**options):
    return DataLoader(Squares(), num_workers=2, **options)


class WithLoaders:
    """A trainer as far as loaders go."""

    def get_train_dataloader(self):
        return Accelerator(cpu=True).prepare(loader())

    def get_eval_dataloader(self, eval_dataset=None):
        return Accelerator(cpu=True).prepare(loader())


class Trainer(AfterSFT, WithLoaders):
    """As the trainers of GRPO and DPO."""


@pytest.mark.parametrize("get", ["get_train_dataloader", "get_eval_dataloader"])
def test_the_loaders_after_sft_go_on(get):
    def read():
        os.setsid()
        signal.signal(signal.SIGTERM, lambda *_: None)
        found = []
        for batch in getattr(Trainer(), get)():
            found += batch.tolist()
            if len(found) > 1:  # both workers have begun
                terminate_group()
        sys.exit(found != [0, 1, 4, 9, 16, 25])

    assert in_child(read) == 0


def test_a_worker_still_ends_when_the_trainer_ends_it():
    workers = []

    def read():
        batches = iter(outlive_sigterm(loader()))
        next(batches)
        workers[:] = multiprocessing.active_children()
        for worker in workers:
            worker.terminate()
            worker.join(120)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os._exit([worker.exitcode for worker in workers] != [0, 0])

    assert in_child(read) == 0


def test_the_given_worker_init_fn_is_called():
    def seed(worker):
        Squares.__getitem__ = lambda self, index: worker

    def read():
        found = [batch.item() for batch in outlive_sigterm(loader(worker_init_fn=seed))]
        os._exit(found != [0, 1, 0, 1, 0, 1])

    assert in_child(read) == 0
