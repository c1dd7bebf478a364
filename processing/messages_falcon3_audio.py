# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Converts chat messages of any kind to dicts with loaded audio. Saved with every checkpoint."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sized
from typing import Any

import numpy as np

from .audio_inputs_falcon3_audio import could_be_rate, load_audio


# Of an audio item; an empty `text` is allowed.
_ITEM_KEYS = {"type", "audio", "path", "url", "sampling_rate", "text"}


def is_conversation(value: Any) -> bool:
    """A list of messages, or an object that holds one under `messages`."""
    return isinstance(value, (list, tuple)) or hasattr(value, "messages")


def plain_messages(conversation: Any) -> list[dict[str, Any]]:
    """
    The messages of one conversation as dicts. Accepts dicts, dataclasses and pydantic models, also for content items,
    and an object that holds the list under `messages`. Fields of an object that are `None` are left out, since an
    object always has all fields. Content items without a `type` get one. A dict keeps its `None` values: transformers
    drops them from 5.24 on, and passes them to the template before.

    Raises a `ValueError` for a message of another kind, and for anything that is not a list of messages.
    """
    messages = getattr(conversation, "messages", conversation)
    if not isinstance(messages, Iterable):
        raise ValueError(
            "A conversation must be a list of messages, or an object that holds one under 'messages'; got "
            f"{messages!r:.200}."
        )
    return [_plain_message(message, index) for index, message in enumerate(messages)]


def _plain_message(message: Any, index: int) -> dict[str, Any]:
    plain = _plain(message)
    if not isinstance(plain, dict):
        raise ValueError(
            f"Message {index} must be a dict, a dataclass or a pydantic model with 'role' and 'content', got "
            f"{plain!r:.200}."
        )
    if isinstance(plain.get("content"), list):
        plain = plain | {"content": [_with_type(item) for item in plain["content"]]}
    if isinstance(message, Mapping):
        return plain
    return {key: value for key, value in plain.items() if value is not None}


def _plain(value: Any) -> Any:
    """Messages and content items as dicts; arrays, tensors and other audio sources unchanged."""
    if isinstance(value, (list, tuple)):
        # A list of numbers is a clip.
        return value if value and isinstance(value[0], (int, float, np.number)) else [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # `asdict` would copy the audio in it.
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if callable(getattr(value, "model_dump", None)):
        return _plain(value.model_dump())
    return value


def _with_type(item: Any) -> Any:
    """A content item; without a `type`, it becomes audio if it has a source, or text if it has a text."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    audio, text = any(item.get(key) is not None for key in ("audio", "path", "url")), item.get("text") is not None
    return item if audio == text else item | {"type": "audio" if audio else "text"}


def check_message(message: dict[str, Any], index: int):
    """Raises a `ValueError` for a message without a role, or with audio outside its content, where it is ignored."""
    if not isinstance(message.get("role"), str):
        raise ValueError(f"Message {index} needs a 'role', such as 'user' or 'assistant', got {message!r:.200}.")
    if message["role"] == "assistant":  # OpenAI's answers have their spoken audio under this name
        return
    for key, value in message.items():
        if "audio" in str(key).lower() and _is_given(value):
            raise ValueError(
                f"Message {index} has {key!r} outside its content, where it would be ignored. Make it an item of the "
                'content, {"type": "audio", "audio": ...}.'
            )


def check_item(item: dict, message: int, audio_token: str):
    """
    Raises a `ValueError` for a content item that is neither text nor audio, or both, for a text item without text, and
    for text that contains the audio placeholder.
    """
    kind = item.get("type")
    if kind not in ("text", "audio"):
        raise ValueError(
            f"Message {message}: Content of type {kind!r} is not understood: use 'text' or 'audio'. Its keys are "
            f"{sorted(item)}."
        )
    other = "text" if kind == "audio" else "audio"
    if _is_given(item.get(other)):
        raise ValueError(
            f"An item of message {message} is of type {kind!r}, but has {other!r} as well, which would be ignored. "
            "Split it into two items."
        )
    if kind == "audio":
        return
    if not isinstance(item.get("text"), str):
        raise ValueError(f"A text item of message {message} needs a string under 'text', got {item!r:.200}.")
    if audio_token in item["text"]:
        raise ValueError(
            f"Message {message} contains the audio placeholder {audio_token!r} as text. Remove it; "
            'pass audio as an item {"type": "audio", "path": ...}.'
        )


def _is_given(value: Any) -> bool:
    """Whether a value is really given: Arrow fills keys that an item lacks with `None` or a dict of only `None`."""
    if isinstance(value, dict):
        return any(part is not None for part in value.values())
    return len(value) > 0 if isinstance(value, Sized) else value is not None


def load_item(item: dict, sampling_rate: int | None, message: int, unread: Collection[str] = ()) -> dict:
    """
    An audio item with its clip as a mono array at 16 kHz; other items unchanged. `unread` are names of arguments that
    are not read.

    Raises a `ValueError` that names the message if the item has no source, several, or one that cannot be read, and
    for samples without their own rate next to anything that is not read and could be it.
    """
    if item.get("type") != "audio":
        return item
    sources = [item[key] for key in ("audio", "path", "url") if item.get(key) is not None]
    if len(sources) != 1:
        raise ValueError(
            f"An audio item of message {message} needs exactly one of 'audio', 'path' and 'url', got {item!r:.200}."
        )
    rate, name = item.get("sampling_rate"), f"The audio in message {message}"
    others: list[str] = []
    if rate is None:
        others = [key for key in item.keys() - _ITEM_KEYS if could_be_rate(item[key])]
        others += unread if sampling_rate is None else ()
        rate = sampling_rate
    return {"type": "audio", "audio": load_audio(sources[0], rate, name, unread=others)}


def _prepare(number: int, conversation: Any, *how: Any) -> list:
    """One conversation of a batch."""
    try:
        return prepare_messages(conversation, *how)
    except (TypeError, ValueError) as error:
        error.args = (f"Conversation {number}: {error}",)
        raise


def prepare_messages(
    conversation: Any,
    audio_token: str,
    sampling_rate: int | None,
    load: bool,
    any_items: bool = False,
    unread: Collection[str] = (),
) -> list:
    """
    A copy of the conversation(s), with audio loaded if `load`; `sampling_rate` is for arrays without their own, and
    `unread` are arguments of the call that are not read. With `any_items`, content items can be other than text and
    audio, for a template that supports them.

    Raises a `ValueError` that names the conversation, if there are several, and the message for anything that a
    template would silently ignore.
    """
    if isinstance(conversation, (list, tuple)) and conversation and is_conversation(conversation[0]):
        how = (audio_token, sampling_rate, load, any_items, unread)
        if len(conversation) == 1:
            return [prepare_messages(conversation[0], *how)]
        return [_prepare(number, messages, *how) for number, messages in enumerate(conversation)]
    conversation = plain_messages(conversation)
    if len(conversation) == 0:
        raise ValueError("The conversation is empty; give at least one message.")
    prepared = []
    for index, message in enumerate(conversation):
        check_message(message, index)
        content = message.get("content")
        items = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, dict) for item in items):
            raise ValueError(
                f"The content of message {index} must be a string or a list of dicts, got {content!r:.200}."
            )
        for item in items:
            if not any_items or item.get("type") in ("text", "audio"):
                check_item(item, index, audio_token)
        if not isinstance(content, str) and content is not None and load:
            message = message | {"content": [load_item(item, sampling_rate, index, unread) for item in items]}
        prepared.append(message)
    return prepared


__all__ = ["load_item", "plain_messages", "prepare_messages"]
