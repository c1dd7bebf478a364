"""Where the clips of training sets are, and rows whose clips cannot be found."""

import os
import re

import pytest
import torch
from datasets import Dataset
from set_examples import ITEM, places, sources
from training_runs import TEXT, assistant, heard, user, write_clips, write_jsonl

from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.stream import open_streams
from falcon3_audio.training.data.training_sets import load_training_data


pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_items_without_a_type_are_what_they_hold(read, clip_folder, processor):
    """As for the processor: in JSON, and with the empty keys that Arrow adds."""
    asked = {
        "role": "user",
        "content": [{"audio": "0.wav"}, {"text": "What <audio>?"}, {"path": "1.wav", "text": None}],
    }
    said = {"role": "assistant", "content": [{"text": "a bell"}]}
    row = {"messages": [asked, said], "audio": "2.wav"}
    (example,) = read(row)
    assert places(example) == ["[0]What [2]?[1]", "a bell"]
    Dataset.from_list([row]).to_parquet(clip_folder / "set.parquet")
    (stored,) = load_training_data([DataSource(str(clip_folder / "set.parquet"))])[0]
    assert places(stored) == places(example)
    batch = AudioChatCollator(processor)([example | {"number": 0}, stored | {"number": 1}])
    assert len(batch["input_features"]) == 6 and torch.equal(*batch["input_ids"])


@pytest.mark.parametrize("item", [{}, {"type": None, "name": "a"}, {"type": "text"}, {"text": 3}, {"type": "image"}])
def test_an_item_that_is_neither_text_nor_sound_is_an_error(read, item):
    with pytest.raises(ValueError, match="row 0: an item of message 0 must be like .*, got {"):
        read({"messages": [user(item, heard("0.wav")), assistant("a")]})


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (*([""],), r"its `audio` must be clips, got \[''\]. Leave out empty elements"),
        (*([None],), r"its `audio` must be clips, got \[None\]"),
        (*(["0.wav", None],), r"its `audio` must be clips, got \['0.wav', None\]"),
        (*([{"bytes": None, "path": None}],), "its `audio` must be clips"),
        *((clip, f"a clip must be a path, .*, got {clip}") for clip in (7, True, 1.5)),
        *(({"path": clip}, f"a clip must be a path, .*, got {clip}") for clip in (7, True)),
    ],
)
def test_what_is_no_clip_is_an_error(read, clips, message):
    chat = {"messages": [user(TEXT), assistant("a")]}
    for entry in ({}, {"sound": "some"}):
        with pytest.raises(ValueError, match=f"row 1: {message}"):
            read(chat | {"audio": "0.wav"}, chat | {"audio": clips}, **entry)
    if not isinstance(clips, list):
        with pytest.raises(ValueError, match=f"row 1: {message}"):
            read(*({"audio_filepath": clip, "duration": 0.1, "text": "a"} for clip in ("0.wav", clips)))
        with pytest.raises(ValueError, match=f"row 0: {message}"):
            read({"messages": [user({"type": "audio", "audio": clips}), assistant("a")]})


def test_an_item_with_an_empty_source_has_none(read):
    item = {"type": "audio", "path": "", "audio": {"bytes": None, "path": None}}
    (example,) = read({"messages": [user(item, TEXT), assistant("a")], "audio": "0.wav"})
    assert places(example)[0] == "[0]What do you hear?"
    with pytest.raises(ValueError, match="row 0: the messages have 1 audio items without a source, but the row has 0"):
        read({"messages": [user(item, TEXT), assistant("a")]})


def test_a_path_that_fits_two_folders_of_a_set_is_an_error(clip_folder):
    """Paths start at the set's folder; a file in a subfolder could also mean that subfolder."""
    rows = [{"messages": [user(heard(path), TEXT), assistant("a")]} for path in ("0.wav", "more/0.wav", "1.wav")]
    (clip_folder / "more").mkdir()
    write_jsonl(clip_folder / "more" / "rows.jsonl", rows)
    assert len(list(load_training_data([DataSource(str(clip_folder))])[0])) == 3
    write_clips(clip_folder / "more", 1)
    (clip_folder / "more" / "1.wav").symlink_to(clip_folder / "1.wav")
    for stream in (False, True):
        source = DataSource(str(clip_folder), streaming=stream)
        examples = load_training_data([source])[0] if not stream else open_streams([source])[1][0]
        with pytest.raises(ValueError, match="row 0: the clip '0.wav' is in .*set and in .*set/more, where files of"):
            examples[0]
        assert [sources(examples[n])[0][1] for n in (1, 2)] == [
            [f"{clip_folder}/more/0.wav"],
            [f"{clip_folder}/1.wav"],
        ]
    write_jsonl(clip_folder / "test.jsonl", rows)  # of another split
    assert len(list(load_training_data([DataSource(str(clip_folder), split="test")])[0])) == 3


