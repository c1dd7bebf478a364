"""The report of a study: report.json with all numbers, report.md (study_tables.py), report.png (study_figure.py).

Accuracies are means over the finished seeds. Intervals are those of evaluation/clip_intervals.py, for one seed the
same as in `falcon3-audio score`; none if there are too few clips. Differences are to the first arm, over the seeds
that both have, on the same questions. No reply is left out: missing and unresolved ones count as wrong, and the
report lists missing ones. Only the names of paths are kept.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.clip_intervals import RESAMPLES, accuracy_interval, by_clip, difference_interval
from falcon3_audio.evaluation.compare import clips_of, grouped
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction, read_predictions
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.scored_rows import tidy
from falcon3_audio.whole_files import whole_file, write_json

from ..run_folder import STATE
from .study_figure import draw
from .study_file import SFT, SOUND, Evaluation, Study
from .study_runs import FAILED, Run, Step, changes, package, runs_of, scores_of, steps_of
from .study_tables import as_markdown


FORMAT = 1  # of report.json; incremented when the meaning of a key changes
NOISE = "within noise"
# Absolute paths, which are specific to a machine.
PATH = re.compile(r"(?<![\w.~:/-])/(?:[^\s/'\",:]+/)+")
ONLY_PATH = re.compile(rf"{PATH.pattern}[^\s/'\",:]*")


def write_report(study: Study, output: Path) -> str:
    """Writes the three files to `output`, and returns the text of report.md; see `check_own_report`."""
    report = make_report(study, output)
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "report.json", report)
    text = as_markdown(report)
    with whole_file(output / "report.md") as file:
        file.write(text.encode())
    draw(report, output / "report.png")
    return text


def check_own_report(study: Study, output: Path):
    """Raises a `ValueError` if `output` has another study's report, which this one would overwrite."""
    path = output / "report.json"
    name = json.loads(path.read_text(encoding="utf-8")).get("study") if path.exists() else None
    if name not in (None, study.name):
        raise ValueError(
            f"{path} is the report of the study {name}, got {study.name}; give another OUT, or remove it."
        )


def make_report(study: Study, output: Path) -> dict[str, Any]:
    """
    All numbers, ready to be written as JSON: shares from 0 to 1, differences from -1 to 1, `null` where there is none.

    Raises a `ValueError` if runs were evaluated on different questions.
    """
    runs = runs_of(study, output)
    states = {str(run): state_of(run) for run in runs}
    ended = [run for run in runs if states[str(run)] is None]
    missing = [{"arm": run.arm, "seed": run.seed} | state for run in runs if (state := states[str(run)])]
    report = {
        "format": FORMAT,
        "study": study.name,
        "arms": {arm.name: {"seeds": list(arm.stages), "overrides": arm.overrides} for arm in study.arms},
        "reference": study.arms[0].name,
        "missing": missing,
        "benchmarks": {one.name: _benchmark(one, study, ended) for one in study.evaluations} if ended else {},
        "training": [_training(run) for run in ended],
        "data": _training_data(ended),
        "bootstrap": {"resamples": RESAMPLES, "seed": 0},
        "made_with": {"report": package(), "runs": _made_with(ended)},
    }
    return without_paths(json.loads(json.dumps(report, default=str)))  # YAML has dates, JSON does not


def state_of(run: Run) -> dict[str, Any] | None:
    """Why a run is not in the tables; `None` for a finished one."""
    changed, _ = changes(run)
    if changed:
        return {"state": "started with other settings", "said": "; ".join(changed)}
    left = [step for step in steps_of(run) if not step.product.exists()]
    if not left:
        return None
    if (run.folder / FAILED).exists():
        failure = json.loads((run.folder / FAILED).read_text(encoding="utf-8"))
        return {"state": f"failed: {failure['step']}", "said": failure["said"]}
    return {"state": f"unfinished: {left[0].name}" if run.folder.exists() else "not started", "said": None}


