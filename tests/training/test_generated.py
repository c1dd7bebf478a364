"""Answers during training: the same as a pipeline's, scored as in evaluation, for any batch size and processes."""

from pathlib import Path

import pytest
from training_runs import (
    TEXT,
    assistant,
    clip_row,
    heard,
    history_of,
    log_of,
    user,
    write_chats,
    write_clips,
    write_jsonl,
)
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from falcon3_audio.evaluation.word_errors import count_word_errors, error_rate, normalizer
from falcon3_audio.training import generated, sft
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio.training.generated import Asked, Examination, draw_questions, measured_of, rate_of, score_replies


def asked(answer, choices=(), of="set"):
    return Asked(of, [user("?")], answer, tuple(choices), "row")


def scored(pairs):
    return score_replies(pairs, rate_of([question for question, _ in pairs]))


def draw(path, count):
    examples, (size,) = load_training_data([DataSource(str(path))])
    return draw_questions(examples, {"set": size}, count)


@pytest.fixture
def examination(sensitive, tmp_path):
    """On ten chats, one with two clips and one with several turns, for a model whose answers depend on the clips."""
    questions = draw(write_chats(tmp_path / "chats"), 64)
    return Examination(questions, AutoProcessor.from_pretrained(sensitive), 4, False)


@pytest.fixture
def answering(sensitive):
    return AutoModelForMultimodalLM.from_pretrained(sensitive).eval()


def test_replies_are_those_of_a_pipeline(examination, answering, sensitive, monkeypatch):
    ask = pipeline("audio-text-to-text", model=sensitive)
    expected = [
        ask(question.prompt, return_full_text=False, max_new_tokens=examination.max_new_tokens)[0]["generated_text"]
        for question in examination.asked
    ]
    assert len(set(expected)) > 5
    seen = []
    monkeypatch.setattr(generated, "score_replies", lambda answered, rate: seen.append(answered) or {})
    examination.hold(answering)
    assert [reply for _, reply in seen[0]] == [reply.strip() for reply in expected]


def test_processes_answer_a_share_each(examination, answering, monkeypatch):
    whole, shares = examination.hold(answering), []
    with monkeypatch.context() as patch:
        patch.setattr(generated, "gather_object", lambda replies: shares.append(replies) or replies)
        for process in range(3):
            examination.hold(answering, process, 3)
    assert [len(share) for share in shares] == [4, 3, 3]
    monkeypatch.setattr(generated, "gather_object", lambda replies: sum(shares, []))
    assert examination.hold(answering, 1, 3) == whole


def test_rows_with_options_are_read_for_their_content():
    options = ["a dog", "a cat"]
    found = scored([(asked("a dog", options), "(A) A dog."), (asked("a cat", options), "It is the dog")])
    assert found == {"num_generated": 2, "exact_match": 0.0, "accuracy": 0.5}


def test_rates_are_those_of_evaluation():
    pairs = [("The cat sat.", "the cat sat down"), ("a dog", "dogs"), ("...", "nothing was said")]
    found = scored([(asked(reference), reply) for reference, reply in pairs])
    counted = error_rate(count_word_errors(*map(list, zip(*pairs[:2])), normalizer()))
    assert (
        found == {"num_generated": 3, "exact_match": 0.0, "wer": counted["word_error_rate"]} and found["wer"] == 3 / 5
    )
    assert scored([(asked("你好，世界"), "你好地界")]) == {"num_generated": 1, "exact_match": 0.0, "cer": 1 / 4}
    assert "wer" in scored([(asked("привет мир"), "привет")])


@pytest.mark.parametrize(
    ("reference", "reply", "name", "rate"),
    [
        ("Wir treffen uns um acht.", "wir treffen uns acht", "wer", 1 / 5),  # "um" is not a filler here
        ("um dois três", "dois três", "wer", 1 / 3),
        ("मेरी किताब", "मेरा कताब", "wer", 2 / 2),
        ("caf\u00e9 noir", "Cafe\u0301 noir!", "wer", 0),
        ("ไม้ไผ่", "ไม่ไผ่", "cer", 1 / 4),
    ],
)
def test_rates_are_right_in_any_language(reference, reply, name, rate):
    assert scored([(asked(reference), reply)])[name] == pytest.approx(rate)


