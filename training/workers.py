"""Data loader workers that outlive a SIGTERM to all processes of a run, so that the run can still save a checkpoint.

SLURM sends it to every process of a job step and torchrun to the group of each of its processes, not to the trainer
alone. A worker that ended would make the trainer's loader raise an error before the current step is finished.
"""

import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import parent_process

from torch.utils.data import DataLoader


def outlive_sigterm(loader: DataLoader) -> DataLoader:
    """The same loader, whose workers end only if the trainer itself ends them."""
    inner = getattr(loader, "base_dataloader", loader)  # accelerate wraps the loader that starts the workers
    if not isinstance(inner.worker_init_fn, _Begin):  # transformers keeps loaders with persistent workers
        inner.worker_init_fn = _Begin(inner.worker_init_fn)
    return loader


class _Begin:
    def __init__(self, before: Callable[[int], None] | None):
        self.before = before

    def __call__(self, worker: int):
        trainer = parent_process()
        if trainer is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_end_with, args=(trainer.pid,), daemon=True).start()
        if self.before is not None:
            self.before(worker)


def _end_with(trainer: int):
    """Ends this process when the trainer sends SIGTERM, as it does to a worker that does not end by itself."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)  # as torch's own handler
