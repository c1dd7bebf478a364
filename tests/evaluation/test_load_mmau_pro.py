"""From a small file in MMAU-Pro's format to the score: a question with options, an open one and an instruction."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import without, write_clip, write_lines
from stub_endpoint import StubEndpoint

from falcon3_audio.evaluation import evaluate, judge, score
from falcon3_audio.evaluation.benchmarks import title_of
from falcon3_audio.evaluation.compare import compare
from falcon3_audio.evaluation.load_mmau_pro import CATEGORIES, QUESTIONS, load_mmau_pro
from falcon3_audio.evaluation.predictions import read_predictions


# As in parquet: every row's struct has every parameter, null if the task does not use it.
NO_PARAMETERS = {"N": None, "N1": None, "N2": None, "keywords": None}
CHOICE = {
    "id": "a1",
    "audio_path": ["data/x.wav", "data/y.wav"],
    "question": "Which clip has a dog?",
    "answer": "The second",
    "choices": ["The first", "The second", "Both"],
    "length_type": "short",
    "perceptual_skills": ["Source Characterization", "Counting"],
    "reasoning_skills": [],
    "category": "multi",
    "transcription": None,
    "task_classification": None,
    "task_identifier": None,
    "kwargs": NO_PARAMETERS,
    "sub-cat": "compare",
}
OPEN = CHOICE | {"id": "b2", "audio_path": ["data/x.wav"], "category": "open", "answer": "A dog at night."}
ORDER = CHOICE | {
    "id": "c3",
    "audio_path": ["data/y.wav"],
    "category": "instruction following",
    "question": "Describe the sound in at most three words.",
    "answer": None,
    "choices": [],
    "task_identifier": "Number Words (at most)",
    "kwargs": NO_PARAMETERS | {"N": 3},
}
ROWS = (CHOICE, OPEN, ORDER)


@pytest.fixture
def folder(tmp_path):
    for name in "xy":
        write_clip(tmp_path / "data" / f"{name}.wav", 300.0 + ord(name))
    return tmp_path


def write(folder, *rows, name="test.parquet"):
    path = folder / name
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_three_kinds_of_questions_are_read(folder):
    path = write(folder, *ROWS)
    loaded = load_mmau_pro(path)
    choice, open_, order = loaded.questions
    assert [clip.name for clip in choice.audio] == ["data/x.wav", "data/y.wav"]
    assert choice.audio[1].read() == (folder / "data" / "y.wav").read_bytes()
    assert (choice.id, choice.question, choice.answer) == ("a1", "Which clip has a dog?", "The second")
    assert choice.choices == ("The first", "The second", "Both") and choice.check is None
    assert choice.groups == {
        "category": "multi",
        "length_type": "short",
        "sub-cat": "compare",
        "perceptual_skills": "Source Characterization, Counting",
    }
    # As in the published script, the options of an open question are not used.
    assert (open_.choices, open_.answer, open_.check) == ((), "A dog at night.", None)
    assert (order.choices, order.answer) == ((), None)
    assert order.check == {"task": "Number Words (at most)", "N": 3}
    assert order.groups["task_identifier"] == "Number Words (at most)"
    assert loaded.sha256 == {"test.parquet": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert loaded.benchmark == "mmau-pro"


def test_json_lines_and_an_audio_folder(folder, tmp_path):
    rows = [row | {"kwargs": json.dumps(row["kwargs"])} for row in ROWS]
    (tmp_path / "elsewhere").mkdir()
    path = write_lines(tmp_path / "elsewhere" / "test.jsonl", rows)
    expected = load_mmau_pro(write(folder, *ROWS)).questions
    assert load_mmau_pro(path, audio_root=folder).questions == expected


@pytest.mark.parametrize(
    "row, fault",
    [
        (without(CHOICE, "id"), r"line 1 \(line 1\): no 'id'"),
        (without(CHOICE, "category"), r"line 1 \(a1\): no 'category'"),
        (CHOICE | {"answer": None}, "'answer' is None, expected a text"),
        (CHOICE | {"choices": ["The second"]}, "expected two or more"),
        (CHOICE | {"audio_path": []}, r"'audio_path' is \[\], expected a path or a list of paths"),
        (CHOICE | {"audio_path": ["data/z.wav"]}, "audio file missing in 1 .*z.wav"),
        (CHOICE | {"audio_path": ["../x.wav"]}, "path outside the audio folder"),
        (OPEN | {"answer": None}, "'answer' is None, expected a text"),
        (ORDER | {"task_identifier": "Be Nice"}, "'task_identifier' is 'Be Nice'"),
        (ORDER | {"kwargs": NO_PARAMETERS}, "'N' of 'Number Words .* is None, expected a whole number"),
    ],
)
def test_a_faulty_row_is_named(folder, row, fault):
    with pytest.raises(ValueError, match=fault):
        load_mmau_pro(write_lines(folder / "one.jsonl", [row]))
    good = CHOICE | {"id": "good"}
    loaded = load_mmau_pro(write_lines(folder / "two.jsonl", [row, good]), on_error="skip")
    assert [question.id for question in loaded.questions] == ["good"] and sum(map(len, loaded.left_out.values())) == 1


def test_what_is_no_parquet_is_an_error(folder):
    (folder / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="bad.parquet: no parquet rows can be read"):
        load_mmau_pro(folder / "bad.parquet")
    with pytest.raises(ValueError, match="is a folder; expected a parquet file"):
        load_mmau_pro(folder)
    with pytest.raises(ValueError, match="none.parquet does not exist; expected a parquet file"):
        load_mmau_pro(folder / "none.parquet")


def test_answers_that_are_no_option_count_as_wrong_as_published(folder):
    """The published file has some; an answer that is an option in another spelling counts as that option."""
    spelled = CHOICE | {"id": "d4", "answer": "the second."}
    none = CHOICE | {"id": "e5", "answer": "Neither"}
    loaded = load_mmau_pro(write(folder, CHOICE, spelled, none))
    assert [question.answer for question in loaded.questions] == ["The second", "the second.", "Neither"]
    rows = [row | {"model_output": "The second"} for row in (CHOICE, spelled)] + [none | {"model_output": "Neither"}]
    result = score.score(read_predictions(write(folder, *rows, name="predicted.parquet")), "mmau-pro")
    assert (result["rules"]["mmau-pro"]["n"], result["rules"]["mmau-pro"]["right"]) == (3, 2)
    assert result["counts"]["without a right option"] == 1


def test_a_category_of_others_with_the_same_name_keeps_its_options(folder):
    row = {
        "id": "1",
        "question": "Which?",
        "choices": ["a", "b"],
        "answer": "a",
        "category": "open",
        "model_output": "a",
    }
    (found,) = read_predictions(write_lines(folder / "theirs.jsonl", [row])).rows
    assert found.choices == ("a", "b") and found.check is None


def test_the_name_is_for_its_own_questions():
    ids = [str(number) for number in range(QUESTIONS)]
    assert title_of("mmau-pro", ids, CATEGORIES) == "MMAU-Pro"
    assert title_of("mmau-pro", ids[1:], CATEGORIES) == "Own questions in MMAU-Pro's format"
    assert title_of("mmau-pro", ids, (*CATEGORIES, "mine")) == "Own questions in MMAU-Pro's format"


def predictions(folder, replies):
    """As the published script expects them: the benchmark's file with one more column."""
    rows = [row | {"model_output": reply} for row, reply in zip(ROWS, replies)]
    return write(folder, *rows, name="predicted.parquet")


