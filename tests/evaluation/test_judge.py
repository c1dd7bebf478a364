"""Judging, against a stub server that can fail. Judges with known biases are in test_length_control.py."""

import hashlib
import json
import os
import re
import signal
from collections import Counter
from dataclasses import asdict, replace

import pytest
from child import in_child
from stub_endpoint import Answer, StubEndpoint

from falcon3_audio.evaluation.endpoint import Endpoint
from falcon3_audio.evaluation.judge import main
from falcon3_audio.evaluation.judge_prompts import RUBRICS
from falcon3_audio.evaluation.predictions import ANSWERED, FAILED, Prediction


KEY = "sk-secret-0123456789"


def prediction(number, reply="a dog barks", **changes):
    row = Prediction(
        id=f"q{number}",
        status=ANSWERED,
        reply=reply,
        question=f"What is heard in clip {number}?",
        answer=f"A dog barks {number} times.",
        audio=(f"clip{number}.wav",),
        groups={"task": "sound_QA"},
        description=f"dog barking, {number} times",
    )
    return replace(row, **changes)


def write(folder, *rows, run=None):
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(run or {}))
    return folder


def run(folder, stub, *options, judges=("m",)):
    """Exit status and output folder."""
    out = folder / "out"
    status = main([str(folder), "--endpoint", stub.url, "--output-dir", str(out), *options, "--judge", *judges])
    return status, out


def lines(out):
    return [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]


def asked(stub):
    return Counter(json.dumps([request.body["model"], request.body["messages"]]) for request in stub.requests)


