"""Which option of a multiple-choice question a reply means, read first from the options' texts and then from letters.

No reading is better than a wrong one: a reply that can mean two options means none. Letters and texts are therefore
collected together, and a reply has a reading only if they agree. Set aside first are thoughts, markup and the text
before "the answer is" (unwrap_reply.py), and the reasons after an answer ("B, because a dog would bark"), which can name
any option. Texts are compared in one spelling (spelling.py).
Run: `resolve("The answer is (B), because a dog would bark.", ["Dog", "Cat"])`
"""

import re
from collections.abc import Sequence
from string import ascii_uppercase

from .named_options import ANOTHER, named_options
from .option_labels import are_numbered, without_labels
from .spelling import KEY_WORDS, NUMBER_WORDS, fold, lower, one_spelling, plain
from .unwrap_reply import NEGATION, unwrap


def resolve(reply: str, choices: Sequence[str]) -> str | None:
    """
    The text of the option that a reply means, or `None` if it means none or could mean several. In this order:

    1. The reply, or what is left of it without wrappers (`<answer>`, `\\boxed{}`, JSON, "the answer is") and label, is an
       option: as written, else ignoring case, outer punctuation and a leading article. Word order counts. A label next
       to such a text is ignored if it contradicts it: "(A) Woman" is "Woman".
    2. In a reply with reasons, the text before "because" and the like, unless the reply changes its mind in
       them.
    3. The one option that texts and letters name together: none if a letter, or "the second option", stands for another
       than a text names. An option within a longer one that is named ("Funk" in "Funk rock") is not named, nor is one
       of a single letter, nor a number that is part of another ("-1", "two hundred").
       Letters are labels if the options do not contain letters or chords themselves. A reply with a negation means
       none, unless the negation is the option's own, or "no" is an option.

    If options have labels ("(A) Man" or "1. Man"), the texts after the labels are looked for first; numbers are then
    labels as letters are, unless the texts have such numbers themselves.
    """
    if reply.strip() in choices:
        return reply.strip()
    texts = without_labels(choices)
    if texts != tuple(choices) and len(set(texts)) == len(texts) and all(map(str.strip, texts)):
        place = _place(reply, texts, numbered=are_numbered(choices) and not _has_places(texts))
        if place is not None:
            return choices[place]
    place = _place(reply, choices)
    return None if place is None else choices[place]


def _has_places(texts: Sequence[str]) -> bool:
    """Whether numbers in texts can be mistaken for the labels 1, 2, 3, ..."""
    numbers = (number for text in texts for number in re.findall(rf"\b(?:\d\d?|{NUMBER_WORDS})\b", fold(text)))
    return any(not number.isdigit() or int(number) <= len(texts) for number in numbers)


def _place(reply: str, choices: Sequence[str], numbered: bool = False) -> int | None:
    """The place of the option that a reply means. If options are `numbered`, numbers are labels."""
    if reply.strip() in choices:
        return list(choices).index(reply.strip())
    spelled = [plain(choice) for choice in choices]
    if len(set(spelled)) < len(set(choices)):  # options that differ only in how they are spelled
        return None
    found = _resolve(plain(reply), spelled, numbered)
    return None if found is None else spelled.index(found)


