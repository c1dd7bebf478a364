"""Batches of mixed lengths, static caches and compiled decoding give the same tokens as one prompt at a time.

The compile backend runs each graph unchanged and counts them, so no C++ compiler is needed.
"""

import pytest
import torch
from tiny import question, tone
from transformers import CompileConfig, pipeline


# A checkpoint whose answers depend on every clip and word.

SHORT, MIDDLE, LONG = tone(0.3, 300), tone(5, 700), tone(31, 500)
MIXED = [question(SHORT), question(MIDDLE), question(LONG), question(text="What is a sound?")]
SEVERAL = question(SHORT, MIDDLE, text="Which is louder?")


@pytest.fixture(autouse=True)
def nothing_compiled(pipe):
    torch.compiler.reset()
    pipe.model.__dict__.pop("_compiled_call", None)
    pipe.model._previous_max_cache_length = -1  # otherwise a static cache is as long as the longest one before it


class Graphs:
    """A compiler that changes nothing, and counts the graphs it was given."""

    def __init__(self):
        self.count = 0

    def backend(self):
        def compile_graph(graph, inputs):
            self.count += 1
            return graph.forward

        return compile_graph  # not a method: `generate` copies the config, so a copy would do the counting


def prompt(pipe, *chats):
    return pipe.processor.apply_chat_template(list(chats), add_generation_prompt=True, tokenize=True, return_dict=True)


def answer(pipe, *chats, **options) -> list[list[int]]:
    """The tokens generated for each chat, as one batch."""
    inputs = prompt(pipe, *chats)
    tokens = pipe.model.generate(**inputs, max_new_tokens=8, do_sample=False, **options)
    return tokens[:, inputs["input_ids"].shape[1] :].tolist()


def compiled_on_any_device(graphs: Graphs, **options) -> CompileConfig:
    """`generate` compiles decoding steps with a static cache on a GPU; this requests it on a CPU too."""
    config = CompileConfig(backend=graphs.backend(), fullgraph=True, mode=None, **options)
    config._compile_all_devices = True
    return config


@pytest.fixture(scope="module")
def alone(pipe):
    """The answer to each chat of the batch, generated one at a time."""
    answers = [answer(pipe, chat)[0] for chat in MIXED]
    assert len({tuple(tokens) for tokens in answers}) == len(MIXED)
    return answers


def test_a_batch_of_mixed_lengths_answers_as_one_by_one(pipe, alone):
    assert answer(pipe, *MIXED) == alone
    texts = pipe.tokenizer.batch_decode(alone, skip_special_tokens=True)
    for size in (2, 3, 4):
        assert [records[0]["generated_text"] for records in pipe(text=MIXED, batch_size=size)] == texts


def test_the_logits_of_a_batch_of_mixed_lengths(pipe):
    """With the positions that `generate` gives padded prompts: other positions would rotate by rounded angles."""
    batch = prompt(pipe, *MIXED)
    mask = batch["attention_mask"]
    with torch.no_grad():
        logits = pipe.model(**batch, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
        for row, real, chat in zip(logits, mask.bool(), MIXED):
            expected = pipe.model(**prompt(pipe, chat)).logits[0]
            torch.testing.assert_close(row[real], expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("chats", [[question(MIDDLE)], [SEVERAL], MIXED, [*MIXED, SEVERAL]], ids=len)
def test_a_static_cache_gives_the_same_tokens(pipe, chats):
    wanted = [answer(pipe, chat)[0] for chat in chats]
    assert answer(pipe, *chats, cache_implementation="static") == wanted
    assert answer(pipe, *chats, cache_implementation="static", max_cache_len=1500) == wanted


def test_a_static_cache_with_beams(pipe):
    options = {"num_beams": 3, "num_return_sequences": 2}
    wanted = answer(pipe, *MIXED[:2], **options)
    assert answer(pipe, *MIXED[:2], cache_implementation="static", **options) == wanted


@pytest.mark.parametrize("options", [{"max_cache_len": 1000}, {}], ids=["one size", "growing"])
def test_decoding_steps_are_compiled_once_for_all_lengths(pipe, alone, options):
    """Without graph breaks; by default for a cache of fixed size, with `dynamic=True` for growing caches."""
    graphs = Graphs()
    config = compiled_on_any_device(graphs, dynamic=None if options else True)
    static = {"cache_implementation": "static", "compile_config": config, **options}
    for chat, wanted in zip(MIXED, alone):
        assert answer(pipe, chat, **static) == [wanted]
    assert graphs.count == 1
    # A different number of prompts is compiled once more, and only once.
    for _ in range(2):
        assert answer(pipe, *MIXED, **static) == alone
    answer(pipe, *MIXED[:3], **static)
    assert graphs.count == 2


def test_a_compiled_model_with_a_dynamic_cache(pipe, alone, monkeypatch):
    """Prompts as well as decoding steps: with dynamic shapes, other lengths trigger no recompilation."""
    graphs = Graphs()
    monkeypatch.setattr(
        pipe.model, "forward", torch.compile(pipe.model.forward, backend=graphs.backend(), dynamic=True)
    )
    assert answer(pipe, MIXED[0]) == alone[:1]
    first = graphs.count
    assert first > 1
    for chat, wanted in zip(MIXED[1:3], alone[1:]):
        assert answer(pipe, chat) == [wanted]
    assert graphs.count == first


def test_the_pipeline_with_a_static_cache(pipe, alone):
    """As `pipe(..., cache_implementation="static")`; the prompt cache, which is dynamic, is not used."""
    graphs = Graphs()
    config = compiled_on_any_device(graphs)
    made = pipeline(
        "audio-text-to-text", model=pipe.model, processor=pipe.processor, prompt_cache_tokens=1000, do_sample=False
    )
    static = {"cache_implementation": "static", "max_cache_len": 1000, "compile_config": config, "max_new_tokens": 8}
    results = made(text=MIXED, **static)
    assert [records[0]["generated_text"] for records in results] == pipe.tokenizer.batch_decode(alone)
    assert graphs.count == 1
