"""Each format of training sets: the examples of docs/formats.md, and rows as others publish them, become the chats
that a reader expects.
"""

import csv
import io
import json
import re
import tarfile
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import yaml
from datasets import Audio, ClassLabel, Features, List, Value
from tiny import SAMPLING_RATE, tone
from training_runs import write_jsonl

from falcon3_audio.processing import TRANSCRIBE, load_audio
from falcon3_audio.training.arguments import DataArguments, DataSource
from falcon3_audio.training.data import formats
from falcon3_audio.training.data.stream import TrainingStream, open_streams
from falcon3_audio.training.data.training_sets import describe_sets, load_training_data


PAGE = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'```(?:json|csv|tsv) title="(\S+)"\n(.*?)```', PAGE, re.DOTALL))
ENTRIES = {
    entry["path"]: entry for entry in map(yaml.safe_load, re.findall(r"```yaml\n(\{path.*?)```", PAGE, re.DOTALL))
}
WHAT = "user: (dog)What is it?"
# For each example of the page: its format, and its chats with the name of each clip in its place.
SAID = {
    "chats.jsonl": (
        "chats",
        [[WHAT, "assistant: A dog barks."], ["user: (bell)What is it?", "assistant: A bell."]],
    ),
    "questions.jsonl": (
        "questions about clips",
        [
            [WHAT, "assistant: A dog barks."],
            ["user: (dog)Is it loud?", "assistant: No."],
            ["user: (bell)What is it?", "assistant: A bell."],
        ],
    ),
    "sharegpt.jsonl": (
        "conversations",
        [
            ["user: (dog)\nWhat is it?", "assistant: A dog barks."],
            ["system: Be brief.", "user: (bell)\nWhat is it?", "assistant: A bell."],
        ],
    ),
    "qwen_audio.jsonl": (
        "conversations",
        [
            ["user: Audio 1: (dog)\nWhat is it?", "assistant: A dog barks."],
            ["user: Audio 1: (bell)\nWhat is it?", "assistant: A bell."],
        ],
    ),
    "swift.jsonl": (
        "queries and responses",
        [
            ["system: Be brief.", WHAT, "assistant: A dog barks."],
            ["user: (bell)What is it?", "assistant: A bell.", "user: Is it loud?", "assistant: Yes."],
        ],
    ),
    "alpaca.jsonl": (
        "instructions and outputs",
        [
            [WHAT, "assistant: A dog barks."],
            ["user: (bell)Which of these is it?\na dog, a bell", "assistant: A bell."],
        ],
    ),
    "transcripts.csv": (
        "transcripts",
        [
            ["user: (dog)Transcribe the speech.", "assistant: Good morning, everybody."],
            ["user: (bell)Transcribe the speech.", "assistant: 007"],
        ],
    ),
    "manifest.json": (
        "transcripts",
        [
            ["user: (dog)Transcribe the speech.", "assistant: good morning"],
            ["user: (bell)Transcribe the speech.", "assistant: everybody"],
        ],
    ),
    "captions.jsonl": (
        "captions",
        [
            ["user: (dog)Describe what you hear.", "assistant: A dog barks."],
            ["user: (dog)Describe what you hear.", "assistant: A dog barks far away."],
            ["user: (bell)Describe what you hear.", "assistant: A bell rings."],
        ],
    ),
    "labels.tsv": (
        "labels",
        [
            ["user: (dog)Which sound is heard?", "assistant: dog"],
            ["user: (bell)Which sound is heard?", "assistant: church bells"],
        ],
    ),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """dog.wav and bell.wav, also in sounds/."""
    folder = tmp_path / "set"
    for place in (folder, folder / "sounds"):
        place.mkdir()
        for name, pitch in (("dog", 300), ("bell", 800)):
            soundfile.write(place / f"{name}.wav", tone(0.5, pitch), SAMPLING_RATE)
    return folder


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


def format_of(path, **entry):
    (line,) = describe_sets(load_training_data([DataSource(str(path), **entry)])[0])
    return re.search(r"rows, read as ([\w ]+) \(", line).group(1)


# The page.


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_page_are_read_as_they_say(name, folder):
    (folder / name).write_text(EXAMPLES[name], encoding="utf-8")
    entry = {key: value for key, value in ENTRIES.get(name, {}).items() if key != "path"}
    layout, chats = SAID[name]
    assert said(folder / name, **entry) == chats
    assert format_of(folder / name, **entry) == layout
    assert f"### {layout}" in PAGE


def test_the_table_of_the_page_is_the_table_of_the_code():
    table = PAGE.partition("| format |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-2]] for line in table]
    assert [name for name, *_ in rows] == [layout.name for layout in formats.FORMATS]
    for layout, (_, needs, takes, clips) in zip(formats.FORMATS, rows):
        columns = [column for name in layout.needs for column in formats.KNOWN[name]]
        assert re.findall(r"`(\w+)`", needs) == columns
        assert re.findall(r"`(\w+)`", takes) == list(layout.takes)
        assert re.findall(r"`(\w+)`", clips.partition(", or in")[0]) == list(layout.clips)
        assert (", or in `" in clips) == layout.inside
    assert EXAMPLES.keys() == SAID.keys()
    assert f'"{TRANSCRIBE}"' in PAGE and f'"{formats.DESCRIBE}"' in PAGE


def test_the_entries_of_the_page_are_entries():
    (recipe,) = re.findall(r"```yaml\n(train_data.*?)```", PAGE, re.DOTALL)
    some, labelled, texts = DataArguments(**yaml.safe_load(recipe)).train_data
    assert some.columns == {"audio": "path", "text": "utterance"} and len(some.prompt) == 2
    assert labelled.prompt.endswith("?") and texts.sound is False


# Chats as others publish them.


def test_speakers_and_systems_of_conversations(folder):
    turns = [
        ("human", "<audio>What?"),
        ("gpt", "A dog."),
        ("USER", "Sure? <audio>"),
        ("chatgpt", "Yes."),
    ]
    rows = [
        {
            "conversations": [{"from": "system", "value": "Be brief."}, *({"from": a, "value": b} for a, b in turns)],
            "audio": ["dog.wav", "bell.wav"],
        },
        {
            "conversations": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bell."}],
            "audio": "bell.wav",
            "id": 7,
        },
    ]
    assert said(write_jsonl(folder / "set.jsonl", rows)) == [
        ["system: Be brief.", "user: (dog)What?", "assistant: A dog.", "user: Sure? (bell)", "assistant: Yes."],
        ["user: (bell)What?", "assistant: A bell."],
    ]


def test_the_tag_of_the_column_sound_is_sound(folder):
    rows = [
        {
            "sound": "dog.wav",
            "conversations": [{"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "<sound>"}],
        }
    ]
    assert said(write_jsonl(folder / "set.jsonl", rows)) == [["user: (dog)\nWhat?", "assistant: <sound>"]]
    rows[0]["audio"] = rows[0].pop("sound")
    with pytest.raises(ValueError, match="row 0: the tag <sound> in the text is not read"):
        said(write_jsonl(folder / "set.jsonl", rows))


def test_several_enclosed_sources(folder):
    rows = [
        {
            "query": "Audio 1: <audio>dog.wav</audio>\nAudio 2: <audio>bell.wav</audio>\nWhich?",
            "response": "The second.",
        }
    ]
    assert said(write_jsonl(folder / "set.jsonl", rows)) == [
        ["user: Audio 1: (dog)\nAudio 2: (bell)\nWhich?", "assistant: The second."]
    ]


def test_texts_alone(folder):
    rows = [{"instruction": "Name an animal.", "input": "", "output": "A dog."}]
    assert said(write_jsonl(folder / "set.jsonl", rows), sound=False) == [
        ["user: Name an animal.", "assistant: A dog."]
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": []}, "`conversations` must be a list of turns"),
        ({"conversations": [{"from": "tool", "value": "a"}]}, "got a turn of 'tool'; expected one of human"),
        ({"conversations": [{"value": "a"}]}, "got a turn of None"),
        ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": " "}]}, "has no text to learn"),
        ({"conversations": [{"from": "human", "value": None}, {"from": "gpt", "value": "a"}]}, "must be a text"),
        (
            {"conversations": [{"from": "human", "value": "<audio><audio>?"}, {"from": "gpt", "value": "a"}]},
            "2 audio items .* has 1 clips",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a", "loss": False}]},
            "message 1 has `loss`: False",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}], "tools": "[]"},
            "'tools'",
        ),
        (
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}], "system": 3},
            "`system` must",
        ),
        ({"query": "?", "response": ""}, "has no text to learn"),
        ({"query": "?", "response": None}, "its `response` is missing. Leave the row out"),
        ({"query": "?", "response": "a", "history": ["?", "a"]}, "`history` must be a list of pairs"),
        ({"query": "?", "response": "a", "history": [["?", None]]}, "`history` must be a list of pairs"),
        ({"instruction": "?", "input": 3, "output": "a"}, "its `input` must be a text, got 3"),
        ({"query": "?", "response": "a", "images": ["a.png"]}, "'images', which is not read"),
        ({"question": "Which?", "answer": "b", "choices": ["a", "b"]}, "'choices', which its question does not name"),
        ({"question": "The?", "answer": "The", "options": 3}, "'options', which its question does not name"),
    ],
)
def test_rows_that_are_wrong_are_named(folder, row, message):
    good = {key: value for key, value in row.items() if key in ("history", "system", "audio")}
    path = write_jsonl(folder / "set.jsonl", [row | {"audio": "dog.wav"}, {**good, "audio": "dog.wav"}])
    with pytest.raises(ValueError, match=f"set.jsonl, row 0: .*{message}"):
        said(path)