_TAIL = re.compile(
    r"\sis (?:(?:the|my) )?(?:(?:correct|right|best|final)(?: (?:answer|option|choice))?|answer|choice)\W*$",
    re.IGNORECASE,
)
# What follows is a reason, in which any option can be named.
_REASON = re.compile(
    r"(?:\b(?:because|since|due to|given that)\b|,\s*(?:as|for)\s|因为|因為"
    r"|\n\W{0,9}(?:explanation|reason(?:s|ing)?|justification|rationale)\s?:)",
    re.IGNORECASE,
)
# "Yes, there is no dog".
_YES_OR_NO = re.compile(r"\s?(yes|no)\s?(?:[,.;:!-]|\n)\s*(\S.*)", re.IGNORECASE | re.DOTALL)
# Small models go on with a question of their own.
_NEXT_QUESTION = re.compile(r"\n\W{0,9}(?:question|human|user)\s?:", re.IGNORECASE)
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|sorry|hmm|on second thought|in fact|however|rather|instead|scratch that|mistake\w*|wrong|not (?:right|correct))\b|\bno[,.!]",
    re.IGNORECASE,
)
_LABEL_NOUN = r"(?:option|choice|answer|letter|opción|opção|opzione|letra|lettre|lettera|buchstabe|вариант)"
# "B", "B.", "(B)", "option B"; "B. text", "B: text", "B) text", "(B) text", "B - text"; not "B:maj", "B flat", "A.M.".
_LABEL = re.compile(rf"(?:{_LABEL_NOUN}\s+)?[(\[]?([a-z])(?:[)\]]+\s*[.:]?\s*|[.:]\s+|\s+-\s+|\W*$)", re.IGNORECASE)
# "B.Female", "B:女": a label only if an option follows it, see `_same_beside_label`.
_TIGHT_LABEL = re.compile(r"[(\[]?[a-z][.:](?=\S)", re.IGNORECASE)
_LABEL_BEHIND = re.compile(r"(.*\S)\s*[(\[]([a-z])[)\]]\W*$", re.DOTALL | re.IGNORECASE)
# A letter on its own, but not in "speaker B" or "C minor". "A" and "I" before a word are an article and a pronoun; "I'd"
# and "C#" do not count.
_NAMES = (
    *(
        "speaker",
        "person",
        "singer",
        "caller",
        "section",
        "part",
        "plan",
        "vitamin",
        "type",
        "group",
        "team",
        "key of",
    ),
    *("in", "note", "notes", "chord", "string", "play", "plays", "playing", "played"),
)
_NO_NOUN = (
    r"(?:or|and|nor|but|is|was|vs|because|since|as|for|due|than|over|seems|fits|matches|while|whereas|though|although|if"
    r"|when|where|which|that|the|this|there|it|they|he|she|we|you|I|(?:would|should|must|could|may|might|can|will) be)"
)
_ALONE = (
    r"(?<![A-Za-z0-9À-ɏ&])(?<!\w['#])" + "".join(rf"(?<!\b(?i:{name}) )" for name in _NAMES) + r"({letters})"
    rf"(?![A-Za-z0-9À-ɏ#♯♭&]|[ -]{KEY_WORDS}\b|{{glued}})"
    rf"(?!(?<=A) (?!{_NO_NOUN}(?![\w-]))\w)(?!(?<=[aIi]) (?!(?:or|and|nor|but|is|vs|because)\b)\w)"
)
# A small "a" or "i" is one only where no word follows.
_MENTIONED = re.compile(
    _ALONE.format(letters=r"[A-Zb-hj-z]|[ai](?=\W*$|[,;:)\]])", glued=r"'(?!(?<!I')(?:s|d|ll)\b)\w|\.\w\.")
)
# Where such a letter states the answer: in brackets, after "option", "result:" or "I'd say", first in a sentence, before
# "is correct".
_CAPITAL = _ALONE.format(letters="[A-Z]", glued=r"'\w|[.:/]\w")
_ALL = rf"{_CAPITAL}(?=\W*(?:$|\n)|[,.;:!]|\s*[-(]|\s+(?:because|since|as)\b)"
_ANSWER_NOUN = (
    rf"(?:{_LABEL_NOUN}|selected|selection|final|prediction|correct(?:\s+one)?|one|label|result|response|output|guess|pick"
    r"|verdict|conclusion|solution|decision|elección|correcta|escolha|correta|choix|scelta|corretta|wahl|auswahl|richtig"
    r"|выбор)"
)
_IS = r"(?:is|was|(?:must|should|would|has\s+to)\s+be)"
_STATED = re.compile(
    r"[(\[]([A-Za-z])[)\]]"
    rf"|\b(?i:{_LABEL_NOUN})\s*[\s:=]\s*[(\[]?([A-Z](?![\w'])|[a-z](?![\w'])(?!\s+\w))"
    rf"|\b(?i:{_ANSWER_NOUN}(?:\s*[:=]>?|\s+-+>?|\s+{_IS})|(?:it|that|this)\s+{_IS}|it's|that's|c'est|es\s+ist)\s+{_ALL}"
    rf"|(?:^|\b(?:que|che)\s+)(?i:es|é|è)\s+{_ALL}"
    r"|\b(?i:I(?:'d|\s+would)?\s+(?:say|think|believe|guess)|je\s+dirais|diría|diria|direi|ich\s+denke)"
    rf"\s*:?\s+{_ALL}"
    rf"|\b(?i:definitely|probably|likely|clearly|certainly|surely)\s+{_ALL}"
    rf"|\b(?i:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+with)\s*:?\s+{_CAPITAL}"
    rf"|(?:^|\n|[.;!?]\s)\s*{_CAPITAL}"
    rf"|\b(?i:so|thus|hence|therefore)\b[\s,:]*{_CAPITAL}[\s.!*)\]]*(?:$|\n)"
    rf"|{_CAPITAL}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    rf"|(?:应该|應該|应当|應當|应|應|认为|認為|觉得|覺得|我猜)(?:是|为|為|选|選)\s*{_CAPITAL}"
    rf"|{_CAPITAL}\s*(?:是(?:正确|正確|对|對)的?|が正解|(?:だ|である)?と思います|입니다)"
)
# "The second option", "option 2".
_PLACES = {
    word: place
    for words in ("first second third fourth fifth", "1st 2nd 3rd 4th 5th", "one two three four five", "1 2 3 4 5")
    for place, word in enumerate(words.split(), 1)
}
_BY_PLACE = re.compile(
    rf"\b(?:({'|'.join(_PLACES)})\s+(?:option|choice|answer)"
    rf"|(?:option|choice|answer)\s+(?:number\s+|#)?({'|'.join(_PLACES)}))\b",
    re.IGNORECASE,
)
# "A C triad", "the D string": a note.
_NOTE = re.compile(rf"\b(?i:an?|the) [A-G](?= (?!{_LABEL_NOUN}\b)\w)")
# Numbers that do not count or measure anything.
_NUMBER_LABEL = re.compile(
    r"(?<![\w.,:/'-])(?<!\d )[1-9]\d?(?=\W*(?:$|\n)|[)\].:,;、](?!\d)|\s+-\s|\s(?:because|since|as|is|or|and)\b)"
)
# If options contain letters themselves, fewer can be labels: "(A) or (B)", "A. B", "B, maybe C".
_FEWER = re.compile(r"\(([a-zA-Z])\)|\b(?:or|and|maybe)\s+([A-Z])\b|\b([A-Z])\W*$")
_REJECTION = re.compile(
    r"\b(?:wrong|incorrect|false|unlikely|impossible|exclud\w+|eliminat\w+|rul(?:e|es|ed|ing) out|anything but|other than|hardly|scarcely|doubt(?:s|ed|ful)?|less likely|least likely"
    r"|unable|lack(?:s|ed|ing)?|absen(?:t|ce)|devoid|refus\w+|upload\w*|please (?:provide|share|send|attach))\b|不"
)
# These give no answer; their "no" does not answer a yes-no question.
_NO_ANSWER = re.compile(
    r"\bno (?:idea|clue|answer|opinion|response|information|way (?:to|of)|one (?:can|could)|audio|(?:sound )?file|clip"
    r"|recording|attachment|context|access|ability|mention|comment)\b"
)
# "Bm7", "F#:7/1", "A:maj(#11)/1", "Eb/G", and single letters.
_CHORD = re.compile(r"[a-zA-Z]|[A-G][#b♯♭]?(?:maj|min|m|M|h?dim|aug|sus|add)?[\d#b()*,+]*(?:[:/]\S*)?")
_LETTER_IN_OPTION = re.compile(rf"(?<![\w'])(?!(?:A|I)\s+(?!{KEY_WORDS}\b)\w)[A-Z](?![\w'])")
_LIST_MARK = re.compile(r"^(?:[-•>#]+\s+)+")


