"""One spelling for replies and options: Unicode, width, quotation marks, and the ways to write a number.

"1,500" and "1 500" are 1500, ".5" is 0.5, and ">2" is "more than 2", so that a number is found only where all of it is
written.
"""

import re
import unicodedata

from .option_labels import PLAIN_WIDTH


NUMBER_WORDS = (
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|[mb]illion|trillion|dozen)"
)
# "A" is a note in "A minor", where removing it would leave the end of any other key.
KEY_WORDS = r"(?:major|minor|sharp|flat|maj|min)"
OUTER = " \t\r\n.,;:!?\"'`*_()[]<>{}$。，、；：！？「」"
_ARTICLE = re.compile(rf"^(?:an?|the)\s+(?!{KEY_WORDS}\b)(?=\S)")
_SPACE = re.compile(r"\s+")
_LOOSE_BRACKETS = re.compile(r"([(\[]) ?([A-Za-z]) ?([)\]])")  # "( B )"
_PLAIN = str.maketrans(
    PLAIN_WIDTH
    | dict.fromkeys(map(ord, "‘’ʼ"), "'")
    | dict.fromkeys(map(ord, "“”„«»"), '"')
    | dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
    | dict.fromkeys(map(ord, "\u200b\u200c\u2060\ufeff\u00ad"), None)
)
_GROUPED = re.compile(
    r"(?<![A-Za-z0-9.,:/'])(?<!(?i:option|choice|answer|number) )"
    r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?:'\d{3})+|(?: \d{3})+)(?!\d|[,' ]\d)"
)
# Tags and arrows are matched first and left as they are.
_COMPARED = re.compile(
    r"</?[^\s<>][^<>\n]*>|(?<![-=])[-=]+>"
    rf"|(?P<sign>>=|<=|[<>≥≤~±]|\\[gl]eq?(?![a-z])) ?(?=\d|(?i:{NUMBER_WORDS})\b)"
)
_COMPARISONS = {">": "more than", "<": "less than", "~": "almost", "±": "plus or minus"} | {
    **dict.fromkeys((">=", "≥", "\\ge", "\\geq"), "at least"),
    **dict.fromkeys(("<=", "≤", "\\le", "\\leq"), "at most"),
}
_JOINED = re.compile(r"(?<=[^\W\d_])[-_](?=[^\W\d_])")
_BARE_POINT = re.compile(r"(?<![\w.)\]}])\.(?=\d)")


def plain(text: str) -> str:
    """One spelling, and one character for each run of white space: patterns are slow on runs."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = _SPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", text).strip()
    text = _LOOSE_BRACKETS.sub(r"\1\2\3", text)
    text = _GROUPED.sub(lambda number: re.sub(r"\D", "", number.group()), text)
    text = _COMPARED.sub(lambda found: f" {_COMPARISONS[found['sign']]} " if found["sign"] else found.group(), text)
    return _BARE_POINT.sub("0.", text).strip()


def lower(text: str) -> str:
    """In lower case, with single spaces, without outer quotation marks, Markdown and punctuation."""
    text = unicodedata.normalize("NFC", text.casefold()).replace("**", "")
    return " ".join(text.split()).strip(OUTER)


def fold(text: str) -> str:
    """For comparison: as `lower`, and without a leading article."""
    return _ARTICLE.sub("", lower(text))


def one_spelling(folded: str) -> str:
    """A folded text with spaces for hyphens and underscores between letters, and without spaces after commas."""
    return re.sub(r",\s+", ",", _JOINED.sub(" ", folded))


def same_spelling(one: str, other: str) -> bool:
    """Whether texts are equal apart from outer white space and composed or decomposed Unicode letters."""
    return unicodedata.normalize("NFC", one.strip()) == unicodedata.normalize("NFC", other.strip())


__all__ = ["KEY_WORDS", "NUMBER_WORDS", "OUTER", "fold", "lower", "one_spelling", "plain", "same_spelling"]
