"""Which option a reply means: hedges, reasons, labels, negations and numbers (evaluation/read_option.py)."""

import pytest

from falcon3_audio.evaluation.read_option import resolve


CHORDS = ("F#:7/1", "B:maj/1", "E:maj/1", "D#:7/1")
SOUNDS = ("A light rain", "An engine idling", "a dog", "thunder")
KEYS = ("C major", "G major", "D major", "A minor")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("Yes", "No")
ANIMALS = ("Dog", "Cat", "Cow", "Bird")


@pytest.mark.parametrize(
    "reply",
    [
        "(A) or (B)",
        "A) and C)",
        "The answer is (A) or (B).",
        "A. B",
        "B. I am unsure, maybe C.",
        "<think>Hmm, dog? Let me",
    ],
)
def test_hedges_between_labels_and_thoughts_that_were_cut_off_mean_no_option(reply):
    assert resolve(reply, ANIMALS) is None


@pytest.mark.parametrize(
    "reply", ["B. Because it meows", "(B) since I hear it", "(B) I am sure, so (B)", "<think>dog</think> cat"]
)
def test_a_label_with_reasons_is_still_a_label(reply):
    assert resolve(reply, ANIMALS) == "Cat"


EXPLAINED = [
    "The answer is (B), because a dog would bark.",
    "The answer is B because a dog would bark.",
    "The best answer is B, since the dog is too far away",
    "Option B is correct because a dog would bark.",
    "Cat, because a dog would bark",
    "B. Cat. A dog would bark.",
    "Answer: (B) Cat\n\nA dog would bark.",
    "A dog would bark, so the answer is B",
    '{"answer": "B", "reason": "a dog would bark"}',
    '{"answer": "B", "reason": "a dog',
]


STATED = [
    *("\\boxed{B}", "$\\boxed{\\text{B}}$", "\\boxed{\\text{Cat}}", "<answer>\\boxed{B}</answer>"),
    *(
        '{"answer": "B"}',
        "{'answer': 'B'}",
        '```json\n{"choice": "B", "confidence": 0.9}\n```',
        '{"final_answer": "cat"}',
    ),
    *(
        "I choose B.",
        "I'd go with B",
        "My choice: B",
        "final answer: B",
        "Final Answer: **B**",
        "Answer - B",
        "Answer B",
    ),
    *("Option B is correct", "B is correct", "B is the answer", "The correct letter is B", "So, B", "It is B.", "(b)"),
    *(
        "**B**",
        "`B`",
        "- B",
        "> **B**",
        "[B]",
        "B) Cat",
        "B — Cat",
        "B\nCat",
        "B\n\nA loud one",
        "The answer is most likely B.",
    ),
    *(
        "答案是B",
        "答案：Ｂ",
        "我选B。",
        "正确答案是（B）",
        "La réponse est B",
        "La respuesta es (B).",
        "Resposta: B",
        "Die Antwort ist B",
    ),
]


AMBIGUOUS = [
    *(
        "B. A dog would bark louder.",
        "Answer: B\nA dog would bark.",
        "The answer is B. The rain would hiss, a dog bark.",
    ),
    *("The correct answer is B; the dog is only in the background.", "B, a dog would bark", "A dog would bark. (B)"),
    *("A dog would bark.\nB", "A dog would bark.\n\nB and C", "The answer is B. Actually it is a dog."),
    *("The answer is Cat because it meows. Wait, it's a dog.", "B because it meows. No, A", "B or dog"),
    *("not A but B", "B, not A", "Option B is wrong", "B is incorrect", "The wrong answer is B", "The answer isn't B"),
    *(
        "I cannot choose B",
        "I would never pick B",
        "Anything but B",
        "eliminate B",
        "不选B",
        "答案不是B",
        "错误答案是B",
    ),
    *(
        "A or B",
        "option b or c",
        "A/B",
        "A, B",
        "both A and B",
        "The answer is A, B",
        '{"answer": "A or B"}',
        "B, maybe C",
    ),
    *('{"answer": ["A", "B"]}', "I doubt it is B", "It is hardly a cat", "less likely a cat", "选项A或B"),
    *("The answer is a", "I hear a", "The answer is E", '{"answer": "E"}', '{"answer": ""}', "\\boxed{}"),
]


@pytest.mark.parametrize("reply", [*EXPLAINED, *STATED])
def test_the_option_that_is_stated_counts_whatever_the_reasons_name(reply):
    assert resolve(reply, ANIMALS) == "Cat"


