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
from typing import Any, NamedTuple

from trl import TrlParser

from falcon3_audio.evaluation import evaluate
from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.controls import CONTROLS
from falcon3_audio.evaluation.rules import RULES

from ..arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments
from ..checks import check_scored
from ..grpo import DECIDING_GRPO, AudioGRPOConfig, RewardArguments
from ..recipe import check_keys, option_names, override, read_extended, read_recipe
from ..run_folder import describe_recipe


class Method(NamedTuple):
    """
    How a stage is trained.

    Attributes:
        module: what runs.
        options: dataclasses of its options.
        also: options of the trainer that decide the result besides those of any method.
    """

    module: str
    options: tuple[Any, ...]
    also: tuple[str, ...] = ()


OF_BOTH = (ModelArguments, LoraArguments, DataArguments)
SFT = Method("training.sft", (*OF_BOTH, AudioSFTConfig))
GRPO = Method("training.grpo", (*OF_BOTH, RewardArguments, AudioGRPOConfig), DECIDING_GRPO)
GRPO_RECIPE = "grpo"  # key of a stage that is trained by it
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

    method: Method
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
    return make_study(path.stem, path.parent / recipe, given | {"arms": arms}, str(path), path.parent)


def make_study(name: str, recipe: Path, given: dict[str, Any], where: str, folder: Path = Path()) -> Study:
    """
    The study of a mapping with the keys of STUDY.yaml.

    Args:
        recipe: the file.
        where: names the mapping in errors; these are as of `read_study`.
        folder: where the paths of other recipes start.
    """
    base = _read_recipe(recipe, SFT)
    common = _overrides(given.get("overrides"), f"{where}, overrides", SFT)
    seeds = _seeds(given.get("seeds", [0]), where)
    base = override(base, common)
    arms = [
        _arm(str(key), arm, base, seeds, f"{where}, arm {str(key)!r}", folder) for key, arm in given["arms"].items()
    ]
    entries = given.get("evaluate") or []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: `evaluate` must be a list, got {entries!r}.")
    evaluations = [_evaluation(entry, f"{where}, evaluate entry {n}") for n, entry in enumerate(entries, 1)]
    names = [evaluation.name for evaluation in evaluations]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ValueError(f"{where} evaluates {twice[0]!r} twice; give one of the two another `name`.")
    return Study(name, arms, evaluations)


def _read_recipe(path: Path, method: Method) -> dict[str, Any]:
    recipe = read_recipe(path)
    check_keys(recipe, option_names(method.options), path)
    return recipe


def _arm(name: str, given: Any, base: dict[str, Any], seeds: list[int], where: str, folder: Path) -> Arm:
    _check_name(name, where)
    given = {"stages": given} if isinstance(given, list) else {} if given is None else given
    own = _overrides(given, where, SFT, OF_AN_ARM)
    changes = own.pop("stages", [{}])
    seeds = _seeds(own.pop("seeds", seeds), where)
    if not isinstance(changes, list) or not changes:
        raise ValueError(f"{where}: `stages` must be a list of mappings, got {changes!r}.")
    overrides, stages = [], []
    for number, change in enumerate(changes):
        place = f"{where}, stage {number + 1}" if len(changes) > 1 else where
        if isinstance(change, dict) and GRPO_RECIPE in change:
            overrides.append(change)
            stages.append((GRPO, _grpo_options(change, number, place, folder), place))
        else:
            change = _overrides(change, place, SFT)
            overrides.append(override(own, change))
            stages.append((SFT, _sft_options(override(base, own), change, number, place), place))
    return Arm(name, overrides, {seed: [_stage(*stage, seed) for stage in stages] for seed in seeds})


def _sft_options(base: dict[str, Any], change: dict[str, Any], number: int, where: str) -> dict[str, Any]:
    """All options of a stage; of a later one without those that say how the model is composed."""
    if number:
        _check_composes_nothing(change, where)
        base = {name: value for name, value in base.items() if name not in COMPOSING} | {"model": FORMER}
    return override(base, change)


def _grpo_options(change: dict[str, Any], number: int, where: str, folder: Path) -> dict[str, Any]:
    """Those of a recipe for GRPO and the stage's own: `falcon3-audio train` shares few with it."""
    if not number:
        raise ValueError(f"{where}: GRPO goes on with what a stage before it has trained, and this is the first.")
    own = _overrides(change, where, GRPO, (GRPO_RECIPE,))
    _check_composes_nothing(own, where)
    path = own.pop(GRPO_RECIPE)
    if not isinstance(path, str):
        raise ValueError(f"{where}: `{GRPO_RECIPE}` must be the path of a recipe for GRPO, got {path!r}.")
    return override(_read_recipe(folder / path, GRPO), own) | {"model": FORMER}


def _check_composes_nothing(change: dict[str, Any], where: str):
    composing = [key for key in COMPOSING if key in change]
    if composing:
        raise ValueError(
            f"{where} sets {', '.join(composing)}, but it goes on with the model of the stage before. Set what is "
            "composed in the first stage."
        )


def _stage(method: Method, options: dict[str, Any], where: str, seed: int) -> Stage:
    """Checks the options as the run will, with names in the place of folders that do not exist yet."""
    options = {"disable_tqdm": True} | options  # its lines go to a file
    options = {name: value for name, value in options.items() if name not in OURS} | {"seed": seed}
    parser = TrlParser(method.options, prog="falcon3-audio train")
    parser.set_defaults_with_config(**options, output_dir="OUT")
    try:
        with exits_as_errors():
            parsed = parser.parse_args_into_dataclasses([])
        check_scored(parsed[2], parsed[-1])  # not how many GPUs there are: a study gives each run one
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    data = tuple(source.path for source in parsed[2].train_data)
    return Stage(method, options, describe_recipe(*parsed, also=method.also), data)


def _overrides(given: Any, where: str, method: Method, also: tuple[str, ...] = ()) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping of options, got {given!r}.")
    check_keys(given, [*option_names(method.options), *also], where)
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
    compared = [known for known in rules if known in RULES]
    if rule not in compared:
        judge = "a judge scores it, which a study cannot ask"
        rates = "error rates score it, and a study compares right answers"
        known = f"its rules are {', '.join(compared)}" if compared else rates if rules else judge
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
