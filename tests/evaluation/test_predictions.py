"""Prediction files: our own and those that others publish."""

import hashlib
import json

import pytest

from falcon3_audio.evaluation.predictions import ANSWERED, FAILED, MISSING, Prediction, read_predictions


OURS = {
    "id": "a",
    "status": "failed",
    "reply": None,
    "question": "What?",
    "choices": ["a dog", "a bell"],
    "answer": "a bell",
    "audio": ["1.wav"],
    "groups": {"task": "sound"},
    "error": "cut off",
    "audio_tokens": 12,
}


def written(path, content):
    path.write_text(content, encoding="utf-8")
    return path


def test_a_run_is_read_with_its_provenance(tmp_path):
    content = json.dumps(OURS) + "\n" + json.dumps(OURS | {"id": "b", "status": "answered", "reply": ""}) + "\n"
    path = written(tmp_path / "predictions.jsonl", content)
    written(tmp_path / "run.json", '{"prompt": "plain"}')
    for given in (tmp_path, path):
        found = read_predictions(given)
        assert found.provenance == {"prompt": "plain"} and found.path == str(path)
        assert found.sha256 == hashlib.sha256(content.encode()).hexdigest()
        first, second = found.rows
        assert first == Prediction(
            id="a",
            status=FAILED,
            reply=None,
            question="What?",
            choices=("a dog", "a bell"),
            answer="a bell",
            audio=("1.wav",),
            groups={"task": "sound"},
            error="cut off",
        )
        assert (second.status, second.reply) == (ANSWERED, "")


@pytest.mark.parametrize("key", ["model_output", "model_prediction", "answer_prediction", "prediction", "response"])
@pytest.mark.parametrize("as_list", [True, False])
def test_published_files(tmp_path, key, as_list):
    rows = [
        {
            "id": 7,
            "question": "?",
            "choices": ["x", "y"],
            "answer": "y",
            "audio_id": "7.wav",
            "task": "music",
            key: "y",
        },
        {"id": "8", "choices": ["x", "y"], "answer": "x", "sub-category": "tempo", "category": ["Reasoning"]},
        {"id": "9", key: ""},
    ]
    text = json.dumps(rows) if as_list else "\n".join(map(json.dumps, rows))
    found = read_predictions(written(tmp_path / "theirs.json", text))
    assert [(row.id, row.status, row.reply) for row in found.rows] == [
        ("7", ANSWERED, "y"),
        ("8", MISSING, None),
        ("9", ANSWERED, ""),
    ]
    assert found.rows[0].groups == {"task": "music"} and found.rows[0].audio == ("7.wav",)
    assert found.rows[1].groups == {"sub-category": "tempo", "category": "Reasoning"} and found.rows[1].choices == (
        "x",
        "y",
    )
    assert found.provenance == {}


def test_published_air_bench_rows(tmp_path):
    row = {"uniq_id": 3, "path": "3.wav", "choice_a": "x", "choice_b": "y", "choice_c": None, "answer_gt": "y"}
    row |= {"task_name": "Music_AQA", "meta_info": "a piano", "response": "B"}
    (found,) = read_predictions(written(tmp_path / "theirs.jsonl", json.dumps(row))).rows
    assert (found.id, found.choices, found.answer, found.reply) == ("3", ("x", "y"), "y", "B")
    assert found.groups == {"task_name": "Music_AQA"} and found.description == "a piano"
    row |= {"description": "a bell rings"}  # as in files of one's own
    (found,) = read_predictions(written(tmp_path / "mine.jsonl", json.dumps(row))).rows
    assert found.description == "a bell rings"


