"""Answers of training sets are learned exactly as they are in the file."""

import json

import pytest
from datasets import Dataset
from set_examples import ITEM, sources
from training_runs import TEXT, assistant, heard, user, write_clips

from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data


pytestmark = pytest.mark.usefixtures("datasets_cache")


ANY_TEXT = (
    *(
        "0",
        "3",
        "007",
        "-1e5",
        "null",
        "true",
        "[]",
        "{}",
        '"yes"',
        '{"a": 1}',
        "2024-01-31",
        "12:30",
        "2024-01-31T12:30:00Z",
    ),
    *(
        "NaN",
        "a\nb",
        "a\\nb",
        " spaces ",
        "\u2028 line \u0085 separators",
        "\u00fcn\u00efcode \U0001f514",
        "<audio> is a tag",
        "\ttab\r\n",
    ),
)


def as_jsonl(rows, path, indent=None):
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path.with_suffix(".jsonl")


def as_json(rows, path):
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1), "utf-8-sig")
    return path.with_suffix(".json")


def as_hub_folder(rows, path):
    (path / "data").mkdir(parents=True)
    as_jsonl(rows[:4], path / "data" / "train-0")
    as_jsonl(rows[4:], path / "data" / "train-1")
    return path


def as_audiofolder(rows, path):
    """The layout of `datasets`: audio files next to a list of them."""
    path.mkdir()
    write_clips(path, 1)
    as_jsonl(
        [
            {"file_name": "0.wav", **{name: value for name, value in row.items() if name != "audio"}, "audio": None}
            for row in rows
        ],
        path / "metadata",
    )
    return path


def as_parquet(rows, path):
    """Parquet cannot hold strings and lists in one column, so all content is lists."""
    rows = json.loads(json.dumps(rows))
    for message in (message for row in rows for message in row.get("messages", [])):
        if isinstance(message["content"], str):
            message["content"] = [{**TEXT, "text": message["content"]}]
    Dataset.from_list(rows).to_parquet(path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def answers(source):
    examples, _ = load_training_data([source])
    return [example["messages"][1]["content"][0]["text"] for example in examples]


@pytest.mark.parametrize("write", [as_jsonl, as_json, as_hub_folder, as_audiofolder, as_parquet])
@pytest.mark.parametrize("texts", [ANY_TEXT, ("2024-01-31", "2024-02-01"), ("0", "1"), ("null",)], ids=len)
def test_answers_are_learned_as_they_are_written(clip_folder, write, texts):
    """JSON readers guess a type if all `texts` are of one kind."""
    chats = [{"messages": [user(ITEM, TEXT), assistant(text)], "audio": "0.wav"} for text in texts]
    assert answers(DataSource(str(write(chats, clip_folder / "chats")))) == list(texts)
    asked = [{"questions": [{"instruction": text, "output": text}], "audio": "0.wav"} for text in texts]
    path = str(write(asked, clip_folder / "asked"))
    assert answers(DataSource(path)) == list(texts)
    if write is not as_audiofolder:
        assert answers(DataSource(path, split="train[1:]")) == list(texts[1:]) if len(texts) > 1 else True


def test_a_text_set_says_what_is_said(clip_folder):
    rows = [{"messages": [user(text), assistant(text)]} for text in ANY_TEXT]
    examples, _ = load_training_data([DataSource(str(as_jsonl(rows, clip_folder / "set")), sound=False)])
    assert [sources(example) for example in examples] == [[(text, []), (text, [])] for text in ANY_TEXT]


def test_a_file_that_changes_is_read_again(clip_folder):
    for text in ("a", "b"):
        path = as_jsonl([{"messages": [user(ITEM), assistant(text)], "audio": "0.wav"}], clip_folder / "set")
        assert answers(DataSource(str(path))) == [text]


@pytest.mark.parametrize("content", [3, True, {"a": 1}, None, ["a"]])
def test_what_is_no_text_is_an_error_with_its_row(read, content):
    good = {"messages": [user(heard("0.wav")), assistant("a")]}
    with pytest.raises(ValueError, match="row 1: .*(must be a text or a list|no text to learn)"):
        read(good, {"messages": [user(heard("0.wav")), assistant(content)]})
    with pytest.raises(ValueError, match="row 1, question 0: .*needs the texts"):
        asked = [{"audio": "0.wav", "questions": [{"instruction": "?", "output": text}]} for text in ("a", content)]
        read(*asked)


@pytest.mark.parametrize("content", ["", " \n", [], [{**TEXT, "text": " "}], [heard("0.wav")]])
def test_answers_without_a_text_are_errors(read, content):
    with pytest.raises(ValueError, match="row 0: message 3, an answer, has no text to learn"):
        read({"messages": [user(heard("0.wav")), assistant("a"), user("Sure?"), assistant(content)]})


def test_a_blank_output_is_an_error(read):
    with pytest.raises(ValueError, match="row 0, question 1: message 1, an answer, has no text"):
        asked = [{"instruction": "?", "output": text} for text in ("a", " ")]
        read({"audio": "0.wav", "questions": asked})
