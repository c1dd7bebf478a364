"""Readers of recorded sounds and instruments, and the table of all readers."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from . import speech
from .clips import TRAIN, Clip, Fact
from .facts import instrument_facts, sound_facts
from .held_out import Splits, assign_splits, split_of
from .sources import Source
from .tables import LabelRule, Package, label_rules


# Keys of the keyboard are dealt into this many decks, each of which is in one split.
KEY_DECKS = 8
CHORD = re.compile(r"([A-G](?:sharp|flat)?) ?(major|minor)_(DOWN|Down|UP)_")


def labelled(source: Source) -> Iterator[Clip]:
    """Files whose names match the table of labels."""
    package = source.package
    rules = [rule for rule in label_rules() if rule.package == package.name]
    for file in source.audio_files():
        name = str(file.relative_to(source.folder))
        if rule := first_match(rules, file.name if name.startswith("unpacked/cat/") else name):
            facts = sound_facts(rule.label) if rule.domain == "sound" else instrument_facts(rule.label)
            labels = {"sound" if rule.domain == "sound" else "instrument": rule.label, "trust": rule.trust}
            voice, group = voice_and_group(source, file, rule.label)
            yield Clip(file, package.name, licence_of(package, name), rule.domain, labels, voice, group, facts)


def first_match(rules: list[LabelRule], name: str) -> LabelRule | None:
    return next((rule for rule in rules if rule.pattern.search(name)), None)


def voice_and_group(source: Source, file: Path, label: str) -> tuple[str, str]:
    """A held-out drum kit has its own voice; other files have their package's."""
    package = source.package.name
    if package == "bucklespring-data":  # a file's name begins with the code of its key
        return package, f"{package}/deck {int(file.name[:2], 16) % KEY_DECKS}"
    if package.startswith("hydrogen"):
        kit = file.parent.name
        group = f"{package}/{kit}"
        return package if split_of(group, source.splits) == TRAIN else kit, group
    return package, f"{package}/{label}"


def licence_of(package: Package, name: str) -> str:
    """Some files have another licence than their package, as its copyright file says."""
    if "memory-sound/resource" in name:
        return "Free Art Licence"
    return "CC-BY-SA-3.0" if "circAfrique" in name else package.licence


def guitar(source: Source) -> Iterator[Clip]:
    """One guitar's strummed chords."""
    package = source.package
    options = tuple(f"a {a} chord strummed {b}" for a in ("major", "minor") for b in ("downwards", "upwards"))
    for file in source.audio_files():
        found = CHORD.match(file.name)
        if not found:
            continue
        root, mode, stroke = found.groups()
        stroke = "downwards" if stroke.lower() == "down" else "upwards"
        answer = f"a {mode} chord strummed {stroke}"
        chord = Fact("strummed chord", ("Which chord is strummed, and how?",), answer, options=options)
        labels = {"instrument": "an acoustic guitar", "chord": f"{root} {mode}", "stroke": stroke, "trust": "A"}
        facts, group = [*instrument_facts("an acoustic guitar"), chord], f"{package.name}/{root}"
        yield Clip(file, package.name, package.licence, "music", labels, package.name, group, facts)


READERS: dict[str, Callable[[Source], Iterator[Clip]]] = {
    "asterisk": speech.asterisk,
    "fillets": speech.fillets,
    "tuxpaint": speech.tuxpaint,
    "klettres": speech.klettres,
    "ktuberling": speech.ktuberling,
    "hedgewars": speech.hedgewars,
    "pocketsphinx": speech.pocketsphinx,
    "guitar": guitar,
    "labelled": labelled,
}


def read_recordings(packages: Iterable[Package], folders: Mapping[str, Path], splits: Splits) -> list[Clip]:
    """The clips of all available packages, each in its split."""
    clips: list[Clip] = []
    for package in packages:
        if package.name in folders:
            source = Source(package, folders[package.name], folders, splits)
            for name in package.readers:
                clips += READERS[name](source) if name in READERS else ()
    assign_splits(clips, splits)
    return clips
