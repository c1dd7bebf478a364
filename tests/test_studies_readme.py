"""training/studies/README.md says what the reports beside it say."""

import json
import re
from pathlib import Path

import pytest

from falcon3_audio.evaluation.paired import interval_text, points
from falcon3_audio.evaluation.score_tables import percent
from falcon3_audio.training import study
from falcon3_audio.training.study_tables import as_markdown


STUDIES = Path(study.__file__).parent / "studies"
REPORTS = sorted(STUDIES.glob("*/report.json"))
PAGE = (STUDIES / "README.md").read_text(encoding="utf-8")


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_a_reports_text_is_that_of_its_numbers(path):
    assert path.with_name("report.md").read_text(encoding="utf-8") == as_markdown(read(path))
    assert (STUDIES / f"{path.parent.name}.yaml").exists() and f"({path.parent.name}/report.md)" in PAGE


def test_the_table_of_the_papers_questions_has_the_numbers_of_the_report():
    """Each row names an arm, what the paper says of it, and what was found."""
    arms = read(STUDIES / "paper_world" / "report.json")["benchmarks"]["mmau"]["arms"]
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert {name for name, *_ in rows} == set(arms)
    for name, _, accuracy, difference in rows:
        arm = arms[name]
        assert accuracy == f"{percent(arm['accuracy'])} {interval_text(arm['interval'])}"
        found = arm["difference"]
        said = f"{points(found['difference'])} {interval_text(found['interval'])}, {found['verdict']}" if found else ""
        assert difference == said
