"""The scoring that the files in tasks/ call: the verdicts on a reply, and accuracies over many.

Both rules are reported side by side: the benchmark's own, and the one that reads the content. An item of a metric is a
dict; it has a `score` (0 or 1) unless the official rule leaves the row out, so that lmms-eval's standard errors, which
look for that key, are for the same rows. Plain Python: neither lmms-eval nor torch is needed.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..predictions import ANSWERED, Prediction
from ..rules import RULES, Verdict


# `clip` is what standard errors are clustered by.
Item = dict[str, Any]


def mmau_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdicts on the first of `results`, by metric; `official` is MMAU's rule."""
    return _results("mmau-official", doc, results[0])


def air_bench_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdicts on the first of `results`, by metric; `official` is AIR-Bench Foundation's rule."""
    return _results("air-bench-official", doc, results[0])


def mmsu_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdicts on the first of `results`, by metric; `official` is MMSU's rule."""
    return _results("mmsu-official", doc, results[0])


def mmau_pro_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdicts on the first of `results`, by metric; `content` is the rule for MMAU-Pro, see `rules.mmau_pro`."""
    return _content(doc, results[0], "mmau-pro")


def content_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdicts by content on the first of `results`, by metric, for benchmarks without a published rule."""
    return _content(doc, results[0])


def share(items: Sequence[Item]) -> float:
    """The mean score of the items that have one, in [0, 1]; NaN if none has."""
    scores = [item["score"] for item in items if "score" in item]
    return sum(scores) / len(scores) if scores else math.nan


def macro(pairs: Sequence[tuple[str, Item]]) -> float:
    """
    The mean over the tasks of `share`, for pairs of task and item; NaN if a whole task was left out.

    lmms-eval sees no score in pairs: the standard errors that it would print are those of the mean over rows.
    """
    tasks = defaultdict(list)
    for task, item in pairs:
        tasks[task].append(item)
    return sum(map(share, tasks.values())) / len(tasks)


def _results(rule: str, doc: dict[str, Any], reply: str) -> dict[str, Any]:
    """Metrics of all rows, and `official_TASK` and `content_TASK`, which only rows of that task have."""
    verdict, known = RULES[rule](_row(doc, reply)), {"clip": doc["clip"]}
    left_out = verdict == Verdict.LEFT_OUT
    official = known if left_out else known | {"score": float(verdict == Verdict.RIGHT)}
    return {
        "official": official,
        "official_macro": (doc["task"], official),
        f"official_{doc['task']}": official,
        "official_left_out": known | {"score": float(left_out)},
        **_content(doc, reply),
    }


def _content(doc: dict[str, Any], reply: str, rule: str = "content") -> dict[str, Any]:
    verdict, known = RULES[rule](_row(doc, reply)), {"clip": doc["clip"]}
    content = known | {"score": float(verdict == Verdict.RIGHT)}
    return {
        "content": content,
        "content_macro": (doc["task"], content),
        f"content_{doc['task']}": content,
        "content_unresolved": known | {"score": float(verdict == Verdict.UNRESOLVED)},
    }


def _row(doc: dict[str, Any], reply: str) -> Prediction:
    return Prediction(
        id=doc["id"],
        status=ANSWERED,
        reply=reply,
        choices=tuple(doc["choices"]),
        answer=doc["answer"],
        check=json.loads(doc["check"]) if doc["check"] else None,
    )