def test_published_predictions_are_scored_without_the_clips(folder):
    (folder / "data").rename(folder / "away")
    data, replies = write(folder, *ROWS), ("It is the second.", "A dog.", "A dog barks loudly")
    found = read_predictions(predictions(folder, replies))
    with pytest.raises(
        ValueError,
        match=r"1 question \(b2\) of 3 are open: .*with --judged, or score only the others with --without-open",
    ):
        score.score(found, "mmau-pro", data)
    for given in (data, None):
        result = score.score(found, "mmau-pro", given, without_open=True)
        assert result["title"] == "Own questions in MMAU-Pro's format without its 1 open questions"
        content = result["rules"]["mmau-pro"]
        assert (content["n"], content["right"]) == (2, 1)
        groups = content["breakdowns"]["category"]["groups"]
        assert {name: part["right"] for name, part in groups.items()} == {"instruction following": 0, "multi": 1}
    assert result["counts"]["questions"] == 2 and result["coverage"] == 1


def test_open_questions_are_judged_and_the_others_are_not(folder, capsys):
    path = predictions(folder, ("The second", "A dog, I think.", "A dog"))
    with StubEndpoint(lambda body: "Fine.\ncorrectness: 4, relevance: 5, completeness: 3, clarity: 5") as stub:
        arguments = [str(path), "--endpoint", stub.url, "--judge", "m", "--rubric", "mmau-pro"]
        assert judge.main(arguments) == 0
        (request,) = stub.requests
    text = request.body["messages"][0]["content"]
    assert "Which clip has a dog?" in text and "A dog at night." in text and "A dog, I think." in text
    result = json.loads((folder / "predicted.judge-mmau-pro" / "judge.json").read_text())
    assert (result["judges"]["m"]["n"], result["judges"]["m"]["score"]["value"]) == (1, 4.25)
    assert result["scale"] == [1, 5]
    assert "2 questions with options or a check were not judged" in capsys.readouterr().out