ENGLISH, CHINESE = asked("a dog", of="en"), asked("你好，世界", of="zh")


def test_the_rate_follows_from_the_questions_and_not_from_those_answered():
    """The name of the metric must be known before training; a clip that is too long must not change it."""
    mixed = [asked("你好，世界，朋友"), asked("a dog")]
    assert measured_of(mixed) == ["exact_match", "cer"]
    assert score_replies([(mixed[1], "a dog")], rate_of(mixed)) == {"num_generated": 1, "exact_match": 1, "cer": 0}
    assert score_replies([], "cer") == {"num_generated": 0}
    closed = [asked("a dog", ["a dog", "a cat"])]
    assert measured_of(closed) == ["exact_match", "accuracy"] and rate_of(closed) is None
    assert measured_of([asked("...")]) == ["exact_match"]  # no word to count


def test_sets_with_different_rates_have_none_together(examination, answering, monkeypatch):
    sets = [ENGLISH, CHINESE, asked("B", ["B", "C"], of="options")]
    each = ["en_exact_match", "en_wer", "zh_exact_match", "zh_cer", "options_exact_match", "options_accuracy"]
    assert measured_of(sets) == ["exact_match", "accuracy", *each]
    assert measured_of([ENGLISH, asked("a cat", of="more")])[:2] == ["exact_match", "wer"]
    examination.asked = sets
    monkeypatch.setattr(Examination, "_answer", lambda self, model, some: [(n, one.answer) for n, one in some])
    found = examination.hold(answering)
    assert found.keys() - {"num_generated", "en_num_generated", "zh_num_generated", "options_num_generated"} == set(
        measured_of(sets)
    )
    assert found["en_wer"] == found["zh_cer"] == 0


def test_options_come_from_the_row(tmp_path):
    (clip,) = write_clips(tmp_path, 1)
    rows = [
        {"messages": [user(heard(clip), TEXT), assistant("B. a cat")], "choices": ["a dog", "a cat"]},
        {"messages": [user(heard(clip), TEXT), assistant("a bell")]},
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    one, two = draw(path, 5)
    assert (one.answer, one.choices, two.answer, two.choices) == ("a cat", ("a dog", "a cat"), "a bell", ())
    assert [item["type"] for item in one.prompt[0]["content"]] == ["audio", "text"] and len(one.prompt) == 1
    rows[1]["options"] = ["a dog", "a cat"]
    write_jsonl(path, rows)
    with pytest.raises(ValueError, match=r"rows.jsonl, row 1: the answer 'a bell' is none of the row's options"):
        draw(path, 5)
    row = clip_row(clip, 2) | {"audio": str(clip)}
    row["questions"] = [question | {"choices": [question["output"], "none"]} for question in row["questions"]]
    path = write_jsonl(tmp_path / "clips.jsonl", [row])
    assert [question.choices for question in draw(path, 5)] == [
        ("answer 0", "none"),
        ("answer 1", "none"),
    ]
    assert len(draw(path, 1)) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"text": ["a dog", "a cat"], "label": ["A", "B"]},
        [{"text": "a dog", "label": "A"}, {"text": "a cat", "label": "B"}],
        '["a dog", "a cat"]',
        '{"text": ["a dog", "a cat"]}',
    ],
)
def test_options_are_read_as_sets_have_them(tmp_path, options):
    (clip,) = write_clips(tmp_path, 1)
    row = {"messages": [user(heard(clip), TEXT), assistant("a cat")], "choices": options}
    (question,) = draw(write_jsonl(tmp_path / "rows.jsonl", [row]), 1)
    assert question.choices == ("a dog", "a cat")


@pytest.mark.parametrize("options", ["A. dog\nB. cat", {"A": "dog", "B": "cat"}, [["dog"], ["cat"]], ["dog", None], 4])
def test_options_that_cannot_be_read_are_an_error(tmp_path, options):
    (clip,) = write_clips(tmp_path, 1)
    row = {"messages": [user(heard(clip), TEXT), assistant("cat")], "options": options}
    with pytest.raises(ValueError, match="rows.jsonl, row 0: `options` must be a list of texts, got"):
        draw(write_jsonl(tmp_path / "rows.jsonl", [row]), 1)


