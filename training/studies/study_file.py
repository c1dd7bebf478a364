"""STUDY.yaml, read and checked completely before anything is trained: the runs of a study, and the settings of each.

`read_study(path)` parses the options of every run as the run itself will, so that a mistake in the last arm is found
before the first starts. Unknown keys are errors that name the nearest known one. See studies/README.md.
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
from ..checks import check_ignored, check_learning_rates, check_streaming
from ..grpo import AudioGRPOConfig, RewardArguments
from ..recipe import check_keys, check_numbers, option_names, override, read_extended, read_recipe
from ..run_folder import describe_recipe


class Method(NamedTuple):
    """
    How a stage is trained.

    Attributes:
        module: the module to run.
        options: dataclasses of its options.
    """

    module: str
    options: tuple[Any, ...]


OF_BOTH = (ModelArguments, LoraArguments, DataArguments)
SFT = Method("training.sft", (*OF_BOTH, AudioSFTConfig))
GRPO = Method("training.grpo", (*OF_BOTH, RewardArguments, AudioGRPOConfig))
GRPO_RECIPE = "grpo"  # key of a stage trained by GRPO
KEYS = ("recipe", "overrides", "arms", "seeds", "evaluate")
OF_AN_ARM = ("seeds", "stages")
# Set by the study for each run.
OURS = ("output_dir", "seed", "resume_from_checkpoint", "push_to_hub")
# Options for any model, composed here or not; the other model options say how one is composed.
OF_ANY_MODEL = ("dtype", "attn_implementation", "load_in_4bit")
COMPOSING = tuple(name for name in option_names([ModelArguments]) if name not in OF_ANY_MODEL)
FORMER = "the stage before"  # instead of its model, which does not exist yet
SOUND = "none"  # in `CONTROLS`: the question's own audio
FILES = ("data", "audio_root", "prompt_file", "paraphrases")  # options of an evaluation
ANYWHERE = {"use_cpu": True, "report_to": "none"}  # for a machine that only reads results
RULE = "content"  # of the report, as in `falcon3-audio compare`


@dataclass(frozen=True)
class Stage:
    """
    One training.

    Attributes:
        options: all options, as in a recipe; in a later stage `model` is `FORMER`.
        settings: those that affect the result (see `describe_recipe`).
        data: paths of the training sets, and paths or Hub ids of the models that it starts from.
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
        rule: the benchmark's rule by which the report counts.
        controls: "none", with the question's own audio, first.
        options: the given options of `falcon3-audio evaluate`, by their names with underscores.
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
        overrides: for each stage, the given differences from the recipe.
        stages: by seed.
    """

    name: str
    overrides: list[dict[str, Any]]
    stages: dict[int, list[Stage]]


@dataclass(frozen=True)
class Study:
    name: str
    arms: list[Arm]
    evaluations: list[Evaluation]


def read_study(path: str | Path, to_train: bool = True) -> Study:
    """
    Args:
        to_train: whether this machine must have what the options need (a GPU for bf16, say).

    Raises:
        `OSError`: for a file that cannot be read.
        `ValueError`: for an invalid study, recipe or option.
    """
    path = Path(path)
    inherited, own = read_extended(path)
    given = inherited | own
    check_keys(given, KEYS, path)
    recipe, arms = given.get("recipe"), _arms(inherited, own, str(path))
    if not isinstance(recipe, str) or not arms:
        raise ValueError(
            f"{path} needs `recipe`, a path relative to its folder, and `arms`, a mapping of names to options."
        )
    return make_study(path.stem, path.parent / recipe, given | {"arms": arms}, str(path), path.parent, to_train)


def _arms(inherited: dict[str, Any], own: dict[str, Any], where: str) -> dict[str, Any]:
    """All arms by name, without those that `false` leaves out; empty if the arms are not a mapping."""
    parts = [one.get("arms", {}) for one in (inherited, own)]
    if not all(isinstance(part, dict) for part in parts):
        return {}
    for part in parts:
        names = [str(name) for name in part]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"{where} has two arms {twice[0]!r}; give one of them another name.")
    others, mine = ({str(name): arm for name, arm in part.items()} for part in parts)
    if not inherited:
        return mine
    unknown = [name for name, arm in mine.items() if arm is False and name not in others]
    if unknown:
        raise ValueError(
            f"{where} leaves out {', '.join(unknown)}, but the arms that it inherits are {', '.join(others)}."
        )
    return {name: arm for name, arm in (others | mine).items() if arm is not False}


def make_study(
    name: str, recipe: Path, given: dict[str, Any], where: str, folder: Path = Path(), to_train: bool = True
) -> Study:
    """
    The study of a mapping with the keys of STUDY.yaml.

    Args:
        recipe: the file.
        where: names the mapping in errors; these are as in `read_study`.
        folder: base of the paths of other recipes.
        to_train: as in `read_study`.
    """
    base = _read_recipe(recipe, SFT)
    common = _overrides(given.get("overrides"), f"{where}, overrides", SFT)
    seeds = _seeds(given.get("seeds", [0]), where)
    base = override(base, common)
    arms = [
        _arm(key, arm, base, seeds, f"{where}, arm {key!r}", folder, {} if to_train else ANYWHERE)
        for key, arm in given["arms"].items()
    ]
    entries = given.get("evaluate") or []
    if not isinstance(entries, list):
        raise ValueError(f"{where}: `evaluate` must be a list, got {entries!r}.")
    evaluations = [_evaluation(entry, f"{where}, evaluate entry {n}") for n, entry in enumerate(entries, 1)]
    names = [evaluation.name for evaluation in evaluations]
    twice = [one for one in names if names.count(one) > 1]
    if twice:
        raise ValueError(f"{where} evaluates {twice[0]!r} twice; give one of them another `name`.")
    return Study(name, arms, evaluations)


def _read_recipe(path: Path, method: Method) -> dict[str, Any]:
    recipe = read_recipe(path)
    check_keys(recipe, option_names(method.options), path)
    return recipe


def _arm(
    name: str, given: Any, base: dict[str, Any], seeds: list[int], where: str, folder: Path, machine: dict[str, Any]
) -> Arm:
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
    return Arm(name, overrides, {seed: [_stage(*stage, seed, machine) for stage in stages] for seed in seeds})


def _sft_options(base: dict[str, Any], change: dict[str, Any], number: int, where: str) -> dict[str, Any]:
    """All options of a stage; in a later one without those that say how the model is composed."""
    if number:
        _check_composes_nothing(change, where)
        base = {name: value for name, value in base.items() if name not in COMPOSING} | {"model": FORMER}
    return override(base, change)


def _grpo_options(change: dict[str, Any], number: int, where: str, folder: Path) -> dict[str, Any]:
    """The options of a GRPO recipe and the stage's own: GRPO shares few with `falcon3-audio train`."""
    if not number:
        raise ValueError(f"{where}: GRPO continues training an earlier stage's model, but this stage is the first.")
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
            f"{where} sets {', '.join(composing)}, but it continues with the model of the previous stage. Set these "
            "options in the first stage."
        )


