"""Messages as dicts, dataclasses and pydantic models give the same prompt."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydantic
import pytest
from tiny import question, tokenized, tone

from falcon3_audio.processing import UnreadableAudioError
from falcon3_audio.processing.messages_falcon3_audio import plain_messages


@dataclasses.dataclass
class Item:
    type: str
    audio: Any = None
    text: str | None = None
    sampling_rate: int | None = None


@dataclasses.dataclass
class Message:
    role: str
    content: Any
    name: str | None = None


class Model(pydantic.BaseModel):
    role: str
    content: Any
    tool_calls: list | None = None


CLIP = tone(0.7)
CHAT = [{"role": "system", "content": "Be brief."}, *question(CLIP, text="What?")]


def as_objects(kind):
    system, user = CHAT
    items = [item if kind is Model else Item(**item) for item in user["content"]]
    return [kind(**system), kind(role="user", content=items)]


@pytest.mark.parametrize("kind", [Message, Model])
def test_objects_are_read_as_dicts(processor, kind):
    expected, given = tokenized(processor, CHAT), tokenized(processor, as_objects(kind))
    assert np.array_equal(given["input_ids"], expected["input_ids"])
    assert np.array_equal(given["input_features"], expected["input_features"])


def test_a_batch_and_an_object_that_holds_a_conversation(processor):
    chats = [SimpleNamespace(messages=as_objects(Message)), as_objects(Message), CHAT]
    alone = tokenized(processor, CHAT)["input_ids"][0].tolist()
    assert tokenized(processor, chats)["input_ids"].tolist() == [alone] * 3
    assert tokenized(processor, chats[0])["input_ids"].tolist() == [alone]


def test_errors_say_which_conversation_of_a_batch_they_are_about(processor):
    empty = question(CLIP[:0], text="What?")
    with pytest.raises(UnreadableAudioError, match="^Conversation 2: The audio in message 0 is empty"):
        tokenized(processor, [CHAT, CHAT, empty])
    with pytest.raises(ValueError, match="^Conversation 1: The conversation is empty"):
        tokenized(processor, [CHAT, []])
    for alone in (empty, [empty]):
        with pytest.raises(UnreadableAudioError, match="^The audio in message 0 is empty"):
            tokenized(processor, alone)


def test_audio_is_not_copied_and_nothing_is_left_of_none():
    audio = np.zeros(3)
    (message,) = plain_messages([Message("user", [Item("audio", audio)])])
    assert message.keys() == {"role", "content"} and message["content"][0]["audio"] is audio
    samples = [0.0] * 3
    assert plain_messages([Message("user", [Item("audio", samples)])])[0]["content"][0]["audio"] is samples


def test_a_dict_keeps_its_none_and_an_object_does_not():
    call = [{"type": "function", "function": {"name": "hear", "arguments": {}}}]
    answer = {"role": "assistant", "content": None, "tool_calls": call}
    assert plain_messages([answer]) == [answer]
    assert plain_messages([Model(**answer)]) == [{"role": "assistant", "tool_calls": call}]


def test_a_template_sees_of_dicts_what_this_release_shows_it(processor):
    """transformers decides whether to drop `None`, which it does from 5.24 on; the tokenizer's prompt shows it."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "name": None}]
    template = "{% for m in messages %}{{ m.role }}:{{ 'content' in m }}:{{ 'name' in m }} {% endfor %}"
    expected = processor.tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
    assert processor.apply_chat_template(chat, chat_template=template, tokenize=False) == expected
    assert expected.startswith("user:True:False assistant:")


@pytest.mark.parametrize("conversation", [3, Message("user", "What?")])
def test_what_is_no_conversation_is_named(conversation):
    with pytest.raises(ValueError, match="A conversation must be a list of messages"):
        plain_messages(conversation)


def test_labels_of_objects(processor):
    answer = {"role": "assistant", "content": "a dog"}
    labels = [
        tokenized(processor, [*chat, answer], processor_kwargs={"return_labels": True})["labels"].tolist()
        for chat in (CHAT, as_objects(Message))
    ]
    assert labels[0] == labels[1]


@pytest.mark.parametrize("message", ["What?", 3, SimpleNamespace(role="user", content="What?")])
def test_what_is_no_message_is_named(processor, message):
    with pytest.raises(ValueError, match="Message 1 must be a dict, a dataclass or a pydantic model"):
        tokenized(processor, [CHAT[0], message])


SOUND = "A" * 1_000_000  # a file in base64


@pytest.mark.parametrize(
    "message",
    [
        SOUND,
        {"content": SOUND},
        {"role": "user", "content": {"data": SOUND}},
        {"role": "user", "content": [SOUND]},
        {"role": "user", "content": [{"type": "text", "input_audio": {"data": SOUND}}]},
        {"role": "user", "content": [{"type": "audio", "input_audio": {"data": SOUND}}]},
    ],
)
def test_errors_do_not_hold_the_sound(processor, message):
    for chat in ([message], SimpleNamespace(messages=7, sound=SOUND)):
        with pytest.raises(ValueError) as error:
            tokenized(processor, chat)
        assert len(str(error.value)) < 500
