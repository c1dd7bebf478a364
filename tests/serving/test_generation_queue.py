"""Generation for many concurrent requests, with a scripted model."""

import gc
import logging
import threading
import weakref

import pytest
import torch
from tiny import make_tokenizer
from transformers import GenerationConfig

from falcon3_audio.serving.generation_queue import (
    DEVICE_ERRORS,
    Generation,
    GenerationFailed,
    GenerationQueue,
    Sampling,
)


END = 2
VOCABULARY = 300


class ScriptedPipe:
    """Answers each chat with the text of its message, then the end token; has only the loop of `generate`."""

    def __init__(self, most: int = 9, error: Exception | None = None):
        self.tokenizer = make_tokenizer()
        self.model = type("Model", (), {"generation_config": GenerationConfig(eos_token_id=END)})()
        self.most, self.error = most, error
        self.batches: list[list[str]] = []
        self.begin, self.step = threading.Event(), lambda number: None
        self.begin.set()

    def __call__(self, chats, batch_size, max_new_tokens, logits_processor, stopping_criteria, **greedy):
        words = [chat[0]["content"] for chat in chats]
        self.batches.append(words)
        assert self.begin.wait(60) and batch_size == len(chats) and greedy["do_sample"] is False
        if len(words) > self.most:
            raise self.error
        scripts = [[*self.tokenizer.encode(text, add_special_tokens=False), END] for text in words]
        input_ids = torch.zeros((len(words), 1), dtype=torch.long)
        for number in range(max_new_tokens):
            self.step(number)
            scores = torch.zeros((len(words), VOCABULARY))
            for row, script in enumerate(scripts):
                scores[row, script[min(number, len(script) - 1)]] = 20.0
            tokens = logits_processor[0](input_ids, scores).argmax(-1)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            if stopping_criteria[0](input_ids, None).all():
                return


@pytest.fixture
def pipe():
    return ScriptedPipe()


def ask(text: str, stream: bool = False, max_tokens: int = 200, **sampling) -> Generation:
    return Generation([{"role": "user", "content": text}], Sampling(max_tokens, **sampling), stream)


def answers(pipe, *generations, max_batch: int = 9) -> GenerationQueue:
    """Returns once all generations are answered."""
    pipe.begin.clear()
    queue = GenerationQueue(pipe, max_batch)
    for generation in generations:
        queue.submit(generation)
    pipe.begin.set()
    queue.close()
    return queue


def parts(generation) -> list:
    found = []
    while not generation.parts.empty():
        found.append(generation.parts.get())
    return found


WORDS = "Ein Bär hört 世界 🐻 and a dog."


def test_an_answer_ends_with_its_end_token_or_its_length(pipe):
    whole, cut = ask(WORDS), ask("a dog", max_tokens=2)
    answers(pipe, whole, cut)
    (part,) = parts(whole)
    tokens = pipe.tokenizer.encode(WORDS, add_special_tokens=False)
    assert (part.text, part.finish_reason, part.tokens) == (WORDS, "stop", len(tokens) + 1)
    (part,) = parts(cut)
    short = pipe.tokenizer.decode(pipe.tokenizer.encode("a dog", add_special_tokens=False)[:2])
    assert (part.text, part.finish_reason, part.tokens) == (short, "length", 2)


def test_streams_come_in_whole_characters(pipe):
    stream = ask(WORDS, stream=True)
    answers(pipe, stream)
    found = parts(stream)
    assert "".join(part.text for part in found) == WORDS and len(found) > 10
    assert not any("\ufffd" in part.text for part in found)
    # An incomplete character stays as the tokenizer decodes it.
    cut = ask("世", stream=True, max_tokens=2)
    answers(pipe, cut)
    assert [part.text for part in parts(cut)] == [pipe.tokenizer.decode(pipe.tokenizer.encode("世")[:2])]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "stop, text", [(("界 🐻 a",), "Ein Bär hört 世"), (("dog?", "hört", "Bär h"), "Ein "), (("dog!",), WORDS)]
)
def test_no_part_of_a_stop_string_is_handed_out(pipe, stream, stop, text):
    generation = ask(WORDS, stream=stream, stop=stop)
    answers(pipe, generation)
    found = parts(generation)
    assert "".join(part.text for part in found) == text and found[-1].finish_reason == "stop"
    assert stream or len(found) == 1


def test_log_probabilities_of_every_token_but_the_end(pipe):
    generation = ask("a dog", top_logprobs=2)
    answers(pipe, generation)
    (part,) = parts(generation)
    assert [step.token for step in part.steps] == pipe.tokenizer.encode("a dog", add_special_tokens=False)
    wanted = torch.tensor([20.0, *[0.0] * (VOCABULARY - 1)]).log_softmax(-1)
    for step in part.steps:
        assert step.logprob == pytest.approx(wanted[0].item()) and step.top[0] == (step.token, step.logprob)
        assert len(step.top) == 2 and step.top[1][1] == pytest.approx(wanted[1].item())


def test_draws_follow_the_temperature(pipe):
    """At temperature 20 the likeliest token has probability e / (e + 299): a run of them would not be sampling."""
    cold, hot = (
        ask("a dog", temperature=0.5, seed=1),
        ask("a dog", temperature=20, seed=1, max_tokens=20, top_logprobs=0),
    )
    answers(pipe, cold, hot)
    assert parts(cold)[0].text == "a dog"
    assert len({step.token for step in parts(hot)[0].steps}) > 10


