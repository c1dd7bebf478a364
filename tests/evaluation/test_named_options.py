"""Numbers that name an option, and numbers that are only part of another or say more or less than it."""

import pytest

from falcon3_audio.evaluation.read_option import resolve


DIGITS = ("1", "2", "3", "4")
WORDS = ("One", "Two", "Three", "Four")
BIRDS = ("One bird", "Two birds", "Three birds", "Four birds")
TONES = ("500 Hz", "1500 Hz", "5000 Hz", "50 Hz")
TIMES = ("3.5 seconds", "35 seconds", "5 seconds", "0.5 seconds")


@pytest.mark.parametrize("mark", [",", "'", "’", " ", "\u00a0", "\u202f", "\u2009"])
def test_thousands_can_be_set_apart(mark):
    for sentence in ("{} Hz", "It is {} Hz.", "The answer is {} Hz"):
        assert resolve(sentence.format(f"1{mark}500"), TONES) == "1500 Hz"
        for other in ("3", "12", "100", f"1{mark}000"):
            assert resolve(sentence.format(f"{other}{mark}500"), TONES) is None
    assert resolve("It is 1500 Hz", (f"1{mark}500 Hz", "500 Hz")) == f"1{mark}500 Hz"


@pytest.mark.parametrize("mark", [".", ",", "'", "·", "٫", "/", ":", "*", "×", "^", ", "])
def test_digits_before_a_mark_belong_to_the_number(mark):
    assert resolve(f"It is 3{mark}50 Hz", TONES) is None
    assert resolve(f"It lasts 3{mark}5 seconds", TIMES) == ("3.5 seconds" if mark == "." else None)


def test_options_before_numbers_are_not_thousands():
    assert resolve("Option 1 500 Hz", TONES) is None


def test_a_bare_decimal_point():
    assert resolve("It lasts .5 seconds", TIMES) == "0.5 seconds"
    assert resolve("It lasts 0.5 seconds", (".5 seconds", "5 seconds")) == ".5 seconds"


BEFORE = [
    *(
        "at least",
        "at most",
        "over",
        "under",
        "above",
        "below",
        "up to",
        "almost",
        "nearly",
        "no more than",
        "fewer than",
    ),
    *(
        "just under",
        "well over",
        "exceeding",
        "upwards of",
        "a maximum of",
        "half of",
        "twice",
        "minus",
        "five or",
        "9 to",
    ),
    *(
        "zero point",
        "twenty",
        "ninety",
        "forty-",
        "one hundred and",
        "a thousand and",
        "ten",
        "between 0 and",
        "between",
    ),
    *(">", "<", "> ", "≥", "≤ ", ">=", "<=", "~", "±", "\\geq "),
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("two, choices", [("2", DIGITS), ("two", WORDS), ("two birds", BIRDS)])
def test_a_number_behind_more_of_it_is_another(before, two, choices):
    space = "" if before[-1] in "-><≥≤=~± " else " "
    for sentence in ("{}", "There are {}.", "The answer is {}"):
        assert resolve(sentence.format(before + space + two), choices) is None


BEHIND = [
    *(
        " point five",
        " dozen",
        " hundred",
        " million",
        " billion",
        " and a half",
        " and three quarters",
        " plus",
        " or more",
    ),
    *(
        " or less",
        " at most",
        " at least",
        " or so",
        " and up",
        " percent",
        " or over",
        " at the most",
        " minus one",
        " to five",
        " - five",
        " or six",
        " thirds",
    ),
    *(" halves", " times ten", " 1/2", " ½", "+", " +", "%", " %", "...9", " x 9"),
]


@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("two, choices", [("2", DIGITS), ("two", WORDS)])
def test_a_number_before_more_of_it_is_another(behind, two, choices):
    for sentence in ("{}", "There are {}.", "The answer is {}"):
        assert resolve(sentence.format(two + behind), choices) is None


@pytest.mark.parametrize(
    "reply", [".2", "0.2", "0,2", "2,5", "2·5", "2'5", "2½", "2²", "2~5", "2nd", "2 000", "2,000"]
)
def test_a_digit_within_a_number_is_not_named(reply):
    for sentence in ("{}", "It is {}.", "The answer is {}"):
        assert resolve(sentence.format(reply), DIGITS) is None


@pytest.mark.parametrize(
    "reply", ["5 seconds or so", "5 seconds at least", "4 seconds to 5 seconds", "5 seconds to 6"]
)
def test_an_amount_that_is_only_near_an_option(reply):
    assert resolve(reply, TIMES) is None


@pytest.mark.parametrize(
    "reply",
    [
        *("the second one", "Second one", "the loud one", "this one", "which one?", "one of them", "one could say so"),
        *("one third", "one half", "one quarter", "one point five"),
    ],
)
def test_one_as_a_pronoun_or_in_a_fraction_is_no_number(reply):
    assert resolve(reply, WORDS) is None


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        *(
            (f"{before} two", WORDS, "Two")
            for before in ("about", "exactly", "just", "only", "There are", "The two: ")
        ),
        *(
            (f"two {behind}", WORDS, "Two")
            for behind in ("of them", "times", "speakers", "voices, and a dog", "in all")
        ),
        *((f"{before} one", WORDS, "One") for before in ("only", "exactly", "The answer is", "There is", "number")),
        *((f"{before} 2", DIGITS, "2") for before in ("about", "=", "x =", "In all,", "Moreover", "At this point")),
        ("two half notes", WORDS, "Two"),
        ("three quarter notes", WORDS, "Three"),
        ("There are 2. 5 minutes later it rains.", DIGITS, "2"),
        ("->2", DIGITS, "2"),
        ("<answer>2</answer>", DIGITS, "2"),
        ("more than 2", ("2", "> 2"), "> 2"),
        ("It is ≥ 2", ("2", "at least 2"), "at least 2"),
        ("It is 2+", ("2", "2+"), "2+"),
    ],
)
def test_other_numbers_are_named(reply, choices, option):
    assert resolve(reply, choices) == option
