"""Which text instructions can be spoken: one ordered list of plain rules, each with the reason it gives.

An instruction is kept if a person could say it aloud and a listener could answer it without anything to read. Texts
are kept or dropped, never rewritten. The rules are strict because text is plentiful: losing a good row costs nothing,
but an instruction about a table that cannot be heard teaches the model to invent. References to other texts are only
recognised in English; all other rules work for every language, with its script in `SCRIPTS`.
Run: `why_not_spoken(Exchange("Name three rivers.", "", "The Rhine ..."), SpokenLimits())` is `None`, or the reason.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple


class Exchange(NamedTuple):
    """One instruction with its answer, as in a text dataset, where values can have any type."""

    instruction: Any
    accompanying: Any  # other text that the answer depends on: an input, a system prompt
    answer: Any


@dataclass(frozen=True)
class SpokenLimits:
    """The limits of an instruction: 300 characters are about 20 s of English at a normal pace."""

    language: str = "en"
    min_characters: int = 10
    max_characters: int = 300


# What published instruction sets write for "there is no input".
NO_INPUT = {"", "<noinput>", "no input", "noinput", "none", "n/a", "nan"}

# Unicode's names of scripts, with the languages written in them; any other language uses Latin letters.
SCRIPTS = {
    "ARABIC": "ar fa sd ug ur",
    "ARMENIAN": "hy hyw",
    "BENGALI": "as bn bpy",
    "CJK": "cmn hak ja yue zh",
    "CYRILLIC": "ba be bg cv kk ky mk nog ru sr tt uk",
    "DEVANAGARI": "hi kok mr ne",
    "ETHIOPIC": "am ti",
    "GEORGIAN": "ka",
    "GREEK": "el grc",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KATAKANA": "ja",
    "LATIN": "sr",
    "MALAYALAM": "ml",
    "MYANMAR": "my shn",
    "ORIYA": "or",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}

# Punctuation and signs that are part of speech, or that any synthesiser reads or skips as a person would.
SPOKEN_MARKS = frozenset(".,;:!?'\"()-/&%$€£+°–—…‘’“”„«»¿¡、。，？！：；「」『』（）।؟،؛·־")

# Names that instructions give to things that are read but not heard.
_WRITTEN_THINGS = (
    "text passage paragraph article sentence phrase code snippet program function table list data dataset input output "
    "image picture photo figure graph chart diagram document email e-mail message review tweet post poem story essay "
    "quote excerpt dialogue conversation statement equation expression scenario information context options sample "
    "example audio video clip recording"
)
_WRITTEN_THING = f"(?:{'|'.join(_WRITTEN_THINGS.split())})s?"

# Searched in the text with its line breaks, in this order; the first match is the reason.
PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (reason, re.compile(pattern, re.IGNORECASE | re.MULTILINE))
    for reason, pattern in (
        ("URL or e-mail address", r"https?://|\bwww\.|\S@\S+\.\w|\b[\w-]+\.(?:com|org|net|edu|gov|io|html?)\b"),
        ("mathematics", r"\\[a-z]+[{ ]|\\[(\[]"),  # LaTeX
        (
            "code",
            r"`|[{}]|;[ \t]*\n|</?[a-z]\w*[^>]*>|\w\(\)|[^\W_]_[^\W_]|[=!]=|[-=]>|\w::\w|^\s*(?:def|class)\s\w+.*:\s*$",
        ),
        ("table or markdown", r"^\s*(?:#{1,6}\s|[-*•]\s|>)|^\s*\d+[.)]\s|\*\*|\||\]\(|\t"),
        ("mathematics", r"[=≠≈≤≥±×÷√∑∫∞^]|\d\s*[+*]\s*\d|\s[+*]\s|\d\s+[-–−/]\s+\d|\b[a-z]\([a-z]\)"),
        ("refers to a text", r":\s*\Z|\b(?:the|these) following\b|\bthe (?:given|provided|attached|accompanying)\b"),
        (
            "refers to a text",
            r"\b(?:this|these|given|provided|attached|following|above|below|accompanying)"
            rf"\s+(?:\w+\s+)?{_WRITTEN_THING}\b",
        ),
        (
            "refers to a text",
            r"\A\s*given (?:an?|the|some|two)\b|\bthe (?:passage|paragraph|excerpt|snippet|sentence)s?\b",
        ),
        (
            "refers to a text",
            r"\b(?:above|below)\W*\Z|\b(?:as|shown|given|listed|provided|described|mentioned|written) (?:above|below)\b",
        ),
    )
)


def why_not_spoken(exchange: Exchange, limits: SpokenLimits) -> str | None:
    """The first reason why an instruction cannot be spoken and answered, in a few words; `None` if it can."""
    instruction, accompanying, answer = exchange
    if not isinstance(instruction, str) or not isinstance(answer, str):
        return "no text"
    if not answer.strip():
        return "empty answer"
    if str(accompanying or "").strip().lower() not in NO_INPUT:
        return "has an accompanying text"
    for reason, pattern in PATTERNS:
        if pattern.search(instruction):
            return reason
    return _why_not_said(spoken_form(instruction), limits)


def spoken_form(instruction: str) -> str:
    """The instruction on one line."""
    return " ".join(instruction.split())


def _why_not_said(text: str, limits: SpokenLimits) -> str | None:
    if len(text) < limits.min_characters:
        return "too short"
    if len(text) > limits.max_characters:
        return "too long"
    letters = {character for character in text if unicodedata.category(character)[0] == "L"}
    if not letters:
        return "no words"
    scripts = scripts_of(limits.language)
    if not all(unicodedata.name(letter, "").startswith(scripts) for letter in letters):
        return "letters of another script"
    if not all(map(_is_spoken_mark, set(text) - letters)):
        return "characters that are not spoken"
    return None


@lru_cache
def scripts_of(language: str) -> tuple[str, ...]:
    """The prefixes of Unicode's names for the letters of a language (`"en"`, `"sr"`, `"pt-br"`)."""
    base = language.split("-")[0]
    return tuple(script for script, languages in SCRIPTS.items() if base in languages.split()) or ("LATIN",)


def _is_spoken_mark(character: str) -> bool:
    # Marks combine with letters (accents, vowel signs); decimal digits are read as numbers.
    return character in SPOKEN_MARKS or character == " " or unicodedata.category(character) in ("Mn", "Mc", "Nd")
