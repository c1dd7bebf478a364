"""Completes rows of chats with audio: every clip at its place, each answer with text to learn.

A row's clips are its columns `audio` or `audios`, or the sources in its audio items. Clips of columns replace audio
items without a source or, as in rows of ms-swift and LLaMA-Factory, tags `<audio>` in the text; without any such place
they are put at the start of the first user message. A value that looks like audio under a name that is not read is an
error.
Run: `messages = fill_in(row["messages"], clips_of(row), Path("my_set"))`
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from .segments import Segment
from .signs_of_sound import RATE_NAME, TAG, is_given, is_samples, looks_like_sound, other_tag


ROLES = ("system", "user", "assistant", "tool")
SOURCE_KEYS = ("audio", "path", "url")
COLUMNS = ("audio", "audios")
# What other trainers and formats use, and is not read here: columns, and marks of answers that should not be learned.
NOT_READ = {
    "system": "Make it a message with the role `system`",
    "tools": "Tools of a chat are not learned here; write them into its system message",
    **dict.fromkeys(("image", "images", "video", "videos"), "Only audio and text are supported; leave the row out"),
}
NOT_LEARNED = ("loss", "weight", "train")
# Of a clip in a chat. A `duration` without one of them only says how long the clip is, as in columns.
TIMES = ("offset", "start", "start_time", "begin_time", "end", "end_time")
READ = (
    "Clips are read from the row's `audio` or `audios`, and from `audio`, `path` or `url` of audio items in `messages`; rename "
    "the key, or name a column of clips in the set's entry, `columns: {audio: NAME}`. In a text-only set "
    "(`sound: false` in the entry) it can stay"
)

MOVE = (
    "Cut the file, or move the clip to the column `audio`, and its times to `offset` and `duration` (in seconds; not "
    "in preferences)"
)


def clips_of(example: Mapping[str, Any], columns: Sequence[str] = COLUMNS) -> list[Any]:
    """
    The clips of a row's own columns, `audios` (several) or `audio` (one, or a list of several).

    Raises a `ValueError` if two of the columns have clips, a list has an empty element, or a column seems to have the
    rate of samples that come without one.
    """
    given = {name: example[name] for name in columns if is_given(example.get(name))}
    if len(given) > 1:
        raise ValueError(
            f"the row has clips in both {' and '.join(f'`{name}`' for name in given)}; put them all in one"
        )
    for name, clips in given.items():
        rate = next((key for key, value in example.items() if RATE_NAME.search(key) and is_given(value)), None)
        if rate and isinstance(clips, list) and any(map(is_samples, [clips, *clips])):
            raise ValueError(
                f"its `{name}` is samples, and `{rate}`, which may be their rate, is not read. Write each clip as "
                '{"array": [...], "sampling_rate": ...}'
            )
        if not isinstance(clips, list) or is_samples(clips):
            return [clips]
        if not all(map(is_given, clips)):
            raise ValueError(
                f"its `{name}` must be clips, got {clips!r:.200}. Leave out empty elements, or fill them in"
            )
        return clips
    return []


def audio_items(messages: Any) -> list[dict[str, Any]]:
    """The audio items of a chat; none if it is not a chat."""
    return [item for item in _all_items(messages) if item.get("type") == "audio"]


def fill_in(
    messages: Sequence[dict[str, Any]],
    clips: Sequence[Any],
    folder: Path,
    tags: bool = True,
    elsewhere: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """
    The chat with a source in every audio item: its own, or the row's clips in order. Relative paths start at the set's folder.

    Args:
        messages: as in the row; content is a string or a list of items.
        clips: the row's own, see `clips_of`.
        folder: where relative paths start.
        tags: whether `<audio>` in texts, except the assistant's, is the place of a clip.
        elsewhere: folders from which relative paths could also start.

    Returns:
        The messages with lists of items as content, in their original order.

    Raises:
        `ValueError`: if it is not a chat, an answer has no text, a clip is a number, clips do not match their places,
            a text has a tag that is not read, an audio item has a time, or a path fits two files.
    """
    _check_chat(messages)
    check_answers(messages)
    filled = [dict(message) for message in messages]
    items = [_items(message, number, tags) for number, message in enumerate(filled)]
    places = [item for content in items for item in content if item.get("type") == "audio"]
    empty = [item for item in places if not _has_source(item)]
    if tags:
        _check_tags(filled, items, all_placed=len(empty) >= len(clips))
    if clips and not places:
        user = next((number for number, message in enumerate(filled) if message["role"] == "user"), None)
        if user is None:
            raise ValueError("there are clips, but no user message to put them in")
        if tags:
            _check_answers_have_no_place(messages)
        places = empty = [{"type": "audio"} for _ in clips]
        items[user] = [*places, *items[user]]
    if len(empty) != len(clips):
        raise ValueError(_mismatch(messages, len(empty), len(clips), tags))
    for item, clip in zip(empty, clips):
        item["audio"] = clip
    for item in places:
        _check_is_whole(item)
        _resolve(item, folder, elsewhere)
    for message, content in zip(filled, items):
        message["content"] = content
    return filled


def check_answers(messages: Iterable[dict[str, Any]]):
    """Raises a `ValueError` for an assistant's message without text: the model would learn to say nothing."""
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and not message.get("tool_calls") and not _text(message).strip():
            raise ValueError(
                f"message {number}, an answer, has no text to learn: {message.get('content')!r:.100}. Leave the row "
                "out, or write an answer"
            )