@pytest.mark.parametrize("reply", AMBIGUOUS)
def test_letters_and_texts_that_contradict_each_other_and_letters_that_are_ruled_out_mean_no_option(reply):
    assert resolve(reply, ANIMALS) is None


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("B", ("(A) B:maj/1", "(B) A:maj/1"), "(B) A:maj/1"),
        ("A:maj/1", ("(A) B:maj/1", "(B) A:maj/1"), "(B) A:maj/1"),
        # Not in alphabetical order, one text twice, and a label without a text.
        ("Woman", ("(B) Man", "(A) Woman"), None),
        ("fourteen", ("(A) fourteen", "(B) fourteen"), None),
        ("", ("(A) ", "(B) Man"), None),
    ],
)
def test_what_looks_like_labels(reply, choices, option):
    assert resolve(reply, choices) == option


RAIN = ("Rain", "Wind", "None of the above")


MOODS = ("Happy", "Sad", "No emotion")


CHANGES = ("Increasing", "Decreasing", "Not changing")


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("I hear no rain", RAIN, None),
        ("It is certainly not rain.", RAIN, None),
        ("(A) is not what I hear", RAIN, None),
        ("The speaker is not happy", MOODS, None),
        ("The speaker does not sound sad", MOODS, None),
        ("It is not increasing", CHANGES, None),
        ("It is hardly the dog", ("The dog", "Hardly any sound"), None),
        # A negation that is part of the option, also named by its label, and "no" as an option.
        ("It is none of the above.", RAIN, "None of the above"),
        ("(C): I hear nothing, not even wind", RAIN, None),
        ("(C), there is no such sound", RAIN, "None of the above"),
        ("There is no emotion in it", MOODS, "No emotion"),
        ("It is not changing", CHANGES, "Not changing"),
        ("Yes, it is not a cat", YES_NO, "Yes"),
    ],
)
def test_a_negation_counts_unless_it_is_the_options_own(reply, choices, option):
    assert resolve(reply, choices) == option


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("B.Female", ("Male", "Female"), "Female"),
        ("B:Female", ("Male", "Female"), "Female"),
        ("The answer is B.Female", ("Male", "Female"), "Female"),
        ("( B )", ("Male", "Female"), "Female"),
        ("( B ) Female", ("Male", "Female"), "Female"),
        ("The answer is ( B ).", ("Male", "Female"), "Female"),
        ("B.女", ("男", "女"), "女"),
        ("B:女", ("男", "女"), "女"),
        ("B.A lady", ("Male", "Female"), None),
        ("A.M.", ("A.M.", "P.M."), "A.M."),
        ("A.M.", ("Morning", "Evening"), None),
        ("B:maj", CHORDS, None),
        ("B:maj", ("B:maj", "A:maj"), "B:maj"),
    ],
)
def test_a_label_without_a_space_is_one_where_an_option_stands_behind_it(reply, choices, option):
    assert resolve(reply, choices) == option


WORDS = ("one", "two", "three", "twenty")


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("-1", NUMBERS, None),
        ("It is -1", NUMBERS, None),
        ("It is minus 1", NUMBERS, None),
        ("The answer is −5 degrees", ("5 degrees", "10 degrees"), None),
        ("The answer is −5 degrees", ("5 degrees", "-5 degrees"), "-5 degrees"),
        ("It is 5 degrees", ("5 degrees", "-5 degrees"), "5 degrees"),
        ("Between -1 and 2", NUMBERS, None),
        ("B. more than 2", NUMBERS, None),
        ("There are more than two dogs", ("two dogs", "more than two dogs"), "more than two dogs"),
        ("2 or more", NUMBERS, None),
        ("two hundred", WORDS, None),
        ("I count twenty five", WORDS, None),
        ("I count twenty, three of them loud", WORDS, None),
        ("- 2 of them", NUMBERS, "2"),
        ("There are two, hundreds of metres apart", WORDS, "two"),
    ],
)
def test_a_number_within_another_is_not_named(reply, choices, option):
    assert resolve(reply, choices) == option


OWLS = ("A dog", "A cat", "An owl", "Rain")


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("A dog", OWLS, "A dog"),
        ("A cat", OWLS, "A cat"),
        ("A", OWLS, "A dog"),
        ("A. A cat", OWLS, "A cat"),
        ("A barking dog", OWLS, "A dog"),
        ("The key is C", KEYS, None),
        ("I choose plan B", ("Plan A", "Plan B"), "Plan B"),
        ("It is vitamin C", ("Vitamin D", "Vitamin C"), "Vitamin C"),
        ("Answer: A\nA cat would sound otherwise.", OWLS, None),
        ("A, since A:maj/1 would be louder", ("B:maj/1", "A:maj/1"), None),
        ("A is correct; A:maj/1 is in the background", ("B:min/1", "A:maj/1"), None),
        ("It is G because F#m would be louder", ("G", "F#m"), None),
        ("Option A is wrong", ("It is an impossible claim", "Nobody speaks"), None),
        ("It is not false", ("True", "False"), None),
        ("It is false", ("True", "False"), "False"),
        ("He left because of rain, I think", ("He left because of rain", "He left"), "He left because of rain"),
    ],
)
def test_options_that_look_like_letters_negations_and_reasons(reply, choices, option):
    assert resolve(reply, choices) == option


