"""The numbers of a study's report on known replies, against numbers counted and redrawn by hand here."""

import json
import os
import random
import shutil
import signal
import tarfile
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import yaml
from tiny import SAMPLING_RATE, tone
from training_runs import write_recipe

from falcon3_audio.evaluation import evaluate, score
from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.predictions import Prediction
from falcon3_audio.evaluation.wilson import wilson
from falcon3_audio.training import study as module
from falcon3_audio.training.studies.study_report import accuracy, difference, without_paths
from falcon3_audio.training.studies.study_tables import as_markdown
from falcon3_audio.training.study import main
from falcon3_audio.whole_files import write_json


CLIPS, SEEDS = 20, (0, 1, 2)
QUESTIONS = 2 * CLIPS  # two about each clip, of one task
TASKS = ("sound", "music")
LOSSES = (4.0, 3.0)
EVALUATED = {"eval_loss": 3.5, "eval_hearing": 0.456, "eval_hearing_low": -0.1, "eval_hearing_high": 1.0}


def redrawn(matrix, clip_of, resamples=4000):
    """The 95 % interval of the mean of `matrix` (seeds, questions), with two of three seeds and all clips redrawn."""
    draw = random.Random(7)
    members = {clip: [n for n, other in enumerate(clip_of) if other == clip] for clip in set(clip_of)}
    means = []
    for _ in range(resamples):
        seeds = draw.choices(range(len(matrix)), k=max(1, len(matrix) - 1))
        questions = [n for clip in draw.choices(sorted(members), k=len(members)) for n in members[clip]]
        means.append(sum(matrix[seed][n] for seed in seeds for n in questions) / (len(seeds) * len(questions)))
    means.sort()
    return means[round(0.025 * resamples)], means[round(0.975 * resamples)]


def mean(matrix):
    return sum(map(sum, matrix)) / sum(map(len, matrix))


