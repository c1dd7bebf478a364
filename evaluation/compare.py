"""Two prediction files of the same questions: which model is better, by how much, and is that more than chance?

    falcon3-audio compare A B [--rule content] [--by task,difficulty] [--output DIR]

A and B are run folders or files published by others. Every question counts on both sides: missing and failed replies,
and those that the rule's own score leaves out, count as wrong, so no model gains by not answering. It prints the
counts, a verdict (statistics: paired.py), a table by group and some ids that flipped, and writes all of it to DIR as
comparison.json, with a forest plot of the differences as comparison.png and .svg. Needs neither torch nor audio.
"""

import argparse
import io
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import as_json, whole_file

from .intervals import clip_numbers
from .paired import Paired, compare_pairs, interval_text, p_text, points, verdict_line
from .predictions import ANSWERED, Prediction, Predictions, read_predictions
from .questions import some
from .rules import RULES, Verdict
from .scored_rows import NO_GROUP, answer_of, options_of, tidy


GROUPS = ("task", "category", "difficulty")  # the default breakdown: those of them that the files have
MUST_AGREE = ("benchmark", "prompt", "data_sha256", "decoding")  # keys of run.json, for a fair comparison
FLIPPED = 5  # ids printed for each direction

Pairs = Sequence[tuple[Prediction, Prediction]]


@dataclass(frozen=True)
class Side:
    """
    One of the two sides.

    Attributes:
        name: for tables and plots: the model (or the file) and the control, if it was one.
        path, sha256, provenance, key: as in `Predictions`.
        statuses, verdicts: how many of the compared questions have each.
    """

    name: str
    path: str
    sha256: str
    provenance: dict[str, Any]
    key: str | None
    statuses: dict[str, int]
    verdicts: dict[Verdict, int]


@dataclass(frozen=True)
class Comparison:
    """
    Attributes:
        groups: by the group's name (such as "task"), then by its value.
        only_a, only_b: ids of the questions that only this side has right, in A's order.
        left_out: ids that were not compared, by reason.
        warnings: what makes the comparison less fair or less certain than it looks.
    """

    rule: str
    a: Side
    b: Side
    verdict: str
    overall: Paired
    groups: dict[str, dict[str, Paired]]
    only_a: list[str]
    only_b: list[str]
    left_out: dict[str, list[str]]
    warnings: list[str]
    resamples: int
    seed: int


def compare(
    a: Predictions,
    b: Predictions,
    rule: str = "content",
    by: Sequence[str] | None = None,
    common: bool = False,
    resamples: int = 10_000,
    seed: int = 0,
    without_open: bool = False,
) -> Comparison:
    """
    Compares two files of predictions; differences are B - A.

    Args:
        rule: a name in `rules.RULES`.
        by: groups to break down by; default: those of `GROUPS` that the files have. If both files have a question's
            group, A's is used.
        common: leave out questions that are not the same in both files, instead of raising.
        resamples, seed: of the bootstrap.
        without_open: leave out open questions, which no rule can score.

    Raises:
        `ValueError`: the files have different questions, choices or an answer are missing, or no question has a group.
    """
    a, b = (replace(file, rows=tuple(map(tidy, file.rows))) for file in (a, b))  # as loaders return rows
    pairs, left_out = pair(a, b, common)
    if without_open and (open_ids := [one.id for one, _ in pairs if one.is_open]):
        pairs = [(one, other) for one, other in pairs if not one.is_open]
        left_out |= {"open": open_ids}
    if not pairs:
        raise ValueError(
            f"A ({a.path}) and B ({b.path}) hold only open questions, which `falcon3-audio judge` rates; "
            "there is nothing else to compare."
        )
    verdicts = [[RULES[rule](row) for row in side] for side in zip(*pairs)]
    right_a, right_b = (np.array([verdict is Verdict.RIGHT for verdict in side]) for side in verdicts)
    # Where only B's file names clips or groups, they count for A's row too.
    rows = [replace(one, audio=one.audio or other.audio, groups=other.groups | one.groups) for one, other in pairs]
    clips = clips_of(rows)

    def paired(rows: np.ndarray) -> Paired:
        return compare_pairs(right_a[rows], right_b[rows], clips[rows], resamples, seed)

    ids = np.array([row.id for row, _ in pairs])
    overall = paired(np.arange(len(pairs)))
    sides = [_side(file, rows, found) for file, rows, found in zip((a, b), zip(*pairs), verdicts)]
    return Comparison(
        rule=rule,
        a=sides[0],
        b=sides[1],
        verdict=verdict_line(overall),
        overall=overall,
        groups={
            name: {value: paired(rows) for value, rows in members.items()}
            for name, members in grouped(rows, by).items()
        },
        only_a=ids[right_a & ~right_b].tolist(),
        only_b=ids[right_b & ~right_a].tolist(),
        left_out=left_out,
        warnings=[f"{name}: {said}." for name, file in (("A", a), ("B", b)) for said in file.warnings]
        + warnings(sides[0], sides[1], pairs),
        resamples=resamples,
        seed=seed,
    )


