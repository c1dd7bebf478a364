"""The rules: cases worked out by hand from the published scripts and data, and properties that hold for any reply."""

import random
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon3_audio.evaluation.predictions import ANSWERED, MISSING, Prediction
from falcon3_audio.evaluation.rules import (
    RULES,
    Verdict,
    accuracies,
    air_bench_official,
    content,
    mmau_official,
    resolve,
)


RIGHT, WRONG, UNRESOLVED, LEFT_OUT = Verdict.RIGHT, Verdict.WRONG, Verdict.UNRESOLVED, Verdict.LEFT_OUT
steady = settings(derandomize=True, deadline=None, database=None, max_examples=150)
LABELS = "ABCDEFGH"

VOICES = ("Man", "Woman", "Child", "Robot")
SOUNDS = ("A light rain", "An engine idling", "a dog", "thunder")
# Options as in MMAU's test-mini.
NOTES = ("A", "B", "C", "D")
MIXED_NOTES = ("C", "D", "G", "A")
KEYS = ("C major", "G major", "D major", "A minor")
CHORDS = ("F#:7/1", "B:maj/1", "E:maj/1", "D#:7/1")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("Yes", "No")
CHORD_CHANGES = ("Cm to Eb", "Eb to F", "F to Cm", "Cm to F")
ODD_LETTER = ("twenty-one", "Berman's", "said", "a")
ORDERS = ("first: neutral, second: frustration", "first: frustration, second: neutral", "both neutral")
LISTS = ("['boiling_water', 'clock_ticking']", "['clock_ticking', 'boiling_water']")
TWICE = ("four", "nine", "fourteen", "fourteen")
NESTED = ("Funk rock", "Classical music", "Electronic rock", "Funk")


def row(reply, choices, answer):
    status = MISSING if reply is None else ANSWERED
    return Prediction(id="q", status=status, reply=reply, choices=tuple(choices), answer=answer)


@pytest.mark.parametrize(
    "reply, choices, answer, verdict",
    [
        ("Man", VOICES, "Man", RIGHT),
        ("man.", VOICES, "Man", RIGHT),
        ("**The MAN** is speaking", VOICES, "Man", RIGHT),
        ("Men", VOICES, "Man", WRONG),
        ("Man, not a woman", VOICES, "Man", WRONG),
        ("Woman", VOICES, "Man", WRONG),
        ("A", VOICES, "Man", WRONG),
        ("(A) Man", VOICES, "Man", RIGHT),
        # The label, the article and the phrase are words of other options.
        ("(A) thunder", SOUNDS, "thunder", WRONG),
        ("thunder", SOUNDS, "thunder", RIGHT),
        ("The correct answer is: quiet.", ("it is loud", "quiet"), "quiet", WRONG),
        ("", VOICES, "Man", WRONG),
        ("", ("?", "!"), "?", WRONG),
        ("?!", VOICES, "Man", WRONG),
        (None, VOICES, "Man", LEFT_OUT),
        # Sets of words have no order, and options with equal sets are the same option.
        ("child and woman", ("woman and child", "man"), "woman and child", RIGHT),
        (ORDERS[1], ORDERS, ORDERS[0], RIGHT),
        ("both neutral", ORDERS, ORDERS[0], WRONG),
        ("fourteen", TWICE, "fourteen", RIGHT),
        ("twenty-three", ("twenty", "twenty-three"), "twenty", WRONG),
        ("twenty", ("twenty", "twenty-three"), "twenty", RIGHT),
        ("twenty", ("twenty", "twenty-three"), "twenty-three", WRONG),
        ("B:maj/1", CHORDS, "B:maj/1", RIGHT),
        ("B major", CHORDS, "B:maj/1", WRONG),
        ("B", NOTES, "B", RIGHT),
        ("C#", ("C", "D"), "C", RIGHT),  # "#" is not a word character
    ],
)
def test_mmau_official(reply, choices, answer, verdict):
    assert mmau_official(row(reply, choices, answer)) == verdict


