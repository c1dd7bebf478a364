"""Converts rows of each format to messages: the functions of the table in formats.py.

Each takes the values of the row under the names of that table (under `audio`, the columns of its clips), and the
question if the row has none. Clips of columns are put in their places later (chats.py); a source inside a text, as in
`<audio>dog.wav</audio>`, becomes an audio item here.
Run: `query({"query": "What is it?", "response": "A dog."}, "")`
"""

import re
from collections.abc import Mapping
from typing import Any

from .signs_of_sound import TAG


Held = Mapping[str, Any]
Messages = list[dict[str, Any]]
SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "assistant"),
    "system": "system",
}
SOUND = "sound"  # a column of clips whose tag has the same name
_TURN_KEYS = (("from", "role"), ("value", "content"))
# A source at its place in a text, as Qwen-Audio and ms-swift write it.
ENCLOSED = re.compile(r"<audio>([^<>\n]+)</audio>")


def messages(held: Held, _: str) -> Messages:
    """`messages`, as they are."""
    return held["messages"]


def question(held: Held, _: str) -> Messages:
    """One of a clip's `questions`. The clip's transcript (the row's `input`) is not shown: it would reveal answers."""
    one = held["questions"]
    texts = [one.get(name) for name in ("instruction", "output")] if isinstance(one, dict) else [None]
    if not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"a question needs the texts `instruction` and `output`, got {one}")
    if one.get("input"):
        raise ValueError(f"a question's `input` is not read; write it into `instruction`, got {one}")
    asked = one["instruction"]
    content = asked if TAG in asked else [{"type": "audio"}, {"type": "text", "text": asked}]
    return [{"role": "user", "content": content}, _said(one["output"])]


def conversations(held: Held, _: str) -> Messages:
    """
    Turns `{"from": "human", "value": ...}`, or with `role` and `content`. Other keys of a turn are kept and checked
    later. If the column of clips is `sound`, their tag is `<sound>`.
    """
    turns = held["conversations"]
    if not isinstance(turns, (list, tuple)) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"`conversations` must be a list of turns with `from` and `value`, got {turns!r:.200}")
    tag = "<sound>" if SOUND in held["audio"] else TAG
    return [*_system(held), *(_turn(turn, tag) for turn in turns)]


def query(held: Held, _: str) -> Messages:
    """`query` and `response`, with earlier turns in `history`."""
    if isinstance(held["query"], list):  # as TRL writes a chat in `prompt`
        raise ValueError(
            f"its `query` must be a text, got {held['query']!r:.100}. Write a chat, with its answer, into `messages`"
        )
    return _exchange(held, _text(held, "query"), "response")


def instruction(held: Held, _: str) -> Messages:
    """`instruction` with `input` on its own line, and `output`; earlier turns in `history`."""
    texts = (_text(held, "instruction"), _text(held, "input", needed=False))
    return _exchange(held, "\n".join(filter(None, texts)), "output")


def transcript(held: Held, asked: str) -> Messages:
    """`text` answers the prompt of the set's entry."""
    return [{"role": "user", "content": asked}, _said(_text(held, "text"))]


def caption(held: Held, asked: str) -> Messages:
    """`caption` answers the prompt of the set's entry."""
    return [{"role": "user", "content": asked}, _said(_text(held, "caption"))]


def label(held: Held, asked: str) -> Messages:
    """`label`, as a name, answers the prompt of the set's entry."""
    return [{"role": "user", "content": asked}, _said(_text(held, "label"))]


def _exchange(held: Held, asked: str, answer: str) -> Messages:
    return [*_system(held), *_history(held.get("history")), _user(asked), _said(_text(held, answer))]


def _system(held: Held) -> Messages:
    text = _text(held, "system", needed=False)
    return [{"role": "system", "content": text}] if text else []


def _history(turns: Any) -> Messages:
    pairs = [] if turns in (None, "") else turns  # tables only have texts
    pairs_only = isinstance(pairs, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not pairs_only or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValueError(f"`history` must be a list of pairs, a question and its answer, got {turns!r:.200}")
    return [message for asked, answer in pairs for message in (_user(asked), _said(answer))]


def _turn(turn: dict[str, Any], tag: str) -> dict[str, Any]:
    speaker, content = (next((turn[key] for key in keys if turn.get(key) is not None), None) for keys in _TURN_KEYS)
    role = SPEAKERS.get(str(speaker).lower())
    if role is None:
        raise ValueError(f"got a turn of {speaker!r}; expected one of {', '.join(SPEAKERS)}. Leave the row out")
    if role == "user" and isinstance(content, str):
        content = _user(content.replace(tag, TAG))["content"]
    return {key: value for key, value in turn.items() if key not in sum(_TURN_KEYS, ())} | {
        "role": role,
        "content": content,
    }


def _user(text: str) -> dict[str, Any]:
    """A user's message, with sources in the text as audio items."""
    parts = ENCLOSED.split(text)  # texts and sources in turn
    if len(parts) == 1:
        return {"role": "user", "content": text}
    items = [
        {"type": "audio", "path": part.strip()} if number % 2 else {"type": "text", "text": part}
        for number, part in enumerate(parts)
        if part
    ]
    return {"role": "user", "content": items}


def _said(answer: str) -> dict[str, Any]:
    return {"role": "assistant", "content": answer}


def _text(held: Held, name: str, needed: bool = True) -> str:
    text = held.get(name)
    if text is None and not needed:
        return ""
    if text is None:
        raise ValueError(f"its `{name}` is missing. Leave the row out, or fill it in")
    if not isinstance(text, str):
        raise ValueError(f"its `{name}` must be a text, got {text!r:.100}")
    return text
