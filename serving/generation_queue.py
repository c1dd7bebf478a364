"""Requests that wait at the same time are generated together, by the one thread that owns the model.

A batch is one call of `pipeline("audio-text-to-text")`, with its left padding and its cache of encoded clips. Every row
has its own sampling, seed, length and stop strings: `generate` decodes greedily, and two of its hooks do the rest. One
samples a row's token before the most likely one is taken; the other hands out each token and says which rows have
finished, including those whose client has disconnected. A batch runs to its end before the next one starts. If it
fails, requests of which nothing was handed out are retried one by one.
"""

import logging
import threading
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, StoppingCriteria, TopPLogitsWarper

from falcon3_audio import AudioTextToTextPipeline
from falcon3_audio.devices import DEVICE_ERRORS, LOWEST_TEMPERATURE


logger = logging.getLogger(__name__)

LOWEST_LOGPROB = -9999.0  # JSON has no infinity
INCOMPLETE = "\ufffd"  # a tokenizer's output for bytes that are not a whole character yet


@dataclass(frozen=True)
class Sampling:
    """
    Attributes:
        max_tokens: of the answer, including its end token.
        temperature: 0 decodes greedily.
        top_p: the total probability of the most likely tokens that are sampled from.
        seed: `None` picks a random one. A row's samples do not depend on the rest of its batch.
        stop: texts that end the answer and are not part of it.
        top_logprobs: how many tokens are listed with their log-probabilities at each step; `None`: no log-probabilities.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Step:
    """One token: its id and log-probability, and those of the most likely tokens."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Part:
    """
    What was added to an answer.

    Attributes:
        text: can be empty.
        tokens: of the answer so far.
        steps: of the added tokens, if log-probabilities were requested; without the end token.
        finish_reason: "stop" or "length" in the last part.
    """

    text: str
    tokens: int
    steps: list[Step]
    finish_reason: str | None


class GenerationFailed(Exception):
    """The model raised an error, which is in the log, or did not complete its answer."""


class Parts(Protocol):
    """Receives the parts of an answer from the thread that generates."""

    def put(self, item: Part | GenerationFailed) -> None: ...


@dataclass(eq=False)
class Generation:
    """
    One chat to answer.

    Attributes:
        messages: as `pipeline` takes them, with audio as arrays.
        sampling: how to decode.
        stream: whether text is handed out as it is generated; otherwise in one part.
        parts: filled by the worker; the last has a `finish_reason`, or is a `GenerationFailed`.
        cancelled: set when the answer is no longer wanted; nothing more is put into `parts` then.
    """

    messages: list[dict[str, Any]]
    sampling: Sampling
    stream: bool = False
    parts: Parts = field(default_factory=SimpleQueue[Part | GenerationFailed])
    cancelled: threading.Event = field(default_factory=threading.Event)