def _resolve(reply: str, choices: Sequence[str], numbered: bool) -> str | None:
    option = _same(reply, choices)
    if option is not None:
        return option
    first, *more = _NEXT_QUESTION.split(reply, maxsplit=1)
    if more and (option := _direct(first, choices)) is not None:
        return option
    text = unwrap(reply)
    if text is None:
        return None
    if numbered:
        letters = dict(zip(map(str, range(1, len(choices) + 1)), ascii_uppercase))
        text = _NUMBER_LABEL.sub(lambda number: letters.get(number.group(), number.group()), text)
    option = _meant(text, choices)
    return None if option is None or _says_no_answer(text, option, choices) else option


def _says_no_answer(text: str, option: str, choices: Sequence[str]) -> bool:
    """Whether a text is read as the option "no" only because of phrases like "no idea"."""
    if fold(option) != "no" or _letters(_MENTIONED, text, choices):
        return False
    rest, found = _NO_ANSWER.subn(" ", text.casefold())
    return bool(found) and not re.search(r"\bno\b", rest)


def _meant(text: str, choices: Sequence[str]) -> str | None:
    option = _same_beside_label(text, choices) or _yes_or_no(text, choices)
    if option is not None:
        return option
    main = _without_reason(text, choices)
    if main != text:
        option = _same_beside_label(main, choices) or _together(main, choices)
        if option is not None or _MENTIONED.search(main):
            others = _letters(_MENTIONED, text, choices) - {option}
            return None if others else option
    return _together(text, choices)