def test_replies_that_were_cut_are_told(tmp_path):
    reply = {"status": "answered", "reply": "The sound is", "error": None}
    reasons = ("length", "stop", None, "length")
    rows = [{"id": number, "finish_reason": reason} | reply for number, reason in enumerate(reasons)]
    found = read_predictions(written(tmp_path / "mine.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.warnings == ("2 of 4 replies were cut at the limit of new tokens; raise --max-new-tokens",)


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"id": 1}\n{"id": "1"}', "line 1 and line 2 have the same id '1'"),
        ('{"id": "1 "}\n{"id": "1"}', "line 1 and line 2 have the same id '1'"),
        ('{"id": "\\u00e9"}\n{"id": "e\\u0301"}', "line 1 and line 2 have the same id 'é'"),
        ('{"id": 1, "status": "failed", "model_output": "Cat"}', "'status' is 'failed', but 'model_output' is 'Cat'"),
        ('[{"id": 1}, 5]', "row 2: expected a JSON object, got int"),
        ('{"name": 1}', r"line 1: no id \(looked for 'id' and 'uniq_id' among \['name'\]\)"),
        ('{"id": 1, "prediction": ["B"]}', r"line 1: 'prediction' is \['B'\]; expected the reply's text"),
        ('{"id": 1, "reply": "A", "reply": "B"}', "in line 1: the key 'reply' appears twice in one object"),
        ('{"id": 1}\n{"id"', "neither a JSON list nor JSON lines in line 2"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        read_predictions(written(tmp_path / "theirs.json", content))


def test_a_run_that_is_not_finished(tmp_path):
    with pytest.raises(ValueError, match="does not exist; `falcon3-audio evaluate` writes it when all"):
        read_predictions(tmp_path)


def test_clips_of_air_bench_tasks_with_one_file_name_are_two(tmp_path):
    rows = [{"uniq_id": n, "path": "1.wav", "task_name": task, "dataset_name": "x"} for n, task in enumerate("ab")]
    found = read_predictions(written(tmp_path / "theirs.json", json.dumps(rows))).rows
    assert [row.audio for row in found] == [("a_x/1.wav",), ("b_x/1.wav",)]


THEIRS = {"id": "a", "question": "What?", "choices": ["a dog", "a bell"], "answer": "a bell", "model_output": "a bell"}


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"choices": [["a dog"], ["a bell"]]}, "expected a list of texts"),
        ({"choices": [1, 2]}, "expected a list of texts"),
        ({"choices": "a dog"}, "expected a list of texts"),
        ({"choices": {"A": "a dog"}}, "expected a list of texts"),
        ({"choices": ["a dog"]}, "expected two or more, none empty"),
        ({"answer": 1}, "'answer' is 1, expected a text"),
        ({"answer": ["a bell"]}, r"'answer' is \['a bell'\], expected a text"),
        ({"question": 5}, "'question' is 5, expected a text"),
        ({"id": None}, "no id|'id' is None"),
        ({"id": True}, "'id' is True"),
        ({"id": ["a"]}, r"'id' is \['a'\]"),
        ({"audio": 7}, "the audio is 7, expected a path or a list of paths"),
    ],
)
@pytest.mark.parametrize("row", [OURS, THEIRS])
def test_malformed_rows_are_one_line_that_names_the_place(tmp_path, row, changed, words):
    with pytest.raises(ValueError, match=f"theirs.json, row 2: .*({words})") as found:
        read_predictions(written(tmp_path / "theirs.json", json.dumps([row | {"id": "first"}, row | changed])))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"reply": "a bell"}, "'status' is 'failed', but 'reply' is 'a bell'; only answered questions have a reply"),
        ({"status": "answered"}, "'status' is 'answered', but 'reply' is None"),
        ({"status": "answered", "reply": 5}, "'reply' is 5, expected a text"),
        ({"status": "done"}, "'status' is 'done', expected 'answered', 'failed' or 'missing'"),
        ({"groups": ["sound"]}, r"'groups' is \['sound'\], expected a JSON object"),
        ({"groups": {"task": {"a": 1}}}, "'task' is {'a': 1}, expected a text"),
        ({"prompt": 1}, "'prompt' is 1, expected a text"),
    ],
)
def test_rows_that_no_run_has_written(tmp_path, changed, words):
    with pytest.raises(ValueError, match=f"line 1: {words}"):
        read_predictions(written(tmp_path / "predictions.jsonl", json.dumps(OURS | changed)))


