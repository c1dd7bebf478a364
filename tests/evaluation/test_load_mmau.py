"""Small files in MMAU's JSON and parquet formats and in MMAR's JSON lines."""

import hashlib
import json
import os
import pickle
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import without, write_clip, write_json, write_lines

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.load_mmau import load_mmar, load_mmau
from falcon3_audio.evaluation.option_labels import without_labels


ROW = {
    "id": "3fe6",
    "audio_id": "./test-mini-audios/3fe6.wav",
    "question": "Who speaks?",
    "choices": ["Man", "Woman", "Child", "Robot"],
    "answer": "Woman",
    "dataset": "AudioSet",
    "task": "sound",
    "split": "test-mini",
    "category": "Reasoning",
    "sub-category": "Acoustic Source Inference",
    "difficulty": "medium",
}
GROUPS = {
    "task": "sound",
    "category": "Reasoning",
    "sub-category": "Acoustic Source Inference",
    "difficulty": "medium",
}
MMAR_ROW = {
    "id": "BV1_00-01",
    "audio_path": "./audio/BV1.wav",
    "question": "What is played?",
    "choices": ["Chess", "Go"],
    "answer": "Go",
    "modality": "mix-sound-speech",
    "category": "Semantic Layer",
    "sub-category": "Content Analysis",
    "language": "zh",
    "source": "bilibili",
    "cue": ["stones"],
}


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "test-mini-audios" / "3fe6.wav")
    write_clip(tmp_path / "audio" / "BV1.wav")
    return tmp_path


def load(folder, *rows, **options):
    return load_mmau(write_json(folder / "mmau-test-mini.json", list(rows)), **options)


def mmar(folder, *rows, **options):
    return load_mmar(write_lines(folder / "MMAR-meta.jsonl", list(rows)), **options)


def parquet_row(row=ROW, content=b"RIFF", labels=True):
    """As on the Hub: the audio in the row, options and answer with labels, the rest as JSON."""
    choices, answer = list(row["choices"]), row["answer"]
    if labels:
        choices = [f"({letter}) {choice}" for letter, choice in zip("ABCDEFGH", choices)]
        answer = choices[row["choices"].index(answer)]
    own = ("question", "choices", "answer", "audio_id")
    return {
        "context": {"bytes": content, "path": "audio.wav"},
        "instruction": row["question"],
        "choices": choices,
        "answer": answer,
        "other_attributes": json.dumps({key: row[key] for key in row if key not in own}),
    }


