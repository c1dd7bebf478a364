"""Renders one model card, to a file or to the terminal.

    falcon3-audio card model_cards/facts/falcon3-audio-1b.yaml --repo-id ORG/NAME
    falcon3-audio card RUN --checkpoint MERGED --repo-id ORG/NAME --output README.md

SOURCE is a facts file, or the folder of a run, of which the card says what was recorded. Results are those under that repo_id in
results.json, or in `--results FILE`, which `falcon3-audio results add --file FILE` writes.
"""

import argparse
import sys
from pathlib import Path

from falcon3_audio.user_errors import user_errors

from .card import card_for_run, render_card
from .results import RESULTS, results_of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio card", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a facts file, or the folder of a run")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="of the model on the Hub")
    parser.add_argument("--checkpoint", type=Path, help="of a run: what is published, such as the merged model")
    parser.add_argument("--base-model", metavar="ORG/BASE", help="of an adapter that does not name it itself")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of `results add --file` (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        if options.source.is_dir():
            checkpoint = options.checkpoint or options.source
            card = card_for_run(options.source, checkpoint, options.repo_id, options.base_model, options.results)
        elif options.checkpoint or options.base_model:
            raise ValueError("--checkpoint and --base-model go with the folder of a run.")
        else:
            card = render_card(options.source, results_of(options.repo_id, path=options.results), options.repo_id)
        if options.output:
            card.save(options.output)
        else:
            print(card)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
