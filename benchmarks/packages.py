"""Packages for a machine with torch and a GPU but no package index: downloaded as wheels, installed next to its own.

    python -m benchmarks.packages fetch --python 3.12    # in this project's environment: wheels into .cache/wheels
    python -m benchmarks.packages install FOLDER         # on the other machine: a folder for PYTHONPATH

Downloads all requirements of the package with its `train` extra, according to the metadata installed here, in the
versions of constraints.txt, except packages that come with torch and are too large to copy. The wheels and the clone
must be small enough to be copied together. Installing needs only pip: the package itself is linked, not built.
"""

import argparse
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path


ROOT = Path(__file__).resolve().parent.parent
WHEELS = ROOT / ".cache" / "wheels"
LIMIT = 60 * 2**20  # bytes, of the wheels and the files of the clone
# Taken from the machine, with their own requirements: pyarrow's wheel already has 55 MB.
ON_THE_MACHINE = {"torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "tensorboard"}
# 10 MB, and the benchmarks need no speech synthesis.
NOT_NEEDED = {"espeakng-loader"}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12)] + ["manylinux2014_x86_64"]


def needed(python: str, name: str = "falcon3-audio", extra: str = "train") -> list[str]:
    """
    Names of the packages that `name` with its `extra` needs on Linux and this Python, except those left out above.

    Raises a `PackageNotFoundError` if one is not installed here.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), extra)]
    while waiting:
        one, extra = waiting.pop()
        if (one, extra) in seen or one in ON_THE_MACHINE | NOT_NEEDED:
            continue
        seen.add((one, extra))
        environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": extra}
        for text in distribution(one).requires or []:
            asked = Requirement(text)
            if asked.marker is None or asked.marker.evaluate(environment):
                waiting += [(canonicalize_name(asked.name), part) for part in ("", *asked.extras)]
    return sorted({one for one, _ in seen} - {canonicalize_name(name)})


def fetch(python: str) -> None:
    """Replaces the wheels in `WHEELS`. Raises a `ValueError` if they are too large, and then keeps the old ones."""
    fresh = WHEELS.with_name("wheels.new")
    shutil.rmtree(fresh, ignore_errors=True)
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(fresh)]
    command += ["--constraint", str(ROOT / "constraints.txt"), *needed(python)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"pip could not fetch the wheels: {_last_lines(done.stderr)}")
    check_size({path.name: path.stat().st_size for path in fresh.iterdir()}, size_of_clone())
    shutil.rmtree(WHEELS, ignore_errors=True)
    fresh.rename(WHEELS)
    print(f"for Python {python}, in {WHEELS.relative_to(ROOT)}; from the machine: {', '.join(sorted(ON_THE_MACHINE))}")


def size_of_clone() -> int:
    """Bytes of the files that git tracks or does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())


def check_size(wheels: dict[str, int], clone: int) -> None:
    """Prints the bytes of wheels (by name) and clone. Raises a `ValueError` if together they are over `LIMIT`."""
    total = sum(wheels.values())
    print(f"{len(wheels)} wheels of {total / 2**20:.1f} MiB and a clone of {clone / 2**20:.1f} MiB")
    if total + clone > LIMIT:
        largest = sorted(wheels, key=lambda name: -wheels[name])[:5]
        sizes = ", ".join(f"{name} {wheels[name] / 2**20:.1f} MiB" for name in largest)
        raise ValueError(
            f"together they are over {LIMIT / 2**20:.0f} MiB. Largest are {sizes}. Leave out packages that the "
            "machine has (ON_THE_MACHINE in benchmarks/packages.py)."
        )


def install(folder: Path) -> None:
    """Installs wheels and package into a folder for PYTHONPATH. Raises a `ValueError` if no wheels fit this Python."""
    wheels = sorted(WHEELS.glob("*.whl"))
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    again = f"benchmarks/on_gpu.sh --fetch --python {own}, on a machine with a package index"
    if not wheels:
        raise ValueError(f"falcon3_audio and trl are not installed, and there are no wheels in {WHEELS}: run {again}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run([*command, "--target", folder, *wheels], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"the wheels cannot be installed ({_last_lines(done.stderr)}). If they are for another Python, run {again}"
        )
    link_package(folder)


def link_package(folder: Path) -> None:
    """Makes the package importable: a folder for each of its packages, whose files are links into the clone."""
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    places = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    sources = {ROOT / source for source in places.values()}
    for name, source in places.items():
        target = folder.joinpath(*name.split("."))
        target.mkdir(parents=True)
        for path in (ROOT / source).iterdir():
            if path not in sources and path.name != "__pycache__":
                (target / path.name).symlink_to(path)


def _last_lines(text: str) -> str:
    return " ".join(" ".join(text.split("\n")[-4:]).split())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    option = commands.add_parser("fetch").add_argument
    option("--python", default=own, help="Python of the target machine (default: %(default)s)")
    commands.add_parser("install").add_argument("folder", type=Path)
    given = parser.parse_args(arguments)
    try:
        fetch(given.python) if given.command == "fetch" else install(given.folder)
    except (ValueError, OSError) as error:
        print(f"packages: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
