"""Which options a text names. A number that is part of another ("-1", "two hundred", "2 or 3") is not named."""

import re
from collections.abc import Sequence

from .spelling import NUMBER_WORDS, fold


ANOTHER = ""  # replaces an option that such a number only seems to name
_NUMBER = rf"(?:(?<![A-Za-z])(?:{NUMBER_WORDS})(?![\w-])|\d|[½¼¾⅓⅔])"
_STARTS_WITH_NUMBER = re.compile(rf"[-+]?\d|{NUMBER_WORDS}\b")
_ENDS_WITH_NUMBER = re.compile(rf"\d$|\b{NUMBER_WORDS}$")
_FRACTION = r"(?:half|third|quarter|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth)"
# Before any option, and before one that starts with a number: "at least 2", "twenty two", "from 1 Hz to 2 Hz".
_BEFORE = r"(?:minus|negative|more than|less than|fewer than) "
_BEFORE_NUMBER = (
    r"|(?:at least|at most|over|under|above|below|beyond|exceed(?:s|ing)|up to|upwards of|short of|almost|nearly"
    r"|close to|approaching|greater than|lower than|as (?:many|few|much) as|(?:maximum|minimum) of"
    r"|(?:half|double|twice|third|quarter)(?: of| past| to)?|between|^point) (?:an? )?"
    rf"|{_NUMBER}(?:,? | ?- ?| (?:and|or|to|point|plus|times|by|through) )"
    rf"|{_NUMBER} ?(?:x|×|…|\.\.+) ?|{_NUMBER} \w+ (?:or|to|through) |between {_NUMBER}(?: \w+)? and "
)
# Behind any option, one with a number at its start or end, and one that ends with it.
_BEHIND = r" or (?:more|less|fewer)(?![\w-])"
_BEHIND_AMOUNT = (
    r"| (?:or (?:so|above|below|over|under|greater|higher|lower|longer|shorter)|and (?:up|above|over|more|a half)|plus"
    rf"|at (?:the )?(?:most|least|minimum|maximum))(?![\w-])|(?: ?- ?| (?:or|to|through) ){_NUMBER}"
)
_BEHIND_NUMBER = (
    rf"| ?[+%]| (?:percent|per cent|point|halves|{_FRACTION}s)(?![\w-])| (?:and|or) (?:an? )?{_FRACTION}"
    rf"|(?:,? | (?:and|point|plus|minus|times|by|almost) | ?(?:x|×|…|\.\.+) ?){_NUMBER}"
)
_WORDS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_SPELLED = {word: str(number) for number, word in enumerate(_WORDS, 2)}
_SPELLED |= {digits: word for word, digits in _SPELLED.items()}
_SMALL_NUMBER = re.compile(rf"(?<![\w.,:/'-])(?:\d+|{NUMBER_WORDS})(?![\w.,:/'-])")
# "One" as a pronoun: "the second one", "one can hear".
_BEFORE_ONE = (
    r"|(?:the \w+|th(?:e|is|at)|which|each|every|any|another|other|first|second|third|fourth|fifth|last|next) "
)
_BEHIND_ONE = rf"| (?:of|can|could|might|may|would|should|must|hears?|{_FRACTION})\b"


def named_options(text: str, choices: Sequence[str]) -> tuple[set[str], str]:
    """
    The options named in a text in lower case, `ANOTHER` for a number that is none of them, and the text without all
    these.
    """
    spans: dict[tuple[int, int], set[str]] = {}
    all_folded = set(map(fold, choices))
    for choice in set(choices):
        folded = fold(choice)
        if len(folded) > 1 or folded.isdigit():
            for spelled in {folded} | ({_in_other_spelling(folded)} - all_folded):
                for match in re.finditer(_pattern(spelled), text):
                    is_another = match["before"] or match["behind"]
                    spans.setdefault(match.span(), set()).add(ANOTHER if is_another else choice)
    outer: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not outer or end > outer[-1][1]:  # else within the last one, which starts no later
            outer.append((start, end))
    named = {choice for span in outer for choice in spans[span] - {ANOTHER} or {ANOTHER}}
    starts, ends = [start for start, _ in outer], [end for _, end in outer]
    return named, " ".join(text[end:start] for end, start in zip([0, *ends], [*starts, len(text)]))


def _in_other_spelling(option: str) -> str:
    """A folded option with "two" for 2, or 2 for "two", if it has only this number; "one" is too often a pronoun."""
    numbers = _SMALL_NUMBER.findall(option)
    if len(numbers) != 1 or numbers[0] not in _SPELLED:
        return option
    return _SMALL_NUMBER.sub(_SPELLED[numbers[0]], option)


def _pattern(option: str) -> str:
    """Finds a folded option, but not in the middle of a word, a number ("1.63"), a chord ("C#", "A:maj/1") or "1·5"."""
    starts, ends = _STARTS_WITH_NUMBER.match(option), _ENDS_WITH_NUMBER.search(option)
    before, behind = _BEFORE, _BEHIND
    if starts:
        before += _BEFORE_NUMBER
    if starts or ends:
        behind += _BEHIND_AMOUNT
    if ends:
        behind += _BEHIND_NUMBER
    if option == "one":
        before, behind = before + _BEFORE_ONE, behind + _BEHIND_ONE
    return (
        rf"(?P<before>-(?=\d)|(?<!\w)(?:{before}))?(?<![\w#])(?<!\w[./:-])(?<!\d[,'·٫*×^])"
        rf"{re.escape(option)}(?![\w#]|[./:-]\w|[,'·٫*×^]\d)(?P<behind>{behind})?"
    )


__all__ = ["ANOTHER", "named_options"]
