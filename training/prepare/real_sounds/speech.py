"""Readers of recorded speech: who speaks which language and, if a package says so, what is said.

Each yields the clips of one package; quality.py decides later which are usable.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from .clips import Clip, Fact
from .facts import meaning_fact, number_fact, sound_facts, speaker_fact, text_facts
from .sources import Source
from .tables import languages, spoken


# Levels of the game are dealt into this many decks, each of which is in one split.
LEVEL_DECKS = 32
DIALOGUE = re.compile(r'dialogId\("([^"]+)",\s*"([^"]*)",\s*"((?:[^"\\]|\\.)*)"\)\s*dialogStr\("((?:[^"\\]|\\.)*)"\)')
SOUND = re.compile(r'<sound name="([^"]+)"\s+file="([^"]+)"')
NO_PROMPT = re.compile(r"beep|tone|monkeys|confbridge-(join|leave)")
STAMP = re.compile(r"(.+?)(_desc)?(?:_([a-z]{2}(?:_[a-zA-Z]{2})?))?\.ogg")
ROOMS = re.compile(r"^(egypt|moon|pizzeria|tv|xmas|butterflies|robot_workshop)_")
# How ktuberling's keys are written, and what they mean.
MISSPELT = {"brocolli": "broccoli", "sphynx": "sphinx"}
RUN_TOGETHER = {
    "fallingstar": "falling star",
    "palmtree": "palm tree",
    "fireengine": "fire engine",
    "moonwalker": "moon walker",
}


def asterisk(source: Source) -> Iterator[Clip]:
    """Telephone prompts: one voice per language. What is said is known if the file's name says it."""
    for file in source.audio_files():
        if "silence" in file.parts or NO_PROMPT.search(file.stem):
            continue
        parts = file.relative_to(source.folder).parts
        start = parts.index("sounds")
        voice, name = parts[start + 1], "/".join(parts[start + 2 :]).removesuffix(file.suffix)
        language, sex = languages()[voice[:2]], spoken()["speakers"].get(voice, "")
        kind, text = prompt(name, voice[:2])
        facts = [speaker_fact(sex, language)] if sex else []
        facts += prompt_facts(kind, text, language)
        yield source.speech(file, f"asterisk/{voice}", language, facts, **{kind: text, "speaker": sex})


def prompt(name: str, language: str) -> tuple[str, str]:
    """What is said in a prompt: ("number" or "phrase", text); the text is empty if it is not known."""
    group, _, key = name.rpartition("/")
    if group == "digits" and key.isdigit():
        return "number", number_name(int(key))
    return "phrase", english_prompt(name) if language == "en" else ""


def number_name(number: int) -> str:
    words, tens = spoken()["numbers"], spoken()["tens"]
    if number < len(words):
        return words[number]
    ten, rest = divmod(number, 10)
    return tens[ten - 2] if rest == 0 and 2 <= ten <= 9 else ""


def english_prompt(name: str) -> str:
    words = spoken()
    if found := re.fullmatch(r"digits/(day|mon)-(\d+)", name):
        return words["days" if found[1] == "day" else "months"][int(found[2])]
    if found := re.fullmatch(r"phonetic/([a-z])_p", name):
        return words["spelling_alphabet"][ord(found[1]) - ord("a")]
    if name in words["prompts"]["as_named"]:
        return name.removeprefix("vm-").replace("-", " ").lower()
    return words["prompts"]["otherwise"].get(name, "")


def prompt_facts(kind: str, text: str, language: str) -> list[Fact]:
    if not text:
        return []
    return [number_fact(text)] if kind == "number" else text_facts(text, language)


def fillets(source: Source) -> Iterator[Clip]:
    """A game's dialogues with their subtitles, also in English."""
    code = source.package.name[-2:]
    scripts = source.folders[source.package.needs]
    levels = sorted(path.parent.name for path in scripts.rglob(f"dialogs_{code}.lua"))
    for file in source.audio_files():
        level = file.parent.parent.name
        if line := subtitles(scripts, level, code).get(file.stem):
            clip = dialogue_clip(source, file, code, *line)
            if clip:
                clip.group = f"fillets/deck {levels.index(level) % LEVEL_DECKS}"
                yield clip


def subtitles(scripts: Path, level: str, code: str) -> dict[str, tuple[str, str, str]]:
    """Key of a line -> (font, English, the language's own text)."""
    script = next(scripts.rglob(f"script/{level}/dialogs_{code}.lua"), None)
    if script is None:
        return {}
    found = DIALOGUE.findall(script.read_text("utf-8"))
    return {key: (clean(font), clean(english), clean(text)) for key, font, english, text in found}


def clean(text: str) -> str:
    return text.replace('\\"', '"').strip()


