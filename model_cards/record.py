"""Adds a score to the results that model cards show.

    falcon3-audio results add runs/mmau/score.json --model ORG/NAME

Taken is what `falcon3-audio score` wrote, with its provenance; see results.py for what is refused. A score of the same
model with the same questions and prompt is replaced. The cards are then rendered again (training/publishing/card.py). `--file mine.json` keeps
scores outside of the package.
"""

import argparse
import sys
from pathlib import Path

from falcon3_audio.user_errors import user_errors

from .results import RESULTS, add_result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio results", description=__doc__.split("\n\n")[0])
    add = parser.add_subparsers(required=True, metavar="add").add_parser("add", help="add a score")
    add.add_argument("score", metavar="SCORE_JSON", type=Path, help="what `falcon3-audio score` wrote")
    add.add_argument("--model", required=True, metavar="ORG/NAME", help="the model on the Hub that was measured")
    add.add_argument(
        "--file",
        type=Path,
        default=RESULTS,
        help="made where it does not exist, for `card --results`; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        entry = add_result(options.score, options.model, options.file)
        print(f"{entry['benchmark']} ({', '.join(entry['rules'])}) of {options.model} added to {options.file}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
