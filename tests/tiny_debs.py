"""Stand-ins for the Debian packages of real-sounds: names and layouts of the real ones, with short noise as clips.

`make_mirror` builds .deb files with dpkg-deb; `install_apt` puts an `apt-get` on the path that copies from there, and a
player of soundfonts (`tinysoundfont`) whose notes are sines. Each clip has different noise, so no two are copies.
"""

import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

from falcon3_audio.training.prepare.real_sounds.tables import Package, read_packages


RATE = 8000
LEVELS = [f"level{number}" for number in range(6)]  # by number modulo 32: 0 is tested, 4 validated
CRIES = ("Amazing", "Boring", "Coward", "Excellent", "Incoming", "Melon", "Reinforcements", "Youllregretthat")
NUMBERS = [str(number) for number in range(10)]
PROMPTS = ("hello", "goodbye", "invalid", "vm-Family", "phonetic/a_p", "digits/day-1", "digits/mon-3", "agent-pass")
ANIMALS = ("bear", "camel", "crow", "dog", "frog", "goat", "owl", "pig", "turkey")
STAMPS = {"en": "A {}.", "en_GB": "British {}.", "fr": "Un {}.", "nl": "Een {}.", "be": "Belarus {}."}
LETTERS = ("a", "b", "c", "d", "e", "f", "g", "h")
THINGS = ("ball", "bow", "coat", "egypt_sphynx", "moon_fallingstar", "eye2", "tux-stare", "hat", "nose", "watch")
APT = """#!/bin/sh
name=${{2%%=*}}
version=${{2#*=}}
echo "$name" >> '{log}'
deb='{mirror}'/"$name"_$(echo "$version" | sed s/:/%3a/)_all.deb
if [ "$1" = download ] && [ -f "$deb" ]; then exec cp "$deb" .; fi
echo "E: Version '$version' for '$name' was not found" >&2
exit 100
"""
PLAYER = '''
"""Plays sines, at half the level from when a note is let go."""
import numpy as np

class Synth:
    def __init__(self, samplerate):
        self.rate, self.at, self.notes = samplerate, 0, {}
    def sfload(self, path):
        self.gain = 0.0 if b"silent" in open(path, "rb").read() else 0.2
        return 1
    def program_select(self, channel, font, bank, program):
        self.program = program
    def noteon(self, channel, key, velocity):
        self.notes[key] = self.gain
    def noteoff(self, channel, key):
        self.notes.pop(key, None)
    def notes_off(self, channel=None):
        self.notes.clear()
    def generate(self, frames):
        seconds = (self.at + np.arange(frames)) / self.rate
        self.at += frames
        mono = sum((gain * np.sin(2 * np.pi * 440 * 2 ** ((key - 69) / 12) * seconds) for key, gain in self.notes.items()), np.zeros(frames))
        return memoryview(np.repeat(mono.astype(np.float32), 2).tobytes())
'''

Files = dict[str, bytes]