@pytest.mark.parametrize(
    "reply, answer, verdict",
    [
        ("A", "Man", RIGHT),
        ("A. Woman", "Man", RIGHT),  # the label is read, not the content
        ("A woman", "Man", RIGHT),
        ("Dogs", "Robot", RIGHT),
        ("  \nC", "Child", RIGHT),
        ("The answer is C.", "Child", RIGHT),
        ("The answer is\nC\n.", "Child", RIGHT),  # line breaks are removed
        ("The answer is C", "Child", LEFT_OUT),  # last instead of second to last
        ("(C)", "Child", RIGHT),
        ("(C) Child", "Child", LEFT_OUT),
        ("B", "Man", WRONG),
        ("b", "Woman", LEFT_OUT),
        ("E", "Man", LEFT_OUT),
        ("Woman", "Woman", LEFT_OUT),
        ("None", "Man", LEFT_OUT),
        ("", "Man", LEFT_OUT),
        (" \n", "Man", LEFT_OUT),
        (None, "Man", LEFT_OUT),
    ],
)
def test_air_bench_official(reply, answer, verdict):
    assert air_bench_official(row(reply, VOICES, answer)) == verdict


def test_air_bench_official_with_fewer_options_and_an_option_twice():
    assert air_bench_official(row("D", ("male", "female"), "male")) == WRONG
    assert air_bench_official(row("C", TWICE, "fourteen")) == RIGHT
    assert air_bench_official(row("D", TWICE, "fourteen")) == WRONG


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        # Wrappers.
        ("Woman", VOICES, "Woman"),
        ("<answer>Woman</answer>", VOICES, "Woman"),
        ("<answer> (B) woman.", VOICES, "Woman"),
        ("<think>Man? <answer>Man</answer> No.</think>\n<answer>Woman</answer>", VOICES, "Woman"),
        ("<thinking>Man? No.</thinking>Woman", VOICES, "Woman"),
        ("[THINK]A man speaks.[/THINK]\n(B)", VOICES, "Woman"),
        ("<reasoning>It is a woman", VOICES, None),
        ("Ans: B", VOICES, "Woman"),
        ("Not a man. <answer>Woman</answer>", VOICES, "Woman"),
        ("<answer>Man</answer> or rather <answer>B</answer> indeed", VOICES, "Woman"),
        ("<answer></answer>", VOICES, None),
        ("The correct answer is: Woman.", VOICES, "Woman"),
        ("It is deep, yet no man's. So the answer is: (B)", VOICES, "Woman"),
        ("**Answer:** B. Woman", VOICES, "Woman"),
        ("'**Woman**'", VOICES, "Woman"),
        ("“Woman”", VOICES, "Woman"),
        ("light rain", SOUNDS, "A light rain"),
        ("The dog", SOUNDS, "a dog"),
        ("B is the correct answer.", VOICES, "Woman"),
        # Only labels.
        ("B", VOICES, "Woman"),
        ("(b)", VOICES, "Woman"),
        ("b.", VOICES, "Woman"),
        ("Option B", VOICES, "Woman"),
        ("The best choice is option B.", VOICES, "Woman"),
        ("E", VOICES, None),
        ("A", SOUNDS, "A light rain"),
        # Labels and text: the text decides.
        ("(A) Woman", VOICES, "Woman"),
        ("D. The woman speaks", VOICES, None),
        ("Woman (A)", VOICES, "Woman"),
        ("B. A lady", VOICES, "Woman"),
        ("B. I am not sure", VOICES, None),
        ("Option A: Man, option B: Woman", VOICES, None),
        # Named in a sentence, but not as part of other words and numbers.
        ("It is a woman's voice, I think", VOICES, "Woman"),
        ("Several women", VOICES, None),
        ("A mandolin", VOICES, None),
        ("Human activity", ("Machinery", "Human activity"), "Human activity"),
        ("I hear human activity", ("Machinery", "Human activity"), "Human activity"),
        ("It is funk rock", NESTED, "Funk rock"),
        ("It is funk", NESTED, "Funk"),
        ("It lasts 1.63 seconds", ("1.6", "1.63"), "1.63"),
        ("There are twenty-three of them", ("twenty", "twenty-three"), "twenty-three"),
        ("It lasts 1.63 seconds", ("1", "63"), None),
        ("There are twenty-three", ("twenty", "three"), None),
        ("There are 12", NUMBERS, None),
        ("There are 2 of them", NUMBERS, "2"),
        ("2", NUMBERS, "2"),
        # Several, or none.
        ("Man or woman", VOICES, None),
        ("(B) Woman, and a man", VOICES, None),
        ("I cannot hear any audio", VOICES, None),
        ("???", VOICES, None),
        # Negations.
        ("Not a woman", VOICES, None),
        ("It isn’t a woman", VOICES, None),
        ("The answer is not B", VOICES, None),
        ("I don't think the answer is Woman", VOICES, None),
        ("I do not think the correct answer is: B", VOICES, None),
        ("No, there isn't any", YES_NO, "No"),
        ("Not sure", (*YES_NO, "Not sure"), "Not sure"),
        # Phrases with "no" that do not mean "no".
        ("No idea", YES_NO, None),
        ("I have no idea.", YES_NO, None),
        ("no answer", YES_NO, None),
        ("There is no way to tell", YES_NO, None),
        ("No idea", (*YES_NO, "No idea"), "No idea"),
        ("No, there is no information about it", YES_NO, "No"),
        *(
            (reply, ("Man", "Woman"), "Woman")
            for reply in (
                "B. Woman. There is no response from the man.",
                "Woman, because there is no answer from the man",
                "(B), since there is no information about a man",
                "B, because no one can speak so high",
            )
        ),
        ("No sound", YES_NO, "No"),
        ('{"answer": ["B"]}', VOICES, "Woman"),
        ('{"answer": ["Woman"]}', VOICES, "Woman"),
        ("选项B", VOICES, "Woman"),
        # Options that are letters or look like labels.
        ("B", NOTES, "B"),
        ("(B) B", NOTES, "B"),
        ("(B) C", NOTES, "C"),
        ("A", MIXED_NOTES, "A"),
        ("The answer is D.", MIXED_NOTES, "D"),
        ("B", MIXED_NOTES, None),
        ("A melody in D", MIXED_NOTES, None),
        ("B", ODD_LETTER, None),
        ("It is a man", ODD_LETTER, None),
        ("B:maj/1", CHORDS, "B:maj/1"),
        ("(C) B:maj/1", CHORDS, "B:maj/1"),
        ("The chord is B:maj/1.", CHORDS, "B:maj/1"),
        ("B:maj", CHORDS, None),
        ("B", CHORDS, None),
        ("B. some chord", CHORDS, None),
        ("A: maj/1", ("B:maj/1", "A:maj/1"), None),
        ("Cm7", ("CM7", "Cm7"), "Cm7"),
        ("B", ("Bm", "F#m7"), None),
        ("B", ("Gmaj7", "A7"), None),
        ("MAN", ("Man.", "man"), None),
        ("It is Cm to Eb to F", CHORD_CHANGES, None),
        ("The change is Eb to F", CHORD_CHANGES, "Eb to F"),
        ("A minor", KEYS, "A minor"),
        ("B minor", KEYS, None),
        ("C# major", KEYS, None),
        ("C", KEYS, "D major"),
        # Equal sets of words, and equal options.
        *((order, ORDERS, order) for order in ORDERS),
        *((f"The correct answer is: {order}", LISTS, order) for order in LISTS),
        ("D", TWICE, "fourteen"),
        ("It is fourteen", TWICE, "fourteen"),
        ("four", TWICE, "four"),
    ],
)
def test_the_option_that_a_reply_means(reply, choices, option):
    assert resolve(reply, choices) == option
    for answer in choices:
        expected = UNRESOLVED if option is None else RIGHT if option == answer else WRONG
        assert content(row(reply, choices, answer)) == expected