def test_a_model_is_asked_all_and_scored_without_what_a_judge_must_rate(folder, capsys):
    data, out = write(folder, *ROWS), folder / "out"

    def reply(body):
        *clips, words = body["messages"][0]["content"]
        if "Describe" in words["text"]:
            return "a dog"
        return "The second" if len(clips) == 2 else "A dog, I think."

    with StubEndpoint(reply) as stub:
        model = ["--endpoint", stub.url, "--endpoint-model", "m"]
        arguments = ["--benchmark", "mmau-pro", "--data", str(data), "--output-dir", str(out), *model]
        assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out
    assert (
        "3 questions (3 answered)" in said
        and "1 questions are open and not in this score: falcon3-audio judge" in said
    )
    result = json.loads((out / "score.json").read_text())
    assert (result["rules"]["mmau-pro"]["n"], result["rules"]["mmau-pro"]["right"]) == (2, 2)
    assert result["title"].endswith("without its 1 open questions")
    rows = {row.id: row for row in read_predictions(out).rows}
    assert rows["a1"].prompt.startswith("Which clip has a dog?\nThe first\n") and rows["b2"].prompt == OPEN["question"]
    assert rows["c3"].check == {"task": "Number Words (at most)", "N": 3} and rows["c3"].prompt == ORDER["question"]
    with StubEndpoint(lambda body: "correctness: 4, relevance: 5, completeness: 3, clarity: 5") as stub:
        assert judge.main([str(out), "--endpoint", stub.url, "--judge", "m"]) == 0  # by the benchmark's own rubric
    assert (out / "predictions.judge-mmau-pro" / "judge.json").exists()


def test_an_open_question_without_a_reply_counts_nothing(folder, capsys):
    path = predictions(folder, ("The second", None, "A dog barks loudly"))
    with StubEndpoint(lambda body: "correctness: 4, relevance: 5, completeness: 3, clarity: 5") as stub:
        options = ["--endpoint", stub.url, "--judge", "m", "--rubric", "mmau-pro", "--allow-incomplete"]
        assert judge.main([str(path), *options]) == 0
    result = score.score(read_predictions(path), "mmau-pro", judged=folder / "predicted.judge-mmau-pro")
    assert result["overall"]["rules"]["mmau-pro"]["value"] == pytest.approx((1 + 0 + 0) / 3)


def test_rules_and_judge_make_one_number_and_models_are_compared(folder, capsys):
    path = predictions(folder, ("The second", "A dog, I think.", "A dog barks loudly"))
    with StubEndpoint(lambda body: "correctness: 4, relevance: 5, completeness: 3, clarity: 5") as stub:
        assert judge.main([str(path), "--endpoint", stub.url, "--judge", "m", "--rubric", "mmau-pro"]) == 0
    judged = folder / "predicted.judge-mmau-pro"
    result = score.score(read_predictions(path), "mmau-pro", judged=judged)
    # Right, wrong, and 4.25 of 5.
    assert result["overall"]["rules"]["mmau-pro"]["value"] == pytest.approx((1 + 0 + 4.25 / 5) / 3)
    assert result["overall"]["judge"] == {"rubric": "mmau-pro", "judges": ["m"], "reported": {"m": ["stub-2026"]}}
    assert result["rules"]["mmau-pro"]["n"] == 2 and "without its 1 open questions" in result["title"]
    assert score.main([str(path), "--benchmark", "mmau-pro", "--judged", str(judged)]) == 0
    assert "by mmau-pro and the judge m: 61.7 %" in capsys.readouterr().out
    other = write(folder, *(row | {"model_output": "The second"} for row in ROWS), name="other.parquet")
    with pytest.raises(ValueError, match="has judgements of other predictions"):
        score.score(read_predictions(other), "mmau-pro", judged=judged)
    with pytest.raises(ValueError, match="is not a folder of `falcon3-audio judge`"):
        score.score(read_predictions(other), "mmau-pro", judged=folder)
    lines = (judged / "judgements.jsonl").read_text()
    (judged / "judgements.jsonl").write_text(lines.replace('"score": 4.25', '"score": null', 1))
    capsys.readouterr()
    assert score.main([str(path), "--benchmark", "mmau-pro", "--judged", str(judged)]) == 1
    said = capsys.readouterr()
    assert "by mmau-pro and the judge m: 33.3 %" in said.out and "1 question (b2) not rated by the judge" in said.out
    assert "not every question has a reply and, if it is open, a judgement" in said.err
    assert score.main([str(path), "--benchmark", "mmau-pro", "--judged", str(judged), "--allow-incomplete"]) == 0
    files = read_predictions(path), read_predictions(other)
    with pytest.raises(ValueError, match="question b2 has no options"):
        compare(*files, rule="mmau-pro")
    found = compare(*files, rule="mmau-pro", without_open=True)
    assert (found.overall.n, found.left_out) == (2, {"open": ["b2"]})
    assert (found.only_a, found.only_b) == ([], ["c3"])  # "The second" has at most three words


@pytest.mark.parametrize(
    "said", ["correctness: 4, relevance: 5", "correctness: 6, relevance: 5, completeness: 3, clarity: 5", "OVERALL: 4"]
)
def test_an_unreadable_judgement_is_no_score(folder, said, capsys):
    """The published script uses 3 for each missing score."""
    path = predictions(folder, ("The second", "A dog, I think.", "A dog"))
    with StubEndpoint(lambda body: said) as stub:
        assert judge.main([str(path), "--endpoint", stub.url, "--judge", "m", "--rubric", "mmau-pro"]) == 1
    assert "unreadable reply: 1 question (b2)" in capsys.readouterr().err
