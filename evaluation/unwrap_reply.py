"""What a reply says once thoughts, markup and "the answer is" are set aside.

The markup is that of models in use: thoughts in `<think>`, `[THINK]` (Magistral), `<seed:think>` (Seed-OSS),
`◁think▷` (Kimi), in the channels of gpt-oss and Gemma, between `<|begin_of_thought|>` and `<|end_of_thought|>`
(OpenThinker, and Cohere's likewise) or after "Here is my thought process" (Granite); answers in `<answer>`,
`<RESPONSE>` (Audio-Reasoner, Granite), `<CONCLUSION>` (LLaVA-CoT), `<|begin_of_box|>` (GLM), `\\boxed{}` and JSON.
Texts are those of `spelling.plain`.
Run: `unwrap("<think>A dog?</think> The answer is B.")`
"""

import re

from .spelling import OUTER, fold


# "seed:think", "begin_of_thought" and "final_answer" are read by their last part.
_PREFIX = r"(?:[\w:-]{0,30}[:_-])?"
_THOUGHT = (
    rf"{_PREFIX}(?:(?:re)?think(?:ing)?|thoughts?|reasoning"
    r"|(?<!\[)(?:thought_process|reason|rationale|explanation|justification|analysis|reflection|deliberation|scratchpad"
    r"|plan(?:ning)?|steps?|caption|description|observations?|perception|elements|summary|monologue|cot|draft|critique))"
)
_ANSWER = rf"{_PREFIX}(?:answer|response|conclusion|solution|output|final|result|prediction|verdict|box)"
_LEFT, _RIGHT = r"[<\[◁]\|?\s?", r"\s?\|?[>\]▷]"
_END = rf"{_LEFT}(?:/|end_)"
_BEGIN = rf"{_LEFT}(?!end_)"
# Matched from the start, never searched for: pages of repetition in a reply take time linear in its length.
_THOUGHTS = re.compile(
    rf".*(?:{_END}{_THOUGHT}{_RIGHT}|<\|channel\|>\s*final\b[^\n]{{0,60}}?<\|message\|>|<channel\|>|<\|inner_suffix\|>"
    r"|<unused95>|\bHere(?:'s| is) my response:)",
    re.DOTALL | re.IGNORECASE,
)
_TAGGED_THOUGHTS = re.compile(
    rf"{_LEFT}(?:/|end_)?{_PREFIX}(?:(?:re)?think(?:ing)?|thoughts?){_RIGHT}|<\|channel\|?>", re.IGNORECASE
)
_THOUGHT_BEGINS = re.compile(
    rf"{_BEGIN}{_THOUGHT}{_RIGHT}|<\|channel\|?>\s*(?:analysis|commentary|thought)|<\|inner_prefix\|>|<unused94>"
    r"|\bHere(?:'s| is) my thought process:",
    re.IGNORECASE,
)
_CHANNELS_AS_TEXT = re.compile(r"analysis(?:.*assistantfinal|(?=\w).*)", re.DOTALL)  # of gpt-oss
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|eo[tm]_id|end|return|endoftext|end_of_text|end_of_turn|end▁of▁sentence)\|>|</s>|<eos>|<end_of_turn>",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"<\|[^<>|\n]{1,40}\|>(?:\s?assistant\b)?|<bos>|<s>", re.IGNORECASE)
_FIRST_TOKENS = re.compile(rf"(?:\s*(?:{_TOKEN.pattern}|{_TURN_ENDS.pattern}))*", re.IGNORECASE)
_ANSWER_TAGS = [
    re.compile(rf".*{_BEGIN}{name}{_RIGHT}(.*?)(?:{_END}{name}{_RIGHT}|$)", re.DOTALL | re.IGNORECASE)
    for name in ("answer", _ANSWER)
]
_LATEX_TEXT = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|sf)|mbox)\s*\{([^{}]*)\}?")
_BOXED = re.compile(r".*\\(?:boxed|fbox)\s*\{([^{}]*)", re.DOTALL)
_FORMAT = re.compile(r"```\w*|\*\*|\\[()\[\]]")
_HTML = re.compile(r"</?(?:[bipu]|br|em|strong|code|span|div|h\d)\b[^<>\n]*>", re.IGNORECASE)
_QUALIFIED = (
    r"(?:(?:final|correct|right|best|most|likely|predicted|selected|chosen|my|model|answer|choice|option)[ _-]?){0,3}"
)
# '"answer": "B"' in JSON, even if truncated, and in Python's spelling.
_FIELDS = [
    re.compile(
        rf"""(["'])(?P<key>{_QUALIFIED}(?:{names})(?:[ _-]?(?:letter|label|text|option|choice))?)\1\s*:\s*(?![\s{{])"""
        r"""(?:\[(?P<list>[^\]]*)|(["'])(?P<text>.*?)(?<!\\)(?:\4|$)|(?P<bare>[^,}\]]*))""",
        re.DOTALL | re.IGNORECASE,
    )
    for names in (
        r"answer|choice|option|prediction|答案|选项|選項|答え|정답|respuesta|réponse|resposta|risposta|antwort|ответ",
        r"selected|selection|result|response|label|letter|output|conclusion|solution|verdict|guess|pick"
        r"|class|classification|category",
    )
]
_ONLY_ITEM = re.compile(r"""[\[{(]\s?(["'])([^"']*)\1\s?[\]})]""")

