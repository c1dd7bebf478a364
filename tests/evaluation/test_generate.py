"""Runs of questions: what they write, how they resume after a kill, and when they refuse. The answerer is a fake."""

import fcntl
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_runs import killed_while, make_questions, rows_of, run_of

from falcon3_audio.evaluation.answerers import RunStopped, answered, failed
from falcon3_audio.evaluation.endpoint import EndpointFailed, EndpointUnavailable
from falcon3_audio.evaluation.generate import generate
from falcon3_audio.evaluation.journal import JOURNAL
from falcon3_audio.evaluation.predictions import PREDICTIONS, RUN, read_predictions
from falcon3_audio.evaluation.questions import QuestionSet


class Fake:
    """Replies with the clips' names and the prompt, in batches of two, and writes the questions' ids to `log`."""

    packages = ("numpy",)

    def __init__(self, log: Path, workers=1, fails=(), stops_at=None, model="fake", error=None):
        self.error = error or ValueError("no\nsound")
        self.log, self.workers, self.fails, self.stops_at, self.model = log, workers, fails, stops_at, model
        self.checked, self.prepared = 0, []

    def describe(self):
        return {"model": self.model, "decoding": {"max_new_tokens": 5}}

    def batches(self, items):
        return [list(items[start : start + 2]) for start in range(0, len(items), 2)]

    def check_audio(self):
        self.checked += 1
        return "checked"

    def prepare(self, clips):
        self.prepared.append([clip.name for clip in clips])

    def answer(self, items):
        ids = [item.question.id for item in items]
        if self.stops_at in ids:
            raise RunStopped("enough")
        with open(self.log, "a") as log:
            log.write("".join(f"{identity}\n" for identity in ids))
        heard = {item.question.id: "".join(clip.name for clip in item.heard) for item in items}
        yield [
            failed(item, self.error)
            if item.question.id in self.fails
            else answered(item, f"{heard[item.question.id]}: {item.prompt}\n", audio_tokens=len(item.prompt))
            for item in items
        ]


@pytest.fixture
def questions(tmp_path):
    return make_questions(tmp_path / "clips", "abcabca")


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


def test_what_is_written(questions, log, tmp_path):
    statuses = generate(questions, Fake(log, fails=["q2"]), tmp_path / "out", "question")
    assert statuses == {"answered": 6, "failed": 1}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {JOURNAL, PREDICTIONS, RUN}
    predictions = read_predictions(tmp_path / "out")
    assert [row.id for row in predictions.rows] == [f"q{number}" for number in range(7)]
    for row, question in zip(predictions.rows, questions.questions):
        assert (row.question, row.choices, row.answer) == (question.question, question.choices, question.answer)
        assert (row.groups, row.audio, row.prompt) == ({"task": "sound"}, ("abcabca"[int(row.id[1])],), row.question)
        expected = (
            ("failed", None, "no sound") if row.id == "q2" else ("answered", f"{row.audio[0]}: {row.prompt}\n", None)
        )
        assert (row.status, row.reply, row.error) == expected
    run = predictions.provenance
    assert (run["benchmark"], run["prompt"], run["control"], run["seed"]) == ("jsonl", "question", "none", 0)
    assert run["data_sha256"] == questions.sha256 and run["left_out"] == questions.left_out
    assert run["model"] == "fake" and run["decoding"] == {"max_new_tokens": 5}
    assert run["audio_tokens"] == {"min": 14, "max": 14, "mean": 14} and run["audio_check"] == "checked"
    assert run["prompt_example"] == "What is it, 0?" and run["statuses"] == dict(statuses)
    assert set(run["versions"]) == {"python", "falcon3-audio", "numpy"} and run["created"].endswith("+00:00")
    assert run["peak_memory_gib"] is None  # a fake has no device


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("lines", range(1, 7))
def test_a_killed_run_goes_on_and_asks_nothing_that_was_finished(questions, log, tmp_path, workers, lines):
    """The journal's lines: settings, audio check, and four batches."""
    generate(questions, Fake(log), tmp_path / "whole")
    log.unlink()
    killed_while(lambda: generate(questions, Fake(log, workers), tmp_path / "out"), lines)
    assert not (tmp_path / "out" / PREDICTIONS).exists()
    before = (tmp_path / "out" / JOURNAL).read_text()
    assert before.endswith('"q') and before.count("\n") == lines
    finished = [row["id"] for line in before.splitlines()[2:-1] for row in json.loads(line)["outcomes"]]
    log.write_text("")
    fake = Fake(log, workers)
    generate(questions, fake, tmp_path / "out")
    assert sorted(finished + log.read_text().split()) == [f"q{number}" for number in range(7)]
    assert fake.checked == (lines < 2)
    generate(questions, fake, tmp_path / "out")  # the journal is complete again
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