# Only answers.


def write_parquet(path, rows, features):
    """Audio sets as on the Hub. (`datasets` itself would need torchcodec to write them.)"""
    table = pa.Table.from_pylist(rows, schema=Features(features).arrow_schema)
    table = table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": Features(features).to_dict()}})}
    )
    pa.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        # LibriSpeech, Common Voice, FLEURS, Multilingual LibriSpeech.
        ({"file": "1.flac", "text": "HELLO", "speaker_id": 1, "chapter_id": 2, "id": "1-2"}, "HELLO"),
        (
            {"client_id": "a", "path": "a.mp3", "sentence": "Hello.", "up_votes": 2, "locale": "en", "segment": ""},
            "Hello.",
        ),
        (
            {"id": 1, "num_samples": 9, "path": "a.wav", "transcription": "hello", "raw_transcription": "Hello"},
            "hello",
        ),
        ({"original_path": "a.flac", "begin_time": 1.0, "end_time": 2.0, "transcript": "hello"}, "hello"),
    ],
)
def test_sets_of_the_hub_need_no_options(folder, columns, text):
    kinds = {str: Value("string"), int: Value("int64"), float: Value("float64")}
    features = {"audio": Audio(sampling_rate=SAMPLING_RATE)} | {name: kinds[type(v)] for name, v in columns.items()}
    row = {"audio": {"bytes": (folder / "dog.wav").read_bytes(), "path": "dog.wav"}} | columns
    path = write_parquet(folder / "set.parquet", [row], features)
    assert said(path) == [["user: (dog)Transcribe the speech.", f"assistant: {text}"]]
    (line,) = describe_sets(load_training_data([DataSource(str(path))])[0])
    assert line.endswith("asked 'Transcribe the speech.' (the default of `prompt`)")


