"""Prompts of a batch with a common prefix: it is computed once, and each gets the same answer as on its own."""

import pytest
import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny import question, tokenized, tone
from transformers import AutoModelForMultimodalLM, pipeline

from falcon3_audio.prompt_cache_falcon3_audio import WORTH_SHARING


# A checkpoint whose answers depend on every clip and word.

CLIPS = {"a": tone(2.5, 300), "b": tone(2.5, 1000), "c": tone(1.1, 2000), "long": tone(10)}
QUESTIONS = ["What is it?", "Why?", "How long is the sound that is heard here?", "What is it?"]
ANSWER = {"max_new_tokens": 8, "do_sample": False}


@pytest.fixture(scope="module")
def pipe(sensitive):
    return pipeline("audio-text-to-text", model=sensitive, **ANSWER)


@pytest.fixture
def prefills(pipe, monkeypatch):
    """(prompts, positions) of each forward of the language model with more than one position."""
    shapes: list[tuple[int, int]] = []
    forward = pipe.model.model.language_model.forward

    def spy(*args, inputs_embeds, **kwargs):
        if inputs_embeds.shape[1] > 1:
            shapes.append(tuple(inputs_embeds.shape[:2]))
        return forward(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(pipe.model.model.language_model, "forward", spy)
    return shapes


def ask(pipe, chats, **options):
    return [records[0]["generated_text"] for records in pipe(chats, **options)]


def about(*clips):
    return [question(*(CLIPS[name] for name in clips), text=text) for text in QUESTIONS]


CHATS = {
    "one clip": about("a"),
    "two clips": about("a", "c"),
    "a second clip that differs": [question(CLIPS["a"], CLIPS[name], text="Why?") for name in "bcb"],
    "turns": [
        [*question(CLIPS["a"]), {"role": "assistant", "content": "a dog"}, *question(*clip, text="Why?")]
        for clip in ([], [CLIPS["c"]])
    ],
    "words alone": [
        [{"role": "system", "content": "Answer in one word. " * 4}, *question(text=text)] for text in QUESTIONS
    ],
}


@pytest.mark.parametrize("name", CHATS)
def test_answers_are_those_of_each_alone(pipe, prefills, name):
    chats = CHATS[name]
    alone = [ask(pipe, [chat])[0] for chat in chats]
    longest = max(width for _, width in prefills)
    prefills.clear()
    assert ask(pipe, chats, batch_size=len(chats)) == alone
    assert len(set(alone)) > 1
    (shared, rest) = prefills
    assert shared[0] == 1 and shared[1] >= WORTH_SHARING
    assert rest == (len(chats), longest - shared[1])


def test_a_clip_is_computed_once_for_all_questions(pipe, prefills):
    ask(pipe, about("long"), batch_size=4)
    computed = sum(prompts * positions for prompts, positions in prefills)
    prefills.clear()
    ask(pipe, about("long"), batch_size=1)
    assert computed < 0.5 * sum(prompts * positions for prompts, positions in prefills)


@pytest.mark.parametrize(
    ("chats", "options"),
    [
        ([question(CLIPS["a"]), question(CLIPS["b"])], {}),  # of equal length
        (about("a"), {"num_beams": 2}),
        (about("a"), {"no_repeat_ngram_size": 2}),  # depends on the order of the tokens
        (about("a"), {"cache_implementation": "static"}),
        (about("a"), {"prefix_allowed_tokens_fn": lambda batch, ids: list(range(20, 200))}),
    ],
    ids=["other clips", "beams", "ngrams", "static cache", "allowed tokens"],
)
def test_where_nothing_is_shared(pipe, prefills, chats, options):
    alone = [ask(pipe, [chat], **options)[0] for chat in chats]
    prefills.clear()
    assert ask(pipe, chats, batch_size=len(chats), **options) == alone
    assert len(prefills) == 1 and prefills[0][0] in (len(chats), 2 * len(chats))


def test_without_a_cache_of_clips_nobody_knows_which_are_equal(sensitive, pipe):
    without = pipeline("audio-text-to-text", model=sensitive, audio_cache_tokens=0, **ANSWER)
    chats = [question(CLIPS[name]) for name in "ab"]  # the same text and number of tokens
    answers = ask(pipe, chats, batch_size=1)
    assert ask(without, chats, batch_size=2) == answers and answers[0] != answers[1]


def test_a_processor_that_does_not_fit_is_named(sensitive):
    """With the model's own error, as for a single prompt."""
    pipe = pipeline("audio-text-to-text", model=sensitive, **ANSWER)
    pipe.processor.pooling_window = 4
    with pytest.raises(ValueError, match="The prompts hold .* audio tokens .* but the audio gives"):
        ask(pipe, about("long"), batch_size=4)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_a_prompt_that_was_learned_is_in_no_cache(sensitive, pipe, kind):
    """PEFT prepends the learned prompt to its input, but a cache would already contain it."""
    torch.manual_seed(0)
    settings = kind(task_type="CAUSAL_LM", num_virtual_tokens=4)
    model = get_peft_model(AutoModelForMultimodalLM.from_pretrained(sensitive), settings).eval()
    for weight in model.prompt_encoder.parameters():
        weight.data.normal_()
    tuned = pipeline("audio-text-to-text", model=model, processor=pipe.processor, prompt_cache_tokens=1000, **ANSWER)
    chats = about("a")
    for size in (len(chats), 1, 1):
        wanted = []
        for start in range(0, len(chats), size):
            inputs = tokenized(pipe.processor, chats[start : start + size], add_generation_prompt=True)
            answers = model.generate(**inputs, **ANSWER)[:, inputs["input_ids"].shape[1] :]
            wanted += pipe.tokenizer.batch_decode(answers, skip_special_tokens=True)
        assert ask(tuned, chats, batch_size=size) == wanted