def write_parquet(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def parquet(folder, *rows, **options):
    return load_mmau(write_parquet(folder / "test_mini.parquet", *rows), **options)


def test_a_question_is_read(folder):
    loaded = load(folder, ROW)
    (question,) = loaded.questions
    assert (question.id, question.question, question.answer) == ("3fe6", "Who speaks?", "Woman")
    assert question.choices == ("Man", "Woman", "Child", "Robot") and question.groups == GROUPS
    assert question.audio[0].name == "./test-mini-audios/3fe6.wav"
    assert question.audio[0].read() == (folder / "test-mini-audios" / "3fe6.wav").read_bytes()
    digest = hashlib.sha256((folder / "mmau-test-mini.json").read_bytes()).hexdigest()
    assert (loaded.benchmark, loaded.sha256) == ("mmau", {"mmau-test-mini.json": digest})


def test_what_the_published_rows_hold(folder):
    """A list of one category; options that are identical or have spaces; more or fewer than four options."""
    rows = [
        ROW | {"id": "1", "category": ["Reasoning"]},
        ROW | {"id": "2", "choices": ["four", "nine", "fourteen", "fourteen"], "answer": "nine"},
        ROW | {"id": "3", "choices": [" Rain", "Snow"], "answer": "Rain "},
        ROW | {"id": "4", "choices": list("ABCDEFGH"), "answer": "H"},
        ROW | {"id": "5", "choices": ["Rain ", "Rain"], "answer": "Rain"},
    ]
    questions = load(folder, *rows).questions
    assert questions[0].groups == GROUPS
    assert [question.choices for question in questions] == [tuple(row["choices"]) for row in rows]
    # The answer is spelled as in the choices.
    assert [question.answer for question in questions] == ["Woman", "nine", " Rain", "H", "Rain"]


def test_labels_are_taken_off_in_the_parquet_form_only(folder):
    choices = ["(A) Man", "(B) Woman"]
    (question,) = load(folder, ROW | {"choices": choices, "answer": "(B) Woman"}).questions
    assert (question.choices, question.answer) == (tuple(choices), "(B) Woman")


@pytest.mark.parametrize("row", [without(ROW, "answer"), ROW | {"answer": ""}, ROW | {"answer": None}])
def test_the_test_questions_have_no_answers(folder, row):
    questions = load(folder, row, row | {"id": "b"}).questions
    assert [question.answer for question in questions] == [None, None]
    with_labels = parquet_row() | {"answer": row.get("answer", "")}
    (question,) = parquet(folder, with_labels).questions
    assert (question.answer, question.choices) == (None, ("Man", "Woman", "Child", "Robot"))


def test_among_rows_with_answers_one_without_is_faulty(folder):
    with pytest.raises(ValueError, match="field missing or malformed in 1 .*'answer' is ''"):
        load(folder, ROW, ROW | {"id": "b", "answer": ""})
    assert load(folder, ROW | {"answer": ""}, ROW | {"id": "b"}, on_error="skip").left_out == {
        "field missing or malformed": ["3fe6"]
    }


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"audio_id": "./test-mini-audios/none.wav"}, "audio file missing"),
        ({"audio_id": "../../3fe6.wav"}, "path outside the audio folder"),
        ({"answer": "B"}, "answer not among the choices"),
        ({"answer": "(B) Woman"}, "answer not among the choices"),
        ({"id": "3fe6"}, "id already used"),
        *(({key: None}, "field missing or malformed") for key in ("id", "audio_id", "question", "choices", "answer")),
    ],
)
def test_faulty_rows(folder, change, reason):
    rows = [ROW, {**ROW, "id": "b", **change}]
    with pytest.raises(ValueError, match=f"1 of 2 rows cannot be used: {reason} in 1 "):
        load(folder, *rows)
    loaded = load(folder, *rows, on_error="skip")
    assert len(loaded.questions) == 1 and loaded.left_out == {reason: [{**{"id": "b"}, **change}["id"] or "row 2"]}


def test_an_mmar_question_is_read(folder):
    loaded = mmar(folder, MMAR_ROW, MMAR_ROW | {"id": "b", "language": None, "choices": ["Chess", "Go", ""]})
    first, second = loaded.questions
    assert (first.id, first.question, first.choices, first.answer) == (
        "BV1_00-01",
        "What is played?",
        ("Chess", "Go"),
        "Go",
    )
    assert first.audio[0].name == "./audio/BV1.wav" and first.audio[0].read()[:4] == b"RIFF"
    groups = {"modality": "mix-sound-speech", "category": "Semantic Layer", "sub-category": "Content Analysis"}
    assert first.groups == groups | {"language": "zh"} and second.groups == groups
    assert second.choices == ("Chess", "Go")  # drops the empty option, which four published rows have
    assert loaded.benchmark == "mmar" and list(loaded.sha256) == ["MMAR-meta.jsonl"]


def test_faulty_mmar_rows(folder):
    rows = [MMAR_ROW, without(MMAR_ROW, "audio_path"), MMAR_ROW | {"answer": "Poker"}]
    with pytest.raises(ValueError, match="2 of 3 rows cannot be used.*no 'audio_path'.*answer not among the choices"):
        mmar(folder, *rows)


