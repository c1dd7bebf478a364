"""Word and character error rates of transcripts: jiwer's alignment after Whisper's text normalisers (those of transformers).

"wer" uses Whisper's English normaliser, and for rows of another `language` Whisper's normaliser for all others. "cer" is
for scripts without spaces, and counts Unicode grapheme clusters, without white space, after the latter, which treats
vowel signs and tone marks (Thai, Hindi) as punctuation, as published numbers do. The rate is the corpus's: all errors
over all reference words, so clips weigh as much as their words; references of which the normaliser leaves nothing
("Uh.") have no rate, so their rows are left out and counted. The English one also converts British to American
spelling, with a list that comes with Whisper's tokenizers (`normalizer.json`), not with transformers. Without it,
"colour" for "color" is an error, and rates are slightly above published ones: give the file, or the folder or Hub id of
a Whisper (`falcon3-audio score ... --rule wer --spelling openai/whisper-small.en`).
Run: `count_word_errors(references, hypotheses, normalizer(read_spelling("openai/whisper-small.en")))`
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .intervals import bootstrap_rate


SPELLING = "normalizer.json"
WER, CER = "wer", "cer"
UNITS = {WER: "word", CER: "character"}  # of each rate, what is counted


@dataclass(frozen=True)
class WordErrors:
    """
    The counts of one row.

    Attributes:
        words: in the reference; 0 if the normaliser leaves none; then all other counts are 0 too.
        substitutions, deletions, insertions: the fewest edits from the reference to the hypothesis.
    """

    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


def normalizer(spelling: dict[str, str] | None = None) -> Callable[[str], str]:
    """
    Whisper's English normaliser: lower case, no punctuation and fillers, contractions in full, numbers in digits.

    Args:
        spelling: American by British words, see `read_spelling`; `None` leaves spelling as it is.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer(spelling or {})


def other_normalizer(split_letters: bool = False) -> Callable[[str], str]:
    """
    Whisper's normaliser for all languages but English: lower case, no punctuation.

    Args:
        split_letters: into characters, for languages without spaces.
    """
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    return BasicTextNormalizer(split_letters=split_letters)


def is_english(language: str | None) -> bool:
    """Whether a set's name of a language ("en", "en_us", "English") is English, as it is if there is no name."""
    return language is None or re.split(r"[-_ (]", language.strip().lower())[0] in ("en", "eng", "english")


def normalizers_of(rule: str, languages: Sequence[str | None], spelling: str | None) -> list[Callable[[str], str]]:
    """
    The normaliser of each row.

    Args:
        rule: a key of `UNITS`.
        languages: of the rows, as the set names them.
        spelling: see `read_spelling`; for "wer".

    Raises the errors of `read_spelling`.
    """
    other = other_normalizer(split_letters=rule == CER)
    english = normalizer(read_spelling(spelling) if spelling else None) if rule == WER else other
    return [english if is_english(language) else other for language in languages]


def read_spelling(source: str) -> dict[str, str]:
    """
    The words that Whisper's normaliser replaces.

    Args:
        source: a `normalizer.json`, a folder that holds one, or the Hub id of a Whisper.

    Raises:
        `ValueError`: the file is not a JSON object of texts.
        `OSError`: it does not exist, or the Hub cannot be reached.
        `huggingface_hub.errors.HFValidationError`: neither a path nor a possible id (a `ValueError`, too).
    """
    path = Path(source)
    if path.is_dir():
        path /= SPELLING
    elif not path.exists():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(source, SPELLING))
        except OSError as error:
            reason = " ".join(str(error).split())
            raise OSError(
                f"{source} is not a file or folder, and its {SPELLING} cannot be downloaded: {reason}"
            ) from error
    try:
        words = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        words = None
    if not isinstance(words, dict) or not all(isinstance(word, str) for word in words.values()):
        raise ValueError(f"{path} is not a normalizer.json of Whisper: expected a JSON object of words to words.")
    return words


def count_word_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalize: Callable[[str], str] | Sequence[Callable[[str], str]],
) -> list[WordErrors]:
    """
    The errors of each row, in words as the normaliser (one, or one for each row) splits them; an empty hypothesis deletes
    every word.

    Raises a `ValueError` for unequal lengths.
    """
    from jiwer import process_words

    if len(references) != len(hypotheses):
        raise ValueError(f"got {len(references)} references but {len(hypotheses)} hypotheses; they must match.")
    normalizers = [normalize] * len(references) if callable(normalize) else normalize
    said, heard = (
        [to_words(text).strip() for text, to_words in zip(texts, normalizers)] for texts in (references, hypotheses)
    )
    counts = []
    for reference, hypothesis in zip(said, heard):
        if not re.search(r"\w", reference):
            counts.append(WordErrors(0, 0, 0, 0))
            continue
        found = process_words(reference, hypothesis)
        words = found.hits + found.substitutions + found.deletions
        counts.append(WordErrors(words, found.substitutions, found.deletions, found.insertions))
    return counts


def error_rate(counts: Sequence[WordErrors], clips: Sequence[int] | None = None, unit: str = "word") -> dict[str, Any]:
    """
    The rate of a corpus: `n` rows, the sums of their counts, `word_error_rate` (over 1 if more is inserted than said),
    and its 95 % bootstrap `interval`, for which whole clips are resampled (`clips` as in `intervals.bootstrap_rate`).
    With another `unit` its name replaces "word" in the keys. `left_out` is the number of further rows, whose
    references have no words; if there are no other rows, the rate is `None`.
    """
    numbers = range(len(counts)) if clips is None else clips
    counted = [(row, clip) for row, clip in zip(counts, numbers) if row.words]
    rows = [row for row, _ in counted]
    sums = {field.name: sum(getattr(row, field.name) for row in rows) for field in fields(WordErrors)}
    rate, interval = None, None
    if rows:
        rate = sum(row.errors for row in rows) / sums["words"]
        interval = bootstrap_rate(
            [row.errors for row in rows], [row.words for row in rows], [clip for _, clip in counted]
        )
    sums = {f"{unit}s" if name == "words" else name: value for name, value in sums.items()}
    found = {"n": len(rows), "left_out": len(counts) - len(rows), **sums}
    return found | {f"{unit}_error_rate": rate, "interval": interval}


def mean_rate(rates: Sequence[dict[str, Any]], unit: str = "word") -> dict[str, Any]:
    """`macro`, the mean of corpora's rates (from `error_rate`), `None` if one has none; without an interval."""
    found = [rate[f"{unit}_error_rate"] for rate in rates]
    return {"macro": None if None in found else sum(found) / len(found), "interval": None}
