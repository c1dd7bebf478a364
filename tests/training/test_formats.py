"""Each format of training sets: the examples of docs/formats.md, and rows as others publish them, become the chats
that a reader expects.
"""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from datasets import Audio, ClassLabel, Features, List, Value
from set_examples import said
from tiny import SAMPLING_RATE
from training_runs import write_jsonl

from falcon3_audio.processing import TRANSCRIBE
from falcon3_audio.training.arguments import DataArguments, DataSource
from falcon3_audio.training.data import formats
from falcon3_audio.training.data.training_sets import describe_sets, load_training_data


pytestmark = pytest.mark.usefixtures("datasets_cache")

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


def format_of(path, **entry):
    (line,) = describe_sets(load_training_data([DataSource(str(path), **entry)])[0])
    return re.search(r"rows, read as ([\w ]+) \(", line).group(1)


# The page.


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_the_page_are_read_as_they_say(name, dog_and_bell):
    (dog_and_bell / name).write_text(EXAMPLES[name], encoding="utf-8")
    entry = {key: value for key, value in ENTRIES.get(name, {}).items() if key != "path"}
    layout, chats = SAID[name]
    assert said(dog_and_bell / name, **entry) == chats
    assert format_of(dog_and_bell / name, **entry) == layout
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


def test_speakers_and_systems_of_conversations(dog_and_bell):
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
    assert said(write_jsonl(dog_and_bell / "set.jsonl", rows)) == [
        ["system: Be brief.", "user: (dog)What?", "assistant: A dog.", "user: Sure? (bell)", "assistant: Yes."],
        ["user: (bell)What?", "assistant: A bell."],
    ]


def test_the_tag_of_the_column_sound_is_sound(dog_and_bell):
    rows = [
        {
            "sound": "dog.wav",
            "conversations": [{"from": "human", "value": "<sound>\nWhat?"}, {"from": "gpt", "value": "<sound>"}],
        }
    ]
    assert said(write_jsonl(dog_and_bell / "set.jsonl", rows)) == [["user: (dog)\nWhat?", "assistant: <sound>"]]
    rows[0]["audio"] = rows[0].pop("sound")
    with pytest.raises(ValueError, match="row 0: the tag <sound> in the text is not read"):
        said(write_jsonl(dog_and_bell / "set.jsonl", rows))


def test_several_enclosed_sources(dog_and_bell):
    rows = [
        {
            "query": "Audio 1: <audio>dog.wav</audio>\nAudio 2: <audio>bell.wav</audio>\nWhich?",
            "response": "The second.",
        }
    ]
    assert said(write_jsonl(dog_and_bell / "set.jsonl", rows)) == [
        ["user: Audio 1: (dog)\nAudio 2: (bell)\nWhich?", "assistant: The second."]
    ]


def test_texts_alone(dog_and_bell):
    rows = [{"instruction": "Name an animal.", "input": "", "output": "A dog."}]
    assert said(write_jsonl(dog_and_bell / "set.jsonl", rows), sound=False) == [
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
        (
            {"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "a"}]},
            "its `query` must be a text, got .*Write a chat, with its answer, into `messages`",
        ),
        ({"query": "?", "response": None}, "its `response` is missing. Leave the row out"),
        ({"query": "?", "response": "a", "history": ["?", "a"]}, "`history` must be a list of pairs"),
        ({"query": "?", "response": "a", "history": [["?", None]]}, "`history` must be a list of pairs"),
        ({"instruction": "?", "input": 3, "output": "a"}, "its `input` must be a text, got 3"),
        ({"query": "?", "response": "a", "images": ["a.png"]}, "'images', which is not read"),
        ({"question": "Which?", "answer": "b", "choices": ["a", "b"]}, "'choices', which its question does not name"),
        ({"question": "The?", "answer": "The", "options": 3}, "'options', which its question does not name"),
    ],
)
def test_rows_that_are_wrong_are_named(dog_and_bell, row, message):
    good = {key: value for key, value in row.items() if key in ("history", "system", "audio")}
    path = write_jsonl(dog_and_bell / "set.jsonl", [row | {"audio": "dog.wav"}, {**good, "audio": "dog.wav"}])
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
def test_sets_of_the_hub_need_no_options(dog_and_bell, columns, text):
    kinds = {str: Value("string"), int: Value("int64"), float: Value("float64")}
    features = {"audio": Audio(sampling_rate=SAMPLING_RATE)} | {name: kinds[type(v)] for name, v in columns.items()}
    row = {"audio": {"bytes": (dog_and_bell / "dog.wav").read_bytes(), "path": "dog.wav"}} | columns
    path = write_parquet(dog_and_bell / "set.parquet", [row], features)
    assert said(path) == [["user: (dog)Transcribe the speech.", f"assistant: {text}"]]
    (line,) = describe_sets(load_training_data([DataSource(str(path))])[0])
    assert line.endswith("asked 'Transcribe the speech.' (the default of `prompt`)")


