"""Rows and clips of training sets in tables, tars and manifests."""

import csv
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from set_examples import said
from tiny import SAMPLING_RATE, tone
from training_runs import write_jsonl

from falcon3_audio.processing import load_audio
from falcon3_audio.training.arguments import DataSource
from falcon3_audio.training.data.training_sets import load_training_data


pytestmark = pytest.mark.usefixtures("datasets_cache")


def test_a_table_says_what_it_says(dog_and_bell):
    texts = ["0", "null", "007", "NA", "2024-01-31", "a, b", 'the "bell"', "two\nlines", " spaces ", "\u00fc"]
    for name, delimiter in (("set.csv", ","), ("set.tsv", "\t")):
        with open(dog_and_bell / name, "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(
                [["", "audio", "text"], *([n, r"sounds\dog.wav", text] for n, text in enumerate(texts))]
            )
        assert said(dog_and_bell / name) == [
            ["user: (dog)Transcribe the speech.", f"assistant: {text}"] for text in texts
        ]


def test_a_table_without_a_history(dog_and_bell):
    (dog_and_bell / "set.csv").write_text("audio,query,response,history\ndog.wav,What?,A dog.,\n")
    assert said(dog_and_bell / "set.csv") == [["user: (dog)What?", "assistant: A dog."]]


def test_an_audiofolder_with_a_table(dog_and_bell):
    for path in ("sounds/dog.wav", "sounds\\dog.wav"):
        (dog_and_bell / "metadata.csv").write_text(f"file_name,caption,id\n{path},A dog.,1\n")
        assert said(dog_and_bell) == [["user: (dog)Describe what you hear.", "assistant: A dog."]]
    (dog_and_bell / "metadata.csv").write_text("file_name,caption\n,A dog.\n")
    with pytest.raises(ValueError, match="row 0: the row has no audio: audio is empty"):
        said(dog_and_bell)


def test_several_clips_with_one_answer(dog_and_bell):
    path = write_jsonl(dog_and_bell / "set.jsonl", [{"audio": ["dog.wav", "bell.wav"], "label": "other"}])
    assert said(path, prompt="The same?") == [["user: (dog)(bell)The same?", "assistant: other"]]