def noise(name: str, seconds: float = 0.6) -> bytes:
    """A wav file, different for each name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def clips(package: str, *names: str) -> Files:
    return {name: noise(f"{package}/{name}") for name in names}


def contents() -> dict[str, Files]:
    """Files by package: the smallest useful part of each."""
    return {**_speech(), **_sounds(), **_music()}


def _speech() -> dict[str, Files]:
    found = {}
    for code, voice in (("en", "en_US_f_Allison"), ("fr", "fr_CA_f_June")):
        names = [*(f"digits/{number}" for number in NUMBERS), *PROMPTS, "beep", "silence/1"]
        package = f"asterisk-core-sounds-{code}-wav"
        found[package] = clips(package, *(f"usr/share/asterisk/sounds/{voice}/{name}.wav" for name in names))
    game = "usr/share/games/fillets-ng"
    lines = [(level, f"{level}-{index}", index) for level in LEVELS for index in range(9)]
    found["fillets-ng-data"] = {
        f"{game}/script/{level}/dialogs_cs.lua": "".join(
            f'dialogId("{key}", "font_{"small" if index % 2 else "big"}", "English {index} of \\"{level}\\".")\n'
            f'dialogStr("Česky {index} {"%1" if index == 8 else level}.")\n\n'
            for at, key, index in lines
            if at == level
        ).encode()
        for level in LEVELS
    }
    found["fillets-ng-data-cs"] = clips("fillets", *(f"{game}/sound/{level}/cs/{key}.ogg" for level, key, _ in lines))
    found["tuxpaint-stamps-default"] = _stamps()
    found["klettres-data"] = _letters()
    found["ktuberling-data"] = _things()
    voices = "usr/share/games/hedgewars/Data/Sounds/voices"
    teams = ("Classic", "British", "Russian", "Russian_pl")
    cries = (f"{voices}/{team}/{cry}.ogg" for team in teams for cry in (*CRIES, "Laugh", "PoisonCough", "Ow1"))
    found["hedgewars-data"] = clips("hedgewars", *cries)
    data = "usr/share/pocketsphinx/test/data/librivox"
    found["pocketsphinx-testdata"] = clips("pocketsphinx", f"{data}/one.wav", f"{data}/two.wav") | {
        f"{data}/transcription": b"<s> he was not ill disposed </s> (one)\n<s> said elinor </s> (two)\n"
    }
    return found


def _stamps() -> Files:
    folder = "usr/share/tuxpaint/stamps/animals/mammals"
    found = clips("tuxpaint", *(f"{folder}/{animal}.ogg" for animal in ANIMALS))
    for animal in ANIMALS:
        lines = [
            f"A {animal}.",
            *(f"{code}.utf8={text.format(animal)}" for code, text in STAMPS.items() if code != "en"),
        ]
        found[f"{folder}/{animal}.txt"] = "\n".join(lines).encode()
        names = (f"{folder}/{animal}_desc{'' if code == 'en' else '_' + code}.ogg" for code in STAMPS)
        found |= clips("tuxpaint", *names)
    return found


def _letters() -> Files:
    found = {}
    for code in ("en", "en_GB", "cs", "xx"):
        paths = {letter: f"{code}/alpha/{letter}.ogg" for letter in LETTERS}
        rows = "".join(f'<sound name="{letter.upper()}" file="{path}" />\n' for letter, path in paths.items())
        found |= {f"usr/share/klettres/{code}/sounds.xml": rows.encode()}
        found |= clips("klettres", *(f"usr/share/klettres/{path}" for path in paths.values()))
    return found


def _things() -> Files:
    found = {}
    for code in ("da", "de", "fr", "en"):
        rows = "".join(f'<sound name="{thing}" file="{code}/{thing}.wav" />\n' for thing in THINGS)
        found |= {f"usr/share/ktuberling/sounds/{code}.soundtheme": rows.encode()}
        found |= clips("ktuberling", *(f"usr/share/ktuberling/sounds/{code}/{thing}.wav" for thing in THINGS))
    return found


def _sounds() -> dict[str, Files]:
    farm = "usr/share/games/megaglest/tilesets/forest/sounds"
    work = "usr/share/games/widelands/data/sound"
    names = {
        "widelands-data": [
            f"{work}/{name}.ogg"
            for name in ("farm/scythe", "hammering/hammering_01", "woodcutting/tree_falling_01", "sawmill/sawmill_01")
        ],
        "megaglest-data": [
            f"{farm}/{name}.wav"
            for name in ("rain", "rain2", "sheep1", "sheep2", "chicken", "rooster", "ele1", "bee1")
        ],
        "wesnoth-1.16-data": [
            f"usr/share/games/wesnoth/1.16/data/core/sounds/{name}.ogg"
            for name in ("ambient/birds1", "bow", "bow-puny", "dwarf-laugh", "cave-in", "bat-flapping")
        ],
        "bucklespring-data": [f"usr/share/buckle/wav/{key:02x}-{way}.wav" for key in range(16) for way in (0, 1)],
    }
    shooter = clips(
        "openarena", *(f"sound/world/{name}.wav" for name in ("wind1", "wind2", "fire1", "fire2", "waterfall"))
    )
    pk3 = zipped(shooter | clips("openarena", "sound/player/footsteps/boot1.wav") | {"read.me": b"no sound"})
    return {package: clips(package, *paths) for package, paths in names.items()} | {
        "openarena-data": {"usr/share/games/openarena/baseoa/pak0.pk3": pk3}
    }


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _music() -> dict[str, Files]:
    kits, drums = "usr/share/hydrogen/data/drumkits", ("kick", "snare", "hihat", "tom1", "crash", "cowbell")
    names = ("The Black Pearl 1.0", "Millo-Drums_v.1", "ForzeeStereo")
    strums = (
        f"{kits}/belofilms_GuitarStrums/{root} {mode}_{stroke}_01.flac"
        for root in ("C", "D", "A")
        for mode in ("major", "minor")
        for stroke in ("DOWN", "UP")
    )
    fonts = ("fluid-soundfont-gm", "musescore-general-soundfont", "timgm6mb-soundfont")
    return {
        "hydrogen-drumkits": clips(
            "kits", *(f"{kits}/{kit}/{drum}{n}.wav" for kit in names for drum in drums for n in (1, 2))
        ),
        "hydrogen-drumkits-effects": clips("strums", *strums),
    } | {font: {f"usr/share/sounds/sf2/{font}.sf2": font.encode()} for font in fonts}


def make_mirror(folder: Path, files: Mapping[str, Files] | None = None) -> tuple[Package, ...]:
    """Builds a .deb file of each package in `folder`; returns the packages as a table would list them."""
    files = contents() if files is None else files
    known = {package.name: package for package in read_packages()}
    return tuple(make_deb(folder, known[name], files[name]) for name in known if name in files)


def make_deb(folder: Path, package: Package, files: Files) -> Package:
    tree = folder / f"tree-{package.name}"
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "DEBIAN").mkdir(parents=True)
    control = f"Package: {package.name}\nVersion: {package.version}\nArchitecture: all\n"
    (tree / "DEBIAN" / "control").write_text(
        control + "Maintainer: none <none@example.com>\nDescription: a stand-in\n"
    )
    deb = folder / f"{package.stem}.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb], check=True, capture_output=True)
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return Package(**{**vars(package), "sha256": digest})


def install_apt(folder: Path, mirror: Path, monkeypatch) -> Path:
    """Installs an `apt-get` for the mirror, and the player; returns the file with the names of requested packages."""
    folder.mkdir(exist_ok=True)
    log = folder / "asked.txt"
    log.touch()
    program = folder / "apt-get"
    program.write_text(APT.format(log=log, mirror=mirror))
    program.chmod(0o755)
    (folder / "tinysoundfont.py").write_text(PLAYER)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "tinysoundfont", raising=False)
    return log
