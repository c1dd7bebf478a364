"""The input of readers, and what they share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .clips import Clip, Fact
from .facts import language_fact
from .held_out import Splits
from .tables import Package


AUDIO_SUFFIXES = {".wav", ".ogg", ".flac", ".oga"}


@dataclass(frozen=True)
class Source:
    """
    An unpacked package.

    Args:
        folder: of its files.
        folders: of all packages, by name; a reader may need those of `package.needs`.
        splits: of held_out.py.
    """

    package: Package
    folder: Path
    folders: Mapping[str, Path]
    splits: Splits

    def audio_files(self) -> Iterator[Path]:
        """Sorted by path; links, which are duplicates, are left out."""
        files = (path for path in self.folder.rglob("*") if path.suffix in AUDIO_SUFFIXES)
        yield from sorted(path for path in files if path.is_file() and not path.is_symlink())

    def speech(self, file: Path, voice: str, language: str, facts: list[Fact], **labels: str) -> Clip:
        """A clip of a voice; empty labels are left out."""
        known = {"language": language, **{key: value for key, value in labels.items() if value}}
        package, all_facts = self.package, [language_fact(language), *facts]
        return Clip(file, package.name, package.licence, "speech", known, voice, voice, all_facts)
