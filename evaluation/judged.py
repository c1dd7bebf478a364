"""One number for a benchmark that is scored partly by rules and partly by a judge: MMAU-Pro's weighted performance.

Each question counts the same: 1 or 0 by a rule, or the judge's score divided by the scale's highest (3 of 5 is 0.6),
as in the published script (calculate_weighted_performance of github.com/sonalkum/MMAUPro). The number depends on this
judge and this rule; the published one uses Qwen2.5-7B-Instruct and NV-Embed-v2.
Run: `falcon3-audio score OUT --judged OUT/predictions.judge-mmau-pro`
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .judge_prompts import RUBRICS
from .load_checks import read_rows
from .predictions import ANSWERED, Prediction
from .questions import spelled_id


RESULT, JUDGEMENTS = "judge.json", "judgements.jsonl"  # as judge.py writes them


def read_judged(folder: Path, predictions_sha256: str) -> tuple[dict[str, float | None], dict[str, Any]]:
    """
    A judge's scores as shares, by id (`None` if a judgement failed), and its rubric and model names.

    Args:
        folder: the output of `falcon3-audio judge`.
        predictions_sha256: of the predictions, which must be the judged ones.

    Raises:
        `ValueError`: no such folder, or judgements of other predictions.
    """
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        rubric, provenance = result["rubric"], result["provenance"]
        known, highest = provenance["predictions_sha256"], RUBRICS[rubric].scale[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is not a folder of `falcon3-audio judge`: {error!r}") from None
    if known != predictions_sha256:
        raise ValueError(f"{folder} has judgements of other predictions (sha256 {known[:16]}); judge these.")
    rows, _ = read_rows(folder / JUDGEMENTS)
    shares = {spelled_id(row["id"]): None if row["score"] is None else row["score"] / highest for _, row in rows}
    judge = {"rubric": rubric, "judges": list(result["judges"]), "reported": provenance["judges_as_reported"]}
    return shares, judge


def overall(
    rows: Sequence[Prediction], right: Mapping[str, bool], shares: Mapping[str, float | None], clips: Sequence[int]
) -> dict[str, Any]:
    """
    The mean over all rows, and its 95 % bootstrap interval over clips. Open questions without a reply or without a
    judgement count 0; `not_judged` has the ids of the latter.

    Args:
        rows: all of them, open ones too.
        right: by id, whether a rule says that a reply is right.
        shares: of `read_judged`, by the ids of open questions.
        clips: the number of each row's clip, see `intervals.clip_numbers`.
    """
    import numpy as np

    from .length_control import mean  # scores without a judge do not need scipy

    unanswered = {row.id for row in rows if row.is_open and row.status != ANSWERED}
    missing = [row.id for row in rows if row.is_open and shares.get(row.id) is None and row.id not in unanswered]
    unrated = dict.fromkeys([*unanswered, *missing], 0.0)
    scores = {**{name: float(value) for name, value in right.items()}, **shares, **unrated}
    values = [scores[row.id] for row in rows]
    return {"n": len(rows), "not_judged": missing, **asdict(mean(np.array(values), np.array(clips)))}


def not_judged(score: dict[str, Any]) -> list[str]:
    """The ids in a score's `overall` that count 0 since a judge did not rate them."""
    rules = score.get("overall", {}).get("rules", {})
    return next((found["not_judged"] for found in rules.values()), [])


__all__ = ["not_judged", "overall", "read_judged"]
