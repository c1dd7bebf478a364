"""Options, training rows and held-out questions."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from falcon3_audio.training.prepare.real_sounds.benchmark import benchmark_rows, trained_answers
from falcon3_audio.training.prepare.real_sounds.clips import Clip, Fact
from falcon3_audio.training.prepare.real_sounds.facts import count_fact, sound_facts, speaker_fact, text_facts
from falcon3_audio.training.prepare.real_sounds.questions import Pools, training_row, training_rows


LABELS = (
    "a dog",
    "a wolf or coyote",
    "a cat",
    "thunder",
    "a gunshot",
    "rain",
    "a train",
    "a saw",
    "applause",
    "coins",
)


def clip(domain, number, facts):
    return Clip(Path("x"), "p", "MIT", domain, {}, "v", "v", list(facts), path=f"{domain}-{number}.wav")


@pytest.fixture
def sounds():
    return [clip("sound", f"{label}-{number}", sound_facts(label)) for label in LABELS for number in range(4)]


def test_options(sounds):
    pools, draw = Pools(sounds), Random(0)
    seen = set()
    for _ in range(50):
        options = pools.options(sounds[0].facts[0], draw)
        assert "a dog" in options and "a wolf or coyote" not in options and len(set(options)) == 4
        assert not {"thunder", "a gunshot"} <= set(options)
        seen |= set(options)
    assert len(seen) == len(LABELS) - 1
    beside = replace(sounds[0].facts[0], beside="coins")
    assert all("coins" in pools.options(beside, draw) for _ in range(10))
    assert pools.options(Fact("count", ("?",), "one", options=("one", "two")), draw) is None
    few = Pools([clip("sound", 0, sound_facts(label)) for label in ("a dog", "a cat", "a wolf or coyote")])
    assert few.options(sounds[0].facts[0], draw) is None


def test_options_of_like_length():
    texts = [f"{'word ' * length}{letter}" for length in range(10) for letter in "abc"]
    clips = [clip("speech", text, text_facts(text, "English")) for text in texts]
    pools, draw = Pools(clips), Random(0)
    (fact,) = (fact for fact in clips[15].facts if fact.kind == "phrase")
    options = [text for _ in range(100) for text in pools.options(fact, draw)]
    assert max(abs(len(text) - len(fact.answer)) for text in options) <= 15
    assert min(map(len, options)) < len(fact.answer) < max(map(len, options))


def test_speakers_have_both_sexes_and_two_languages():
    facts = [speaker_fact("man", "Low German"), speaker_fact("woman", "Dutch")]
    pools = Pools([clip("speech", 0, facts)])
    assert sorted(pools.options(facts[0], Random(0))) == [
        "a man speaking Dutch",
        "a man speaking Low German",
        "a woman speaking Dutch",
        "a woman speaking Low German",
    ]
    assert Pools([clip("speech", 0, facts[:1])]).options(facts[0], Random(0)) is None


def test_training_rows(sounds):
    rows = training_rows(sounds, Random(0))
    questions = [question for _, row in rows for question in row["questions"]]
    closed = [question for question in questions if "Choose one" in question["instruction"]]
    for question in closed:
        assert question["output"] in question["instruction"]
    kinds = Counter(question["instruction"].split(" Choose")[0] for question in questions)
    assert kinds["What sound is this?"] and kinds["Is there speech in this clip?"] and len(closed) < len(questions)
    speech = [q["output"] for q in questions if q["instruction"] == "Is there speech in this clip?"]
    assert set(speech) == {"no"}


def test_at_most_six_questions_and_whether_there_is_speech():
    facts = [count_fact(f"kind {number}", (f"{number}?",), 1, range(1, 5)) for number in range(9)]
    rows = [training_row(clip("speech", 0, facts), Pools([]), Random(seed)) for seed in range(20)]
    assert {len(row["questions"]) for row in rows} == {6, 7}
    last = [row["questions"][-1] for row in rows if len(row["questions"]) == 7]
    assert all(question == {"instruction": "Is there speech in this clip?", "output": "yes"} for question in last)


def test_what_is_not_sure_is_drawn_and_not_asked(sounds):
    fact = count_fact("speaker count", ("How many?",), 2, range(1, 5))
    sure = [*sounds[:3], clip("sound", "x", [fact]), *sounds[3:]]
    unsure = [*sounds[:3], clip("sound", "x", [replace(fact, is_sure=False)]), *sounds[3:]]
    before, after = (dict((c.path, row) for c, row in training_rows(clips, Random(3))) for clips in (sure, unsure))
    assert "How many?" in str(before["sound-x.wav"]) and "How many?" not in str(after.get("sound-x.wav"))
    assert {k: v for k, v in before.items() if k != "sound-x.wav"} == {
        k: v for k, v in after.items() if k != "sound-x.wav"
    }
    asked, rest = (benchmark_rows(clips, set(LABELS), "test", 99, Random(3)) for clips in (sure, unsure))
    assert sum(row["sub-category"] == "Speaker count" for row in asked) == 1
    assert not any(row["sub-category"] == "Speaker count" for row in rest)


def test_held_out_questions(sounds):
    trained = trained_answers(sounds)
    rows = benchmark_rows(sounds, trained, "validation", 40, Random(0))
    assert (
        len(rows) == 40
        and [row["id"] for row in rows][:1] == ["sound-sound-00000"]
        or rows[0]["id"].startswith("sound-")
    )
    assert Counter(row["choices"].index(row["answer"]) for row in rows) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert max(Counter(row["audio_id"] for row in rows).values()) <= 2
    sounds_asked = Counter(row["answer"] for row in rows if row["sub-category"] == "Sound")
    assert max(sounds_asked.values()) - min(sounds_asked.values()) <= 1  # answers in turn
    assert benchmark_rows(sounds, trained, "validation", 40, Random(0)) == rows


def test_what_was_not_trained_is_neither_asked_nor_offered(sounds):
    trained = trained_answers(sounds) - {"coins"}
    rows = benchmark_rows(sounds, trained, "test", 60, Random(0))
    assert not any("coins" in row["choices"] for row in rows if row["sub-category"] == "Sound")
    assert trained_answers(sounds[:2]) == set()  # twice is not often enough