def pair(a: Predictions, b: Predictions, common: bool) -> tuple[Pairs, dict[str, list[str]]]:
    """
    The rows of both files by id, in A's order, and the ids that are left out, by reason.

    Raises:
        `ValueError`: as `compare`.
    """
    of_a, of_b = ({row.id: row for row in file.rows} for file in (a, b))
    both = [(row, of_b[row.id]) for row in a.rows if row.id in of_b]
    reasons = {
        "only in A": [row.id for row in a.rows if row.id not in of_b],
        "only in B": [row.id for row in b.rows if row.id not in of_a],
        "with other choices": [one.id for one, other in both if options_of(one) != options_of(other)],
        "with another answer": [one.id for one, other in both if answer_of(one) != answer_of(other)],
    }
    left_out = {reason: ids for reason, ids in reasons.items() if ids}
    differ = {*reasons["with other choices"], *reasons["with another answer"]}
    pairs = [(one, other) for one, other in both if one.id not in differ]
    if left_out and not (common and pairs):
        found = "; ".join(f"{some(ids)} {reason}" for reason, ids in left_out.items())
        advice = (
            f"--common compares the {len(pairs)} that are the same." if pairs else "No question is the same in both."
        )
        raise ValueError(f"A ({a.path}) and B ({b.path}) are not about the same questions: {found}. {advice}")
    if not pairs:
        raise ValueError(f"A ({a.path}) and B ({b.path}) hold no questions.")
    return pairs, left_out


def clips_of(rows: Sequence[Prediction]) -> np.ndarray:
    """
    Int `(questions,)`: the same number for questions that share a clip, directly or through others: (a, b) - (b, c).

    A question without clip names has its own number.
    """
    return np.array(clip_numbers([row.audio for row in rows]))


def grouped(rows: Sequence[Prediction], by: Sequence[str] | None) -> dict[str, dict[str, np.ndarray]]:
    """For each group of `by`: the indices of its rows, by value. Rows without a value are under `NO_GROUP`."""
    known = {name for row in rows for name in row.groups}
    if by is None:
        by = [name for name in GROUPS if name in known]
    unknown = [name for name in by if name not in known]
    if unknown:
        raise ValueError(
            f"No question has the group {unknown[0]!r}; the files have {', '.join(sorted(known)) or 'none'}."
        )
    values = {name: np.array([row.groups.get(name, NO_GROUP) for row in rows]) for name in by}
    return {
        name: {str(value): np.flatnonzero(column == value) for value in np.unique(column)}
        for name, column in values.items()
    }


def _side(file: Predictions, rows: Sequence[Prediction], verdicts: Sequence[Verdict]) -> Side:
    # The last two levels of a path, or a Hub id, are enough as a name.
    name = "/".join(Path(file.provenance.get("model") or file.path).parts[-2:])
    control = file.provenance.get("control") or "none"
    return Side(
        name=name if control == "none" else f"{name} ({control})",
        path=file.path,
        sha256=file.sha256,
        provenance=file.provenance,
        key=file.key,
        statuses=dict(Counter(row.status for row in rows)),
        verdicts=dict(Counter(verdicts)),
    )


