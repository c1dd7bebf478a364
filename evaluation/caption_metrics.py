"""CIDEr-D, ROUGE-L and BLEU-4 of captions against all references of their clip, by pycocoevalcap as in published work.

METEOR and SPICE, and so SPIDEr, need Java; FENSE, BERTScore and CLAP similarity need models of their own. They are
left out, and no number here uses their names. Published tokens come from Stanford's PTBTokenizer (Java); here each
sentence is tokenized by NLTK's Treebank rules, and the same punctuation is removed. The tokens differ in 2 of
AudioCaps' 4,875 published captions and in none of Clotho's 5,225. With one caption of each clip as the reply, this
changed CIDEr-D by less than 0.001.
CIDEr-D takes its document frequencies from the references that are scored, so it is a number for a whole set: for a
few clips, or for part of a set, it is a different number.
Run: `falcon3-audio score OUT` for the benchmarks "audiocaps" and "clotho"
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from .intervals import bootstrap_rate
from .predictions import Prediction
from .unwrap_reply import without_thoughts


CIDER, ROUGE, BLEU = "cider-d", "rouge-l", "bleu-4"
CAPTION_METRICS = {CIDER: "cider_d", ROUGE: "rouge_l", BLEU: "bleu_4"}  # the key of each one's value in a score
NOTE = (
    "Captions: without METEOR, SPICE and SPIDEr (Java) and FENSE (a model); tokens are NLTK's, not PTBTokenizer's. "
    "CIDEr-D is shown times 100; BLEU-4 has no interval."
)
ORDERS = 4  # of n-grams
# What pycocoevalcap removes after tokenizing. Brackets stay, as "-lrb-": its list has them in upper case, but its
# words are in lower case.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

# A metric's input for one reply: the reply's own value, or for BLEU-4 the tokens of the reply and its references.
Result = float | tuple[str, tuple[str, ...]]
Results = Sequence[tuple[Result, int]]


def caption_results(rule: str, rows: Sequence[Prediction]) -> list[Result]:
    """
    The input of `caption_score` for each row; an empty or missing reply has no words, so it scores 0.

    Args:
        rule: a key of `CAPTION_METRICS`.
        rows: each with references.

    Raises:
        `ValueError`: rows without references, or packages that are not installed.
    """
    without = [row.id for row in rows if not row.references]
    if without:
        raise ValueError(
            f"question {without[0]} and {len(without) - 1} more have no references, which --rule {rule} compares captions with."
        )
    try:
        tokens = _tokenizer()
        texts = [(tokens(without_thoughts(row.reply or "")), tuple(map(tokens, row.references))) for row in rows]
        return list(texts) if rule == BLEU else _each(rule, texts)
    except ImportError as error:
        package = (error.name or "pycocoevalcap").partition(".")[0]
        raise ValueError(f"--rule {rule} needs {package}: pip install 'falcon3-audio[captions]'") from error


def caption_score(rule: str, results: Results) -> dict[str, Any]:
    """
    The value of a set, under its key in `CAPTION_METRICS`: the mean of CIDEr-D (0 to 10) or ROUGE-L, with a 95 %
    bootstrap `interval` over clips that keeps document frequencies fixed; or corpus BLEU-4, without an interval.
    """
    values, clips = zip(*results)
    found: dict[str, Any] = {"n": len(values)}
    if rule == BLEU:
        return found | {CAPTION_METRICS[rule]: _bleu(values), "interval": None}
    interval = bootstrap_rate(values, [1] * len(values), clips)
    return found | {CAPTION_METRICS[rule]: sum(values) / len(values), "interval": interval}


def mean_caption_score(rule: str, parts: Sequence[Results]) -> dict[str, Any]:
    """`macro`, the mean of the groups' values, without an interval."""
    values = [caption_score(rule, part)[CAPTION_METRICS[rule]] for part in parts]
    return {"macro": sum(values) / len(values), "interval": None}


def _tokenizer() -> Callable[[str], str]:
    from nltk.tokenize import NLTKWordTokenizer

    tokenizer = NLTKWordTokenizer()

    def tokens(text: str) -> str:
        # The rules recognize a full stop only at the end of the text.
        sentences = SENTENCE_END.split(" ".join(text.lower().split()))
        words = (word for sentence in sentences for word in tokenizer.tokenize(sentence, convert_parentheses=True))
        return " ".join(word.lower() for word in words if word not in PUNCTUATION)

    return tokens


def _sets(texts: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and replies by number, as pycocoevalcap takes them."""
    references = {number: list(references) for number, (_, references) in enumerate(texts)}
    return references, {number: [reply] for number, (reply, _) in enumerate(texts)}


def _each(rule: str, texts: Sequence[tuple[str, tuple[str, ...]]]) -> list[Result]:
    if rule == CIDER:
        from pycocoevalcap.cider.cider import Cider as Metric  # CIDEr-D: clipped counts, and a penalty for the length
    else:
        from pycocoevalcap.rouge.rouge import Rouge as Metric
    return [float(value) for value in Metric().compute_score(*_sets(texts))[1]]


def _bleu(texts: Sequence[tuple[str, tuple[str, ...]]]) -> float:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(ORDERS).compute_score(*_sets(texts), verbose=0)[0][-1]


__all__ = [
    "BLEU",
    "CAPTION_METRICS",
    "CIDER",
    "NOTE",
    "ROUGE",
    "caption_results",
    "caption_score",
    "mean_caption_score",
]
