"""A study: arms (a recipe with some options changed, or consecutive stages) times seeds, trained and compared.

    falcon3-audio study STUDY.yaml OUT [--only ARM ...] [--jobs 2]
    falcon3-audio study STUDY.yaml OUT --report                          # only from existing results
    falcon3-audio study STUDY.yaml OUT --report --pack results.tar.xz    # and its inputs, for another machine

Each arm and seed is trained, merged and evaluated on the benchmarks, with the audio and with each control, in separate
processes under OUT/ARM/seed-N, each with a log. The first seed of all arms runs first. Finished work is not repeated:
to resume a stopped study, run the same command again. A failed arm does not stop the others. At the end report.json,
report.md and report.png are written (see study_report.py). studies/README.md describes STUDY.yaml.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
import yaml

from falcon3_audio.locks import lock
from falcon3_audio.user_errors import GOES_ON, user_errors
from falcon3_audio.whole_files import whole_file, write_json

from .data.shards import is_set
from .studies.study_file import make_study, read_study
from .studies.study_report import check_own_report, write_report
from .studies.study_results import pack
from .studies.study_runs import (
    FAILED,
    Run,
    Step,
    check_sets_exist,
    check_unchanged,
    data_sha256,
    read_data,
    runs_of,
    steps_of,
    write_record,
)


LOCK = "study.lock"
POLL = 0.2  # seconds


class Stopped(Exception):
    """The study is being stopped; it can be resumed later."""


def perform(run: Run, environment: dict[str, str], stop: threading.Event, echo: bool = False) -> str | None:
    """
    Does the remaining steps of a run. Returns `None`, or what failed, which is also in failed.json in its folder.

    Args:
        environment: of the processes.
        stop: when set, terminates them and raises `Stopped`.
        echo: print the logs of trainings as they are written.

    Raises a `ValueError` if its folder has results of other settings.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder / LOCK, stop) as held:
        check_unchanged([run])  # again: we may have waited for another process that worked on it
        (run.folder / FAILED).unlink(missing_ok=True)
        steps = steps_of(run)
        for number, step in enumerate(steps):
            if step.product.exists():
                continue
            said = _stale(step, steps[number + 1 :]) or _do(run, step, environment, held, stop, echo and step.trains)
            if said:
                write_json(run.folder / FAILED, {"step": step.name, "said": said})
                print(f"{run}: {step.name} failed: {said}", file=sys.stderr, flush=True)
                return f"{step.name}: {said}"
    return None


def _stale(step: Step, later: Sequence[Step]) -> str | None:
    left = [str(other.folder) for other in later if other.folder.exists() and not step.evaluates]
    return f"{', '.join(left)} came from results that no longer exist; remove it to recreate it" if left else None


def _do(run: Run, step: Step, environment: dict[str, str], held: int, stop: threading.Event, echo: bool) -> str | None:
    step.log.parent.mkdir(parents=True, exist_ok=True)
    if step.trains:
        with whole_file(step.log.with_name("options.yaml")) as file:
            file.write(yaml.safe_dump(step.options, sort_keys=False).encode())
    write_record(step)
    print(f"{run}: {step.name} (log: {step.log})", flush=True)
    code = _run_process([f"falcon3_audio.{step.module}", *step.arguments], step.log, environment, held, stop, echo)
    # Questions without a reply give an exit code of 1, but also a score, in which they are wrong; the report counts
    # them.
    if step.product.exists() and (code == 0 or step.evaluates):
        return None
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{last_line(step.log)} ({ended})"


def _run_process(
    command: list[str], log: Path, environment: dict[str, str], held: int, stop: threading.Event, echo: bool
) -> int:
    with open(log, "ab") as file:
        file.write(f"$ python -m {' '.join(command)}\n".encode())
        file.flush()
        place = file.tell()
        # It inherits the lock: if this process is killed, no other works on the run until that one has exited.
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment | {"PYTHONUNBUFFERED": "1"},  # so that the log is complete even if it is killed
            pass_fds=(held,),
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
    """Waits until no other process is working on the run."""
    with open(path, "ab") as file:
        told = False
        while not lock(file):
            if not told:
                print(f"Another process is working on {path.parent}; waiting for it to finish.", flush=True)
            told = True
            if stop.wait(POLL):
                raise Stopped
        yield file.fileno()


