"""Answers of a model in training: accuracy, exact match, and error rates of transcripts, on some held-out questions.

With `--eval_generate 64` the model answers that many questions of each set of `eval_data` at every evaluation, always
the same ones, greedily and in batches; each of several processes answers its share. The metrics depend on the row:

- `accuracy`: rows with a column `choices` (or `options`), which in a set of questions about clips can be a field of
  the question. By the rule "content" of `falcon3-audio evaluate`: which option the reply means.
- `wer` or, if most letters of a set's answers are of scripts without spaces between words, `cer`: rows without options,
  aligned as in `falcon3-audio score --rule wer` and `cer`. If some sets have one and some the other, there is none
  over all sets. It is meant for transcripts and tells little about other open answers. Rows do not state their
  language, so words are those of rewards.py. `score` uses Whisper's normalisers, which know English fillers and
  contractions, and treat vowel signs as punctuation.
- `exact_match`: all rows. Exactly the words of the answer, in their order (rewards.py).
"""

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset

from falcon3_audio.evaluation.predictions import ANSWERED, Prediction
from falcon3_audio.evaluation.read_option import resolve
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.word_errors import count_word_errors
from falcon3_audio.processing import AudioTooLongError, Falcon3AudioProcessor, UnreadableAudioError

from .data.options import OPTIONS, listed
from .data.signs_of_sound import is_given
from .data.training_sets import WHOLE_ROW, sets_of
from .rewards import same_words, words


SEED = 0
# A reply can have this many times the tokens of the longest right answer, and some more; endless replies are cut.
ROOM, MORE_ROOM = 2, 16
# Prefixes of the Unicode names of letters in scripts without spaces between words.
WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")


@dataclass(frozen=True)
class Asked:
    """A question: the name of its set, the chat up to its last answer, that answer, and the row's options, if any."""

    of: str
    prompt: list[dict[str, Any]]
    answer: str
    choices: tuple[str, ...]
    origin: str


def draw_questions(examples: Dataset, sets: Mapping[str, int], count: int) -> list[Asked]:
    """
    Up to `count` questions of each set, drawn once.

    Args:
        examples: from `load_training_data`.
        sets: number of examples of each set, by name and in order.
        count: 1 or more.

    Raises a `ValueError` for a chat that does not end with an answer, for options that cannot be read or do not
    include the answer, and if jiwer is missing and there are questions without options.
    """
    starts = itertools.accumulate(sets.values(), initial=0)
    asked = [
        question
        for (name, size), start in zip(sets.items(), starts)
        for question in _draw(examples, range(start, start + size), name, count)
    ]
    if find_spec("jiwer") is None and any(not question.choices for question in asked):
        raise ValueError("eval_generate counts word errors with jiwer, which is not installed: pip install jiwer.")
    return asked


