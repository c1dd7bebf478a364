"""Scores a prediction file by every rule of its benchmark, and records how the score came about.

    falcon3-audio score runs/mmau                                    # a run of `falcon3-audio evaluate`
    falcon3-audio score theirs.json --benchmark mmau --data mmau-test-mini.json     # a published file
    falcon3-audio score runs/mine --rule wer --spelling openai/whisper-small.en     # transcripts, word error rate

No question is dropped: missing, failed, empty or unresolved replies are wrong, unless an official rule leaves them
out, which the table shows. With fewer replies than questions the exit status is 1, unless --allow-incomplete is given.
With --data, the questions, answers and options come from that file, and predictions for other questions are refused:
published benchmarks have changed under the same name. Pure Python; only the rules wer and cer need jiwer and
transformers, and the caption rules pycocoevalcap and NLTK.
"""

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import write_json

from .benchmarks import BENCHMARKS, title_of
from .caption_metrics import CAPTION_METRICS, NOTE, caption_results, caption_score, mean_caption_score
from .intervals import clip_numbers, mean_of_shares, share_interval
from .judged import not_judged, overall, read_judged
from .orders import ORDER, WORDING, consistency, published_id
from .predictions import (
    ANSWERED,
    FAILED,
    MISSING,
    PREDICTIONS,
    REPLY_KEYS,
    Prediction,
    Predictions,
    read_predictions,
)
from .questions import some
from .rules import RULES, Verdict, answer_option
from .score_tables import ALWAYS, UNANSWERABLE, show
from .scored_rows import NO_GROUP, check_answers, questions_of
from .submission import write_submission
from .unwrap_reply import without_thoughts
from .word_errors import (
    UNITS,
    WordErrors,
    count_word_errors,
    error_rate,
    mean_rate,
    normalizers_of,
)


FORMAT = 1  # of the score file; goes up when a key changes its meaning
SCORE = "score.json"

Results = Sequence[tuple[Any, int]]  # a rule's result for a reply, and the number of the question's clip
Part = Callable[[Results], dict[str, Any]]
Mean = Callable[[Sequence[Results]], dict[str, Any]]


