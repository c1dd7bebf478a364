"""The inputs of a study's report in one archive: the replies, the training logs, and the settings of each step.

Without the weights it is small. The report can be rebuilt from it, and a study can be resumed on another machine:
unpacked into OUT, finished runs count as done there.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from falcon3_audio.evaluation.predictions import PREDICTIONS, RUN
from falcon3_audio.whole_files import as_json, whole_file

from .study_file import Study
from .study_report import state_of, without_paths
from .study_runs import Run, runs_of, steps_of


def pack(study: Study, output: Path, archive: Path) -> int:
    """
    Writes the results of the finished runs as a tar file compressed by xz; returns the number of runs. The same
    results give the same bytes. In scores and their provenance, absolute paths are reduced to their last name; the
    settings of a run are kept unchanged, since they are compared when the study is resumed.

    Raises a `ValueError` if no run has finished.
    """
    ended = [run for run in runs_of(study, output) if state_of(run) is None]
    if not ended:
        raise ValueError(f"no run of {study.name} has finished in {output}: there is nothing to pack.")
    with whole_file(archive) as file, tarfile.open(fileobj=file, mode="w:xz", preset=9) as tar:
        for run in ended:
            for path, kept in _results_of(run):
                member = tarfile.TarInfo(path.relative_to(output).as_posix())
                member.size = len(kept)
                tar.addfile(member, io.BytesIO(kept))
    return len(ended)


def _results_of(run: Run) -> Iterator[tuple[Path, bytes]]:
    """Each file of a run, with its content."""
    for step in steps_of(run):
        if step.trains or step.evaluates:
            yield step.record, step.record.read_bytes()
        made = [step.product]
        if step.evaluates:
            yield step.folder / PREDICTIONS, (step.folder / PREDICTIONS).read_bytes()
            made.append(step.folder / RUN)
        for path in made:
            yield path, as_json(without_paths(json.loads(path.read_text(encoding="utf-8"))))
