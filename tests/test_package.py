"""What is installed: one import root, no stray top-level names, files that can be uploaded to the Hub."""

import ast
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
import soundfile
from packaging.requirements import Requirement
from tiny import SAMPLING_RATE, tone

import falcon3_audio_cli as cli


ROOT = Path(__file__).resolve().parent.parent
TRAVELLING = sorted(
    [*ROOT.glob("modeling_falcon3_audio/*falcon3_audio*.py"), *ROOT.glob("processing/*falcon3_audio*.py")]
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the source distribution, as published."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_package_and_the_command(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert top == {"falcon3_audio", "falcon3_audio_cli.py"}
    assert "falcon3_audio/processing/chat_template.jinja" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "training").rglob("*.py")}
    tables = {
        str(path.relative_to(ROOT)) for path in (ROOT / "training").rglob("*") if path.suffix in (".tsv", ".yaml")
    }
    assert tables and {f"falcon3_audio/{name}" for name in modules | tables} <= set(names)
    assert not any(name.endswith(".safetensors") for name in names)
    rest = [path for folder in ("evaluation", "model_cards") for path in (ROOT / folder).rglob("*") if path.is_file()]
    # Like the tiny backbones, a trained checkpoint is only in a clone.
    rest = [path for path in rest if not path.is_relative_to(ROOT / "model_cards" / "falcon3-audio-nano")]
    rest += [*(ROOT / "demo").glob("*.py"), *(ROOT / "serving").glob("*.py"), *(ROOT / "serving").glob("*.patch")]
    rest = {
        str(path.relative_to(ROOT)) for path in rest if "__pycache__" not in path.parts and path.name != "README.md"
    }
    assert {f"falcon3_audio/{name}" for name in rest} <= set(names)


ASK = """
import sys
from transformers import pipeline
import falcon3_audio

pipe = pipeline("audio-text-to-text", model=sys.argv[1])
print(pipe("clip.wav", text="What?", max_new_tokens=4)[0]["generated_text"], falcon3_audio.__file__, sep="|")
"""


def needed(package, extras=frozenset()):
    """Installed distributions that a package requires, without its other extras, and their requirements in turn."""
    found, waiting = {}, [(package, extras)]
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or ():
            wanted = Requirement(line)
            applies = wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in (*extras, ""))
            if applies and wanted.name not in found:
                found[wanted.name] = distribution(wanted.name)
                waiting.append((wanted.name, wanted.extras))
    return found


def test_the_wheel_alone_answers_a_question(wheel, checkpoint, tmp_path):
    """With only the requirements that it has without extras."""
    packages = tmp_path / "packages"
    zipfile.ZipFile(wheel).extractall(packages)
    for found in needed("falcon3-audio").values():
        for top in {file.parts[0] for file in found.files} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))
    assert not (packages / "trl").exists() and (packages / "soundfile.py").exists()
    soundfile.write(tmp_path / "clip.wav", tone(0.5), SAMPLING_RATE)
    code = f"import sys; sys.path.append({str(packages)!r})\n{ASK}"
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, checkpoint], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith(f"|{packages / 'falcon3_audio' / '__init__.py'}")


def test_file_names_are_unique_across_folders():
    names = [path.name for path in TRAVELLING]
    assert len(names) == len(set(names)) == 22


@pytest.mark.parametrize("path", TRAVELLING, ids=lambda path: path.name)
def test_travelling_files_import_siblings_and_transformers_only(path):
    """In a checkpoint they are in one folder, where only `from .sibling import name` works."""
    allowed = {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    tree = ast.parse(path.read_text())
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (path.parent / f"{node.module}.py").exists(), ast.unparse(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
            modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert {module.split(".")[0] for module in modules} <= allowed, ast.unparse(node)


def test_the_console_script_is_there():
    run = subprocess.run([Path(sys.executable).parent / "falcon3-audio", "--help"], capture_output=True, text=True)
    assert run.returncode == 0 and "compose" in run.stdout


def test_it_says_which_version_it_is(capsys):
    assert cli.main(["--version"]) == 0
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert capsys.readouterr().out == f"falcon3-audio {config['metadata']['version']}\n"


def test_the_type_checker_sees_a_wrong_call_from_one_room_into_another(tmp_path):
    """In a tree of links like that of `make check`, plus one file; `py.typed` enables it for users of the wheel."""
    subprocess.run(["make", "links", f"LINKS={tmp_path / 'links'}"], cwd=ROOT, check=True, capture_output=True)
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from falcon3_audio.evaluation.rules import is_right\nfrom falcon3_audio.peak_memory import peak_memory\n"
        "peak_memory('cpu', 1)\nis_right(1, 2, bogus=5)\n"
    )
    # The rest of the configuration is that of `make check`; analysing these two from scratch takes longest.
    config = tmp_path / "setup.cfg"
    config.write_text((ROOT / "setup.cfg").read_text() + "\n[mypy-numpy.*,huggingface_hub.*]\nfollow_imports = skip\n")
    options = ["--config-file", str(config), "--cache-dir", str(tmp_path / "cache"), "--follow-imports=silent"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(wrong)],
        cwd=ROOT,
        env={"MYPYPATH": str(tmp_path / "links"), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
    )
    assert 'Too many arguments for "peak_memory"' in run.stdout
    assert 'Unexpected keyword argument "bogus" for "is_right"' in run.stdout
    assert "Cannot find implementation" not in run.stdout
