"""Sets of mixed types that `datasets` loaded from JSON and saved: their texts are kept, or the set is refused."""

import json

import pytest
from datasets import load_dataset
from training_runs import TEXT, assistant, heard, user, write_clips, write_jsonl

from falcon3_audio.training.data import load_training_data
from falcon3_audio.training.data.chats import audio_items
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.stream import open_streams
from falcon3_audio.training.preferences import load_preferences
from falcon3_audio.training.prepare.text_instructions import TextSource, open_text


ANSWERS = ("0", "007", "1e5", '"yes"', "true", "null", '{"a": 1}', "[1, 2]", "a dog")
CALLED = [{"type": "function", "function": {"name": "hear", "arguments": {"seconds": 1}}}]
CALLED_OTHERWISE = [{"type": "function", "function": {"name": "hear", "arguments": "all"}}]


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Saves rows as JSON, and as `datasets` loads these: `saved(rows)` gives the paths."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_clips(tmp_path, 1)

    def save(rows):
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        loaded = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert "Json" in str(loaded.features)
        loaded.save_to_disk(tmp_path / "saved")
        loaded.to_parquet(tmp_path / "rows.parquet")
        return path, [tmp_path / "saved", tmp_path / "rows.parquet"]

    return save


def answers_of(path):
    examples, _ = load_training_data([DataSource(str(path))])
    assert all(audio_items(example["messages"]) for example in examples)
    return [example["messages"][-1]["content"][0]["text"] for example in examples]


MIXED = {
    "messages[].content": [{"messages": [user(heard("0.wav"), TEXT), assistant(text)]} for text in ANSWERS],
    "conversations[].value": [
        {"conversations": [{"from": "human", "value": content}, {"from": "gpt", "value": text}], "audio": "0.wav"}
        for text in ANSWERS
        for content in ("<audio>What?", [TEXT])
    ],
    "response": [{"query": "<audio>?", "response": text, "audio": "0.wav"} for text in (*ANSWERS, 4)],
    "caption": [{"caption": text, "audio": "0.wav"} for text in (*ANSWERS, ["a dog"])],
}


@pytest.mark.parametrize("place", MIXED)
def test_changed_texts_are_refused_and_the_json_file_is_read(saved, place):
    path, changed = saved(MIXED[place])
    for other in changed:
        with pytest.raises(
            ValueError, match=f"{other}' has texts of the type `Json` in `{place}`".replace("[]", r"\[\]")
        ):
            load_training_data([DataSource(str(other))])
        with pytest.raises(ValueError, match="`Json` of `datasets` .*not streamed"):
            open_streams([DataSource(str(other), streaming=True)])
    if place == "messages[].content":
        assert answers_of(path) == list(ANSWERS)


def test_lists_and_calls_that_are_json_keep_their_texts(saved):
    """Messages, or items, of unequal types; and a tool's arguments."""
    rows = [
        {
            "messages": [
                user(heard("0.wav"), TEXT),
                {**assistant(""), "content": [TEXT | {"text": text}], "tool_calls": calls},
            ]
        }
        for text, calls in (*((text, CALLED) for text in ANSWERS), ("a bell", CALLED_OTHERWISE))
    ]
    path, same = saved(rows)
    for place in (path, *same):
        assert answers_of(place) == [*ANSWERS, "a bell"]


def test_preferences_and_texts_to_be_spoken_are_checked_too(saved):
    rows = [{"prompt": asked, "chosen": "0", "rejected": '"0"'} for asked in ("Which?", [user("Which?")])]
    path, changed = saved(rows)
    for other in changed:
        with pytest.raises(ValueError, match="preference set .* has texts of the type `Json` in `prompt`"):
            load_preferences([DataSource(str(other), sound=False)])
        with pytest.raises(ValueError, match="has texts of the type `Json` in `prompt`"):
            open_text(TextSource(str(other), instruction_column="prompt", output_column="chosen"))
    assert [row["chosen"] for row in map(json.loads, path.read_text().splitlines())] == ["0", "0"]
    assert len(load_preferences([DataSource(str(path), sound=False)])[0]) == 2
