"""Which instructions can be spoken: texts as in published sets, each with the reason that a reader would give."""

import pytest

from falcon3_audio.training.prepare.espeak import voices
from falcon3_audio.training.prepare.speakable import SCRIPTS, Exchange, SpokenLimits, spoken_form, why_not_spoken


SPOKEN = [
    "Give three tips for staying healthy.",
    "Who wrote “Pride and Prejudice”, and when?",
    "What's the difference between weather & climate?",
    "My rent rose by 12.5% to $1,250 - is that normal?",
    "Describe the café's à-la-carte menu (starters only).",
    "Tell me how C++ differs from Java.",
    "Compare the years 1914-1918 and 1939–1945.",
    "Which animals live above 3000 metres?",
    "Write a python function that sorts a list.",
    "Give me advice on the below average results of my team.",
    "Explain quantum\n\n computing   to a child; use an example.",
]

LEFT_OUT = {
    "Summarise https://example.org/page for me.": "URL or e-mail address",
    "What is sold on amazon.com these days?": "URL or e-mail address",
    "Write to jane.doe@example.co.uk about it.": "URL or e-mail address",
    "What does `len` do in Python?": "code",
    "What does print() return in Python?": "code",
    "Explain what this does:\n```\nx\n```": "code",
    "What is max_value good for?": "code",
    "Why is a != b true for NaN?": "code",
    "Put the text into <b>bold</b> letters.": "code",
    "int a;\nfloat b;\nwhat is a?": "code",
    "Solve for the unknown: 2x + 3 = 7": "mathematics",
    "What is 5 + 7, and what is 3?": "mathematics",
    "What is 12 - 7 or the like?": "mathematics",
    "Simplify \\frac {1} of it, please.": "mathematics",
    "What is the derivative of f(x) here?": "mathematics",
    "How large is √2 to three digits?": "mathematics",
    "# Title\nWrite a short poem.": "table or markdown",
    "Sort these:\n- apples\n- pears": "table or markdown",
    "Answer both:\n1. Why?\n2. When?": "table or markdown",
    "name | age\nAnn | 3\nWho is older?": "table or markdown",
    "This is **very** important to me.": "table or markdown",
    "Translate to French:": "refers to a text",
    "Rewrite the following sentence.": "refers to a text",
    "Summarise this article in two lines.": "refers to a text",
    "Is the given claim true or false?": "refers to a text",
    "Who speaks in the passage, and why?": "refers to a text",
    "Given a sentence, find its verb.": "refers to a text",
    "Answer the question below.": "refers to a text",
    "Fix the bug in the attached program.": "refers to a text",
    "What happened as described above, and why?": "refers to a text",
    "Why?": "too short",
    "Tell me about the sea. " * 14: "too long",
    "12345, 6789 ...": "no words",
    "What does the word привет mean?": "letters of another script",
    "What does α stand for in physics?": "letters of another script",
    "Tell me something nice 🙂 please.": "characters that are not spoken",
    "Fill in: the sky is ____ today.": "characters that are not spoken",
    "Use the #hashtag in a sentence.": "characters that are not spoken",
    "Repeat after me: a\0b and again.": "characters that are not spoken",
}

LANGUAGES = {
    "ar": "ما هي عاصمة فرنسا؟",
    "de": "Erkläre mir, wie Käse gemacht wird.",
    "el": "Ποια είναι η πρωτεύουσα της Γαλλίας;",
    "he": "מהי בירת צרפת ולמה?",
    "hi": "फ्रांस की राजधानी क्या है।",
    "ja": "フランスの首都はどこですか。",
    "ka": "რა არის საფრანგეთის დედაქალაქი?",
    "ko": "프랑스의 수도는 어디입니까?",
    "cmn": "请告诉我法国的首都是哪里？",
    "ru": "Назови три реки Европы.",
    "ta": "பிரான்சின் தலைநகரம் எது?",
    "th": "เมืองหลวงของฝรั่งเศสคืออะไร",
}


def reason(instruction, accompanying=None, answer="An answer.", **limits):
    return why_not_spoken(Exchange(instruction, accompanying, answer), SpokenLimits(**limits))


@pytest.mark.parametrize("instruction", SPOKEN)
def test_spoken(instruction):
    assert reason(instruction) is None


@pytest.mark.parametrize(("instruction", "expected"), LEFT_OUT.items())
def test_left_out(instruction, expected):
    assert reason(instruction) == expected


@pytest.mark.parametrize("language", LANGUAGES)
def test_scripts(language):
    """A text is spoken in its own language, and in no language of another script."""
    latin = language == "de"
    assert reason(LANGUAGES[language], language=language) is None
    assert reason(LANGUAGES[language], language="en") == (None if latin else "letters of another script")
    assert reason("Name three rivers.", language=language) == (None if latin else "letters of another script")


def test_a_language_of_two_scripts():
    assert reason("Наброј три реке.", language="sr") is None
    assert reason("Nabroj tri reke.", language="sr") is None


def test_scripts_name_the_languages_that_espeak_has():
    bases = {tag.split("-")[0] for tag in voices("")}
    assert {language for languages in SCRIPTS.values() for language in languages.split()} - bases == {"zh"}


def test_the_rest_of_the_row():
    assert reason(None) == "no text"
    assert reason(["Name three rivers."]) == "no text"
    assert reason("Name three rivers.", answer=None) == "no text"
    assert reason("Name three rivers.", answer=" \n") == "empty answer"
    assert reason("Name three rivers.", accompanying="of France") == "has an accompanying text"
    for nothing in (None, "", "  ", "<noinput>", "None", "N/A"):
        assert reason("Name three rivers.", accompanying=nothing) is None


def test_lengths():
    text = "Name three rivers."  # 18 characters
    assert reason(text, min_characters=18, max_characters=18) is None
    assert reason(text, min_characters=19) == "too short"
    assert reason(text, max_characters=17) == "too long"
    assert reason(text.replace(" ", " \n  "), max_characters=18) is None


def test_spoken_form():
    assert spoken_form(" Name\tthree\n\n rivers. ") == "Name three rivers."
