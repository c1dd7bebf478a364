"""A letter that is said against an option that is only named, and letters said in other words and languages."""

import pytest

from falcon3_audio.evaluation.read_option import resolve


ANIMALS = ("Dog", "Cat", "Two birds", "Rain")
SAID = [
    *(
        "It must be B,",
        "It would be B.",
        "That would be B.",
        "I think B.",
        "I think it's B.",
        "I believe B,",
        "I'd say B.",
    ),
    *("Choice: B.", "Option: B.", "Selected: B.", "Prediction: B.", "Correct: B.", "Label: B.", "Result: B."),
    *(
        "Response: B\n",
        "Verdict: B.",
        "Output: B\n\n",
        "Ответ: B.",
        "Réponse : B.",
        "Elijo B.",
        "Ich nehme B.",
        "应该是B。",
    ),
    *("Probably B -", "Definitely B,", "Perhaps B.", "The correct one is B.", "My guess is B,", "It's B:", "B it is."),
    *("The sound matches B.", "It sounds like B,", "We conclude B;", "=> B,", "B fits best.", "B seems right.", "b,"),
    *("B's the answer.", "B'd be my guess.", "'B'.", '"B".', "#B:", "<B>", "B/", "(b)", "[B]", "I am going with B."),
    *("The second option.", "Option 2.", "Option two.", "The 2nd choice."),
]
REASONS = [
    "a dog would bark.",
    "A dog would bark.",
    "The dog would bark.",
    "the dog is too quiet",
    "(dogs: dog barks)",
]


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("reason", REASONS)
def test_an_option_named_in_the_reason_does_not_overrule_the_letter(said, reason):
    assert resolve(f"{said} {reason}", ANIMALS) in ("Cat", None)
    assert resolve(f"{reason} {said}", ANIMALS) in ("Cat", None)


@pytest.mark.parametrize(
    "reply", ["I'd say B:A dog would bark.", "I think B.The dog would bark.", "B/A dog would bark."]
)
def test_a_letter_counts_without_a_space_behind_it(reply):
    assert resolve(reply, ANIMALS) is None


def test_the_letter_a_before_a_verb_or_a_conjunction_is_no_article():
    for reply in ("It must be A as the cat would meow.", "A fits, the cat would meow.", "I say A over the cat."):
        assert resolve(reply, ANIMALS) is None
    assert resolve("A cat over there", ANIMALS) == "Cat"


MOODS = ("Happy", "Sad", "Angry", "Neutral")


@pytest.mark.parametrize(
    "reply",
    [
        *("I am sad, I am sure", "It is a sad voice", 'It is a "sad" voice', "An utterly sad one", "I'd say sad"),
        *(
            "Speaker A sounds sad",
            "The singer of section C is sad",
            "It is sad, in C minor",
            "It is sad: B-flat minor",
        ),
        *(
            "The mood (option B) is sad",
            "It is B, sad",
            "It is B. He is sad.",
            "Prediction: sad",
            "A voice, i.e. a sad one",
        ),
    ],
)
def test_articles_pronouns_names_and_keys_are_no_labels(reply):
    assert resolve(reply, MOODS) == "Sad"


LETTERS_ALONE = [
    *(
        "Choice: B",
        "Selected option: B",
        "Result: B",
        "Label: B",
        "Selected: B.",
        "Prediction: B",
        "Final: B",
        "choice: b",
    ),
    *(
        "Result = B",
        "Choice -> B",
        "Output: **B**",
        "The label is B.",
        "My guess is B.",
        "The correct one is B",
        "B, I think",
    ),
    *(
        "I think it's B",
        "I'd say B.",
        "It must be B.",
        "That would be B",
        "Definitely B",
        "Most likely B.",
        "Picking B",
    ),
    *("答案应为B", "答案应该是B", "应该是B", "我认为是B", "回答：B", "最佳答案是B。", "B是正确的", "正确选项为B"),
    *("答えはBです", "回答はB", "Bだと思います", "정답은 B", "답: B", "B입니다", "Ответ: B", "Ответ — B", "Вариант B"),
    *("La respuesta correcta es B", "La opción correcta es B", "Opción B", "Elijo B.", "Es B.", "Creo que es B."),
    *("La bonne réponse est B", "La réponse correcte est B", "Choix : B", "C'est B.", "Je choisis B", "Je dirais B."),
    *("A resposta correta é B", "Opção B", "Escolho B.", "La risposta corretta è B", "Opzione B", "Scelgo B."),
    *("Die richtige Antwort ist B", "Die Antwort lautet B", "Wahl: B", "Es ist B.", "Ich wähle B."),
]


