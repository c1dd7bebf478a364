"""Makes transformers' own shared tests, of the installed version, importable.

They are not in the wheel, but in `tests/*.py` of the source distribution on PyPI. It is downloaded once, with pip,
into `.cache/` at the repository's root; folders below `tests/` are not in it, so `load` provides stand-ins for the
four modules that the shared tests import from there.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import transformers
from tiny import SAMPLING_RATE, tone


CACHE = Path(__file__).parents[1] / ".cache"
# Not `tests`: that is the name of the folder this file is in.
PACKAGE = "transformers_shared_tests"


class SuiteUnavailable(Exception):
    """The shared tests are not available here; says why."""


def load(*names: str) -> list[ModuleType]:
    """
    The modules `names` of transformers' tests.

    Raises `SuiteUnavailable` if the source distribution is not in the cache and cannot be downloaded.
    """
    if PACKAGE not in sys.modules:
        folder = _fetch(transformers.__version__)
        sys.modules[PACKAGE] = _module(PACKAGE, __path__=[str(folder)])
        for module in _stand_ins(folder):
            sys.modules[module.__name__] = module
    with warnings.catch_warnings():
        # Marks that transformers' own pytest settings register.
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]


def _fetch(version: str) -> Path:
    """The folder with the tests of this version; downloaded if the cache has none."""
    folder = CACHE / f"transformers-{version}-tests"
    if folder.is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
        # pip, and not a URL, so that a configured index or mirror is used.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--retries=1", "--timeout=20", "--no-binary=transformers", f"--dest={temporary}"]
        done = subprocess.run([*command, f"transformers=={version}"], capture_output=True, text=True)
        archives = list(Path(temporary).glob("*.tar.gz"))
        if done.returncode or not archives:
            reason = (done.stderr.strip().splitlines() or ["pip left no archive"])[-1]
            raise SuiteUnavailable(f"the source of transformers {version} cannot be downloaded: {reason}")
        with tarfile.open(archives[0]) as archive:
            top = archive.getnames()[0].split("/")[0]
            members = [member for member in archive if member.name.startswith(f"{top}/tests/")]
            archive.extractall(temporary, members, filter="data")
        unpacked = Path(temporary, top, "tests")
        # What `direct_transformers_import` of test_configuration_common opens.
        (unpacked / "__init__.py").touch()
        try:
            os.replace(unpacked, folder)
        except OSError:  # another run was faster
            if not folder.is_dir():
                raise
    return folder


def _module(name: str, **contents) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _stand_ins(folder: Path) -> list[ModuleType]:
    """
    Stand-ins for what the shared tests import from folders that the source distribution leaves out.

    Export tests: none; a forward whose shapes depend on the audio's length is not exported as one graph. Generation
    tests: none either, since test_modeling.py has this project's; the class must exist to be inherited from.
    """
    return [
        _module(f"{PACKAGE}.exporters", __path__=[]),
        _module(f"{PACKAGE}.exporters.test_export", ExportTesterMixin=type("ExportTesterMixin", (), {})),
        _module(f"{PACKAGE}.generation", __path__=[]),
        _module(f"{PACKAGE}.generation.test_utils", GenerationTesterMixin=type("GenerationTesterMixin", (), {})),
        _module(f"{PACKAGE}.utils", __path__=[]),
        # Values other than the defaults, which a config must accept.
        _module(
            f"{PACKAGE}.utils.test_configuration_utils",
            config_common_kwargs={
                "return_dict": False,
                "output_hidden_states": True,
                "output_attentions": True,
                "dtype": "float16",
                "chunk_size_feed_forward": 5,
                "architectures": ["Falcon3AudioEncoder"],
                "id2label": {0: "label"},
                "label2id": {"label": "0"},
                "problem_type": "regression",
            },
        ),
        # The files at these addresses are on the Hub; a tone of the same name replaces them.
        _module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: _local_sound(url, folder / "sounds")),
    ]


def _local_sound(url: str, folder: Path) -> str:
    name = url.rsplit("/", 1)[-1]
    if not name.endswith((".mp3", ".wav")):
        return url
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(name).stem}.wav"
    if not path.exists():
        soundfile.write(path, tone(1.3), SAMPLING_RATE)
    return str(path)