def score(
    predictions: Predictions,
    benchmark: str | None = None,
    data: str | Path | None = None,
    rules: Sequence[str] = (),
    spelling: str | None = None,
    without_open: bool = False,
    judged: str | Path | None = None,
) -> dict[str, Any]:
    """
    The full score of a prediction file, ready to be written as JSON.

    Args:
        benchmark: a name in `BENCHMARKS`; by default the run's.
        data: the benchmark's own file, see the module.
        rules: names in `RULES` or `CAPTION_METRICS`, "wer" or "cer"; by default those of the benchmark.
        spelling: see `word_errors.read_spelling`; for "wer".
        without_open: leave open questions among others to a judge; the title then says so.
        judged: folder that `falcon3-audio judge` wrote about the open ones; `overall` then has both parts, by each
            rule.

    Returns:
        `rules` has for each rule n (the replies it counts), accuracy, its 95 % interval and, for each group, the same,
        with the mean over groups (`macro`); for "wer" it is `word_error_rate`, for "cer" `character_error_rate`, for
        captions see `caption_metrics`. Shares are 0 to 1; `null` if nothing was counted. `notes` is what a reader must
        know about the rules, as text. `consistency` is there for runs with shuffled options or paraphrases, see
        `orders.consistency`.

    Raises:
        `ValueError`: an unknown benchmark or one that differs from the run's, one that is not scored by rules,
            predictions for questions that are not in `data`, questions without an answer, or open questions among
            others.
    """
    benchmark = _benchmark(benchmark, predictions)
    if predictions.rows and predictions.key is None:
        raise ValueError(
            f"no row of {predictions.path} has a reply under {', '.join(REPLY_KEYS)}; give the right key with --key."
        )
    rules = rules or BENCHMARKS[benchmark].rules
    if not rules:
        raise ValueError(f"{benchmark} has open questions, which `falcon3-audio judge` scores.")
    ways, manner = _ways(predictions.provenance)
    if ways and data:
        raise ValueError(f"{predictions.path} has its questions in several {manner}; score it without --data.")
    rows, sha256 = questions_of(predictions, benchmark, data)
    breakdowns = BENCHMARKS[benchmark].breakdowns
    title = title_of(
        benchmark,
        {published_id(row) for row in rows} if ways else [row.id for row in rows],
        (row.groups.get(next(iter(breakdowns), ""), NO_GROUP) for row in rows),
    )
    if ways:
        title += f" in {len({row.groups.get(ways) for row in rows})} {manner}"
        breakdowns = (*breakdowns, ways) if breakdowns else ()
    everything = rows
    if not set(rules) <= UNITS.keys() | CAPTION_METRICS.keys():
        rows, title = _without_open(rows, title, without_open or judged is not None)
    check_answers(rows)
    left_out = {} if data else {reason: len(ids) for reason, ids in predictions.provenance.get("left_out", {}).items()}
    counts = count(rows)
    if benchmark == "mmau-pro":
        counts |= {UNANSWERABLE: sum(row.check is None and answer_option(row) is None for row in rows)}
    clips = clip_numbers([row.audio for row in rows])
    scores = {rule: _score_by(rule, rows, clips, breakdowns, spelling) for rule in rules}
    captions = not CAPTION_METRICS.keys().isdisjoint(rules)
    packages = ["falcon3-audio"]
    packages += [] if UNITS.keys().isdisjoint(rules) else ["jiwer", "transformers"]
    packages += ["pycocoevalcap", "nltk"] if captions else []
    return {
        "format": FORMAT,
        "benchmark": benchmark,
        "title": title,
        "predictions": {"path": predictions.path, "sha256": predictions.sha256, "key": predictions.key},
        "warnings": list(predictions.warnings),
        "data_sha256": sha256 or predictions.provenance.get("data_sha256"),
        "clips": len(set(clips)),
        "counts": counts | {"left out before asking": left_out},
        "coverage": counts[ANSWERED] / (len(rows) + sum(left_out.values())),
        "rules": scores,
        **({"consistency": {"of": manner} | consistency(rows, clips)} if ways else {}),
        **({} if judged is None else {"overall": _overall(everything, rules, Path(judged), predictions.sha256)}),
        "baselines": baselines(rows) if all(row.choices for row in rows) else None,
        "spelling": spelling,
        "notes": [NOTE] * captions + _left_out_notes(scores),
        "run": predictions.provenance,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


def _left_out_notes(scores: dict[str, Any]) -> list[str]:
    return [
        f"By {rule}, {found['left_out']} of {found['left_out'] + found['n']} references are left out: they have no "
        "words after normalisation."
        for rule, found in scores.items()
        if found.get("left_out")
    ]


def _ways(run: dict[str, Any]) -> tuple[str | None, str]:
    """The group of a run that asks its questions in several ways, and what these are called; `None` for other runs."""
    if run.get("shuffled_orders"):
        return ORDER, "orders of the options"
    return (WORDING, "wordings") if run.get("paraphrases_sha256") else (None, "")


def _without_open(rows: list[Prediction], title: str, without_open: bool) -> tuple[list[Prediction], str]:
    """
    The rows that rules can score, and their title. Raises `ValueError` if open questions are among them and
    `without_open` is false.
    """
    others = [row for row in rows if not row.is_open]
    open_ids = [row.id for row in rows if row.is_open]
    if not open_ids or not others:  # with open questions only, the rules report what they need
        return rows, title
    if not without_open:
        raise ValueError(
            f"{some(open_ids)} of {len(rows)} are open: no rule can tell whether their replies are right. Have "
            "`falcon3-audio judge` rate them and give its folder with --judged, or score only the others with "
            "--without-open."
        )
    return others, f"{title} without its {len(open_ids)} open questions"


def _overall(rows: list[Prediction], rules: Sequence[str], folder: Path, sha256: str) -> dict[str, Any]:
    """Rules and judge combined, for each rule, see judged.py."""
    shares, judge = read_judged(folder, sha256)
    clips, closed = clip_numbers([row.audio for row in rows]), [row for row in rows if not row.is_open]
    right = {rule: {row.id: RULES[rule](row) is Verdict.RIGHT for row in closed} for rule in rules if rule in RULES}
    return {"rules": {rule: overall(rows, known, shares, clips) for rule, known in right.items()}, "judge": judge}


def _benchmark(name: str | None, predictions: Predictions) -> str:
    known = predictions.provenance.get("benchmark")
    if name and known and name != known:
        raise ValueError(f"{predictions.path} is a run of {known!r}, not of {name!r}.")
    found = name or known
    if found not in BENCHMARKS:
        got = f"is of the unknown benchmark {found!r}" if found else "does not name its benchmark"
        raise ValueError(f"{predictions.path} {got}; give it with --benchmark: {', '.join(BENCHMARKS)}.")
    return found


def count(rows: Sequence[Prediction]) -> dict[str, int]:
    """Questions by status; "empty" ones are among the answered."""
    statuses = Counter(row.status for row in rows)
    empty = sum(row.reply is not None and not row.reply.strip() for row in rows)
    return {"questions": len(rows), "empty": empty} | {name: statuses[name] for name in (ANSWERED, FAILED, MISSING)}


def baselines(rows: Sequence[Prediction]) -> dict[str, Any]:
    """
    The accuracies without listening, over all rows: always the option at one position, always the longest (the first
    of those), and the expectation for a random one. An option that a question has twice is right at both positions.
    """
    width = max(len(row.choices) for row in rows)
    positions = [
        sum(row.choices[number : number + 1] == (row.answer,) for row in rows) / len(rows) for number in range(width)
    ]
    return {
        ALWAYS: positions,
        "most frequent position": max(positions),
        "longest option": sum(max(row.choices, key=len) == row.answer for row in rows) / len(rows),
        "random option": sum(row.choices.count(str(row.answer)) / len(row.choices) for row in rows) / len(rows),
    }


def _score_by(
    rule: str, rows: Sequence[Prediction], clips: Sequence[int], breakdowns: Sequence[str], spelling: str | None
) -> dict[str, Any]:
    """Each row's result by the rule, summed over all rows and over each group."""
    part: Part
    mean: Mean
    if rule in UNITS:
        results: Results = list(zip(_errors(rule, rows, spelling), clips))
        part, mean = partial(_error_rate, UNITS[rule]), partial(_mean_error_rate, UNITS[rule])
        whole = part(results)
    elif rule in CAPTION_METRICS:
        results = list(zip(caption_results(rule, rows), clips))
        part, mean = partial(caption_score, rule), partial(mean_caption_score, rule)
        whole = part(results)
    else:
        verdicts = [RULES[rule](row) for row in rows]
        results, part, mean = list(zip(verdicts, clips)), _accuracy, _mean_accuracy
        whole = part(results) | {"verdicts": {verdict.value: verdicts.count(verdict) for verdict in Verdict}}
    found = {}
    for name in breakdowns or {name: None for row in rows for name in row.groups}:
        if any(name in row.groups for row in rows):
            members = _members(rows, results, name)
            parts = {value: part(own) for value, own in members.items()}
            found[name] = mean(list(members.values())) | {"groups": parts}
    return whole | {"breakdowns": found}


def _members(rows: Sequence[Prediction], results: Results, name: str) -> dict[str, Results]:
    """The results of each group of a breakdown, by name, in alphabetical order."""
    groups: dict[str, list[tuple[Any, int]]] = {}
    for row, result in zip(rows, results):
        groups.setdefault(row.groups.get(name, NO_GROUP), []).append(result)
    return dict(sorted(groups.items()))


def _counted(results: Results) -> tuple[list[bool], list[int]]:
    """Of the questions that the rule counts: whether each is right, and its clip."""
    counted = [(verdict == Verdict.RIGHT, clip) for verdict, clip in results if verdict != Verdict.LEFT_OUT]
    return [right for right, _ in counted], [clip for _, clip in counted]


def _accuracy(results: Results) -> dict[str, Any]:
    right, clips = _counted(results)
    share, interval = (sum(right) / len(right), share_interval(right, clips)) if right else (None, None)
    return {"n": len(right), "right": sum(right), "accuracy": share, "interval": interval}


def _mean_accuracy(parts: Sequence[Results]) -> dict[str, Any]:
    counted = [_counted(part) for part in parts]
    if not all(right for right, _ in counted):  # a rule left a whole group out: there is no mean over all groups
        return {"macro": None, "interval": None}
    macro, interval = mean_of_shares(counted)
    return {"macro": macro, "interval": interval}


def _error_rate(unit: str, results: Results) -> dict[str, Any]:
    return error_rate([counts for counts, _ in results], [clip for _, clip in results], unit)


def _mean_error_rate(unit: str, parts: Sequence[Results]) -> dict[str, Any]:
    return mean_rate([_error_rate(unit, part) for part in parts], unit)


def _errors(rule: str, rows: Sequence[Prediction], spelling: str | None) -> list[WordErrors]:
    references = [row.answer or "" for row in rows]
    hypotheses = [without_thoughts(row.reply or "") for row in rows]
    try:
        normalizers = normalizers_of(rule, [row.groups.get("language") for row in rows], spelling)
        found = count_word_errors(references, hypotheses, normalizers)
    except ImportError as error:
        raise ValueError(f"--rule {rule} needs {error.name}: pip install 'falcon3-audio[eval]'") from error
    if not any(row.words for row in found):
        raise ValueError(
            f"--rule {rule} finds no words in any of the {len(rows)} references, such as {references[0]!r}; it is for "
            "transcripts."
        )
    return found


def _beside(path: Path) -> Path:
    """
    Where the score of a prediction file goes: `score.json` for a run's, `NAME.score.json` for others, since a folder
    can contain many. Raises `ValueError` if that file is the score of another one.
    """
    if path.name == PREDICTIONS:
        return path.with_name(SCORE)
    output = path.with_name(f"{path.stem}.{SCORE}")
    if output.exists():
        try:
            scored = Path(json.loads(output.read_text(encoding="utf-8"))["predictions"]["path"]).name
        except (ValueError, KeyError, TypeError):
            scored = "something else"
        if scored != path.name:
            raise ValueError(f"{output} is the score of {scored}, not of {path.name}; give a file with --output.")
    return output


def _run(options: argparse.Namespace) -> int:
    for name in ("output", "submission"):
        if (path := getattr(options, name)) and Path(path).is_dir():
            raise ValueError(f"--{name} {path} is a folder; give the name of a file.")
    predictions = read_predictions(options.predictions, options.key)
    if options.submission:
        if not options.data:
            raise ValueError("--submission is based on the benchmark's own file; give it with --data.")
        rows, _ = questions_of(predictions, _benchmark(options.benchmark, predictions), options.data)
        write_submission(rows, Path(options.data), Path(options.submission))
        print(f"{len(rows)} replies for submission in {options.submission}")
        return 0
    result = score(
        predictions,
        options.benchmark,
        options.data,
        options.rule,
        options.spelling,
        options.without_open,
        options.judged,
    )
    show(result, Console(markup=False, highlight=False))
    output = Path(options.output) if options.output else _beside(Path(predictions.path))
    write_json(output, result)
    print(f"score saved in {output}")
    if (result["coverage"] < 1 or not_judged(result)) and not options.allow_incomplete:
        raise ValueError(
            "not every question has a reply and, if it is open, a judgement, so this is not a score of the benchmark; "
            "with --allow-incomplete the exit status is 0."
        )
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio score", description=__doc__.split("\n\n")[0])
    parser.add_argument("predictions", metavar="PREDICTIONS", help="a run's folder, or a file of predictions")
    parser.add_argument("--benchmark", choices=BENCHMARKS, help="default: the run's")
    parser.add_argument("--data", metavar="FILE", help="the benchmark's own file, for answers and missing questions")
    parser.add_argument(
        "--key", metavar="NAME", help=f"key of the replies (default: the first of {', '.join(REPLY_KEYS)})"
    )
    parser.add_argument(
        "--rule",
        action="append",
        choices=[*RULES, *UNITS, *CAPTION_METRICS],
        default=[],
        help="default: the benchmark's",
    )
    parser.add_argument("--spelling", metavar="SOURCE", help="for wer: normalizer.json, or a Whisper that has it")
    parser.add_argument("--judged", metavar="FOLDER", help="output of `judge` for the open questions, to combine both")
    parser.add_argument("--without-open", action="store_true", help="leave open questions among others to a judge")
    parser.add_argument(
        "--output", metavar="FILE", help=f"full score as JSON (default: {SCORE} or NAME.{SCORE} next to PREDICTIONS)"
    )
    parser.add_argument("--submission", metavar="FILE", help="write MMAU's submission file instead of scoring")
    parser.add_argument("--allow-incomplete", action="store_true", help="exit with 0 even if replies are missing")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        return _run(options)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
