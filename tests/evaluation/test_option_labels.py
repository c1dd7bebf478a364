"""How options carry labels, and options that only look so."""

import pytest

from falcon3_audio.evaluation.option_labels import are_numbered, without_label, without_labels
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction
from falcon3_audio.evaluation.rules import Verdict, content


SHAPES = [
    *(
        "(A) {}",
        "[A] {}",
        "{{A}} {}",
        "A) {}",
        "A] {}",
        "A. {}",
        "A.{}",
        "A: {}",
        "A - {}",
        "A – {}",
        "A — {}",
        "A | {}",
    ),
    *("A = {}", "A\t{}", "Ａ. {}", "A．{}", "A：{}", "A、{}", "（A）{}", "【A】{}", "Option A: {}"),
]
NUMBER_SHAPES = ["1. {}", "1.{}", "(1) {}", "1) {}", "[1] {}", "1: {}", "1 - {}", "1、{}", "１．{}", "（1）{}"]


def labelled(shape, texts):
    letter = next(letter for letter in "AＡ1１" if letter in shape)
    return tuple(shape.replace(letter, chr(ord(letter) + place), 1).format(text) for place, text in enumerate(texts))


@pytest.mark.parametrize("texts", [("Man", "Woman", "Child"), ("男", "女", "孩子")])
@pytest.mark.parametrize("shape", [*SHAPES, *NUMBER_SHAPES])
def test_labels_are_taken_off(shape, texts):
    choices = labelled(shape, texts)
    assert choices[1] != texts[1] and without_labels(choices) == texts
    assert are_numbered(choices) == (shape in NUMBER_SHAPES)
    assert without_label(choices[1], choices) == texts[1]


@pytest.mark.parametrize("shape", [*SHAPES, *NUMBER_SHAPES])
def test_a_reply_with_the_text_or_the_label_is_right(shape):
    choices = labelled(shape, ("Man", "Woman", "Child"))
    for reply in ("Woman", "woman.", "The answer is woman", "B", "(B) Woman", choices[1]):
        row = Prediction(id="q", status=ANSWERED, reply=reply, choices=choices, answer=choices[1])
        assert content(row) == Verdict.RIGHT, reply


@pytest.mark.parametrize(
    "choices",
    [
        ("1.5 seconds", "2.5 seconds"),
        ("1 - 2 speakers", "2 - 3 speakers"),
        ("1-2", "2-3"),
        ("1:30", "2:30"),
        ("1: 2", "2: 1"),
        ("1、2", "2、3"),
        ("1, 2", "2, 3"),
        ("1 man", "2 men"),
        ("1. FC", "2. FC"),  # one text
        ("1st", "2nd"),
        ("0. Man", "1. Woman"),
        ("2. Man", "1. Woman"),
        ("1. Man", "B. Woman"),
        ("A - E", "B - F"),
        ("A-flat", "B-flat"),
        ("A:maj/1", "B:maj/1"),
        ("A.M.", "B.M."),
        ("A man", "B man"),
        ("A.", "B."),
        ("(1)", "(2)"),
        (),
    ],
)
def test_options_that_only_look_labelled_are_left(choices):
    assert without_labels(choices) == choices
    assert not are_numbered(choices)
