"""Training data of every kind becomes chats with a source in every audio item."""

import json
import pickle
import re
from pathlib import Path

import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, DatasetDict, Features, List, Value
from set_examples import CHAT, ITEM, places, sources
from tiny import SAMPLING_RATE, tone
from torch.utils.data import DataLoader
from training_runs import CLIP_FEATURES, TEXT, assistant, clip_row, heard, user, write_chats, write_jsonl

from falcon3_audio.processing import load_audio
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data import training_sets as module
from falcon3_audio.training.data.shards import begin_set, finish_set, write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data


pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_strings_and_lists_mix_and_relative_paths_start_at_the_set(read, clip_folder):
    examples = read(
        {"messages": [user(heard("0.wav"), TEXT), assistant("a bell")]},
        {"messages": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("ho")]},
        {
            "messages": [
                user(TEXT, heard(clip_folder / "1.wav")),
                {"role": "assistant", "content": [{**TEXT, "text": "x"}]},
            ]
        },
        {"messages": [user({"type": "audio", "url": "https://some.where/clip.wav"}), assistant("y")]},
        sound="some",
    )
    assert [sources(example) for example in examples] == [
        [("What do you hear?", [f"{clip_folder}/0.wav"]), ("a bell", [])],
        [("Be brief.", []), ("Hi", []), ("ho", [])],
        [("What do you hear?", [f"{clip_folder}/1.wav"]), ("x", [])],
        [("", ["https://some.where/clip.wav"]), ("y", [])],
    ]
    assert examples[2]["origin"] == f"{clip_folder}/set.jsonl, row 2"


def test_clips_of_the_row_fill_audio_items_in_order(read, clip_folder):
    several, alone, without, quiet = read(
        {"audios": ["0.wav", "1.wav"], "messages": [user(ITEM, TEXT), assistant("a"), user(ITEM), assistant("b")]},
        {"audios": ["2.wav"], "messages": [user(TEXT, ITEM), assistant("a")]},
        {"audios": ["0.wav", "1.wav"], "messages": [user("Compare."), assistant("a"), user("Sure?"), assistant("b")]},
        {"audios": None, "messages": [user("Hi"), assistant("a")]},
        sound="some",
    )
    first, second, third = (f"{clip_folder}/{number}.wav" for number in range(3))
    assert [clips for _, clips in sources(several)] == [[first], [], [second], []]
    assert [clips for _, clips in sources(alone)] == [[third], []]
    # Clips without a place go before the first question.
    assert [clips for _, clips in sources(without)] == [[first, second], [], [], []]
    assert without["messages"][0]["content"][-1] == {"type": "text", "text": "Compare."}
    assert [clips for _, clips in sources(quiet)] == [[], []]


def test_sources_in_items_and_in_the_column_may_mix(read, clip_folder):
    (example,) = read({"audio": "1.wav", "messages": [user(heard("0.wav"), ITEM, TEXT), assistant("a")]})
    assert sources(example)[0][1] == [f"{clip_folder}/0.wav", f"{clip_folder}/1.wav"]


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
def test_rows_that_do_not_fit_say_which_they_are(read, clip_folder, row, message):
    with pytest.raises(ValueError, match=f"set.jsonl, row 0.*: .*{message}"):
        read(row)


