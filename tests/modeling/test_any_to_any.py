"""The any-to-any pipeline of transformers with this project's models."""

import pytest
from pipeline_calls import CLIPS, about, texts
from tiny import question
from transformers import pipeline


def test_the_any_to_any_pipeline(sensitive, pipe):
    general = pipeline("any-to-any", model=sensitive)
    chats = [question(CLIPS[name], text="What?") for name in "ab"]
    options = {"max_new_tokens": 8, "return_full_text": False}
    assert general(text=chats[0], **options)[0]["generated_text"] == about(pipe, "a")
    assert texts(general(text=chats, **options)) == [about(pipe, "a"), about(pipe, "b")]


def test_batches_of_the_any_to_any_pipeline(sensitive):
    """Clips of different lengths, two clips, none, an answer to continue: batches answer as single chats do."""
    general = pipeline("any-to-any", model=sensitive, max_new_tokens=8)
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A"}]}  # as items: 5.23 continues only these
    begun = [*question(CLIPS["b"], text="What?"), answer]
    about_two, about_none = question(CLIPS["a"], CLIPS["c"], text="Which?"), question(text="What?")
    chats = [question(CLIPS["a"], text="What is it?"), about_two, about_none, begun, question(CLIPS["b"], text="Why?")]
    single = general(text=chats, return_full_text=False)
    for size in (2, 5, 8):
        assert general(text=chats, batch_size=size, return_full_text=False) == single
    assert general(text=[about_none, about_none], batch_size=2, return_full_text=False) == [single[2]] * 2
    assert general(text=chats, batch_size=3) == general(text=chats)
    assert pipeline("any-to-any", model=sensitive, batch_size=2, max_new_tokens=8)(text=chats) == general(text=chats)
    token = general.processor.audio_token
    rows = [{"text": token + name, "audio": CLIPS[name]} for name in "abc"]
    rows.append({"text": [f"{token}d", f"{token}e"], "audio": [CLIPS["a"], CLIPS["c"]]})
    generated = [list(general((row for row in rows), batch_size=size)) for size in (1, 2)]
    assert generated[0] == generated[1] == general(rows, batch_size=4)


def test_several_answers_in_batches_of_the_any_to_any_pipeline(sensitive):
    general = pipeline("any-to-any", model=sensitive, max_new_tokens=8)
    chats = [question(CLIPS[name], text="What?") for name in "abc"]
    options = {
        "generate_kwargs": {"num_return_sequences": 2, "num_beams": 2, "do_sample": False},
        "return_full_text": False,
    }
    assert general(text=chats, batch_size=2, **options) == general(text=chats, **options)


@pytest.mark.parametrize("size", [0, -1, 2.0])
def test_a_batch_size_that_is_none(sensitive, size):
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1"):
        list(pipeline("any-to-any", model=sensitive)(text=[question(CLIPS["a"], text="What?")], batch_size=size))