@pytest.mark.parametrize("options", [None, [], "", "[]", {"text": None, "label": None}])
def test_rows_without_options_are_open(options):
    assert generated.choices_of({"choices": options}, generated.WHOLE_ROW, "row 0") == ()


def test_questions_are_drawn_of_each_of_several_sets(tmp_path):
    """The same questions as from each set on its own, with the options of their own rows."""
    (clip,) = write_clips(tmp_path, 1)
    paths = []
    for name in ("one", "two"):
        answers = [f"{name} {number}" for number in range(9)]
        rows = [
            {"messages": [user(heard(clip), TEXT), assistant(answer)], "choices": ["none", answer]}
            for answer in answers
        ]
        paths.append(write_jsonl(tmp_path / f"{name}.jsonl", rows))
    examples, sizes = load_training_data([DataSource(str(path)) for path in paths])
    together = draw_questions(examples, dict(zip(("one", "two"), sizes)), 4)
    assert [question.of for question in together] == ["one"] * 4 + ["two"] * 4
    assert [q.origin for q in together] == [q.origin for path in paths for q in draw(path, 4)]
    assert all(q.answer.startswith(q.of) and q.choices == ("none", q.answer) for q in together)


def test_questions_that_cannot_be_asked(examination, answering, tmp_path):
    """A clip that is too long drops its question; an unreadable one is an error unless bad clips are skipped."""
    examination.processor.max_audio_seconds = 0.4
    assert examination.hold(answering)["num_generated"] < 10
    examination.processor.max_audio_seconds = 30
    (tmp_path / "chats" / "3.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="chats.jsonl, row 3"):
        examination.hold(answering)
    examination.skip_bad_audio = True
    assert examination.hold(answering)["num_generated"] == 9


def test_a_run_chooses_its_best_step_by_what_it_answers(recipe, tmp_path, monkeypatch, capsys):
    measured = iter([0.25, 0.75, 0.5])
    hold = Examination.hold
    monkeypatch.setattr(Examination, "hold", lambda *args: hold(*args) | {"exact_match": next(measured)})
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "steps", "--eval_steps", "2")
    options += ("--eval_generate", "3", "--load_best_model_at_end", "true", "--metric_for_best_model", "exact_match")
    assert sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run"), *options]) == 0
    said = capsys.readouterr().out
    assert "3 questions of eval_data are answered at each evaluation" in said and "best step: 4" in said
    entries = [entry for entry in history_of(tmp_path / "run") if "eval_exact_match" in entry]
    assert [entry["eval_num_generated"] for entry in entries] == [3, 3, 3] and "eval_wer" in entries[0]
    assert history_of(tmp_path / "run")[-1]["loaded_step"] == 4


def test_answering_leaves_training_as_it_is(recipe, tmp_path, finished_run):
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "steps", "--eval_steps", "2")
    assert sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run"), *options, "--eval_generate", "2"]) == 0
    ours, theirs = (
        [entry["loss"] for entry in log_of(run)] for run in (tmp_path / "run", Path(finished_run.args.output_dir))
    )
    assert ours == theirs


def test_mistakes(recipe, tmp_path, capsys, monkeypatch):
    def said(*options):
        assert sft.main(["--config", recipe, "--output_dir", str(tmp_path / "run"), *options]) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "there are none: give eval_data" in said("--eval_generate", "4")
    options = ("--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "steps", "--eval_steps", "2")
    options += ("--eval_generate", "4")
    assert "'accuracy' is not measured in this run" in said(*options, "--metric_for_best_model", "accuracy")
    assert "'cer' is not measured in this run (nearest: eval_wer)" in said(*options, "--metric_for_best_model", "cer")
    assert not list((tmp_path / "run").glob("checkpoint-*"))  # nothing was trained
    monkeypatch.setattr(generated, "find_spec", lambda name: None)
    assert "jiwer, which is not installed" in said(*options)
