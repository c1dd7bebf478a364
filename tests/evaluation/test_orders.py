"""Options in other orders: which are asked, and how often replies agree, against numbers worked out by hand."""

from itertools import permutations

import pytest
from evaluation_runs import run_of
from stub_endpoint import StubEndpoint

from falcon3_audio.evaluation.endpoint import Endpoint
from falcon3_audio.evaluation.generate import generate
from falcon3_audio.evaluation.orders import ORDER, consistency, in_orders
from falcon3_audio.evaluation.predictions import ANSWERED, FAILED, Prediction, read_predictions
from falcon3_audio.evaluation.questions import Clip, Question, QuestionSet
from falcon3_audio.evaluation.remote_model import RemoteModel
from falcon3_audio.evaluation.score import main as score_main
from falcon3_audio.evaluation.score import score
from falcon3_audio.evaluation.wilson import wilson


def question(identity, *choices):
    clip = Clip(f"{identity}.wav", lambda: b"")
    return Question(identity, (clip,), "Which?", choices, choices[-1] if choices else "open", {"task": "sound"})


def asked(shuffled, *questions, seed=0):
    return in_orders(QuestionSet("jsonl", questions, {}), shuffled, seed).questions


def test_each_order_is_another_and_the_seed_gives_it_again():
    first, *others = asked(3, question("a", "dog", "cat", "cow", "hen"))
    assert (first.id, first.choices, first.groups) == (
        *("a", ("dog", "cat", "cow", "hen")),
        {"task": "sound", ORDER: "as published"},
    )
    assert [other.id for other in others] == ["a#1", "a#2", "a#3"]
    assert [other.groups[ORDER] for other in others] == ["1", "2", "3"]
    orders = {other.choices for other in (first, *others)}
    assert len(orders) == 4 and orders <= set(permutations(first.choices))
    assert {other.answer for other in others} == {"hen"} and {other.audio for other in others} == {first.audio}
    assert asked(3, question("a", "dog", "cat", "cow", "hen")) == (first, *others)
    assert asked(2, question("a", "dog", "cat", "cow", "hen"))[1:] == tuple(others[:2])
    several = {asked(1, question("a", "dog", "cat", "cow", "hen"), seed=seed)[1].choices for seed in range(9)}
    assert len(several) > 1


def test_no_order_is_asked_twice():
    two = asked(5, question("a", "dog", "cat"))
    assert [one.choices for one in two] == [("dog", "cat"), ("cat", "dog")]
    three = asked(9, question("a", "dog", "cat", "cow"))
    assert sorted(one.choices for one in three) == sorted(permutations(("dog", "cat", "cow")))


def test_open_questions_are_asked_once():
    assert [one.id for one in asked(2, question("a"), question("b", "dog", "cat", "cow"))] == ["a", "b", "b#1", "b#2"]
    with pytest.raises(ValueError, match="got 2 orders; expected 1 or more, of questions that have options"):
        asked(2, question("a"))


def reply(identity, said, order="as published", status=ANSWERED):
    text = None if status == FAILED else said
    return Prediction(identity, status, text, choices=("dog", "cat", "cow"), answer="dog", groups={ORDER: order})


def test_the_rate_is_the_share_of_pairs_that_mean_the_same():
    rows = [
        # dog, dog, cat: one of three pairs agrees. The option counts, not its position.
        *(reply("a", "dog"), reply("a#1", "The dog.", "1"), reply("a#2", "cat", "2")),
        # Always the same, though wrong.
        *(reply("b", "cow"), reply("b#1", "cow", "1"), reply("b#2", "cow", "2")),
        # Replies that name no option agree with nothing, and neither do missing replies.
        *(reply("c", "no idea"), reply("c#1", "no idea", "1"), reply("c#2", "", "2", FAILED)),
    ]
    found = consistency(rows, [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert (found["questions"], found["pairs"], found["rate"]) == (3, 9, pytest.approx(4 / 9))
    single = consistency(
        [reply("a", "dog"), reply("a#1", "dog", "1"), reply("b", "dog"), reply("b#1", "cat", "1")], [0, 0, 1, 1]
    )
    assert (single["rate"], single["interval"]) == (0.5, wilson(1, 2))
    assert consistency([reply("a", "dog")], [0]) == {"questions": 1, "pairs": 0, "rate": None, "interval": None}


def test_a_model_that_takes_the_first_option_is_found_out(tmp_path, capsys, monkeypatch):
    questions = QuestionSet(
        "jsonl", tuple(question(name, "dog", "cat", "cow") for name in "abcdef"), {"mine.jsonl": "0"}
    )
    monkeypatch.setattr("falcon3_audio.evaluation.remote_model.as_wav", lambda data, name: b"RIFF")

    def first(body):
        return body["messages"][0]["content"][-1]["text"].split("\n")[1:2][0] if "Which" in str(body) else "noise"

    with StubEndpoint(first) as stub:
        model = RemoteModel(Endpoint(stub.url, "m"), workers=1)
        generate(questions, model, tmp_path / "out", "plain", seed=5, shuffled_orders=2)
    run = run_of(tmp_path / "out")
    assert (run["shuffled_orders"], run["seed"], run["statuses"]) == (2, 5, {"answered": 18})
    found = read_predictions(tmp_path / "out")
    result = score(found)
    assert result["title"] == "Own questions in 3 orders of the options" and result["coverage"] == 1
    orders = result["rules"]["content"]["breakdowns"][ORDER]["groups"]
    assert list(orders) == ["1", "2", "as published"] and {part["n"] for part in orders.values()} == {6}
    assert orders["as published"]["accuracy"] == 0  # the right option is always the last
    # By hand from the orders that were drawn: the number of pairs of orders with the same first option.
    firsts = {name: [row.choices[0] for row in found.rows if row.id[0] == name] for name in "abcdef"}
    same = sum((a == b) + (a == c) + (b == c) for a, b, c in firsts.values())
    assert result["consistency"]["rate"] == pytest.approx(same / 18) and same < 12
    assert score_main([str(tmp_path / "out")]) == 0
    assert f"the same option in two orders of the options: {100 * same / 18:.1f} %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="several orders of the options; score it without --data"):
        score(found, data=tmp_path / "mine.jsonl")
