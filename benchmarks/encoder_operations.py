"""Operations that the encoder runs for one clip and for a batch of different lengths: GPU launches grow with them.

    python -m benchmarks.encoder_operations

Counts the aten operations of a forward without gradients, views included, in an encoder as deep as the 3B's and 7B's.
They depend neither on its width nor on the window, so both are small here: 32, and 2 s. AudioFlamingo3's encoder,
which gets a whole window for every clip, is counted as well. Nothing is timed.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AudioFlamingo3EncoderConfig, AutoModel

from falcon3_audio import Falcon3AudioEncoderConfig

from .measure import positive, print_table, record, run_script
from .models import FLAMINGO, OURS
from .shapes import real_shape


WINDOW = 200  # mel frames
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "max_source_positions": WINDOW // 2}


class OperationCounter(TorchDispatchMode):
    """
    Counts the aten operations that run while it is active. torch documents the class (extending.html) under this
    private name; there is no public one (torch 2.13).
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def count_operations(encoder: torch.nn.Module, frames: list[int]) -> int:
    """Operations for a batch of clips with these numbers of mel frames."""
    features = torch.randn(len(frames), encoder.config.num_mel_bins, WINDOW)
    mask = (torch.arange(features.shape[-1]) < torch.tensor(frames)[:, None]).long()
    with OperationCounter() as counter:
        encoder(features, input_features_mask=mask)
    return counter.count


def measure(given: argparse.Namespace) -> dict[str, Any]:
    layers = real_shape("3b").audio["num_hidden_layers"]
    configs = {OURS: Falcon3AudioEncoderConfig, FLAMINGO: AudioFlamingo3EncoderConfig}
    made = {kind: AutoModel.from_config(config(num_hidden_layers=layers, **SIZES)) for kind, config in configs.items()}
    spread = torch.linspace(10, WINDOW, given.clips).int().tolist()
    found = {
        kind: {str(len(frames)): count_operations(encoder.eval(), frames) for frames in ([WINDOW // 2], spread)}
        for kind, encoder in made.items()
    }
    rows = [[kind, *map(str, counts.values())] for kind, counts in found.items()]
    print_table(f"Operations of an encoder of {layers} layers", ["", "1 clip", f"{given.clips} clips"], rows)
    results = {"layers": layers, "operations": found}
    record(given, None, results)
    return results


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--clips", type=positive, default=64, help="clips in the batch (default: %(default)s)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/benchmarks/encoder_operations.json"),
        help="JSON to write (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("encoder_operations", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
