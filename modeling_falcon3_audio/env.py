"""`falcon3-audio env`: versions and hardware to paste into a bug report. Contains no folder, host or user names."""

import argparse
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from .user_errors import user_errors


def describe_environment() -> list[tuple[str, str]]:
    """(name, value) pairs: versions of this package and its dependencies, the type of machine, its accelerators."""
    return [
        ("falcon3-audio", version("falcon3-audio")),
        ("python", platform.python_version()),
        ("platform", f"{platform.system()} {platform.release()} {platform.machine()}"),
        *((package, _version(package)) for package in _packages()),
        ("accelerators", ", ".join(_accelerators()) or "none"),
        ("CPU threads of torch", str(torch.get_num_threads())),
    ]


def _packages() -> list[str]:
    """The package's dependencies, those of its extras included, except those for developers."""
    wanted = [
        line for line in requires("falcon3-audio") or () if not re.search(r"extra == .(dev|docs|completion).", line)
    ]
    names = (re.match(r"[\w.-]+", line) for line in wanted)
    return sorted({name.group() for name in names if name} - {"falcon3-audio"} | {"vllm"})


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _accelerators() -> list[str]:
    cuda = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    mps = ["Apple GPU (mps)"] if torch.backends.mps.is_available() else []
    return [*(f"{name} (CUDA {torch.version.cuda})" for name in cuda), *mps]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio env", description=__doc__)
    parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        for what, which in describe_environment():
            print(f"{what:<22} {which}")
    return end.status


if __name__ == "__main__":
    sys.exit(main())
