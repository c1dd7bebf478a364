"""What judges said about a model's answers, as text for the terminal. The numbers come from judge.py."""

from typing import Any


def report(result: dict[str, Any]) -> str:
    """A summary of several lines."""
    low, high = result["scale"]
    blocks = {"all judges": result["all judges"]} | result["judges"] if len(result["judges"]) > 1 else result["judges"]
    lines = [f"rubric {result['rubric']!r}, {low:g} to {high:g}; 95 % intervals in brackets"]
    control = result["provenance"]["run"].get("control") or "none"
    if control != "none":
        lines.append(f"Control: {control}. This is not the model's score.")
    for name, block in blocks.items():
        lines.append(f"\n{name}: {block['judged']} of {block['n']} answers judged ({block['coverage']:.1%})")
        lines += _block_lines(block) if block["judged"] else []
    for pair in result["agreement"]:
        if pair["n"]:
            lines.append(
                f"\n{' and '.join(pair['judges'])}: Spearman {_number(pair['spearman'])}, "
                f"{pair['mean absolute difference']:.2f} points apart on average"
            )
    return "\n".join(lines)


def _block_lines(block: dict[str, Any]) -> list[str]:
    length, controlled = block["length"], block["score at equal length"]
    said = {"score": _interval(block["score"]), "score at equal length": f"none: {controlled['reason']}"}
    if controlled["value"] is not None:
        said["score at equal length"] = (
            f"{_interval(controlled)}; {controlled['per_doubling']:+.2f} points for twice the words; "
            f"{controlled['near']:.0%} of the answers have half to twice the words of their reference"
        )
    for name in ("lead over the reference", "lead at equal length"):
        if name in block and block[name]["value"] is not None:
            said[name] = _interval(block[name])
    references = length["mean words of the references"]
    beside = "" if references is None else f" (references {references:.1f})"
    said["words"] = (
        f"{length['mean words']:.1f}{beside}, Spearman of score and words {_number(length['spearman of score and words'])}"
    )
    if "order" in block:
        said["order"] = (
            f"swapping changes {block['order']['swap flips']:.1%} of the verdicts; standing first is worth "
            f"{block['order']['points for standing first']:+.2f} points"
        )
    if "claims" in block:
        said["claims"] = ", ".join(f"{count} {name}" for name, count in block["claims"].items())
    for name, value in block["by task"].get("AIR-Bench", block["by task"].get("means", {})).items():
        said[f"score: {name}"] = f"{value:.2f}"
    return [f"  {name:<25} {text}" for name, text in said.items()]


def _interval(estimate: dict[str, Any]) -> str:
    interval = estimate["interval"]
    return f"{estimate['value']:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


__all__ = ["report"]
