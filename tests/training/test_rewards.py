"""Rewards: what replies earn, and which functions a recipe's names stand for."""

import pytest

from falcon3_audio.training.rewards import (
    REWARDS,
    answer_format,
    content_answer,
    exact_answer,
    load_rewards,
    same_words,
)


@pytest.mark.parametrize(
    ("reply", "right", "well_formed"),
    [
        ("a dog", 1, 0),
        ("A dog.", 1, 0),
        ("dog a", 0, 0),
        ("a dog and a bell", 0, 0),
        ("", 0, 0),
        ("<answer>a dog</answer>", 1, 1),
        ("<answer>\n A Dog \n</answer>\n", 1, 1),
        ("It barks, so: <answer>a dog</answer>", 1, 1),
        ("<answer>a dog</answer> I think", 1, 0),
        ("<answer>a bell</answer> a dog", 0, 0),
        ("<answer>a dog", 0, 0),
        ("a dog</answer>", 0, 0),
        ("<answer>a dog</answer> <answer>a bell</answer>", 1, 0),
        ("</answer>a dog<answer>", 0, 0),
        ("<answer></answer>", 0, 1),
    ],
)
def test_rewards(reply, right, well_formed):
    completions = [[{"role": "assistant", "content": reply}]]
    assert exact_answer(completions=completions, answer=["a dog"], origin=["?"]) == [right]
    assert answer_format(completions=completions, answer=["a dog"]) == [well_formed]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("C major", "c, Major!", True),
        ("C major", "C# major", False),
        ("C♯ major", "C# major", True),
        ("A♭", "A♯", False),
        ("A♭", "A", False),
        ("C", "C++", False),
        ("-5 dB", "5 dB", False),
        ("\N{MINUS SIGN}5 dB", "(-5) dB.", True),
        ("1990-2000", "1990\N{EN DASH}2000", True),  # a dash, not a minus
        ("- 5 dogs", "5 dogs", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("café", "cafe", False),
        ("का", "की", False),
        ("हिन्दी", "हन्दी", False),
        ("का-5", "का 5", True),
        ("ไม้", "ไม่", False),
        ("কথা", "কথা।", True),
    ],
)
def test_which_words_are_the_same(one, other, same):
    assert same_words(one, other) == same_words(other, one) == same


def test_the_content_of_a_reply_is_one_of_its_options():
    replies = ["(B) a dog", "It is a bell.", "a dog or a bell"]
    completions = [[{"role": "assistant", "content": reply}] for reply in replies]
    options = [["a bell", "a dog"]] * 3
    assert content_answer(completions=completions, answer=["a dog"] * 3, choices=options, origin=["?"] * 3) == [
        1,
        0,
        0,
    ]


def test_names_and_import_paths(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "def short(completions, **_):\n    return [1.0 for _ in completions]\nNUMBER = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = load_rewards(["content", "my_rewards.short"])
    assert first is REWARDS["content"] and second(completions=["a", "b"]) == [1.0, 1.0]
    for name, message in {
        "contents": "there is no reward 'contents'. Built in are exact, content, format",
        "my_reward.short": "'my_reward.short' cannot be imported: No module named 'my_reward'",
        "my_rewards.long": "my_rewards has no function 'long'",
        "my_rewards.NUMBER": "my_rewards has no function 'NUMBER'",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_rewards([name])
