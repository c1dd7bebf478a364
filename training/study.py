"""A study: arms (a recipe with some options changed, or stages one after the other) times seeds, trained and compared.

    falcon3-audio study STUDY.yaml OUT [--only ARM ...] [--jobs 2]
    falcon3-audio study STUDY.yaml OUT --report      # of what is there already

Each arm and seed is trained, merged and asked the benchmarks, with the sound and with each control, in processes of its
own under OUT/ARM/seed-N, with a log of each. The first seed of all arms comes first. What is finished is not done again: a
study that was stopped goes on with the same command. An arm that fails does not stop the others. At the end there are
report.json, report.md and report.png (see study_report.py). What STUDY.yaml may say is in studies/README.md.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.generate import differences
from falcon3_audio.evaluation.questions import file_sha256
from falcon3_audio.evaluation.score import SCORE
from falcon3_audio.whole_files import whole_file, write_json

from .run_folder import STATE
from .shards import REPORT
from .study_file import FORMER, SOUND, Evaluation, Stage, Study, read_study


FAILED = "failed.json"
LOCK = "study.lock"
PACKAGES = ("falcon3-audio", "accelerate", "datasets", "peft", "torch", "transformers", "trl")
POLL = 0.2  # seconds

Digests = dict[str, dict[str, str]]  # of the files of "train", and of each evaluation


class Stopped(Exception):
    """The study is to end, and may go on later."""


@dataclass(frozen=True)
class Run:
    """
    An arm with one seed.

    Attributes:
        folder: of everything that it leaves.
        stages: in their order.
        digests: of what is read, where that is known.
        model: which is asked where there are no stages.
    """

    arm: str
    seed: int
    folder: Path
    stages: list[Stage]
    evaluations: list[Evaluation]
    digests: Digests = field(default_factory=dict)
    model: Path = Path()

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Step:
    """
    One process of a run.

    Attributes:
        name: for the user.
        module: what runs, with `arguments`.
        folder: which it makes.
        product: a file that is there when it has ended.
        log: where it writes what it says; beside it is `record`.
        settings, data: what decides the product, and the digests of the files that it reads.
        options: of a training, as its recipe.
    """

    name: str
    module: str
    arguments: list[str]
    folder: Path
    product: Path
    log: Path
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] | None = None

    @property
    def trains(self) -> bool:
        return self.options is not None

    @property
    def evaluates(self) -> bool:
        return self.module.startswith("evaluation.")

    @property
    def record(self) -> Path:
        return self.log.with_suffix(".json")

    @property
    def begun(self) -> bool:
        """Whether there is anything that other settings would not have made."""
        if not self.trains:
            return self.folder.exists()
        return self.product.exists() or any(self.folder.glob("checkpoint-*"))


################
# What there is to do
################
def runs_of(study: Study, output: Path, digests: Digests | None = None) -> list[Run]:
    """All runs: the first seed of each arm, then the second, so that a study is balanced whenever it is stopped."""
    rounds = range(max(len(arm.stages) for arm in study.arms))
    seeds = [(arm, seed) for number in rounds for arm in study.arms for seed in list(arm.stages)[number : number + 1]]
    return [
        Run(arm.name, seed, output / arm.name / f"seed-{seed}", arm.stages[seed], study.evaluations, digests or {})
        for arm, seed in seeds
    ]


def steps_of(run: Run) -> list[Step]:
    """The processes of a run, in their order."""
    steps: list[Step] = []
    model = run.model
    for number, stage in enumerate(run.stages, 1):
        place = run.folder / f"stage-{number}" if len(run.stages) > 1 else run.folder
        which = f" stage {number}" if len(run.stages) > 1 else ""
        steps.append(_training(stage, place, model, f"train{which}", run.digests.get("train", {})))
        model = place / "run"
        if stage.adapter:
            arguments, model = [str(model), str(place / "model")], place / "model"
            product = model / "config.json"
            steps.append(Step(f"merge{which}", "training.merge", arguments, model, product, place / "merge.log"))
    for evaluation in run.evaluations:
        for control in evaluation.controls:
            steps.append(_asking(run, evaluation, control, model))
    return steps


def _training(stage: Stage, place: Path, former: Path, name: str, digests: dict[str, str]) -> Step:
    options = stage.options | {"output_dir": str(place / "run")}
    if options.get("model") == FORMER:
        options["model"] = str(former)
    data = {path: digests[path] for path in stage.data if path in digests}
    arguments = ["--config", str(place / "options.yaml")]
    product = place / "run" / STATE
    return Step(
        name, "training.sft", arguments, place / "run", product, place / "train.log", stage.settings, data, options
    )


def scores_of(run: Run, evaluation: Evaluation, control: str) -> Path:
    """The folder of the predictions."""
    return run.folder / "scores" / evaluation.name / control


def _asking(run: Run, evaluation: Evaluation, control: str, model: Path) -> Step:
    output = scores_of(run, evaluation, control)
    name = f"evaluate {evaluation.name}" + (f", {control}" if control != SOUND else "")
    arguments = evaluation.arguments(model, output, control)
    log = output.with_name(f"{control}.log")
    settings = evaluation.options | {"control": control}
    data = run.digests.get(evaluation.name, {})
    return Step(name, "evaluation.evaluate", arguments, output, output / SCORE, log, settings, data)


def changes(run: Run) -> dict[Path, list[str]]:
    """What was begun with other settings than it would be begun with now: what to remove, and what differs, in words."""
    found: dict[Path, list[str]] = {}
    for step in steps_of(run):
        differ = _differences(step) if step.begun and (step.trains or step.evaluates) else []
        if differ:
            found.setdefault(step.folder if step.evaluates else run.folder, []).extend(differ)
    return found


def _differences(step: Step) -> list[str]:
    if not step.record.exists():
        return [f"{step.folder} was made by something else"]
    before = json.loads(step.record.read_text(encoding="utf-8"))
    read = {name: sha256 for name, sha256 in step.data.items() if name in before["data"]}
    read_before = {name: before["data"][name] for name in read}
    return differences(before["settings"], json.loads(json.dumps(step.settings))) + differences(read_before, read)


def check_unchanged(runs: Sequence[Run]):
    """Raises a `ValueError` that names the runs in whose folders there are results of other settings."""
    changed = [(run, *change) for run in runs for change in changes(run).items()]
    if changed:
        lines = [f"  {run}: {'; '.join(found)}\n    rm -r {folder}" for run, folder, found in changed]
        raise ValueError(
            "\n".join(["some runs were begun with other settings (before -> now):", *lines])
            + "\nRemove these folders to do that again, give another OUT, or choose other arms with --only."
        )


################
# What is read, and by what
################
def read_data(study: Study) -> Digests:
    """
    Reads the benchmarks, and returns the digests of their files and of the training sets that are on this machine.

    Raises a `ValueError` for a benchmark that cannot be read, or that keeps its answers to itself.
    """
    sets = {path for arm in study.arms for stages in arm.stages.values() for stage in stages for path in stage.data}
    digests = {"train": {path: data_sha256(Path(path)) for path in sorted(sets) if Path(path).exists()}}
    for evaluation in study.evaluations:
        given = evaluation.options
        root = given.get("audio_root")
        questions = BENCHMARKS[given["benchmark"]].load(
            Path(given["data"]), root and Path(root), given.get("on_error", "raise")
        )
        if any(question.answer is None for question in questions.questions):
            raise ValueError(f"{given['data']} keeps its answers to itself: there is nothing to compare.")
        digests[evaluation.name] = questions.sha256
    return digests


@cache
def data_sha256(path: Path) -> str:
    """Of a file its digest; of a prepared set that of its report; of another folder, of its files' names and sizes."""
    if path.is_file():
        return file_sha256(path)
    if (path / REPORT).exists():
        return file_sha256(path / REPORT)
    files = sorted((str(file.relative_to(path)), file.stat().st_size) for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


@cache
def package() -> dict[str, Any]:
    """Versions, and the commit of this package where it is a clone (with "+" where files differ from it)."""
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


################
# Doing it
################
def perform(run: Run, environment: dict[str, str], stop: threading.Event, echo: bool = False) -> str | None:
    """
    Does what is not done of a run. Returns `None`, or what failed, which is also in failed.json in its folder.

    Args:
        environment: of the processes.
        stop: ends them when it is set; `Stopped` is raised.
        echo: print the logs of trainings as they are written.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder / LOCK, stop) as lock:
        (run.folder / FAILED).unlink(missing_ok=True)
        steps = steps_of(run)
        for number, step in enumerate(steps):
            if step.product.exists():
                continue
            said = _stale(step, steps[number + 1 :]) or _do(run, step, environment, lock, stop, echo and step.trains)
            if said:
                write_json(run.folder / FAILED, {"step": step.name, "said": said})
                print(f"{run}: {step.name} failed: {said}", file=sys.stderr, flush=True)
                return f"{step.name}: {said}"
    return None


def _stale(step: Step, later: Sequence[Step]) -> str | None:
    left = [str(other.folder) for other in later if other.folder.exists() and not step.evaluates]
    return f"{', '.join(left)} came from something that is gone; remove it to make it again" if left else None


def _do(run: Run, step: Step, environment: dict[str, str], lock: int, stop: threading.Event, echo: bool) -> str | None:
    step.log.parent.mkdir(parents=True, exist_ok=True)
    if step.trains:
        with whole_file(step.log.with_name("options.yaml")) as file:
            file.write(yaml.safe_dump(step.options, sort_keys=False).encode())
    _write_record(step)
    print(f"{run}: {step.name} (log: {step.log})", flush=True)
    code = _run_process([f"falcon3_audio.{step.module}", *step.arguments], step.log, environment, lock, stop, echo)
    # Questions without a reply make an exit code of 1, but also a score, in which they are wrong; the report says so.
    if step.product.exists() and (code == 0 or step.evaluates):
        return None
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{last_line(step.log)} ({ended})"


def _write_record(step: Step):
    """The settings beside the run, with each package that worked on it."""
    before = json.loads(step.record.read_text(encoding="utf-8")) if step.record.exists() and step.begun else {}
    made_with = before.get("made_with", [])
    made_with += [package()] if package() not in made_with else []
    write_json(step.record, {"settings": step.settings, "data": step.data, "made_with": made_with})


def _run_process(
    command: list[str], log: Path, environment: dict[str, str], lock: int, stop: threading.Event, echo: bool
) -> int:
    with open(log, "ab") as file:
        file.write(f"$ python -m {' '.join(command)}\n".encode())
        file.flush()
        place = file.tell()
        # The lock goes with it: if this process is killed, nobody else works on the run until that one has ended.
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock,),
        )
    try:
        while (code := process.poll()) is None:
            if stop.wait(POLL):
                raise Stopped
            place = _print_from(log, place) if echo else place
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if echo:
        _print_from(log, place)
    return code


def _print_from(log: Path, place: int) -> int:
    with open(log, "rb") as file:
        file.seek(place)
        sys.stdout.write(file.read().decode(errors="replace"))
        sys.stdout.flush()
        return file.tell()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no word")


@contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[int]:
    """Waits until no other process works on the run."""
    with open(path, "ab") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    print(f"Another process works on {path.parent}; waiting for it to end.", flush=True)
                told = True
            if stop.wait(POLL):
                raise Stopped
        yield file.fileno()


def perform_all(runs: Sequence[Run], jobs: int = 1) -> list[str]:
    """
    Does what is not done, `jobs` runs side by side, each with its share of the cores and, where there are several GPUs, one
    of them. Returns what failed. On an interrupt the processes are ended, and `KeyboardInterrupt` goes on.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    stop = threading.Event()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def work(run: Run) -> str | None:
        slot = slots.get()
        try:
            said = perform(run, _environment(threads, slot), stop)
        except OSError as error:
            said = str(error)
        finally:
            slots.put(slot)
        return said and f"{run}: {said}"

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(work, run) for run in runs]
        try:
            return [said for future in as_completed(futures) if (said := future.result())]
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _environment(threads: int, slot: int) -> dict[str, str]:
    """With that many threads, unless the user has said how many, and one GPU: a training run that sees several refuses."""
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if torch.cuda.device_count() > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return environment


