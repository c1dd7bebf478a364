"""Which option of a multiple-choice question a reply means, read first from the options' texts and then from letters.

No reading is better than a wrong one: a reply that can mean two options means none. Letters and texts are therefore
collected together, and a reply has a reading only if they agree. Two things are set aside first: the text before "the
answer is", and the reasons after an answer ("B, because a dog would bark"), which can name any option. Texts are
compared in one Unicode spelling (NFC), with typographic quotation marks, dashes and full-width letters mapped to plain
ones.
Run: `resolve("The answer is (B), because a dog would bark.", ["Dog", "Cat"])`
"""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

from .option_labels import without_labels


def resolve(reply: str, choices: Sequence[str]) -> str | None:
    """
    The text of the option that a reply means, or `None` if it means none or could mean several. In this order:

    1. The reply, or what is left of it without wrappers (`<answer>`, `\\boxed{}`, JSON, "the answer is") and label, is an
       option: as written, else ignoring case, outer punctuation and a leading article. Word order counts. A label next
       to such a text is ignored if it contradicts it: "(A) Woman" is "Woman".
    2. In a reply with reasons, the text before "because" and the like, unless the reply changes its mind in
       them.
    3. The one option that texts and letters name together. An option within a longer one that is named ("Funk" in "Funk
       rock") is not named, nor is one of a single letter, nor a number that is part of another ("-1", "two hundred").
       Letters are labels if the options do not contain letters or chords themselves. A reply with a negation means
       none, unless the negation is the option's own, or "no" is an option.

    If options have labels ("(A) Man", "(B) Woman"), the texts after the labels are looked for first.
    """
    if reply.strip() in choices:
        return reply.strip()
    texts = without_labels(choices)
    if texts != tuple(choices) and len(set(texts)) == len(texts) and all(map(str.strip, texts)):
        text = resolve(reply, texts)
        if text is not None:
            return choices[texts.index(text)]
    plain, options = _plain(reply), {_plain(choice): choice for choice in reversed(choices)}
    spelled = list(dict.fromkeys(map(_plain, choices)))
    if len(spelled) < len(set(choices)):  # options that differ only in their Unicode spelling
        return None
    found = _resolve(plain, [_plain(choice) for choice in choices])
    return None if found is None else options[found]


def same_spelling(one: str, other: str) -> bool:
    """Whether texts are equal apart from outer white space and composed or decomposed Unicode letters."""
    return unicodedata.normalize("NFC", one.strip()) == unicodedata.normalize("NFC", other.strip())


