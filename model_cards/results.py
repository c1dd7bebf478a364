"""The results that cards show: results.json, which is filled only from files of `falcon3-audio score`.

A score becomes an entry only with complete provenance: every question has a reply, it is not a control, and model and
commit, prompt, decoding, data and versions are known. An entry holds these and the scores as written, without local
paths and machine names. A card shows only entries of its own model; for a local checkpoint, only those measured with
exactly the same files.

    falcon3-audio results add runs/mmau/score.json --model ORG/NAME

If you cannot change the package, `--file mine.json` keeps them elsewhere; `falcon3-audio card --results` reads it.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.caption_metrics import CAPTION_METRICS
from falcon3_audio.whole_files import write_json

from .sources import is_hub_id


RESULTS = Path(str(files(__package__))) / "results.json"
FORMAT = 1  # of score files, as in evaluation/score.py
WAYS = ("shuffled_orders", "paraphrases_sha256")  # of asking questions more than once
# What an entry keeps of a score file, and of the run in it. The run's `model` is left out: it can be a local path.
OF_SCORE = (
    "format",
    "benchmark",
    "title",
    "data_sha256",
    "clips",
    "warnings",
    "counts",
    "coverage",
    "rules",
    "consistency",
    "overall",
    "baselines",
    "spelling",
    "notes",
    "versions",
)
NEEDED_OF_RUN = (
    "prompt",
    "prompt_example",
    "control",
    "decoding",
    "model_commit",
    "model_commit_is",
    "versions",
    "created",
)
OF_RUN = (
    *NEEDED_OF_RUN,
    "prompt_text",
    "prompt_sha256",
    "questions_sha256",
    "generation_config",
    *WAYS,
    "model_dtype",
    "audio_tokens",
    "audio_check",
)
ON_THE_HUB = "commit on the Hub"  # `model_commit_is` of a model loaded from the Hub
# One entry for each combination of these; another score with the same values replaces it.
KEY = ("model", "benchmark", "prompt", "prompt_sha256", *WAYS, "data_sha256", "spelling")
OWN = "own-questions"  # dataset type on the Hub for questions that are not a benchmark's own, in any format
METRICS = {
    "accuracy": "accuracy",
    "word_error_rate": "wer",
    "character_error_rate": "cer",
    **{key: name for name, key in CAPTION_METRICS.items()},
}  # key of a score: metric on the Hub


def add_result(score_file: str | Path, model: str, path: str | Path = RESULTS) -> dict[str, Any]:
    """
    Adds a score to results.json; it replaces an earlier one for the same model, questions and prompt.

    Args:
        score_file: file written by `falcon3-audio score`.
        model: ORG/NAME of the measured model. A score of a local folder is accepted too: cards compare the files.
        path: results.json, or your own file, which is created if it does not exist.

    Returns the new entry.

    Raises:
        `ValueError`: if `model` is not a Hub id, the file is not a score, or the score is incomplete, of a control, of
            another model or without provenance.
        `OSError`: if a file cannot be read or written.
    """
    score = _read_json(Path(score_file))
    entry = {"model": model, **_without_paths(score, score_file)}
    try:
        check_entry(entry)
    except ValueError as error:
        raise ValueError(f"{score_file}: {error}") from None
    measured = score["run"].get("model")
    if entry["run"]["model_commit_is"] == ON_THE_HUB and measured != model:
        raise ValueError(f"{score_file} is the score of {measured}, not of {model}.")
    known = read_results(path) if Path(path).exists() else []
    others = [other for other in known if _key(other) != _key(entry)]
    write_json(Path(path), sorted([*others, entry], key=lambda entry: (entry["model"], entry["benchmark"])))
    return entry


def read_results(path: str | Path = RESULTS) -> list[dict[str, Any]]:
    """All entries. Raises a `ValueError` if the file is not a JSON list of them."""
    entries = _read_json(Path(path))
    if not isinstance(entries, list):
        raise ValueError(f"{path} must be a JSON list, got {type(entries).__name__}.")
    for entry in entries:
        check_entry(entry)
    return entries


def results_of(
    model: str, checkpoint: Path | None = None, path: str | Path = RESULTS, run: Path | None = None
) -> list[dict[str, Any]]:
    """
    The entries of a model on the Hub.

    Args:
        checkpoint: the model's files. A folder downloaded by the Hub's client is named after its commit.
        run: the run that they were created from, for messages, if they are in a temporary folder.

    Raises a `ValueError` if an entry was measured with other files than those in `checkpoint`.
    """
    found = [entry for entry in read_results(path) if entry["model"] == model]
    if found and checkpoint is not None:
        from falcon3_audio.evaluation.local_model import model_digest as digest  # which loads torch

        known = {digest(checkpoint), checkpoint.resolve().name}
        for entry in found:
            if entry["run"]["model_commit"] not in known:
                where = f"in {checkpoint}" if run is None else f"created from {run}"
                raise ValueError(
                    f"The result of {model} on {entry['benchmark']} in {path} was measured with other files "
                    f"(model_commit {entry['run']['model_commit']}) than those {where}. For a run with an adapter, "
                    f"measure the merged model: `falcon3-audio merge {run or 'RUN'} OUT`, evaluate OUT, and "
                    "`falcon3-audio results add` its score. Or remove that entry."
                )
    return found


def check_entry(entry: Any):
    """Raises a `ValueError` that says what an entry of results.json lacks."""
    if not isinstance(entry, dict) or not is_hub_id(str(entry.get("model"))):
        raise ValueError(f"a result needs the Hub id (ORG/NAME) of its model, got {entry!r:.100}.")
    if entry.get("format") != FORMAT:
        raise ValueError(f"got the format {entry.get('format')!r}; expected {FORMAT}, of `falcon3-audio score`.")
    run = entry.get("run") or {}
    missing = [name for name in ("benchmark", "title", "data_sha256", "counts", "rules") if not entry.get(name)]
    missing += [f"run.{name}" for name in NEEDED_OF_RUN if not run.get(name)]
    if missing:
        raise ValueError(f"the score of {entry['model']} lacks provenance: {', '.join(missing)}.")
    if run["control"] != "none":
        raise ValueError(f"this is the control {run['control']!r}, not a score of the model.")
    if entry.get("coverage") != 1:
        raise ValueError(
            f"coverage is {entry.get('coverage')}: not every question has a reply, so this is not a score on "
            f"{entry['benchmark']}."
        )
    empty = [rule for rule, found in entry["rules"].items() if value_of(found) is None]
    if empty:
        raise ValueError(f"nothing was scored by {', '.join(empty)}.")


def _without_paths(score: Any, score_file: str | Path) -> dict[str, Any]:
    if not isinstance(score, dict) or not isinstance(score.get("predictions"), dict):
        raise ValueError(f"{score_file} is not a score file of `falcon3-audio score`.")
    run = score.get("run") or {}
    kept = {name: score[name] for name in OF_SCORE if name in score}
    predictions = {"predictions_sha256": score["predictions"].get("sha256")}
    return kept | predictions | {"run": {name: run[name] for name in OF_RUN if name in run}}


def _key(entry: dict[str, Any]) -> str:
    flat = entry["run"] | entry
    return json.dumps([flat.get(name) for name in KEY], sort_keys=True)


def value_of(found: dict[str, Any]) -> float | None:
    """Accuracy, error rate or caption metric of a rule, 0 to 1 (a word error rate or CIDEr-D can be more)."""
    return next((found[key] for key in (*METRICS, "macro") if key in found), None)


def eval_results(entries: list[dict[str, Any]]) -> list[EvalResult]:
    """The model index: one metric for each rule of each entry, with how it was measured."""
    results = []
    for entry in entries:
        for rule, found in entry["rules"].items():
            run, key = entry["run"], next(key for key in METRICS if key in found)
            provenance = {
                name: run[name] for name in ("prompt", "decoding", "model_commit", "model_commit_is", "created")
            }
            interval = {"n": found.get("n"), "interval": found["interval"], "rule": rule}
            results.append(
                EvalResult(
                    task_type="audio-text-to-text",
                    dataset_type=entry["benchmark"] if entry["title"] == BENCHMARKS[entry["benchmark"]].title else OWN,
                    dataset_name=entry["title"],
                    dataset_revision=", ".join(f"{name} sha256:{sha}" for name, sha in entry["data_sha256"].items()),
                    metric_type=METRICS[key],
                    metric_value=found[key],
                    metric_name=f"{METRICS[key]} ({rule}, prompt {run['prompt']})",
                    metric_args=interval | provenance,
                )
            )
    return results


def eval_result_files(entries: list[dict[str, Any]]) -> dict[str, str]:
    """
    Files for a model's repository, path -> content, from which the Hub shows scores on the pages of the model and the
    benchmark (huggingface.co/docs/hub/eval-results). One for each benchmark that the Hub has, with the percentage by
    the benchmark's own rule, if it was scored by it. The notes say how it was measured; the card has all details.
    """
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in entries:
        benchmark, run = BENCHMARKS[entry["benchmark"]], entry["run"]
        if benchmark.hub_id is None or entry["title"] != benchmark.title:
            continue
        rule = benchmark.rules[0]
        found = entry["rules"].get(rule)
        if found is None:
            continue
        notes = f"rule {rule}, prompt {run['prompt']}, n {found['n']}"
        if found["interval"] is not None:
            notes += ", 95 % interval {:.1f} to {:.1f}".format(*(100 * limit for limit in found["interval"]))
        score = EvalResultEntry(
            benchmark.hub_id, "default", round(100 * found["accuracy"], 2), date=run["created"], notes=notes
        )
        files.setdefault(f".eval_results/{entry['benchmark']}.yaml", []).append(score)
    return {
        path: yaml.safe_dump(eval_result_entries_to_yaml(scores), sort_keys=False) for path, scores in files.items()
    }


def table(entry: dict[str, Any]) -> list[list[str]]:
    """Rows of text: the header, all questions, and the groups of the first breakdown; percent with the 95 % interval."""
    rules = list(entry["rules"].values())
    rows = [["", *entry["rules"]], ["all questions", *map(_cell, rules)]]
    name = next(iter(rules[0]["breakdowns"]), None)
    if name is not None:
        means = [rule["breakdowns"][name] for rule in rules]
        groups = [
            [f"{name}: {group}", *(_cell(mean["groups"][group]) for mean in means)] for group in means[0]["groups"]
        ]
        rows += [*groups, [f"mean over {name}", *map(_cell, means)]]
    return rows


def _cell(found: dict[str, Any]) -> str:
    value, interval = value_of(found), found["interval"]
    if value is None:
        return "-"
    limits = f" ({', '.join(f'{100 * limit:.1f}' for limit in interval)})" if interval else ""
    return f"{100 * value:.1f}{limits}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{path} is not valid JSON: {error}") from None


__all__ = ["RESULTS", "add_result", "check_entry", "eval_result_files", "read_results", "results_of"]