@pytest.mark.parametrize("reply", LETTERS_ALONE)
def test_a_clear_statement_of_a_letter_is_read(reply):
    assert resolve(reply, ANIMALS) == "Cat"


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "Wrong: B",
            "Incorrect choice: B",
            "The answer is certainly not B",
            "It can't be B.",
            "Choice: B or C",
            "Maybe B",
        ),
        *("La respuesta no es B", "La réponse n'est pas B", "Mauvaise réponse : B", "Die Antwort ist nicht B"),
        *(
            "La risposta non è B",
            "A resposta não é B",
            "不应该是B",
            "答案不应该是B",
            "Неверный ответ: B",
            "Ответ не B",
        ),
    ],
)
def test_a_letter_that_is_denied_or_doubted_is_not(reply):
    assert resolve(reply, ANIMALS) is None


NUMBERED = ("1. Man", "2. Woman", "3. Dog")


@pytest.mark.parametrize(
    "reply",
    [
        *(
            "2",
            "2.",
            "(2)",
            "[2]",
            "2)",
            "**2**",
            "Option 2",
            "The answer is 2.",
            '{"answer": 2}',
            "\\boxed{2}",
            "2, I think",
        ),
        *("<answer>2</answer>", "2. Woman", "(2) Woman", "2 - Woman", "Woman", "woman (2)", "It is a woman.", "B"),
        *("2, because a man is lower", "The answer is (2), since a dog would bark"),
    ],
)
def test_numbers_are_labels_where_options_are_numbered(reply):
    assert resolve(reply, NUMBERED) == "2. Woman"


@pytest.mark.parametrize(
    "reply",
    [
        *("I hear 2 of them", "2 people talk", "12", "2.5", "-2", "4", "2 or 3", "(1) or (2)", "1, 2", "1.\n2.\n3."),
        *("It must be 2, a dog would bark", "Option 2. A dog would bark", "2. A dog barks"),
    ],
)
def test_other_numbers_are_not(reply):
    assert resolve(reply, NUMBERED) is None


def test_numbers_are_no_labels_of_options_that_are_numbers():
    assert resolve("2", ("1. 3 dogs", "2. 2 dogs")) is None
    assert resolve("2", ("1. one", "2. three")) is None
    assert resolve("3", ("1. 3", "2. 2")) == "1. 3"
    assert resolve("2", ("1. 10 s", "2. 20 s")) == "2. 20 s"


@pytest.mark.parametrize(
    ("choices", "reply", "meant"),
    [
        (("Major", "Minor", "Diminished", "Augmented"), "The song is in C Minor", "Minor"),
        (("Major", "Minor", "Diminished", "Augmented"), "It's a D major chord", "Major"),
        (("Major", "Minor"), "The key is B major.", "Major"),
        (("Major scale", "Minor scale", "Blues scale", "Other"), "The C major scale", "Major scale"),
        (("Triad", "Seventh", "Ninth", "Octave"), "It's a C triad", "Triad"),
        (("Blues", "Jazz", "Rock", "Funk"), "A blues in C", "Blues"),
        (("Guitar", "Piano", "Violin", "Flute"), "Piano playing the note D", "Piano"),
        (("Guitar", "Piano", "Violin", "Flute"), "The D string of a violin", "Violin"),
        (("Male", "Female"), "Caller B is male", "Male"),
    ],
)
def test_a_note_next_to_the_named_option_is_no_label(choices, reply, meant):
    assert resolve(reply, choices) == meant