def test_batches_are_no_larger_than_asked_for(pipe):
    answers(pipe, *(ask(str(number)) for number in range(5)), max_batch=2)
    # The first can start before the others arrive.
    assert pipe.batches in ([["0", "1"], ["2", "3"], ["4"]], [["0"], ["1", "2"], ["3", "4"]])


def test_a_batch_that_fails_is_tried_one_by_one():
    pipe = ScriptedPipe(most=1, error=MemoryError())
    pipe.begin.clear()
    generations = [ask(text) for text in ("zero", "one", "two")]
    answers(pipe, *generations)
    assert [parts(generation)[0].text for generation in generations] == ["zero", "one", "two"]
    assert max(map(len, pipe.batches)) > 1


@pytest.mark.parametrize("stop", [(), ("never",)])
def test_whole_answers_begin_again_after_a_batch_that_failed_midway(stop):
    pipe = ScriptedPipe()

    def fail(number):
        if len(pipe.batches[-1]) == 3 and number == 2:
            raise MemoryError

    pipe.step = fail
    drawn = {"temperature": 20, "max_tokens": 20, "stop": stop}
    alone = ask("one", seed=1, **drawn)
    answers(ScriptedPipe(), alone)
    whole, seeded, streamed = ask("zero", stop=stop), ask("one", seed=1, **drawn), ask("two", stream=True)
    begin_together(pipe, whole, seeded, streamed)
    assert parts(whole)[0].text == "zero" and parts(seeded)[0].text == parts(alone)[0].text
    assert isinstance(parts(streamed)[-1], GenerationFailed)  # part of it was already sent
    assert pipe.batches[1:] == [["zero", "one", "two"], ["zero"], ["one"]]


def begin_together(pipe, *generations):
    """Runs them as one batch, after another batch."""
    pipe.begin.clear()
    queue = GenerationQueue(pipe, 9)
    queue.submit(ask("first"))
    while not pipe.batches:
        pass
    for generation in generations:
        queue.submit(generation)
    pipe.begin.set()
    queue.close()


def test_what_a_failed_batch_took_is_free_when_its_requests_begin_again(monkeypatch):
    # Log capture would keep a reference to the error.
    monkeypatch.setattr(logging.getLogger("falcon3_audio.serving.generation_queue"), "propagate", False)
    taken = []

    class Greedy(ScriptedPipe):
        def __call__(self, chats, **settings):
            if len(chats) > 1:
                memory = torch.zeros(1)
                taken.append(weakref.ref(memory))
                raise MemoryError
            gc.collect()
            alive.extend(reference() is not None for reference in taken)
            super().__call__(chats, **settings)

    pipe, alive, generations = Greedy(), [], [ask("zero"), ask("one")]
    begin_together(pipe, *generations)
    assert [parts(generation)[0].text for generation in generations] == ["zero", "one"]
    assert taken and alive == [False, False]


def test_answers_that_the_model_does_not_end_have_failed():
    class Ending(ScriptedPipe):
        def __call__(self, chats, stopping_criteria, **settings):
            assert self.begin.wait(60)
            stopping_criteria[0](torch.zeros((1, 1), dtype=torch.long), None)

    generation = ask("a dog")
    answers(Ending(), generation)
    (failed,) = parts(generation)
    assert isinstance(failed, GenerationFailed) and str(failed) == "The model stopped before its answer was complete."


def test_a_long_stop_string_is_compared_no_further_than_the_text(pipe):
    generation = ask("a dog", stream=True, stop=(Long("a dog?"),))
    answers(pipe, generation)
    assert "".join(part.text for part in parts(generation)) == "a dog"
    assert Long.longest <= len("a dog")


class Long(str):
    """Records the longest slice that was taken."""

    longest = 0

    def __len__(self):
        return 10**6

    def __getitem__(self, key):
        Long.longest = max(Long.longest, key.stop)
        return super().__getitem__(key)


def test_what_fails_alone_fails_alone():
    pipe = ScriptedPipe()

    def fail(number):
        if pipe.batches[-1] == ["bad"] and number == 1:
            raise KeyError("inside")

    pipe.step = fail
    bad, good = ask("bad"), ask("good")
    queue = answers(pipe, bad, good, max_batch=1)
    (failed,) = parts(bad)
    assert isinstance(failed, GenerationFailed) and str(failed) == "The model failed: KeyError."
    assert parts(good)[0].text == "good" and not queue.broken.is_set()


@pytest.mark.skipif(not DEVICE_ERRORS, reason="torch has no AcceleratorError")
def test_nothing_is_asked_of_a_device_that_failed():
    pipe = ScriptedPipe(most=0, error=DEVICE_ERRORS[0]("the device is lost"))
    first, second = ask("a"), ask("b")
    queue = answers(pipe, first, second, max_batch=1)
    assert queue.broken.is_set() and pipe.batches == [["a"]]
    assert all(isinstance(parts(generation)[0], GenerationFailed) for generation in (first, second))


def test_cancelled_requests_end_and_the_others_go_on(pipe):
    gone, never, stays = ask("a" * 100), ask("never"), ask("a dog hears")
    never.cancelled.set()
    lengths = []

    def cancel(number):
        lengths.append(number)
        if number == 3:
            gone.cancelled.set()

    pipe.step = cancel
    answers(pipe, gone, never, stays)
    assert parts(gone) == parts(never) == [] and parts(stays)[0].text == "a dog hears"
    assert ["never"] not in pipe.batches and all("never" not in batch for batch in pipe.batches)
    assert max(lengths) < 100
