"""What a study's report is made of, in one archive: the replies, the logs of the trainings, what each was begun with.

Without the weights that is little. A report can be made again from it, and a study goes on on another machine: unpacked into OUT,
what has ended counts as done there.
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
    Writes the results of the runs that have ended, as a tar file compressed by xz; returns how many runs. The same results give
    the same bytes. In scores and in how they were made only the last name of an absolute path is kept; what a run was begun with is
    kept as it is, since it is compared when the study goes on.

    Raises a `ValueError` where no run has ended.
    """
    ended = [run for run in runs_of(study, output) if state_of(run) is None]
    if not ended:
        raise ValueError(f"no run of {study.name} has ended in {output}: there is nothing to pack.")
    with whole_file(archive) as file, tarfile.open(fileobj=file, mode="w:xz", preset=9) as tar:
        for run in ended:
            for path, kept in _results_of(run):
                member = tarfile.TarInfo(path.relative_to(output).as_posix())
                member.size = len(kept)
                tar.addfile(member, io.BytesIO(kept))
    return len(ended)


def _results_of(run: Run) -> Iterator[tuple[Path, bytes]]:
    """Each file of a run, and its content."""
    for step in steps_of(run):
        if step.trains or step.evaluates:
            yield step.record, step.record.read_bytes()
        made = [step.product]
        if step.evaluates:
            yield step.folder / PREDICTIONS, (step.folder / PREDICTIONS).read_bytes()
            made.append(step.folder / RUN)
        for path in made:
            yield path, as_json(without_paths(json.loads(path.read_text(encoding="utf-8"))))
