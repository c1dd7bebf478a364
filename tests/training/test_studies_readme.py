"""training/studies/README.md agrees with the reports next to it."""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from falcon3_audio.evaluation.paired import interval_text, points
from falcon3_audio.evaluation.predictions import read_predictions
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.score_tables import percent
from falcon3_audio.evaluation.scored_rows import tidy
from falcon3_audio.training import study
from falcon3_audio.training.studies.study_tables import as_markdown
from falcon3_audio.training.world.audio_world import QUESTION_TYPES


STUDIES = Path(study.__file__).parent / "studies"
REPORTS = sorted(STUDIES.glob("*/report.json"))
ARCHIVES = sorted(STUDIES.glob("*/results.tar.xz"))
PAGE = (STUDIES / "README.md").read_text(encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_reports_text_is_that_of_its_numbers(path):
    assert path.with_name("report.md").read_text(encoding="utf-8") == as_markdown(read(path))
    assert (STUDIES / f"{path.parent.name}.yaml").exists() and f"({path.parent.name}/report.md)" in PAGE


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.parent.name)
def test_a_report_counts_the_replies_that_lie_beside_it(path, tmp_path):
    with tarfile.open(path) as tar:
        tar.extractall(tmp_path, filter="data")
    report = read(path.with_name("report.json"))
    found: dict = {}
    for name, benchmark in report["benchmarks"].items():
        for arm, entry in benchmark["arms"].items():
            for seed in entry["seeds"]:
                folder = tmp_path / arm / f"seed-{seed}" / "scores" / name
                for control in ("none", *benchmark["controls"]):
                    rows = [tidy(row) for row in read_predictions(folder / control).rows]
                    right = sum(is_right(row, benchmark["rule"]) for row in rows) / len(rows)
                    found.setdefault((name, arm, control), []).append(right)
                assert entry["by_seed"][str(seed)] == pytest.approx(found[name, arm, "none"][-1])
            for control in benchmark["controls"]:
                assert entry["controls"][control]["accuracy"] == pytest.approx(np.mean(found[name, arm, control]))
    assert found


@pytest.mark.parametrize("study_name", ["paper_world", "paper_real"])
def test_the_table_of_the_papers_questions_has_the_numbers_of_the_report(study_name):
    """Each row names an arm, what the paper says of it, and what was found."""
    arms = read(STUDIES / study_name / "report.json")["benchmarks"]["mmau"]["arms"]
    section = re.split(r"^#{2,3} ", PAGE, flags=re.MULTILINE)
    (section,) = (part for part in section if part.splitlines()[0].endswith(f"`{study_name}.yaml`"))
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    assert {name for name, *_ in rows} == set(arms)
    for name, _, accuracy, difference in rows:
        arm = arms[name]
        assert accuracy == f"{percent(arm['accuracy'])} {interval_text(arm['interval'])}"
        found = arm["difference"]
        said = f"{points(found['difference'])} {interval_text(found['interval'])}, {found['verdict']}" if found else ""
        assert difference == said


def test_what_a_frozen_language_model_answers_of_types_that_it_had_not_met():
    """The types are those that `make paper-world` leaves out."""
    command = (
        (STUDIES.parent.parent / "Makefile")
        .read_text(encoding="utf-8")
        .partition("--without")[2]
        .partition("study")[0]
    )
    left_out = [name for name in QUESTION_TYPES if name in command.split()]
    assert len(left_out) == 9
    arms = read(STUDIES / "paper_world" / "report.json")["benchmarks"]["mmau"]["arms"]

    def right(arm, new):
        groups = arms[arm]["groups"]["sub-category"]
        parts = [group for name, group in groups.items() if (name.lower().replace(" ", "_") in left_out) == new]
        counted = sum(part["questions"] for part in parts)
        return f"{sum(part['accuracy'] * part['questions'] for part in parts) / counted:.0%}".replace("%", " %")

    frozen, trained = ([right(arm, new) for new in (False, True)] for arm in ("frozen-language-model", "single-stage"))
    said = " ".join(PAGE.split())
    assert f"in pretraining its accuracy is {frozen[0]}, trained {trained[0]}; " in said
    assert f"on the nine other types {frozen[1]}, trained {trained[1]}." in said


def test_the_table_of_long_clips_has_the_numbers_of_the_report():
    benchmarks = read(STUDIES / "long_clips" / "report.json")["benchmarks"]

    def share(found):
        return f"{percent(found['accuracy'])} {interval_text(found['interval'])}" if found else "-"

    for name, benchmark in benchmarks.items():
        shortest, longest = benchmark["arms"].values()
        found = (shortest, longest, *(arm["controls"].get("silence") for arm in (shortest, longest)))
        cells = [f"{name.removesuffix('-seconds')} s", *map(share, found)]
        assert f"| {' | '.join(cells)} | {max(shortest['peak_memory_gib'], longest['peak_memory_gib']):.2f} |" in PAGE
    assert len(benchmarks) == 5


def test_the_table_of_encodings_has_the_numbers_of_the_report():
    arms = read(STUDIES / "encodings" / "report.json")["benchmarks"]["mmau"]["arms"]
    for name, arm in arms.items():
        found = arm["difference"]
        differs = (
            f"{points(found['difference'])} {interval_text(found['interval'])}, {found['verdict']}" if found else ""
        )
        accuracy = f"{percent(arm['accuracy'])} {interval_text(arm['interval'])}"
        cells = [
            f"`{name}`",
            accuracy,
            ", ".join(map(percent, arm["by_seed"].values())),
            percent(arm["controls"]["silence"]["accuracy"]),
        ]
        assert f"| {' | '.join([*cells, differs])} |" in PAGE
    section = PAGE.partition("## Trailing silence")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == set(arms)
