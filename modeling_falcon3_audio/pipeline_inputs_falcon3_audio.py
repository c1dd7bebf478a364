# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Turns every form of pipeline input into requests of one chat each.

Datasets, streams and generators stay lazy: a row is read when its answer is requested. Travels with every saved
checkpoint.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


_NUMBER = (int, float, np.integer, np.floating)
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 768_000  # Hz
SOURCES = ("audio", "path", "url")  # keys of an audio item


@dataclass(frozen=True)
class Request:
    """
    One chat to answer. A separate class, since a list of messages would be taken for a batch. `number` is that of the
    input in errors, if there are several.
    """

    messages: list[dict[str, Any]]
    number: int | None = None


def is_many(value: Any) -> bool:
    """Whether `value` is several inputs rather than one clip, text, chat or row."""
    if isinstance(value, (list, tuple)):
        return not _is_chat(value) and not _is_one_clip(value)
    one = (str, bytes, bytearray, memoryview, dict, np.ndarray, torch.Tensor)
    many = isinstance(value, (Iterable, Dataset))
    return many and not isinstance(value, one) and not hasattr(value, "read")


def each(rows: Any) -> Iterator[Any]:
    """The items of a list, dataset, stream or generator; torch datasets need not be iterable."""
    return iter(rows) if isinstance(rows, Iterable) else (rows[index] for index in range(len(rows)))


def pair(audio: Any, text: Any) -> Any:
    """
    Pairs clips with questions: one row, or several rows, which can share one clip or one question. Several rows are a
    list if everything was given as lists, otherwise they are read one by one. A clip can be the row of a data set that
    has it under `audio`.

    Raises a `ValueError` if a chat is given with a clip or a text, if clips and questions do not match, and for a row
    with its own text.
    """
    if audio is None or text is None:
        return text if audio is None else audio
    several = [value for value in (audio, text) if is_many(value)]
    if not several:
        return _row(audio, text)
    lengths = [len(value) for value in several if isinstance(value, Sized)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"Got {lengths[0]} clips but {lengths[1]} texts; they must match. Pass one text to ask it about all clips."
        )
    rows = _rows(*(each(value) if is_many(value) else repeat(value) for value in (audio, text)))
    return list(rows) if all(isinstance(value, (list, tuple)) for value in several) else rows


def _rows(clips: Iterator[Any], texts: Iterator[Any]) -> Iterator[dict[str, Any]]:
    endless, ended = isinstance(texts, repeat), object()
    for number, clip in enumerate(clips):
        text = next(texts, ended)
        if text is ended:
            if not isinstance(clips, repeat):
                raise ValueError(f"Got only {number} texts but more clips; they must match.")
            return
        with _named(number):
            row = _row(clip, text)
        yield row
    if not endless and next(texts, ended) is not ended:
        raise ValueError("Got more texts than clips; they must match. Pass one text to ask it about all clips.")


def _row(audio: Any, text: Any) -> dict[str, Any]:
    if _is_chat(audio) or _is_chat(text):
        raise ValueError("A chat contains its own audio; pass either a chat, or `audio` and `text`.")
    row = audio if isinstance(audio, dict) and "audio" in audio else {"audio": audio}
    if row["audio"] is None or text is None:
        raise ValueError(
            f"One of the {'clips' if row['audio'] is None else 'texts'} is None. Omit it, or pass a dict that says so: "
            "{'audio': None, 'text': ...}."
        )
    if row.get("text") is not None:
        raise ValueError(
            f"Got `text` for a row with its own 'text', {row['text']!r:.200}. Pass the rows without `text` to ask their "
            "own questions, or rename the column."
        )
    return row | {"text": text}


def make_requests(rows: Any, *how: Any) -> Iterator[Request]:
    """The numbered requests of several inputs; `how` is as for `make_request`, whose errors name the input."""
    for number, row in enumerate(each(rows)):
        with _named(number):
            request = make_request(row, *how)
        yield replace(request, number=number)


@contextmanager
def _named(number: int) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        error.args = (f"Input {number}: {error}",)
        raise


