"""The `evaluate` metrics load from their folders without network and give the same results as the rules."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


METRICS = Path(__file__).resolve().parents[2] / "evaluation" / "metrics"
CHILD = """
import json, sys
import evaluate
folder, cases = sys.argv[1], json.loads(sys.argv[2])
print(json.dumps([evaluate.load(f"{folder}/{name}").compute(**case) for name, case in cases]))
"""
REFERENCE = {"answer": "Man", "choices": ["Man", "Woman"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs in its own process: `evaluate` copies modules to a cache that is fixed on import."""
    replies = ["Man", "The answer is (A).", "(A) Woman", None]
    cases = [
        ("mmau", {"predictions": replies, "references": [REFERENCE] * 4}),
        ("air_bench_foundation", {"predictions": ["A", "A. Woman", "neither", None], "references": [REFERENCE] * 4}),
        ("whisper_wer", {"predictions": ["mister brown is in"], "references": ["Mr. Brown's here."]}),
    ]
    environment = {"HF_HOME": str(tmp_path_factory.mktemp("cache")), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    child = [sys.executable, "-c", CHILD, str(METRICS), json.dumps(cases)]
    done = subprocess.run(child, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip((name for name, _ in cases), json.loads(done.stdout.splitlines()[-1])))


def test_every_metric_is_tried(results):
    assert results.keys() == {path.stem for path in METRICS.glob("*/*.py")}


def test_mmau(results):
    expected = {"accuracy": 1 / 3, "n": 3, "content_accuracy": 0.5, "unresolved": 0}
    assert results["mmau"] == pytest.approx(expected)


def test_air_bench_foundation(results):
    expected = {"accuracy": 1.0, "n": 2, "content_accuracy": 0.25, "unresolved": 1}
    assert results["air_bench_foundation"] == expected


def test_whisper_wer(results):
    found = results["whisper_wer"]
    assert (found["words"], found["substitutions"], found["word_error_rate"]) == (4, 1, 0.25)
