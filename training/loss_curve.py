"""A picture of a run: loss, gradient norm and learning rate by step, from the trainer's own log."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")  # draws to files; no screen is needed
from matplotlib import pyplot


def plot_loss(log_history: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """
    Draws `TrainerState.log_history` to a PNG and returns its path, `None` where nothing was logged.

    The loss is in nats per answer token.
    """
    logged = [entry for entry in log_history if "loss" in entry]
    if not logged:
        return None
    steps = [entry["step"] for entry in logged]
    figure, (loss, norm, rate) = pyplot.subplots(3, 1, figsize=(8, 8), sharex=True, height_ratios=(3, 1, 1))
    loss.plot(steps, [entry["loss"] for entry in logged], label="training")
    evaluated = [entry for entry in log_history if "eval_loss" in entry]
    if evaluated:
        loss.plot(
            [entry["step"] for entry in evaluated], [entry["eval_loss"] for entry in evaluated], "o-", label="held out"
        )
    loss.set_ylabel("loss (nats per answer token)")
    loss.legend()
    norm.plot(steps, [entry.get("grad_norm", float("nan")) for entry in logged])
    norm.set_ylabel("gradient norm")
    norm.set_yscale("log")
    rate.plot(steps, [entry["learning_rate"] for entry in logged])
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    for axis in (loss, norm, rate):
        axis.grid(alpha=0.3)
    figure.tight_layout()
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=120)
    pyplot.close(figure)
    temporary.replace(path)
    return path