@contextmanager
def naming_input(requests: Sequence[Request]) -> Iterator[None]:
    """Makes errors of the processor say which of several inputs they are about, as far as they tell."""
    try:
        yield
    except (TypeError, ValueError) as error:
        found = re.match(r"Conversation (\d+): ", str(error))
        if requests[0].number is not None and (found or len(requests) == 1):
            number = requests[int(found[1]) if found else 0].number
            error.args = (f"Input {number}: {str(error)[found.end() if found else 0 :]}",)
        raise


def make_request(item: Any, bare: str, sampling_rate: int | None, plain: Callable[[Any], list]) -> Request:
    """
    Makes a request from a chat, a dict with `audio` and `text`, or a bare clip or text. Raises a `ValueError` for
    input that would lose its clip or its text.

    Args:
        bare: how to read an item that is neither a chat nor a dict: `"audio"` or `"text"`.
        sampling_rate: of arrays without their own, in Hz.
        plain: converts the messages of a chat to dicts.
    """
    if _is_chat(item):
        return Request([_with_rate(message, sampling_rate) for message in plain(item)])
    if not isinstance(item, dict):
        item = {bare: item}
    elif not item.keys() & {"audio", "text"} and item.keys() & {"array", "raw", "bytes", "path"}:
        item = {"audio": item}
    _check_columns(item)
    audio, text = item.get("audio"), item.get("text")
    if audio is None and text is None:
        raise ValueError("One of the inputs is None: neither a clip nor a text. Omit it, or find out why it is None.")
    clips = [] if audio is None else list(audio) if is_many(audio) else [audio]
    rate = item.get("sampling_rate")
    if rate is None:
        _check_rate_is_read(item, {"audio", "text"}, clips)
        rate = sampling_rate
    if audio is not None and not clips:
        raise ValueError(
            "One of the inputs has an empty list of clips. Use None if there is no clip: {'audio': None, 'text': ...}."
        )
    content = [_audio_item(clip) for clip in clips]
    if text is not None:
        content.append({"type": "text", "text": text})
    return Request([_with_rate({"role": "user", "content": content}, rate)])


def _check_columns(row: dict[str, Any]):
    """A column with another name is not read, so a clip or a question would silently be missing."""
    missing = sorted({"audio", "text"} - row.keys())
    others = sorted(map(str, row.keys() - {"audio", "text", "sampling_rate"}))
    if len(missing) == 2 or (missing and others):
        raise ValueError(
            f"Expected a chat, or a dict with 'audio' and 'text', got one with {sorted(map(str, row))}. Rename "
            "the columns; use None if there is no clip, or no text."
        )


def _audio_item(clip: Any) -> dict[str, Any]:
    if _is_with_rate(clip):
        samples, rate = clip if _is_scalar(clip[1]) else clip[::-1]
        rate = rate.item() if isinstance(rate, (np.ndarray, torch.Tensor)) else rate
        return {"type": "audio", "audio": samples, "sampling_rate": rate}
    if isinstance(clip, (list, tuple)) and not all(map(_is_scalar, clip[:2])):
        parts = ", ".join([*(type(part).__name__ for part in clip[:6]), *(["..."] if len(clip) > 6 else [])])
        raise ValueError(
            f"A clip is the {type(clip).__name__} ({parts}); expected (samples, rate) with the rate in Hz as a number. "
            "Pass a file by its path alone, and other values not at all."
        )
    return {"type": "audio", "audio": clip}


def _is_chat(value: Any) -> bool:
    """Whether `value` is a list of messages, or an object that holds one, such as transformers' `Chat`."""
    if hasattr(value, "messages"):
        return True
    first = value[0] if isinstance(value, (list, tuple)) and len(value) > 0 else None
    return "role" in first if isinstance(first, dict) else hasattr(first, "role")


# What is one clip, and what could be its rate: the rules of `is_with_rate`, `is_list_of_clips` and `could_be_rate` in
# the processor's `audio_inputs_falcon3_audio`.
# Copied, since that is in another folder until a checkpoint is saved, and other models' processors have no such rules.