def prompt_and_answer(example: Mapping[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """
    A chat without its last message, and the text of that. Raises a `ValueError` if it is not an answer to something.
    """
    *prompt, last = example["messages"]
    if last["role"] != "assistant" or not prompt:
        raise ValueError(
            f"{example['origin']}: needs a question, followed by the right answer at the end; got {last}."
        )
    return prompt, "".join(item["text"] for item in last["content"] if item["type"] == "text")


def _draw(examples: Dataset, part: range, name: str, count: int) -> Iterator[Asked]:
    sets, places = sets_of(examples), examples.with_format("numpy")
    for number in sorted(np.random.default_rng(SEED).permutation(len(part))[:count].tolist()):
        index = part[number]
        example, place = examples[index], places[index]
        prompt, answer = prompt_and_answer(example)
        _, rows, _ = sets[int(place["set"])]
        choices = choices_of(rows[int(place["row"])], int(place["question"]), example["origin"])
        answer = right_option(answer, choices, example["origin"]) if choices else answer
        yield Asked(name, prompt, answer, choices, example["origin"])


def right_option(answer: str, choices: Sequence[str], origin: str) -> str:
    """The option that an answer means. Raises a `ValueError` if it means none."""
    option = resolve(answer, choices)
    if option is None:
        raise ValueError(
            f"{origin}: the answer {answer!r} is none of the row's options {list(choices)}, so the right option is "
            "unknown. Fix the options, or leave them out."
        )
    return option


def choices_of(row: dict[str, Any], question: int, origin: str) -> tuple[str, ...]:
    """
    The options of a row, or of one of its questions; () if there are none. They are a list of texts or numbers, given
    directly, under `text` (next to their labels, as in ARC) or as JSON. Raises a `ValueError` that names the row for
    anything else.
    """
    parts = row.get("questions") if question != WHOLE_ROW else None
    holder = parts[question] if isinstance(parts, list) else row
    name = next((name for name in OPTIONS if is_given(holder.get(name))), None)
    if name is None:
        return ()
    found = listed(holder[name])
    if found is None:
        raise ValueError(
            f"{origin}: `{name}` must be a list of texts, got {holder[name]!r:.200}. Convert it, or rename it if it "
            "is something else."
        )
    return found


def measured_of(asked: Sequence[Asked]) -> list[str]:
    """The metrics that these questions can have; with several sets also those of each, named as in the log."""
    sets = _by_set(asked)
    parts = [f"{name}_{metric}" for name in sets if len(sets) > 1 for metric in _metrics_of(sets[name])]
    return [*_metrics_of(asked), *parts]


def _metrics_of(asked: Sequence[Asked]) -> list[str]:
    rate = rate_of(asked)
    closed = any(question.choices for question in asked)
    return ["exact_match"] * bool(asked) + ["accuracy"] * closed + ([rate] if rate else [])


def _by_set(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    return {name: [one for one in asked if one.of == name] for name in dict.fromkeys(one.of for one in asked)}


def rate_of(asked: Sequence[Asked]) -> str | None:
    """`wer` or `cer`, see the top of this file; `None` if no question is open, or some sets have one, some the other."""
    answers = [[one.answer for one in part if not one.choices] for part in _by_set(asked).values()]
    rates = {"cer" if _has_no_spaces(some) else "wer" for some in answers if any(map(_has_word, some))}
    return rates.pop() if len(rates) == 1 else None


class Examination:
    """
    Runs a model on questions.

    Args:
        asked: from `draw_questions`.
        processor: of the model.
        batch_size: questions per batch in each process.
        skip_bad_audio: whether a question whose clip cannot be read is left out, or is an error.
    """

    def __init__(
        self, asked: Sequence[Asked], processor: Falcon3AudioProcessor, batch_size: int, skip_bad_audio: bool
    ):
        self.asked, self.processor, self.batch_size, self.skip_bad_audio = asked, processor, batch_size, skip_bad_audio
        longest = max(len(ids) for ids in processor.tokenizer([question.answer for question in asked])["input_ids"])
        self.max_new_tokens = ROOM * longest + MORE_ROOM

    def hold(self, model: torch.nn.Module, process: int = 0, processes: int = 1) -> dict[str, float]:
        """
        Metrics by name, the same in each process; with several sets also `SET_METRIC` for each. Metrics without rows
        are left out. `num_generated` is the number of answered questions; those whose clip is too long for the
        processor are not.
        """
        mine = list(enumerate(self.asked))[process::processes]
        replies = [
            reply
            for start in range(0, len(mine), self.batch_size)
            for reply in self._answer(model, mine[start:][: self.batch_size])
        ]
        found = dict(gather_object(replies))
        answered = [(question, found[number]) for number, question in enumerate(self.asked) if number in found]
        metrics = score_replies(answered, rate_of(self.asked))
        sets = _by_set(self.asked)
        for name in sets if len(sets) > 1 else ():
            part = score_replies([pair for pair in answered if pair[0].of == name], rate_of(sets[name]))
            metrics |= {f"{name}_{metric}": value for metric, value in part.items()}
        return metrics

    def _answer(self, model: torch.nn.Module, asked: Sequence[tuple[int, Asked]]) -> list[tuple[int, str]]:
        """(number, reply) of each question that can be asked. If one in a batch cannot, they are asked one by one."""
        options = {"padding": True, "padding_side": "left", "truncation": False}
        try:
            inputs = self.processor.apply_chat_template(
                [question.prompt for _, question in asked],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs=options,
            )
        except (AudioTooLongError, UnreadableAudioError) as error:
            if len(asked) > 1:
                return [reply for one in asked for reply in self._answer(model, [one])]
            if isinstance(error, AudioTooLongError) or self.skip_bad_audio:
                return []
            raise UnreadableAudioError(f"{asked[0][1].origin}: {error}") from error
        inputs = inputs.to(model.device)
        tokens = model.generate(
            **inputs, do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens, use_cache=True
        )
        said = self.processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [(number, reply.strip()) for (number, _), reply in zip(asked, said)]


def score_replies(answered: Sequence[tuple[Asked, str]], rate: str | None) -> dict[str, float]:
    """
    The metrics of questions with their replies; see the top of this file.

    Args:
        rate: from `rate_of` all questions, whether they were answered or not.
    """
    metrics: dict[str, float] = {"num_generated": len(answered)}
    if answered:
        metrics["exact_match"] = _mean([same_words(reply, question.answer) for question, reply in answered])
    closed = [_is_right(question, reply) for question, reply in answered if question.choices]
    if closed:
        metrics["accuracy"] = _mean(closed)
    said = [(question.answer, reply) for question, reply in answered if not question.choices]
    return metrics | (_error_rate(said, rate) if rate else {})


def _mean(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def _is_right(question: Asked, reply: str) -> bool:
    return is_right(Prediction(question.origin, ANSWERED, reply, choices=question.choices, answer=question.answer))


def _error_rate(answered: Sequence[tuple[str, str]], rate: str) -> dict[str, float]:
    """The rate over all answers whose reference has a word."""
    normalize = _characters if rate == "cer" else _plain_words
    said = [(reference, reply) for reference, reply in answered if _has_word(reference)]
    if not said:
        return {}
    references, replies = zip(*said)
    counts = count_word_errors(references, replies, normalize)
    return {rate: sum(row.errors for row in counts) / sum(row.words for row in counts)}


def _plain_words(text: str) -> str:
    return " ".join(words(text))


def _characters(text: str) -> str:
    """Each letter with its marks as a separate word."""
    letters = "".join(words(text))
    return "".join(letter if unicodedata.category(letter).startswith("M") else f" {letter}" for letter in letters)


def _has_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def _has_no_spaces(answers: Sequence[str]) -> bool:
    letters = [letter for answer in answers for letter in answer if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith(WITHOUT_SPACES) for letter in letters) > len(letters)