def test_a_column_of_sound_is_known_by_its_type(dog_and_bell):
    row = {"speech": {"bytes": (dog_and_bell / "dog.wav").read_bytes(), "path": None}, "text": "hello"}
    path = write_parquet(dog_and_bell / "set.parquet", [row], {"speech": Audio(), "text": Value("string")})
    with pytest.raises(
        ValueError, match="The training set .*set.parquet' has the columns speech, text, .*columns: {audio: speech}"
    ):
        said(path)
    assert said(path, columns={"audio": "speech"}) == [["user: (bytes)Transcribe the speech.", "assistant: hello"]]


def test_labels_with_names_are_their_names(dog_and_bell):
    features = {"audio": Audio(), "label": ClassLabel(names=["dog", "church bells"])}
    clip = {"bytes": (dog_and_bell / "dog.wav").read_bytes(), "path": "dog.wav"}
    path = write_parquet(dog_and_bell / "set.parquet", [{"audio": clip, "label": n} for n in (1, 0)], features)
    assert [chat[-1] for chat in said(path, prompt="Which?")] == ["assistant: church bells", "assistant: dog"]
    with pytest.raises(ValueError, match=r"labels \('dog', 'church bells', ...\), but no question.*`prompt: "):
        said(path)
    for wrong in (2, -1):
        path = write_parquet(
            dog_and_bell / "wrong.parquet", [{"audio": clip, "label": n} for n in (1, wrong)], features
        )
        with pytest.raises(ValueError, match=f"row 1: its `label` is {wrong}; the set has names for 0 to 1"):
            said(path, prompt="Which?")
    path = write_jsonl(dog_and_bell / "numbers.jsonl", [{"audio": "dog.wav", "label": 3}])
    with pytest.raises(
        ValueError, match="numbers.jsonl' has the label 3 in `label`; the set has no names for such numbers"
    ):
        said(path, prompt="Which?")
    path = write_jsonl(
        dog_and_bell / "late.jsonl", [{"audio": "dog.wav", "label": n} for n in ("a", "b", "c", 3, None, "")]
    )
    examples, _ = load_training_data([DataSource(str(path), prompt="Which?")])
    for number, message in (
        (3, "its `label` is 3; the set"),
        (4, "its `label` is missing"),
        (5, "no text to learn"),
    ):
        with pytest.raises(ValueError, match=f"row {number}: .*{message}"):
            examples[number]


def test_captions_are_examples_that_share_their_clip(dog_and_bell):
    rows = [{"audio": "dog.wav", "caption": c} for c in (["a", "b"], "c", [], None, ["d", ""])]
    path = write_jsonl(dog_and_bell / "set.jsonl", rows)
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
    clip = {"bytes": (dog_and_bell / "dog.wav").read_bytes(), "path": "dog.wav"}
    path = write_parquet(dog_and_bell / "set.parquet", [{"audio": clip, "captions": ["a", "b"]}] * 2, features)
    assert [chat[-1][-1] for chat in said(path)] == ["a", "b", "a", "b"]


def test_of_several_prompts_each_row_has_one(dog_and_bell):
    path = write_jsonl(dog_and_bell / "set.jsonl", [{"audio": "dog.wav", "text": str(n)} for n in range(60)])
    prompts = ["A?", "<audio> B?", "C <audio>"]
    first, again, shorter = (said(path, prompt=prompts, **entry) for entry in ({}, {}, {"split": "train[:30]"}))
    assert first == again and first[:30] == shorter
    asked = [chat[0].removeprefix("user: ") for chat in first]
    counts = {text: asked.count(text) for text in ("(dog)A?", "(dog) B?", "C (dog)")}
    assert sum(counts.values()) == 60 and min(counts.values()) >= 10
    assert [asked.index(text) for text in counts] != [0, 1, 2]  # not in turn, as kinds of rows can be
    (line,) = describe_sets(load_training_data([DataSource(str(path), prompt=prompts)])[0])
    assert line.endswith("asked one of 3 prompts, such as 'A?'")


def test_a_set_with_questions_of_its_own_has_no_place_for_a_prompt(dog_and_bell):
    path = write_jsonl(dog_and_bell / "set.jsonl", [{"audio": "dog.wav", "query": "?", "response": "a"}])
    with pytest.raises(ValueError, match="set.jsonl' is read as queries and responses, whose rows have questions"):
        said(path, prompt="What?")
