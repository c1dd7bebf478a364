"""A plot of a run: loss, hearing, gradient norm and learning rate by step, from the trainer's log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from falcon3_audio.whole_files import whole_file

from .best import LOADED
from .hearing import hearing_names


matplotlib.use("Agg")  # draws to files; no screen is needed
from matplotlib import pyplot


NATS = "loss (nats per answer token)"


def plot_loss(log_history: Sequence[dict[str, Any]], path: Path, label: str = NATS) -> Path | None:
    """
    Plots `TrainerState.log_history` to a PNG and returns its path, `None` if nothing was logged.

    `label` names the loss. Loss and hearing are in nats per answer token. If hearing (see hearing.py) was measured,
    it has its own panel, with its 95 % interval.
    """
    logged = [entry for entry in log_history if "loss" in entry]
    if not logged:
        return None
    steps = [entry["step"] for entry in logged]
    heard = hearing_names(log_history)
    heights = (3, 1, 1, 1) if heard else (3, 1, 1)
    figure, axes = pyplot.subplots(len(heights), 1, figsize=(8, 8), sharex=True, height_ratios=heights)
    loss, (norm, rate) = axes[0], axes[-2:]
    loss.plot(steps, [entry["loss"] for entry in logged], label="training")
    evaluated = [entry for entry in log_history if "eval_loss" in entry]
    if evaluated:
        loss.plot(
            [entry["step"] for entry in evaluated], [entry["eval_loss"] for entry in evaluated], "o-", label="held out"
        )
    for entry in log_history:
        if LOADED in entry:
            loss.axvline(entry[LOADED], color="black", linewidth=1, linestyle="--", label="best, which the run leaves")
    loss.set_ylabel(label)
    loss.legend()
    if heard:
        _plot_hearing(axes[1], log_history, heard)
    norm.plot(steps, [entry.get("grad_norm", float("nan")) for entry in logged])
    norm.set_ylabel("gradient norm")
    norm.set_yscale("log")
    rate.plot(steps, [entry["learning_rate"] for entry in logged])
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    try:
        with whole_file(path) as file:
            figure.savefig(file, format="png", dpi=120)
    finally:
        pyplot.close(figure)
    return path


def _plot_hearing(axis: Any, log_history: Sequence[dict[str, Any]], names: Sequence[str]):
    axis.axhline(0, color="black", linewidth=1)  # deaf
    for name in names:
        entries = [entry for entry in log_history if name in entry]
        # With very few clips there is no interval.
        low, high = ([entry.get(f"{name}_{end}", entry[name]) for entry in entries] for end in ("low", "high"))
        steps, values = [entry["step"] for entry in entries], [entry[name] for entry in entries]
        errors = [[value - end for value, end in zip(values, low)], [end - value for value, end in zip(values, high)]]
        axis.errorbar(steps, values, errors, fmt="o-", capsize=2, label=name)
    axis.set_ylabel("hearing (nats)")
    axis.legend()