def test_a_column_of_sound_is_known_by_its_type(folder):
    row = {"speech": {"bytes": (folder / "dog.wav").read_bytes(), "path": None}, "text": "hello"}
    path = write_parquet(folder / "set.parquet", [row], {"speech": Audio(), "text": Value("string")})
    with pytest.raises(
        ValueError, match="The training set .*set.parquet' has the columns speech, text, .*columns: {audio: speech}"
    ):
        said(path)
    assert said(path, columns={"audio": "speech"}) == [["user: (bytes)Transcribe the speech.", "assistant: hello"]]


def test_labels_with_names_are_their_names(folder):
    features = {"audio": Audio(), "label": ClassLabel(names=["dog", "church bells"])}
    clip = {"bytes": (folder / "dog.wav").read_bytes(), "path": "dog.wav"}
    path = write_parquet(folder / "set.parquet", [{"audio": clip, "label": n} for n in (1, 0)], features)
    assert [chat[-1] for chat in said(path, prompt="Which?")] == ["assistant: church bells", "assistant: dog"]
    with pytest.raises(ValueError, match=r"labels \('dog', 'church bells', ...\), but no question.*`prompt: "):
        said(path)
    for wrong in (2, -1):
        path = write_parquet(folder / "wrong.parquet", [{"audio": clip, "label": n} for n in (1, wrong)], features)
        with pytest.raises(ValueError, match=f"row 1: its `label` is {wrong}; the set has names for 0 to 1"):
            said(path, prompt="Which?")
    path = write_jsonl(folder / "numbers.jsonl", [{"audio": "dog.wav", "label": 3}])
    with pytest.raises(
        ValueError, match="numbers.jsonl' has the label 3 in `label`; the set has no names for such numbers"
    ):
        said(path, prompt="Which?")
    path = write_jsonl(folder / "late.jsonl", [{"audio": "dog.wav", "label": n} for n in ("a", "b", "c", 3, None, "")])
    examples, _ = load_training_data([DataSource(str(path), prompt="Which?")])
    for number, message in (
        (3, "its `label` is 3; the set"),
        (4, "its `label` is missing"),
        (5, "no text to learn"),
    ):
        with pytest.raises(ValueError, match=f"row {number}: .*{message}"):
            examples[number]


