"""STUDY.yaml, read and checked whole before anything is trained: which runs a study is made of, and what decides each.

`read_study(path)` parses the options of every run as the run itself will, so that a mistake in the last arm is found
before the first begins. Keys that nobody knows are errors that name the nearest known one. See studies/README.md.
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl import TrlParser

from falcon3_audio.evaluation import evaluate
from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.controls import CONTROLS

from .arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from .checks import check_scored
from .recipe import check_keys, option_names, override, read_extended, read_recipe
from .run_folder import describe_recipe


OPTIONS: list[Any] = [ModelArguments, LoraArguments, DataArguments, AudioSFTConfig]
KEYS = ("recipe", "overrides", "arms", "seeds", "evaluate")
OF_AN_ARM = ("seeds", "stages")
# A study gives each run its own.
OURS = ("output_dir", "seed", "resume_from_checkpoint", "push_to_hub")
# What holds for any model, composed here or not; the other options of the model say how one is composed.
OF_ANY_MODEL = ("dtype", "attn_implementation", "load_in_4bit")
COMPOSING = tuple(name for name in option_names([ModelArguments]) if name not in OF_ANY_MODEL)
FORMER = "the stage before"  # in the place of its model, which does not exist yet
SOUND = "none"  # of `CONTROLS`: the right sound is played
RULE = "content"  # of the report, as in `falcon3-audio compare`


@dataclass(frozen=True)
class Stage:
    """
    One training.

    Attributes:
        options: as in a recipe, all of them; of a later stage `model` is `FORMER`.
        settings: of these, what decides the result (see `describe_recipe`).
        data: paths of the training sets.
    """

    options: dict[str, Any]
    settings: dict[str, Any]
    data: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """
    One entry of `evaluate`.

    Attributes:
        name: unique in the study; the name of a folder.
        rule: by which the report counts, of the benchmark's.
        controls: "none" first, where the sound is played.
        options: those of `falcon3-audio evaluate` that were given, by their names there with underscores.
    """

    name: str
    rule: str
    controls: tuple[str, ...]
    options: dict[str, Any]

    def arguments(self, model: str | Path, output: str | Path, control: str) -> list[str]:
        """The command line of `falcon3-audio evaluate`."""
        given = self.options | {"model": model, "output_dir": output, "control": control}
        return [f"--{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]


@dataclass(frozen=True)
class Arm:
    """
    Attributes:
        overrides: what differs from the recipe, of each stage, as it was given.
        stages: of each seed.
    """

    name: str
    overrides: list[dict[str, Any]]
    stages: dict[int, list[Stage]]


@dataclass(frozen=True)
class Study:
    name: str
    arms: list[Arm]
    evaluations: list[Evaluation]


def read_study(path: str | Path) -> Study:
    """
    Raises:
        `OSError`: a file that cannot be read.
        `ValueError`: what a study, a recipe or an option does not allow.
    """
    path = Path(path)
    inherited, own = read_extended(path)
    given = inherited | own
    check_keys(given, KEYS, path)
    recipe, parts = given.get("recipe"), [one["arms"] for one in (inherited, own) if "arms" in one]
    arms = {}
    if all(isinstance(part, dict) for part in parts):
        arms = {name: arm for part in parts for name, arm in part.items()}
    if inherited:
        arms = {name: arm for name, arm in arms.items() if arm is not False}
    if not isinstance(recipe, str) or not arms:
        raise ValueError(
            f"{path} needs `recipe`, a path from its own folder, and `arms`, a mapping of names to options."
        )
    return make_study(path.stem, path.parent / recipe, given | {"arms": arms}, str(path))


def make_study(name: str, recipe: Path, given: dict[str, Any], where: str) -> Study:
    """
    The study of a mapping with the keys of STUDY.yaml.

    Args:
        recipe: the file.
        where: names the mapping in errors; these are as of `read_study`.
    """
    base = read_recipe(recipe)
    check_keys(base, option_names(OPTIONS), recipe)
    common = _overrides(given.get("overrides"), f"{where}, overrides", ())
    seeds = _seeds(given.get("seeds", [0]), where)
    arms = [_arm(str(key), arm, override(base, common), seeds, where) for key, arm in given["arms"].items()]
    entries = given.get("evaluate") or []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: `evaluate` must be a list, got {entries!r}.")
    evaluations = [_evaluation(entry, f"{where}, evaluate entry {n}") for n, entry in enumerate(entries, 1)]
    names = [evaluation.name for evaluation in evaluations]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ValueError(f"{where} evaluates {twice[0]!r} twice; give one of the two another `name`.")
    return Study(name, arms, evaluations)


def _arm(name: str, given: Any, base: dict[str, Any], seeds: list[int], where: str) -> Arm:
    where = f"{where}, arm {name!r}"
    _check_name(name, where)
    given = {"stages": given} if isinstance(given, list) else {} if given is None else given
    own = _overrides(given, where, OF_AN_ARM)
    stages = own.pop("stages", [{}])
    seeds = _seeds(own.pop("seeds", seeds), where)
    if not isinstance(stages, list) or not stages:
        raise ValueError(f"{where}: `stages` must be a list of mappings, got {stages!r}.")
    places = [f"{where}, stage {n}" if len(stages) > 1 else where for n in range(1, len(stages) + 1)]
    changes = [_overrides(stage, place, ()) for stage, place in zip(stages, places)]
    for change, place in zip(changes[1:], places[1:]):
        composing = [key for key in COMPOSING if key in change]
        if composing:
            raise ValueError(
                f"{place} sets {', '.join(composing)}, but it goes on with the model of the stage before. Set what is "
                "composed in the first stage."
            )
    options = [_stage_options(override(base, own), change, n) for n, change in enumerate(changes)]
    overrides = [override(own, change) for change in changes]
    stages = {seed: [_stage(*pair, seed) for pair in zip(options, places)] for seed in seeds}
    return Arm(name, overrides, stages)


def _stage_options(base: dict[str, Any], change: dict[str, Any], number: int) -> dict[str, Any]:
    if number:
        base = {name: value for name, value in base.items() if name not in COMPOSING} | {"model": FORMER}
    options = {"disable_tqdm": True} | override(base, change)  # its lines go to a file
    return {name: value for name, value in options.items() if name not in OURS}


def _stage(options: dict[str, Any], where: str, seed: int) -> Stage:
    """Checks the options as the run will, with names in the place of folders that do not exist yet."""
    options = options | {"seed": seed}
    parser = TrlParser(OPTIONS, prog="falcon3-audio train")
    parser.set_defaults_with_config(**options, output_dir="OUT")
    try:
        with exits_as_errors():
            parsed = parser.parse_args_into_dataclasses([])
        check_scored(*parsed[2:])  # not how many GPUs there are: a study gives each run one
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Stage(options, describe_recipe(*parsed), tuple(source.path for source in parsed[2].train_data))


def _overrides(given: Any, where: str, also: tuple[str, ...]) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping of options, got {given!r}.")
    check_keys(given, [*option_names(OPTIONS), *also], where)
    ours = [name for name in OURS if name in given]
    if ours:
        raise ValueError(f"{where} sets {', '.join(ours)}, which a study gives each run itself; `seeds` are its list.")
    return dict(given)


def _seeds(given: Any, where: str) -> list[int]:
    right = isinstance(given, list) and given and all(type(seed) is int and seed >= 0 for seed in given)
    if not right or len(set(given)) < len(given):
        raise ValueError(f"{where}: `seeds` must be a list of different integers from 0 on, got {given!r}.")
    return given


def _evaluation(given: Any, where: str) -> Evaluation:
    if not isinstance(given, dict) or not {"benchmark", "data"} <= given.keys():
        raise ValueError(f"{where} must be a mapping with `benchmark` and `data`, got {given!r}.")
    check_keys(given, [*_evaluation_options(), "name", "rule", "controls"], where)
    options = dict(given)
    name, rule = str(options.pop("name", options["benchmark"])), options.pop("rule", RULE)
    controls = options.pop("controls", [])
    _check_name(name, where)
    if not isinstance(controls, list) or any(control not in CONTROLS for control in controls):
        raise ValueError(f"{where}: `controls` must be a list of {', '.join(CONTROLS)}; got {controls!r}.")
    evaluation = Evaluation(name, rule, tuple(dict.fromkeys([SOUND, *controls])), options)
    try:
        with exits_as_errors():
            evaluate.parse(evaluation.arguments("model", "output", SOUND))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    rules = BENCHMARKS[options["benchmark"]].rules
    if rule not in rules:
        known = f"its rules are {', '.join(rules)}" if rules else "a judge scores it, which a study cannot ask"
        raise ValueError(f"{where}: {options['benchmark']} is not scored by {rule!r}: {known}.")
    return evaluation


def _evaluation_options() -> list[str]:
    """The options of `falcon3-audio evaluate` that say how a local model is asked."""
    fixed = ("model", "output_dir", "control", "revision", "trust_remote_code", "endpoint", *evaluate.REMOTE_ONLY)
    shortest = ["--benchmark=jsonl", "--data=x", "--output-dir=x", "--model=x"]
    return [name for name in vars(evaluate.parse(shortest)) if name not in fixed]


def _check_name(name: str, where: str):
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{where}: {name!r} is to name a folder; take letters, digits, `-`, `_`, `+` and dots only.")


@contextlib.contextmanager
def exits_as_errors() -> Iterator[None]:
    """What argparse says before it ends the program becomes a `ValueError`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        raise ValueError(said.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from None
    sys.stderr.write(said.getvalue())
