"""The processor's messages: clips, texts and answers in the order in which they are written, threads, and what is refused."""

import copy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch
from jinja2 import TemplateError
from tiny import SAMPLING_RATE, audio_tokens, features_of, make_processor, question, tokenized, tone

from falcon3_audio.processing import load_audio, processing_falcon3_audio


SECOND = SAMPLING_RATE
SOUND = tone(61.0)


def test_audios_of_a_batch_stay_with_their_prompts(processor):
    lengths = [SECOND, 3 * SECOND, 2 * SECOND, SECOND // 2]
    a, b, c, d = (tone(length / SECOND, 300 + length) for length in lengths)
    chats = [
        question(a, b),
        question(text="Only words."),
        [*question(c), {"role": "assistant", "content": "a dog"}, *question(d, text="And this?")],
    ]
    inputs = tokenized(processor, chats, add_generation_prompt=True)
    assert [audio_tokens(processor, row) for row in inputs["input_ids"]] == [25 + 75, 0, 50 + 13]
    for clip, row in zip((a, b, c, d), inputs["input_features"].numpy(), strict=True):
        alone = features_of(processor, clip)
        np.testing.assert_array_equal(row[:, : alone.shape[1]], alone)
    for chat, row, mask in zip(chats, inputs["input_ids"], inputs["attention_mask"]):
        alone = tokenized(processor, chat, add_generation_prompt=True)
        assert row[mask.bool()].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize("key", ["audio", "path", "url"])
def test_sources_in_messages(processor, tmp_path, key):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(1.0, rate=44_100), 44_100, subtype="FLOAT")
    inputs = tokenized(processor, [{"role": "user", "content": [{"type": "audio", key: str(path)}]}])
    wanted = features_of(processor, load_audio(tone(1.0, rate=44_100), 44_100))
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


def test_messages_are_not_changed(processor, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:SECOND], 16_000)
    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
    options = {"return_labels": True, "audio_kwargs": {"sampling_rate": 16_000}}
    before = copy.deepcopy((chat, options))
    tokenized(processor, chat, processor_kwargs=options)
    tokenized(processor, [chat, chat])
    assert (chat, options) == before
    clip = SOUND[:SECOND].copy()
    chat = question(clip)
    tokenized(processor, chat)
    assert chat[0]["content"][0]["audio"] is clip and np.array_equal(clip, SOUND[:SECOND])


def message_errors(token):
    user = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
    return {
        "empty": ([], "conversation is empty"),
        "placeholder in a string": ([*user, {"role": "user", "content": "a" + token}], f"Message 2.*{token}"),
        "placeholder in an item": ([*user, *question(text=token)], f"Message 2.*{token}"),
        "no source": ([*user, {"role": "user", "content": [{"type": "audio"}]}], "message 2 needs exactly one"),
        "two sources": (
            [{"role": "user", "content": [{"type": "audio", "audio": SOUND, "path": "a.wav"}]}],
            "message 0 needs exactly one",
        ),
        "bad audio": ([*user, *question(np.zeros(0))], "message 2 is empty"),
        "no file": ([{"role": "user", "content": [{"type": "audio", "path": "nowhere.wav"}]}], "message 0.*no file"),
        "OpenAI audio": ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'.*'text' or 'audio'"),
        "image": ([{"role": "user", "content": [{"type": "image", "path": "a"}]}], "'image'.*'text' or 'audio'"),
        "text under another key": ([*user, {"role": "user", "content": [{"type": "text", "content": "a"}]}], "text"),
        "text that is a list": ([*user, *question(text=["What?", "Where?"])], "text"),
        "text that is None": ([*user, *question(text=None)], "text"),
        "words among items": ([*user, {"role": "user", "content": ["What?"]}], "message 2"),
        "text and audio in one item": (
            [*user, {"role": "user", "content": [{"type": "text", "text": "What?", "audio": "a.wav"}]}],
            "message 2 is of type 'text', but has 'audio'",
        ),
        "audio with words": (
            [{"role": "user", "content": [{"type": "audio", "audio": SOUND, "text": "What?"}]}],
            "message 0 is of type 'audio', but has 'text'",
        ),
        "neither": ([*user, {"role": "user", "content": [{}]}], "Message 2.*type None"),
        "both without a type": ([{"role": "user", "content": [{"audio": SOUND, "text": "What?"}]}], "Message 0.*None"),
        "sound beside the content": (
            [*user, {"role": "user", "content": "What?", "audio": SOUND}],
            "2.*'audio'.*ignored",
        ),
        "clips beside the content": (
            [{"role": "user", "content": "What?", "audios": ["a.wav"]}],
            "0.*'audios'.*ignored",
        ),
        "no role": ([{"content": "What?"}], "Message 0 needs a 'role'"),
        "a role of nothing": ([*user, {"role": None, "content": "What?"}], "Message 2 needs a 'role'"),
        "one item without a list": ([{"role": "user", "content": {"type": "text", "text": "a"}}], "message 0"),
    }


@pytest.mark.parametrize("case", message_errors(""))
def test_bad_messages_are_named(processor, case):
    chat, message = message_errors(processor.audio_token)[case]
    with pytest.raises(ValueError, match=message):
        tokenized(processor, chat)