def test_what_is_null_is_not_there(tmp_path):
    row = OURS | dict.fromkeys(("question", "choices", "answer", "audio", "groups", "error"))
    (found,) = read_predictions(written(tmp_path / "predictions.jsonl", json.dumps(row))).rows
    assert found == Prediction(id="a", status=FAILED, reply=None)


def test_a_number_and_a_text_are_one_id_in_runs_too(tmp_path):
    content = "".join(json.dumps(OURS | {"id": identity}) + "\n" for identity in (1, "1"))
    with pytest.raises(ValueError, match="line 1 and line 2 have the same id '1'"):
        read_predictions(written(tmp_path / "predictions.jsonl", content))


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "{", '{"left_out": [1]}', '{"left_out": {"x": 3}}', '{"left_out": {"x": [1]}}'),
        *('{"data_sha256": "ab"}', '{"data_sha256": {"a": null}}', '{"versions": ["a"]}'),
        *('{"benchmark": ["x"]}', '{"model": 5}', '{"control": 3}', '{"prompt": {}}'),
    ],
)
def test_a_run_json_that_no_run_has_written(tmp_path, content):
    written(tmp_path / "predictions.jsonl", json.dumps(OURS))
    written(tmp_path / "run.json", content)
    with pytest.raises(ValueError, match="run.json is not (JSON|what)"):
        read_predictions(tmp_path)


def test_a_run_json_without_what_is_not_known(tmp_path):
    written(tmp_path / "predictions.jsonl", json.dumps(OURS))
    written(tmp_path / "run.json", '{"model": null, "left_out": null, "data_sha256": null, "decoding": {"seed": 1}}')
    assert read_predictions(tmp_path).provenance["left_out"] == {}


def test_a_group_may_be_the_number_0(tmp_path):
    rows = [{"id": n, "task": task} for n, task in enumerate((0, 1, 0.0, "", [], None))]
    found = read_predictions(written(tmp_path / "theirs.json", json.dumps(rows))).rows
    assert [row.groups for row in found] == [{"task": "0"}, {"task": "1"}, {"task": "0.0"}, {}, {}, {}]


def test_lists_within_lists_without_end(tmp_path):
    with pytest.raises(ValueError, match="neither a JSON list nor JSON lines"):
        read_predictions(written(tmp_path / "theirs.json", "[" * 200_000))


def test_all_rows_are_read_under_one_key(tmp_path):
    rows = [
        {"id": 1, "model_prediction": "x"},
        {"id": 2, "model_output": "y", "model_prediction": "y"},
        {"id": 3, "model_output": "y", "model_prediction": "z"},
    ]
    path = written(tmp_path / "theirs.json", json.dumps(rows))
    found = read_predictions(path)
    assert found.key == "model_output" and [row.reply for row in found.rows] == [None, "y", "y"]
    assert found.warnings == (
        "replies are read from 'model_output'; 'model_prediction' differs in 2 of 3 rows; --key chooses another",
    )
    found = read_predictions(path, "model_prediction")
    assert [row.reply for row in found.rows] == ["x", "y", "z"] and "'model_output' differs" in found.warnings[0]
    with pytest.raises(ValueError, match="has the key 'said'; they have id, model_prediction, model_output"):
        read_predictions(path, "said")
    same = written(tmp_path / "same.json", json.dumps(rows[1:2]))
    assert read_predictions(same).warnings == () and read_predictions(same).key == "model_output"


def test_answers_are_no_replies(tmp_path):
    (tmp_path / "rows.json").write_text(
        '[{"id": 1, "choices": ["Dog", "Cat"], "answer": "Cat", "model_output": "Dog"}]'
    )
    with pytest.raises(ValueError, match="'answer' is the key of the right answers"):
        read_predictions(tmp_path / "rows.json", key="answer")


def test_replies_under_our_key_without_a_status(tmp_path):
    found = read_predictions(written(tmp_path / "theirs.json", json.dumps([{"id": 1, "reply": "x"}])))
    assert (found.key, found.rows[0].reply, found.rows[0].status) == ("reply", "x", ANSWERED)