@pytest.mark.parametrize("files", [0, 1])
def test_a_run_killed_while_it_writes_its_results_has_no_predictions_yet(questions, log, tmp_path, files):
    """Files are written after the journal's six lines, the predictions last."""
    generate(questions, Fake(log), tmp_path / "whole")
    killed_while(lambda: generate(questions, Fake(log), tmp_path / "out"), 7 + files)
    assert not (tmp_path / "out" / PREDICTIONS).exists() and (tmp_path / "out" / RUN).exists() == files
    log.unlink()
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7} and not log.exists()
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def test_a_finished_run_is_the_same_when_it_is_started_again(questions, log, tmp_path):
    generate(questions, Fake(log), tmp_path / "out")
    written = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    log.unlink()
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == written and not log.exists()


def test_failed_questions_are_asked_again(questions, log, tmp_path, capsys):
    generate(questions, Fake(log, fails=["q3", "q5"]), tmp_path / "out")
    assert "2 questions failed; the same command asks them again" in capsys.readouterr().err
    log.unlink()
    assert generate(questions, Fake(log, fails=["q5"]), tmp_path / "out") == {"answered": 6, "failed": 1}
    assert log.read_text().split() == ["q3", "q5"]
    generate(questions, Fake(log), tmp_path / "out")
    generate(questions, Fake(log), tmp_path / "whole")
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


@pytest.mark.parametrize("control", ["none", "silence", "shuffled"])
def test_answers_about_other_clips_of_the_same_names_are_refused(questions, log, tmp_path, control):
    generate(questions, Fake(log, fails=["q1"]), tmp_path / "out", control=control)
    changed = tmp_path / "clips" / "a.wav"
    whole = changed.read_bytes()
    changed.write_bytes(whole[:-2] + b"\1\1")
    with pytest.raises(ValueError, match=r"has answers about other clips of the same names: \d questions? \(q"):
        generate(questions, Fake(log), tmp_path / "out", control=control)
    changed.write_bytes(whole)
    assert generate(questions, Fake(log), tmp_path / "out", control=control) == {"answered": 7}


def test_a_clip_that_was_repaired_is_heard(questions, log, tmp_path):
    broken = tmp_path / "clips" / "c.wav"
    whole = broken.read_bytes()
    broken.unlink()
    generate(questions, Fake(log, fails=["q2", "q5"]), tmp_path / "out")
    broken.write_bytes(whole)
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}


def test_a_later_answer_counts_whichever_process_gave_it(questions, log, tmp_path):
    """The server failed in the second process; a resumed run has only the first, which reads the other's journal."""
    down = Fake(log, fails=["q2", "q3"], error=EndpointFailed("no\nserver"))
    assert generate(questions, down, tmp_path / "out", process=1, processes=2) is None
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}
    assert log.read_text().split().count("q2") == 2


def test_a_finished_run_whose_audio_check_failed_needs_no_server(questions, log, tmp_path):
    class Unchecked(Fake):
        def check_audio(self):
            raise self.error

    assert generate(questions, Unchecked(log, error=EndpointFailed("slow")), tmp_path / "out") == {"answered": 7}
    gone = EndpointUnavailable("cannot be reached")
    assert generate(questions, Unchecked(log, error=gone), tmp_path / "out") == {"answered": 7}
    said = json.loads((tmp_path / "out" / RUN).read_text())["audio_check"]
    assert said == "unknown: cannot be reached"
    with pytest.raises(EndpointUnavailable):
        generate(questions, Unchecked(log, error=gone), tmp_path / "new")


def test_questions_about_one_clip_are_one_failure(log, tmp_path):
    """Else one clip that the server fails on would stop a run with shuffled options."""

    def ask(clips):
        questions = make_questions(tmp_path / clips, clips)
        down = Fake(log, fails=[question.id for question in questions.questions], error=EndpointFailed("broken"))
        return generate(questions, down, tmp_path / f"out-{clips}")

    assert ask("aaaaaaa") == {"failed": 7}
    with pytest.raises(EndpointUnavailable, match=r"^broken\. It failed on 5 clips in a row\.$"):
        ask("abcdefg")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_stops_keeps_what_is_finished(questions, log, tmp_path, workers):
    with pytest.raises(RunStopped, match="enough"):
        generate(questions, Fake(log, workers, stops_at="q5"), tmp_path / "out")
    assert not (tmp_path / "out" / PREDICTIONS).exists() and not (tmp_path / "out" / RUN).exists()
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}
    assert sorted(log.read_text().split()) == [f"q{number}" for number in range(7)]


