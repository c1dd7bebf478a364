"""Small files in MMSU's parquet and JSON formats, and its rule; verdicts by hand from the published script."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import without, write_clip, write_lines

from falcon3_audio.evaluation import score
from falcon3_audio.evaluation.benchmarks import BENCHMARKS, title_of
from falcon3_audio.evaluation.load_mmsu import QUESTIONS, TASKS, load_mmsu
from falcon3_audio.evaluation.predictions import ANSWERED, MISSING, Prediction, read_predictions
from falcon3_audio.evaluation.rules import Verdict, mmsu_official


ROW = {
    "id": "emotion_1",
    "task_name": "emotion_recognition",
    "audio_path": "audio/e1.wav",
    "question": "How does the speaker feel?",
    "choice_a": "happy",
    "choice_b": "sad",
    "choice_c": "angry",
    "choice_d": "calm",
    "answer_gt": "sad",
    "category": "Perception",
    "sub-category": "Paralinguistics",
    "sub-sub-category": "Speaking style",
    "linguistics_sub_discipline": "Paralinguistics",
}
TWO = ROW | {"id": "stress_2", "task_name": "stress", "choice_c": None, "choice_d": "", "answer_gt": "happy"}
GROUPS = {
    "task": "emotion_recognition",
    "category": "Perception",
    "sub-category": "Paralinguistics",
    "sub-sub-category": "Speaking style",
    "linguistics_sub_discipline": "Paralinguistics",
}


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "audio" / "e1.wav")
    return tmp_path


def parquet(folder, *rows):
    """As on the Hub: in `data/`, with the audio in the rows."""
    (folder / "data").mkdir(exist_ok=True)
    content = (folder / "audio" / "e1.wav").read_bytes()
    for number, row in enumerate(rows):
        row = without(row, "audio_path") | {"audio": {"bytes": content, "path": "e1.wav"}}
        pq.write_table(pa.Table.from_pylist([row]), folder / "data" / f"train-0000{number}-of-00002.parquet")
    return folder / "data"


@pytest.mark.parametrize("form", ["parquet", "lines"])
def test_questions_are_read(folder, form):
    path = parquet(folder, ROW, TWO) if form == "parquet" else write_lines(folder / "mmsu.jsonl", [ROW, TWO])
    loaded = load_mmsu(path)
    first, second = loaded.questions
    assert (first.id, first.question, first.answer) == ("emotion_1", "How does the speaker feel?", "sad")
    assert first.choices == ("happy", "sad", "angry", "calm") and first.groups == GROUPS
    assert (second.choices, second.answer) == (("happy", "sad"), "happy")
    assert first.audio[0].name == ("emotion_1" if form == "parquet" else "audio/e1.wav")
    assert first.audio[0].read() == (folder / "audio" / "e1.wav").read_bytes()
    assert loaded.benchmark == "mmsu" and len(loaded.sha256) == (2 if form == "parquet" else 1)
    assert set(BENCHMARKS["mmsu"].breakdowns) <= first.groups.keys()


@pytest.mark.parametrize(
    "row, fault",
    [
        (without(ROW, "id"), "no 'id'"),
        (without(ROW, "task_name"), "no 'task_name'"),
        (ROW | {"answer_gt": "B"}, "answer not among the choices .*'B' is none of"),
        (ROW | {"choice_b": None}, "expected two or more, none empty"),
        (ROW | {"audio_path": "audio/none.wav"}, "audio file missing"),
        (ROW | {"sub-category": {"a": 1}}, "'sub-category' is .*expected a text"),
    ],
)
def test_a_faulty_row_is_named(folder, row, fault):
    with pytest.raises(ValueError, match=rf"mmsu.jsonl: 1 of 2 rows cannot be used: .*{fault}") as error:
        load_mmsu(write_lines(folder / "mmsu.jsonl", [TWO, row]))
    assert "[line 2 (" in str(error.value)


def test_bad_parquet_files(folder):
    data = parquet(folder, ROW)
    with pytest.raises(ValueError, match="holds its audio itself; leave it out"):
        load_mmsu(data, audio_root=folder)
    pq.write_table(pa.Table.from_pylist([{"id": "1"}]), folder / "other.parquet")
    with pytest.raises(ValueError, match="MMSU's parquet form also has .*'audio', 'task_name'"):
        load_mmsu(folder / "other.parquet")


@pytest.mark.parametrize(
    "reply, verdict",
    [
        ("B", Verdict.RIGHT),
        ("B. sad", Verdict.RIGHT),
        ("Because I say so", Verdict.RIGHT),  # its first letter
        ("The answer is B.", Verdict.RIGHT),
        ("(B)", Verdict.RIGHT),
        ("A", Verdict.WRONG),
        ("D", Verdict.WRONG),
        ("", Verdict.WRONG),
        (" \n", Verdict.WRONG),
        ("None", Verdict.WRONG),
        ("sad", Verdict.LEFT_OUT),
        ("b", Verdict.LEFT_OUT),
        (None, Verdict.LEFT_OUT),
    ],
)
def test_the_published_rule(reply, verdict):
    status = MISSING if reply is None else ANSWERED
    options = ("happy", "sad", "angry", "sad")
    assert mmsu_official(Prediction("q", status, reply, choices=options[:3], answer="sad")) == verdict


def test_the_published_rule_takes_an_option_twice_and_no_letter_beyond():
    options = ("happy", "sad", "angry", "sad")
    assert mmsu_official(Prediction("q", ANSWERED, "D", choices=options, answer="sad")) == Verdict.RIGHT
    assert mmsu_official(Prediction("q", ANSWERED, "D", choices=options[:2], answer="sad")) == Verdict.WRONG


def test_published_predictions_are_scored_by_both_rules(folder):
    rows = [ROW | {"response": "B"}, TWO | {"response": "happy"}, ROW | {"id": "e3", "response": "A"}]
    found = read_predictions(write_lines(folder / "predictions_of_theirs.jsonl", rows))
    result = score.score(found, "mmsu")
    rules = {name: (rule["n"], rule["right"]) for name, rule in result["rules"].items()}
    assert rules == {"mmsu-official": (2, 1), "content": (3, 2)}
    assert set(result["rules"]["content"]["breakdowns"]) == set(BENCHMARKS["mmsu"].breakdowns)
    assert result["title"] == "Own questions in MMSU's format"


def test_the_name_is_for_its_own_questions():
    ids, tasks = [str(number) for number in range(QUESTIONS)], [str(number) for number in range(TASKS)]
    assert title_of("mmsu", ids, tasks) == "MMSU"
    assert title_of("mmsu", ids[1:], tasks) == title_of("mmsu", ids, tasks[1:]) == "Own questions in MMSU's format"
