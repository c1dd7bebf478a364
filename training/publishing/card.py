"""Renders one model card, to a file or to the terminal.

    falcon3-audio card model_cards/facts/falcon3-audio-1b.yaml --repo-id ORG/NAME
    falcon3-audio card RUN --checkpoint MERGED --repo-id ORG/NAME --output README.md

SOURCE is a facts file, or the folder of a run, whose records the card reports. Results are those of that repo_id in
results.json, or in `--results FILE`, written by `falcon3-audio results add --file FILE`.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from falcon3_audio.model_cards import render_card
from falcon3_audio.model_cards.card_facts import check_facts, describe_settings, describe_source
from falcon3_audio.model_cards.results import RESULTS, results_of
from falcon3_audio.model_cards.sources import DATASETS, REAL_SOUNDS
from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import whole_file
from falcon3_audio.yaml_files import read_yaml

from ..prepare.real_sounds.tables import read_packages
from ..recipe import read_recipe
from .run_facts import facts_of_run


def card_for_run(
    run_dir: str | Path,
    checkpoint_dir: str | Path,
    repo_id: str,
    base_model: str | None = None,
    results: str | Path = RESULTS,
) -> ModelCard:
    """
    The card of a run's output, with the results in results.json that were measured with exactly these files.

    Args:
        run_dir: the run's folder. Without a recipe.yaml there, the card says that the training was not recorded.
        checkpoint_dir: the published files: a plain checkpoint, or an adapter with its processor.
        repo_id: ORG/NAME on the Hub.
        base_model: Hub id of an adapter's base model, if the adapter does not name it itself.
        results: results.json, or another file that `results.add_result` wrote.

    Raises:
        `ValueError`: if an adapter's base model is not on the Hub, the run has not finished, or results.json has a
            result under `repo_id` that was measured with other files.
        `OSError`: if files are missing.
    """
    facts = facts_of_run(Path(run_dir), Path(checkpoint_dir), repo_id, base_model)
    return render_card(facts, results_of(repo_id, Path(checkpoint_dir), results))


def read_facts(path: str | Path, repo_id: str) -> dict[str, Any]:
    """
    The facts for `render_card`, from a file as in model_cards/facts. Settings and training sets come from the recipe
    it names.

    Raises:
        `ValueError`: if facts are missing or invalid.
        `OSError`: if a file cannot be read.
    """
    facts = read_yaml(path) | {"repo_id": repo_id}
    check_facts(facts)
    if facts["training"]["status"] not in ("planned", "trained"):
        return facts
    recipe_path = files("falcon3_audio.training") / "recipes" / facts["training"]["recipe"]
    recipe = read_recipe(Path(str(recipe_path)))
    unknown = [source["path"] for source in recipe["train_data"] if source["path"] not in DATASETS]
    if unknown:
        raise ValueError(f"{recipe_path} trains on {', '.join(unknown)}; sources.py knows {', '.join(DATASETS)}.")
    facts["training"] |= describe_settings(recipe)
    facts["data"] = [describe_source(source, DATASETS[source["path"]]) for source in recipe["train_data"]]
    if any(source["path"].startswith(REAL_SOUNDS) for source in recipe["train_data"]):
        facts["packages"] = [(one.name, one.version, one.licence) for one in read_packages()]
    return facts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio card", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a facts file, or the folder of a run")
    parser.add_argument("--repo-id", required=True, metavar="ORG/NAME", help="of the model on the Hub")
    parser.add_argument("--checkpoint", type=Path, help="for a run: the published files, such as the merged model")
    parser.add_argument("--base-model", metavar="ORG/BASE", help="base model of an adapter that does not name it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="of `results add --file` (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file to write (default: the terminal)")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        if options.source.is_dir():
            checkpoint = options.checkpoint or options.source
            card = card_for_run(options.source, checkpoint, options.repo_id, options.base_model, options.results)
        elif options.checkpoint or options.base_model:
            raise ValueError("--checkpoint and --base-model need the folder of a run.")
        else:
            card = render_card(
                read_facts(options.source, options.repo_id), results_of(options.repo_id, path=options.results)
            )
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(options.output) as file:
                file.write(str(card).encode())
        else:
            print(card)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
