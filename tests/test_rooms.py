"""Reads from the sources which room imports from which, and that no modules import each other in a cycle."""

import ast
from configparser import ConfigParser
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
# For each room, those that it imports from. `modeling` is the package itself.
MAY_IMPORT = {
    "processing": set(),
    "modeling": {"processing"},
    "evaluation": {"modeling", "processing"},
    "training": {"modeling", "processing", "evaluation", "model_cards"},
    "model_cards": {"modeling", "evaluation"},
    "serving": {"modeling", "processing", "model_cards"},
    "demo": {"modeling", "processing", "training"},
}

# The same within training, whose own modules are `run`; `real` uses all of it to build a checkpoint.
MAY_IMPORT_IN_TRAINING = {
    "run": {"data", "publishing", "studies"},
    "data": set(),
    "prepare": {"data"},
    "publishing": {"run", "data", "prepare"},
    "studies": {"run", "data"},
    "world": {"run", "prepare", "studies"},
    "tiny_backbones": {"world"},
    "real": {"run", "prepare", "publishing", "studies"},
}


def package_dirs():
    """Import name -> folder, as in setup.cfg."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["package_dir"].strip().splitlines()
    return {name.strip(): ROOT / folder.strip() for name, folder in (line.split("=") for line in lines)}


def modules():
    """Import name -> source file."""
    found = {}
    for name, folder in package_dirs().items():
        for path in folder.glob("*.py"):
            found[name if path.stem == "__init__" else f"{name}.{path.stem}"] = path
    return found


def imports(name, path):
    """Full names that a module imports when it runs; imports only for the type checker do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    skipped = {id(node) for block in checked for node in ast.walk(block)}
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def graph():
    """Module -> modules of this package that it imports."""
    known = modules()

    def module_of(name):
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name

    return {name: {module_of(other) for other in imports(name, path)} - {"", name} for name, path in known.items()}


def room_of(module):
    _, _, rest = module.partition(".")
    room = rest.split(".")[0]
    return room if room in MAY_IMPORT else "modeling"


def test_rooms_import_from_those_that_they_may(graph):
    found = {room: set() for room in MAY_IMPORT}
    for module, others in graph.items():
        found[room_of(module)] |= {room_of(other) for other in others} - {room_of(module)}
    assert found == MAY_IMPORT


def part_of_training(module):
    _, _, rest = module.partition("falcon3_audio.training")
    part = rest.strip(".").split(".")[0]
    return part if part in MAY_IMPORT_IN_TRAINING else "run"


def test_parts_of_training_import_from_those_that_they_may(graph):
    found = {part: set() for part in MAY_IMPORT_IN_TRAINING}
    for module, others in graph.items():
        if room_of(module) == "training":
            own = part_of_training(module)
            found[own] |= {part_of_training(other) for other in others if room_of(other) == "training"} - {own}
    assert found == MAY_IMPORT_IN_TRAINING


def test_the_table_for_contributors_says_the_same():
    lines = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| room |")[1].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    said = {}
    for folder, _, imported in rows:
        name = folder.strip("`/").replace("modeling_falcon3_audio", "modeling")
        if name in MAY_IMPORT:
            said[name] = set(imported.split(", ")) - {"none"}
    assert said == MAY_IMPORT


def test_no_modules_import_each_other_in_a_circle(graph):
    assert len(graph) > 150
    # A package's `__init__` imports its modules; that they import the package back is not a cycle of modules.
    inner = {name: {other for other in others if not name.startswith(f"{other}.")} for name, others in graph.items()}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_what_is_read_is_what_is_there(graph):
    """Imports that would be missing if nothing were read."""
    assert "falcon3_audio.evaluation.wilson" in graph["falcon3_audio.evaluation.intervals"]
    assert (
        "falcon3_audio.evaluation.clip_intervals" in graph["falcon3_audio.evaluation.intervals"]
    )  # inside a function
    assert "falcon3_audio.whole_files" in graph["falcon3_audio.training.world.audio_world"]


def test_files_are_short_enough_to_read_in_one_sitting():
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()}
    assert {path.relative_to(ROOT): count for path, count in lines.items() if count > 400} == {}


def test_making_sets_loads_nothing_that_trains(graph):
    """Preparing a set does not need TRL."""
    known = modules()
    begun = [name for name in known if name.startswith("falcon3_audio.training.prepare.")]
    assert "falcon3_audio.training.prepare.real_sounds.build" in begun
    loaded = {}
    while begun:
        name = begun.pop()
        # A module's package is imported before it.
        parents = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
        loaded[name] = set(imports(name, known[name]))
        begun += [other for other in {*graph[name], *parents} if other in known and other not in loaded]
    assert not {name for name, others in loaded.items() if any(other.partition(".")[0] == "trl" for other in others)}