def _is_with_rate(value: Any) -> bool:
    """Whether `value` is `(samples, rate)` or `(rate, samples)`."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return False
    rates = [_is_scalar(part) for part in value]
    return sum(rates) == 1 and isinstance(value[rates.index(False)], (np.ndarray, torch.Tensor, list, tuple))


def _is_one_clip(parts: list | tuple) -> bool:
    """Whether a list is one clip: numbers, or what was meant as samples and rate."""
    if any(isinstance(part, bool) or _is_scalar(part) for part in parts):
        return True
    begins = isinstance(parts, tuple) and isinstance((*parts, None)[0], (np.ndarray, torch.Tensor))
    return begins and any(part is None or isinstance(part, str) and part.isdecimal() for part in parts)


def _is_scalar(value: Any) -> bool:
    """A number, also as an array or tensor without dimensions."""
    is_number = isinstance(value, _NUMBER) and not isinstance(value, bool)
    return is_number or isinstance(value, (np.ndarray, torch.Tensor)) and value.ndim == 0


def _could_be_rate(value: Any) -> bool:
    """Whether an unknown value next to samples could be their rate."""
    if isinstance(value, (np.ndarray, torch.Tensor)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return len(value) > 0 and all(map(_could_be_rate, value))
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        value = float(value)
    is_number = isinstance(value, _NUMBER) and not isinstance(value, bool)
    return is_number and MIN_SAMPLING_RATE <= value <= MAX_SAMPLING_RATE


def _check_rate_is_read(given: dict[str, Any], known: set[str], clips: list[Any]):
    """Raises a `ValueError` for samples without their rate next to keys that are not read: one could be the rate."""
    others = sorted(str(key) for key, value in given.items() if key not in known and _could_be_rate(value))
    if others and any(map(_lacks_rate, clips)):
        raise ValueError(
            f"The rate of an array of samples is not under 'sampling_rate'; there is {others} instead. Rename it "
            "if it is the rate, or remove it."
        )


def _lacks_rate(clip: Any) -> bool:
    if isinstance(clip, dict):
        samples = [clip[key] for key in ("array", "raw") if clip.get(key) is not None]
        return clip.get("sampling_rate") is None and any(map(_lacks_rate, samples))
    return isinstance(clip, (np.ndarray, torch.Tensor, list, tuple)) and not _is_with_rate(clip)


def _with_rate(message: dict[str, Any], rate: int | None) -> dict[str, Any]:
    """The message, with the sampling rate of the call added to audio items without their own."""
    if not isinstance(message.get("content"), (list, tuple)):
        return message
    return message | {"content": [_item_with_rate(item, rate) for item in message["content"]]}


def _item_with_rate(item: Any, rate: int | None) -> Any:
    if not isinstance(item, dict) or not is_audio(item) or item.get("sampling_rate") is not None:
        return item
    sources = [item[key] for key in SOURCES if item.get(key) is not None]
    _check_rate_is_read(item, {"type", "text", *SOURCES}, sources)
    return item if rate is None else item | {"sampling_rate": rate}


def is_audio(item: dict[str, Any]) -> bool:
    """Whether an item of a message's content is a clip; it need not have a `type`."""
    return item["type"] == "audio" if "type" in item else not item.keys().isdisjoint(SOURCES)


def is_begun(message: dict[str, Any]) -> bool:
    """Whether a message is an answer to continue. One without text, such as a tool call, is complete."""
    content = message.get("content")
    if isinstance(content, (list, tuple)) and content and isinstance(content[-1], dict):
        content = content[-1].get("text")
    return message.get("role") == "assistant" and isinstance(content, str) and bool(content.strip())


def with_answer(messages: list[dict[str, Any]], answer: str, go_on: bool) -> list[dict[str, Any]]:
    """The chat with an answer, which is appended to its last message if that was continued."""
    if not go_on:
        return [*messages, {"role": "assistant", "content": answer}]
    last = messages[-1]
    if isinstance(last["content"], str):
        return [*messages[:-1], last | {"content": last["content"] + answer}]
    *items, final = last["content"]
    return [*messages[:-1], last | {"content": [*items, final | {"text": final["text"] + answer}]}]


def check_batch_size(size: Any):
    """Raises a `ValueError` unless `size` is an integer of at least 1."""
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"`batch_size` must be an integer of at least 1, got {size!r}.")


def in_batches(inputs: Iterable[Any], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for one in inputs:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


__all__ = [
    "Request",
    "check_batch_size",
    "each",
    "in_batches",
    "is_audio",
    "is_begun",
    "is_many",
    "make_request",
    "make_requests",
    "naming_input",
    "pair",
    "with_answer",
]