def perform_all(runs: Sequence[Run], jobs: int = 1) -> list[str]:
    """
    Does the remaining steps of all runs, `jobs` runs in parallel, each with its share of the cores and one of the
    GPUs, if there are several. Returns what failed. On an interrupt it terminates the processes and re-raises
    `KeyboardInterrupt`.
    """
    threads = max(1, _cores() // jobs)
    stop = threading.Event()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def work(run: Run) -> str | None:
        slot = slots.get()
        try:
            said = perform(run, _environment(threads, slot), stop)
        except (OSError, ValueError) as error:
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


def ask(model: Path, asked: dict[str, Any], folder: Path, recipe: Path) -> Run | None:
    """
    Evaluates one checkpoint, as an arm without training.

    Args:
        asked: an entry of a study's `evaluate`.
        folder: for the replies and their scores.

    Returns the run with these scores; `None` if the evaluation failed, which has been printed. Raises a `ValueError`
    for a benchmark that cannot be read, and if `folder` has scores of other questions.
    """
    study = make_study("asked", recipe, {"arms": {"asked": None}, "evaluate": [asked]}, "the evaluation")
    digests = read_data(study)
    if model.is_dir():
        for data in digests.evaluations.values():
            data[str(model)] = data_sha256(model)
    run = Run("asked", 0, folder, [], study.evaluations, digests, model)
    return None if perform(run, dict(os.environ), threading.Event()) else run


def _cores() -> int:
    """The number of cores this process can use; not every system reports it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment(threads: int, slot: int) -> dict[str, str]:
    """With that many threads, unless the user has set a number, and one GPU: training refuses to see several."""
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
    """Treats SIGTERM like an interrupt, so the runs' processes exit with this one. Only for the main thread."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _study(options: argparse.Namespace) -> int:
    study = read_study(options.study, to_train=not options.report)
    output = options.output.resolve()
    failed: list[str] = []
    if is_set(output):
        raise ValueError(f"{output} is a prepared set, whose report the study would overwrite; give another OUT.")
    check_own_report(study, output)
    if not options.report:
        runs = _selected(runs_of(study, output, read_data(study)), options.only)
        check_sets_exist(runs)
        check_unchanged(runs, "give another OUT, or choose other arms with --only")
        failed = perform_all(runs, options.jobs or 1)
    print(write_report(study, output))
    if options.pack:
        print(f"{pack(study, output, options.pack)} runs are packed in {options.pack}")
    for said in failed:
        print(f"falcon3-audio study: {said}", file=sys.stderr)
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio study", description=__doc__.split("\n\n")[0])
    parser.add_argument("study", metavar="STUDY", type=Path, help="YAML file, see training/studies/README.md")
    parser.add_argument("output", metavar="OUT", type=Path, help="folder for the runs and the report")
    parser.add_argument("--only", metavar="ARM", nargs="+", default=[], help="train and evaluate only these arms")
    parser.add_argument("--jobs", type=int, help="number of parallel runs (default: 1)")
    parser.add_argument("--report", action="store_true", help="only write the report, from existing results")
    parser.add_argument(
        "--pack", metavar="FILE", type=Path, help="write the inputs of the report to a .tar.xz, without weights"
    )
    options = parser.parse_args(arguments)
    if options.pack and not options.pack.parent.is_dir():
        parser.error(f"--pack: there is no folder {options.pack.parent} for {options.pack.name}")
    if options.report and (options.only or options.jobs is not None):
        parser.error("--report trains nothing and reports all arms: leave out --only and --jobs")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    # Some messages have lines with commands to copy.
    with user_errors(parser.prog, goes_on=GOES_ON, join_lines=False) as end, ended_gently():
        return _study(options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