def test_both_orders_count_and_the_sums_are_right(tmp_path, capsys):
    rows = [prediction(0, "yes"), prediction(1, "a dog barks once"), prediction(2, "")]
    folder = write(tmp_path / "run", *rows, run={"model": "falcon", "decoding": {"max_new_tokens": 9}})
    # By clip: scores of reference and model with the reference first, then with the reference second.
    scores = {0: ((8, 4), (6, 6)), 1: ((7, 9), (6, 9)), 2: ((9, 1), (9, 1))}

    def reply(body):
        text = body["messages"][0]["content"]
        number = int(re.search(r"clip (\d)", text)[1])
        reference_first = "A dog barks" in re.search(r"<answer_1>\n(.*)\n", text)[1]
        assert f"dog barking, {number} times" in text and rows[number].reply in text
        if reference_first:
            return "{} {}".format(*scores[number][0])
        return "**{1}  {0}**\n".format(*scores[number][1])

    with StubEndpoint(reply) as stub:
        status, out = run(folder, stub)
    assert status == 0 and len(stub.requests) == 6
    assert all(set(request.body) == {"model", "messages", "temperature", "max_tokens"} for request in stub.requests)
    assert {request.body["temperature"] for request in stub.requests} == {0}
    result = json.loads((out / "judge.json").read_text())
    block = result["judges"]["m"]
    assert result["all judges"] == block and (block["n"], block["judged"], block["coverage"]) == (3, 3, 1)
    assert block["score"] == {"value": pytest.approx((5 + 9 + 1) / 3), "interval": None}
    assert block["lead over the reference"]["value"] == pytest.approx((-2 + 2.5 - 8) / 3)
    # Swapping the answers changes only the first question's verdict.
    assert block["order"]["swap flips"] == pytest.approx(1 / 3)
    assert block["order"]["points for standing first"] == pytest.approx((2 + 0.5 + 0) / 3)
    assert block["length"] == {
        "mean words": pytest.approx((1 + 4 + 0) / 3),
        "mean words of the references": 5,
        "empty answers": 1,
        "spearman of score and words": pytest.approx(1),
    }
    assert block["by task"] == {"means": {"sound_QA": 5}, "macro": 5, "AIR-Bench": {"sound": 5}}
    assert "3 clips; at least 10" in block["score at equal length"]["reason"] and block["failures"] == {}
    assert [(line["id"], line["score"], line["judges"]["m"]["replies"]) for line in lines(out)] == [
        ("q0", 5, ["8 4", "**6  6**\n"]),
        ("q1", 9, ["7 9", "**9  6**\n"]),
        ("q2", 1, ["9 1", "**1  9**\n"]),
    ]
    said = capsys.readouterr().out
    assert "3 of 3 answers judged (100.0%)" in said and "swapping changes 33.3% of the verdicts" in said

    provenance = result["provenance"]
    content = (folder / "predictions.jsonl").read_bytes()
    assert provenance["predictions_sha256"] == hashlib.sha256(content).hexdigest()
    assert provenance["run"] == {"model": "falcon", "decoding": {"max_new_tokens": 9}}
    assert provenance["judges_as_reported"] == {"m": ["stub-2026"]} and provenance["endpoint"] == [stub.url]
    template = RUBRICS["official"].template
    assert provenance["template_sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert {"falcon3-audio", "openai", "numpy", "scipy"} < set(provenance["versions"])


def test_published_files_and_the_averages_that_air_bench_publishes(tmp_path):
    tasks = {
        "speech_QA": 3,
        "speech_dialogue_QA": 5,
        "sound_QA": 6,
        "sound_generation_QA": 6,
        "music_QA": 7,
        "music_generation_analysis_QA": 7,
        "speech_and_sound_QA": 2,
        "speech_and_music_QA": 4,
    }
    rows = [
        {"uniq_id": n, "path": "1.wav", "question": f"clip {n}", "answer_gt": "a dog", "task_name": task}
        | {"dataset_name": "d", "meta_info": f"worth {tasks[task]}", "response": "a cat"}
        for n, task in enumerate([*tasks, "speech_QA", "speech_QA"])  # three of speech_QA, one of the others
    ]
    file = tmp_path / "published.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with StubEndpoint(lambda body: "{0} {0}".format(re.search(r"worth (\d)", str(body))[1])) as stub:
        assert main([str(file), "--endpoint", stub.url, "--judge", "m"]) == 0
    block = json.loads((tmp_path / "published.judge-official" / "judge.json").read_text())["judges"]["m"]
    by_task = block["by task"]
    assert by_task["means"] == tasks and by_task["macro"] == 5
    assert by_task["AIR-Bench"] == {
        "speech": 3.5,  # the mean over questions: (3 * 3 + 5) / 4
        "sound": 6,
        "music": 7,
        "speech_and_sound": 2,
        "speech_and_music": 4,
        "mixed": 3,
        "average": (3.5 + 6 + 7 + 3) / 4,
    }
    # "1.wav" is a different clip in each task.
    assert "answers about 8 clips" in block["score at equal length"]["reason"]


def test_questions_that_share_a_clip_are_one_draw_of_the_bootstrap(tmp_path):
    """Also if they share one of several: ten pairs about (a, b) and (b, c) have the interval of ten clips."""

    def reply(body):
        number = int(re.search(r"clip (\d+)", str(body))[1])
        return f"5 {number // 2 + 1}"  # the same for both questions of a pair

    def block(name, clips):
        rows = [prediction(number, audio=audio) for number, audio in enumerate(clips)]
        with StubEndpoint(reply) as stub:
            status, out = run(write(tmp_path / name, *rows), stub)
        assert status == 0
        return json.loads((out / "judge.json").read_text())["judges"]["m"]

    names = [f"{number}.wav" for number in range(30)]
    chained = [tuple(names[3 * pair + i : 3 * pair + i + 2]) for pair in range(10) for i in (0, 1)]
    together = block("chained", chained)["score"]
    assert together["interval"] and together == block("one", [(names[n // 2],) for n in range(20)])["score"]
    assert together["interval"] != block("apart", [(name,) for name in names[:20]])["score"]["interval"]
    reason = block("few", chained[:4])["score at equal length"]["reason"]
    assert reason == "answers about 2 clips; at least 10 are needed"


def test_the_correctness_rubric_counts_claims(tmp_path):
    folder = write(tmp_path / "run", prediction(0, "yes"), prediction(1, "a cat, at night"), prediction(2, "a dog"))
    said = {
        0: "1. It is a dog: right\n\nright: 3, contradicted: 0, missing: 0",
        1: "**Right: 1, Contradicted: 2, Missing: 1**",
        2: "right: 0, contradicted: 0, missing: 0",
    }

    def reply(body):
        text = body["messages"][0]["content"]
        number = int(re.search(r"clip (\d)", text)[1])
        assert f"<reference>\nA dog barks {number} times.\n</reference>" in text
        return said[number]

    with StubEndpoint(reply) as stub:
        status, out = run(folder, stub, "--rubric", "correctness")
    block = json.loads((out / "judge.json").read_text())["judges"]["m"]
    assert status == 1 and len(stub.requests) == 3
    assert [line["score"] for line in lines(out)] == [10, 2.5, None]
    assert block["failures"] == {"unreadable reply": ["q2"]} and "no claim" in lines(out)[2]["reason"]
    assert block["claims"] == {"right": 4, "contradicted": 2, "missing": 1}
    assert block["score"]["value"] == 6.25 and "order" not in block and "lead over the reference" not in block


def test_several_judges(tmp_path, capsys):
    """The mean is over answers that all judges rated; answers that one of them left out are named."""
    folder = write(tmp_path / "run", *map(prediction, range(3)))
    scores = {("a", 0): "2", ("a", 1): "4", ("a", 2): "9", ("b", 0): "4", ("b", 1): "8", ("b", 2): "?"}

    def reply(body):
        score = scores[body["model"], int(re.search(r"clip (\d)", body["messages"][0]["content"])[1])]
        return Answer(f"{score} {score}", model=f"{body['model']}-2026")

    with StubEndpoint(reply) as stub:
        status, out = run(folder, stub, judges=("a", "--judge", "b"))
    result = json.loads((out / "judge.json").read_text())
    assert status == 1 and "b: unreadable reply: 1 question (q2)" in capsys.readouterr().err
    assert {name: block["score"]["value"] for name, block in result["judges"].items()} == {"a": 5, "b": 6}
    assert result["all judges"]["score"]["value"] == 4.5 and result["all judges"]["judged"] == 2
    assert result["agreement"] == [
        {"judges": ["a", "b"], "n": 2, "spearman": pytest.approx(1), "mean absolute difference": 3}
    ]
    assert [line["score"] for line in lines(out)] == [3, 6, None]
    assert result["provenance"]["judges_as_reported"] == {"a": ["a-2026"], "b": ["b-2026"]}


def test_answers_without_a_score_are_counted_named_and_make_the_run_fail(tmp_path, capsys):
    failed = prediction(4, None, status=FAILED, error="out of memory")
    folder = write(tmp_path / "run", *map(prediction, range(4)), failed)
    broken = {1: "I like both.", 2: Answer("too long", status=400), 3: Answer("7 8", finish_reason="length")}

    def reply(body):
        text = body["messages"][0]["content"]
        first = "A dog barks" in re.search(r"<answer_1>\n(.*)\n", text)[1]
        return broken.get(int(re.search(r"clip (\d)", text)[1]), "6 6") if first else "6 6"

    with StubEndpoint(reply) as stub:
        status, out = run(folder, stub)
        assert status == 1
        first = len(stub.requests)
        block = json.loads((out / "judge.json").read_text())["judges"]["m"]
        assert block["failures"] == {
            "unreadable reply": ["q1"],
            "endpoint error": ["q2"],
            "reply cut off": ["q3"],
            "no answer from the model": ["q4"],
        }
        assert (block["n"], block["judged"], block["coverage"]) == (5, 1, 0.2) and block["score"]["value"] == 6
        err = capsys.readouterr().err
        assert (
            "not every answer has a score. m: unreadable reply: 1 question (q1); m: endpoint error: 1 question" in err
        )
        reasons = [line.get("reason", "") for line in lines(out)]
        assert reasons[0] == "" and "'I like both.'" in reasons[1] and "too long" in reasons[2]
        assert "4096 tokens" in reasons[3] and reasons[4] == "out of memory"
        # Asked again: what the endpoint did not answer, and both orders of what could not be read. With
        # --allow-incomplete, the run succeeds.
        broken.pop(2)
        status, out = run(folder, stub, "--allow-incomplete")
        assert status == 0 and len(stub.requests) == first + 1 + 2 + 2
        assert json.loads((out / "judge.json").read_text())["judges"]["m"]["judged"] == 2
        broken.clear()
        run(folder, stub, "--allow-incomplete")
        assert json.loads((out / "judge.json").read_text())["judges"]["m"]["judged"] == 4
        asked = len(stub.requests)
        run(folder, stub, "--allow-incomplete")
        assert len(stub.requests) == asked


def test_if_no_answer_has_a_score_there_is_none(tmp_path, capsys):
    folder = write(tmp_path / "run", prediction(0))
    with StubEndpoint(lambda body: "no") as stub:
        status, out = run(folder, stub, "--allow-incomplete")
    assert status == 0 and "score" not in json.loads((out / "judge.json").read_text())["all judges"]
    assert "0 of 1 answers judged (0.0%)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "reply, expected",
    [
        ("7 8", (7, 8)),
        (" 7.5, 10 \n", (7.5, 10)),
        ("8 3\n\nThe first answer is better.", (8, 3)),
        ("Scores:\n`8 3`", (8, 3)),
        ("8 3\nso:\n8 3", (8, 3)),
        ("8 3\nno:\n8 4", "2 lines that differ"),
        ("8/10", "no such line"),
        ("8,3", "no such line"),
        ("8", "no such line"),
        ("8 3 5", "no such line"),
        ("Answer 1: 8 Answer 2: 3", "no such line"),
        ("-8 3", "no such line"),
        ("0 5", "expected 1 to 10"),
        ("5 11", "expected 1 to 10"),
    ],
)
def test_replies_that_are_no_two_scores_are_not_guessed_at(reply, expected):
    official = RUBRICS["official"].combine
    if isinstance(expected, str):
        for replies in ([reply, "5 5"], ["5 5", reply]):
            with pytest.raises(ValueError, match=expected):
                official(replies)
    else:
        judgement = official([reply, "5 5"])
        assert (judgement.reference_score, judgement.score) == ((expected[0] + 5) / 2, (expected[1] + 5) / 2)


def test_replies_without_three_counts():
    for reply in ("", "right: 1, missing: 2", "right: 1, contradicted: -, missing: 0", "all right"):
        with pytest.raises(ValueError, match="expected a line with three counts"):
            RUBRICS["correctness"].combine([reply])


@pytest.mark.parametrize(
    "reply", ["4", "Score: 4.", "**score: 4/5**", "<think>score: 1?</think>score: 4", "It is good.\nscore: 4 / 5"]
)
def test_one_score_in_other_forms(reply):
    assert RUBRICS["voicebench"].combine([reply]).score == 4


@pytest.mark.parametrize("reply", ["4.5", "score: 4/10", "4 3", "score: 4\nscore: 3", "<think>score: 4"])
def test_replies_without_one_score(reply):
    with pytest.raises(ValueError, match="expected a line with a score"):
        RUBRICS["voicebench"].combine([reply])


def test_four_scores_out_of_five():
    said = "correctness: 5/5, relevance: 4/5, completeness: 3/5, clarity: 4/5"
    assert RUBRICS["mmau-pro"].combine([said]).score == 4


def test_thoughts_of_the_model_are_not_judged(tmp_path):
    folder = write(tmp_path / "run", prediction(0, "<think>The clip is short.</think>\nA dog barks."))
    with StubEndpoint(lambda body: "5 5") as stub:
        status, out = run(folder, stub)
    assert status == 0 and not any("The clip is short" in str(request.body) for request in stub.requests)
    assert all("A dog barks." in str(request.body) for request in stub.requests)


def test_answers_cannot_change_the_form():
    """Braces and field names in an answer stay as they are."""
    row = prediction(0, "{question} {second} {0}")
    for rubric in RUBRICS.values():
        assert all("{question} {second} {0}" in prompt for prompt in rubric.prompts(row))


@pytest.mark.parametrize("lacking", ["question", "description", "answer"])
def test_the_judge_must_know_what_was_asked_heard_and_right(lacking, tmp_path, capsys):
    rows = [prediction(number, **({lacking: ""} if number else {})) for number in range(8)]
    folder = write(tmp_path / "run", *rows)
    with StubEndpoint(lambda body: "5 5") as stub:
        status, out = run(folder, stub, "--allow-incomplete")
    assert status == 1 and not stub.requests and not out.exists()
    err = capsys.readouterr().err
    assert f"7 questions (q1, q2, q3, ...) of 8 have no '{lacking}'" in err and err.count("\n") == 1


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    folder = write(tmp_path / "run", *map(prediction, range(6)))
    with StubEndpoint(lambda body: "5 6") as stub:

        def killed():
            ask, times = Endpoint.ask, []

            def until_the_sixth(self, messages, **sampling):
                times.append(1)
                if len(times) == 6:
                    os.kill(os.getpid(), signal.SIGKILL)
                return ask(self, messages, **sampling)

            monkeypatch.setattr(Endpoint, "ask", until_the_sixth)
            run(folder, stub, "--concurrency", "1")

        assert in_child(killed) == -signal.SIGKILL
        assert len(stub.requests) == 5 and not (folder / "out" / "judge.json").exists()
        assert run(folder, stub)[0] == 0
        assert len(asked(stub)) == 12 and set(asked(stub).values()) == {1}
        # The same run again, and a run with another answer: only what is new is asked.
        assert run(folder, stub)[0] == 0 and len(stub.requests) == 12
        rows = [prediction(number) for number in range(5)] + [prediction(5, "another answer")]
        changed = write(tmp_path / "changed", *rows)
        (folder / "out").rename(changed / "out")
        assert run(changed, stub)[0] == 0 and len(stub.requests) == 14
        assert run(changed, stub, judges=("other",))[0] == 0 and len(stub.requests) == 26  # not asked before


def test_the_same_question_is_asked_once(tmp_path):
    folder = write(tmp_path / "run", prediction(0), prediction(0, id="twin"))
    with StubEndpoint(lambda body: "5 6") as stub:
        status, out = run(folder, stub)
    assert status == 0 and len(stub.requests) == 2
    assert [line["score"] for line in lines(out)] == [5.5, 5.5]


def test_an_endpoint_that_gives_up_stops_the_run_and_what_it_said_is_kept(tmp_path, capsys):
    folder = write(tmp_path / "run", *map(prediction, range(40)))
    quota = [3]

    def reply(body):
        quota[0] -= 1
        return "5 6" if quota[0] >= 0 else Answer("quota used up", status=403)

    with StubEndpoint(reply) as stub:
        status, out = run(folder, stub, "--concurrency", "1")
        err = capsys.readouterr().err
        assert status == 1 and "quota used up" in err and "run the same command again" in err and err.count("\n") == 1
        assert len(stub.requests) < 10 and not (out / "judge.json").exists()
        assert len(list((out / "replies").glob("*.json"))) == 3
        quota[0] = 1000
        assert run(folder, stub)[0] == 0
    assert len(stub.requests) < 90 and len(list((out / "replies").glob("*.json"))) == 80


def test_a_damaged_reply_is_named(tmp_path, capsys):
    folder = write(tmp_path / "run", prediction(0))
    with StubEndpoint(lambda body: "5 6") as stub:
        _, out = run(folder, stub)
        damaged = sorted((out / "replies").iterdir())[0]
        damaged.write_text(damaged.read_text()[:10])
        assert run(folder, stub)[0] == 1
        assert f"{damaged} is damaged" in capsys.readouterr().err
        damaged.unlink()
        assert run(folder, stub)[0] == 0 and len(stub.requests) == 3


def test_the_key_is_in_no_file_and_no_message(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    folder = write(tmp_path / "run", *map(prediction, range(3)))
    broken = {1: Answer(f"bad request with {KEY}", status=400)}

    def reply(body):
        return broken.get(int(re.search(r"clip (\d)", body["messages"][0]["content"])[1]), "5 6")

    with StubEndpoint(reply, key=KEY) as stub:
        status, out = run(folder, stub, "--api-key-env", "JUDGE_KEY", "--allow-incomplete")
        assert status == 0 and {request.key for request in stub.requests} == {KEY}
        assert "bad request with ***" in lines(out)[1]["reason"]
    with StubEndpoint(reply, key="another") as stub:  # its error message repeats the key
        assert run(folder, stub, "--api-key-env", "JUDGE_KEY")[0] == 1
    said = capsys.readouterr()
    assert "environment variable JUDGE_KEY" in said.err and KEY not in said.out + said.err
    assert not list(out.rglob("*.tmp"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2 + 2 + 4 and not any(KEY.encode() in path.read_bytes() for path in files)


def test_what_is_wrong_with_a_command_is_one_line(tmp_path, capsys):
    folder = write(tmp_path / "run", prediction(0))

    def said(*arguments):
        assert main([str(argument) for argument in arguments]) == 1
        err = capsys.readouterr().err
        assert err.startswith("falcon3-audio judge: ") and err.count("\n") == 1
        return err

    url = ("--endpoint", "http://127.0.0.1:9/v1", "--judge", "m")
    assert "each judge once" in said(folder, *url, "m")
    assert "1 or more requests at once" in said(folder, *url, "--concurrency", 0)
    assert "does not exist" in said(tmp_path / "nowhere", *url)
    assert "is not a URL" in said(folder, "--endpoint", "here", "--judge", "m")
    (folder / "file").write_text("mine")
    assert "file" in said(folder, *url, "--output-dir", folder / "file")
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no predictions" in said(tmp_path / "empty.jsonl", *url)


def test_questions_that_were_left_out_before_asking_are_not_covered(tmp_path, capsys):
    with StubEndpoint(lambda body: "6 5") as stub:
        folder = write(
            tmp_path / "run", prediction(1), prediction(2), run={"left_out": {"audio file missing": ["q3", "q4"]}}
        )
        status, out = run(folder, stub)
    result = json.loads((out / "judge.json").read_text())["judges"]["m"]
    assert status == 1 and (result["n"], result["judged"], result["coverage"]) == (4, 2, 0.5)
    assert "left out before asking, audio file missing: 2 questions (q3, q4)" in capsys.readouterr().err


def test_another_endpoint_is_asked_for_itself(tmp_path):
    folder = write(tmp_path / "run", prediction(1))
    for _ in range(2):  # two servers with the same model name
        with StubEndpoint(lambda body: "6 5") as stub:
            run(folder, stub)
            assert len(stub.requests) == 2
