"""The tables next to this file: packages, labels, languages, spoken words, and what labels mean."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml


HERE = Path(__file__).resolve().parent
SOUNDFONT = "soundfont"  # the reader of packages that are played


@dataclass(frozen=True)
class Package:
    """
    A Debian package, of which one version is known.

    Args:
        sha256: of the .deb file.
        megabytes: of the .deb file.
        readers: of its recordings (recordings.py); `"soundfont"` if it has none.
        needs: another package, without which it is useless.
        content: for people.
    """

    name: str
    version: str
    sha256: str
    megabytes: float
    licence: str
    readers: tuple[str, ...] = ()
    needs: str = ""
    content: str = ""

    @property
    def stem(self) -> str:
        """The stem of the file's name, as apt writes it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_all"


@dataclass(frozen=True)
class LabelRule:
    """
    Files of a package whose path the pattern matches are the sound or instrument `label`; the first match counts.

    `trust` is "A" if the package's own name or text says it, "B" if the name leaves room for doubt.
    """

    package: str
    pattern: re.Pattern
    domain: str
    label: str
    trust: str


def read_table(name: str, folder: Path = HERE) -> list[dict[str, str]]:
    """The rows of a TSV file; nothing in it is quoted."""
    with open(folder / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@cache
def read_packages() -> tuple[Package, ...]:
    return tuple(make_package(row) for row in read_table("packages.tsv"))


def make_package(row: Mapping[str, str]) -> Package:
    fixed = {key: row[key] for key in ("version", "sha256", "licence", "needs", "content")}
    readers = tuple(row["readers"].split())
    return Package(name=row["package"], megabytes=float(row["megabytes"]), readers=readers, **fixed)


@cache
def label_rules() -> tuple[LabelRule, ...]:
    rows = read_table("labels.tsv")
    return tuple(
        LabelRule(row["package"], re.compile(row["pattern"]), row["domain"], row["label"], row["trust"])
        for row in rows
    )


@cache
def languages() -> dict[str, str]:
    """Code -> name."""
    return {row["code"]: row["language"] for row in read_table("languages.tsv")}


@cache
def spoken() -> dict:
    return yaml.safe_load((HERE / "speech.yaml").read_text(encoding="utf-8"))


@cache
def sound_table(name: str) -> dict[str, str]:
    """Label -> its group, of "categories" or "families"."""
    groups = _sounds()[name]
    return {label: group for group, labels in groups.items() for label in labels}


@cache
def _sounds() -> dict:
    return yaml.safe_load((HERE / "sounds.yaml").read_text(encoding="utf-8"))


@cache
def alike_groups() -> tuple[frozenset[str], ...]:
    return tuple(map(frozenset, _sounds()["alike"]))


def are_alike(one: str, other: str) -> bool:
    """Whether two labels are too alike to be told apart."""
    return one == other or any(one in group and other in group for group in alike_groups())