def test_a_clip_that_is_not_there(dog_and_bell):
    (dog_and_bell / "set.csv").write_text("audio,text\nsounds\\cat.wav,a\n")
    examples, _ = load_training_data([DataSource(str(dog_and_bell / "set.csv"))])
    with pytest.raises(ValueError, match=r"there is no file '.*set/sounds/cat.wav'"):
        load_audio(examples[0]["messages"][0]["content"][0]["audio"])


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars_of_webdataset(dog_and_bell):
    dog, bell = ((dog_and_bell / f"{name}.wav").read_bytes() for name in ("dog", "bell"))
    flac = io.BytesIO()
    soundfile.write(flac, tone(0.5), SAMPLING_RATE, format="FLAC")
    path = write_tar(
        dog_and_bell / "0.tar",
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
    chats = said(write_tar(dog_and_bell / "1.tar", members))
    assert chats[0] == ["user: (bytes)?", "assistant: 2024-01-31"] and chats[6][0] == "system: Be brief."
    for kind in ("txt", "TEXT", "transcript"):
        texts = {b"a\r\n": "a", b"a\n": "a", b"a \n\n": "a \n", b"\na": "\na"}
        members = [(f"{n}.{end}", data) for n, text in enumerate(texts) for end, data in (("wav", dog), (kind, text))]
        chats = said(write_tar(dog_and_bell / f"{kind}.tar", members))
        assert [chat[-1] for chat in chats] == [f"assistant: {text}" for text in texts.values()]
    path = write_tar(dog_and_bell / "2.tar", [("1.wav", dog), ("1.cls", b"3")])
    with pytest.raises(ValueError, match="2.tar' has the label 3 in `cls`; the set has no names"):
        said(path, prompt="Which?")
    assert said(
        write_tar(dog_and_bell / "3.tar", [("1.wav", dog), ("1.cls", b"3"), ("1.json", b'{"mood": "calm"}')]),
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
def test_tars_that_cannot_be_read_are_named(dog_and_bell, members, message):
    with pytest.raises(ValueError, match=message):
        said(write_tar(dog_and_bell / "0.tar", members))
    whole = write_tar(dog_and_bell / "0.tar", [("1.wav", b"a" * 20_000), ("1.txt", b"a")]).read_bytes()
    (dog_and_bell / "0.tar").write_bytes(whole[:9_000])
    with pytest.raises(ValueError, match="0.tar is not a complete tar"):
        said(dog_and_bell / "0.tar")


def test_hidden_files_of_a_tar_are_no_rows(dog_and_bell):
    """macOS puts one next to each file."""
    dog = (dog_and_bell / "dog.wav").read_bytes()
    members = [("._1.wav", b"\0\5"), ("./1.wav", dog), ("._1.txt", b"\0\5"), ("./1.txt", b"a"), (".git/1.txt", b"b")]
    assert said(write_tar(dog_and_bell / "0.tar", members)) == [
        ["user: (bytes)Transcribe the speech.", "assistant: a"]
    ]


def test_a_row_of_a_tar_without_its_sound(dog_and_bell):
    path = write_tar(
        dog_and_bell / "0.tar", [("1.wav", (dog_and_bell / "dog.wav").read_bytes()), ("1.txt", b"a"), ("2.txt", b"b")]
    )
    with pytest.raises(ValueError, match="0.tar, row 1: the row has no audio: audio is empty"):
        said(path)


def test_a_manifest_names_the_segment_that_is_heard(dog_and_bell):
    sound = np.linspace(-0.5, 0.5, 3 * SAMPLING_RATE, dtype=np.float32)
    soundfile.write(dog_and_bell / "talk.wav", sound, SAMPLING_RATE, subtype="FLOAT")
    rows = [
        {"audio_filepath": "talk.wav", "offset": 1.0, "duration": 0.5, "text": "a"},
        {"audio_filepath": "talk.wav", "offset": 2.5, "duration": None, "text": "b"},
        {"audio_filepath": "talk.wav", "duration": 0.25, "text": "c"},
        {"audio_filepath": "talk.wav", "offset": 2.0, "duration": 1.5, "text": "d"},
        {"audio_filepath": "talk.wav", "offset": -1, "text": "e"},
        {"audio_filepath": "talk.wav", "offset": "soon", "text": "f"},
    ]
    examples, _ = load_training_data([DataSource(str(write_jsonl(dog_and_bell / "manifest.json", rows)))])
    heard = [load_audio(examples[n]["messages"][0]["content"][0]["audio"]) for n in range(3)]
    for samples, (first, last) in zip(heard, ((1.0, 1.5), (2.5, 3.0), (0.0, 0.25)), strict=True):
        np.testing.assert_array_equal(samples, sound[int(first * SAMPLING_RATE) : int(last * SAMPLING_RATE)])
    with pytest.raises(ValueError, match="seconds 2 to 3.5 s of .*talk.wav are needed, but the file ends before that"):
        load_audio(examples[3]["messages"][0]["content"][0]["audio"])
    for number, value in ((4, "-1"), (5, "'soon'")):
        with pytest.raises(ValueError, match=f"row {number}: its `offset` must be seconds, 0 or more, got {value}"):
            examples[number]


def test_a_duration_of_zero_is_named(dog_and_bell):
    """In a row with a clip; one without has nothing to hear anyway."""
    rows = [{"audio_filepath": clip, "duration": 0, "query": "?", "response": "a"} for clip in ("dog.wav", None)]
    path = write_jsonl(dog_and_bell / "manifest.json", rows)
    examples, _ = load_training_data([DataSource(str(path), sound="some")])
    with pytest.raises(ValueError, match="row 0: its `duration` is 0 seconds, so there is nothing to hear. Leave the"):
        examples[0]
    assert examples[1]["messages"][-1]["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize("duration", ["-1", "-1.0", ""])
def test_a_duration_of_minus_one_goes_to_the_end(dog_and_bell, duration):
    (dog_and_bell / "set.csv").write_text(
        f"audio_filepath,offset,duration,text\ndog.wav,0.3,{duration},a\nbell.wav,,{duration},b\n"
    )
    examples, _ = load_training_data([DataSource(str(dog_and_bell / "set.csv"))])
    clips = [load_audio(example["messages"][0]["content"][0]["audio"]) for example in examples]
    assert [len(clip) / SAMPLING_RATE for clip in clips] == [0.2, 0.5]
    (dog_and_bell / "set.csv").write_text("audio_filepath,duration,text\ndog.wav,-2,a\n")
    examples, _ = load_training_data([DataSource(str(dog_and_bell / "set.csv"))])
    with pytest.raises(ValueError, match="row 0: its `duration` must be seconds, 0 or more, got '-2'"):
        examples[0]


def test_a_duration_is_only_heard_where_it_is_meant(dog_and_bell):
    """Sets like LibriSpeech have a `duration` for information only."""
    for columns, seconds in ((None, 0.5), ({"duration": "duration"}, 0.2)):
        path = write_jsonl(dog_and_bell / "set.jsonl", [{"audio": "dog.wav", "duration": 0.2, "text": "a"}])
        (example,) = load_training_data([DataSource(str(path), columns=columns)])[0]
        assert len(load_audio(example["messages"][0]["content"][0]["audio"])) == seconds * SAMPLING_RATE
    (dog_and_bell / "set.csv").write_text("audio,begin,length,text\ndog.wav,0.25,0.1,a\nbell.wav,,,b\n")
    columns = {"offset": "begin", "duration": "length"}
    examples, _ = load_training_data([DataSource(str(dog_and_bell / "set.csv"), columns=columns)])
    clips = [load_audio(example["messages"][0]["content"][0]["audio"]) for example in examples]
    assert [len(clip) / SAMPLING_RATE for clip in clips] == [0.1, 0.5]