def check_is_answered(messages: Sequence[dict[str, Any]]):
    """Raises a `ValueError` for a chat without an answer; an assistant's message that opens it does not count."""
    if not any(message["role"] == "assistant" for message in messages[1:]):
        raise ValueError(
            "no assistant message to learn from. Leave the row out, or write an answer; the message that opens a chat "
            "is not learned"
        )


def check_sound_is_read(example: Mapping[str, Any], messages: Any, clips: Sequence[Any], read: Collection[str]):
    """
    Raises a `ValueError` for a key that looks like audio and is not read, in a message or in a row without audio.

    Args:
        example: the row.
        messages: its chat.
        clips: those of its columns.
        read: the columns that are read.
    """
    heard = clips or any(_has_source(item) for item in audio_items(messages))
    columns = {} if heard else {name: value for name, value in example.items() if name not in read}
    for place in [columns, *_beside_the_content(messages)]:
        for key, value in place.items():
            if looks_like_sound(key, value):
                raise ValueError(f"the key {key!r} looks like audio but is not read. {READ}")


def check_all_is_read(example: Mapping[str, Any], messages: Any, read: Collection[str]):
    """
    Raises a `ValueError` for values that other trainers read and this one does not, and for a row that is both a chat
    and questions. `read` are the columns that are read.
    """
    for key, advice in NOT_READ.items():
        if key not in read and is_given(example.get(key)):
            raise ValueError(f"the row has {key!r}, which is not read. {advice}")
    if is_given(example.get("messages")) and is_given(example.get("questions")):
        raise ValueError(
            "the row has `messages` and `questions`; split it into two rows, one in a set of chats and one in a set "
            "of clips with questions"
        )
    for number, message in enumerate(messages if isinstance(messages, (list, tuple)) else []):
        is_answer = isinstance(message, dict) and message.get("role") == "assistant"
        marks = [key for key in NOT_LEARNED if is_answer and message.get(key) not in (None, True)]
        if marks:
            raise ValueError(
                f"message {number} has `{marks[0]}`: {message[marks[0]]!r}, which is not read: every answer of a chat "
                "is learned. Remove the mark to learn it, or put the answer into the text of the question after it"
            )


def check_times_are_used(messages: Any, times: Collection[str]):
    """
    Raises a `ValueError` if a row has times, but a clip in its chat: they select a part of clips in columns. `times`
    are the columns that hold them.
    """
    if times and any(_has_source(item) for item in audio_items(messages)):
        raise ValueError(
            f"the row has times ({', '.join(f'`{name}`' for name in times)}), which select a part of clips in columns, "
            f"but it has a clip inside its chat. {MOVE}"
        )


def check_has_sound(messages: Sequence[dict[str, Any]], wanted: bool | str):
    """Raises a `ValueError` if a completed chat has audio, or none, contrary to `sound` in its set's entry."""
    heard = bool(audio_items(messages))
    if heard and not wanted:
        raise ValueError("the row has audio, but its set's entry says `sound: false`; remove that")
    if wanted is True and not heard:
        raise ValueError(
            "the row has no audio: neither clips in `audio` or `audios` nor audio items in `messages`. If this set "
            "should have chats without audio, write `sound: some` in its entry"
        )


def _check_chat(messages: Any):
    listed = isinstance(messages, (list, tuple)) and len(messages) > 0
    if not listed or not all(isinstance(message, dict) and message.get("role") for message in messages):
        raise ValueError(f"`messages` must be a list of objects with `role` and `content`, got {messages!r:.200}")
    strangers = {str(message["role"]) for message in messages} - set(ROLES)
    if strangers:
        raise ValueError(f"got messages with the role {sorted(strangers)}; expected {', '.join(ROLES)}")


def _check_answers_have_no_place(messages: Sequence[dict[str, Any]]):
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and TAG in _text(message):
            raise ValueError(
                f"message {number}, an answer, has the tag {TAG}, but a clip's place cannot be in an answer, and no "
                "other message has one. Write it into the question; the tag in the answer is then text"
            )


def _check_tags(messages: Sequence[dict[str, Any]], items: Sequence[list[dict[str, Any]]], all_placed: bool):
    asked = [content for message, content in zip(messages, items) if message["role"] != "assistant"]
    for item in sum(asked, []):
        other = other_tag(item["text"], all_placed) if _is_text(item) else None
        if other:
            raise ValueError(
                f"the tag {other} in the text is not read: a clip's place is written {TAG}, without its path. Write "
                "it so, or, if it is no clip's place, without its brackets"
            )