def test_clips_are_where_their_tags_are(read):
    two, inline, listed, asked, alone = read(
        {
            "messages": [user("<audio>What?"), assistant("a"), user("\n<audio>And this?"), assistant("b <audio>")],
            "audios": ["0.wav", "1.wav"],
        },
        {"messages": [user("Is <audio> as loud as <audio>?"), assistant("a")], "audios": ["0.wav", "1.wav"]},
        {
            "messages": [user({**TEXT, "text": "First <audio>"}, ITEM, TEXT), assistant("a")],
            "audios": ["2.wav", "0.wav"],
        },
        {"messages": [{"role": "system", "content": "<audio>"}, user("Hi"), assistant("a")], "audio": ["1.wav"]},
        {"messages": [user("<audio>"), assistant("a")], "audios": "1.wav"},
    )
    assert places(two) == ["[0]What?", "a", "\n[1]And this?", "b <audio>"]
    assert places(inline) == ["Is [0] as loud as [1]?", "a"]
    assert places(listed) == ["First [2][0]What do you hear?", "a"]
    assert places(asked) == ["[1]", "Hi", "a"]
    assert places(alone) == ["[1]", "a"]


def test_the_tag_of_a_question_is_the_place_of_its_clip(read):
    first, last = read(
        {
            "audio": "1.wav",
            "questions": [{"instruction": text, "output": "a"} for text in ("<audio>What?", "And <audio>?")],
        }
    )
    assert (places(first)[0], places(last)[0]) == ("[1]What?", "And [1]?")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"messages": [user("<audio>What?"), assistant("a")]},
            r"1 audio items .*\(1 of them tags `<audio>`.* has 0 clips",
        ),
        ({"messages": [user("<audio>?"), assistant("a")], "audios": ["0.wav", "1.wav"]}, "1 audio items .* 2 clips"),
        ({"messages": [user("<audio><audio>"), assistant("a")], "audios": ["0.wav"]}, "2 audio items .* 1 clips"),
        (
            {"messages": [user(heard("0.wav"), {**TEXT, "text": "<audio>"}), assistant("a")]},
            "1 audio items .* 0 clips",
        ),
        ({"messages": [user("<audio>"), assistant("a")], "audio": "0.wav", "audios": ["1.wav"]}, "both `audio` and"),
        # Tags of other tools.
        *(
            ({"messages": [user(f"{tag} What?"), assistant("a")], "audios": ["0.wav"]}, re.escape(f"the tag {seen} "))
            for tag, seen in (
                *(("<AUDIO>",) * 2, ("<|AUDIO|>",) * 2, ("<sound>",) * 2, ("Audio 1: <|audio_bos|>", "<|audio_bos|>")),
                ("<audio>0.wav</audio>", "</audio>"),
            )
        ),
        # Audio under names that are not read.
        (
            {"messages": [user(TEXT), assistant("a")], "audio_path": "0.wav"},
            "the key 'audio_path' .* not read.*`audios`",
        ),
        ({"messages": [user(TEXT), assistant("a")], "file_name": "0.wav"}, "the key 'file_name'"),
        ({"messages": [user(TEXT), assistant("a")], "input": "dog.FLAC"}, "the key 'input'"),
        ({"messages": [user(TEXT), assistant("a")], "wavs": ["0.wav"]}, "the key 'wavs'"),
        ({"messages": [{**user("Hi"), "audio": "0.wav"}, assistant("a")]}, "the key 'audio'"),
        ({"messages": [user({"type": "audio", "audio_url": "0.wav"}), assistant("a")]}, "the key 'audio_url'"),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": "x"}}), assistant("a")]}, "'input_audio'"),
        ({"questions": [{"instruction": "?", "output": "!"}], "audio_path": "0.wav", "audio": None}, "'audio_path'"),
    ],
)
def test_clips_without_a_place_or_under_other_names_are_errors(read, row, message):
    with pytest.raises(ValueError, match=f"set.jsonl, row 0.*: .*{message}"):
        read(row)
    good = {name: [user(heard("0.wav")), assistant("a")] for name in row if name == "messages"}
    if good:  # also if other rows are correct
        with pytest.raises(ValueError, match=f"set.jsonl, row 1.*: .*{message}"):
            read(good, row)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user(heard("0.wav"), TEXT), assistant("a")]},
        {"query": "<audio>0.wav</audio>What?", "response": "a"},
        {
            "conversations": [
                {"from": "user", "value": "<audio>0.wav</audio>?"},
                {"from": "assistant", "value": "a"},
            ]
        },
        {"messages": [user(heard("0.wav"), ITEM), assistant("a")], "audio": "1.wav"},
    ],
)
@pytest.mark.parametrize("times", [{"offset": 0.1, "duration": 0.1}, {"offset": 0.0}])
def test_times_of_a_clip_in_a_chat_are_not_passed_over(read, row, times):
    names = ", ".join(f"`{name}`" for name in times)
    with pytest.raises(ValueError, match=rf"row 0: the row has times \({names}\), which select a part of clips in"):
        read(row | times)
    with pytest.raises(ValueError, match=r"row 0: the row has times \(`begin`\), which select a part"):
        read(row | {"begin": 0.1}, columns={"offset": "begin"})
    (example,) = read(row | {"duration": 0.1})  # which only says how long the clip is
    assert "0.wav" in str(example["messages"])


