"""What a model in training answers: accuracy, exact match, and the error rate of transcripts, on some of the held-out questions.

`--eval_generate 64` has that many questions of each set of `eval_data` answered at every evaluation, the same ones each time,
greedily and in batches; of several processes each answers its share. What is measured of a row depends on what it holds:

- `accuracy`: rows with a column `choices` (or `options`), in a set of questions about clips also a field of the question. By the
  rule "content" of `falcon3-audio evaluate`: which option the reply means.
- `wer` or, where most letters are of scripts without spaces between words, `cer`: rows without options, aligned as by `falcon3-audio
  score --rule wer` and `cer`. It is that of transcripts; of other open answers it says little. Rows do not say their language,
  so words are those of rewards.py. Scores have Whisper's normalisers, which know English fillers and contractions, and take
  vowel signs for punctuation.
- `exact_match`: all rows. The words of the answer and no others, in their order (rewards.py).
"""

import itertools
import json
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

from .data.chats import is_given
from .data.training_sets import WHOLE_ROW, sets_of
from .rewards import same_words, words


CHOICES = ("choices", "options")
SEED = 0
# A reply may have this many times the tokens of the longest right answer, and some more: what goes on and on is cut.
ROOM, MORE_ROOM = 2, 16
# How the Unicode names of letters begin whose languages put no spaces between words.
WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "BOPOMOFO")


@dataclass(frozen=True)
class Asked:
    """A question: the set it is of, the chat up to its last answer, that answer, and options where the row has them."""

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
        sets: how many of them each set has, by name and in order.
        count: 1 or more.

    Raises a `ValueError` for a chat that does not end with an answer, options that cannot be read or that the answer is none of,
    and without jiwer if there are questions without options.
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


def _draw(examples: Dataset, part: range, name: str, count: int) -> Iterator[Asked]:
    sets, places = sets_of(examples), examples.with_format("numpy")
    for number in sorted(np.random.default_rng(SEED).permutation(len(part))[:count].tolist()):
        index = part[number]
        example, place = examples[index], places[index]
        *prompt, last = example["messages"]
        answer = "".join(item["text"] for item in last["content"] if item["type"] == "text")
        if last["role"] != "assistant" or not prompt:
            raise ValueError(f"{example['origin']}: eval_generate needs a question, and at the end its answer.")
        _, rows, _ = sets[int(place["set"])]
        choices = choices_of(rows[int(place["row"])], int(place["question"]), example["origin"])
        answer = right_option(answer, choices, example["origin"]) if choices else answer
        yield Asked(name, prompt, answer, choices, example["origin"])


def right_option(answer: str, choices: Sequence[str], origin: str) -> str:
    """The option that an answer means. Raises a `ValueError` if it means none."""
    option = resolve(answer, choices)
    if option is None:
        raise ValueError(
            f"{origin}: the answer {answer!r} is none of the row's options {list(choices)}, so it cannot be told what is right. Mend the "
            "options, or leave them out."
        )
    return option


def choices_of(row: dict[str, Any], question: int, origin: str) -> tuple[str, ...]:
    """
    The options of a row, or of one of its questions; none where it has none. They are a list of texts or numbers, as such, under
    `text` (with their labels beside them, as in ARC) or as JSON. Raises a `ValueError` for others, which names the row.
    """
    parts = row.get("questions") if question != WHOLE_ROW else None
    holder = parts[question] if isinstance(parts, list) else row
    name = next((name for name in CHOICES if is_given(holder.get(name))), None)
    if name is None:
        return ()
    found = _listed(holder[name])
    if found is None:
        raise ValueError(
            f"{origin}: `{name}` must be a list of texts, got {holder[name]!r:.200}. Make it one, or rename it if it is something else."
        )
    return found


def _listed(given: Any) -> tuple[str, ...] | None:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    given = given.get("text") if isinstance(given, dict) else given
    if not isinstance(given, (list, tuple)):
        return None
    options = [one.get("text") if isinstance(one, dict) else one for one in given]
    return tuple(map(str, options)) if all(isinstance(option, (str, int, float)) for option in options) else None