def test_no_reply_and_an_empty_one_are_wrong_by_content():
    assert [content(row(reply, VOICES, "Man")) for reply in (None, "", " \n")] == [WRONG] * 3


@pytest.mark.parametrize("rule", RULES)
def test_what_cannot_be_scored_is_an_error_that_names_the_question(rule):
    with pytest.raises(ValueError, match="question q has no answer"):
        RULES[rule](row("Man", VOICES, None))
    with pytest.raises(ValueError, match="question q has no options"):
        RULES[rule](row("Man", (), "Man"))


@pytest.mark.parametrize("rule", [air_bench_official, content])
def test_an_answer_that_is_no_option_is_an_error(rule):
    with pytest.raises(ValueError, match="question q: the answer 'Dog' is none of the options"):
        rule(row("Man", VOICES, "Dog"))


def test_both_accuracies():
    references = [{"answer": "Man", "choices": list(VOICES)}] * 4
    found = accuracies("air-bench-official", ["A", "(B) Man", "either", None], references)
    assert found == {"accuracy": 1.0, "n": 1, "content_accuracy": 0.5, "unresolved": 1}
    assert accuracies("mmau-official", [None], references[:1])["accuracy"] is None
    with pytest.raises(ValueError, match="got 1 replies for 4 references"):
        accuracies("mmau-official", ["A"], references)


