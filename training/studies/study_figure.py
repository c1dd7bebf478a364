"""report.png of a study: each benchmark's accuracies and differences with their intervals, and the losses of all runs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from falcon3_audio.whole_files import whole_file


MARKERS = "xsd^v*"  # of the controls, in their order
CONTROL = "0.45"  # grey


def draw(report: dict[str, Any], path: Path) -> Path | None:
    """Plots the content of report.json to a PNG and returns its path; `None`, without a file, if no run has finished."""
    if not report["training"]:
        path.unlink(missing_ok=True)
        return None
    colours = dict(zip(report["arms"], _colours(len(report["arms"]))))
    rows = len(report["benchmarks"])
    height = 1.2 + 0.35 * len(colours)
    figure = Figure(figsize=(11, rows * height + 4), layout="constrained")
    grid = figure.add_gridspec(rows + 1, 2, height_ratios=[*rows * [height], 4])
    for row, (name, benchmark) in enumerate(report["benchmarks"].items()):
        left = figure.add_subplot(grid[row, 0])
        _accuracies(left, name, benchmark, colours)
        _differences(figure.add_subplot(grid[row, 1], sharey=left), report["reference"], benchmark, colours)
    _losses(figure.add_subplot(grid[rows, :]), report["training"], colours)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)
    return path


def _colours(count: int) -> list[Any]:
    return list(matplotlib.colormaps["tab10" if count <= 10 else "turbo"].resampled(max(count, 10))(range(count)))


def _accuracies(axes: Axes, name: str, benchmark: dict[str, Any], colours: dict[str, Any]):
    arms = benchmark["arms"]
    _points(axes, arms.values(), "accuracy", [colours[arm] for arm in arms], "o", "with the sound")
    for number, (marker, control) in enumerate(zip(MARKERS, benchmark["controls"]), 1):
        found = [arm["controls"][control] for arm in arms.values()]
        _points(axes, found, "accuracy", [CONTROL] * len(arms), marker, control, below=0.15 * number)
    axes.set_yticks(range(len(arms)), list(arms))
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_title(f"{name}: accuracy, {benchmark['questions']} questions", fontsize="medium")
    axes.set_xlabel("% right, 95 % interval")
    axes.legend(fontsize="small")
    axes.grid(axis="x", alpha=0.3)


def _differences(axes: Axes, reference: str, benchmark: dict[str, Any], colours: dict[str, Any]):
    arms = benchmark["arms"]
    found = [arm["difference"] for arm in arms.values()]
    _points(axes, found, "difference", [colours[arm] for arm in arms], "o", None)
    axes.axvline(0, color="0.5", linewidth=1)
    axes.set_title(f"difference to {reference}", fontsize="medium")
    axes.set_xlabel("points, 95 % interval")
    axes.tick_params(labelleft=False)
    axes.grid(axis="x", alpha=0.3)


def _points(
    axes: Axes,
    found: Iterable[Any],
    key: str,
    colours: Sequence[Any],
    marker: str,
    label: str | None,
    below: float = 0.0,
):
    """One row per arm, shifted down by `below`; arms without a value stay empty."""
    for row, (value, colour) in enumerate(zip(found, colours)):
        if value is None:
            continue
        low, high = value["interval"] or (value[key], value[key])
        reach = [[100 * max(0.0, value[key] - low)], [100 * max(0.0, high - value[key])]]
        axes.errorbar(100 * value[key], row + below, xerr=reach, color=colour, marker=marker, capsize=3, label=label)
        label = None  # once in the legend


def _losses(axes: Axes, runs: Sequence[dict[str, Any]], colours: dict[str, Any]):
    """The stages of a run end to end."""
    named: set[str] = set()
    for run in runs:
        before, points = 0, list[tuple[int, float]]()
        for stage in run["stages"]:
            points += [(before + step, loss) for step, loss in stage["loss"]]
            before += stage["steps"]
        if not points:
            continue
        label = None if run["arm"] in named else run["arm"]
        named.add(run["arm"])
        marker = "o" if len(points) == 1 else None
        axes.plot(*zip(*points), color=colours[run["arm"]], linewidth=1, marker=marker, label=label)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("training loss (nats per answer token)")
    axes.grid(alpha=0.3)
    if named:
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))  # next to the lines, not on them


__all__ = ["draw"]
