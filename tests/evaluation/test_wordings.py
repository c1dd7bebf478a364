"""Questions in other words: what is asked, and how often replies agree, against numbers worked out by hand."""

import json
from dataclasses import replace

import pytest
from benchmark_files import write_lines
from evaluation_runs import run_of
from stub_endpoint import StubEndpoint

from falcon3_audio.evaluation.endpoint import Endpoint
from falcon3_audio.evaluation.evaluate import parse
from falcon3_audio.evaluation.generate import generate
from falcon3_audio.evaluation.orders import WORDING
from falcon3_audio.evaluation.predictions import read_predictions
from falcon3_audio.evaluation.questions import Clip, Question, QuestionSet
from falcon3_audio.evaluation.remote_model import RemoteModel
from falcon3_audio.evaluation.score import main as score_main
from falcon3_audio.evaluation.score import score
from falcon3_audio.evaluation.wordings import in_wordings, read_paraphrases


CLIP = Clip("a.wav", lambda: b"")
CHOICES = ("dog", "cat")
QUESTIONS = QuestionSet(
    "jsonl",
    (
        Question("a", (CLIP,), "What barks?", CHOICES, "dog", {"task": "sound"}),
        Question("b", (CLIP,), "What meows?", CHOICES, "cat", {"task": "sound"}),
        Question("c", (CLIP,), "What else?", answer="nothing"),
    ),
    {"mine.jsonl": "0"},
)


def paraphrases(folder, *rows):
    return read_paraphrases(write_lines(folder / "words.jsonl", list(rows)))


def test_each_wording_is_a_question_with_the_same_options(tmp_path):
    words = paraphrases(
        tmp_path,
        {"id": "a", "questions": ["Which one barks?", "Who barks?"]},
        {"id": "b", "questions": ["Who meows?"]},
    )
    asked = in_wordings(QUESTIONS, words).questions
    assert [(row.id, row.question, row.groups[WORDING]) for row in asked] == [
        ("a", "What barks?", "as published"),
        ("a#1", "Which one barks?", "1"),
        ("a#2", "Who barks?", "2"),
        ("b", "What meows?", "as published"),
        ("b#1", "Who meows?", "1"),
        ("c", "What else?", "as published"),
    ]
    assert {(row.choices, row.answer, row.audio, row.groups["task"]) for row in asked[:3]} == {
        (CHOICES, "dog", (CLIP,), "sound")
    }


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([{"id": "z", "questions": ["?"]}], "words.jsonl paraphrases 'z', which is not a question's id"),
        ([{"id": "c", "questions": ["?"]}], "paraphrases 'c', which has no options"),
        ([{"id": "a", "questions": ["What barks? "]}], "two wordings of 'a' are the same"),
        ([{"id": "a", "questions": ["Who?"]}], "no paraphrases for 1 of 3 questions \\(such as 'b'\\); write a line"),
        ([{"id": "a", "questions": "Who?"}], "line 1: 'questions' is 'Who\\?', expected a list of one or more texts"),
        ([{"id": "a", "questions": ["Who?", " "]}], "expected a list of one or more texts"),
        ([{"questions": ["Who?"]}], "line 1: no 'id'"),
        ([{"id": "a", "questions": ["Who?"]}, "Who?"], "line 2: expected a JSON object, got str"),
        ([{"id": "a", "questions": ["Who?"]}] * 2, "line 2: an earlier row has the id 'a'"),
        ([], "words.jsonl holds no rows"),
    ],
)
def test_what_cannot_be_asked_is_an_error(tmp_path, rows, named):
    with pytest.raises(ValueError, match=named):
        in_wordings(QUESTIONS, paraphrases(tmp_path, *rows))


def test_ids_may_be_in_another_unicode_spelling(tmp_path):
    words = paraphrases(tmp_path, {"id": "cafe\u0301", "questions": ["Which one barks?"]})
    question = replace(QUESTIONS.questions[0], id="caf\u00e9")
    asked = in_wordings(replace(QUESTIONS, questions=(question,)), words).questions
    assert [row.id for row in asked] == ["caf\u00e9", "caf\u00e9#1"]


def test_a_model_that_reacts_to_words_is_found_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("falcon3_audio.evaluation.remote_model.as_wav", lambda data, name: b"RIFF")
    closed = QuestionSet("jsonl", QUESTIONS.questions[:2], QUESTIONS.sha256)
    words = paraphrases(
        tmp_path,
        {"id": "a", "questions": ["Which one barks?", "Who barks?"]},
        {"id": "b", "questions": ["Which one meows?"]},
    )

    def says(body):
        return "cat" if "Which one" in json.dumps(body) else "dog"

    with StubEndpoint(says) as stub:
        model = RemoteModel(Endpoint(stub.url, "m"), workers=1)
        generate(closed, model, tmp_path / "out", "plain", paraphrases=words)
        with pytest.raises(ValueError, match="paraphrases_sha256"):
            generate(
                closed,
                model,
                tmp_path / "out",
                "plain",
                paraphrases=paraphrases(tmp_path, *({"id": name, "questions": ["?"]} for name in "ab")),
            )
        with pytest.raises(ValueError, match="got shuffled options and paraphrases"):
            generate(closed, model, tmp_path / "both", "plain", shuffled_orders=1, paraphrases=words)
    assert run_of(tmp_path / "out")["paraphrases_sha256"] == words.sha256
    result = score(read_predictions(tmp_path / "out"))
    assert result["title"] == "Own questions in 3 wordings"
    # a: dog, cat, dog; b: dog, cat. One pair of four agrees.
    assert result["consistency"] == {"of": "wordings", "questions": 2, "pairs": 4, "rate": 0.25, "interval": None}
    groups = result["rules"]["content"]["breakdowns"][WORDING]["groups"]
    assert {name: (part["n"], part["right"]) for name, part in groups.items()} == {
        "as published": (2, 1),
        "1": (2, 1),
        "2": (1, 1),
    }
    assert score_main([str(tmp_path / "out")]) == 0
    assert "the same option in two wordings: 25.0 %" in capsys.readouterr().out
    with pytest.raises(ValueError, match="in several wordings; score it without --data"):
        score(read_predictions(tmp_path / "out"), data=tmp_path / "mine.jsonl")


def test_one_way_at_a_time(capsys):
    command = ["--benchmark", "mmau", "--data", "d", "--output-dir", "o", "--model", "m", "--paraphrases", "p"]
    assert parse(command).paraphrases.name == "p"
    with pytest.raises(SystemExit):
        parse([*command, "--shuffle-choices", "2"])
    assert "not allowed with argument" in capsys.readouterr().err