options = st.lists(
    st.sampled_from(
        ["dog", "rain on a roof", "a violin", "An engine idling", "thunder", "seven", "B:maj/1", "Yes", "9"]
    ),
    min_size=2,
    max_size=8,
    unique=True,
)
replies = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["dog", "a", "B", "(C)", "violin", "not", "answer is", "thunder", ".", ":", "<answer>", "</think>", "9"]
        )
    ).map(" ".join),
)


@steady
@given(replies, options)
def test_any_reply_has_a_verdict(reply, choices):
    for rule in RULES.values():
        assert all(rule(row(reply, choices, answer)) in Verdict for answer in choices)
    assert sum(content(row(reply, choices, answer)) == RIGHT for answer in choices) <= 1
    assert LEFT_OUT not in {content(row(reply, choices, answer)) for answer in choices}


@steady
@given(replies.filter(str.isascii), options, st.randoms(use_true_random=False))
def test_mmau_official_sees_neither_case_nor_order_nor_repetition(reply, choices, shuffler):
    words = reply.split()
    shuffler.shuffle(words)
    others = [reply.upper(), reply.lower(), f"{reply} {reply}", " ".join(words)]
    for answer in choices:
        verdict = mmau_official(row(reply, choices, answer))
        assert {mmau_official(row(other, choices, answer)) for other in others} == {verdict}


@steady
@given(st.text(alphabet="ABCDE xyz.()", max_size=8), options.map(lambda found: found[:4]))
def test_air_bench_official_reads_the_label_and_nothing_else(reply, choices):
    texts = [f"option {number}" for number, _ in enumerate(choices)]
    for position, answer in enumerate(choices):
        verdict = air_bench_official(row(reply, choices, answer))
        assert air_bench_official(row(reply, texts, texts[position])) == verdict
        assert air_bench_official(row(LABELS[position] + reply, choices, answer)) == RIGHT


WRAPPERS = [
    "{}",
    "{}.",
    "<answer>{}</answer>",
    "The correct answer is: {}.",
    '"{}"',
    "**{}**",
    "<think>9 (B)</think> {}",
]


@steady
@given(options, st.sampled_from(WRAPPERS), st.sampled_from([None, *LABELS]), st.randoms(use_true_random=False))
def test_content_decides_whatever_the_wrapper_the_label_and_the_order(choices, wrapper, label, shuffler):
    shuffled = shuffler.sample(choices, len(choices))
    for said in choices:
        reply = wrapper.format(said if label is None else f"({label}) {said}")
        for answer in choices:
            assert content(row(reply, shuffled, answer)) == (RIGHT if said == answer else WRONG), reply


@steady
@given(
    options.filter(lambda found: len(found) > 2),
    st.sampled_from(WRAPPERS),
    st.sampled_from([" and ", " or ", ", ", "; not "]),
)
def test_content_of_two_options_is_never_right(choices, wrapper, between):
    reply = wrapper.format(between.join(random.Random(len(choices)).sample(choices, 2)))
    assert {content(row(reply, choices, answer)) for answer in choices} == {UNRESOLVED}, reply


LABELLED = [
    *(("(A) Man", "(B) Woman"), ("A. Man", "B. Woman"), ("A) Man", "B) Woman"), ("a: Man", "b: Woman")),
]


@pytest.mark.parametrize("choices", LABELLED)
@pytest.mark.parametrize(
    "reply",
    [
        "Woman",
        "woman.",
        "The speaker is a woman.",
        "<answer>Woman</answer>",
        "(B) Woman",
        "B. Woman",
        "B",
        "(B)",
        "(A) Woman",
    ],
)
def test_options_that_carry_their_labels_are_read_by_their_texts(reply, choices):
    assert resolve(reply, choices) == choices[1]
    for answer in (choices[1], "Woman"):
        assert content(row(reply, choices, answer)) == RIGHT
        assert content(row("Man or woman", choices, answer)) == UNRESOLVED


def test_one_text_in_two_unicode_spellings_is_one():
    drinks = ("Café", "Thé", "Eau")
    decomposed = tuple(unicodedata.normalize("NFD", drink) for drink in drinks)
    for ours, theirs in ((drinks, decomposed), (decomposed, drinks)):
        assert resolve(theirs[1], ours) == ours[1]
        assert resolve(f"C'est un {theirs[1].lower()}.", ours) == ours[1]
        assert content(row("B", ours, theirs[1])) == RIGHT
    assert resolve("Twenty‑one", ("twenty-one", "two")) == "twenty-one"
    assert resolve("5²", ("52", "25")) is None
    assert resolve("x", ("Café", decomposed[0])) is None