_RIGHT_ONE = r"(?:correct[ea]?|corrett?a|exact[ea]?|esatta|juste|richtige|korrekte|finale?)"
_NOUN = (
    r"\b(?:answer|ans|(?:correct|right|best|final|chosen|my)\s+(?:answer|option|choice|selection|letter|response"
    r"|one|prediction|guess|pick|label)"
    rf"|(?:{_RIGHT_ONE}\s+|bonne\s+|beste\s+)?(?:r[eé]ponse|respuesta|resposta|risposta|antwort)(?:\s+{_RIGHT_ONE})?"
    rf"|(?:option|opción|opção|opzione|choix|elección|escolha|scelta)\s+{_RIGHT_ONE}"
    rf"|{_RIGHT_ONE}\s+(?:option|wahl|auswahl)|ответ)"
)
_COPULA = (
    r"(?:is|was|(?:would|should|must|has to|appears to|seems to) be|est|serait|es|sería|é|seria|è|sarebbe|ist|wäre"
    r"|lautet|это)"
)
_IS = rf"(?:\s+{_COPULA}(?!\w)\s*:?|\s*[:=]|\s+-+>?(?=\s))"
_CHOOSE = (
    r"\b(?:je\s+choisis|elijo|escojo|escolho|scelgo|ich\s+(?:wähle|nehme)|выбираю)\b\s*:?"
    r"|\bI(?:'d|'ll|'m|\s+will|\s+would|\s+have\s+to|\s+am)?\s+"
    r"(?:choose|chose|choosing|pick|picking|select|selecting|go(?:ing)?\s+(?:with|for)|vote\s+for)\b\s*:?"
)
_CHINESE_IS = r"(?:(?:应该|應該|应当|應當|应|應|就)?(?:是|为|為|选|選)|は|은|는)"
_CHINESE = (
    rf"(?:答案|正解|答え|정답|我?(?:选择|選擇|选项|選項|选|選))\s*{_CHINESE_IS}?\s*:?"
    rf"|(?:回答|解答|선택|답변?)\s*(?:{_CHINESE_IS}\s*:?|:)"
)
# "The answer is ...", "Answer: ...", "I choose ..."; the last one, since reasons come before it.
_LEAD_IN = re.compile(
    rf".*(?:{_NOUN}{_IS}|{_CHOOSE}|{_CHINESE})\s*(?:(?:most\s+likely|likely|probably|clearly|definitely)\s+)?",
    re.DOTALL | re.IGNORECASE,
)
NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|none|cannot|without|except|unlike|rather|instead|nicht|pas|non(?!-)|não|не)\b|n't\b"
)
_WRONG_LEAD_IN = re.compile(
    r"\b(?:wrong|incorrect|false|worst|least likely|unlikely)\s+(?:answer|option|choice)|不|错误|錯誤"
    r"|\b(?:mauvaise|fausse|falsche|неправильный|неверный)\s"
)


def unwrap(reply: str) -> str | None:
    """
    The reply without thoughts, tags and lead-in; `None` if the lead-in is negated ("I do not think the answer is B")
    or is followed only by an article.
    """
    text = _LATEX_TEXT.sub(r"\1", _without_markup(_own_turn(_without_thoughts(reply))))
    boxed = _BOXED.match(text)
    text = _field(boxed.group(1).strip() if boxed else text)
    lead_in = _LEAD_IN.match(text)
    if lead_in is None or not text[lead_in.end() :].strip(OUTER):
        return text
    sentence = fold(re.split(r"[.!?。\n]", lead_in.group())[-1])
    rest = text[lead_in.end() :]
    cut_off = rest.strip() == "a" and not lead_in.group().rstrip().endswith((":", "="))  # "The answer is a"
    return None if cut_off or NEGATION.search(sentence) or _WRONG_LEAD_IN.search(sentence) else rest


def without_thoughts(reply: str) -> str:
    """A transcript, a caption or a text without the thoughts in tags before it; other tags and markup stay."""
    return _without_thoughts(reply).strip() if _TAGGED_THOUGHTS.search(reply) else reply


def _without_thoughts(reply: str) -> str:
    """
    What comes after the thoughts, or before them if nothing does or only that has tags for an answer. Thoughts that
    were cut off are removed too.
    """
    as_text = _CHANNELS_AS_TEXT.match(reply)
    reply = reply[as_text.end() :] if as_text else reply
    thoughts, begins = _THOUGHTS.match(reply), _THOUGHT_BEGINS.search(reply)
    before, after = reply[: begins.start()] if begins else "", reply[thoughts.end() :] if thoughts else reply
    cut_off = _THOUGHT_BEGINS.search(after)
    after = after[: cut_off.start()] if cut_off else after
    is_empty = not _TOKEN.sub("", after).strip(OUTER)
    tag = _ANSWER_TAGS[1]
    return before if thoughts and (is_empty or tag.match(before) and not tag.match(after)) else after


def _own_turn(text: str) -> str:
    """The text up to the end of the model's turn: some models go on with another one."""
    return _TURN_ENDS.split(_FIRST_TOKENS.sub("", text, count=1), maxsplit=1)[0]


def _without_markup(text: str) -> str:
    for tag in _ANSWER_TAGS:
        inside = tag.match(text)
        text = inside.group(1).strip(" \n:") if inside else text
    text = _HTML.sub("", text) if "</" in text else text  # "<B>" alone is a letter
    return _FORMAT.sub("", _TOKEN.sub(" ", text)).strip()


def _field(text: str) -> str:
    """The values of the fields of an answer in JSON, one per line; of one that is repeated, the last."""
    for pattern in _FIELDS:
        found = {
            field["key"].casefold(): next(part for part in field.group("list", "text", "bare") if part is not None)
            for field in pattern.finditer(text)
        }
        if found:
            return "\n".join(dict.fromkeys(value.strip() for value in found.values()))
    only = _ONLY_ITEM.fullmatch(text)
    return only.group(2) if only else text


__all__ = ["NEGATION", "unwrap", "without_thoughts"]