@pytest.mark.parametrize("time", ["offset", "start", "start_time", "begin_time", "end", "end_time"])
def test_times_inside_a_clip_are_not_passed_over(read, time):
    said = f"row 0: a clip has `{time}`: 0.1, which is not read there. Cut the file, or move"
    answer = assistant("a")
    with pytest.raises(ValueError, match=said):
        read({"messages": [user({**heard("0.wav"), time: 0.1, "duration": 0.1}, TEXT), answer]})
    with pytest.raises(ValueError, match=said):
        read({"messages": [user(ITEM, TEXT), answer], "audio": {"path": "0.wav", time: 0.1}})
    read({"messages": [user({**heard("0.wav"), time: None, "duration": 0.3}, TEXT), answer]})


def test_other_keys_of_rows_with_sound_may_have_any_name(read, clip_folder):
    asked, alone = read(
        {"messages": [user(heard("0.wav")), assistant("a")], "audio_seconds": 0.3, "file_name": "original.mp3"},
        {"messages": [user("Hi"), assistant("a")], "audio_seconds": None, "file_name": None},
        sound="some",
    )
    assert sources(asked)[0][1] == [f"{clip_folder}/0.wav"] and sources(alone)[0][1] == []


def test_a_set_without_sound_says_so_or_is_an_error(clip_folder):
    path = str(write_jsonl(clip_folder / "set.jsonl", [{"messages": [user("Hi"), assistant("a")]}] * 3))
    with pytest.raises(ValueError, match="No row of the training set .*set.jsonl.* has audio.*`sound: false`"):
        load_training_data([DataSource(path)])
    assert len(load_training_data([DataSource(path, sound=False)])[0]) == 3
    path = str(write_jsonl(clip_folder / "set.jsonl", [{"messages": [user(heard("0.wav")), assistant("a")]}]))
    with pytest.raises(ValueError, match="row 0: the row has audio, but .*`sound: false`"):
        load_training_data([DataSource(path, sound=False)])[0][0]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("What is it?"), assistant("a")]},
        {"messages": [user("What is it?"), assistant("a")], "audio": None},
        {"messages": [user("What is it?"), assistant("a")], "audios": []},
        {"messages": [user("What is it?"), assistant("a")], "audio": ""},
        {
            "messages": [user({**TEXT, "audio": None, "path": None}), assistant("a")],
            "audio": {"bytes": None, "path": None},
        },
    ],
)
def test_a_row_without_sound_is_an_error_unless_some_are_meant(clip_folder, row):
    """If a clip was lost when the set was built, the model would learn to answer about audio that it does not hear."""
    good = {"messages": [user(TEXT), assistant("a")], "audio": "0.wav"}
    path = write_jsonl(clip_folder / "set.jsonl", [good, row])
    with pytest.raises(ValueError, match="set.jsonl, row 1: the row has no audio.*`sound: some`"):
        list(load_training_data([DataSource(str(path))])[0])
    asked = load_training_data([DataSource(str(path), sound="some")])[0]
    assert [len(clips) for _, clips in (sources(example)[0] for example in asked)] == [1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"system": "Be brief."}, "the row has 'system', which is not read. Make it a message"),
        ({"tools": [{"name": "f"}]}, "the row has 'tools'"),
        ({"images": ["0.png"]}, "the row has 'images'"),
        ({"questions": [{"instruction": "?", "output": "!"}]}, "the row has `messages` and `questions`"),
        (
            {"messages": [user(ITEM), {**assistant("a"), "loss": False}]},
            "message 1 has `loss`: False, which is not read",
        ),
        ({"messages": [user(ITEM), {**assistant("a"), "weight": 0}]}, "message 1 has `weight`: 0"),
        (
            {"messages": None, "questions": [{"instruction": "?", "input": "Say it.", "output": "!"}]},
            "`input` is not read",
        ),
    ],
)
def test_what_other_trainers_read_is_not_passed_over(clip_folder, row, message):
    good = {"audio": "0.wav", "messages": [user(ITEM), {**assistant("a"), "loss": True, "weight": 1}], "images": []}
    good["messages"][0] = {**good["messages"][0], "loss": False}  # no question is learned anyway
    rows = [good | row, good | {"system": "", "tools": None}]
    if row.get("messages", ()) is None:
        rows = [{"audio": "0.wav", **{name: row[name] for name in row if name != "messages"}}]
    examples = load_training_data([DataSource(str(write_jsonl(clip_folder / "set.jsonl", rows)))])[0]
    with pytest.raises(ValueError, match=f"set.jsonl, row 0.*: .*{message}"):
        examples[0]
    assert len(examples) == 1 or sources(examples[1])[0][1] == [f"{clip_folder}/0.wav"]