# Matched from the start, never searched for: pages of repetition in a reply take time linear in its length.
_THINK = r"(?:think(?:ing)?|thoughts?|reasoning)"
_THOUGHTS = re.compile(  # truncated ones too
    rf".*(?:</{_THINK}>|\[/{_THINK}\])|\s*(?:<{_THINK}>|\[{_THINK}\]).*", re.DOTALL | re.IGNORECASE
)
_ANSWER_TAG = re.compile(r".*<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
_BOXED = re.compile(r".*\\boxed\s*\{\s*(?:\\(?:text|mathrm|mathbf|textbf)\s*\{)?([^{}]*)", re.DOTALL)
# '"answer": "B"' in JSON, even if truncated, and in Python's spelling.
_FIELD = re.compile(
    r""".*(["'])(?:final[ _-]?|correct[ _-]?)?(?:answer|choice|option|prediction)\1\s*:\s*"""
    r"""(?:\[(?P<list>[^\]]*)|(["'])(?P<text>.*?)(?<!\\)(?:\3|$)|(?P<bare>[^,}\]]*))""",
    re.DOTALL | re.IGNORECASE,
)
_NOUN = (
    r"\b(?:answer|ans|(?:(?:correct|right|best|final|chosen|my)\s+)(?:answer|option|choice|selection|letter)"
    r"|r[eé]ponse|respuesta|resposta|risposta|antwort)"
)
_IS = r"(?:\s+(?:is|would be|should be|must be|est|es|é|è|ist)(?!\w)\s*:?|\s*[:=]|\s+-+>?(?=\s))"
_CHOOSE = (
    r"\bI(?:'d|'ll|\s+will|\s+would|\s+have\s+to)?\s+(?:choose|chose|pick|select|go\s+with|go\s+for|vote\s+for)\b\s*:?"
)
_CHINESE = r"(?:答案|正确选项|正確選項|正解|答え|정답)\s*(?:应该是|應該是|是|为|為|は|은|는)?\s*:?|我?(?:选择|選擇|选项|選項|选|選)\s*:?"
# "The answer is ...", "Answer: ...", "I choose ..."; the last one, since reasons come before it.
_LEAD_IN = re.compile(
    rf".*(?:{_NOUN}{_IS}|{_CHOOSE}|{_CHINESE})\s*(?:(?:most\s+likely|likely|probably|clearly|definitely)\s+)?",
    re.DOTALL | re.IGNORECASE,
)
_TAIL = re.compile(
    r"\sis (?:(?:the|my) )?(?:(?:correct|right|best|final)(?: (?:answer|option|choice))?|answer|choice)\W*$",
    re.IGNORECASE,
)
# What follows is a reason, in which any option can be named.
_REASON = re.compile(r"(?:\b(?:because|since|due to|given that)\b|,\s*(?:as|for)\s|因为|因為)", re.IGNORECASE)
_SECOND_THOUGHT = re.compile(
    r"\b(?:wait|actually|correction|sorry|hmm|on second thought|in fact|however|rather|instead|scratch that|mistake\w*|wrong|not (?:right|correct))\b|\bno[,.!]",
    re.IGNORECASE,
)
# "B", "B.", "(B)", "option B"; "B. text", "B: text", "B) text", "(B) text", "B - text"; not "B:maj", "B flat", "A.M.".
_LABEL = re.compile(
    r"(?:(?:option|choice|answer|letter)\s+)?[(\[]?([a-z])(?:[)\]]+\s*[.:]?\s*|[.:]\s+|\s+-\s+|\W*$)", re.IGNORECASE
)
# "B.Female", "B:女": a label only if an option follows it, see `_same_beside_label`.
_TIGHT_LABEL = re.compile(r"[(\[]?[a-z][.:](?=\S)", re.IGNORECASE)
_LABEL_BEHIND = re.compile(r"(.*\S)\s*[(\[]([a-z])[)\]]\W*$", re.DOTALL | re.IGNORECASE)
# A letter on its own. "A" and "I" before a word are an article and a pronoun; "I'd" and "C#" do not count.
_ALONE = (
    r"(?<![A-Za-z0-9À-ɏ'#&])({})(?![A-Za-z0-9À-ɏ'#♯♭&]|[.:/]\w)"
    r"(?!(?<=[AaIi]) (?!(?:or|and|nor|but|is|vs|because)\b)\w)"
)
_MENTIONED = re.compile(_ALONE.format("[A-Za-z]"))
# Where such a letter states the answer: in brackets, after "option" or "so", first in a sentence, before "is correct".
_CAPITAL = _ALONE.format("[A-Z]")
_STATED = re.compile(
    r"[(\[]([A-Za-z])[)\]]"
    r"|\b(?i:option|choice|answer|letter)\s+[(\[]?([A-Z](?![\w'])|[a-z](?![\w'])(?!\s+\w))"
    rf"|\b(?i:choose|pick|select|go with)\s*:?\s+{_CAPITAL}"
    rf"|(?:^|\n|[.;!?]\s)\s*{_CAPITAL}"
    rf"|\b(?i:so|thus|hence|therefore|it's|it\s+is|that's)\b[\s,:]*{_CAPITAL}[\s.!*)\]]*(?:$|\n)"
    rf"|{_CAPITAL}\s+is\s+(?:the\s+)?(?:correct|right|best|answer)\b"
)
# If options contain letters themselves, fewer can be labels: "(A) or (B)", "A. B", "B, maybe C".
_FEWER = re.compile(r"\(([a-zA-Z])\)|\b(?:or|and|maybe)\s+([A-Z])\b|\b([A-Z])\W*$")
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|rather|instead)\b|n't\b")
_REJECTION = re.compile(
    r"\b(?:wrong|incorrect|false|unlikely|impossible|exclud\w+|eliminat\w+|rul(?:e|es|ed|ing) out|anything but|other than|hardly|scarcely|doubt(?:s|ed|ful)?|less likely|least likely)\b|不"
)
# Text before or after a number that makes it another: "-1", "more than 2", "two hundred", "twenty-five", "2 or more".
_OTHER_BEFORE = r"(?P<before>-(?=\d)|(?:minus|negative|more than|less than|fewer than) )?"
_OTHER_BEHIND = (
    r"(?P<behind>(?<=ty) (?:one|two|three|four|five|six|seven|eight|nine)(?![\w-])"
    r"| (?:hundred|thousand|million|or more|or less|or fewer)(?![\w-]))?"
)
_ANOTHER = ""  # replaces an option that such a number only seems to name
# These give no answer; their "no" does not answer a yes-no question.
_NO_ANSWER = re.compile(r"\bno (?:idea|clue|answer|opinion|response|information|way (?:to|of)|one (?:can|could))\b")
_WRONG_LEAD_IN = re.compile(
    r"\b(?:wrong|incorrect|false|worst|least likely|unlikely)\s+(?:answer|option|choice)|不|错误|錯誤"
)
# "Bm7", "F#:7/1", "A:maj(#11)/1", "Eb/G", and single letters.
_CHORD = re.compile(r"[a-zA-Z]|[A-G][#b♯♭]?(?:maj|min|m|M|h?dim|aug|sus|add)?[\d#b()*,+]*(?:[:/]\S*)?")
# "A" is a note in "A minor", where removing it would leave the end of any other key.
_ARTICLE = re.compile(r"^(?:an?|the)\s+(?!(?:major|minor|sharp|flat|maj|min)\b)(?=\S)")
_LETTER_IN_OPTION = re.compile(r"(?<![\w'])(?!(?:A|I)\s+(?!(?:major|minor|sharp|flat|maj|min)\b)\w)[A-Z](?![\w'])")
_LIST_MARK = re.compile(r"^(?:[-•>#]+\s+)+")
_SPACE = re.compile(r"\s+")
_LOOSE_BRACKETS = re.compile(r"([(\[]) ?([A-Za-z]) ?([)\]])")  # "( B )"
_OUTER = " \t\r\n.,;:!?\"'`*_()[]<>{}$。，、；：！？「」"
_PLAIN = str.maketrans(
    {full: full - 0xFEE0 for full in range(0xFF01, 0xFF5F)}
    | dict.fromkeys(map(ord, "‘’ʼ"), "'")
    | dict.fromkeys(map(ord, "“”„«»"), '"')
    | dict.fromkeys(map(ord, "‐‑‒–—−"), "-")
    | dict.fromkeys(map(ord, "\u200b\u200c\u2060\ufeff\u00ad"), None)
)


