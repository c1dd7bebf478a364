"""Training from a stream (data/stream.py): its loader, the position to resume from, and a replacement for epochs.

Batches come with their reader's position, so the saved position is the one after the questions already trained on,
regardless of how far the loader's workers have read ahead. A checkpoint has the positions of all processes in
`stream.json`.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from falcon3_audio.whole_files import write_json

from .arguments import AudioSFTConfig
from .data.stream import POSITION, StreamedSet, TrainingStream


FILE = "stream.json"
Positioned = tuple[Any, Any]  # a batch, and the position after it


class _Collate:
    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], Any]):
        self.collate = collate

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Positioned:
        return self.collate(examples), examples[-1][POSITION]


def make_stream(
    sets: Sequence[StreamedSet], args: AudioSFTConfig, buffer_size: int, checkpoint: Path | None
) -> TrainingStream:
    """
    The stream that a run reads in this process, from the position in the checkpoint.

    Raises a `ValueError` for a checkpoint with other numbers of processes or workers.
    """
    stream = TrainingStream(
        sets,
        args.seed if args.data_seed is None else args.data_seed,
        buffer_size,
        args.questions_per_row,
        args.process_index,
        args.world_size,
        args.dataloader_num_workers,
    )
    if checkpoint:
        states = json.loads((checkpoint / FILE).read_text(encoding="utf-8"))["processes"]
        stream.go_on(states[min(stream.process, len(states) - 1)])  # fewer are an error there
    return stream


def stream_loader(stream: TrainingStream, collate: Callable[..., Any], **options: Any) -> DataLoader:
    """
    A loader of batches with their positions, for `pass_on`. It is not prepared by accelerate, which would make every
    process read all rows: the trainer moves batches to their device.
    """
    # A loader draws a seed for its workers; without its own generator, this would change the random numbers of
    # dropout.
    return DataLoader(stream, collate_fn=_Collate(collate), generator=torch.Generator(), **options)


def pass_on(stream: TrainingStream, batches: Iterable[Positioned]) -> list[Any]:
    """The batches; records their positions in the stream."""
    found = []
    for batch, position in batches:
        stream.passed(position)
        found.append(batch)
    return found


def save_stream(stream: TrainingStream, checkpoint: Path):
    """Writes the positions of all processes, which must all call this."""
    states = gather_object([stream.state()])
    if PartialState().is_main_process:
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_json(checkpoint / FILE, {"processes": states})


class ShareOfTheRun(TrainerCallback):
    """A stream has no epochs: the fraction of the run that is done is logged instead, also for a resumed run."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps
