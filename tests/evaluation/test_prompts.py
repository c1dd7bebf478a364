"""The wording of prompts, letter by letter."""

import pytest

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.prompts import PROMPTS, main, read_prompt
from falcon3_audio.evaluation.questions import Question
from falcon3_audio.training.world.audio_world import build_prompt


CHOICE = Question("1", (), "What's heard?", ("A dog", "it's a cat"))
OPEN = Question("2", (), "Describe it.")
AIR = (
    "Choose the most suitable answer from options A, B, C, and D to respond the question in next line, you may only "
    "choose A or B or C or D.\nWhat's heard?\nA. A dog\nB. it's a cat"
)


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "plain",
            "What's heard?\nA dog\nit's a cat\n"
            "Answer with one of these options, exactly as it is written above, and nothing else.",
        ),
        (
            "r1-aqa",
            "What's heard? Please choose the answer from the following options: ['A dog', \"it's a cat\"]. "
            "Output the final answer in <answer> </answer>.",
        ),
        ("mmar", "What's heard?\nSelect one option from the provided choices:\nA dog\nit's a cat"),
        ("air-bench-foundation", AIR),
        (
            "mmsu",
            "Choose the most suitable answer from options A, B, C, and D. You must respond with only A, B, C, or D."
            "\n\nQuestion: What's heard?\n\nA. A dog\nB. it's a cat",
        ),
        ("question", "What's heard?"),
        ("sound-alone", ""),
        ("audio-world", "What's heard? Choose one: A dog, it's a cat."),
    ],
)
def test_wording(name, text):
    assert PROMPTS[name](CHOICE) == text


def test_all_are_worded_here_and_benchmarks_name_them():
    assert set(PROMPTS) == {
        "plain",
        "r1-aqa",
        "mmar",
        "air-bench-foundation",
        "mmsu",
        "question",
        "sound-alone",
        "audio-world",
    }
    assert {benchmark.prompt for benchmark in BENCHMARKS.values()} <= set(PROMPTS)


@pytest.mark.parametrize("question", [CHOICE, OPEN])
def test_the_audio_worlds_prompt_is_that_of_training(question):
    assert PROMPTS["audio-world"](question) == build_prompt(question.question, question.choices)


@pytest.mark.parametrize("name", ["plain", "question", "audio-world"])
def test_open_questions_stand_alone(name):
    assert PROMPTS[name](OPEN) == "Describe it."


@pytest.mark.parametrize("name", ["r1-aqa", "mmar", "air-bench-foundation", "mmsu"])
def test_prompts_for_choices_refuse_open_questions(name):
    with pytest.raises(ValueError, match="'2' has no options.*'question' or 'plain'"):
        PROMPTS[name](OPEN)


def test_five_options_do_not_fit_air_bench():
    with pytest.raises(ValueError, match="'3' has 5 options"):
        PROMPTS["air-bench-foundation"](Question("3", (), "Which?", tuple("vwxyz")))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{question}\n{choices}\nAnswer:\n", "What's heard?\nA dog\nit's a cat\nAnswer:"),
        ("{question} ({inline_choices})", "What's heard? (A dog, it's a cat)"),
        ("{labelled_choices}\n{question}", "A. A dog\nB. it's a cat\nWhat's heard?"),
        ('Reply as {{"answer": ...}}: {question}', 'Reply as {"answer": ...}: What\'s heard?'),
        ("Write it down.", "Write it down."),
        ("\ufeffÜber: {question}", "Über: What's heard?"),
    ],
)
def test_a_prompt_of_a_file(tmp_path, text, words):
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    prompt = read_prompt(path)
    assert (prompt.name, prompt.fill(CHOICE)) == ("file mine.txt", words)
    assert prompt.text == text.strip().removeprefix("\ufeff")


@pytest.mark.parametrize(
    "text, fault",
    [
        ("{qestion}", r"has the placeholder \{qestion\}; known are \{question\}, \{choices\}"),
        ("{}", r"has the placeholder \{\}; known are"),
        ("{question.id}", r"has the placeholder \{question.id\}"),
        ("{question!r}", r"has the placeholder \{question!r\}"),
        ("{question:>9}", r"has the placeholder \{question:>9\}"),
        ("{question", r"is not a prompt: .*Write \{\{ and \}\} for literal braces"),
        (" \n", "is empty; expected the text"),
    ],
)
def test_what_is_no_prompt_is_an_error(tmp_path, text, fault):
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"mine.txt {fault}"):
        read_prompt(path)


def test_a_file_with_options_refuses_open_questions(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("{question} {choices}")
    with pytest.raises(ValueError, match="'2' has no options"):
        read_prompt(path).fill(OPEN)
    path.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not a prompt"):
        read_prompt(path)


def test_they_can_be_looked_at(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}:\n" in printed for name in PROMPTS)
