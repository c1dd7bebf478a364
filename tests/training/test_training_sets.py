"""Training data of every kind becomes chats with a source in every audio item."""

import json
import os
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict, Features, List, Value
from tiny import SAMPLING_RATE, tone
from torch.utils.data import DataLoader
from training_runs import (
    CLIP_FEATURES,
    TEXT,
    assistant,
    clip_row,
    heard,
    user,
    write_chats,
    write_clips,
    write_jsonl,
)

from falcon3_audio.processing import load_audio
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data import training_sets as module
from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.stream import open_streams
from falcon3_audio.training.data.training_sets import load_training_data


ITEM = {"type": "audio"}
CHAT = List({"role": Value("string"), "content": Value("string")})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of `datasets` is in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "set"
    write_clips(folder, 3)
    return folder


@pytest.fixture
def read(folder):
    """The examples of rows that are stored as JSONL."""

    def read(*rows, **entry):
        path = str(write_jsonl(folder / "set.jsonl", list(rows)))
        return list(load_training_data([DataSource(path, **entry)])[0])

    return read


def sources(example):
    """(text, sources) of each message."""
    found = []
    for message in example["messages"]:
        texts = [item["text"] for item in message["content"] if item["type"] == "text"]
        audio = [item for item in message["content"] if item["type"] == "audio"]
        found.append((" ".join(texts), [next(v for k in ("audio", "path", "url") if (v := a.get(k))) for a in audio]))
    return found


def test_strings_and_lists_mix_and_relative_paths_start_at_the_set(read, folder):
    examples = read(
        {"messages": [user(heard("0.wav"), TEXT), assistant("a bell")]},
        {"messages": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("ho")]},
        {"messages": [user(TEXT, heard(folder / "1.wav")), {"role": "assistant", "content": [{**TEXT, "text": "x"}]}]},
        {"messages": [user({"type": "audio", "url": "https://some.where/clip.wav"}), assistant("y")]},
        sound="some",
    )
    assert [sources(example) for example in examples] == [
        [("What do you hear?", [f"{folder}/0.wav"]), ("a bell", [])],
        [("Be brief.", []), ("Hi", []), ("ho", [])],
        [("What do you hear?", [f"{folder}/1.wav"]), ("x", [])],
        [("", ["https://some.where/clip.wav"]), ("y", [])],
    ]
    assert examples[2]["origin"] == f"{folder}/set.jsonl, row 2"


def test_clips_of_the_row_fill_audio_items_in_order(read, folder):
    several, alone, without, quiet = read(
        {"audios": ["0.wav", "1.wav"], "messages": [user(ITEM, TEXT), assistant("a"), user(ITEM), assistant("b")]},
        {"audios": ["2.wav"], "messages": [user(TEXT, ITEM), assistant("a")]},
        {"audios": ["0.wav", "1.wav"], "messages": [user("Compare."), assistant("a"), user("Sure?"), assistant("b")]},
        {"audios": None, "messages": [user("Hi"), assistant("a")]},
        sound="some",
    )
    first, second, third = (f"{folder}/{number}.wav" for number in range(3))
    assert [clips for _, clips in sources(several)] == [[first], [], [second], []]
    assert [clips for _, clips in sources(alone)] == [[third], []]
    # Clips without a place go before the first question.
    assert [clips for _, clips in sources(without)] == [[first, second], [], [], []]
    assert without["messages"][0]["content"][-1] == {"type": "text", "text": "Compare."}
    assert [clips for _, clips in sources(quiet)] == [[], []]