def test_all_questions_of_a_clip_are_examples_and_the_transcript_is_not_shown(clip_folder):
    rows = [clip_row(clip_folder / f"{number}.wav", questions) for number, questions in enumerate((2, 0, 3))]
    write_shard(clip_folder / "clips.parquet", rows, CLIP_FEATURES)
    examples, sizes = load_training_data([DataSource(str(clip_folder / "clips.parquet"))])
    assert sizes == [5] and len(examples) == 5
    assert [example["origin"].rpartition("parquet, ")[2] for example in examples] == [
        *("row 0, question 0", "row 0, question 1", "row 2, question 0", "row 2, question 1", "row 2, question 2"),
    ]
    assert examples[3]["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "answer 1"}]}
    asked = examples[3]["messages"][0]
    assert asked["role"] == "user" and asked["content"][1] == {"type": "text", "text": "Question 1?"}
    assert asked["content"][0]["audio"] == {"bytes": (clip_folder / "2.wav").read_bytes(), "path": None}
    assert "secret" not in str(list(examples))


def test_prepared_shards_and_mixed_sets_lie_end_to_end(clip_folder):
    shards, chats = clip_folder / "shards", write_chats(clip_folder / "chats", 3)
    with begin_set(shards, {}) as report:
        for name in ("0.arrow", "1.arrow"):
            write_shard(shards / name, [clip_row(clip_folder / "0.wav", 2)], CLIP_FEATURES)
        with pytest.raises(ValueError, match="set .*shards.* cannot be read: .*not finished"):
            load_training_data([DataSource(str(shards))])
        finish_set(shards, report, {"0.arrow": 1, "1.arrow": 1})
    examples, sizes = load_training_data([DataSource(str(shards)), DataSource(str(chats)), DataSource(str(shards))])
    assert sizes == [4, 5, 4]
    assert examples[3]["origin"] == f"{shards}, row 1, question 1"
    assert examples[4]["origin"] == f"{chats}, row 0"
    assert examples[12] == examples[3]


def test_splits_of_a_set_keep_their_own_clips_in_a_batch(clip_folder, processor):
    """Different splits of one path start with different clips; the same split twice has the same clip."""
    write_shard(
        clip_folder / "clips.parquet", [clip_row(clip_folder / f"{n}.wav", 2) for n in range(3)], CLIP_FEATURES
    )
    parts = [
        DataSource(str(clip_folder / "clips.parquet"), split=split)
        for split in ("train[:1]", "train[1:]", "train[:1]")
    ]
    examples, sizes = load_training_data(parts)
    assert sizes == [2, 4, 2]
    assert examples[3]["origin"] == f"{clip_folder}/clips.parquet, split train[1:], row 0, question 1"
    batch = list(examples.select([0, 2, 3, 6]))
    shared, alone = (AudioChatCollator(processor, questions_per_row=number)(batch) for number in (None, 1))
    assert len(shared["input_features"]) == 2 and len(alone["input_features"]) == 4
    shared_clips, clips = ({clip.numpy().tobytes() for clip in rows["input_features"]} for rows in (shared, alone))
    assert shared_clips == clips and len(clips) == 2


@pytest.mark.parametrize("columns", [{"audio": "noisy"}, {"audio": "clean", "duration": "length"}])
def test_a_row_with_other_columns_keeps_its_own_clip_in_a_batch(clip_folder, processor, columns):
    """One file in two entries that ask about different clips."""
    path = str(
        write_jsonl(
            clip_folder / "set.jsonl", [{"clean": "0.wav", "noisy": "2.wav", "length": 0.1, "captions": ["a", "b"]}]
        )
    )
    entries = [DataSource(path, columns={"audio": "clean"}), DataSource(path, columns=columns)]
    examples = list(load_training_data(entries)[0])
    shared, apart = (AudioChatCollator(processor, questions_per_row=number)(examples) for number in (None, 1))
    assert len(shared["input_features"]) == 2
    clips, all_clips = ({clip.numpy().tobytes() for clip in rows["input_features"]} for rows in (shared, apart))
    assert clips == all_clips and len(clips) == 2


def test_prompts_with_the_clip_at_other_places_are_asked_in_rows_of_their_own(clip_folder, processor):
    path = str(write_jsonl(clip_folder / "set.jsonl", [{"audio": "0.wav", "captions": [str(n) for n in range(8)]}]))
    examples = list(load_training_data([DataSource(path, prompt=["Describe <audio>", "<audio>What is it?"])])[0])
    assert len({places(example)[0] for example in examples}) == 2
    batch = AudioChatCollator(processor, questions_per_row=None)(examples)
    assert int(batch["num_questions"]) == 8 and len(batch["input_features"]) == 2


def test_an_error_names_the_part_of_a_set(clip_folder, tmp_path):
    source = DataSource("owner/sounds", "speech", "validation")
    assert f"{source}, row 7" == "owner/sounds, configuration speech, split validation, row 7"
    path = write_jsonl(tmp_path / "set.jsonl", [{"messages": []}] * 2)
    with pytest.raises(ValueError, match=r"set\.jsonl, split train\[1:\], row 0: `messages` must be"):
        load_training_data([DataSource(str(path), split="train[1:]")])[0][0]


def with_audio_columns(clip_folder):
    """Chats with audio in one column, in several, and inside the messages, as the `Audio` feature of `datasets`."""
    messages = List(
        {
            "role": Value("string"),
            "content": List({"type": Value("string"), "text": Value("string"), "audio": Audio()}),
        }
    )
    clip = {"bytes": (clip_folder / "0.wav").read_bytes(), "path": "0.wav"}
    yield "audio", Features({"messages": messages, "audio": Audio()}), clip, None
    yield "audios", Features({"messages": messages, "audios": List(Audio())}), [clip, clip], None
    yield "inside", Features({"messages": messages}), None, clip


def test_audio_columns_stay_encoded(clip_folder, tmp_path):
    for name, features, column, inside in with_audio_columns(clip_folder):
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
                assert item["audio"]["bytes"] == (clip_folder / "0.wav").read_bytes()
                assert load_audio(item["audio"]).shape == (0.3 * SAMPLING_RATE,)
        assert set(tmp_path.rglob("cache-*")) == before  # and are not copied


def test_a_clip_that_is_only_a_path_is_read_from_the_set(clip_folder):
    features = Features({"messages": CHAT, "audio": Audio(decode=False)})
    rows = [{"messages": [user("Hi"), assistant("ho")], "audio": {"bytes": None, "path": "1.wav"}}]
    write_shard(clip_folder / "set.parquet", rows, features)
    (example,) = load_training_data([DataSource(str(clip_folder / "set.parquet"))])[0]
    assert sources(example)[0][1] == [f"{clip_folder}/1.wav"]


def test_a_folder_of_files_and_the_splits_of_a_saved_set(clip_folder, tmp_path):
    for number in range(2):
        write_jsonl(clip_folder / f"{number}.jsonl", [{"messages": [user(str(number)), assistant("a")]}])
    examples = load_training_data([DataSource(str(clip_folder), sound=False)])[0]
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


def test_a_weight_that_leaves_nothing_of_a_set_is_an_error_that_names_it(clip_folder):
    path = write_jsonl(clip_folder / "set.jsonl", [{"audio": "0.wav", "text": "a"}] * 3)
    assert load_training_data([DataSource(str(path), weight=0.2)])[1] == [3]
    with pytest.raises(ValueError, match="^.*/set.jsonl has 3 examples and the weight 0.1, .* Raise the weight"):
        load_training_data([DataSource(str(path)), DataSource(str(path), weight=0.1)])


def test_sets_that_cannot_be_read_are_named(tmp_path):
    def said(name):
        with pytest.raises(ValueError) as error:
            load_training_data([DataSource(str(tmp_path / name))])
        assert str(tmp_path / name) in str(error.value)
        return str(error.value)

    (tmp_path / "broken.jsonl").write_text('{"messages": [}\n')
    assert re.search("JSON parse error in .*broken.jsonl.*: Expecting value", said("broken.jsonl"))
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        for name, text in (
            ("lines", '{"audio": "a.wav"}\n{"audio": "b.wav"}\n'),
            ("list", '[\n{"audio": "\u00fc"}\n]\n'),
        ):
            (tmp_path / f"{name}-{encoding}.json").write_text(text, encoding=encoding)
            assert "this is UTF-16, not UTF-8. Save the file as UTF-8" in said(f"{name}-{encoding}.json")
    (tmp_path / "zeros.jsonl").write_bytes(b'{"messages": []}\n' + bytes(20))  # as after a power failure
    assert re.search("JSON parse error in .*zeros.jsonl, line 2", said("zeros.jsonl"))
    (tmp_path / "latin.jsonl").write_text('{"text": "\u00fc"}\n', encoding="latin-1")
    assert "latin.jsonl: this is not UTF-8. Save" in said("latin.jsonl")
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


def test_the_index_is_small_integers(clip_folder):
    """10 M questions take 140 MB, whatever their text."""
    path = write_jsonl(clip_folder / "set.jsonl", [{"messages": [user("long " * 1000), assistant("a")]}] * 300)
    examples = load_training_data([DataSource(str(path), sound=False)])[0]
    assert examples.data.nbytes == 300 * (2 + 8 + 4)
    # Rows are read from disk, one at a time.
    (_, rows, _), *_ = examples.format["format_kwargs"]["transform"].sets
    assert rows.cache_files


def test_workers_give_the_same_batches(clip_folder, processor):
    """Read and decoded in other processes: pickled for spawned workers, and in forked ones."""
    examples = load_training_data([DataSource(str(write_chats(clip_folder / "chats")))])[0]
    copy = pickle.loads(pickle.dumps(examples))
    assert list(copy) == list(examples)
    collator = pickle.loads(pickle.dumps(AudioChatCollator(processor)))
    batches = [list(DataLoader(examples, 3, collate_fn=collator, num_workers=workers)) for workers in (0, 2)]
    assert len(batches[0]) == len(batches[1]) == 4
    for here, there in zip(*batches):
        assert here.keys() == there.keys()
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_an_example_is_read_only_when_it_is_asked_for(clip_folder, monkeypatch):
    reads = []
    original = module._Reader._read
    monkeypatch.setattr(module._Reader, "_read", lambda *key: reads.append(key[1:]) or original(*key))
    examples = load_training_data([DataSource(str(write_chats(clip_folder / "chats")))])[0]
    assert reads == []
    examples.select([7, 2])[:]
    assert [row for _, row, _ in reads] == [7, 2]


def test_open_asqa_rows_as_json_read_the_same(clip_folder):
    """The clip row of a JSON file with paths gives the same audio as the prepared one with bytes."""
    soundfile.write(clip_folder / "long.wav", tone(1.5), SAMPLING_RATE)
    row = clip_row(clip_folder / "long.wav", 1)
    write_jsonl(clip_folder / "set.jsonl", [{"audio": "long.wav", "questions": row["questions"]}])
    (by_path,) = load_training_data([DataSource(str(clip_folder / "set.jsonl"))])[0]
    write_shard(clip_folder / "set.parquet", [row], CLIP_FEATURES)
    (by_bytes,) = load_training_data([DataSource(str(clip_folder / "set.parquet"))])[0]
    some, other = (load_audio(example["messages"][0]["content"][0]["audio"]) for example in (by_path, by_bytes))
    assert (some == other).all() and some.shape == (24_000,)
    assert json.dumps(by_path["messages"][1]) == json.dumps(by_bytes["messages"][1])
    assert Path(by_path["messages"][0]["content"][0]["audio"]) == clip_folder / "long.wav"


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