def test_parquet_holds_the_same_questions_as_the_json(folder):
    rows = [ROW, ROW | {"id": "b", "task": "music", "choices": ["Go", "No"], "answer": "Go"}]
    from_json = load(folder, *rows).questions
    contents = [write_clip(folder / "a.wav", 300.0), write_clip(folder / "b.wav", 500.0)]
    path = folder / "parquet" / "test_mini.parquet"
    write_parquet(path, *map(parquet_row, rows, contents))
    for place in (path, path.parent):  # the file, and its folder
        loaded = load_mmau(place)
        for question, expected in zip(loaded.questions, from_json, strict=True):
            for name in ("id", "question", "choices", "answer", "groups"):
                assert getattr(question, name) == getattr(expected, name)
        assert [question.audio[0].read() for question in loaded.questions] == contents
        assert len({question.audio[0].name for question in loaded.questions}) == 2  # though `path` is the same
        assert loaded.sha256 == {"test_mini.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
        assert loaded.benchmark == "mmau"


TRAPS = [
    ["A", "B", "C", "D"],
    ["B:maj/1", "F#:7/1", "A:min7/1", "C:maj"],
    ["A) one", "B. two", "(a) three", "A"],
    ["(A) one", "(B) two", "three", "(D) four"],  # not all
    ["(B) one", "(A) two", "(C) three", "(D) four"],  # not in order
    ["(A)one", "(B)two", "(C)three", "(D)four"],
    ["(A) (A) one", "(A) two", "(C) three", "(D) four"],
    [" one", "two ", "three", "four"],
]


@pytest.mark.parametrize("choices", TRAPS)
@pytest.mark.parametrize("number", [0, 3])
def test_labels_are_taken_off_once_and_options_that_look_like_labels_are_left(folder, choices, number):
    row = ROW | {"choices": choices, "answer": choices[number]}
    labelled = parquet_row(row)
    assert labelled["choices"][0] == f"(A) {choices[0]}"
    bare = parquet_row(row | {"id": "b"}, labels=False)
    for question in parquet(folder, labelled, bare).questions:
        assert (question.choices, question.answer) == (tuple(choices), choices[number])


def test_more_options_than_letters_have_no_labels():
    choices = tuple(f"({letter}) x" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ") + ("(AA) x",)
    assert without_labels(choices) == choices
    assert without_labels(choices[:26]) == ("x",) * 26


def test_of_options_with_one_text_the_answer_is_that_text(folder):
    row = ROW | {"choices": ["four", "nine", "fourteen", "fourteen"], "answer": "fourteen"}
    (question,) = parquet(folder, parquet_row(row) | {"answer": "(D) fourteen"}).questions
    assert question.answer == "fourteen"


def test_a_parquet_answer_may_lack_its_label_or_have_other_spaces(folder):
    rows = [parquet_row(ROW | {"id": identity}) for identity in "abc"]
    rows[1]["answer"], rows[2]["answer"] = "Woman", "(B) Woman "
    assert [question.answer for question in parquet(folder, *rows).questions] == ["Woman"] * 3


@pytest.mark.parametrize(
    "change, reason, name",
    [
        ({"context": None}, "audio file missing", "b"),
        ({"context": {"bytes": None, "path": "audio.wav"}}, "audio file missing", "b"),
        ({"context": {"bytes": b"", "path": "audio.wav"}}, "audio file missing", "b"),
        ({"answer": "(A) Woman"}, "answer not among the choices", "b"),
        ({"answer": "B"}, "answer not among the choices", "b"),
        ({"answer": None}, "field missing or malformed", "b"),
        ({"instruction": None}, "field missing or malformed", "b"),
        ({"choices": None}, "field missing or malformed", "b"),
        ({"choices": ["(A) Man", "(B) "], "answer": "(A) Man"}, "field missing or malformed", "b"),
        ({"other_attributes": "{"}, "field missing or malformed", "row 2"),
        ({"other_attributes": "[]"}, "field missing or malformed", "row 2"),
        ({"other_attributes": None}, "field missing or malformed", "row 2"),
        ({"other_attributes": '{"task": "sound"}'}, "field missing or malformed", "row 2"),
        ({"other_attributes": '{"id": "3fe6"}'}, "id already used", "3fe6"),
    ],
)
def test_faulty_parquet_rows(folder, change, reason, name):
    rows = [parquet_row(), parquet_row(ROW | {"id": "b"}) | change]
    with pytest.raises(ValueError, match=rf"1 of 2 rows cannot be used: {reason} in 1 \[row 2 \({name}\)"):
        parquet(folder, *rows)
    loaded = parquet(folder, *rows, on_error="skip")
    assert [question.id for question in loaded.questions] == ["3fe6"] and loaded.left_out == {reason: [name]}


def test_every_shard_of_a_folder_is_read_and_named(folder):
    shards = [f"test-0000{number}-of-00004.parquet" for number in range(3)]
    for number in (2, 0, 1):
        row = parquet_row(ROW | {"id": str(number)}, content=bytes([number + 1]))
        write_parquet(folder / "data" / shards[number], row)
    shards.append("test-00003-of-00004.parquet")  # without rows
    pq.write_table(pq.read_table(folder / "data" / shards[0]).slice(0, 0), folder / "data" / shards[3])
    (folder / "data" / "README.md").write_text("not a shard", encoding="utf-8")
    loaded = load_mmau(folder / "data")
    assert [question.id for question in loaded.questions] == ["0", "1", "2"]
    assert [question.audio[0].read() for question in loaded.questions] == [b"\1", b"\2", b"\3"]
    digests = {name: hashlib.sha256((folder / "data" / name).read_bytes()).hexdigest() for name in shards}
    assert loaded.sha256 == digests


def test_a_file_that_took_the_place_of_another_is_read_anew(folder):
    """Even with the same name, size and time, by which `datasets` tells files apart."""
    for answer in ("Woman", "Robot"):
        path = write_parquet(folder / "test_mini.parquet", parquet_row(ROW | {"answer": answer}))
        os.utime(path, (0, 0))
        loaded = load_mmau(path)
        assert loaded.questions[0].answer == answer
        assert loaded.sha256["test_mini.parquet"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_audio_of_parquet_files_stays_on_the_disk(folder):
    size = 2_000_000
    rows = [parquet_row(ROW | {"id": str(number)}, os.urandom(size)) for number in range(10)]
    path = write_parquet(folder / "test_mini.parquet", *rows)
    load_mmau(path)  # converts the file
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    loaded = load_mmau(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size and pa.total_allocated_bytes() - before < size
    # Reading a clip reads one row, in another process too.
    clip = pickle.loads(pickle.dumps(loaded.questions[7])).audio[0]
    assert clip.read() == rows[7]["context"]["bytes"]
    assert pa.total_allocated_bytes() - before < 2 * size


def test_what_is_no_parquet_of_mmau_is_an_error(folder):
    damaged = folder / "damaged.parquet"
    damaged.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="damaged.parquet: no parquet rows can be read"):
        load_mmau(damaged)
    with pytest.raises(ValueError, match=r"has the columns .*; MMAU's parquet form also has \['context', 'choices'\]"):
        load_mmau(write_parquet(folder / "other.parquet", without(without(parquet_row(), "context"), "choices")))
    pq.write_table(pa.Table.from_pylist([parquet_row()]).slice(0, 0), folder / "empty.parquet")
    with pytest.raises(ValueError, match="empty.parquet: no parquet rows can be read"):
        load_mmau(folder / "empty.parquet")
    for place in (folder / "audio", folder / "none.parquet"):
        with pytest.raises(ValueError, match=f"{place.name} is not a parquet file or a folder of them"):
            load_mmau(place)


def test_an_audio_folder_for_parquet_files_is_refused(folder):
    with pytest.raises(ValueError, match="holds its audio itself"):
        parquet(folder, parquet_row(), audio_root=folder)


def test_breakdowns_are_groups_of_the_questions(folder):
    assert set(BENCHMARKS["mmau"].breakdowns) == set(load(folder, ROW).questions[0].groups)
    assert set(BENCHMARKS["mmar"].breakdowns) == set(mmar(folder, MMAR_ROW).questions[0].groups)
