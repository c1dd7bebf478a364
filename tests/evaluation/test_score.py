"""`falcon3-audio score` on files written by hand, with numbers counted by hand and intervals from scipy."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binomtest

from falcon3_audio.evaluation.intervals import bootstrap_rate, mean_of_shares
from falcon3_audio.evaluation.predictions import read_predictions
from falcon3_audio.evaluation.score import main, score
from falcon3_audio.evaluation.wilson import wilson
from falcon3_audio.training.studies.study_report import accuracy


VOICES = ["Man", "Woman", "Child", "A very old man"]
RUN = {"benchmark": "mmau", "model": "a/model", "prompt": "plain", "model_commit": "c0ffee", "control": "none"}
RUN |= {"data_sha256": {"mmau.json": "d1" * 32}, "left_out": {}}


def question(number, answer="Man", choices=VOICES, **groups):
    return {"id": f"q{number}", "question": "Who?", "choices": choices, "answer": answer, "groups": groups}


def answered(number, reply, *arguments, **groups):
    return {**question(number, *arguments, **groups), "status": "answered", "reply": reply}


ROWS = [
    answered(1, "Man", task="speech", difficulty="easy"),
    answered(2, "(A) Man", task="speech", difficulty="hard"),
    answered(3, "The answer is: A very old man.", "A very old man", task="speech", difficulty="hard"),
    answered(4, "Man or woman", task="sound", difficulty="easy"),
    answered(5, "", task="sound", difficulty="easy"),
    {**question(6, "Woman", task="sound", difficulty="easy"), "status": "failed", "reply": None, "error": "no audio"},
    answered(7, "B", "Woman", task="music", difficulty="hard"),
    answered(8, "Child", "Woman", task="music", difficulty="hard"),
]


def write_run(folder, rows=ROWS, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(RUN | changes))
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def test_a_run_by_all_rules_of_its_benchmark(tmp_path):
    found = score(read_predictions(write_run(tmp_path / "run")))
    assert list(found["rules"]) == ["mmau-official", "content"]
    official, content = found["rules"].values()
    # Official: 1 and 3 are right; in 2 the label "A" is a word of the last option; 6 is left out.
    assert (official["n"], official["right"]) == (7, 2)
    assert official["verdicts"] == {"right": 2, "wrong": 5, "unresolved": 0, "left out": 1}
    assert (content["n"], content["right"], content["accuracy"]) == (8, 4, 0.5)
    assert content["verdicts"] == {"right": 4, "wrong": 3, "unresolved": 1, "left out": 0}
    assert content["interval"] == pytest.approx(tuple(binomtest(4, 8).proportion_ci(method="wilson")))
    task = content["breakdowns"]["task"]
    counts = {name: (part["n"], part["right"]) for name, part in task["groups"].items()}
    assert list(counts.items()) == [("music", (2, 1)), ("sound", (3, 0)), ("speech", (3, 3))]
    assert task["macro"] == pytest.approx((1 / 2 + 0 + 1) / 3)
    assert official["breakdowns"]["task"]["groups"]["sound"]["n"] == 2
    assert list(content["breakdowns"]) == ["task", "difficulty"]  # the rows do not have MMAU's other groups
    assert found["counts"] == {
        **{"questions": 8, "empty": 1, "answered": 7, "failed": 1, "missing": 0},
        "left out before asking": {},
    }
    assert found["coverage"] == 7 / 8


def test_what_a_score_says_of_its_origin(tmp_path):
    run = write_run(tmp_path / "run")
    found = score(read_predictions(run))
    content = (run / "predictions.jsonl").read_bytes()
    assert found["predictions"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["run"] == RUN and found["data_sha256"] == RUN["data_sha256"]
    assert found["format"] == 1 and found["benchmark"] == "mmau"
    assert {"python", "falcon3-audio"} <= found["versions"].keys()


def test_baselines_without_listening(tmp_path):
    rows = [
        answered(1, "x", "Man"),
        answered(2, "x", "A very old man"),
        answered(3, "x", "four", ["nine", "four", "four"]),
        answered(4, "x", "Yes", ["No", "Yes"]),
    ]
    found = score(read_predictions(write_run(tmp_path / "run", rows)))["baselines"]
    assert found == {
        "always option": [0.25, 0.5, 0.25, 0.25],
        "most frequent position": 0.5,
        "longest option": 0.5,  # the first of "nine", "four", "four"
        "random option": pytest.approx((1 / 4 + 1 / 4 + 2 / 3 + 1 / 2) / 4),
    }


def test_the_published_average_of_air_bench_is_over_tasks_and_stays_open_where_the_official_rule_drops_one(tmp_path):
    def published(number, task, reply, answer="male"):
        row = {"uniq_id": number, "task_name": task, "dataset_name": "x", "question": "Who?", "path": f"{number}.wav"}
        return row | {"choice_a": "male", "choice_b": "female", "answer_gt": answer, "response": reply}

    gender, pitch = "Speaker_Gender_Recognition", "Music_Midi_Pitch_Analysis"
    rows = [
        published(1, gender, "A"),
        published(2, gender, "A. female"),
        published(3, gender, "B"),
        published(4, pitch, "male"),
    ]
    found = score(read_predictions(write_json(tmp_path / "theirs.json", rows)), "air-bench-foundation")
    official, content = found["rules"].values()
    assert (official["n"], official["right"]) == (3, 2)
    assert official["breakdowns"]["task"]["macro"] is None
    assert (content["n"], content["right"]) == (4, 2)
    assert content["breakdowns"]["task"]["macro"] == pytest.approx((1 / 3 + 1) / 2)
    assert content["breakdowns"]["domain"]["groups"].keys() == {"music", "speech"}


def test_with_the_benchmarks_own_file_missing_replies_are_counted_wrong(tmp_path, capsys):
    data = write_json(tmp_path / "mmau.json", [question(number) | {"task": "sound"} for number in (1, 2, 3)])
    theirs = write_json(tmp_path / "theirs.json", [{"id": "q1", "model_prediction": "Man"}, {"id": "q2"}])
    output = tmp_path / "result.json"
    arguments = [str(theirs), "--benchmark", "mmau", "--data", str(data), "--output", str(output)]
    assert main(arguments) == 1
    assert "not every question has a reply" in capsys.readouterr().err
    assert main([*arguments, "--allow-incomplete"]) == 0
    found = json.loads(output.read_text())
    assert found["coverage"] == pytest.approx(1 / 3) and found["counts"]["missing"] == 2
    assert [(rule["n"], rule["right"]) for rule in found["rules"].values()] == [(1, 1), (3, 1)]
    assert found["data_sha256"] == {"mmau.json": hashlib.sha256(data.read_bytes()).hexdigest()}
    assert found["rules"]["content"]["breakdowns"]["task"]["groups"]["sound"]["n"] == 3


def test_questions_left_out_before_asking_are_not_covered(tmp_path, capsys):
    run = write_run(tmp_path / "run", ROWS[:1], left_out={"audio file missing": ["q2", "q3"]})
    assert main([str(run)]) == 1
    assert "2 left out before asking" in capsys.readouterr().out
    assert json.loads((run / "score.json").read_text())["coverage"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"answer": "Woman"}, "1 question (q1) in .* have another question, other options or another answer"),
        (
            {"choices": ["Man", "Woman"]},
            "1 question (q1) in .* have another question, other options or another answer",
        ),
        ({"id": "q9"}, "has 1 question (q1) that .* does not have"),
    ],
)
def test_predictions_about_another_version_are_refused(tmp_path, capsys, changed, complaint):
    run = write_run(tmp_path / "run", ROWS[:1])
    data = write_json(tmp_path / "mmau.json", [question(1) | changed])
    assert main([str(run), "--data", str(data)]) == 1
    message = capsys.readouterr().err
    first, second = complaint.split(".*")
    assert message.count("\n") == 1 and first.strip() in message and second.strip() in message
    assert not (run / "score.json").exists()


def test_hidden_answers_cannot_be_scored_but_submitted(tmp_path, capsys):
    questions = [{**question(number, ""), "audio_id": f"{number}.wav", "dataset": "x"} for number in (1, 2)]
    data = write_json(tmp_path / "mmau-test.json", questions)
    run = write_run(tmp_path / "run", [{**answered(1, "Man"), "answer": None}, {**answered(2, "B"), "answer": None}])
    assert main([str(run)]) == 1
    assert "2 questions (q1, q2) of 2 have no answer" in capsys.readouterr().err
    target = tmp_path / "submission.json"
    assert main([str(run), "--submission", str(target), "--data", str(data)]) == 0
    expected = [row | {"model_prediction": reply} for row, reply in zip(questions, ("Man", "B"))]
    assert json.loads(target.read_text()) == expected
    assert main([str(write_run(tmp_path / "part", ROWS[:1])), "--submission", str(target), "--data", str(data)]) == 1
    assert "1 question (q2) have no reply" in capsys.readouterr().err
    assert json.loads(target.read_text()) == expected


def test_a_submission_takes_the_files_rows_as_they_are(tmp_path):
    """With a byte order mark before them, a null id next to another id, and an id in two Unicode spellings."""
    run = write_run(tmp_path / "run", [answered(1, "Man") | {"id": identity} for identity in ("1", "caf\u00e9")])
    rows = [question(1) | {"id": None, "uniq_id": "1"}, question(1) | {"id": "cafe\u0301"}]
    data, target = tmp_path / "data.json", tmp_path / "submission.json"
    data.write_text(json.dumps(rows), encoding="utf-8-sig")
    assert main([str(run), "--submission", str(target), "--data", str(data)]) == 0
    assert json.loads(target.read_text()) == [row | {"model_prediction": "Man"} for row in rows]


@pytest.mark.parametrize("option", ["--output", "--submission"])
def test_a_folder_in_the_place_of_a_file_is_said_before_anything_is_scored(tmp_path, capsys, option):
    run = write_run(tmp_path / "run")
    assert main([str(run), "--data", "none.json", option, str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"falcon3-audio score: {option} {tmp_path} is a folder; give the name of a file.\n"
    )


def test_ids_and_labels_of_the_benchmarks_file_may_be_written_otherwise(tmp_path):
    labelled = ["(A) Man", "(B) Woman", "(C) Child", "(D) A very old man"]
    theirs = [question(1, labelled[0], labelled) | {"id": "cafe\u0301", "task": "sound", "model_output": "Man"}]
    data = write_json(tmp_path / "data.json", [question(1) | {"id": "caf\u00e9", "task": "sound"}])
    found = score(read_predictions(write_json(tmp_path / "theirs.json", theirs)), "mmau", data)
    assert found["coverage"] == 1 and found["rules"]["content"]["right"] == 1
    for changed in ({"answer": labelled[1]}, {"choices": labelled[::-1]}):
        with pytest.raises(ValueError, match="another question, other options or another answer"):
            score(read_predictions(write_json(tmp_path / "theirs.json", [theirs[0] | changed])), "mmau", data)


def test_what_is_printed(tmp_path, capsys):
    rows = [row | {"groups": row["groups"] | {"task": "[b]odd[/b]"}} for row in ROWS[:2]]
    run = write_run(tmp_path / "run", rows, control="silence")
    assert main([str(run)]) == 0
    told = capsys.readouterr().out
    for words in ("mmau: a/model", "Control: silence", "prompt plain, model commit c0ffee", "d1d1d1d1", "[b]odd[/b]"):
        assert words in told
    assert "2 questions about 2 clips: 0 empty, 2 answered, 0 failed, 0 missing; 0 left out" in told
    content = next(line for line in told.splitlines() if line.strip().startswith("content"))
    assert content.replace("│", " ").split()[1:] == ["2", "100.0", "[34.2,", "100.0]", "0", "0"]
    assert "most frequent position 100.0, longest option 0.0, random option 25.0" in told


@pytest.mark.parametrize(
    "rows, changes, arguments, complaint",
    [
        (
            [{"id": 1, "model_output": "x"}],
            None,
            [],
            "does not name its benchmark; give it with --benchmark: mmau",
        ),
        (ROWS, {}, ["--benchmark", "mmar"], "is a run of 'mmau', not of 'mmar'"),
        (ROWS, {"benchmark": "mmlu"}, [], "is of the unknown benchmark 'mmlu'; give it with --benchmark"),
        (
            ROWS,
            {"benchmark": "air-bench-chat"},
            [],
            "air-bench-chat has open questions, which `falcon3-audio judge` scores",
        ),
        ([answered(1, "x", "a reference", [])], {"benchmark": "jsonl"}, [], "question q1 has no options"),
        ([answered(1, "x", "Dog")], {}, [], "question q1: the answer 'Dog' is none of the options"),
        ([], {}, [], "holds no rows"),
        (ROWS, {}, ["--submission", "x.json"], "give it with --data"),
        (ROWS, {}, ["--data", "no.json"], "no.json does not exist"),
        (ROWS, {}, ["--output", "no/folder/x.json"], "No such file or directory"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, rows, changes, arguments, complaint):
    if changes is None:
        path = write_json(tmp_path / "theirs.json", rows)
    else:
        path = write_run(tmp_path / "run", rows, **changes)
    assert main([str(path), *arguments]) == 1
    message = capsys.readouterr().err
    assert message.startswith("falcon3-audio score: ") and complaint in message and message.count("\n") == 1
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("score.json"))


WITHOUT_TORCH = """
import sys
for name in ("torch", "transformers", "numpy", "scipy", "datasets", "pandas", "jiwer", "soundfile"):
    sys.modules[name] = None