def test_an_audiofolder_has_its_sounds(clip_folder, tmp_path):
    """Its metadata as JSONL next to the audio of each split, and as parquet."""
    rows = [{"file_name": f"{n}.wav", "messages": [user("What?"), assistant("a")]} for n in (2, 0)]
    for part in ("train", "test"):
        write_clips(tmp_path / "parts" / part, 3)
        write_jsonl(tmp_path / "parts" / part / "metadata.jsonl", rows)
    for part in ("train", "test"):
        examples, _ = load_training_data([DataSource(str(tmp_path / "parts"), split=part)])
        assert [sources(example)[0][1] for example in examples] == [
            [f"{tmp_path}/parts/{part}/{n}.wav"] for n in (2, 0)
        ]
    Dataset.from_list(rows).to_parquet(clip_folder / "metadata.parquet")
    examples, _ = load_training_data([DataSource(str(clip_folder))])
    assert [sources(example)[0][1] for example in examples] == [[f"{clip_folder}/{n}.wav"] for n in (2, 0)]
    (tmp_path / "above" / "it").mkdir(parents=True)
    (clip_folder / "metadata.parquet").rename(tmp_path / "above" / "it" / "metadata.parquet")
    with pytest.raises(ValueError, match="the audio files of metadata.parquet are in .*above/it; give that folder"):
        load_training_data([DataSource(str(tmp_path / "above"))])


@pytest.mark.skipif(os.name == "nt", reason="there it is a path")
def test_an_absolute_path_of_windows_is_named_as_it_is_written(tmp_path):
    rows = [{"messages": [user(heard(r"C:\data\a.wav"), TEXT), assistant("a dog")]}]
    examples, _ = load_training_data([DataSource(str(write_jsonl(tmp_path / "rows.jsonl", rows)))])
    assert sources(examples[0])[0][1] == [r"C:\data\a.wav"]