def warnings(a: Side, b: Side, pairs: Pairs) -> list[str]:
    """What a reader of the verdict must know, one sentence each."""
    found = []
    for name, side in (("A", a), ("B", b)):
        if not side.provenance:
            found.append(f"{name} has no run.json: its model, prompt, data and decoding are unknown.")
        unanswered = {status: count for status, count in side.statuses.items() if status != ANSWERED}
        if unanswered:
            counts = " and ".join(f"{count} {status}" for status, count in sorted(unanswered.items()))
            found.append(f"{name} has {counts} replies; they count as wrong.")
        skipped = sum(map(len, side.provenance.get("left_out", {}).values()))
        if skipped:
            found.append(f"{name} left {skipped} questions out before asking; they are in neither count.")
        count = side.verdicts.get(Verdict.LEFT_OUT)
        if count:
            found.append(f"{name} has {count} replies that the rule's own score leaves out; here they count as wrong.")
    if a.provenance and b.provenance:
        for key in MUST_AGREE:
            one, other = a.provenance.get(key), b.provenance.get(key)
            if one != other:
                found.append(f"{key} differs: {difference(one, other)}.")
    for field in ("prompt", "question"):
        texts = [(one.id, getattr(one, field), getattr(other, field)) for one, other in pairs]
        ids = [id for id, text, other in texts if text and other and text != other]
        if ids:
            found.append(f"The {field} is worded differently for {some(ids)}.")
    silent = [one.id for one, other in pairs if not (one.audio or other.audio)]
    if silent:
        found.append(f"No clip is named for {some(silent)}; each counts as having its own clip.")
    return found