def test_captions_are_examples_that_share_their_clip(folder):
    rows = [{"audio": "dog.wav", "caption": c} for c in (["a", "b"], "c", [], None, ["d", ""])]
    path = write_jsonl(folder / "set.jsonl", rows)
    examples, sizes = load_training_data([DataSource(str(path))])
    assert sizes == [7]
    first, second, third = (examples[n] for n in range(3))
    assert first["clip"] == second["clip"] == f"{path}, row 0" and third["clip"] is None
    assert second["origin"] == f"{path}, row 0, caption 1"
    for number, message in (
        (3, "row 2, caption 0: its `caption` is empty"),
        (4, "row 3, caption 0: its `caption` is empty"),
        (6, "row 4, caption 1: .*has no text to learn"),
    ):
        with pytest.raises(ValueError, match=message):
            examples[number]
    features = {"audio": Audio(), "captions": List(Value("string"))}
    clip = {"bytes": (folder / "dog.wav").read_bytes(), "path": "dog.wav"}
    path = write_parquet(folder / "set.parquet", [{"audio": clip, "captions": ["a", "b"]}] * 2, features)
    assert [chat[-1][-1] for chat in said(path)] == ["a", "b", "a", "b"]


def test_of_several_prompts_each_row_has_one(folder):
    path = write_jsonl(folder / "set.jsonl", [{"audio": "dog.wav", "text": str(n)} for n in range(60)])
    prompts = ["A?", "<audio> B?", "C <audio>"]
    first, again, shorter = (said(path, prompt=prompts, **entry) for entry in ({}, {}, {"split": "train[:30]"}))
    assert first == again and first[:30] == shorter
    asked = [chat[0].removeprefix("user: ") for chat in first]
    counts = {text: asked.count(text) for text in ("(dog)A?", "(dog) B?", "C (dog)")}
    assert sum(counts.values()) == 60 and min(counts.values()) >= 10
    assert [asked.index(text) for text in counts] != [0, 1, 2]  # not in turn, as kinds of rows can be
    (line,) = describe_sets(load_training_data([DataSource(str(path), prompt=prompts)])[0])
    assert line.endswith("asked one of 3 prompts, such as 'A?'")


def test_a_set_with_questions_of_its_own_has_no_place_for_a_prompt(folder):
    path = write_jsonl(folder / "set.jsonl", [{"audio": "dog.wav", "query": "?", "response": "a"}])
    with pytest.raises(ValueError, match="set.jsonl' is read as queries and responses, whose rows have questions"):
        said(path, prompt="What?")


# Tables.


def test_a_table_says_what_it_says(folder):
    texts = ["0", "null", "007", "NA", "2024-01-31", "a, b", 'the "bell"', "two\nlines", " spaces ", "\u00fc"]
    for name, delimiter in (("set.csv", ","), ("set.tsv", "\t")):
        with open(folder / name, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [["", "audio", "text"], *([n, r"sounds\dog.wav", text] for n, text in enumerate(texts))]
            )
        assert said(folder / name) == [["user: (dog)Transcribe the speech.", f"assistant: {text}"] for text in texts]


def test_a_table_without_a_history(folder):
    (folder / "set.csv").write_text("audio,query,response,history\ndog.wav,What?,A dog.,\n")
    assert said(folder / "set.csv") == [["user: (dog)What?", "assistant: A dog."]]


def test_an_audiofolder_with_a_table(folder):
    for path in ("sounds/dog.wav", "sounds\\dog.wav"):
        (folder / "metadata.csv").write_text(f"file_name,caption,id\n{path},A dog.,1\n")
        assert said(folder) == [["user: (dog)Describe what you hear.", "assistant: A dog."]]
    (folder / "metadata.csv").write_text("file_name,caption\n,A dog.\n")
    with pytest.raises(ValueError, match="row 0: the row has no audio: audio is empty"):
        said(folder)