class GenerationQueue:
    """
    Args:
        pipe: of Falcon3-Audio. Nothing else may use it, or its tokenizer, from now on.
        max_batch: requests that are generated together.
    """

    def __init__(self, pipe: AudioTextToTextPipeline, max_batch: int):
        self._pipe, self._max_batch = pipe, max_batch
        ends = pipe.model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._closing = False
        self.running = 0
        self.broken = threading.Event()  # the device cannot be used again in this process
        self._worker = threading.Thread(target=self._work, name="generation", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, generation: Generation) -> None:
        with self._changed:
            self._waiting.append(generation)
            self._changed.notify()

    def close(self) -> None:
        """Returns when everything that was submitted is answered."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
            self.running = 0

    def _next_batch(self) -> list[Generation]:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                batch: list[Generation] = []
                while self._waiting and len(batch) < self._max_batch:
                    generation = self._waiting.popleft()
                    if not generation.cancelled.is_set():
                        batch.append(generation)
                if batch or not self._waiting and self._closing:
                    self.running = len(batch)
                    return batch

    def _answer(self, batch: list[Generation]) -> None:
        rows = [_Row(generation, self._pipe.tokenizer, self._ends) for generation in batch]
        why, retry = "The model stopped before its answer was complete.", False
        try:
            self._generate(rows)
        except Exception as error:  # models can raise anything for a prompt, or for a batch this large
            logger.exception("A batch of %d failed", len(batch))
            if isinstance(error, DEVICE_ERRORS):
                self.broken.set()
            why, retry = f"The model failed: {type(error).__name__}.", len(batch) > 1 and not self.broken.is_set()
        # After the `except`: the error's traceback holds the memory of the batch.
        again = []
        for row in rows:
            if row.finished or row.generation.cancelled.is_set():
                continue
            if retry and not row.handed_out:
                again.append(row.generation)
            else:
                row.generation.parts.put(GenerationFailed(why))
        for generation in again:
            self._answer([generation])

    def _generate(self, rows: "list[_Row]") -> None:
        if self.broken.is_set():
            raise RuntimeError("the device failed earlier")
        self._pipe(
            [row.generation.messages for row in rows],
            batch_size=len(rows),
            max_new_tokens=max(row.generation.sampling.max_tokens for row in rows),
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            # Settings that a checkpoint can have and that would end answers or create several tokens in a step.
            max_time=None,
            stop_strings=None,
            prompt_lookup_num_tokens=None,
            logits_processor=[_Draw(rows)],
            stopping_criteria=[_HandOut(rows)],
        )


class _Row:
    """The growing answer to one request, on the worker's side."""

    def __init__(self, generation: Generation, tokenizer: Any, ends: set[int | None]):
        self.generation, self.finished, self.tokens = generation, False, list[int]()
        self._tokenizer, self._ends = tokenizer, ends
        self._sampling = generation.sampling
        self._steps: list[Step] = []
        self._logprobs: torch.Tensor | None = None
        self.handed_out = 0  # characters
        self._random = torch.Generator()
        if self._sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(self._sampling.seed)

    def draw(self, scores: torch.Tensor) -> None:
        """Unless decoding is greedy, draws the next token from its scores `(vocabulary,)` and masks all others."""
        if self._sampling.top_logprobs is not None:
            self._logprobs = scores.log_softmax(-1)
        if self._sampling.temperature < LOWEST_TEMPERATURE:
            return
        likely = scores[None] / self._sampling.temperature
        if self._sampling.top_p < 1:
            likely = TopPLogitsWarper(self._sampling.top_p)(None, likely)
        # On the CPU, where a seed gives the same samples for every device.
        drawn = torch.multinomial(likely[0].softmax(-1).cpu(), 1, generator=self._random).item()
        kept = scores[drawn].item()
        scores.fill_(-torch.inf)
        scores[drawn] = kept

    def add(self, token: int) -> None:
        if self.generation.cancelled.is_set():
            self.finished = True
            return
        self.tokens.append(token)
        ended = token in self._ends
        if self._logprobs is not None and not ended:
            self._steps.append(_step(token, self._logprobs, self._sampling.top_logprobs or 0))
        reason = "stop" if ended else "length" if len(self.tokens) >= self._sampling.max_tokens else None
        if reason or self.generation.stream or self._sampling.stop:
            self._hand_out(reason)

    def _hand_out(self, reason: str | None) -> None:
        text = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        stops = [place for stop in self._sampling.stop if (place := text.find(stop)) >= 0]
        if stops:
            text, reason = text[: min(stops)], "stop"
        elif reason is None:
            text = _settled(text, self._sampling.stop)
        added = text[self.handed_out :]
        if reason or (added and self.generation.stream):
            self.handed_out += len(added)
            self.generation.parts.put(Part(added, len(self.tokens), self._steps, reason))
            self._steps = []
        self.finished = reason is not None


def _settled(text: str, stops: tuple[str, ...]) -> str:
    """The text without an end that the next tokens can change or complete to a stop string."""
    text = text.rstrip(INCOMPLETE)
    begun = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return text[: len(text) - max(begun, default=0)]


def _step(token: int, logprobs: torch.Tensor, top: int) -> Step:
    values, indices = logprobs.topk(min(top, len(logprobs)))
    listed = [(index, max(value, LOWEST_LOGPROB)) for value, index in zip(values.tolist(), indices.tolist())]
    return Step(token, max(logprobs[token].item(), LOWEST_LOGPROB), listed)


class _Draw(LogitsProcessor):
    def __init__(self, rows: list[_Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, row_scores in zip(self.rows, scores, strict=True):
            if not row.finished:
                row.draw(row_scores)
        return scores


class _HandOut(StoppingCriteria):
    def __init__(self, rows: list[_Row]):
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            if not row.finished:
                row.add(token)
        return torch.tensor([row.finished for row in self.rows], device=input_ids.device)


__all__ = ["Generation", "GenerationFailed", "GenerationQueue", "Part", "Sampling", "Step"]