def test_sources_in_items_and_in_the_column_may_mix(read, folder):
    (example,) = read({"audio": "1.wav", "messages": [user(heard("0.wav"), ITEM, TEXT), assistant("a")]})
    assert sources(example)[0][1] == [f"{folder}/0.wav", f"{folder}/1.wav"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "0.wav", "messages": [user(ITEM, ITEM), assistant("a")]}, "2 audio items .* has 1 clips"),
        ({"audios": ["0.wav", "1.wav"], "messages": [user(ITEM), assistant("a")]}, "1 audio items .* has 2 clips"),
        ({"messages": [user(ITEM), assistant("a")]}, "1 audio items .* has 0 clips"),
        ({"audio": "0.wav", "messages": [user(heard("0.wav")), assistant("a")]}, "0 audio items .* has 1 clips"),
        ({"audio": "0.wav", "messages": [assistant("a")]}, "no user message"),
        ({"audio": "0.wav", "questions": [{"instruction": "?", "output": None}]}, "needs the texts"),
        ({"audio": None, "questions": [{"instruction": "?", "output": "!"}]}, "1 audio items .* has 0 clips"),
        ({"messages": [{"from": "human", "value": "Hi"}]}, "must be a list of objects with `role` and `content`"),
        ({"messages": None, "id": 1}, "must be a list of objects with `role` and `content`, got None"),
    ],
)
def test_rows_that_do_not_fit_say_which_they_are(read, folder, row, message):
    with pytest.raises(ValueError, match=f"set.jsonl, row 0.*: .*{message}"):
        read(row)


