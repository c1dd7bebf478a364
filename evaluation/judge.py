"""Open answers (AIR-Bench Chat, MMAU-Pro, VoiceBench) rated by language models behind any OpenAI-compatible endpoint.

    falcon3-audio judge PREDICTIONS --endpoint http://127.0.0.1:8000/v1 --judge NAME [NAME2 ...]

The judge reads a description of the clip (AIR-Bench), the question, the reference (if there is one) and the answer,
see judge_prompts.py. Every reply is kept in OUT/replies, named by a hash of its request, so the same command resumes a
stopped run. An answer counts only if all its replies can be read and, with several judges, all of them rated it; all
others are named in OUT/judge.json, and the exit status is not 0 unless --allow-incomplete is given.
OUT/judgements.jsonl has each answer's scores and the judges' replies. The key comes from the environment and is not
written anywhere.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import whole_file

from .endpoint import Endpoint, EndpointError, EndpointUnavailable, Reply
from .intervals import clip_numbers
from .judge_prompts import RUBRICS, Judgement, Rubric
from .judge_report import report
from .judged import JUDGEMENTS, RESULT
from .length_control import RESAMPLES, Controlled, at_equal_length, count_words, mean, spearman
from .load_air_bench import CHAT
from .predictions import ANSWERED, Prediction, Predictions, read_predictions
from .questions import TASK_KEYS, some
from .unwrap_reply import without_thoughts


# AIR-Bench's temperatures (1.0, and 2.0 for a random half) would give a different score each time. Its limit is 1,024
# tokens; a judge that thinks first needs more.
SAMPLING = {"temperature": 0.0, "max_tokens": 4096}
REPLIES = "replies"
NO_REFERENCE = "answers without a reference have no length to be equal to"
NO_REPLY, ERROR, CUT, UNREADABLE = "no answer from the model", "endpoint error", "reply cut off", "unreadable reply"

# Why an answer has no score: one of the four above, and the details.
Failure = tuple[str, str]
Outcome = Judgement | Failure


def judge(
    predictions: Predictions, rubric_name: str, endpoints: Sequence[Endpoint], output: Path, concurrency: int = 8
) -> dict[str, Any]:
    """
    Has every answer rated by every judge, writes `judge.json` and `judgements.jsonl` to `output`, and returns the
    content of `judge.json`.

    Raises:
        `ValueError`: questions without text, description or reference; a damaged file in `output`.
        `EndpointUnavailable`: an endpoint would not answer other requests either. Its replies so far are kept.
        `OSError`: a file cannot be written.
    """
    rubric = RUBRICS[rubric_name]
    rows = [replace(row, reply=row.reply and without_thoughts(row.reply)) for row in predictions.rows if row.is_open]
    _check(rows, predictions.path, rubric)
    (output / REPLIES).mkdir(parents=True, exist_ok=True)
    prompts = {row.id: rubric.prompts(row) for row in rows if row.status == ANSWERED}
    replies, outcomes = {}, {}
    for endpoint in endpoints:
        wanted = dict.fromkeys(prompt for several in prompts.values() for prompt in several)
        said = _ask_all(endpoint, wanted, output / REPLIES, concurrency)
        replies[endpoint.model] = {name: [said[prompt] for prompt in several] for name, several in prompts.items()}
        outcomes[endpoint.model] = [_outcome(row, rubric, replies[endpoint.model].get(row.id, [])) for row in rows]
    panel = [_panel(several) for several in zip(*outcomes.values())]
    left_out = predictions.provenance.get("left_out", {})
    result = {
        "rubric": rubric_name,
        "scale": rubric.scale,
        "all judges": _summary(rows, panel, left_out),
        "judges": {name: _summary(rows, several, left_out) for name, several in outcomes.items()},
        "agreement": [_agreement(*pair) for pair in combinations(outcomes.items(), 2)],
        "provenance": _provenance(predictions, rubric, endpoints, replies),
    }
    lines = (
        {"id": row.id, **_plain(panel[number])}
        | {
            "judges": {
                name: _plain(outcomes[name][number]) | _words(replies[name].get(row.id, [])) for name in outcomes
            }
        }
        for number, row in enumerate(rows)
    )
    _write(output / JUDGEMENTS, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    _write(output / RESULT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    for endpoint in endpoints:
        for row, outcome in zip(rows, outcomes[endpoint.model]):
            if not isinstance(outcome, Judgement) and outcome[0] in (CUT, UNREADABLE):
                # The next run asks again; what was said is in judgements.jsonl.
                for prompt in prompts[row.id]:
                    _place(endpoint, prompt, output / REPLIES).unlink(missing_ok=True)
    return result


def _check(rows: Sequence[Prediction], path: str, rubric: Rubric) -> None:
    if not rows:
        raise ValueError(f"{path} holds no predictions of open questions.")
    described = {"description": "meta_info"} if rubric.describes else {}
    compared = {"answer": "answer_gt"} if rubric.compares else {}
    needed = {"question": "question"} | compared | described
    for name, alias in needed.items():
        lacking = [row.id for row in rows if not getattr(row, name)]
        if lacking:
            raise ValueError(
                f"{path}: {some(lacking)} of {len(rows)} have no {name!r}. The judge cannot hear: each "
                f"row needs {', '.join(needed)} (AIR-Bench's key for this one: {alias!r})."
            )


def _ask_all(endpoint: Endpoint, prompts: Iterable[str], folder: Path, concurrency: int) -> dict[str, Reply | str]:
    """The reply to each prompt, or why there is none. Replies in `folder` are not requested again."""
    prompts = list(prompts)

    def ask(prompt: str) -> Reply | str:
        path = _place(endpoint, prompt, folder)
        if path.exists():
            return _kept(path)
        try:
            reply = endpoint.ask(_messages(prompt), **SAMPLING)
        except EndpointUnavailable:
            raise
        except EndpointError as error:
            return str(error)
        _write(path, json.dumps(asdict(reply), ensure_ascii=False))
        return reply

    with ThreadPoolExecutor(concurrency) as pool:  # after an error, `map` cancels requests that were not sent yet
        replies = tqdm(pool.map(ask, prompts), endpoint.model, len(prompts), unit="reply", disable=None)
        return dict(zip(prompts, replies))


def _messages(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}]


def _place(endpoint: Endpoint, prompt: str, folder: Path) -> Path:
    """Where the reply to a prompt is kept."""
    asked = json.dumps([endpoint.base_url, endpoint.model, _messages(prompt), SAMPLING], sort_keys=True)
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"


def _kept(path: Path) -> Reply:
    try:
        return Reply(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to ask the judge again.") from None


def _outcome(row: Prediction, rubric: Rubric, replies: list[Reply | str]) -> Outcome:
    if row.status != ANSWERED:
        return NO_REPLY, row.error or row.status
    texts = []
    for reply in replies:
        if isinstance(reply, str):
            return ERROR, reply
        if reply.finish_reason == "length":
            return CUT, f"the reply did not end within {SAMPLING['max_tokens']} tokens"
        texts.append(reply.text)
    try:
        return rubric.combine(texts)
    except ValueError as error:
        return UNREADABLE, str(error)


def _panel(outcomes: Sequence[Outcome]) -> Outcome:
    """What several judges think of one answer: the mean, if all of them rated it."""
    judgements = [outcome for outcome in outcomes if isinstance(outcome, Judgement)]
    if len(judgements) < len(outcomes):
        return next(outcome for outcome in outcomes if not isinstance(outcome, Judgement))
    if len(judgements) == 1:
        return judgements[0]
    references = [judgement.reference_score for judgement in judgements]
    return Judgement(
        score=float(np.mean([judgement.score for judgement in judgements])),
        reference_score=None if None in references else float(np.mean(references)),  # type: ignore[arg-type]
    )


def _summary(
    rows: Sequence[Prediction], outcomes: Sequence[Outcome], left_out: dict[str, list[str]]
) -> dict[str, Any]:
    """The verdict of one judge (or of all) on a model: scores, the effect of length on them, and what is missing."""
    failures = {f"left out before asking, {reason}": list(ids) for reason, ids in left_out.items()}
    n = len(rows) + sum(map(len, left_out.values()))
    for row, outcome in zip(rows, outcomes):
        if not isinstance(outcome, Judgement):
            failures.setdefault(outcome[0], []).append(row.id)
    judged = [(row, outcome) for row, outcome in zip(rows, outcomes) if isinstance(outcome, Judgement)]
    summary = {"n": n, "judged": len(judged), "coverage": len(judged) / n, "failures": failures}
    if not judged:
        return summary
    scores = np.array([judgement.score for _, judgement in judged])
    clips = np.array(clip_numbers([row.audio for row, _ in judged]))
    words = np.array([count_words(row.reply or "") for row, _ in judged])
    reference_words = np.array([count_words(row.answer or "") for row, _ in judged])
    referred = all(row.answer for row, _ in judged)
    controlled = (
        at_equal_length(scores, words, reference_words, clips) if referred else Controlled(reason=NO_REFERENCE)
    )
    summary |= {
        "score": asdict(mean(scores, clips)),
        "score at equal length": asdict(controlled),
        "by task": _by_task([row for row, _ in judged], scores),
        "length": {
            "mean words": float(words.mean()),
            "mean words of the references": float(reference_words.mean()) if referred else None,
            "empty answers": int((words == 0).sum()),
            "spearman of score and words": spearman(scores, words),
        },
    }
    references = [judgement.reference_score for _, judgement in judged]
    if references[0] is not None:
        lead = scores - np.array(references)
        summary["lead over the reference"] = asdict(mean(lead, clips))
        summary["lead at equal length"] = asdict(at_equal_length(lead, words, reference_words, clips))
    if judged[0][1].flipped is not None:
        summary["order"] = {
            "swap flips": float(np.mean([judgement.flipped for _, judgement in judged])),
            "points for standing first": float(np.mean([judgement.first_advantage for _, judgement in judged])),
        }
    counts = [judgement.claims for _, judgement in judged if judgement.claims]
    if counts:
        summary["claims"] = {name: sum(count[name] for count in counts) for name in counts[0]}
    return summary


def _by_task(rows: Sequence[Prediction], scores: np.ndarray) -> dict[str, Any]:
    """Mean score by task and over tasks; for AIR-Bench Chat also as published: by category, "mixed" averaging two."""
    key = next((key for key in TASK_KEYS if all(key in row.groups for row in rows)), None)
    if key is None:
        return {}
    tasks = np.array([row.groups[key] for row in rows])
    means = {str(task): float(scores[tasks == task].mean()) for task in np.unique(tasks)}
    result: dict[str, Any] = {"means": means, "macro": float(np.mean(list(means.values())))}
    if not set(means) <= set(CHAT):
        return result
    domains = np.array([CHAT[task] for task in tasks])
    result["AIR-Bench"] = categories = {
        name: float(scores[domains == name].mean()) for name in dict.fromkeys(CHAT.values()) if name in domains
    }
    if set(categories) == set(CHAT.values()):
        mixed = (categories["speech_and_sound"] + categories["speech_and_music"]) / 2
        average = (categories["speech"] + categories["sound"] + categories["music"] + mixed) / 4
        categories |= {"mixed": mixed, "average": average}
    return result


def _agreement(a: tuple[str, list[Outcome]], b: tuple[str, list[Outcome]]) -> dict[str, Any]:
    pairs = [(x.score, y.score) for x, y in zip(a[1], b[1]) if isinstance(x, Judgement) and isinstance(y, Judgement)]
    agreement: dict[str, Any] = {"judges": [a[0], b[0]], "n": len(pairs)}
    if pairs:
        first, second = np.array(pairs).T
        agreement["spearman"] = spearman(first, second)
        agreement["mean absolute difference"] = float(np.abs(first - second).mean())
    return agreement


def _provenance(
    predictions: Predictions,
    rubric: Rubric,
    endpoints: Sequence[Endpoint],
    replies: dict[str, dict[str, list[Reply | str]]],
) -> dict[str, Any]:
    def reported(name: str) -> list[str]:
        return sorted(
            {reply.model for several in replies[name].values() for reply in several if not isinstance(reply, str)}
        )

    return {
        "predictions": predictions.path,
        "predictions_sha256": predictions.sha256,
        "run": predictions.provenance,
        "template_sha256": hashlib.sha256(rubric.template.encode()).hexdigest(),
        "wording": "this project's own; not comparable with published scores",
        "sampling": SAMPLING,
        "endpoint": sorted({endpoint.base_url for endpoint in endpoints}),
        "judges_as_reported": {endpoint.model: reported(endpoint.model) for endpoint in endpoints},
        "bootstrap": {"unit": "clip", "resamples": RESAMPLES},
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("falcon3-audio", "openai", "numpy", "scipy")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Judgement):
        return {name: value for name, value in asdict(outcome).items() if value is not None}
    return {"score": None, "failure": outcome[0], "reason": outcome[1]}


def _words(replies: list[Reply | str]) -> dict[str, list[str | None]]:
    return {"replies": [None if isinstance(reply, str) else reply.text for reply in replies]}


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write(text.encode())


def _gaps(result: dict[str, Any]) -> str:
    """Which answers have no score, and why; empty if all have one."""
    return "; ".join(
        f"{name}: {reason}: {some(ids)}"
        for name, block in result["judges"].items()
        for reason, ids in block["failures"].items()
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio judge", description=__doc__.split("\n\n")[0])
    parser.add_argument("predictions", metavar="PREDICTIONS", help="folder of `falcon3-audio evaluate`, or a file")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="such as http://127.0.0.1:8000/v1")
    parser.add_argument(
        "--judge", required=True, nargs="+", action="extend", metavar="NAME", help="models that the endpoint has"
    )
    parser.add_argument("--rubric", choices=RUBRICS, help="what to judge by; default: the benchmark's, else official")
    parser.add_argument("--output-dir", metavar="OUT", help="default: PREDICTIONS.judge-RUBRIC, next to the file")
    parser.add_argument("--concurrency", type=int, default=8, metavar="N", help="concurrent requests; default: 8")
    parser.add_argument("--api-key-env", default="OPENAI_API_KEY", metavar="VAR", help="variable that holds the key")
    parser.add_argument("--allow-incomplete", action="store_true", help="exit with 0 even if answers have no score")
    options = parser.parse_args(arguments)
    goes_on = "Replies so far are kept; run the same command again to resume."
    with user_errors(parser.prog, breaks=(EndpointUnavailable,), goes_on=goes_on) as end:
        if options.concurrency < 1 or len(set(options.judge)) < len(options.judge):
            raise ValueError(
                f"got --concurrency {options.concurrency} and --judge {' '.join(options.judge)}; expected 1 or more "
                "requests at once, and each judge once."
            )
        predictions = read_predictions(options.predictions)
        for warning in predictions.warnings:
            print(f"falcon3-audio judge: {warning}.", file=sys.stderr)
        path, benchmark = Path(predictions.path), predictions.provenance.get("benchmark")
        rubric = options.rubric or (benchmark if benchmark in RUBRICS else "official")
        output = Path(options.output_dir or path.with_name(f"{path.stem}.judge-{rubric}"))
        endpoints = [Endpoint(options.endpoint, name, options.api_key_env) for name in options.judge]
        result = judge(predictions, rubric, endpoints, output, options.concurrency)
        print(report(result))
        if others := sum(not row.is_open for row in predictions.rows):
            print(f"\n{others} questions with options or a check were not judged: see falcon3-audio score --judged")
        print(f"\nwritten to {output / RESULT} and {output / JUDGEMENTS}")
        gaps = _gaps(result)
        if gaps:
            again = "The same command asks the judge again where its reply could not be read."
            print(f"falcon3-audio judge: not every answer has a score. {gaps}. {again}", file=sys.stderr)
        return 1 if gaps and not options.allow_incomplete else 0
    return end.status


if __name__ == "__main__":
    sys.exit(main())