################
# Scores
################
def _benchmark(evaluation: Evaluation, study: Study, runs: Sequence[Run]) -> dict[str, Any]:
    rows = _rows(runs[0], evaluation, SOUND)
    clips = clips_of(rows)
    right = {
        control: {str(run): _right(run, evaluation, control, rows) for run in runs} for control in evaluation.controls
    }
    names = BENCHMARKS[evaluation.options["benchmark"]].breakdowns or sorted(
        {name for row in rows for name in row.groups}
    )
    known = [name for name in names if any(name in row.groups for row in rows)]
    parts = grouped(rows, known)
    first = [run for run in runs if run.arm == study.arms[0].name]
    arms = {}
    for arm in study.arms:
        own = [run for run in runs if run.arm == arm.name]
        if own:
            memory = [_provenance(run, evaluation).get("peak_memory_gib") or 0 for run in own]
            arms[arm.name] = _arm(own, first, right, clips, parts) | {"peak_memory_gib": max(memory) or None}
    provenance = _provenance(runs[0], evaluation)
    return {
        "benchmark": evaluation.options["benchmark"],
        "rule": evaluation.rule,
        "controls": list(evaluation.controls[1:]),
        "questions": len(rows),
        "clips": len(np.unique(clips)),
        "data_sha256": provenance["data_sha256"],
        "prompt": provenance["prompt"],
        "decoding": provenance["decoding"],
        "left_out": {reason: len(ids) for reason, ids in provenance["left_out"].items()},
        "without_reply": _without_reply(evaluation, runs, right),
        "arms": arms,
    }


def _provenance(run: Run, evaluation: Evaluation) -> dict[str, Any]:
    return json.loads((scores_of(run, evaluation, SOUND) / "run.json").read_text(encoding="utf-8"))


def _without_reply(evaluation: Evaluation, runs: Sequence[Run], right) -> list[dict[str, Any]]:
    """Questions without a reply: their folder (relative to OUT) and their number."""
    found = [(run, control, right[control][str(run)][1]) for run in runs for control in evaluation.controls]
    return [
        {
            "arm": run.arm,
            "seed": run.seed,
            "control": control,
            "questions": count,
            "folder": str(scores_of(run, evaluation, control).relative_to(run.folder.parents[1])),
        }
        for run, control, count in found
        if count
    ]


def _rows(run: Run, evaluation: Evaluation, control: str) -> list[Prediction]:
    return [tidy(row) for row in read_predictions(scores_of(run, evaluation, control)).rows]


def _right(run: Run, evaluation: Evaluation, control: str, asked: Sequence[Prediction]) -> tuple[np.ndarray, int]:
    """Bool `(questions,)`, whether each is right, and how many have no reply."""
    rows = _rows(run, evaluation, control)
    if [(row.id, row.choices, row.answer) for row in rows] != [(row.id, row.choices, row.answer) for row in asked]:
        raise ValueError(
            f"{scores_of(run, evaluation, control)} has other questions than the first run of the study. Remove it to "
            "evaluate again."
        )
    return np.array([is_right(row, evaluation.rule) for row in rows]), sum(row.status != ANSWERED for row in rows)


def _arm(own, first, right, clips, parts) -> dict[str, Any]:
    sound = _matrix(own, right[SOUND])
    without_reply = {control: sum(found[str(run)][1] for run in own) for control, found in right.items()}
    both = [(run, other) for run in own for other in first if run.seed == other.seed]
    result = {
        "seeds": [run.seed for run in own],
        **accuracy(sound, clips),
        "by_seed": {str(run.seed): float(right[SOUND][str(run)][0].mean()) for run in own},
        "without_reply": without_reply[SOUND],
        "groups": _by_group(parts, lambda rows: accuracy(sound[:, rows], clips[rows])),
        "controls": {
            control: accuracy(_matrix(own, found), clips) | {"without_reply": without_reply[control]}
            for control, found in right.items()
            if control != SOUND
        },
        "difference": None,
    }
    if own != first and both:
        differ = _matrix([run for run, _ in both], right[SOUND]) - _matrix([run for _, run in both], right[SOUND])
        result["difference"] = {
            "seeds": [run.seed for run, _ in both],
            **difference(differ, clips),
            "groups": _by_group(parts, lambda rows: difference(differ[:, rows], clips[rows])),
        }
    return result


def _matrix(runs: Sequence[Run], right: dict[str, tuple[np.ndarray, int]]) -> np.ndarray:
    """Int `(seeds, questions)`."""
    return np.stack([right[str(run)][0] for run in runs]).astype(int)


def _by_group(parts, count) -> dict[str, dict[str, Any]]:
    return {name: {value: count(rows) for value, rows in members.items()} for name, members in parts.items()}