@pytest.mark.parametrize(
    "part, option",
    [
        ("dog ", "a dog"),
        (" ", None),
        ("\n", None),
        ("no answer is ", None),
        ("<answer>", None),
        ("(B) dog, thunder ", None),
        *(
            (part, None)
            for part in (
                ".",
                ",",
                "(",
                '"',
                "\n.",
                "\\boxed{",
                '"answer":',
                '"answer":"',
                "so ",
                "because ",
                "A.",
                "选",
                "<",
                "</s>",
                "<|x|>",
                "◁think▷",
                "analysis",
                "1 500 ",
                "two ",
                "A, ",
            )
        ),
    ],
)
def test_pages_of_repetition_come_to_an_end(part, option):
    # Takes seconds; a pattern that tries every start would take hours.
    repeated = part * (200_000 // len(part))
    assert resolve("x " + repeated, SOUNDS) == option
    assert resolve(f"x {repeated} y.", SOUNDS) == option


@pytest.mark.parametrize(
    "reply, option",
    [
        *(("I'm sorry, but there is no audio attached.", None), ("No audio was provided.", None)),
        *(("Since no clip is given, I cannot tell.", None), ("I'm unable to hear it; no file was attached", None)),
        *(("Yes\n\nThere is no pause.", "Yes"), ("The answer is Yes. There is no pause.", "Yes")),
        *(("Yes, there is no dog.", "Yes"), ("No, there is no dog.", "No"), ("There is no dog in it.", "No")),
        *(("Yes or no? I hear no dog.", None), ("Yes, no wait, No.", None), ("Yes. No.", None), ("No, yes.", None)),
    ],
)
def test_yes_and_no(reply, option):
    assert resolve(reply, YES_NO) == resolve(reply, YES_NO[::-1]) == option


@pytest.mark.parametrize(
    "reply",
    [
        *("I'm unable to hear any music in this clip.", "The clip lacks music.", "Music is absent."),
        *("Please upload the music so I can analyze it.", "I am unable to process speech."),
    ],
)
def test_options_in_refusals_are_not_answers(reply):
    assert resolve(reply, ("Speech", "Music", "Silence")) is None


@pytest.mark.parametrize("said", ["B", "(B)", "**B**", "Answer: B", "Cat", "B. Cat"])
@pytest.mark.parametrize("heading", ["Explanation:", "**Reasoning:**", "Justification :", "### Rationale:", "Reason:"])
def test_explanations_under_a_heading_are_reasons(said, heading):
    assert resolve(f"{said}\n\n{heading} a meow, not a dog or a cow.", ANIMALS) == "Cat"
    assert resolve(f"{heading} The dog is far away.\nAnswer: {said.removeprefix('Answer: ')}", ANIMALS) == "Cat"


def test_a_question_that_a_model_asks_itself_is_not_answered():
    assert resolve("B\n\nQuestion: What is it?\nAnswer: A", ANIMALS) == "Cat"
    assert resolve("Question: What is it?\nAnswer: A", ANIMALS) == "Dog"
    assert resolve("Let me see.\n\nQuestion: What is it?\nAnswer: A", ANIMALS) == "Dog"


@pytest.mark.parametrize(
    "reply, choices, option",
    [
        ("There are two speakers.", NUMBERS, "2"),
        ("There are 3 speakers.", ("Two speakers", "Three speakers"), "Three speakers"),
        ("I hear it three times", ("2 times", "3 times"), "3 times"),
        ("It is the one with the bark", NUMBERS, None),
        ("more than two speakers", NUMBERS, None),
        ("twenty two", NUMBERS, None),
        ("2", ("two", "2"), "2"),
        ("Hip hop", ("Hip-hop", "Jazz"), "Hip-hop"),
        ("sea_waves", ("Sea waves", "Rain"), "Sea waves"),
        ("[1.2, 2.5]", ("[1.2,2.5]", "[0.5,1.2]"), "[1.2,2.5]"),
        ("re sign", ("resign", "re-sign"), "re-sign"),
        ("5 degrees", ("-5 degrees", "10 degrees"), None),
    ],
)
def test_numbers_and_hyphens_in_another_spelling(reply, choices, option):
    assert resolve(reply, choices) == option