def _items(message: dict[str, Any], number: int, tags: bool) -> list[dict[str, Any]]:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return []
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ValueError(f"the content of message {number} must be a text or a list of items, got {content!r:.100}")
    typed = [_with_type(item) for item in content]
    wrong = next((item for item in typed if not _is_text(item) and item.get("type") != "audio"), None)
    if wrong is not None:
        raise ValueError(
            f'an item of message {number} must be like {{"type": "text", "text": "..."}} or {{"type": "audio", "path": "..."}}, got '
            f"{wrong!r:.200}"
        )
    if not tags or message["role"] == "assistant":
        return typed
    return [part for item in typed for part in _at_tags(item)]


def _with_type(item: dict[str, Any]) -> dict[str, Any]:
    """A copy of an item; a missing `type` is told from its source or its text, as in the processor."""
    audio, text = _has_source(item), item.get("text") is not None
    known = item.get("type") is not None or audio == text
    return dict(item) if known else item | {"type": "audio" if audio else "text"}


def _is_text(item: dict[str, Any]) -> bool:
    return item.get("type") == "text" and isinstance(item.get("text"), str)


def _at_tags(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The item itself, or, for a text with tags, the unchanged texts between them and an audio item for each tag."""
    if not _is_text(item) or TAG not in item["text"]:
        return [item]
    parts = re.split(f"({TAG})", item["text"])
    return [{"type": "audio"} if part == TAG else {"type": "text", "text": part} for part in parts if part]


def _mismatch(messages: Sequence[dict[str, Any]], places: int, clips: int, tags: bool) -> str:
    count = sum(_text(message).count(TAG) for message in messages if message["role"] != "assistant") if tags else 0
    said = f" ({count} of them tags `{TAG}` in the text)" if count else ""
    advice = f". Only in a text-only set (`sound: false` in its entry) is `{TAG}` plain text" if count else ""
    return (
        f"the messages have {places} audio items without a source{said}, but the row has {clips} clips in `audio` or "
        f"`audios`; they must match{advice}"
    )


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(item.get("text") or "") for item in _all_items([message]) if item.get("type") == "text")


def _all_items(messages: Any) -> Iterator[dict[str, Any]]:
    for message in messages if isinstance(messages, (list, tuple)) else []:
        content = message.get("content") if isinstance(message, dict) else None
        items = content if isinstance(content, (list, tuple)) else []
        yield from (_with_type(item) for item in items if isinstance(item, dict))


def _beside_the_content(messages: Any) -> Iterator[dict[str, Any]]:
    """What messages hold besides role and content, and items besides the keys that are read."""
    for message in messages if isinstance(messages, (list, tuple)) else []:
        if isinstance(message, dict):
            yield {key: value for key, value in message.items() if key not in ("role", "content")}
    for item in _all_items(messages):
        if item.get("type") != "audio":
            yield {key: value for key, value in item.items() if key not in ("type", "text")}
        elif not _has_source(item):
            yield {key: value for key, value in item.items() if key not in ("type", *SOURCE_KEYS)}


def _check_is_whole(item: dict[str, Any]):
    """Raises a `ValueError` for an audio item, or the object with its path, that selects a part of the clip."""
    for place in (item, item.get("audio")):
        if not isinstance(place, dict):
            continue
        time = next((name for name in TIMES if is_given(place.get(name))), None)
        if time:
            raise ValueError(f"a clip has `{time}`: {place[time]!r:.100}, which is not read there. {MOVE}")


def _has_source(item: dict[str, Any]) -> bool:
    return any(is_given(item.get(key)) for key in SOURCE_KEYS)


def _resolve(item: dict[str, Any], folder: Path, elsewhere: Sequence[Path]):
    for key in SOURCE_KEYS:
        item[key] = _from_folder(item.get(key), folder, elsewhere) if is_given(item.get(key)) else None
    clip = item["audio"]
    if isinstance(clip, dict) and clip.get("bytes") is None and clip.get("path"):
        item["audio"] = _from_folder(clip["path"], folder, elsewhere)
    if isinstance(clip, Segment):
        item["audio"] = Segment(_from_folder(clip.source, folder, elsewhere), clip.offset, clip.duration)


def _from_folder(source: Any, folder: Path, elsewhere: Sequence[Path]) -> Any:
    if isinstance(source, (int, float)):  # to the system, a number is an open file descriptor
        raise ValueError(f"a clip must be a path, a URL, bytes or samples, got {source!r}")
    if not isinstance(source, str) or "://" in source or source.startswith("data:"):
        return source
    if PureWindowsPath(source).is_absolute():
        return source  # of another machine, unless this one runs Windows
    # Written on Windows, as `sounds\\a.wav`; elsewhere that can be the name of a file.
    if "\\" in source and not os.path.exists(folder / source):
        source = source.replace("\\", "/")
    path = os.fspath(folder / source)  # an absolute path stays as it is
    other = next((place for place in elsewhere if os.path.isfile(place / source)), None)
    if other is not None and os.path.isfile(path) and not os.path.samefile(path, other / source):
        raise ValueError(
            f"the clip {source!r} is in {folder} and in {other}, where files of the set are. In a set that is a "
            f"folder, paths start at that folder. Rename one of the clips, or give {other} as a separate set"
        )
    return path