def test_nothing_new_is_begun_after_a_stop(log, tmp_path):
    class Slow(Fake):
        def answer(self, items):
            time.sleep(0.02)
            return super().answer(items)

    many = make_questions(tmp_path / "clips", "ab" * 50)
    with pytest.raises(RunStopped):
        generate(many, Slow(log, workers=2, stops_at="q4"), tmp_path / "out")
    assert len(log.read_text().split()) < 50


def test_threads_work_at_once(questions, log, tmp_path):
    met = threading.Barrier(4)  # waits for all four batches, or fails

    class Meeting(Fake):
        def answer(self, items):
            met.wait(20)
            return super().answer(items)

    assert generate(questions, Meeting(log, workers=4), tmp_path / "out") == {"answered": 7}
    assert list(rows_of(tmp_path / "out")) == [f"q{number}" for number in range(7)]


def test_another_run_in_the_same_folder_is_an_error_that_names_what_differs(questions, log, tmp_path):
    def refusal(questions=questions, model="fake", **options):
        with pytest.raises(ValueError, match="holds a run with other settings") as caught:
            generate(questions, Fake(log, model=model), tmp_path / "out", **options)
        return str(caught.value)

    generate(questions, Fake(log), tmp_path / "out")
    written = (tmp_path / "out" / JOURNAL).read_bytes()
    assert "settings: model: 'fake' -> 'other'. Give" in refusal(model="other")
    assert "prompt: 'plain' -> 'mmar'" in refusal(prompt="mmar")
    assert "control: 'none' -> 'silence', seed: 0 -> 7. Give" in refusal(control="silence", seed=7)
    changed = refusal(replace(questions, sha256={"asked.jsonl": "1" * 64}))
    assert f"data_sha256.asked.jsonl: '{'0' * 64}' -> '{'1' * 64}'. Give" in changed
    assert "questions_sha256" in refusal(replace(questions, questions=questions.questions[:3]))
    assert "left_out.no audio" in refusal(replace(questions, left_out={}))
    assert (tmp_path / "out" / JOURNAL).read_bytes() == written


def test_another_version_is_another_run(questions, log, tmp_path, monkeypatch):
    generate(questions, Fake(log), tmp_path / "out")
    monkeypatch.setattr("falcon3_audio.evaluation.generate.version", lambda name: "9.9")
    with pytest.raises(ValueError, match=r"versions.numpy: '[\d.]+' -> '9.9'"):
        generate(questions, Fake(log), tmp_path / "out")


def test_controls(questions, log, tmp_path):
    generate(questions, Fake(log), tmp_path / "shuffled", control="shuffled", seed=1)
    rows = rows_of(tmp_path / "shuffled")
    for row in rows.values():
        assert row["heard"] != row["audio"] and row["reply"].startswith(f"{row['heard'][0]}: ")
    assert run_of(tmp_path / "shuffled")["control"] == "shuffled"
    fake = Fake(log)
    generate(questions, fake, tmp_path / "text", control="text-only")
    rows = rows_of(tmp_path / "text")
    assert all(row["reply"].startswith(": What is it") and row["audio"] for row in rows.values())
    assert fake.checked == 0 and run_of(tmp_path / "text")["audio_check"] == "no audio was played"


@pytest.mark.parametrize(
    "line, damaged",
    [(0, b"{}"), (0, b"[]"), (0, b"\xff"), (1, b"nonsense"), (2, b"{}"), (3, b'{"outcomes": [{}]}'), (3, b"7")],
)
def test_a_damaged_journal_is_an_error(questions, log, tmp_path, line, damaged):
    generate(questions, Fake(log), tmp_path / "out")
    path = tmp_path / "out" / JOURNAL
    lines = path.read_bytes().splitlines()
    lines[line] = damaged
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(ValueError, match=f"journal.jsonl, line {line + 1}, is damaged"):
        generate(questions, Fake(log), tmp_path / "out")