def _plain(text: str) -> str:
    """One spelling, and one character for each run of white space: patterns are slow on runs."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = _SPACE.sub(lambda run: "\n" if "\n" in run.group() else " ", text).strip()
    return _LOOSE_BRACKETS.sub(r"\1\2\3", text)


def _resolve(reply: str, choices: Sequence[str]) -> str | None:
    option = _same(reply, choices)
    if option is not None:
        return option
    text = _unwrap(reply)
    if text is None:
        return None
    option = _meant(text, choices)
    return None if option is None or _says_no_answer(text, option, choices) else option


def _says_no_answer(text: str, option: str, choices: Sequence[str]) -> bool:
    """Whether a text is read as the option "no" only because of phrases like "no idea"."""
    if _fold(option) != "no" or _letters(_MENTIONED, text, choices):
        return False
    rest, found = _NO_ANSWER.subn(" ", text.casefold())
    return bool(found) and not re.search(r"\bno\b", rest)


def _meant(text: str, choices: Sequence[str]) -> str | None:
    option = _same_beside_label(text, choices)
    if option is not None:
        return option
    main = _without_reason(text, choices)
    if main != text:
        option = _same_beside_label(main, choices) or _together(main, choices)
        if option is not None or _MENTIONED.search(main):
            others = _letters(_MENTIONED, text, choices) - {option}
            return None if others else option
    return _together(text, choices)


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
    if not _fold(rest):
        return labelled
    named, others = _named(_fold(rest), choices)
    stated = ({labelled} if labelled else set()) | _letters(_STATED, rest, choices)
    if len(named) != 1:
        mentioned = stated | _letters(_MENTIONED, rest, choices)
        found = stated if not named and len(stated) == 1 and mentioned == stated else set()
    else:
        found = named - {_ANOTHER} if stated <= named else set()
    option = next(iter(found), None)
    if option is None or _negated(others, option, choices) or named and _other_letters(rest, option, choices):
        return None
    return option


def _negated(text: str, option: str, choices: Sequence[str]) -> bool:
    """
    Whether a text, without the option that it names, denies or rules something out in words that are not in the
    option. If "no" is an option, "yes, it is not loud" is an answer.
    """
    own = option.casefold()
    is_denied = _NEGATION.search(text) and not _NEGATION.search(own) and "no" not in map(_fold, choices)
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
    return text[:end] if _fold(text[:end]) and not _SECOND_THOUGHT.search(text, end) else text


def _fold(text: str) -> str:
    """For comparison: lower case, single spaces, no outer quotation marks, Markdown or punctuation, no article."""
    text = unicodedata.normalize("NFC", text.casefold()).replace("**", "")
    return _ARTICLE.sub("", " ".join(text.split()).strip(_OUTER))


def _same(text: str, choices: Sequence[str]) -> str | None:
    """The option that a text is, if it is exactly one."""
    if text.strip() in choices:
        return text.strip()
    folded = _fold(text)
    found = {choice for choice in choices if folded and _fold(choice) == folded}
    return found.pop() if len(found) == 1 else None


def _unwrap(reply: str) -> str | None:
    """
    The reply without thoughts, tags and lead-in; `None` if the lead-in is negated ("I do not think the answer is B")
    or is followed only by an article.
    """
    thoughts = _THOUGHTS.match(reply)
    text = (reply[thoughts.end() :] if thoughts else reply).replace("**", "").strip()
    for wrapper in (_ANSWER_TAG, _BOXED):
        inside = wrapper.match(text)
        text = inside.group(1).strip() if inside else text
    field = _FIELD.match(text)
    if field:
        text = next(text for text in field.group("list", "text", "bare") if text is not None).strip()
    lead_in = _LEAD_IN.match(text)
    if lead_in is None or not text[lead_in.end() :].strip(_OUTER):
        return text
    sentence = _fold(re.split(r"[.!?。\n]", lead_in.group())[-1])
    rest = text[lead_in.end() :]
    cut_off = rest.strip() == "a" and not lead_in.group().rstrip().endswith((":", "="))  # "The answer is a"
    return None if cut_off or _NEGATION.search(sentence) or _WRONG_LEAD_IN.search(sentence) else rest


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


def _named(text: str, choices: Sequence[str]) -> tuple[set[str], str]:
    """The options named in a folded text, `_ANOTHER` for a number that is none of them, and the text without all these."""
    spans: dict[tuple[int, int], set[str]] = {}
    for choice in set(choices):
        folded = _fold(choice)
        if len(folded) > 1 or folded.isdigit():
            # Not in the middle of a word, a number ("1.63"), a chord ("C#", "A:maj/1") or "twenty-three".
            pattern = rf"(?<![\w#])(?<!\w[./:-]){_OTHER_BEFORE}{re.escape(folded)}(?![\w#]|[./:-]\w){_OTHER_BEHIND}"
            for match in re.finditer(pattern, text):
                is_another = match["before"] or match["behind"]
                spans.setdefault(match.span(), set()).add(_ANOTHER if is_another else choice)
    outer: list[tuple[int, int]] = []
    for start, end in sorted(spans, key=lambda span: (span[0], -span[1])):
        if not outer or end > outer[-1][1]:  # else within the last one, which starts no later
            outer.append((start, end))
    named = {choice for span in outer for choice in spans[span] - {_ANOTHER} or {_ANOTHER}}
    starts, ends = [start for start, _ in outer], [end for _, end in outer]
    return named, " ".join(text[end:start] for end, start in zip([0, *ends], [*starts, len(text)]))


__all__ = ["resolve", "same_spelling"]