def make_right():
    """Whether the reply to each question is right, by (arm, seed, control): b is better than a only in sound."""
    draw, right = random.Random(0), {}
    for seed in SEEDS:
        clips = [draw.random() for _ in range(CLIPS)]
        for arm, better in (("a", 0.0), ("b", 0.5)):
            shares = [share / 2 + better * (clip % 2 == 0) for clip, share in enumerate(clips)]
            right[arm, seed, "none"] = [draw.random() < shares[n // 2] for n in range(QUESTIONS)]
            right[arm, seed, "silence"] = [draw.random() < 0.25 for _ in range(QUESTIONS)]
    return right


@pytest.fixture
def world(recipe, tmp_path, monkeypatch):
    """A study whose processes write known results; returns its path, and the replies."""
    right = make_right()
    for clip in range(CLIPS):
        soundfile.write(tmp_path / f"{clip}.wav", tone(0.1), SAMPLING_RATE)
    rows = [
        {"id": f"q{n}", "audio_id": f"{n // 2}.wav", "question": f"What, {n}?", "choices": ["a dog", "a bell"]}
        | {"answer": "a dog", "task": TASKS[n // 2 % 2], "category": "c", "difficulty": "easy"}
        for n in range(QUESTIONS)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    asked = {"benchmark": "mmau", "data": str(tmp_path / "questions.json"), "controls": ["silence"]}
    study = {"recipe": os.path.relpath(recipe, tmp_path), "seeds": list(SEEDS), "evaluate": [asked]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study | {"arms": {"a": None, "b": {"lora_r": 4}}}))

    def run(command, log, *others):
        name, *arguments = command
        if name.endswith(("sft", "grpo")):
            write_run(yaml.safe_load(Path(arguments[1]).read_text()))
        elif name.endswith("merge"):
            Path(arguments[1]).mkdir()
            write_json(Path(arguments[1]) / "config.json", {})
        else:
            options = evaluate.parse(arguments)
            arm, seed = options.output_dir.relative_to(tmp_path / "out").parts[:2]
            write_replies(options, right[arm, int(seed.removeprefix("seed-")), options.control])
        return 0

    monkeypatch.setattr(module, "_run_process", run)
    return tmp_path / "study.yaml", right


def write_run(options):
    """Writes a log of two lines, the evaluation and the final entry."""
    folder = Path(options["output_dir"])
    folder.mkdir()
    lines = [
        {
            "step": step,
            "loss": loss + options["seed"],
            "peak_memory_gib": 3 - step / 4,
            "training_seconds": 10.0 * step,
        }
        for step, loss in enumerate(LOSSES, 1)
    ]
    ends = [{"step": 2, **EVALUATED}, {"step": 2, "train_runtime": 9.0, "training_seconds": 21.5}]
    write_json(folder / "trainer_state.json", {"global_step": 2, "epoch": 0.5, "log_history": [*lines, *ends]})


def write_replies(options, right):
    asked = BENCHMARKS["mmau"].load(options.data)
    options.output_dir.mkdir(parents=True)
    with open(options.output_dir / "predictions.jsonl", "w") as file:
        for question, good in zip(asked.questions, right, strict=True):
            shared = {name: getattr(question, name) for name in ("id", "question", "choices", "answer", "groups")}
            row = Prediction(status="answered", reply="a dog" if good else "a bell", **shared)
            file.write(json.dumps(asdict(replace(row, audio=(question.audio[0].name,)))) + "\n")
    run = {"benchmark": "mmau", "prompt": "plain", "control": options.control, "data_sha256": asked.sha256}
    run |= {
        "peak_memory_gib": 3.0 + 0.25 * (options.control == "none")
    }  # the report shows that of the questions with audio
    write_json(options.output_dir / "run.json", run | {"decoding": {}, "left_out": {}, "model": "/home/me/model"})
    assert score.main([str(options.output_dir)]) == 0


def test_every_number_is_what_is_counted_by_hand(world, tmp_path):
    path, right = world
    assert main([str(path), str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = report["benchmarks"]["mmau"]
    assert (found["questions"], found["clips"], report["missing"]) == (QUESTIONS, CLIPS, [])
    clip_of = [n // 2 for n in range(QUESTIONS)]
    of_task = {task: [n for n in range(QUESTIONS) if TASKS[n // 2 % 2] == task] for task in TASKS}
    matrices = {}
    for arm in ("a", "b"):
        matrix = matrices[arm] = [right[arm, seed, "none"] for seed in SEEDS]
        entry = found["arms"][arm]
        assert entry["accuracy"] == pytest.approx(mean(matrix))
        assert entry["interval"] == pytest.approx(redrawn(matrix, clip_of), abs=0.03)
        assert entry["by_seed"] == pytest.approx({str(seed): mean([matrix[seed]]) for seed in SEEDS})
        deaf = [right[arm, seed, "silence"] for seed in SEEDS]
        assert entry["controls"]["silence"]["accuracy"] == pytest.approx(mean(deaf))
        for task, rows in of_task.items():
            part = [[row[n] for n in rows] for row in matrix]
            assert entry["groups"]["task"][task]["accuracy"] == pytest.approx(mean(part))
            assert entry["groups"]["task"][task]["questions"] == len(rows)
    assert found["arms"]["a"]["difference"] is None
    differ = [[int(b) - int(a) for a, b in zip(*rows)] for rows in zip(matrices["a"], matrices["b"])]
    entry = found["arms"]["b"]["difference"]
    assert entry["difference"] == pytest.approx(mean(differ)) and entry["verdict"] == "better"
    assert entry["interval"] == pytest.approx(redrawn(differ, clip_of), abs=0.03)
    verdicts = {task: part["verdict"] for task, part in entry["groups"]["task"].items()}
    assert verdicts == {"sound": "better", "music": "within noise"}
    for task, rows in of_task.items():
        part = [[row[n] for n in rows] for row in differ]
        assert entry["groups"]["task"][task]["difference"] == pytest.approx(mean(part))
        expected = redrawn(part, [clip_of[n] for n in rows])
        assert entry["groups"]["task"][task]["interval"] == pytest.approx(expected, abs=0.04)
    for run in report["training"]:
        assert (run["seconds"], run["peak_memory_gib"]) == (21.5, 2.75)
        assert run["final_loss"] == LOSSES[-1] + run["seed"]
        assert run["stages"][0]["evaluated"] == EVALUATED
    check_tables(tmp_path / "out", report)


def check_tables(output, report):
    """The tables match the numbers, nothing contains a path of this machine, and the figure is not empty."""
    text = (output / "report.md").read_text()
    assert text == as_markdown(report)
    arms = report["benchmarks"]["mmau"]["arms"]
    (line,) = [line for line in text.splitlines() if line.startswith("| b | 0, 1, 2 |")]
    assert f"| {100 * arms['b']['accuracy']:.1f} [" in line and line.endswith("| better | 3.25 |")
    assert f"{100 * arms['b']['difference']['difference']:.1f} [" in line
    assert f"{100 * arms['b']['controls']['silence']['accuracy']:.1f} [" in line
    assert "| run | steps | training seconds | memory of training (GiB) | final loss (nats) | hearing (nats) |" in text
    assert "| a, seed 0 | 2 | 22 | 2.75 | 3 | 0.46 [-0.10, 1.00] |" in text
    assert "## mmau" in text and "### By task" in text and "questions.json (sha256 " in text
    for name in ("report.json", "report.md"):
        assert str(output.parent) not in (output / name).read_text() and "/home" not in (output / name).read_text()
    assert matplotlib.image.imread(output / "report.png").std() > 0.05


def test_the_report_of_a_study_that_is_not_finished(world, tmp_path, monkeypatch, capsys):
    """Stopped in its fourth run: the first seed of both arms and one more are done; only the first is compared."""
    path, right = world
    run, count = module._run_process, iter(range(100))

    def stopped(command, log, environment, lock, stop, echo):
        if next(count) == 13:  # three runs of four processes each are done
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(60)
            raise module.Stopped
        return run(command, log)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_run_process", stopped)
        assert main([str(path), str(tmp_path / "out")]) == 130
    assert "stopped. Run the same command again to resume." in capsys.readouterr().err
    assert main([str(path), str(tmp_path / "out"), "--report"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    states = {(run["arm"], run["seed"]): run["state"] for run in report["missing"]}
    assert states == {("b", 1): "unfinished: merge", ("a", 2): "not started", ("b", 2): "not started"}
    entry = report["benchmarks"]["mmau"]["arms"]["b"]["difference"]
    assert entry["seeds"] == [0]
    assert entry["difference"] == pytest.approx(mean([right["b", 0, "none"]]) - mean([right["a", 0, "none"]]))
    assert "| b, seed 1 | unfinished: merge |" in capsys.readouterr().out


def test_replies_that_are_missing_are_told(world, tmp_path, monkeypatch, capsys):
    """With audio and with a control; the folder that is named is the one to remove."""
    path, right = world
    output = tmp_path / "out"
    assert main([str(path), str(output)]) == 0
    report = json.loads((output / "report.json").read_text())
    assert report["benchmarks"]["mmau"]["without_reply"] == [] and "without a reply" not in capsys.readouterr().out
    for folder, missing in (("a/seed-0/scores/mmau/none", 2), ("b/seed-1/scores/mmau/silence", 3)):
        file = output / folder / "predictions.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        rows[:missing] = [row | {"status": "failed", "reply": None, "error": "broken"} for row in rows[:missing]]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(path), str(output), "--report"]) == 0
    text = (output / "report.md").read_text()
    assert "- a, seed 0: 2 in `a/seed-0/scores/mmau/none`" in text
    assert "- b, seed 1, silence: 3 in `b/seed-1/scores/mmau/silence`" in text
    arms = json.loads((output / "report.json").read_text())["benchmarks"]["mmau"]["arms"]
    assert [arms[arm]["without_reply"] for arm in "ab"] == [2, 0]
    assert [arms[arm]["controls"]["silence"]["without_reply"] for arm in "ab"] == [0, 3]
    for folder in ("a/seed-0/scores/mmau/none", "b/seed-1/scores/mmau/silence"):
        shutil.rmtree(output / folder)
    assert main([str(path), str(output)]) == 0
    assert "without a reply" not in (output / "report.md").read_text()


def test_a_stage_of_grpo_has_no_loss_in_nats(world, tmp_path, capsys):
    """
    Its logged loss is neither in the table nor in the curve. If it has logged no memory, that of the stage before is not
    the run's.
    """
    path, right = world
    right["c", 0, "none"] = right["c", 0, "silence"] = right["a", 0, "none"]
    (tmp_path / "asked.jsonl").touch()
    write_recipe(tmp_path / "grpo.yaml", train_data=[str(tmp_path / "asked.jsonl")], bf16=False, num_generations=4)
    study = yaml.safe_load(path.read_text())
    study["arms"]["c"] = {"seeds": [0], "stages": [{}, {"grpo": "grpo.yaml"}]}
    path.write_text(yaml.safe_dump(study))
    assert main([str(path), str(tmp_path / "out"), "--only", "c"]) == 0
    (run,) = json.loads((tmp_path / "out" / "report.json").read_text())["training"]
    assert run["final_loss"] is None and [len(stage["loss"]) for stage in run["stages"]] == [2, 0]
    assert run["stages"][1]["steps"] == 2 and "| c, seed 0 | 2 + 2 | 43 | 2.75 | - |" in capsys.readouterr().out
    state = tmp_path / "out" / "c" / "seed-0" / "stage-2" / "run" / "trainer_state.json"
    logged = json.loads(state.read_text())
    for entry in logged["log_history"]:
        entry.pop("peak_memory_gib", None)
    write_json(state, logged)
    assert main([str(path), str(tmp_path / "out"), "--report"]) == 0
    assert "| c, seed 0 | 2 + 2 | 43 | - | - |" in capsys.readouterr().out


def test_another_studys_report_is_not_overwritten(world, tmp_path, capsys):
    """Dates, which YAML reads as such, are text in the report. Without a finished run there is no figure."""
    path, _ = world
    output = tmp_path / "out"
    study = yaml.safe_load(path.read_text())
    study["arms"]["b"]["run_name"] = date(2026, 10, 1)
    path.write_text(yaml.safe_dump(study))
    assert main([str(path), str(output)]) == 0
    before = (output / "report.json").read_bytes()
    assert json.loads(before)["arms"]["b"]["overrides"] == [{"lora_r": 4, "run_name": "2026-10-01"}]
    other = path.with_name("other.yaml")
    other.write_text(path.read_text())
    for report in ([], ["--report"]):
        capsys.readouterr()
        assert main([str(other), str(output), *report]) == 1
        assert "is the report of the study study, got other; give another OUT" in capsys.readouterr().err
    assert (output / "report.json").read_bytes() == before
    for arm in "ab":
        shutil.rmtree(output / arm)
    assert main([str(path), str(output), "--report"]) == 0 and not (output / "report.png").exists()


def test_results_that_were_packed_go_on_elsewhere(world, tmp_path, monkeypatch, capsys):
    """Finished seeds are packed without weights: unpacked, nothing is repeated and the report is the same."""
    path, _ = world
    here, there, archive = tmp_path / "out", tmp_path / "there", tmp_path / "results.tar.xz"
    assert main([str(path), str(here), "--only", "a"]) == 0
    (here / "a/seed-0/model/model.safetensors").write_bytes(bytes(1000))
    (here / "a/seed-2/scores/mmau/silence/score.json").unlink()  # not finished
    assert main([str(path), str(here), "--report", "--pack", str(archive)]) == 0
    assert f"2 runs are packed in {archive}" in capsys.readouterr().out
    first = archive.read_bytes()
    assert main([str(path), str(here), "--report", "--pack", str(archive)]) == 0
    assert archive.read_bytes() == first

    with tarfile.open(archive) as tar:
        tar.extractall(there, filter="data")
    contents = {file: file.read_text() for file in there.rglob("*") if file.is_file()}
    assert {file.suffix for file in contents} == {".json", ".jsonl"}
    assert "model" in contents[there / "a/seed-0/scores/mmau/none/run.json"]
    assert not [file for file, content in contents.items() if "/home/me" in content]
    assert main([str(path), str(there), "--report"]) == 0
    tables = [(folder / "report.md").read_text().partition("## mmau")[2] for folder in (here, there)]
    assert tables[0] == tables[1] != ""

    done = []
    run = module._run_process
    monkeypatch.setattr(module, "_run_process", lambda *given: done.append(given[0]) or run(*given))
    shutil.rmtree(here)
    there.rename(here)  # the known replies are those of this folder
    assert main([str(path), str(here), "--only", "a"]) == 0
    assert len(done) == 4 and all("seed-2" in " ".join(command) for command in done)


def test_without_a_run_that_has_ended_nothing_is_packed(world, tmp_path, capsys):
    path, _ = world
    archive = tmp_path / "results.tar.xz"
    assert main([str(path), str(tmp_path / "out"), "--report", "--pack", str(archive)]) == 1
    assert "nothing to pack" in capsys.readouterr().err and not archive.exists()


def test_an_archive_without_a_folder_is_refused_before_anything_is_done(world, tmp_path, capsys):
    path, _ = world
    archive = tmp_path / "nowhere" / "results.tar.xz"
    with pytest.raises(SystemExit, match="2"):
        main([str(path), str(tmp_path / "out"), "--pack", str(archive)])
    assert "no folder" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_data_that_changed_is_refused(world, tmp_path, capsys):
    path, _ = world
    assert main([str(path), str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "questions.json").read_text())
    (tmp_path / "questions.json").write_text(json.dumps(rows[::-1]))
    assert main([str(path), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "a, seed 0: questions.json: " in said and f"rm -r {tmp_path / 'out/a/seed-0/scores/mmau/none'}" in said


def test_one_seed_and_one_question_a_clip_have_the_interval_of_the_score():
    right = np.array([[1, 0, 1, 1, 0, 1, 0, 1]])
    assert accuracy(right, np.arange(8))["interval"] == wilson(5, 8)
    assert accuracy(right[:, :1], np.arange(1))["interval"] == wilson(1, 1)


def test_where_there_is_nothing_to_redraw_clips_are_counted():
    """If all clips have equal accuracy, a bootstrap's interval would be empty. 10 clips say less than 20 questions."""
    clips = np.arange(20) // 2
    assert accuracy(np.ones((2, 20), int), clips)["interval"] == wilson(10, 10)
    assert accuracy(np.arange(20)[None] % 2, clips)["interval"] == wilson(5, 10)
    assert accuracy(np.tile(np.arange(20) % 2, (3, 1)), clips)["interval"] == wilson(5, 10)
    found = difference(np.ones((2, 20), int), clips)
    assert found["interval"] == (2 * wilson(10, 10)[0] - 1, 1) and found["verdict"] == "better"
    assert difference(-np.ones((2, 20), int), clips)["interval"] == (-1, 1 - 2 * wilson(10, 10)[0])


def test_a_few_clips_have_no_interval():
    right = np.random.default_rng(0).integers(0, 2, (2, 20))
    for clips in (1, 2, 5):
        assert accuracy(right, np.arange(20) % clips)["interval"] is None
    low, high = accuracy(right, np.arange(20) % 6)["interval"]
    assert low < right.mean() < high


def test_too_few_clips_that_differ_say_nothing():
    differ = np.zeros((2, 40), int)
    differ[:, :10] = 1
    assert difference(differ, np.arange(40))["verdict"] == "better"
    found = difference(differ, np.arange(40) // 2)  # the same questions about five clips
    assert found == {"questions": 40, "difference": 0.25, "interval": None, "verdict": "within noise"}


def test_paths_keep_their_last_name_alone():
    apart = {"/a/train.jsonl": "/a/train.jsonl", "/b/train.jsonl": ["/b/train.jsonl", "/b/train.jsonl is gone"]}
    assert without_paths(apart) == {
        "train.jsonl": "train.jsonl",
        "train.jsonl (2)": ["train.jsonl (2)", "train.jsonl is gone"],
    }
    assert without_paths(["/data/set/"]) == ["set"]
    content = {"/srv/data/set.jsonl": ["no /tmp/a b/c: 'x'", "http://host/a/b", "1/2", "runs/a", 3, None]}
    assert without_paths(content) == {"set.jsonl": ["no a b/c: 'x'", "http://host/a/b", "1/2", "runs/a", 3, None]}
