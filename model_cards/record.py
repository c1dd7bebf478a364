"""Adds a score to the results that model cards show.

    falcon3-audio results add runs/mmau/score.json --model ORG/NAME

It takes a file of `falcon3-audio score`, with its provenance; see results.py for what is refused. A score of the same
model on the same questions and prompt is replaced. Render the cards again afterwards (training/publishing/card.py).
`--file mine.json` keeps scores outside the package.
"""

import argparse
import sys
from pathlib import Path

from falcon3_audio.user_errors import user_errors

from .results import RESULTS, add_result


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio results", description=__doc__.split("\n\n")[0])
    add = parser.add_subparsers(required=True, metavar="add").add_parser("add", help="add a score")
    add.add_argument("score", metavar="SCORE_JSON", type=Path, help="file written by `falcon3-audio score`")
    add.add_argument("--model", required=True, metavar="ORG/NAME", help="Hub id of the measured model")
    add.add_argument(
        "--file",
        type=Path,
        default=RESULTS,
        help="results for `card --results`, created if it does not exist; default: %(default)s",
    )
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        entry = add_result(options.score, options.model, options.file)
        print(f"{entry['benchmark']} ({', '.join(entry['rules'])}) of {options.model} added to {options.file}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