def _selected(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    unknown = sorted(set(only) - {run.arm for run in runs})
    if unknown:
        names = ", ".join(dict.fromkeys(run.arm for run in runs))
        raise ValueError(f"--only names {', '.join(unknown)}, but the arms are {names}.")
    return [run for run in runs if not only or run.arm in only]


@contextmanager
def ended_gently() -> Iterator[None]:
    """A SIGTERM is as an interrupt: the processes of the runs end with this one. For the main thread."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _study(options: argparse.Namespace) -> int:
    study = read_study(options.study)
    output = options.output.resolve()
    failed: list[str] = []
    if not options.report:
        runs = _selected(runs_of(study, output, read_data(study)), options.only)
        check_unchanged(runs)
        failed = perform_all(runs, options.jobs)
    from .study_report import write_report  # noqa: PLC0415

    print(write_report(study, output))
    for said in failed:
        print(f"falcon3-audio study: {said}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio study", description=__doc__.split("\n\n")[0])
    parser.add_argument("study", metavar="STUDY", type=Path, help="YAML file, see training/studies/README.md")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the runs and the report")
    parser.add_argument("--only", metavar="ARM", nargs="+", default=[], help="train and evaluate these arms only")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="only make the report, of what is there")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    try:
        with ended_gently():
            return _study(options)
    except KeyboardInterrupt:
        print("falcon3-audio study: stopped. The same command goes on.", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"falcon3-audio study: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
