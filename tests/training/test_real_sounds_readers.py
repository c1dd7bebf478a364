"""What readers extract from packages: texts, languages, speakers, labels and groups; and the tables they read."""

import re
from pathlib import Path

import pytest
from tiny_debs import contents

from falcon3_audio.training.prepare.real_sounds import recordings, speech
from falcon3_audio.training.prepare.real_sounds.held_out import read_splits, split_of
from falcon3_audio.training.prepare.real_sounds.sources import Source
from falcon3_audio.training.prepare.real_sounds.tables import (
    Package,
    alike_groups,
    are_alike,
    label_rules,
    languages,
    read_packages,
    read_table,
    sound_table,
    spoken,
)


KNOWN = {package.name: package for package in read_packages()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The stand-ins, unpacked."""
    home = tmp_path_factory.mktemp("unpacked")
    for package, files in contents().items():
        for name, data in files.items():
            path = home / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return {package: home / package for package in contents()}


@pytest.fixture
def read(folders):
    def read(package: str, reader: str | None = None, validation: bool = True):
        source = Source(KNOWN[package], folders[package], folders, read_splits(validation))
        clips = list(recordings.READERS[reader or KNOWN[package].readers[0]](source))
        return {str(clip.file.relative_to(folders[package])): clip for clip in clips}

    return read


def ends(clips, ending):
    (clip,) = (clip for name, clip in clips.items() if name.endswith(ending))
    return clip


def answers(clip):
    return {fact.kind: fact.answer for fact in clip.facts}


def test_asterisk(read):
    clips = read("asterisk-core-sounds-en-wav")
    assert not any("beep" in name or "silence" in name for name in clips)
    assert answers(ends(clips, "digits/7.wav")) == {
        "language": "English",
        "speaker": "a woman speaking English",
        "number": "seven",
    }
    texts = {
        "hello.wav": "hello",
        "vm-Family.wav": "family",
        "phonetic/a_p.wav": "alpha",
        "digits/day-1.wav": "Monday",
    }
    for name, text in {**texts, "digits/mon-3.wav": "April"}.items():
        assert ends(clips, name).labels["phrase"] == text == answers(ends(clips, name))["transcription"]
    assert "phrase" not in ends(clips, "agent-pass.wav").labels
    french = read("asterisk-core-sounds-fr-wav")
    assert ends(french, "digits/7.wav").labels == {"language": "French", "number": "seven", "speaker": "woman"}
    assert "phrase" not in answers(ends(french, "hello.wav"))


@pytest.mark.parametrize(
    "number, name", [(0, "zero"), (19, "nineteen"), (20, "twenty"), (90, "ninety"), (21, ""), (100, "")]
)
def test_number_names(number, name):
    assert speech.number_name(number) == name


def test_fillets(read):
    clips = read("fillets-ng-data-cs")
    assert len(clips) == 6 * 8  # a line with a placeholder is left out
    clip = ends(clips, "level0-1.ogg")
    assert clip.labels == {
        "language": "Czech",
        "text": "Česky 1 level0.",
        "english": 'English 1 of "level0".',
        "speaker": "woman",
    }
    assert clip.voice == "fillets/cs/small" and clip.group == "fillets/deck 0"
    assert (
        answers(clip)["meaning"] == 'English 1 of "level0".' and answers(clip)["speaker"] == "a woman speaking Czech"
    )
    assert {c.group for c in clips.values()} == {f"fillets/deck {number}" for number in range(6)}


def test_tuxpaint(read):
    clips = read("tuxpaint-stamps-default")
    assert len(clips) == 9 * 5
    assert ends(clips, "dog_desc.ogg").labels == {"language": "English", "text": "A dog.", "english": "A dog."}
    french = ends(clips, "dog_desc_fr.ogg")
    assert (
        french.labels["text"] == "Un dog." and answers(french)["meaning"] == "A dog." and french.voice == "tuxpaint/fr"
    )
    sounds = read("tuxpaint-stamps-default", "labelled")
    assert ends(sounds, "mammals/dog.ogg").labels == {"sound": "a dog", "trust": "A"}
    assert len(sounds) == 9 and ends(sounds, "pig.ogg").group == "tuxpaint-stamps-default/a pig or boar"


def test_klettres_and_ktuberling(read):
    letters = read("klettres-data")
    assert {clip.voice for clip in letters.values()} == {"klettres/en", "klettres/en_GB", "klettres/cs"}
    assert answers(ends(letters, "cs/alpha/b.ogg"))["letter"] == "B"
    things = read("ktuberling-data")
    assert ends(things, "da/egypt_sphynx.wav").labels == {"language": "Danish", "english": "sphinx"}
    assert ends(things, "da/moon_fallingstar.wav").labels["english"] == "falling star"
    assert ends(things, "da/eye2.wav").labels["english"] == "eye"
    assert not any("tux-" in name for name in things)
    assert "phrase" in answers(ends(things, "en/hat.wav")) and "phrase" not in answers(ends(things, "de/hat.wav"))


def test_hedgewars(read):
    clips = read("hedgewars-data")
    assert not any("Russian_pl" in name or name.endswith("Ow1.ogg") for name in clips)
    assert answers(ends(clips, "Classic/Youllregretthat.ogg"))["phrase"] == "You'll regret that"
    assert answers(ends(clips, "British/Melon.ogg")) == {"language": "English"}  # ad-libbed, so no text
    assert ends(clips, "British/Laugh.ogg").labels["sound"] == "laughter"
    assert ends(clips, "British/Laugh.ogg").group == "hedgewars/British"


def test_pocketsphinx(read):
    clips = read("pocketsphinx-testdata")
    assert [clip.labels["text"] for clip in clips.values()] == ["he was not ill disposed", "said elinor"]


def test_keys_kits_and_chords(read):
    keys = read("bucklespring-data")
    assert ends(keys, "/0a-1.wav").group == ends(keys, "/02-0.wav").group == "bucklespring-data/deck 2"
    kits = read("hydrogen-drumkits")
    assert ends(kits, "ForzeeStereo/kick1.wav").labels == {"instrument": "a kick drum", "trust": "A"}
    voices = {name: ends(kits, f"{name}/kick1.wav").voice for name in ("ForzeeStereo", "The Black Pearl 1.0")}
    assert voices == {"ForzeeStereo": "hydrogen-drumkits", "The Black Pearl 1.0": "The Black Pearl 1.0"}
    validated = "Millo-Drums_v.1/kick1.wav"
    assert ends(kits, validated).voice == "Millo-Drums_v.1"
    assert ends(read("hydrogen-drumkits", validation=False), validated).voice == "hydrogen-drumkits"
    chord = ends(read("hydrogen-drumkits-effects"), "A minor_UP_01.flac")
    assert answers(chord)["strummed chord"] == "a minor chord strummed upwards"
    assert chord.group == "hydrogen-drumkits-effects/A" and len(set(chord.facts[-1].options)) == 4


def test_other_licences_within_a_package():
    package = Package("hydrogen-drumkits", "1", "", 1, "GPL-2")
    assert recordings.licence_of(package, "data/drumkits/circAfrique v4/djembe.wav") == "CC-BY-SA-3.0"
    assert recordings.licence_of(package, "memory-sound/resource/a.ogg") == "Free Art Licence"
    assert recordings.licence_of(package, "data/drumkits/ForzeeStereo/kick.wav") == "GPL-2"


def test_the_narrowest_group_decides():
    splits = {"game": "test", "game/a dog": "validation"}
    assert [split_of(g, splits) for g in ("game", "game/a cat", "game/a dog", "games")] == [
        "test",
        "test",
        "validation",
        "train",
    ]
    assert read_splits(True)["tuxpaint/en_GB"] == "validation" and "tuxpaint/en_GB" not in read_splits(False)
    assert split_of("tuxpaint/en_GB", read_splits(False)) == "train"  # "tuxpaint/en" is another voice


def test_tables():
    assert len(KNOWN) == 31 and all(re.fullmatch(r"[0-9a-f]{64}", package.sha256) for package in KNOWN.values())
    assert {reader for package in KNOWN.values() for reader in package.readers} == {*recordings.READERS, "soundfont"}
    assert all(package.needs in {"", *KNOWN} and package.licence and package.content for package in KNOWN.values())
    rules = label_rules()
    assert len(rules) == 294 and {rule.domain for rule in rules} == {"sound", "music"}
    assert {rule.trust for rule in rules} == {"A", "B"}
    assert {rule.package for rule in rules} <= {name for name, p in KNOWN.items() if "labelled" in p.readers}
    for row in read_table("held_out.tsv"):
        assert row["split"] in ("test", "validation") and row["group"]
    groups = [row["group"] for row in read_table("held_out.tsv")]
    assert len(groups) == len(set(groups))


def test_words_of_the_tables_are_labels():
    """A label misspelt in one table would silently lack a category or a twin."""
    labels = {rule.label for rule in label_rules()} | {row["label"] for row in read_table("programs.tsv")}
    labels |= {"laughter", "coughing"}  # of hedgewars
    validated = [row["group"] for row in read_table("held_out.tsv") if row["split"] == "validation"]
    for group in validated:
        package, _, rest = group.partition("/")
        if rest.startswith(("a ", "an ")):
            assert rest in labels and package in KNOWN, group
    meant = set(sound_table("categories")) | set(sound_table("families")) | set().union(*alike_groups())
    assert meant <= labels, meant - labels
    codes = set(languages())
    assert set(spoken()["teams"].values()) <= codes and set(spoken()["speakers"].values()) == {"woman"}
    assert not any("_" in name for name in languages().values())


def test_alike_labels():
    assert are_alike("a violin", "a cello") and are_alike("a dog", "a dog") and not are_alike("a dog", "a cello")


def test_sources_are_data_files_of_the_package():
    folder = Path(recordings.__file__).parent
    names = {path.name for path in folder.iterdir() if path.suffix in (".tsv", ".yaml")}
    assert names == {
        "packages.tsv",
        "labels.tsv",
        "languages.tsv",
        "programs.tsv",
        "held_out.tsv",
        "speech.yaml",
        "sounds.yaml",
    }