def test_several_clips_with_one_answer(folder):
    path = write_jsonl(folder / "set.jsonl", [{"audio": ["dog.wav", "bell.wav"], "label": "other"}])
    assert said(path, prompt="The same?") == [["user: (dog)(bell)The same?", "assistant: other"]]


def test_a_clip_that_is_not_there(folder):
    (folder / "set.csv").write_text("audio,text\nsounds\\cat.wav,a\n")
    examples, _ = load_training_data([DataSource(str(folder / "set.csv"))])
    with pytest.raises(ValueError, match=r"there is no file '.*set/sounds/cat.wav'"):
        load_audio(examples[0]["messages"][0]["content"][0]["audio"])


# Tars.


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars_of_webdataset(folder):
    dog, bell = ((folder / f"{name}.wav").read_bytes() for name in ("dog", "bell"))
    flac = io.BytesIO()
    soundfile.write(flac, tone(0.5), SAMPLING_RATE, format="FLAC")
    path = write_tar(
        folder / "0.tar",
        [
            ("a/1.wav", dog),
            ("a/1.txt", b"007\n"),
            ("a/2.flac", flac.getvalue()),
            ("a/2.txt", b"hello"),
            ("a/2.jpg", b""),
        ],
    )
    assert said(path) == [["user: (bytes)Transcribe the speech.", f"assistant: {text}"] for text in ("007", "hello")]
    # A late key is kept, and each value stays as written.
    told = [{"query": "?", "response": "2024-01-31"}] * 6 + [{"query": "?", "response": "b", "system": "Be brief."}]
    members = [
        (f"{n}.{end}", data)
        for n, t in enumerate(told)
        for end, data in (("wav", bell), ("json", json.dumps(t).encode()))
    ]
    chats = said(write_tar(folder / "1.tar", members))
    assert chats[0] == ["user: (bytes)?", "assistant: 2024-01-31"] and chats[6][0] == "system: Be brief."
    for kind in ("txt", "TEXT", "transcript"):
        texts = {b"a\r\n": "a", b"a\n": "a", b"a \n\n": "a \n", b"\na": "\na"}
        members = [(f"{n}.{end}", data) for n, text in enumerate(texts) for end, data in (("wav", dog), (kind, text))]
        chats = said(write_tar(folder / f"{kind}.tar", members))
        assert [chat[-1] for chat in chats] == [f"assistant: {text}" for text in texts.values()]
    path = write_tar(folder / "2.tar", [("1.wav", dog), ("1.cls", b"3")])
    with pytest.raises(ValueError, match="2.tar' has the label 3 in `cls`; the set has no names"):
        said(path, prompt="Which?")
    assert said(
        write_tar(folder / "3.tar", [("1.wav", dog), ("1.cls", b"3"), ("1.json", b'{"mood": "calm"}')]),
        prompt="?",
        columns={"label": "mood"},
    ) == [["user: (bytes)?", "assistant: calm"]]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.wav", b"a"), ("1.wav", b"a"), ("1.txt", b"a")], "0.tar, 1.wav: the row has `.wav` twice"),
        ([("1.wav", b"a"), ("1.json", b"{")], "0.tar, 1.json: Expecting"),
        ([("1.wav", b"a"), ("1.cls", b"dog")], "0.tar, 1.cls: invalid literal"),
        ([("1.wav", b"a"), ("1.txt", b"\xff")], "0.tar, 1.txt: .*decode"),
        ([("1.wav", b"a"), ("1.txt", b"a"), ("2.json", b'{"audio": "b.wav"}')], "'audio' is audio in some rows"),
        ([("folder", b"a")], "is empty"),
    ],
)
def test_tars_that_cannot_be_read_are_named(folder, members, message):
    with pytest.raises(ValueError, match=message):
        said(write_tar(folder / "0.tar", members))
    whole = write_tar(folder / "0.tar", [("1.wav", b"a" * 20_000), ("1.txt", b"a")]).read_bytes()
    (folder / "0.tar").write_bytes(whole[:9_000])
    with pytest.raises(ValueError, match="0.tar is not a complete tar"):
        said(folder / "0.tar")