def measured_of(asked: Sequence[Asked]) -> list[str]:
    """The metrics that some questions may have."""
    closed, open_ = any(question.choices for question in asked), any(not question.choices for question in asked)
    return ["exact_match"] * bool(asked) + ["accuracy"] * closed + ["wer", "cer"] * open_


class Examination:
    """
    The questions with what is needed to ask them.

    Args:
        asked: from `draw_questions`.
        processor: of the model.
        batch_size: questions that a process answers at once.
        skip_bad_audio: whether a clip that cannot be read leaves its question out, or is an error.
    """

    def __init__(
        self, asked: Sequence[Asked], processor: Falcon3AudioProcessor, batch_size: int, skip_bad_audio: bool
    ):
        self.asked, self.processor, self.batch_size, self.skip_bad_audio = asked, processor, batch_size, skip_bad_audio
        longest = max(len(ids) for ids in processor.tokenizer([question.answer for question in asked])["input_ids"])
        self.max_new_tokens = ROOM * longest + MORE_ROOM

    def hold(self, model: torch.nn.Module, process: int = 0, processes: int = 1) -> dict[str, float]:
        """
        Metrics by name, `SET_METRIC` of each of several sets among them, the same in each process; without those of which there
        are no rows. `num_generated` is how many questions were answered; those whose clip is too long for the processor are not.
        """
        mine = list(enumerate(self.asked))[process::processes]
        replies = [
            reply
            for start in range(0, len(mine), self.batch_size)
            for reply in self._answer(model, mine[start:][: self.batch_size])
        ]
        found = dict(gather_object(replies))
        answered = [(question, found[number]) for number, question in enumerate(self.asked) if number in found]
        metrics = score_replies(answered)
        sets = dict.fromkeys(question.of for question in self.asked)
        for name in sets if len(sets) > 1 else ():
            part = score_replies([pair for pair in answered if pair[0].of == name])
            metrics |= {f"{name}_{metric}": value for metric, value in part.items()}
        return metrics

    def _answer(self, model: torch.nn.Module, asked: Sequence[tuple[int, Asked]]) -> list[tuple[int, str]]:
        """(number, reply) of each question that can be asked. Those of a batch are asked one by one where one of them cannot."""
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


def score_replies(answered: Sequence[tuple[Asked, str]]) -> dict[str, float]:
    """The metrics of some questions with the replies to them; see the top of this file."""
    metrics: dict[str, float] = {"num_generated": len(answered)}
    if answered:
        metrics["exact_match"] = _mean([same_words(reply, question.answer) for question, reply in answered])
    closed = [_is_right(question, reply) for question, reply in answered if question.choices]
    if closed:
        metrics["accuracy"] = _mean(closed)
    return metrics | _error_rate([(question.answer, reply) for question, reply in answered if not question.choices])


def _mean(verdicts: Sequence[bool]) -> float:
    return sum(verdicts) / len(verdicts)


def _is_right(question: Asked, reply: str) -> bool:
    return is_right(Prediction(question.origin, ANSWERED, reply, choices=question.choices, answer=question.answer))


def _error_rate(answered: Sequence[tuple[str, str]]) -> dict[str, float]:
    """`wer` or `cer` over all that is said; references without a word have none."""
    if not answered:
        return {}
    name, normalize = ("cer", _characters) if _has_no_spaces(answered) else ("wer", _plain_words)
    said = [(reference, reply) for reference, reply in answered if any(map(str.isalnum, normalize(reference)))]
    if not said:
        return {}
    references, replies = zip(*said)
    counts = count_word_errors(references, replies, normalize)
    return {name: sum(row.errors for row in counts) / sum(row.words for row in counts)}


def _plain_words(text: str) -> str:
    return " ".join(words(text))


def _characters(text: str) -> str:
    """Each letter with its marks, as a word."""
    letters = "".join(words(text))
    return "".join(letter if unicodedata.category(letter).startswith("M") else f" {letter}" for letter in letters)


def _has_no_spaces(answered: Sequence[tuple[str, str]]) -> bool:
    letters = [letter for reference, _ in answered for letter in reference if letter.isalpha()]
    return 2 * sum(unicodedata.name(letter, "").startswith(WITHOUT_SPACES) for letter in letters) > len(letters)