def difference(one: Any, other: Any) -> str:
    """Describes two values of run.json; for dicts, only the keys that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        return "; ".join(f"{key}: {one.get(key)!r} in A, {other.get(key)!r} in B" for key in keys)
    return f"{one!r} in A, {other!r} in B"


def show(comparison: Comparison, console: Console) -> None:
    """Prints the comparison."""
    overall = comparison.overall
    for letter, side in (("A", comparison.a), ("B", comparison.b)):
        counts = ", ".join(f"{count} {name}" for name, count in sorted(side.verdicts.items()))
        console.print(f"{letter}: {side.name}, prompt {side.provenance.get('prompt', 'unknown')}: {counts}")
    console.print(
        f"Both right {overall.both_right}, only A {overall.only_a}, only B {overall.only_b}, "
        f"both wrong {overall.both_wrong}, by the rule {comparison.rule!r}; "
        f"{overall.n} questions about {overall.clips} clips."
    )
    for reason, ids in comparison.left_out.items():
        console.print(f"Left out: {some(ids)} {reason}.")
    for warning in comparison.warnings:
        console.print(f"Warning: {warning}")
    console.print(f"\n{comparison.verdict}", style="bold")
    if overall.clips < overall.n:
        console.print(f"McNemar, as if questions about one clip were independent: {p_text(overall.mcnemar_p)}.")
    if overall.detectable is not None:
        console.print(f"A true difference of {points(overall.detectable)} points would show in 4 of 5 such sets.")
    console.print(table(comparison))
    count = sum(len(members) for members in comparison.groups.values())
    if count:
        console.print(f"Of {count} groups, about {count / 20:.1f} would look different even if the models were equal.")
    for letter, ids in (("A", comparison.only_a), ("B", comparison.only_b)):
        more = f" and {len(ids) - FLIPPED} more" if len(ids) > FLIPPED else ""
        console.print(f"Only {letter} right: {', '.join(ids[:FLIPPED]) or 'none'}{more}")


def table(comparison: Comparison) -> Table:
    """All questions and each group: accuracies in percent, differences in points."""
    result = Table("", show_edge=False)
    for heading in ("n", "A %", "B %", "B - A", "95 % interval", "p"):
        result.add_column(heading, justify="right", no_wrap=True)
    for name, members in ({"": {"all": comparison.overall}} | comparison.groups).items():
        for value, paired in members.items():
            result.add_row(
                f"{name}: {value}" if name else value,
                str(paired.n),
                points(paired.accuracy_a),
                points(paired.accuracy_b),
                points(paired.difference),
                interval_text(paired.interval),
                p_text(paired.p).removeprefix("p = ").removeprefix("p "),
            )
        result.add_section()
    return result


def forest_plot(comparison: Comparison) -> Figure:
    """The difference with its interval, for all questions and for each group, one per line."""
    lines: list[tuple[str, Paired | None]] = [("all questions", comparison.overall)]
    for name, members in comparison.groups.items():
        lines += [(name, None), *members.items()]
    figure = Figure(figsize=(8, 1.6 + 0.28 * len(lines)))
    axis = figure.subplots()
    for height, (_, paired) in enumerate(lines):
        if paired is None:
            continue
        colour = {"A": "#d55e00", "B": "#0072b2", None: "#555555"}[paired.better]
        if paired.interval:
            axis.plot([100 * end for end in paired.interval], [height, height], color=colour, linewidth=1.5)
        # Hollow if there are too few flips for an interval.
        face = colour if paired.interval else "white"
        axis.plot([100 * paired.difference], [height], "D" if height == 0 else "o", color=colour, markerfacecolor=face)
        numbers = f"{points(paired.difference)} {interval_text(paired.interval)}"
        axis.text(1.02, height, numbers, transform=axis.get_yaxis_transform(), verticalalignment="center")
    axis.axvline(0, color="black", linewidth=0.8, zorder=0)
    axis.set_ylim(len(lines) - 0.5, -0.5)
    labels = [text if paired is None else f"{text} (n = {paired.n})" for text, paired in lines]
    axis.set_yticks(range(len(lines)), labels)
    for label, (_, paired) in zip(axis.get_yticklabels(), lines):
        label.set_fontweight("bold" if paired is None else "normal")
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(
        "A better  \u2190   accuracy of B - accuracy of A (points, 95 % interval)   \u2192  B better\n"
        "in colour: a difference is shown; hollow: too few clips differ for an interval"
    )
    title = f"A: {comparison.a.name}\nB: {comparison.b.name}\n{comparison.verdict}"
    axis.set_title(title, loc="left", fontsize="medium")
    return figure


def write(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes comparison.json, .png and .svg, each atomically and with the same bytes for the same comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"json": as_json(asdict(comparison))}
    # Names can contain dollar signs, which are not formulas here.
    with matplotlib.rc_context({"svg.hashsalt": "falcon3-audio", "text.parse_math": False}):
        for kind, metadata in (("png", None), ("svg", {"Date": None})):
            file = io.BytesIO()
            forest_plot(comparison).savefig(file, format=kind, metadata=metadata, bbox_inches="tight", dpi=150)
            contents[kind] = file.getvalue()
    written = []
    for kind, content in contents.items():
        path = folder / f"comparison.{kind}"
        with whole_file(path) as opened:
            opened.write(content)
        written.append(path)
    return written


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("a", metavar="A", help="run folder or prediction file, the baseline")
    parser.add_argument("b", metavar="B", help="run folder or prediction file; differences are B - A")
    parser.add_argument("--rule", choices=sorted(RULES), default="content", help="default: %(default)s")
    parser.add_argument(
        "--by", metavar="GROUP,...", help=f"groups to break down by (default: {','.join(GROUPS)}, if present)"
    )
    parser.add_argument("--common", action="store_true", help="leave out questions that are not the same in A and B")
    parser.add_argument("--without-open", action="store_true", help="leave out open questions, which a judge rates")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for comparison.json, .png and .svg")
    parser.add_argument("--resamples", type=int, default=10_000, help="bootstrap draws (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        comparison = compare(
            read_predictions(options.a),
            read_predictions(options.b),
            options.rule,
            options.by.split(",") if options.by else None,
            options.common,
            options.resamples,
            options.seed,
            options.without_open,
        )
        console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
        show(comparison, console)
        if options.output:
            console.print("Written:", ", ".join(str(path) for path in write(comparison, options.output)))
    return end.status


if __name__ == "__main__":
    sys.exit(main())
