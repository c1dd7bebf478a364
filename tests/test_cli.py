"""The command-line program before a verb's module is imported."""

import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import falcon3_audio_cli as cli


@pytest.mark.parametrize(("arguments", "status"), [([], 0), (["--help"], 0), (["--version"], 0), (["sing"], 2)])
def test_it_answers_without_the_package_or_anything_that_is_slow_to_load(arguments, status):
    code = (
        "import sys, falcon3_audio_cli\n"
        "status = falcon3_audio_cli.main(sys.argv[1:])\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'falcon3_audio'} & set(sys.modules)), status)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == f"[] {status}", run.stderr


def test_help_lists_the_verbs_and_others_are_an_error(capsys):
    assert cli.main([]) == 0
    said = capsys.readouterr().out
    assert all(f"  {verb:<18} {purpose}\n" in said for verb, (_, purpose) in cli.VERBS.items())
    assert cli.main(["sing"]) == 2
    assert "unknown verb 'sing'; choose one of compose" in capsys.readouterr().err


def test_a_second_interrupt_while_python_ends_prints_nothing():
    code = (
        "import atexit, os, signal, sys, time, falcon3_audio_cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background\n"
        "def interrupt(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.01)\n"
        "atexit.register(interrupt)\n"
        "cli._run_verb = interrupt\n"
        "sys.exit(cli.main())\n"
    )
    run = subprocess.run([sys.executable, "-c", code, "train"], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (130, "", "falcon3-audio train: stopped.\n")


def test_a_reader_that_goes_is_no_fault():
    code = (
        "import sys, falcon3_audio_cli as cli\n"
        "cli._run_verb = lambda *_: print('a line\\n' * 100_000) or 0\n"
        "sys.exit(cli.main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "train"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout.readline() == "a line\n"
        run.stdout.close()
        assert (run.stderr.read(), run.wait()) == ("", 141)


@pytest.mark.parametrize("module", [module for module, _ in cli.VERBS.values()])
def test_each_verb_is_a_program_that_ends_as_all_do(module):
    source = Path(find_spec(module).origin).read_text(encoding="utf-8")
    assert "def main(arguments: list[str] | None = None) -> int:" in source
    assert 'if __name__ == "__main__":\n    sys.exit(' in source
    assert "with user_errors(" in source or "return run_recipe(" in source


@pytest.mark.parametrize(
    ("verb", "missing", "advice"),
    [
        ("train", "trl", " Install it with pip install 'falcon3-audio[train]'."),
        ("evaluate", "datasets", " Install it with pip install 'falcon3-audio[eval]'."),
        ("open-asqa", "datasets.features", " Install it with pip install 'falcon3-audio[train]'."),
        ("voice-instructions", "espeakng_loader", " Install it with pip install 'falcon3-audio[train]'."),
        ("compose", "jinja2", ""),  # of no extra
        ("compose", "nowhere", ""),
    ],
)
def test_a_package_that_is_missing_is_one_line_with_the_extra_that_has_it(verb, missing, advice, monkeypatch, capsys):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", fail)
    assert cli.main([verb]) == 1
    assert capsys.readouterr().err == f"falcon3-audio {verb}: No module named {missing!r}.{advice}\n"


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("falcon3-audio com", {"compose", "compare"}),
        ("falcon3-audio --v", {"--version"}),
        ("falcon3-audio train my", {"my.yaml"}),
        ("falcon3-audio train --config my", {"my.yaml"}),
        ("falcon3-audio train --con", set()),
    ],
)
def test_the_shell_completes_verbs_and_files(line, offered, tmp_path):
    pytest.importorskip("argcomplete")
    (tmp_path / "my.yaml").touch()
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "offered"),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    code = "import falcon3_audio_cli\nraise SystemExit(falcon3_audio_cli.main())"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | asked, check=True)
    assert set((tmp_path / "offered").read_text().split()) == offered
