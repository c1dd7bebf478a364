"""MMAU-Pro's checks, against verdicts worked out by hand from the published script."""

import sys
from types import ModuleType

import pytest

from falcon3_audio.evaluation.instruction_checks import CHECKS, check_of, follows
from falcon3_audio.evaluation.load_checks import RowFault


CASES = [
    ("Include Keywords", {"keywords": "dog, park"}, "A DOG is parking.", True),
    ("Include Keywords", {"keywords": "dog, park"}, "A dog barks.", False),
    ("Keyword Frequency", {"keyword": "Dog", "N": 2}, "dog DOG hotdog", True),
    ("Keyword Frequency", {"keyword": "dog", "N": 1}, "dogs", False),
    ("Forbidden Words", {"forbidden_words": "cat, rain"}, "a dog", True),
    ("Forbidden Words", {"forbidden_words": "cat, rain"}, "a train", False),
    ("Number Paragraphs", {"N": 2}, "one *** two", True),
    ("Number Paragraphs", {"N": 2}, "one\n\ntwo", False),
    ("Number Words (at least)", {"N": 3}, "a dog barks", True),
    ("Number Words (at least)", {"N": 4}, "a dog barks", False),
    ("Number Words (at most)", {"N": 3.0}, "a dog barks", True),
    ("Number Words (at most)", {"N": 2}, "a dog barks", False),
    ("Number Words (range)", {"N1": 2, "N2": 3}, "a dog barks", True),
    ("Number Words (range)", {"N1": 4, "N2": 9}, "a dog barks", False),
    ("Postscript", {"postscript_marker": "P.S."}, "A dog. p s: a cat", True),
    ("Postscript", {"postscript_marker": "P.P.S"}, "A dog. P.S. a cat", False),
    ("Number Placeholder", {"N": 2}, "[name] in [place] [x]", True),
    ("Number Placeholder", {"N": 2}, "[name] []", False),
    ("Number Bullets", {"N": 2}, "* a dog\n  * a cat", True),
    ("Number Bullets", {"N": 2}, "- a dog\n- a cat", False),
    ("Title", {}, "text <<Dogs>>", True),
    ("Title", {}, "<Dogs>", False),
    ("Minimum Number Highlighted Section", {"N": 2}, "*a* dog *barks*", True),
    ("Minimum Number Highlighted Section", {"N": 2}, "*a* dog barks*", False),
    ("Multiple Sections", {"N": 2, "section_splitter": "SECTION"}, "SECTION one SECTION two", True),
    ("Multiple Sections", {"N": 2, "section_splitter": "SECTION"}, "one Section two", False),
    ("Repeat Prompt", {}, " what barks? A dog.", True),
    ("Repeat Prompt", {}, "A dog. What barks?", False),
    ("Two Responses", {}, "a dog ****** a cat", True),
    ("Two Responses", {}, "a dog ****** A dog", False),
    ("All Uppercase", {}, "A DOG, 3 TIMES", True),
    ("All Uppercase", {}, "A Dog", False),
    ("All Lowercase", {}, "a dog", True),
    ("All Lowercase", {}, "123", False),
    ("All-capital Words (at least)", {"N": 2}, "A DOG barks", True),
    ("All-capital Words (at least)", {"N": 3}, "A DOG Barks", False),
    ("All-capital Words (at most)", {"N": 0}, "a dog", True),
    ("All-capital Words (at most)", {"N": 0}, "I bark", False),
    ("All-capital Words (range)", {"N1": 1, "N2": 2}, "A DOG barks", True),
    ("All-capital Words (range)", {"N1": 1, "N2": 2}, "A DOG IS", False),
    ("Start Checker", {"start_phrase": "Well, then"}, "well then: a dog", True),
    ("Start Checker", {"start_phrase": "Well"}, "Oh well", False),
    ("End Checker", {"end_phrase": "Any questions?"}, "A dog. Any questions!", True),
    ("End Checker", {"end_phrase": "Any questions?"}, "Any questions? No", False),
    ("Quotation", {}, ' "a dog" ', True),
    ("Quotation", {}, '"a dog".', False),
    ("No Commas", {}, "a dog; a cat", True),
    ("No Commas", {}, "a dog, a cat", False),
    ("No Commas", {}, " ", False),
]
SENTENCES = {"Number Sentences (at least)", "Number Sentences (at most)", "Number Sentences (range)"}


@pytest.mark.parametrize("task, parameters, reply, right", CASES)
def test_a_check(task, parameters, reply, right):
    assert follows(check_of(task, parameters, "What barks?"), reply) is right


def test_every_check_is_tried_both_ways():
    tried = {(task, right) for task, _, _, right in CASES}
    assert tried == {(task, right) for task in CHECKS.keys() - SENTENCES for right in (True, False)}


def test_sentences_are_counted_by_nltk(monkeypatch):
    nltk, tokenize = ModuleType("nltk"), ModuleType("nltk.tokenize")
    tokenize.sent_tokenize = lambda text: text.split("|")
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.tokenize", tokenize)
    for task, parameters, right in (
        ("Number Sentences (at least)", {"N": 3}, True),
        ("Number Sentences (at least)", {"N": 4}, False),
        ("Number Sentences (at most)", {"N": 3}, True),
        ("Number Sentences (at most)", {"N": 2}, False),
        ("Number Sentences (range)", {"N1": 3, "N2": 3}, True),
        ("Number Sentences (range)", {"N1": 1, "N2": 2}, False),
    ):
        assert follows(check_of(task, parameters, ""), "one|two|three") is right


def test_without_nltk_nothing_is_guessed(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    with pytest.raises(ValueError, match="Punkt, which is not installed: pip install .falcon3-audio.eval.., and"):
        follows(check_of("Number Sentences (at most)", {"N": 2}, ""), "A dog. A cat.")


@pytest.mark.parametrize(
    "task, parameters, fault",
    [
        ("Number Wrods", {"N": 2}, "'task_identifier' is 'Number Wrods', which is not one of the checks"),
        (None, {}, "'task_identifier' is None"),
        ("Number Bullets", {}, "'N' of 'Number Bullets' is None, expected a whole number"),
        ("Number Bullets", {"N": 2.5}, "'N' of 'Number Bullets' is 2.5, expected a whole number"),
        ("Number Bullets", {"N": float("nan")}, "is nan, expected a whole number"),
        ("Number Bullets", {"N": "2"}, "'N' of 'Number Bullets' is '2', expected a whole number"),
        ("Include Keywords", {"keywords": ["dog"]}, "'keywords' of 'Include Keywords' is .*expected a text"),
        ("Number Bullets", [2], "'kwargs' is .*expected an object"),
    ],
)
def test_what_cannot_be_checked_is_named(task, parameters, fault):
    with pytest.raises(RowFault, match=fault):
        check_of(task, parameters, "What barks?")