def test_all_questions_of_a_clip_are_examples_and_the_transcript_is_not_shown(folder):
    rows = [clip_row(folder / f"{number}.wav", questions) for number, questions in enumerate((2, 0, 3))]
    write_shard(folder / "clips.parquet", rows, CLIP_FEATURES)
    examples, sizes = load_training_data([DataSource(str(folder / "clips.parquet"))])
    assert sizes == [5] and len(examples) == 5
    assert [example["origin"].rpartition("parquet, ")[2] for example in examples] == [
        *("row 0, question 0", "row 0, question 1", "row 2, question 0", "row 2, question 1", "row 2, question 2"),
    ]
    assert examples[3]["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "answer 1"}]}
    asked = examples[3]["messages"][0]
    assert asked["role"] == "user" and asked["content"][1] == {"type": "text", "text": "Question 1?"}
    assert asked["content"][0]["audio"] == {"bytes": (folder / "2.wav").read_bytes(), "path": None}
    assert "secret" not in str(list(examples))


def test_prepared_shards_and_mixed_sets_lie_end_to_end(folder):
    shards, chats = folder / "shards", write_chats(folder / "chats", 3)
    with begin_set(shards, {}) as report:
        for name in ("0.arrow", "1.arrow"):
            write_shard(shards / name, [clip_row(folder / "0.wav", 2)], CLIP_FEATURES)
        with pytest.raises(ValueError, match="set .*shards.* cannot be read: .*not finished"):
            load_training_data([DataSource(str(shards))])
        finish_set(shards, report, {"0.arrow": 1, "1.arrow": 1})
    examples, sizes = load_training_data([DataSource(str(shards)), DataSource(str(chats)), DataSource(str(shards))])
    assert sizes == [4, 5, 4]
    assert examples[3]["origin"] == f"{shards}, row 1, question 1"
    assert examples[4]["origin"] == f"{chats}, row 0"
    assert examples[12] == examples[3]


def test_splits_of_a_set_keep_their_own_clips_in_a_batch(folder, processor):
    """Different splits of one path start with different clips; the same split twice has the same clip."""
    write_shard(folder / "clips.parquet", [clip_row(folder / f"{n}.wav", 2) for n in range(3)], CLIP_FEATURES)
    parts = [
        DataSource(str(folder / "clips.parquet"), split=split) for split in ("train[:1]", "train[1:]", "train[:1]")
    ]
    examples, sizes = load_training_data(parts)
    assert sizes == [2, 4, 2]
    assert examples[3]["origin"] == f"{folder}/clips.parquet, split train[1:], row 0, question 1"
    batch = list(examples.select([0, 2, 3, 6]))
    shared, alone = (AudioChatCollator(processor, questions_per_row=number)(batch) for number in (None, 1))
    assert len(shared["input_features"]) == 2 and len(alone["input_features"]) == 4
    shared_clips, clips = ({clip.numpy().tobytes() for clip in rows["input_features"]} for rows in (shared, alone))
    assert shared_clips == clips and len(clips) == 2


@pytest.mark.parametrize("columns", [{"audio": "noisy"}, {"audio": "clean", "duration": "length"}])
def test_a_row_with_other_columns_keeps_its_own_clip_in_a_batch(folder, processor, columns):
    """One file in two entries that ask about different clips."""
    path = str(
        write_jsonl(
            folder / "set.jsonl", [{"clean": "0.wav", "noisy": "2.wav", "length": 0.1, "captions": ["a", "b"]}]
        )
    )
    entries = [DataSource(path, columns={"audio": "clean"}), DataSource(path, columns=columns)]
    examples = list(load_training_data(entries)[0])
    shared, apart = (AudioChatCollator(processor, questions_per_row=number)(examples) for number in (None, 1))
    assert len(shared["input_features"]) == 2
    clips, all_clips = ({clip.numpy().tobytes() for clip in rows["input_features"]} for rows in (shared, apart))
    assert clips == all_clips and len(clips) == 2


def test_prompts_with_the_clip_at_other_places_are_asked_in_rows_of_their_own(folder, processor):
    path = str(write_jsonl(folder / "set.jsonl", [{"audio": "0.wav", "captions": [str(n) for n in range(8)]}]))
    examples = list(load_training_data([DataSource(path, prompt=["Describe <audio>", "<audio>What is it?"])])[0])
    assert len({places(example)[0] for example in examples}) == 2
    batch = AudioChatCollator(processor, questions_per_row=None)(examples)
    assert int(batch["num_questions"]) == 8 and len(batch["input_features"]) == 2


def test_an_error_names_the_part_of_a_set(folder, tmp_path):
    source = DataSource("owner/sounds", "speech", "validation")
    assert f"{source}, row 7" == "owner/sounds, configuration speech, split validation, row 7"
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": []}] * 2)
    with pytest.raises(ValueError, match=r"set\.jsonl, split train\[1:\], row 0: `messages` must be"):
        load_training_data([DataSource(str(path), split="train[1:]")])[0][0]


def with_audio_columns(folder):
    """Chats with audio in one column, in several, and inside the messages, as the `Audio` feature of `datasets`."""
    messages = List(
        {
            "role": Value("string"),
            "content": List({"type": Value("string"), "text": Value("string"), "audio": Audio()}),
        }
    )
    clip = {"bytes": (folder / "0.wav").read_bytes(), "path": "0.wav"}
    yield "audio", Features({"messages": messages, "audio": Audio()}), clip, None
    yield "audios", Features({"messages": messages, "audios": List(Audio())}), [clip, clip], None
    yield "inside", Features({"messages": messages}), None, clip


def test_audio_columns_stay_encoded(folder, tmp_path):
    for name, features, column, inside in with_audio_columns(folder):
        items = [{"type": "audio", "audio": inside}] * (2 if name == "audios" else 1)
        said = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
        rows = [{"messages": [user(*items), said], **({} if name == "inside" else {name: column})}] * 2
        write_shard(tmp_path / f"{name}.parquet", rows, features)
        # (`datasets` itself would need torchcodec to build a column of Audio.)
        Dataset(pa.Table.from_pylist(rows, schema=features.arrow_schema)).save_to_disk(tmp_path / name)
        before = set(tmp_path.rglob("cache-*"))
        for path in (tmp_path / name, tmp_path / f"{name}.parquet"):
            examples = load_training_data([DataSource(str(path))])[0]
            for item in examples[1]["messages"][0]["content"]:
                assert item["audio"]["bytes"] == (folder / "0.wav").read_bytes()
                assert load_audio(item["audio"]).shape == (0.3 * SAMPLING_RATE,)
        assert set(tmp_path.rglob("cache-*")) == before  # and are not copied


def test_a_clip_that_is_only_a_path_is_read_from_the_set(folder):
    features = Features({"messages": CHAT, "audio": Audio(decode=False)})
    rows = [{"messages": [user("Hi"), assistant("ho")], "audio": {"bytes": None, "path": "1.wav"}}]
    write_shard(folder / "set.parquet", rows, features)
    (example,) = load_training_data([DataSource(str(folder / "set.parquet"))])[0]
    assert sources(example)[0][1] == [f"{folder}/1.wav"]


def test_a_folder_of_files_and_the_splits_of_a_saved_set(folder, tmp_path):
    for number in range(2):
        write_jsonl(folder / f"{number}.jsonl", [{"messages": [user(str(number)), assistant("a")]}])
    examples = load_training_data([DataSource(str(folder), sound=False)])[0]
    assert [sources(example)[0][0] for example in examples] == ["0", "1"]
    splits = {
        name: Dataset.from_list(
            [{"messages": [user(heard("a.wav"), {**TEXT, "text": name}), {"role": "assistant", "content": [TEXT]}]}]
        )
        for name in ("train", "test")
    }
    DatasetDict(splits).save_to_disk(tmp_path / "splits")
    (example,) = load_training_data([DataSource(str(tmp_path / "splits"), split="test")])[0]
    assert sources(example)[0] == ("test", [f"{tmp_path}/splits/a.wav"])


def test_sets_that_cannot_be_read_are_named(tmp_path):
    def said(name):
        with pytest.raises(ValueError) as error:
            load_training_data([DataSource(str(tmp_path / name))])
        assert str(tmp_path / name) in str(error.value)
        return str(error.value)

    (tmp_path / "broken.jsonl").write_text('{"messages": [}\n')
    assert re.search("JSON parse error in .*broken.jsonl.*: Expecting value", said("broken.jsonl"))
    (tmp_path / "twice.jsonl").write_text('{"messages": []}\n{"audio": "a.wav", "messages": [], "audio": "b.wav"}\n')
    assert "twice.jsonl, line 2: the key 'audio' appears twice in one object" in said("twice.jsonl")
    (tmp_path / "numbers.jsonl").write_text('{"messages": []}\n\n7\n')
    assert "numbers.jsonl, line 3: expected an object, got 7" in said("numbers.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no more")
    assert "cannot be read" in said("broken.parquet")
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in said("empty.jsonl")
    write_jsonl(tmp_path / "columns.jsonl", [{"text": "a"}])
    assert "has the columns text, which fit no format. The nearest is transcripts" in said("columns.jsonl")
    write_jsonl(tmp_path / "questions.jsonl", [{"audio": "a.wav", "questions": []}])
    assert "holds no questions" in said("questions.jsonl")
    assert "cannot be read" in said("gone.jsonl")
    (tmp_path / "mixed").mkdir()
    write_jsonl(tmp_path / "mixed" / "a.jsonl", [{"messages": []}])
    (tmp_path / "mixed" / "b.parquet").write_bytes(b"")
    assert "files of one kind" in said("mixed")


def test_the_index_is_small_integers(folder):
    """10 M questions take 140 MB, whatever their text."""
    path = write_jsonl(folder / "set.jsonl", [{"messages": [user("long " * 1000), assistant("a")]}] * 300)
    examples = load_training_data([DataSource(str(path), sound=False)])[0]
    assert examples.data.nbytes == 300 * (2 + 8 + 4)
    # Rows are read from disk, one at a time.
    (_, rows, _), *_ = examples.format["format_kwargs"]["transform"].sets
    assert rows.cache_files


def test_workers_give_the_same_batches(folder, processor):
    """Read and decoded in other processes: pickled for spawned workers, and in forked ones."""
    examples = load_training_data([DataSource(str(write_chats(folder / "chats")))])[0]
    copy = pickle.loads(pickle.dumps(examples))
    assert list(copy) == list(examples)
    collator = pickle.loads(pickle.dumps(AudioChatCollator(processor)))
    batches = [list(DataLoader(examples, 3, collate_fn=collator, num_workers=workers)) for workers in (0, 2)]
    assert len(batches[0]) == len(batches[1]) == 4
    for here, there in zip(*batches):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_an_example_is_read_only_when_it_is_asked_for(folder, monkeypatch):
    reads = []
    original = module._Reader._read
    monkeypatch.setattr(module._Reader, "_read", lambda *key: reads.append(key[1:]) or original(*key))
    examples = load_training_data([DataSource(str(write_chats(folder / "chats")))])[0]
    assert reads == []
    examples.select([7, 2])[:]
    assert [row for _, row, _ in reads] == [7, 2]


def test_open_asqa_rows_as_json_read_the_same(folder):
    """The clip row of a JSON file with paths gives the same audio as the prepared one with bytes."""
    soundfile.write(folder / "long.wav", tone(1.5), SAMPLING_RATE)
    row = clip_row(folder / "long.wav", 1)
    write_jsonl(folder / "set.jsonl", [{"audio": "long.wav", "questions": row["questions"]}])
    (by_path,) = load_training_data([DataSource(str(folder / "set.jsonl"))])[0]
    write_shard(folder / "set.parquet", [row], CLIP_FEATURES)
    (by_bytes,) = load_training_data([DataSource(str(folder / "set.parquet"))])[0]
    some, other = (load_audio(example["messages"][0]["content"][0]["audio"]) for example in (by_path, by_bytes))
    assert (some == other).all() and some.shape == (24_000,)
    assert json.dumps(by_path["messages"][1]) == json.dumps(by_bytes["messages"][1])
    assert Path(by_path["messages"][0]["content"][0]["audio"]) == folder / "long.wav"


@pytest.mark.parametrize("asked", [{"instruction": "?", "output": "!"}, "What?", 3])
def test_questions_that_are_no_list_are_errors(read, asked):
    with pytest.raises(
        ValueError, match="set.jsonl, row 1: a question needs the texts|set.jsonl, row 1: .*1 audio items"
    ):
        read({"audio": "0.wav", "questions": [{"instruction": "?", "output": "!"}]}, {"questions": asked})


def test_roles_of_other_formats_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": [{"role": "human", "content": "Hi"}, assistant("ho")]}])
    with pytest.raises(
        ValueError, match=r"row 0: got messages with the role \['human'\]; expected system, user, assistant"
    ):
        list(load_training_data([DataSource(str(path))])[0])


# Answers are learned exactly as they are in the file.

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
def test_answers_are_learned_as_they_are_written(folder, write, texts):
    """JSON readers guess a type if all `texts` are of one kind."""
    chats = [{"messages": [user(ITEM, TEXT), assistant(text)], "audio": "0.wav"} for text in texts]
    assert answers(DataSource(str(write(chats, folder / "chats")))) == list(texts)
    asked = [{"questions": [{"instruction": text, "output": text}], "audio": "0.wav"} for text in texts]
    path = str(write(asked, folder / "asked"))
    assert answers(DataSource(path)) == list(texts)
    if write is not as_audiofolder:
        assert answers(DataSource(path, split="train[1:]")) == list(texts[1:]) if len(texts) > 1 else True


def test_a_text_set_says_what_is_said(folder):
    rows = [{"messages": [user(text), assistant(text)]} for text in ANY_TEXT]
    examples, _ = load_training_data([DataSource(str(as_jsonl(rows, folder / "set")), sound=False)])
    assert [sources(example) for example in examples] == [[(text, []), (text, [])] for text in ANY_TEXT]


def test_a_file_that_changes_is_read_again(folder):
    for text in ("a", "b"):
        path = as_jsonl([{"messages": [user(ITEM), assistant(text)], "audio": "0.wav"}], folder / "set")
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


# Clips and their places.


def places(example):
    """The text of each message, with a clip's number in its place."""
    return [
        "".join(
            f"[{Path(item['audio'] or item['path']).stem}]" if item["type"] == "audio" else item["text"]
            for item in message["content"]
        )
        for message in example["messages"]
    ]


def test_items_without_a_type_are_what_they_hold(read, folder, processor):
    """As for the processor: in JSON, and with the empty keys that Arrow adds."""
    asked = {
        "role": "user",
        "content": [{"audio": "0.wav"}, {"text": "What <audio>?"}, {"path": "1.wav", "text": None}],
    }
    said = {"role": "assistant", "content": [{"text": "a bell"}]}
    row = {"messages": [asked, said], "audio": "2.wav"}
    (example,) = read(row)
    assert places(example) == ["[0]What [2]?[1]", "a bell"]
    Dataset.from_list([row]).to_parquet(folder / "set.parquet")
    (stored,) = load_training_data([DataSource(str(folder / "set.parquet"))])[0]
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


def test_a_path_that_fits_two_folders_of_a_set_is_an_error(folder):
    """Paths start at the set's folder; a file in a subfolder could also mean that subfolder."""
    rows = [{"messages": [user(heard(path), TEXT), assistant("a")]} for path in ("0.wav", "more/0.wav", "1.wav")]
    (folder / "more").mkdir()
    write_jsonl(folder / "more" / "rows.jsonl", rows)
    assert len(list(load_training_data([DataSource(str(folder))])[0])) == 3
    write_clips(folder / "more", 1)
    (folder / "more" / "1.wav").symlink_to(folder / "1.wav")
    for stream in (False, True):
        source = DataSource(str(folder), streaming=stream)
        examples = load_training_data([source])[0] if not stream else open_streams([source])[1][0]
        with pytest.raises(ValueError, match="row 0: the clip '0.wav' is in .*set and in .*set/more, where files of"):
            examples[0]
        assert [sources(examples[n])[0][1] for n in (1, 2)] == [[f"{folder}/more/0.wav"], [f"{folder}/1.wav"]]
    write_jsonl(folder / "test.jsonl", rows)  # of another split
    assert len(list(load_training_data([DataSource(str(folder), split="test")])[0])) == 3


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


def test_other_keys_of_rows_with_sound_may_have_any_name(read, folder):
    asked, alone = read(
        {"messages": [user(heard("0.wav")), assistant("a")], "audio_seconds": 0.3, "file_name": "original.mp3"},
        {"messages": [user("Hi"), assistant("a")], "audio_seconds": None, "file_name": None},
        sound="some",
    )
    assert sources(asked)[0][1] == [f"{folder}/0.wav"] and sources(alone)[0][1] == []


def test_a_set_without_sound_says_so_or_is_an_error(folder):
    path = str(write_jsonl(folder / "set.jsonl", [{"messages": [user("Hi"), assistant("a")]}] * 3))
    with pytest.raises(ValueError, match="No row of the training set .*set.jsonl.* has audio.*`sound: false`"):
        load_training_data([DataSource(path)])
    assert len(load_training_data([DataSource(path, sound=False)])[0]) == 3
    path = str(write_jsonl(folder / "set.jsonl", [{"messages": [user(heard("0.wav")), assistant("a")]}]))
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
def test_a_row_without_sound_is_an_error_unless_some_are_meant(folder, row):
    """If a clip was lost when the set was built, the model would learn to answer about audio that it does not hear."""
    good = {"messages": [user(TEXT), assistant("a")], "audio": "0.wav"}
    path = write_jsonl(folder / "set.jsonl", [good, row])
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
def test_what_other_trainers_read_is_not_passed_over(folder, row, message):
    good = {"audio": "0.wav", "messages": [user(ITEM), {**assistant("a"), "loss": True, "weight": 1}], "images": []}
    good["messages"][0] = {**good["messages"][0], "loss": False}  # no question is learned anyway
    rows = [good | row, good | {"system": "", "tools": None}]
    if row.get("messages", ()) is None:
        rows = [{"audio": "0.wav", **{name: row[name] for name in row if name != "messages"}}]
    examples = load_training_data([DataSource(str(write_jsonl(folder / "set.jsonl", rows)))])[0]
    with pytest.raises(ValueError, match=f"set.jsonl, row 0.*: .*{message}"):
        examples[0]
    assert len(examples) == 1 or sources(examples[1])[0][1] == [f"{folder}/0.wav"]


def test_an_audiofolder_has_its_sounds(folder, tmp_path):
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
    Dataset.from_list(rows).to_parquet(folder / "metadata.parquet")
    examples, _ = load_training_data([DataSource(str(folder))])
    assert [sources(example)[0][1] for example in examples] == [[f"{folder}/{n}.wav"] for n in (2, 0)]
    (tmp_path / "above" / "it").mkdir(parents=True)
    (folder / "metadata.parquet").rename(tmp_path / "above" / "it" / "metadata.parquet")
    with pytest.raises(ValueError, match="the audio files of metadata.parquet are in .*above/it; give that folder"):
        load_training_data([DataSource(str(tmp_path / "above"))])


@pytest.mark.skipif(os.name == "nt", reason="there it is a path")
def test_an_absolute_path_of_windows_is_named_as_it_is_written(tmp_path):
    rows = [{"messages": [user(heard(r"C:\data\a.wav"), TEXT), assistant("a dog")]}]
    examples, _ = load_training_data([DataSource(str(write_jsonl(tmp_path / "rows.jsonl", rows)))])
    assert sources(examples[0])[0][1] == [r"C:\data\a.wav"]
