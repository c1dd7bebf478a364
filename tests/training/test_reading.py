"""The format that a set's columns fit, and the errors for sets that fit none or several."""

import re

import pytest
from datasets import Dataset

from falcon3_audio.training.data.formats import KNOWN, ROLES
from falcon3_audio.training.data.reading import choose


def read(row, **entry):
    return choose(Dataset.from_list([row]), **entry)


TURNS = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("row", "name", "columns", "clips", "others"),
    [
        ({"messages": TURNS, "text": "a", "label": "b", "audio_filepath": "a.wav"}, "chats", ["messages"], [], 3),
        (
            {"audio": "a.wav", "questions": [{"instruction": "?"}], "text": "a"},
            *("questions about clips", ["questions"], ["audio"], 1),
        ),
        ({"sound": "a.wav", "conversations": [{"from": "human"}]}, "conversations", ["conversations"], ["sound"], 0),
        (
            {"audio": "a.wav", "question": "?", "answer": "a"},
            *("queries and responses", ["question", "answer"], ["audio"], 0),
        ),
        (
            {"audio": "a.wav", "prompt": "?", "completion": "a"},
            *("queries and responses", ["prompt", "completion"], ["audio"], 0),
        ),
        (
            {"audios": ["a.wav"], "instruction": "?", "output": "a", "system": "b", "input": "c", "id": 1},
            *("instructions and outputs", ["instruction", "output", "input", "system"], ["audios"], 1),
        ),
        ({"audio": "a.wav", "sentence": "a", "duration": 3.0}, "transcripts", ["sentence"], ["audio"], 1),
        (
            {"audio_filepath": "a.wav", "text": "a", "duration": 3.0},
            *("transcripts", ["text", "duration"], ["audio_filepath"], 0),
        ),
        ({"audio": "a.wav", "captions": ["a"], "offset": 1.0}, "captions", ["captions", "offset"], ["audio"], 0),
    ],
)
def test_the_columns_tell_the_format(row, name, columns, clips, others):
    reading = read(row)
    assert reading.format.name == name
    assert list(reading.columns.values()) == columns and list(reading.clips) == clips
    assert len(reading.others) == others and not set(reading.others) & set(reading.read)


def test_an_entry_says_which_column_is_what():
    row = {"path": "a.wav", "audio": "b.wav", "spoken": "hello", "text": "title", "mood": "calm"}
    reading = read(row, columns={"audio": "path", "text": "spoken"})
    assert reading.clips_of(row) == ["a.wav"]
    assert [message["content"] for message in reading.chat(row, 0)] == ["Transcribe the speech.", "hello"]
    labels = read(row, columns={"label": "mood"}, prompt="Which mood?")
    assert [message["content"] for message in labels.chat(row, 0)] == ["Which mood?", "calm"]
    asked = read(row, columns={"query": "text", "response": "spoken"})
    assert [message["content"] for message in asked.chat(row, 0)] == ["title", "hello"]


def advice(error):
    """The entry and the option that an error proposes."""
    entry = re.search(r"`columns: \{(.*?)\}`", error).group(1)
    option = re.search(r"--columns '(.*?)'`", error).group(1)
    pairs = dict(pair.split("=") for pair in option.split(","))
    assert ", ".join(f"{name}: {column}" for name, column in pairs.items()) == entry
    return pairs


@pytest.mark.parametrize(
    ("row", "nearest", "lacks", "proposed"),
    [
        (
            {"path": "a.mp3", "utterance": "a"},
            "transcripts",
            "`audio` and `text`",
            {"audio": "path", "text": "utterance"},
        ),
        ({"audio": "a.wav", "speaker": 3, "raw_text": "a"}, "transcripts", "`text`", {"text": "raw_text"}),
        (
            {"file": "a.wav", "genre_name": "a"},
            "labels",
            "`audio` and `label`",
            {"audio": "file", "label": "genre_name"},
        ),
        ({"wav": "a.wav", "captions": ["a"]}, "captions", "`audio`", {"audio": "wav"}),
        (
            {"file": "a.wav", "conversation": [{"from": "human"}]},
            *("conversations", "`audio` and `conversations`", {"audio": "file", "conversations": "conversation"}),
        ),
        (
            {"audio": "a.wav", "instruction": "?", "answer": "a"},
            "queries and responses",
            "`query`",
            {"query": "instruction"},
        ),
        (
            {"audio_file": "a.wav", "questions": [{"instruction": "?"}]},
            *("questions about clips", "`audio`", {"audio": "audio_file"}),
        ),
    ],
)
def test_a_set_in_no_format_is_told_the_nearest(row, nearest, lacks, proposed):
    with pytest.raises(ValueError) as error:
        read(row)
    said = str(error.value)
    assert said.startswith(f"has the columns {', '.join(row)}, which fit no format. The nearest is {nearest} (")
    assert f"; the set lacks {lacks}." in said
    assert advice(said) == proposed
    # The proposed columns can be read; labels also need a prompt.
    assert read(row, columns=proposed, prompt="?" if nearest == "labels" else None).format.name == nearest


