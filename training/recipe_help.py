"""Text of `--help` for a recipe's options: this project's, and the most changed ones of transformers and TRL.

`--help-all` lists all. recipe.py does the parsing.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


DESCRIPTION = (
    "Options come from a recipe (--config) and from the command line, which overrides it. A recipe uses the same "
    "names as keys. Defaults are shown in recipe syntax; with --config, its values replace them."
)
# The trainers' options to list first, in the order of the help.
MOST_CHANGED = (
    "output_dir",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "dataloader_num_workers",
    "bf16",
    "use_cpu",
    "seed",
    "num_generations",
    "max_completion_length",
    "temperature",
    "beta",
    "logging_steps",
    "eval_strategy",
    "eval_steps",
    "save_steps",
    "save_total_limit",
)
# Our options that users should not set; so are those whose help starts with `MUST_STAY`.
FIXED = ("ddp_find_unused_parameters", "gradient_checkpointing")
MUST_STAY = "Must stay"
OF_A_VERB = {"shuffle_buffer_size": "train"}  # the others load their sets
METAVARS = {bool: "true|false", int: "N", float: "X"}


def help_text(
    options: Sequence[Any], recipe: Mapping[str, Any], parent: argparse.ArgumentParser, everything: bool
) -> str:
    """
    The help of a command that reads recipes.

    Args:
        options: the dataclasses, as for `parse_options`.
        recipe: values that replace their defaults.
        parent: has the program's name and the options that are not in recipes.
        everything: whether to list the rarely changed options of transformers and TRL.
    """
    known = {field.name: (field, kind) for group in options for field, kind in _fields(group)}
    verb = parent.prog.rpartition(" ")[2]
    own = [
        name
        for group in options
        for name in group.__annotations__
        if name in known and _can_be_set(known[name][0], verb)
    ]
    often = [name for name in MOST_CHANGED if name in known and name not in own]
    sections = {"options of this project": own, "most changed options of transformers and TRL": often}
    if everything:
        sections["all other options of transformers and TRL"] = [name for name in known if name not in {*own, *often}]
    parser = argparse.ArgumentParser(
        parent.prog,
        f"{parent.prog} --config RECIPE [--OPTION VALUE ...]",
        DESCRIPTION,
        parents=[parent],
        add_help=False,
        epilog=None
        if everything
        else f"`{parent.prog} --help-all` also lists the other options of transformers and TRL.",
    )
    for title, names in sections.items():
        section = parser.add_argument_group(title)
        for name in names:
            field, kind = known[name]
            said = _with_default(field.metadata.get("help", ""), recipe.get(name, _default(field)), name in recipe)
            section.add_argument(f"--{name}", metavar=_metavar(kind), help=said)
    return parser.format_help()


def _can_be_set(field: dataclasses.Field, verb: str) -> bool:
    is_of_verb = OF_A_VERB.get(field.name, verb) == verb
    return is_of_verb and field.name not in FIXED and not field.metadata.get("help", "").startswith(MUST_STAY)


def _fields(group: Any) -> list[tuple[dataclasses.Field, Any]]:
    kinds = get_type_hints(group)
    return [(field, kinds[field.name]) for field in dataclasses.fields(group) if field.init]


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _with_default(said: str, value: Any, is_given: bool) -> str:
    value = getattr(value, "value", value)  # of an enum
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    return (
        said
        if "default" in said.lower() and not is_given
        else f"{said} (default: {shown.replace('%', '%%') or 'empty'})".strip()
    )


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    if get_origin(kind) is list:
        return "SET ..."
    kinds = [one for one in get_args(kind) or (kind,) if one is not NoneType]
    return METAVARS.get(kinds[0], "VALUE") if len(kinds) == 1 else "VALUE"