def _stage(method: Method, options: dict[str, Any], where: str, seed: int, machine: dict[str, Any]) -> Stage:
    """
    Checks the options as the run will, with placeholders for folders that do not exist yet. `machine` has those that
    depend on the machine, if it need not train.
    """
    options = {"disable_tqdm": True} | options  # the output goes to a log file
    options = {name: value for name, value in options.items() if name not in OURS} | {"seed": seed}
    parser = TrlParser(method.options, prog="falcon3-audio train")
    parser.set_defaults_with_config(**(options | machine), output_dir="OUT")
    try:
        check_numbers(options, method.options)
        with exits_as_errors():
            parsed = parser.parse_args_into_dataclasses([])
        check_ignored(parsed[2], parsed[-1])  # not the number of GPUs: a study gives each run one
        if method is SFT:
            check_learning_rates(parsed[1], parsed[-1])
            check_streaming(parsed[2], parsed[-1])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    models = (parsed[0].model, parsed[0].audio_model, parsed[0].text_model)
    data = tuple(source.path for source in parsed[2].train_data) + tuple(
        path for path in models if path not in (None, FORMER)
    )
    return Stage(method, options, describe_recipe(*parsed), data)


def _overrides(given: Any, where: str, method: Method, also: tuple[str, ...] = ()) -> dict[str, Any]:
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise ValueError(f"{where} must be a mapping of options, got {given!r}.")
    check_keys(given, [*option_names(method.options), *also], where)
    ours = [name for name in OURS if name in given]
    if ours:
        raise ValueError(f"{where} sets {', '.join(ours)}, which the study sets for each run; list seeds in `seeds`.")
    return dict(given)


def _seeds(given: Any, where: str) -> list[int]:
    right = isinstance(given, list) and given and all(type(seed) is int and 0 <= seed < 2**32 for seed in given)
    if not right or len(set(given)) < len(given):
        raise ValueError(f"{where}: `seeds` must be a list of different integers from 0 to 2**32 - 1, got {given!r}.")
    return given


def _evaluation(given: Any, where: str) -> Evaluation:
    if not isinstance(given, dict) or not {"benchmark", "data"} <= given.keys():
        raise ValueError(f"{where} must be a mapping with `benchmark` and `data`, got {given!r}.")
    check_keys(given, [*_evaluation_options(), "name", "rule", "controls"], where)
    options = dict(given)
    for key in FILES:
        if not isinstance(options.get(key, ""), str):
            raise ValueError(f"{where}: `{key}` must be a path, got {options[key]!r}.")
    name, rule = str(options.pop("name", options["benchmark"])), options.pop("rule", RULE)
    controls = options.pop("controls", [])
    _check_name(name, where)
    if not isinstance(controls, list) or any(str(control) not in CONTROLS for control in controls):
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
    """The options of `falcon3-audio evaluate` for a local model that take a value."""
    fixed = ("model", "output_dir", "control", "revision", "trust_remote_code", "endpoint", *evaluate.REMOTE_ONLY)
    shortest = ["--benchmark=jsonl", "--data=x", "--output-dir=x", "--model=x"]
    return [name for name, value in vars(evaluate.parse(shortest)).items() if name not in fixed and value is not False]


def _check_name(name: str, where: str):
    if name.startswith("report."):
        raise ValueError(f"{where}: {name!r} is a file of the study's report; give another name.")
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{where}: {name!r} must be a folder name; use only letters, digits, `-`, `_`, `+` and dots.")


@contextlib.contextmanager
def exits_as_errors() -> Iterator[None]:
    """Turns argparse's message and exit into a `ValueError`."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        raise ValueError(said.getvalue().strip().splitlines()[-1].partition("error: ")[2]) from None
    sys.stderr.write(said.getvalue())
