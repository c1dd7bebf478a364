"""Recipes: YAML files with the options of a run, and the command line that overrides them.

A recipe can start with `extends: other.yaml` (relative to its own folder) and then contains only the differences, so an
ablation shows at a glance what it changes. Unknown options are errors, both in the file and on the command line. A
model can be given in two ways, and so can the length of a run; if an overriding source uses one and the overridden source
the other, the overriding one wins.
"""

import argparse
import dataclasses
import difflib
import itertools
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from trl import TrlParser

from falcon3_audio.processing import UnreadableAudioError
from falcon3_audio.user_errors import user_errors
from falcon3_audio.yaml_files import read_yaml

from .callbacks import EXIT_CODE, Terminated
from .model_arguments import ModelArguments, check_type
from .recipe_help import help_text
from .run_folder import explain, is_write_failure


EXTENDS = "extends"
# Alternative ways of giving the same thing: the model, and the length of a run.
ALTERNATIVES = ((("model",), ("audio_model", "text_model")), (("max_steps",), ("num_train_epochs",)))

SKIP = "on_bad_audio"  # the option
HOW_TO_SKIP = f"Add --{SKIP} skip to train without such clips; `falcon3-audio check-data` lists all of them."


def read_recipe(path: str | Path) -> dict[str, Any]:
    """
    The options of a recipe, including those of the one that it extends.

    Raises:
        `OSError`: if a file cannot be read.
        `ValueError`: if it is not a YAML mapping, or extends a recipe that extends another.
    """
    inherited, own = read_extended(Path(path))
    return override(inherited, own)


def read_extended(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The mapping that a file extends (empty if none), and its own. Errors as in `read_recipe`."""
    own = read_yaml(path)
    if EXTENDS not in own:
        return {}, own
    parent = path.parent / str(own.pop(EXTENDS))
    inherited = read_yaml(parent)
    if EXTENDS in inherited:
        raise ValueError(f"{path} extends {parent}, which itself extends another file; only one level is allowed.")
    return inherited, own


def override(options: dict[str, Any], by: dict[str, Any]) -> dict[str, Any]:
    """`options | by`, without those in `options` that give in another way what `by` gives."""
    for ways in ALTERNATIVES:
        said = [names for names in ways if not by.keys().isdisjoint(names)]
        if len(said) == 1:
            others = {name for names in ways if names not in said for name in names}
            options = {name: value for name, value in options.items() if name not in others}
    return options | by


def parse_options(options: Sequence[Any], arguments: list[str] | None, prog: str) -> tuple[Any, ...]:
    """
    One instance of each dataclass in `options`, from `--config RECIPE` and the rest of the command line.

    Raises a `ValueError` for unknown options and values that the dataclasses reject, and an `OSError` for a recipe
    that cannot be read. Exits after `--help` and `--help-all`.
    """
    config = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False)
    config.add_argument("--config", metavar="RECIPE", help="YAML file of options; the command line overrides it")
    config.add_argument("-h", "--help", action="store_true", help="list the most used options")
    config.add_argument("--help-all", action="store_true", help="list all options")
    given, rest = config.parse_known_args(arguments)
    recipe = read_recipe(given.config) if given.config else {}
    check_keys(recipe, option_names(options), given.config, f" `{prog} --help-all` lists all.")
    if given.help or given.help_all:
        print(help_text(options, recipe, config, given.help_all), end="")
        config.exit()
    check_numbers(recipe, options)
    parser = _Parser(options, prog=prog, add_help=False)
    parser.set_defaults_with_config(**override(recipe, _alternatives(rest, prog)))
    *parsed, left = parser.parse_args_into_dataclasses(rest, return_remaining_strings=True)
    if left:
        raise ValueError(f"Unknown options: {' '.join(left)}. `{prog} --help-all` lists all.")
    said = {word.removeprefix("--").partition("=")[0].replace("-", "_") for word in rest if word.startswith("--")}
    for group in parsed:
        if isinstance(group, ModelArguments):
            group.given = frozenset({*recipe, *said})
    return tuple(parsed)


class _Parser(TrlParser):
    """Raises a `ValueError` for a wrong value, instead of printing all options."""

    def error(self, message: str):
        raise ValueError(f"{message}. `{self.prog} --help-all` lists all options.")


def option_names(options: Sequence[Any]) -> list[str]:
    """The options that a recipe for these dataclasses can set."""
    return [field.name for group in options for field in dataclasses.fields(group) if field.init]


def check_keys(given: dict[str, Any], known: Collection[str], where: Any, advice: str = ""):
    """Raises a `ValueError` for unknown keys, with the nearest known one for each."""
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        named = [f"--{name} (nearest: {difflib.get_close_matches(name, known, 1, 0)[0]})" for name in unknown]
        raise ValueError(f"{where} has options that do not exist: {', '.join(named)}.{advice}")


def check_numbers(given: dict[str, Any], options: Sequence[Any]):
    """
    Raises a `ValueError` for a value of another type in an option that takes a number or a bool: parsers do not look at what
    comes from YAML, except at text, which they read like the command line.
    """
    hints = {name: hint for group in options for name, hint in get_type_hints(group).items()}
    for name, value in given.items():
        kinds = get_args(hints[name]) or (hints[name],)
        if not isinstance(value, str) and {int, float, bool, type(None)}.issuperset(kinds):
            check_type(name, value, kinds)


def _alternatives(arguments: list[str], prog: str) -> dict[str, str]:
    """The options on a command line that are in `ALTERNATIVES`."""
    parser = argparse.ArgumentParser(prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in itertools.chain.from_iterable(itertools.chain(*ALTERNATIVES)):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", dest=name)
    return vars(parser.parse_known_args(arguments)[0])


def run_recipe(train: Callable[..., Any], options: Sequence[Any], arguments: list[str] | None, prog: str) -> int:
    """Calls `train` with a recipe's options; returns the exit code: 1 and a stderr line for errors users can fix."""
    goes_on = "Run the same command again to resume from the last checkpoint, if there is one."
    advice = HOW_TO_SKIP if SKIP in option_names(options) else ""
    with user_errors(prog, FloatingPointError, goes_on=goes_on, explain=partial(_explain, advice=advice)) as end:
        try:
            train(*parse_options(options, arguments, prog))
        except Terminated as error:
            print(f"{prog}: {error}", file=sys.stderr)
            return EXIT_CODE
        except RuntimeError as error:  # others are not caused by the options, and we cannot explain them
            if not is_write_failure(error):
                raise
            raise OSError(explain(error)) from error
    return end.status


def _explain(error: Exception, advice: str) -> str:
    """The message about an error that stopped a run, with `advice` if it is a clip that cannot be read."""
    message = explain(error)
    return f"{message.removesuffix('.')}. {advice}" if advice and isinstance(error, UnreadableAudioError) else message