def test_hidden_files_of_a_tar_are_no_rows(folder):
    """macOS puts one next to each file."""
    dog = (folder / "dog.wav").read_bytes()
    members = [("._1.wav", b"\0\5"), ("./1.wav", dog), ("._1.txt", b"\0\5"), ("./1.txt", b"a"), (".git/1.txt", b"b")]
    assert said(write_tar(folder / "0.tar", members)) == [["user: (bytes)Transcribe the speech.", "assistant: a"]]


def test_a_row_of_a_tar_without_its_sound(folder):
    path = write_tar(
        folder / "0.tar", [("1.wav", (folder / "dog.wav").read_bytes()), ("1.txt", b"a"), ("2.txt", b"b")]
    )
    with pytest.raises(ValueError, match="0.tar, row 1: the row has no audio: audio is empty"):
        said(path)


# Manifests.


def test_a_manifest_names_the_segment_that_is_heard(folder):
    sound = np.linspace(-0.5, 0.5, 3 * SAMPLING_RATE, dtype=np.float32)
    soundfile.write(folder / "talk.wav", sound, SAMPLING_RATE, subtype="FLOAT")
    rows = [
        {"audio_filepath": "talk.wav", "offset": 1.0, "duration": 0.5, "text": "a"},
        {"audio_filepath": "talk.wav", "offset": 2.5, "duration": None, "text": "b"},
        {"audio_filepath": "talk.wav", "duration": 0.25, "text": "c"},
        {"audio_filepath": "talk.wav", "offset": 2.0, "duration": 1.5, "text": "d"},
        {"audio_filepath": "talk.wav", "offset": -1, "text": "e"},
        {"audio_filepath": "talk.wav", "offset": "soon", "text": "f"},
    ]
    examples, _ = load_training_data([DataSource(str(write_jsonl(folder / "manifest.json", rows)))])
    heard = [load_audio(examples[n]["messages"][0]["content"][0]["audio"]) for n in range(3)]
    for samples, (first, last) in zip(heard, ((1.0, 1.5), (2.5, 3.0), (0.0, 0.25)), strict=True):
        np.testing.assert_array_equal(samples, sound[int(first * SAMPLING_RATE) : int(last * SAMPLING_RATE)])
    with pytest.raises(ValueError, match="seconds 2 to 3.5 s of .*talk.wav are needed, but the file ends before that"):
        load_audio(examples[3]["messages"][0]["content"][0]["audio"])
    for number, value in ((4, "-1"), (5, "'soon'")):
        with pytest.raises(ValueError, match=f"row {number}: its `offset` must be seconds, 0 or more, got {value}"):
            examples[number]


@pytest.mark.parametrize("duration", ["-1", "-1.0", ""])
def test_a_duration_of_minus_one_goes_to_the_end(folder, duration):
    (folder / "set.csv").write_text(
        f"audio_filepath,offset,duration,text\ndog.wav,0.3,{duration},a\nbell.wav,,{duration},b\n"
    )
    examples, _ = load_training_data([DataSource(str(folder / "set.csv"))])
    clips = [load_audio(example["messages"][0]["content"][0]["audio"]) for example in examples]
    assert [len(clip) / SAMPLING_RATE for clip in clips] == [0.2, 0.5]
    (folder / "set.csv").write_text("audio_filepath,duration,text\ndog.wav,-2,a\n")
    examples, _ = load_training_data([DataSource(str(folder / "set.csv"))])
    with pytest.raises(ValueError, match="row 0: its `duration` must be seconds, 0 or more, got '-2'"):
        examples[0]


def test_a_duration_is_only_heard_where_it_is_meant(folder):
    """Sets like LibriSpeech have a `duration` for information only."""
    for columns, seconds in ((None, 0.5), ({"duration": "duration"}, 0.2)):
        path = write_jsonl(folder / "set.jsonl", [{"audio": "dog.wav", "duration": 0.2, "text": "a"}])
        (example,) = load_training_data([DataSource(str(path), columns=columns)])[0]
        assert len(load_audio(example["messages"][0]["content"][0]["audio"])) == seconds * SAMPLING_RATE
    (folder / "set.csv").write_text("audio,begin,length,text\ndog.wav,0.25,0.1,a\nbell.wav,,,b\n")
    columns = {"offset": "begin", "duration": "length"}
    examples, _ = load_training_data([DataSource(str(folder / "set.csv"), columns=columns)])
    clips = [load_audio(example["messages"][0]["content"][0]["audio"]) for example in examples]
    assert [len(clip) / SAMPLING_RATE for clip in clips] == [0.1, 0.5]