def test_predictions_of_others_are_not_overwritten(questions, log, tmp_path):
    (tmp_path / PREDICTIONS).write_text("mine")
    with pytest.raises(ValueError, match="holds predictions.jsonl but no journal.jsonl"):
        generate(questions, Fake(log), tmp_path)
    assert (tmp_path / PREDICTIONS).read_text() == "mine"


def test_questions_that_cannot_be_asked(questions, log, tmp_path):
    with pytest.raises(ValueError, match="no questions in x.json"):
        generate(QuestionSet("jsonl", (), {"x.json": ""}), Fake(log), tmp_path / "out")
    twice = replace(questions, questions=questions.questions[:2] * 2)
    with pytest.raises(ValueError, match="2 ids belong to several questions, the first is 'q0'"):
        generate(twice, Fake(log), tmp_path / "out")
    opened = replace(questions, questions=(replace(questions.questions[0], choices=()),))
    with pytest.raises(ValueError, match="no options to choose from"):
        generate(opened, Fake(log), tmp_path / "out", "mmar")
    assert not (tmp_path / "out").exists() and not log.exists()


def test_two_processes_do_not_write_one_journal(questions, log, tmp_path):
    generate(questions, Fake(log), tmp_path / "out")
    journal = (tmp_path / "out" / JOURNAL).read_bytes()
    with open(tmp_path / "out" / JOURNAL, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another process is writing to"):
            generate(questions, Fake(log), tmp_path / "out")
    assert (tmp_path / "out" / JOURNAL).read_bytes() == journal
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}


def test_disks_without_locks_stop_no_run(questions, log, tmp_path, disk_without_locks):
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_several_processes_write_what_one_does(questions, log, tmp_path, processes):
    generate(questions, Fake(log), tmp_path / "one")
    log.unlink()
    for process in reversed(range(processes)):
        found = generate(questions, Fake(log), tmp_path / "out", process=process, processes=processes)
        # The process that finishes last writes the predictions; the others leave them to it.
        assert found == (None if process else {"answered": 7})
        assert (tmp_path / "out" / PREDICTIONS).exists() == (process == 0)
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "one" / PREDICTIONS).read_bytes()
    assert sorted(log.read_text().split()) == [f"q{number}" for number in range(7)]
    assert run_of(tmp_path / "out").keys() == run_of(tmp_path / "one").keys()
    journals = {path.name for path in (tmp_path / "out").glob("journal*")}
    assert journals == {JOURNAL, *(f"journal-{process}.jsonl" for process in range(1, processes))}


def test_a_run_goes_on_with_another_number_of_processes(questions, log, tmp_path):
    generate(questions, Fake(log), tmp_path / "one")
    log.unlink()
    assert generate(questions, Fake(log), tmp_path / "out", process=1, processes=2) is None
    with pytest.raises(RunStopped):
        generate(questions, Fake(log, stops_at="q4"), tmp_path / "out", process=0, processes=2)
    assert generate(questions, Fake(log), tmp_path / "out") == {"answered": 7}
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "one" / PREDICTIONS).read_bytes()
    assert sorted(log.read_text().split()) == [f"q{number}" for number in range(7)]  # no question was asked twice
    assert generate(questions, Fake(log), tmp_path / "out", process=2, processes=3) == {"answered": 7}


def test_the_journal_of_another_process_is_checked_too(questions, log, tmp_path):
    generate(questions, Fake(log), tmp_path / "out", process=1, processes=2)
    with pytest.raises(ValueError, match="holds a run with other settings: model: 'fake' -> 'other'"):
        generate(questions, Fake(log, model="other"), tmp_path / "out", process=0, processes=2)
    path = tmp_path / "out" / "journal-1.jsonl"
    path.write_bytes(path.read_bytes() + b'{"outcomes": [{"id": "q')  # it is still writing
    assert generate(questions, Fake(log), tmp_path / "out", process=0, processes=2) == {"answered": 7}
    path.write_bytes(b"nonsense\n")
    with pytest.raises(ValueError, match="journal-1.jsonl, line 1, is damaged"):
        generate(questions, Fake(log), tmp_path / "out", process=0, processes=2)


def test_clips_of_the_next_batch_are_read_ahead(questions, log, tmp_path):
    fake = Fake(log)
    generate(questions, fake, tmp_path / "out")
    # The batches have clips ab, ca, bc and a. A clip that the current batch shares with the next is not read again.
    assert fake.prepared == [["c"], ["b"], ["a"], []]