def accuracy(right: np.ndarray, clips: np.ndarray) -> dict[str, Any]:
    """
    The share of right answers, with its interval.

    Args:
        right: int `(seeds, questions)`, 0 or 1.
        clips: int `(questions,)`: the clip of each question, in any numbering.
    """
    return {
        "questions": right.shape[1],
        "accuracy": float(right.mean()),
        "interval": accuracy_interval(right, clips),
    }


def difference(differ: np.ndarray, clips: np.ndarray) -> dict[str, Any]:
    """
    The mean of differences, int `(seeds, questions)` from -1 to 1, with its interval (`None` where too few clips differ),
    and the verdict. `clips` as in `accuracy`.
    """
    mean, interval = float(differ.mean()), difference_interval(*by_clip(differ.T, clips))
    verdict = NOISE if interval is None or interval[0] <= 0 <= interval[1] else "better" if mean > 0 else "worse"
    return {"questions": differ.shape[1], "difference": mean, "interval": interval, "verdict": verdict}


################
# Training
################
def _trainings(run: Run) -> list[Step]:
    return [step for step in steps_of(run) if step.trains]


def _training(run: Run) -> dict[str, Any]:
    """
    Total seconds and peak memory over all stages (`None` if one has not logged it); loss (`None` for GRPO) and
    evaluation are the last ones of the last stage.
    """
    stages = [_log(step) for step in _trainings(run)]
    peaks = [stage["peak_memory_gib"] for stage in stages]
    return {
        "arm": run.arm,
        "seed": run.seed,
        "seconds": sum(stage["seconds"] for stage in stages),
        "peak_memory_gib": max(peaks) if all(peaks) else None,
        "final_loss": stages[-1]["final_loss"],
        "stages": stages,
    }


def _log(step: Step) -> dict[str, Any]:
    state = json.loads((step.folder / STATE).read_text(encoding="utf-8"))
    history = state["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    # The loss that GRPO logs is around 0 regardless of what was learned, and not in nats per answer token.
    losses = [[entry["step"], entry["loss"]] for entry in logged] if step.method is SFT else []
    evaluated: dict[str, Any] = next(
        (entry for entry in reversed(history) if any(key.startswith("eval_") for key in entry)), {}
    )
    return {
        "steps": state["global_step"],
        "epochs": state["epoch"],
        "seconds": _seconds(history),
        "peak_memory_gib": max(
            (entry["peak_memory_gib"] for entry in logged if "peak_memory_gib" in entry), default=None
        ),
        "final_loss": losses[-1][1] if losses else None,
        "loss": losses,
        "evaluated": {key: value for key, value in evaluated.items() if key.startswith("eval_")},
    }


def _seconds(history: Sequence[dict[str, Any]]) -> float:
    """Seconds of the whole training; for GRPO, which does not log them, since its last start."""
    for name in ("training_seconds", "train_runtime"):
        found = [entry[name] for entry in history if name in entry]
        if found:
            return max(found)
    return 0.0


def _records(runs: Sequence[Run], training: bool) -> list[dict[str, Any]]:
    steps = [step for run in runs for step in steps_of(run) if step.trains or step.evaluates and not training]
    return [json.loads(step.record.read_text(encoding="utf-8")) for step in steps]


def _training_data(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Digests of the training sets, see `study_runs.set_digests`: more than one if a set changed between runs."""
    found: dict[str, list[str]] = {}
    for record in _records(runs, training=True):
        for name, sha256 in record["data"].items():
            if sha256 not in found.setdefault(name, []):
                found[name].append(sha256)
    return found


def _made_with(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for record in _records(runs, training=False):
        found += [made for made in record["made_with"] if made not in found]
    return found


def without_paths(content: Any) -> Any:
    """
    The content with every absolute path in it reduced to its last name. Strings that are just a path stay distinct:
    the second path with the same name becomes "name (2)", and so on.
    """
    named: dict[str, str] = {}

    def name(path: str) -> str:
        if path not in named:
            last = Path(path).name
            others = sum(Path(other).name == last for other in named)
            named[path] = f"{last} ({others + 1})" if others else last
        return named[path]

    def clean(part: Any) -> Any:
        if isinstance(part, dict):
            return {clean(key): clean(value) for key, value in part.items()}
        if isinstance(part, list):
            return [clean(value) for value in part]
        if not isinstance(part, str):
            return part
        return name(part) if ONLY_PATH.fullmatch(part) else PATH.sub("", part)

    return clean(content)