def dialogue_clip(source: Source, file: Path, code: str, font: str, english: str, text: str) -> Clip | None:
    """None for a line without words, or with a placeholder."""
    if len(text) < 4 or not re.search(r"\w", text) or "%" in text:
        return None
    who, sex = spoken()["heroes"].get(font, ("other", ""))
    language = languages()[code]
    facts = [*text_facts(text, language), meaning_fact(english, language)]
    facts += [speaker_fact(sex, language)] if sex else []
    return source.speech(file, f"fillets/{code}/{who}", language, facts, text=text, english=english, speaker=sex)


def tuxpaint(source: Source) -> Iterator[Clip]:
    """The descriptions of a painting program's stamps, one speaker per language."""
    for file in source.audio_files():
        found = STAMP.fullmatch(file.name)
        if not found or not (found[2] or "symbols" in file.parts):
            continue
        code = found[3] or "en"
        english, text = stamp_texts(file.with_name(found[1] + ".txt"), code)
        if code not in languages() or not text or not english:
            continue
        voice, language = f"tuxpaint/{code}", languages()[code]
        if not found[2]:  # says only the letter or number, which is not its text
            yield source.speech(file, voice, language, [])
            continue
        facts = text_facts(text, language) + ([meaning_fact(english, language)] if code != "en" else [])
        yield source.speech(file, voice, language, facts, text=text, english=english)


def stamp_texts(file: Path, code: str) -> tuple[str, str]:
    """A stamp's description in English and in the language, empty if there is none."""
    lines = file.read_text("utf-8", errors="replace").splitlines() if file.exists() else []
    english = lines[0].strip() if lines else ""
    texts = dict(line.split(".utf8=", 1) for line in lines if ".utf8=" in line)
    return english, english if code == "en" else texts.get(code, "").strip(" |")


def klettres(source: Source) -> Iterator[Clip]:
    """Letters and syllables, one speaker per language."""
    for index in sorted(source.folder.rglob("sounds.xml")):
        code = index.parent.name
        if code not in languages():
            continue
        for name, path in dict.fromkeys(SOUND.findall(index.read_text("utf-8"))):
            file = index.parent.parent / path
            if file.exists():
                facts = text_facts(name, languages()[code], "letter")
                yield source.speech(file, f"klettres/{code}", languages()[code], facts, text=name)


def ktuberling(source: Source) -> Iterator[Clip]:
    """Names of things, one speaker per language; the key says in English what it is."""
    for index in sorted(source.folder.rglob("*.soundtheme")):
        code = index.stem
        if code not in languages():
            continue
        language, seen = languages()[code], set()
        for key, path in SOUND.findall(index.read_text("utf-8")):
            file, meaning = index.parent / path, thing(key)
            if not file.exists() or path in seen or not meaning:
                continue
            seen.add(path)
            facts = text_facts(meaning, language) if code == "en" else [meaning_fact(meaning, language)]
            yield source.speech(file, f"ktuberling/{code}", language, facts, english=meaning)


def thing(key: str) -> str:
    """What a key names, in English; empty for those of the penguin, which are not words."""
    if "-tux" in key or key.startswith("tux-"):
        return ""
    name = re.sub(r"\d+$", "", ROOMS.sub("", key)).replace("_", " ")
    for wrong, right in MISSPELT.items():
        name = name.replace(wrong, right)
    return RUN_TOGETHER.get(name, name)


def hedgewars(source: Source) -> Iterator[Clip]:
    """The cries of a game's teams: short phrases, acted; and laughing and coughing."""
    noises = {"Laugh": "laughter", "PoisonCough": "coughing"}
    for file in source.audio_files():
        team = file.parent.name
        if file.parent.parent.name != "voices" or team == "Russian_pl":  # the language of that team is in doubt
            continue
        if file.stem in noises:
            yield noise_clip(source, file, f"hedgewars/{team}", noises[file.stem])
        elif text := spoken()["cries"].get(file.stem):
            yield cry_clip(source, file, team, text)


def noise_clip(source: Source, file: Path, voice: str, label: str) -> Clip:
    package, labels = source.package, {"sound": label, "trust": "A"}
    return Clip(file, package.name, package.licence, "sound", labels, voice, voice, sound_facts(label))


def cry_clip(source: Source, file: Path, team: str, text: str) -> Clip:
    language = languages()[spoken()["teams"].get(team, "en")]
    facts = text_facts(text, language) if team in spoken()["literal_teams"] else []
    return source.speech(file, f"hedgewars/{team}", language, facts, text=text if facts else "")


def pocketsphinx(source: Source) -> Iterator[Clip]:
    """A few read sentences."""
    folder, voice = source.folder, "pocketsphinx-testdata"
    for index in [*folder.rglob("librivox/transcription"), *folder.rglob("cards.transcription")]:
        for text, name in re.findall(r"<s>\s*(.*?)\s*</s>\s*\((.+?)\)", index.read_text()):
            yield source.speech(index.parent / f"{name}.wav", voice, "English", text_facts(text, "English"), text=text)
