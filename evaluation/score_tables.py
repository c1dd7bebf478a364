"""Prints a score on the terminal, as text and tables. The numbers come from score.py."""

from typing import Any

from rich.console import Console
from rich.table import Table

from .caption_metrics import CAPTION_METRICS
from .judged import not_judged
from .predictions import ANSWERED, FAILED, MISSING
from .questions import some
from .rules import Verdict
from .word_errors import UNITS, WER


ALWAYS = "always option"  # a baseline by position
UNANSWERABLE = "without a right option"  # answered or not: no option is the answer, so they are wrong
VALUES = ("accuracy", *(f"{unit}_error_rate" for unit in UNITS.values()), *CAPTION_METRICS.values(), "macro")


def show(result: dict[str, Any], console: Console) -> None:
    """Prints the score: how the predictions were made, the rules side by side, and each group."""
    run, counts = result["run"], result["counts"]
    control = run.get("control") or "none"
    console.print(f"{result['benchmark']}: {run.get('model', result['predictions']['path'])}", style="bold")
    console.print(result["title"])
    if control != "none":
        console.print(f"Control: {control}. This is not the model's score.", style="bold red")
    if run:
        console.print(f"prompt {run.get('prompt', 'unknown')}, model commit {run.get('model_commit') or 'unknown'}")
    for name, digest in (result["data_sha256"] or {}).items():
        console.print(f"data {name}, sha256 {digest[:16]}")
    read = result["predictions"]
    if read["key"]:
        console.print(f"replies under {read['key']!r} in {read['path']}", soft_wrap=True)
    for warning in result["warnings"]:
        console.print(f"Warning: {warning}.", style="bold red", soft_wrap=True)
    told = [
        f"{number} {name}"
        for name, number in counts.items()
        if name in (ANSWERED, "empty", FAILED, MISSING, UNANSWERABLE)
    ]
    skipped = sum(counts["left out before asking"].values())
    console.print(
        f"{counts['questions']} questions about {result['clips']} clips: {', '.join(told)}; {skipped} left out before asking",
        soft_wrap=True,
    )
    console.print(_overall(result["rules"]))
    if "consistency" in result:
        found = result["consistency"]
        console.print(
            f"the same option in two {found['of']}: {percent(found['rate'])} % {_limits(found)} of {found['pairs']} pairs, "
            f"{found['questions']} questions",
            soft_wrap=True,
        )
    if "overall" in result:
        judges = ", ".join(result["overall"]["judge"]["judges"])
        for rule, found in result["overall"]["rules"].items():
            value = f"{percent(found['value'])} % {_limits(found)} of {found['n']} questions"
            console.print(f"with the open questions, by {rule} and the judge {judges}: {value}", soft_wrap=True)
        if ids := not_judged(result):
            console.print(f"{some(ids)} not rated by the judge count 0; `judge` asks again.", soft_wrap=True)
    if any(found["breakdowns"] for found in result["rules"].values()):
        console.print(_groups(result["rules"]))
    if result["baselines"]:
        shares = [f"{name} {percent(value)}" for name, value in result["baselines"].items() if name != ALWAYS]
        console.print(f"without listening: {', '.join(shares)}", soft_wrap=True)
    for note in result["notes"]:
        console.print(note, soft_wrap=True)
    if WER in result["rules"] and not result["spelling"]:
        console.print("Spelling as it is (no --spelling): British instead of American is an error.", soft_wrap=True)


def _overall(rules: dict[str, Any]) -> Table:
    table = Table("rule", show_edge=False)
    for heading in ("n", "%", "95 %", "unresolved", "left out"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rule, found in rules.items():
        verdicts = found.get("verdicts", {})
        left_out = verdicts.get(Verdict.LEFT_OUT.value, found.get("left_out", "-"))
        counted = [str(verdicts.get(Verdict.UNRESOLVED.value, "-")), str(left_out)]
        table.add_row(rule, str(found["n"]), percent(_value(found)), _limits(found), *counted)
    return table


def _groups(rules: dict[str, Any]) -> Table:
    """A section for each breakdown, with the mean over its groups as the last row; n counts all rows."""
    first = next(iter(rules.values()))
    table = Table("group", show_edge=False)
    for heading in ("n", *rules):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, breakdown in first["breakdowns"].items():
        means = [rule["breakdowns"][name] for rule in rules.values()]
        for value in breakdown["groups"]:
            parts = [mean["groups"][value] for mean in means]
            table.add_row(f"{name}: {value}", str(max(part["n"] for part in parts)), *map(_cell, parts))
        table.add_row(f"mean over {name}", "", *map(_cell, means), end_section=True)
    return table


def _value(found: dict[str, Any]) -> float | None:
    return next(found[key] for key in VALUES if key in found)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _limits(found: dict[str, Any]) -> str:
    return "" if found["interval"] is None else f"[{', '.join(map(percent, found['interval']))}]"


def _cell(found: dict[str, Any]) -> str:
    return f"{percent(_value(found))} {_limits(found)}"


__all__ = ["ALWAYS", "UNANSWERABLE", "percent", "show"]
