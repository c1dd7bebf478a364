"""A study on disk: its runs, the processes of each, and the settings they were started with.

OUT/ARM/seed-N/                 with stages: OUT/ARM/seed-N/stage-K/
  options.yaml, train.log       the training's options and its log
  train.json                    what affects the result, digests of the data, versions: compared when resuming
  run/, model/                  the run's folder, and the merged model
  scores/NAME/CONTROL/          predictions and score; next to it CONTROL.log and CONTROL.json, as above

The digests cover the files with the questions and the files next to them that describe a set, but not audio files.
"""

import hashlib
import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.journal import differences
from falcon3_audio.evaluation.questions import file_sha256
from falcon3_audio.evaluation.score import SCORE
from falcon3_audio.whole_files import write_json

from ..data.open_dataset import is_here
from ..data.shards import REPORT, is_set, read_report
from ..run_folder import STATE, with_defaults
from .study_file import FORMER, SOUND, Evaluation, Method, Stage, Study


STAGES = "stages"  # of an evaluation's settings: how many the evaluated model was trained in
CLIPS = "clips.jsonl"  # next to a set's questions: the content of each clip
WORDS = ("prompt_file", "paraphrases")  # options of an evaluation: files with words in which questions are asked
FAILED = "failed.json"  # in the folder of a run: the failed step and its message
PACKAGES = ("falcon3-audio", "accelerate", "datasets", "peft", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Digests:
    """
    Digests of the files that a study reads.

    Attributes:
        sets: for each training set, by its path: the digests of its parts, by path.
        evaluations: for each evaluation, by its name: the digests of its files, by their names.
    """

    sets: dict[str, dict[str, str]] = field(default_factory=dict)
    evaluations: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """
    An arm with one seed.

    Attributes:
        folder: for all its output.
        stages: in order.
        digests: of the files it reads, if known.
        model: the model to evaluate if there are no stages.
    """

    arm: str
    seed: int
    folder: Path
    stages: list[Stage]
    evaluations: list[Evaluation]
    digests: Digests = field(default_factory=Digests)
    model: Path = Path()

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """
    One process of a run.

    Attributes:
        name: for the user.
        module: the module to run, with `arguments`.
        folder: the folder it creates.
        product: a file that exists when it has finished.
        log: file for its output; `record` is next to it.
        settings, data: what affects the product, and the digests of the files that it reads.
        method, options: for a training: how it is done, and its recipe.
    """

    name: str
    module: str
    arguments: list[str]
    folder: Path
    product: Path
    log: Path
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    method: Method | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        return self.method is not None

    @property
    def evaluates(self) -> bool:
        return self.module.startswith("evaluation.")

    @property
    def record(self) -> Path:
        return self.log.with_suffix(".json")

    @property
    def begun(self) -> bool:
        """Whether there are results that depend on the settings."""
        if not self.trains:
            return self.folder.exists()
        return self.product.exists() or any(self.folder.glob("checkpoint-*"))


def runs_of(study: Study, output: Path, digests: Digests | None = None) -> list[Run]:
    """All runs: the first seed of each arm, then the second, so that a stopped study is balanced."""
    rounds = range(max(len(arm.stages) for arm in study.arms))
    seeds = [(arm, seed) for number in rounds for arm in study.arms for seed in list(arm.stages)[number : number + 1]]
    return [
        Run(
            arm.name,
            seed,
            output / arm.name / f"seed-{seed}",
            arm.stages[seed],
            study.evaluations,
            digests or Digests(),
        )
        for arm, seed in seeds
    ]


def steps_of(run: Run) -> list[Step]:
    """The processes of a run, in order."""
    steps: list[Step] = []
    model = run.model
    for number, stage in enumerate(run.stages, 1):
        place = run.folder / f"stage-{number}" if len(run.stages) > 1 else run.folder
        which = f" stage {number}" if len(run.stages) > 1 else ""
        steps.append(_training(stage, place, model, f"train{which}", run.digests.sets))
        arguments, model = [str(place / "run"), str(place / "model")], place / "model"
        product = model / CONFIG_NAME
        steps.append(
            Step(f"merge{which}", "training.publishing.merge", arguments, model, product, place / "merge.log")
        )
    for evaluation in run.evaluations:
        for control in evaluation.controls:
            steps.append(_asking(run, evaluation, control, model))
    return steps


def _training(stage: Stage, place: Path, former: Path, name: str, sets: dict[str, dict[str, str]]) -> Step:
    options = stage.options | {"output_dir": str(place / "run")}
    if options.get("model") == FORMER:
        options["model"] = str(former)
    data = {name: sha256 for path in stage.data for name, sha256 in sets.get(path, {}).items()}
    arguments = ["--config", str(place / "options.yaml")]
    product = place / "run" / STATE
    log, method = place / "train.log", stage.method
    return Step(name, method.module, arguments, place / "run", product, log, stage.settings, data, method, options)


def scores_of(run: Run, evaluation: Evaluation, control: str) -> Path:
    """The folder of the predictions."""
    return run.folder / "scores" / evaluation.name / control


def _asking(run: Run, evaluation: Evaluation, control: str, model: Path) -> Step:
    output = scores_of(run, evaluation, control)
    name = f"evaluate {evaluation.name}" + (f", {control}" if control != SOUND else "")
    arguments = evaluation.arguments(model, output, control)
    log = output.with_name(f"{control}.log")
    settings = evaluation.options | {"control": control, STAGES: len(run.stages)}
    data = run.digests.evaluations.get(evaluation.name, {})
    return Step(name, "evaluation.evaluate", arguments, output, output / SCORE, log, settings, data)


def changes(run: Run) -> tuple[list[str], list[Path]]:
    """
    Whether any step was started with other settings than it would be now: a description of the differences, and what
    to remove: the output of that step and, if it trains, of the steps after it, but no other files next to them.
    """
    words: list[str] = []
    made: list[Path] = []
    anew = False
    for step in steps_of(run):
        found = _differences(step) if step.begun and (step.trains or step.evaluates) else []
        words += found
        if anew and step.evaluates:
            made.append(step.folder.parent)  # with all of its controls
        elif anew or found:
            made += [step.folder, step.log]
        anew = anew or bool(found) and step.trains
    return words, [path for path in dict.fromkeys(made) if path.exists()]


def _differences(step: Step) -> list[str]:
    if not step.record.exists():
        return [f"{step.folder} was created by something else"]
    before = json.loads(step.record.read_text(encoding="utf-8"))
    read = {name: sha256 for name, sha256 in step.data.items() if name in before["data"]}
    read_before = {name: before["data"][name] for name in read}
    now = json.loads(json.dumps(step.settings))
    settings = before["settings"]
    settings = with_defaults(settings, now, step.method.options) if step.method else {STAGES: now[STAGES]} | settings
    return differences(settings, now) + differences(read_before, read)


def check_unchanged(runs: Sequence[Run], otherwise: str = "give another OUT"):
    """
    Raises a `ValueError` that names the runs whose folders have results of other settings, with what to remove.

    Args:
        otherwise: what the user can do instead.
    """
    lines = []
    for run in runs:
        found, made = changes(run)
        if found:
            lines.append(f"  {run}: {'; '.join(found)}\n    rm -r {shlex.join(map(str, made))}")
    if lines:
        raise ValueError(
            "\n".join(["some runs were started with other settings (before -> now):", *lines])
            + f"\nRemove these to recreate them, or {otherwise}."
        )


def read_data(study: Study) -> Digests:
    """
    Reads the benchmarks, and returns the digests of their files, and of the training sets and models that are on this
    machine.

    Raises a `ValueError` for a benchmark that cannot be read, that does not publish its answers, or that has open
    questions.
    """
    sets = {path for arm in study.arms for stages in arm.stages.values() for stage in stages for path in stage.data}
    digests = Digests({path: set_digests(Path(path)) for path in sorted(sets) if Path(path).exists()})
    for evaluation in study.evaluations:
        given = evaluation.options
        data, root = Path(given["data"]), given.get("audio_root")
        questions = BENCHMARKS[given["benchmark"]].load(data, root and Path(root), given.get("on_error", "raise"))
        if any(question.answer is None for question in questions.questions):
            raise ValueError(f"{given['data']} does not publish its answers: there is nothing to compare.")
        open_ids = [question.id for question in questions.questions if question.is_open]
        if open_ids:
            raise ValueError(
                f"{given['data']} has {len(open_ids)} open questions ({open_ids[0]!r} for one), whose replies only a judge can "
                "rate. A study compares right answers: give a file without them."
            )
        described = {file.name: data_sha256(file) for file in _described_by(data)}
        described |= {f"{key}: {given[key]}": file_sha256(Path(given[key])) for key in WORDS if key in given}
        digests.evaluations[evaluation.name] = questions.sha256 | described
    return digests


def check_sets_exist(runs: Sequence[Run]) -> None:
    """Raises a `ValueError` for a set or model that is neither here nor a Hub id, if a run has yet to train on it."""
    for run in runs:
        trainings = (step for step in steps_of(run) if step.trains)
        for path in sorted(
            {path for step, stage in zip(trainings, run.stages) if not step.product.exists() for path in stage.data}
        ):
            try:
                is_here(path)
            except ValueError as error:
                raise ValueError(f"The study names {path}: {error}") from error


def set_digests(path: Path) -> dict[str, str]:
    """Digests of a set and of the files next to it that describe it and its clips, by path. No audio is read."""
    return {str(one): data_sha256(one) for one in (path, *_described_by(path))}


def _described_by(file: Path) -> list[Path]:
    """The describing files of a set that shares its folder with others, as in real-sounds."""
    if not file.is_file() or not is_set(file.parent):
        return []
    return [path for path in (file.with_name(REPORT), file.with_name(CLIPS)) if path.exists()]


@cache
def data_sha256(path: Path) -> str:
    """
    The digest of a file; for a prepared set, of its report; for a model, of its files; for another folder, of its files'
    names and sizes.

    Raises a `ValueError` for a folder whose report is not a set's.
    """
    if path.is_file():
        return file_sha256(path)
    if (path / REPORT).exists():
        read_report(path)
        return file_sha256(path / REPORT)
    is_model = (path / CONFIG_NAME).exists()
    files = sorted(
        (str(file.relative_to(path)), file_sha256(file) if is_model else file.stat().st_size)
        for file in path.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def package() -> dict[str, Any]:
    """Versions, and the commit of this package if it is a clone (with "+" if files differ from it)."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(
                ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    commit = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", here.name) else None
    if commit and git("status", "--porcelain", "--untracked-files=no"):
        commit += "+"
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    return {"commit": commit, "versions": versions}


def write_record(step: Step):
    """Writes the settings next to the run, with the versions of each package that worked on it."""
    before = json.loads(step.record.read_text(encoding="utf-8")) if step.record.exists() and step.begun else {}
    made_with, now = before.get("made_with", []), package()
    made_with += [now] if now not in made_with else []
    write_json(step.record, {"settings": step.settings, "data": step.data, "made_with": made_with})
