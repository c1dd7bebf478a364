"""The encoder by clip length: ours computes only the clip, the peers always 30 s.

    python -m benchmarks.encoder                                # forward, and forward + backward, from 1 to 30 s
    python -m benchmarks.encoder --longest 600 --plot out.png   # also shows that the cost is linear up to ten minutes

Compared with transformers' WhisperEncoder and AudioFlamingo3's encoder, one clip at a time, with the same weights in
all. The backward goes through all frozen layers, as in training, but to a bias of the convolutions instead of to
adapters. At 30 s nothing can be saved; the ratio there shows the cost of grouping by length.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AudioFlamingo3EncoderConfig, AutoModel, WhisperConfig, set_seed

from falcon3_audio import Falcon3AudioEncoderConfig

from .batches import WINDOW
from .clips import FRAMES_PER_SECOND
from .measure import (
    alternate,
    compare,
    device,
    dtype_of,
    options,
    print_shape,
    print_table,
    record,
    run_script,
    seconds,
)
from .models import FLAMINGO, OURS
from .shapes import Shape, shape_of


LENGTHS = (1, 2, 5, 10, 20, 30)  # seconds
LONG = (60, 120, 300, 600)
WHISPER = "whisper"


def encoders(shape: Shape, seed: int) -> dict[str, torch.nn.Module]:
    """The three encoders, all with the weights of the first."""
    set_seed(seed)
    sizes = {name: value for name, value in shape.audio.items() if name != "num_mel_bins"}
    bands = shape.audio["num_mel_bins"]
    whisper = WhisperConfig(
        num_mel_bins=bands,
        d_model=sizes["hidden_size"],
        encoder_layers=sizes["num_hidden_layers"],
        encoder_attention_heads=sizes["num_attention_heads"],
        encoder_ffn_dim=sizes["intermediate_size"],
        decoder_layers=1,
        decoder_attention_heads=1,
    )
    ours = Falcon3AudioEncoderConfig(num_mel_bins=bands, **sizes)
    flamingo = AudioFlamingo3EncoderConfig(num_mel_bins=bands, **sizes)
    made = {
        OURS: AutoModel.from_config(ours),
        WHISPER: AutoModel.from_config(whisper).get_encoder(),
        FLAMINGO: AutoModel.from_config(flamingo),
    }
    for encoder in made.values():
        encoder.load_state_dict(made[OURS].state_dict())
        encoder.eval()
    return made


def runner(kind: str, encoder: torch.nn.Module, features: torch.Tensor, frames: int, backward: bool) -> Callable:
    """A function without arguments: encodes a clip of `frames` (the peers: its window), `(1, mel bands, ...)`."""
    window = features[..., : min(frames + 1, WINDOW) if kind == OURS and frames <= WINDOW else max(frames, WINDOW)]
    mask = (torch.arange(window.shape[-1], device=window.device) < frames).long()[None]
    given = {"input_features": window}
    given |= {} if kind == WHISPER else {"input_features_mask": mask}

    def run():
        with torch.set_grad_enabled(backward):
            hidden = encoder(**given).last_hidden_state
            if backward:
                hidden.float().square().mean().backward()

    return run


def measure(given: argparse.Namespace) -> dict[str, Any]:
    shape = shape_of(given.preset, given.size)
    print_shape(shape)
    made = {kind: encoder.to(device(), dtype_of(given.size)) for kind, encoder in encoders(shape, given.seed).items()}
    for encoder in made.values():
        encoder.requires_grad_(False)
        encoder.conv2.bias.requires_grad_(True)
    generator = torch.Generator().manual_seed(given.seed)
    lengths = [*LENGTHS, *(length for length in LONG if length <= given.longest)]
    features = torch.randn(1, shape.audio["num_mel_bins"], max(lengths) * FRAMES_PER_SECOND, generator=generator)
    features = features.to(device(), dtype_of(given.size))
    results: dict[str, Any] = {"forward": {}, "forward and backward": {}}
    for name, backward in (("forward", False), ("forward and backward", True)):
        for length in lengths:
            kinds = made if length <= LENGTHS[-1] else {OURS: made[OURS]}
            runs = {}
            for kind, encoder in kinds.items():
                run = runner(kind, encoder, features, length * FRAMES_PER_SECOND, backward)
                runs[kind] = lambda run=run: seconds(run)
            results[name][str(length)] = compare(alternate(runs, given.repeats))
        report(name, results[name])
    if given.plot:
        plot(results, given.plot)
    record(given, shape, results)
    return results


def report(name: str, results: dict[str, Any]) -> None:
    rows = []
    for length, result in results.items():
        medians, ratios = result["median seconds"], result["ratios"]
        rows.append(
            [
                f"{length} s",
                medians[OURS] * 1e3,
                medians[OURS] * 1e3 / float(length),
                *(ratios.get(kind, "-") for kind in (WHISPER, FLAMINGO)),
            ]
        )
    columns = ["clip", "ours, ms", "ours, ms / s of audio", f"{WHISPER} / ours", f"{FLAMINGO} / ours"]
    print_table(f"Encoder, {name}", columns, rows)


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, by_length in results.items():
        kinds = {kind for result in by_length.values() for kind in result["median seconds"]}
        for kind in sorted(kinds):
            points = [
                (float(n), r["median seconds"][kind]) for n, r in by_length.items() if kind in r["median seconds"]
            ]
            axes.plot(*zip(*points), marker="o", label=f"{kind}, {name}", linestyle="-" if kind == OURS else ":")
    axes.set(xscale="log", yscale="log", xlabel="seconds of audio", ylabel="seconds of compute", title="Encoder")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    parser = options(__doc__ or "", "runs/benchmarks/encoder.json", repeats=7)
    parser.add_argument("--longest", type=int, default=600, help="longest clip over 30 s, in seconds (0: none)")
    parser.add_argument("--plot", type=Path, help="image file for a plot of time by clip length")
    return parser


def main(arguments: list[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    return run_script("encoder", lambda: measure(given))


if __name__ == "__main__":
    sys.exit(main())