def _yes_or_no(text: str, choices: Sequence[str]) -> str | None:
    """The "yes" or "no" that a reply begins with, if both are options and it does not come back to the other one."""
    options = {fold(choice): choice for choice in choices}
    found = _YES_OR_NO.match(text)
    if found is None or not {"yes", "no"} <= options.keys() or _SECOND_THOUGHT.search(text):
        return None
    said, rest = found.group(1).lower(), found.group(2)
    other = "no" if said == "yes" else "yes"
    parts = map(fold, re.split(r"[,.;:!?\n]", rest))
    return None if rest.lower().startswith(other) or other in parts else options[said]


def _direct(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text is, or of which it is the label, without other words."""
    label, rest = _split_label(text)
    return _same_beside_label(text, choices) or (None if fold(rest) else _labelled(label, choices))


def _same_beside_label(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text is, possibly with a label before or after it."""
    text = _TAIL.sub("", text)
    tight, behind = _TIGHT_LABEL.match(text), _LABEL_BEHIND.match(text)
    parts = (text[tight.end() :] if tight else "", behind.group(1) if behind else "")
    for part in (text, _split_label(text)[1], *parts):
        option = _same(part, choices)
        if option is not None:
            return option
    return None


def _together(text: str, choices: Sequence[str]) -> str | None:
    """The one option that the texts and the letters in a text name."""
    text = _TAIL.sub("", text)
    label, rest = _split_label(text)
    labelled = _labelled(label, choices)
    if not fold(rest):
        return labelled
    named, others = named_options(lower(rest), choices)
    stated = ({labelled} if labelled else set()) | _letters(_STATED, rest, choices)
    found = named or stated
    mentioned = stated | _letters(_MENTIONED, rest, choices)
    option = next(iter(found - {ANOTHER}), None)
    if option is None or len(found) > 1 or _negated(others, option, choices):
        return None
    if named:
        return None if labelled not in (None, option) or _contradicted(rest, option, choices) else option
    return option if mentioned == stated else None


def _contradicted(text: str, named: str, choices: Sequence[str]) -> bool:
    """Whether a letter or a place in the list stands for another option than the one that a text names."""
    key = re.match(rf"{KEY_WORDS}\b", fold(named))  # it stays, since the C of "C minor" is no label
    rest = re.sub(re.escape(fold(named)), f"{key.group()} _" if key else "_", text, flags=re.IGNORECASE)
    rest = _NOTE.sub("_", rest)
    places = [_PLACES[(before or behind).lower()] for before, behind in _BY_PLACE.findall(rest)]
    others = {choice for place in places for choice in choices[place - 1 : place]}
    others |= _letters(_STATED, rest, choices) | _letters(_MENTIONED, rest, choices)
    return not others <= {named} or _other_letters(text, named, choices)


def _negated(text: str, option: str, choices: Sequence[str]) -> bool:
    """
    Whether a text, without the option that it names, denies or rules something out in words that are not in the
    option. If "no" is an option, "yes, it is not loud" is an answer.
    """
    own = option.casefold()
    is_denied = NEGATION.search(text) and not NEGATION.search(own) and "no" not in map(fold, choices)
    return bool(is_denied) or not set(_REJECTION.findall(text)) <= set(_REJECTION.findall(own))


def _other_letters(text: str, named: str, choices: Sequence[str]) -> bool:
    """If options contain letters or chords: is a letter stated that is neither the named option's label nor in it?"""
    if not any(_LETTER_IN_OPTION.search(choice) or _CHORD.fullmatch(_first_word(choice)) for choice in choices):
        return False
    letters = {letter for match in _STATED.finditer(text) for letter in match.groups() if letter}
    own = {match.group() for match in re.finditer(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z:/#\d])", named)}
    return not letters <= own | {ascii_uppercase[choices.index(named) : choices.index(named) + 1]}


def _letters(pattern: re.Pattern[str], text: str, choices: Sequence[str]) -> set[str]:
    """The options whose labels a pattern finds. If options contain letters themselves, few letters can be labels."""
    lettered = any(_LETTER_IN_OPTION.search(choice) for choice in choices)
    if lettered and pattern is _STATED:
        return set()
    found = (_FEWER if lettered else pattern).finditer(text)
    letters = {letter.upper() for match in found for letter in match.groups() if letter}
    return {option for letter in letters if (option := _labelled(letter, choices)) is not None}


def _without_reason(text: str, choices: Sequence[str]) -> str:
    """The text before a reason; all of it if there is none, if options have such words, or if second thoughts come."""
    reason = _REASON.search(text)
    if reason is None or any(_REASON.search(f" {choice}") for choice in choices):
        label, rest = _split_label(text)
        first = re.split(r"[.;]\s|\n", rest, maxsplit=1)[0]  # "B. Cat. A dog would bark."
        end = len(text) - len(rest) + len(first) if label and _same(first, choices) == _labelled(label, choices) else 0
    else:
        end = len(text[: reason.start()].rstrip(" \n,;:.(-"))
    return text[:end] if fold(text[:end]) and not _SECOND_THOUGHT.search(text, end) else text


def _same(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text is, if it is exactly one."""
    if text.strip() in choices:
        return text.strip()
    folded = fold(text)
    for spelled in (str, one_spelling):
        found = {choice for choice in choices if folded and spelled(fold(choice)) == spelled(folded)}
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _split_label(text: str) -> tuple[str | None, str]:
    """A leading label in upper case, and the rest; ("B", "text") for "(b) text"."""
    text = _LIST_MARK.sub("", text.strip()).strip(" \t\r\n*_`\"'$")
    label = _LABEL.match(text)
    return (label.group(1).upper(), text[label.end() :]) if label else (None, text)


def _labelled(label: str | None, choices: Sequence[str]) -> str | None:
    """The option with this label, if letters can only be labels."""
    if label is None or any(_CHORD.fullmatch(_first_word(choice)) for choice in choices):
        return None
    position = ascii_uppercase.find(label)
    return choices[position] if 0 <= position < len(choices) else None


def _first_word(choice: str) -> str:
    """The first word, if it can be a chord: "A" and "I" before other words are an article or a pronoun."""
    first, *more = choice.split() or [""]
    return "" if more and len(first) == 1 else first


__all__ = ["resolve"]