def test_what_arrow_fills_up_is_nothing(processor):
    """In Arrow, all items of a list have the same keys; missing values are None or a dict of None."""
    chat = question(SOUND[:SECOND], text="What?")
    filled = [{"role": "user", "audio": None, "content": [
        {"type": "audio", "text": None, "audio": SOUND[:SECOND]},
        {"type": "text", "text": "What?", "audio": {"bytes": None, "path": None}},
    ]}]  # fmt: skip
    assert torch.equal(tokenized(processor, filled)["input_ids"], tokenized(processor, chat)["input_ids"])


@pytest.mark.parametrize("as_items", [True, False])
def test_the_template_alone_refuses_the_placeholder_in_texts(as_items):
    """Engines that render the chat themselves would mistake it for the place of a clip."""
    processor = make_processor()
    text = f"Is {processor.audio_token} heard?"
    chat = [{"role": "user", "content": [{"type": "text", "text": text}] if as_items else text}]
    with pytest.raises(TemplateError, match="The text contains the audio placeholder .*Remove it"):
        processor.tokenizer.apply_chat_template(chat, chat_template=processor.chat_template, tokenize=False)


def test_items_stay_in_the_order_in_which_they_are_written(processor):
    """With a line break between two texts and nothing around audio."""
    sounds = [{"type": "audio", "audio": SOUND[: SECOND * seconds]} for seconds in (1, 2)]
    texts = [{"type": "text", "text": text} for text in ("This", "or that", "?")]
    chat = [{"role": "user", "content": [texts[0], sounds[1], texts[1], texts[2], sounds[0], sounds[1]]}]
    inputs = tokenized(processor, chat)
    token = processor.audio_token
    said = processor.decode(inputs["input_ids"][0])
    assert said == f"<|user|>\nThis{token * 50}or that\n?{token * 75}\n"
    assert inputs["input_features_mask"].sum(-1).tolist() == [200, 100, 200]


def test_sound_in_an_answer_is_not_learned(processor):
    items = [
        {"type": "text", "text": "as"},
        {"type": "audio", "audio": SOUND[:SECOND]},
        {"type": "text", "text": "is"},
    ]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": items}]
    row = tokenized(processor, chat, processor_kwargs={"return_labels": True})
    assert audio_tokens(processor, row["input_ids"]) == 25
    assert processor.decode(row["labels"][row["labels"] != -100]) == "asis<|endoftext|>"


def test_labels_are_arrays_where_the_inputs_are(processor):
    chat = [*question(SOUND[:SECOND]), {"role": "assistant", "content": "a dog"}]
    options = {"return_labels": True, "sampling_rate": 16_000}
    arrays = tokenized(processor, chat, processor_kwargs=options, return_tensors="np")
    tensors = tokenized(processor, chat, processor_kwargs=options)
    assert isinstance(arrays["labels"], np.ndarray) and isinstance(tensors["labels"], torch.Tensor)
    np.testing.assert_array_equal(arrays["labels"], tensors["labels"].numpy())


def test_threads_with_settings_of_their_own_share_a_processor(processor):
    """A tokenizer keeps padding and truncation from the previous call, which can come from another thread."""
    texts = ["a b c", "What do you hear?", "a long question " * 20]
    calls = [
        lambda: processor(text=texts)["input_ids"].tolist(),
        lambda: processor(text=texts, padding=False, return_tensors=None)["input_ids"],
        lambda: processor(text=texts, padding=False, truncation=True, max_length=3, return_tensors=None)["input_ids"],
        lambda: processor(text=texts, padding_side="right")["input_ids"].tolist(),
    ]
    expected = [call() for call in calls]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda number: calls[number % 4](), range(800)))
    finally:
        sys.setswitchinterval(before)
    assert all(ids == expected[number % 4] for number, ids in enumerate(found))


@pytest.mark.parametrize("what", ["load_audio", "features"])
def test_threads_do_not_wait_for_each_others_sound(processor, monkeypatch, what):
    """While one thread fetches a clip or computes features, another can process its question."""
    begun, let = threading.Event(), threading.Event()
    expected = processor(text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000)
    place, name = (processing_falcon3_audio, what) if what == "load_audio" else (processor, "_features")
    function = getattr(place, name)

    def slow(*arguments):
        begun.set()
        assert let.wait(60)
        return function(*arguments)

    monkeypatch.setattr(place, name, slow)
    with ThreadPoolExecutor(2) as pool:
        heard = pool.submit(processor, text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000)
        assert begun.wait(60)
        read = pool.submit(processor, text="What do you hear?")
        try:
            assert read.result(timeout=30)["input_ids"].numel()
        finally:
            let.set()
        assert heard.result().keys() == expected.keys()
        assert all(torch.equal(heard.result()[key], value) for key, value in expected.items())


def test_labels_of_a_long_chat_do_not_walk_tensors(processor, monkeypatch):
    """transformers looks at every token for every answer, which is slow if each token is a separate tensor."""
    walks = []
    walk = torch.Tensor.__iter__
    monkeypatch.setattr(torch.Tensor, "__iter__", lambda tensor: (walks.append(1), walk(tensor))[1])
    chat = [*question(SOUND[:SECOND], text="What?"), {"role": "assistant", "content": "a dog"}]
    tokenized(processor, chat * 5, processor_kwargs={"return_labels": True})
    few = len(walks)
    tokenized(processor, chat * 10, processor_kwargs={"return_labels": True})
    assert len(walks) - few <= few + 5


def test_an_empty_list_of_texts_is_an_error(processor):
    with pytest.raises(ValueError, match="`text` is an empty list"):
        processor(text=[])
