"""What examples of training sets hold."""

from itertools import takewhile
from pathlib import Path

from datasets import List, Value

from falcon3_audio.processing import load_audio
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.stream import TrainingStream, open_streams
from falcon3_audio.training.data.training_sets import load_training_data


ITEM = {"type": "audio"}
CHAT = List({"role": Value("string"), "content": Value("string")})


def sources(example):
    """(text, sources) of each message."""
    found = []
    for message in example["messages"]:
        texts = [item["text"] for item in message["content"] if item["type"] == "text"]
        audio = [item for item in message["content"] if item["type"] == "audio"]
        found.append((" ".join(texts), [next(v for k in ("audio", "path", "url") if (v := a.get(k))) for a in audio]))
    return found


def places(example):
    """The text of each message, with a clip's number in its place."""
    return [
        "".join(
            f"[{Path(item['audio'] or item['path']).stem}]" if item["type"] == "audio" else item["text"]
            for item in message["content"]
        )
        for message in example["messages"]
    ]


def clip_name(item):
    """The name of a clip; every source must be loadable."""
    source = next(item[key] for key in ("audio", "path", "url") if item.get(key) is not None)
    assert len(load_audio(source))
    if isinstance(source, dict):
        source = source.get("path") or "bytes"
    return Path(getattr(source, "source", source) if not isinstance(source, bytes) else "bytes").stem


def said(path, **entry):
    """Each example of a set as lines with the name of each clip in its place; the same if the set is streamed."""
    source = DataSource(**{"path": str(path)} | entry)
    loaded = lines(load_training_data([source])[0])
    if "[" not in source.split:
        assert lines(first_pass(source)) == loaded
    return loaded


def lines(examples):
    return [
        [
            f"{message['role']}: "
            + "".join(f"({clip_name(i)})" if i["type"] == "audio" else i["text"] for i in message["content"])
            for message in example["messages"]
        ]
        for example in examples
    ]


def first_pass(source):
    """The first pass of a stream, in the order of the set."""
    (streamed,), _ = open_streams([source])
    return list(takewhile(lambda example: example["pass"] == 0, TrainingStream([streamed], questions_per_row=None)))