@pytest.mark.parametrize(
    ("row", "entry", "message"),
    [
        ({"audio": "a.wav", "text": "a"}, {"columns": {"text": "sentence"}}, "its entry's `columns` name sentence"),
        ({"audio": "a.wav", "text": "a"}, {"columns": {"query": "text"}}, "nearest is queries .* lacks `response`"),
        ({"messages": TURNS}, {"columns": {"messages": "messages", "label": "messages"}}, "has no `label`"),
        ({"a": "b"}, {}, "columns: {messages: COLUMN}"),
        (
            {"audio": "a.wav", "text": "a", "label": "b"},
            *({}, "several could be the answer. .*: `columns: {text: text}` or `columns: {label: label}`"),
        ),
        (
            {"audio": "a.wav", "text": "a", "transcript": "b"},
            {},
            "`columns: {text: text}` or `columns: {text: transcript}`",
        ),
        (
            {"audio": "a.wav", "text": "a", "instruction": "b"},
            *({}, "`columns: {query: instruction, response: text}` into its entry; .* `columns: {text: text}`"),
        ),
        *(
            (
                {"audio": "a.wav", "text": "a"} | others,
                {},
                f"If `{asked}` is the question, write `columns: {{query: {asked}, response: {said}}}` into its entry; "
                "if only `text` should be read, `columns: {text: text}`",
            )
            for others, asked, said in (
                ({"prompt": "b"}, "prompt", "text"),
                *(({name: "b"}, "text", name) for name in ("response", "answer", "completion", "output")),
                ({"answer": "b", "instruction": "c"}, "instruction", "answer"),
            )
        ),
        ({"audio": "a.wav", "query": "a", "question": "b", "response": "c"}, {}, "`columns: {query: question}`"),
        ({"audio": "a.wav", "my: text": "a"}, {}, re.escape("`columns: {text: 'my: text'}`")),
        ({"audio": "a.wav", "label": "dog"}, {}, r"has labels \('dog', ...\), .*`prompt: \"Which animal"),
        ({"audio": "a.wav", "label": 3}, {"prompt": "?"}, "has the label 3 in `label`"),
        ({"messages": TURNS}, {"prompt": "?"}, "read as chats, whose rows have questions"),
    ],
)
def test_what_is_not_clear_is_an_error(row, entry, message):
    with pytest.raises(ValueError, match=message):
        read(row, **entry)


def test_texts_alone_need_no_clips():
    row = {"instruction": "?", "output": "a"}
    assert read(row, sound=False).clips == () and read(row, sound="some").clips == ()
    with pytest.raises(ValueError, match="nearest is transcripts .* lacks `audio`"):
        read({"text": "a"}, sound=False)


def test_no_column_is_two_things_in_one_format():
    columns = [column for known in KNOWN.values() for column in known]
    assert len(columns) == len(set(columns))
    assert set(KNOWN) <= set(ROLES)


def test_labels_that_look_like_numbers_must_be_meant():
    row = {"audio": "a.wav", "label": "7"}  # as read from a table
    with pytest.raises(ValueError, match=re.escape("has the labels 7 in `label`, which can be class numbers")):
        read(row, prompt="Which digit is said?")
    assert read(row, prompt="Which digit is said?", columns={"label": "label"}).chat(row, 0)[-1]["content"] == "7"


def test_numbers_with_a_point_are_numbers_too():
    """As pandas writes a column of numbers in which some are missing."""
    rows = Dataset.from_list([{"audio": "a.wav", "label": label} for label in ("1.0", "", "2.0")])
    with pytest.raises(ValueError, match=re.escape("has the labels 1.0, 2.0 in `label`, which can be class numbers")):
        choose(rows, prompt="Which?")
    with pytest.raises(ValueError, match="has the label 1.0 in `label`; the set has no names"):
        read({"audio": "a.wav", "label": 1.0}, prompt="Which?")
    assert read({"audio": "a.wav", "label": "A4"}, prompt="Which?").format.name == "labels"