from falcon3_audio.evaluation.score import main
sys.exit(main(sys.argv[1:]))
"""


def test_scores_need_nothing_but_python_and_rich(tmp_path):
    run = write_run(tmp_path / "run", ROWS[:2])
    child = [sys.executable, "-c", WITHOUT_TORCH, str(run)]
    done = subprocess.run(child, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((run / "score.json").read_text())["rules"]["content"]["right"] == 2
    done = subprocess.run([*child, "--rule", "wer"], capture_output=True, text=True)
    assert done.returncode == 1 and "--rule wer needs" in done.stderr and "falcon3-audio[eval]" in done.stderr


@pytest.mark.parametrize("right, n", [(0, 1), (1, 1), (0, 40), (40, 40), (3, 10), (641, 1000)])
def test_wilsons_interval_is_scipys(right, n):
    assert wilson(right, n) == pytest.approx(tuple(binomtest(right, n).proportion_ci(method="wilson")), abs=1e-9)


@pytest.mark.parametrize("right, n", [(2, 1), (-1, 3), (0, 0)])
def test_impossible_counts_are_refused(right, n):
    with pytest.raises(ValueError, match="expected 0 <= right <= n and n >= 1"):
        wilson(right, n)


def group(right, n, first=0, each=1):
    """`n` answers, the first `right` of them right, about clips of `each` questions, numbered from `first`."""
    return [number < right for number in range(n)], [first + number // each for number in range(n)]


def test_the_mean_of_shares_and_its_interval():
    assert mean_of_shares([group(3, 10)]) == (0.3, pytest.approx(wilson(3, 10)))
    mean, (low, high) = mean_of_shares([group(50, 100, 100 * number) for number in range(4)])
    assert mean == 0.5
    assert high - low == pytest.approx((wilson(50, 100)[1] - wilson(50, 100)[0]) / 2)  # four groups: half as wide
    assert mean_of_shares([group(1, 2), group(0, 200, 2)])[0] == 0.25
    low, high = mean_of_shares([group(5, 5), group(0, 5, 5)])[1]
    assert 0.2 < low < 0.5 < high < 0.8
    # Eight questions about a clip say as little as one if all are right or wrong together.
    assert mean_of_shares([group(80, 160, 0, 8), group(40, 160, 20, 8)])[1] == pytest.approx(
        mean_of_shares([group(10, 20), group(5, 20, 20)])[1], abs=0.03
    )
    assert mean_of_shares([group(5, 10, 0, 5), group(10, 20, 2)]) == (0.5, None)  # two clips are too few
    with pytest.raises(ValueError, match="no groups"):
        mean_of_shares([])


def test_groups_that_share_clips_are_no_independent_ones():
    """Each clip has a question in each group, with equal answers: the mean of the groups is the share of clips."""
    halves = [group(20, 40), group(20, 40)]
    mean, (low, high) = mean_of_shares(halves)
    assert mean == 0.5 and (low, high) == pytest.approx(wilson(20, 40), abs=0.02)
    assert mean_of_shares([group(40, 40), group(40, 40)]) == (1.0, None)


def clustered(clips, right, each=8):
    """`each` questions about every clip, of which the first `right` have all answers right."""
    return [
        answered(number, "Man" if number // each < right else "Woman", task="sound", difficulty=str(number % each))
        | {"audio": [f"{number // each}.wav"]}
        for number in range(clips * each)
    ]


def test_questions_that_share_clips_are_not_independent(tmp_path):
    """160 questions about 20 clips, each all right or all wrong, count like 20 questions; `study` agrees."""
    run = write_run(tmp_path / "run", clustered(20, 11))
    found = score(read_predictions(run))
    assert found["clips"] == 20 and found["counts"]["questions"] == 160
    for rule in found["rules"].values():
        assert rule["accuracy"] == 0.55 and rule["interval"] == pytest.approx((0.35, 0.75), abs=1e-9)
        assert rule["breakdowns"]["task"]["groups"]["sound"]["interval"] == rule["interval"]
        assert rule["breakdowns"]["task"]["interval"] == pytest.approx(rule["interval"])
        # One question per clip: Wilson's interval again; the groups share all clips.
        assert rule["breakdowns"]["difficulty"]["groups"]["0"]["interval"] == pytest.approx(wilson(11, 20))
        assert rule["breakdowns"]["difficulty"]["interval"] == pytest.approx((0.35, 0.75), abs=0.051)
    right = np.array([[row["reply"] == "Man" for row in clustered(20, 11)]]).astype(int)
    assert accuracy(right, np.arange(160) // 8)["interval"] == found["rules"]["content"]["interval"]
    few = score(read_predictions(write_run(tmp_path / "few", clustered(5, 3))))["rules"]["content"]
    assert (few["accuracy"], few["interval"]) == (0.6, None)


def test_clips_are_those_of_the_benchmarks_file_where_the_replies_name_none(tmp_path):
    rows = clustered(20, 11)
    data = [question(n) | {"audio_id": f"{n // 8}.wav", "task": "sound"} for n in range(160)]
    write_json(tmp_path / "data.json", data)
    theirs = write_json(tmp_path / "theirs.json", [{"id": row["id"], "model_output": row["reply"]} for row in rows])
    found = score(read_predictions(theirs), "mmau", tmp_path / "data.json")
    assert found["clips"] == 20 and found["rules"]["content"]["interval"] == pytest.approx((0.35, 0.75), abs=1e-9)


def test_the_key_that_was_read_is_said_and_chosen(tmp_path, capsys):
    rows = [question(n) | {"task": "sound", "model_output": "Woman", "model_prediction": "Man"} for n in range(4)]
    rows[0]["model_output"] = "Man"
    theirs = write_json(tmp_path / "theirs.json", rows)
    assert main([str(theirs), "--benchmark", "mmau"]) == 0
    told = capsys.readouterr().out
    assert "replies under 'model_output'" in told
    assert (
        "Warning: replies are read from 'model_output'; 'model_prediction' differs in 3 of 4 rows; --key chooses"
        in told
    )
    found = json.loads((tmp_path / "theirs.score.json").read_text())
    assert found["predictions"]["key"] == "model_output" and found["rules"]["content"]["right"] == 1
    assert len(found["warnings"]) == 1
    assert main([str(theirs), "--benchmark", "mmau", "--key", "model_prediction"]) == 0
    found = json.loads((tmp_path / "theirs.score.json").read_text())
    assert found["predictions"]["key"] == "model_prediction" and found["rules"]["content"]["right"] == 4
    capsys.readouterr()
    assert main([str(theirs), "--benchmark", "mmau", "--key", "said"]) == 1
    assert "has the key 'said'; they have id, question, choices, answer, groups" in capsys.readouterr().err


def test_scores_of_several_files_in_a_folder_do_not_replace_each_other(tmp_path, capsys):
    rows = [question(1) | {"task": "sound", "response": "Man"}]
    for name in ("a.json", "b.json"):
        assert main([str(write_json(tmp_path / name, rows)), "--benchmark", "mmau"]) == 0
    paths = [json.loads((tmp_path / f"{name}.score.json").read_text())["predictions"]["path"] for name in "ab"]
    assert paths == [str(tmp_path / "a.json"), str(tmp_path / "b.json")]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    capsys.readouterr()
    assert main([str(tmp_path / "a.jsonl"), "--benchmark", "mmau"]) == 1
    assert "is the score of a.json, not of a.jsonl; give a file with --output" in capsys.readouterr().err


def test_the_bootstrap_of_a_rate():
    errors, sizes = [0, 1, 1, 0, 1] * 80, [1] * 400
    low, high = bootstrap_rate(errors, sizes)
    assert (low, high) == bootstrap_rate(errors, sizes) != bootstrap_rate(errors, sizes, seed=1)
    assert (low, high) == pytest.approx(wilson(240, 400), abs=0.012)
    by_row, by_clip = bootstrap_rate([0, 2, 1, 0] * 6, [1, 2, 1, 1] * 6, [n // 2 for n in range(24)]), [2, 1] * 6
    assert by_row == bootstrap_rate(by_clip, [3, 2] * 6) is not None
    # As for shares: there is no interval with few clips, or if all draws are equal.
    assert bootstrap_rate(errors[:5], sizes[:5]) is None and bootstrap_rate(errors[:6], sizes[:6]) is not None
    assert bootstrap_rate(errors[:6], sizes[:6], [0, 0, 1, 2, 3, 4]) is None
    assert bootstrap_rate([0] * 40, [1] * 40) is None and bootstrap_rate([2, 3] * 9, [4, 6] * 9) is None
    with pytest.raises(ValueError, match="got 1 error counts for 2 rows"):
        bootstrap_rate([1], [1, 1])


def test_groups_of_ones_own_questions_hold_all_of_them(tmp_path):
    """Also those without a reply: two of four questions were answered, both right."""
    rows = [
        {"id": f"q{n}", "audio": "a.wav", "question": "Who?", "choices": VOICES, "answer": "Man", "place": "city"}
        for n in range(4)
    ]
    write_json(tmp_path / "own.json", rows)
    said = [answered(n, "Man", place="city") for n in range(2)]
    run = write_run(tmp_path / "run", said, benchmark="jsonl")
    found = score(read_predictions(run), data=tmp_path / "own.json")["rules"]["content"]
    (city,) = found["breakdowns"]["place"]["groups"].values()
    assert (city["n"], city["accuracy"]) == (4, 0.5)


def test_replies_to_a_question_that_was_worded_otherwise_are_refused(tmp_path, capsys):
    write_json(tmp_path / "new.json", [question(1) | {"question": "Who speaks?"}])
    run = write_run(tmp_path / "run", [answered(1, "Man")])
    assert main([str(run), "--data", str(tmp_path / "new.json")]) == 1
    assert "have another question" in capsys.readouterr().err


def test_a_file_without_replies_is_no_score_of_nought(tmp_path, capsys):
    rows = [{"id": "1", "choices": ["a dog", "a bell"], "answer": "a bell", "my_reply": "a bell"}]
    (tmp_path / "theirs.json").write_text(json.dumps(rows))
    assert main(["--benchmark", "mmau", str(tmp_path / "theirs.json")]) == 1
    assert "has a reply under model_output," in capsys.readouterr().err
    assert main(["--benchmark", "mmau", str(tmp_path / "theirs.json"), "--key", "my_reply"]) == 0
