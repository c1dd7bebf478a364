"""report.md of a study: its numbers as tables, from the content of report.json."""

from collections.abc import Sequence
from typing import Any

from falcon3_audio.evaluation.paired import interval_text, points
from falcon3_audio.evaluation.score_tables import percent

from ..hearing import hearing_names
from .study_file import SOUND


SHOWN = ("task", "domain", "modality")  # groups that get a table


def as_markdown(report: dict[str, Any]) -> str:
    """report.md."""
    sections = [f"# Study {report['study']}\n"]
    if report["missing"]:
        sections.append("**Incomplete**: the tables show finished runs only.\n\n" + _missing(report["missing"]))
    for name, benchmark in report["benchmarks"].items():
        sections.append(f"## {name}\n\n{_about(benchmark)}\n\n{_accuracies(report, benchmark)}")
        sections += [_unanswered(benchmark["without_reply"])] if benchmark["without_reply"] else []
        sections += [
            _groups(benchmark, group)
            for group in SHOWN
            if any(group in arm["groups"] for arm in benchmark["arms"].values())
        ]
    if report["training"]:
        sections.append("## Training\n\n" + _trained(report))
    sections.append("## Made with\n\n" + _made(report))
    return "\n\n".join(section.strip() for section in sections) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], column: str = "---:") -> str:
    """A Markdown table; all columns but the first are right-aligned, or aligned by `column`."""
    lines = [heads, ["---", *[column] * (len(heads) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _missing(missing: Sequence[dict[str, Any]]) -> str:
    seeds: dict[tuple[str, str, str], list[str]] = {}
    for run in missing:
        said = (run["said"] or "").replace("|", "/")
        seeds.setdefault((run["arm"], run["state"], said), []).append(str(run["seed"]))
    rows = [[f"{arm}, seed {', '.join(found)}", state, said] for (arm, state, said), found in seeds.items()]
    return table(["run", "state", "message"], rows, "---")


def _about(benchmark: dict[str, Any]) -> str:
    data = ", ".join(f"{name} (sha256 {sha256[:16]})" for name, sha256 in benchmark["data_sha256"].items())
    left_out = "".join(f" {count} left out before asking, {why}." for why, count in benchmark["left_out"].items())
    return (
        f"{benchmark['questions']} questions about {benchmark['clips']} clips of {data}, prompt `{benchmark['prompt']}`, "
        f"counted by the rule `{benchmark['rule']}`.{left_out} In %, with 95 % intervals; differences in points."
    )


def _unanswered(found: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in found:
        control = "" if one["control"] == SOUND else f", {one['control']}"
        lines.append(f"- {one['arm']}, seed {one['seed']}{control}: {one['questions']} in `{one['folder']}`")
    return (
        "**Questions without a reply count as wrong.** To ask them again, remove the folder and start the study again:\n\n"
        + "\n".join(lines)
    )


def _accuracies(report: dict[str, Any], benchmark: dict[str, Any]) -> str:
    controls = benchmark["controls"]
    heads = [
        "arm",
        "seeds",
        "accuracy",
        *controls,
        f"difference to {report['reference']}",
        "",
        "memory of answering (GiB)",
    ]
    rows = []
    for name, arm in benchmark["arms"].items():
        row = [name, ", ".join(map(str, arm["seeds"])), _share(arm)]
        row += [_share(arm["controls"][control]) for control in controls]
        rows.append([*row, *_difference(arm["difference"]), _memory(arm["peak_memory_gib"])])
    return table(heads, rows)


def _share(found: dict[str, Any]) -> str:
    return f"{percent(found['accuracy'])} {interval_text(found['interval'])}"


def _difference(found: dict[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    return f"{points(found['difference'])} {interval_text(found['interval'])}", found["verdict"]


def _groups(benchmark: dict[str, Any], group: str) -> str:
    arms = benchmark["arms"]
    values = next(iter(arms.values()))["groups"][group]
    heads = [group, *(f"{value} (n = {found['questions']})" for value, found in values.items())]
    rows = []
    for name, arm in arms.items():
        rows.append([name, *(_share(arm["groups"][group][value]) for value in values)])
        if arm["difference"]:
            differ = arm["difference"]["groups"][group]
            rows.append(["difference", *(" ".join([*_difference(differ[value])]) for value in values)])
    return f"### By {group}\n\n" + table(heads, rows)


def _trained(report: dict[str, Any]) -> str:
    rows = []
    for run in report["training"]:
        loss = "-" if run["final_loss"] is None else f"{run['final_loss']:.4g}"
        steps = " + ".join(f"{stage['steps']:,}" for stage in run["stages"])
        rows.append(
            [
                f"{run['arm']}, seed {run['seed']}",
                steps,
                f"{run['seconds']:,.0f}",
                _memory(run["peak_memory_gib"]),
                loss,
                _hearing(run["stages"][-1]["evaluated"]),
            ]
        )
    heads = ["run", "steps", "training seconds", "memory of training (GiB)", "final loss (nats)", "hearing (nats)"]
    return table(heads, rows)


def _memory(gib: float | None) -> str:
    """Peak memory of a process; unknown for endpoints and older runs."""
    return "-" if gib is None else f"{gib:.2f}"


def _hearing(evaluated: dict[str, float]) -> str:
    """The last logged hearing, the cost of silence instead of the clips (see ../hearing.py); for each set."""
    lines = []
    names = hearing_names([evaluated])
    for name in names:
        interval = [evaluated[end] for end in (f"{name}_low", f"{name}_high") if end in evaluated]
        value = f"{evaluated[name]:.2f}" + (" [{:.2f}, {:.2f}]".format(*interval) if interval else "")
        lines.append(value if len(names) == 1 else f"{name.removesuffix('_hearing')}: {value}")
    return "; ".join(lines) or "-"


def _made(report: dict[str, Any]) -> str:
    lines = []
    made = report["made_with"]["runs"]
    if len(made) > 1:
        lines.append("The runs were made with more than one version of the code:")
    for one in made or [report["made_with"]["report"]]:
        versions = ", ".join(f"{name} {number}" for name, number in one["versions"].items())
        lines.append(f"commit {one['commit'] or 'unknown'}; {versions}.")
    for name, digests in report["data"].items():
        lines.append(f"Training reads {name}: sha256 {', '.join(digest[:16] for digest in digests)}.")
    return "\n\n".join(lines)
