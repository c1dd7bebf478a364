"""A study end to end on tiny backbones: what it does once, resumes, refuses and reports."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest
import soundfile
import yaml
from child import in_child
from tiny import SAMPLING_RATE, tone
from training_runs import farthest, log_of, run_here, weights_of
from transformers import TrainerState

from falcon3_audio.evaluation.score import SCORE
from falcon3_audio.training import study as module
from falcon3_audio.training.studies.study_file import KEYS, read_study
from falcon3_audio.training.studies.study_runs import check_sets_exist, read_data, runs_of, steps_of
from falcon3_audio.training.study import main


FEW_STEPS = {"max_steps": 2, "save_steps": 1}
NO_LORA = {"lora_audio_tower": "none", "lora_language_model": "none"}


@pytest.fixture
def here(monkeypatch):
    """Runs the steps in this process; returns those that ran, by module and folder."""
    done: list[str] = []

    def run(command, log, *others):
        done.append(f"{command[0].rpartition('.')[2]} {log.parent.relative_to(log.parents[len(log.parts) - 2])}")
        return run_here(command, log, *others)

    monkeypatch.setattr(module, "_run_process", run)
    return done


@pytest.fixture
def questions(tmp_path):
    """Six questions in MMAU's form about three clips."""
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", tone(0.3 + number / 10, 300 + 100 * number), SAMPLING_RATE)
    rows = [
        {"id": f"q{n}", "audio_id": f"{n % 3}.wav", "question": f"What, {n}?", "choices": ["a dog", "a bell"]}
        | {"answer": "a dog", "task": ("sound", "music")[n % 2], "category": "c", "difficulty": "easy"}
        for n in range(6)
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(rows))
    return str(path)


@pytest.fixture
def write(recipe, questions, tmp_path):
    """Writes a study of the tiny recipe; returns its path."""

    def write(**changes):
        evaluate = [{"benchmark": "mmau", "data": questions, "controls": ["silence"], "max_new_tokens": 2}]
        content = {"recipe": os.path.relpath(recipe, tmp_path), "overrides": FEW_STEPS, "evaluate": evaluate}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
        return str(path)

    return write


def report_of(output: Path) -> dict:
    return json.loads((output / "report.json").read_text())


def test_killed_and_started_again_nothing_is_done_twice(write, here, tmp_path, monkeypatch):
    """Two arms and two seeds; killed while the third run, the second seed of the first arm, saves its first step."""
    output = tmp_path / "out"
    path = write(arms={"as-is": None, "high": {"learning_rate": 0.1}}, seeds=[0, 1])
    save, saved = TrainerState.save_to_json, []

    def save_or_die(self, name):
        save(self, name)
        saved.append(name)
        if "as-is/seed-1" in name:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", save_or_die)
        assert in_child(lambda: main([path, str(output)]), seconds=300) == -signal.SIGKILL
    for ended in ("as-is/seed-0", "high/seed-0"):
        assert (output / ended / "scores" / "mmau" / "silence" / SCORE).exists()
    assert not (output / "high" / "seed-1").exists()
    assert main([path, str(output)]) == 0
    assert [line.split()[0] for line in here] == 2 * ["sft", "merge", "evaluate", "evaluate"]
    assert "as-is/seed-1" in here[0] and "high/seed-1" in here[4]
    assert "resuming from" in (output / "as-is" / "seed-1" / "train.log").read_text()
    assert [entry["step"] for entry in log_of(output / "as-is" / "seed-1" / "run")] == [1, 2]
    report = report_of(output)
    assert not report["missing"] and [run["arm"] for run in report["training"]] == 2 * ["as-is", "high"]
    for run in report["training"]:
        log = log_of(output / run["arm"] / f"seed-{run['seed']}" / "run")
        assert run["final_loss"] == log[-1]["loss"]
        assert run["peak_memory_gib"] == max(entry["peak_memory_gib"] for entry in log)
        assert run["seconds"] >= log[-1]["training_seconds"] > log[0]["training_seconds"] > 0
    here.clear()
    assert main([path, str(output)]) == 0
    assert not here
    # A changed value in the file is refused by name before anything runs. Other arms continue.
    path = write(arms={"as-is": None, "high": {"learning_rate": 0.2}}, seeds=[0, 1])
    assert main([path, str(output)]) == 1 and not here
    assert main([path, str(output), "--only", "as-is"]) == 0 and not here
    assert {run["state"] for run in report_of(output)["missing"]} == {"started with other settings"}


def test_an_arm_that_fails_does_not_stop_the_others(write, here, tmp_path, capsys):
    output = tmp_path / "out"
    (tmp_path / "no_chats.jsonl").write_text('{"number": 1}\n')
    path = write(arms={"broken": {"train_data": [str(tmp_path / "no_chats.jsonl")]}, "whole": None})
    assert main([path, str(output)]) == 1
    assert "broken, seed 0: train failed: falcon3-audio train: " in capsys.readouterr().err
    (missing,) = report_of(output)["missing"]
    assert (missing["arm"], missing["state"]) == ("broken", "failed: train")
    assert "no_chats.jsonl" in (output / "broken" / "seed-0" / "failed.json").read_text()
    assert "no_chats.jsonl" in missing["said"] and "no_chats.jsonl" in (output / "report.md").read_text()
    assert list(report_of(output)["benchmarks"]["mmau"]["arms"]) == ["whole"]
    # Once fixed, it continues; nothing was trained with the other setting.
    here.clear()
    assert main([write(arms={"broken": None, "whole": None}), str(output)]) == 0
    assert [line.split()[0] for line in here] == ["sft", "merge", "evaluate", "evaluate"]
    assert not report_of(output)["missing"]


@pytest.mark.parametrize("first", [NO_LORA, {"lora_language_model": "none"}], ids=["model", "adapter"])
def test_stages_follow_each_other(write, here, tmp_path, first):
    """The second stage starts from the result of the first, with or without LoRA, and is the one evaluated."""
    output = tmp_path / "out"
    path = write(arms={"two": [first, {"lora_audio_tower": "none"}]}, evaluate=[])
    assert main([path, str(output)]) == 0
    folder = output / "two" / "seed-0"
    left = folder / "stage-1" / "model"
    assert yaml.safe_load((folder / "stage-2" / "options.yaml").read_text())["model"] == str(left)
    before, after = weights_of(left), weights_of(folder / "stage-2" / "model")
    moved = {name for name in before if not before[name].equal(after[name])}
    assert moved and all(".language_model." in name or ".multi_modal_projector." in name for name in moved)
    assert any(".language_model." in name for name in moved)
    base = weights_of(folder / "stage-1" / "run" / "base")
    encoder = [name for name in base if ".audio_tower." in name]
    assert (farthest(*({n: w[n] for n in encoder} for w in (base, before))) > 0) is (first != NO_LORA)
    (run,) = report_of(output)["training"]
    assert [stage["steps"] for stage in run["stages"]] == [2, 2]
    assert run["seconds"] == sum(stage["seconds"] for stage in run["stages"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": {"a": None}}, r"study.yaml has options that do not exist: --arm \(nearest: arms\)"),
        ({"overrides": {"lora_alfa": 4}}, r"overrides has options that do not exist: --lora_alfa \(nearest: lora_alpha\)"),
        ({"arms": {"a": None, "b": {"learning_rat": 1}}}, r"arm 'b' has options .*--learning_rat \(nearest: learning_rate\)"),
        ({"arms": {"a": [{}, {"max_step": 1}]}}, r"arm 'a', stage 2 has .*--max_step \(nearest: max_steps\)"),
        ({"evaluate": [{"benchmark": "mmau", "data": "x", "control": "silence"}]}, r"entry 1 has .*nearest: controls"),
        ({"arms": {"a": None, "b": {"lora_r": 0}}}, "arm 'b': lora_r must be at least 1, got 0"),
        ({"arms": {"a": {"learning_rate": "fast"}}}, "arm 'a': argument --learning_rate.*invalid float value: 'fast'"),
        ({"arms": {"a": None, "b": {"eval_data": ["x"]}}}, "arm 'b': `eval_data` would never be scored"),
        ({"arms": {"a": {"seed": 3}}}, "arm 'a' sets seed, which the study sets for each run"),
        ({"arms": {"a": [{}, {"pooling_window": 1}]}}, "stage 2 sets pooling_window, but it continues with the model"),
        ({"arms": {"a/b": None}}, "'a/b' must be a folder name"),
        ({"arms": {"a": 3}}, "arm 'a' must be a mapping of options, got 3"),
        ({"arms": {"a": []}}, r"`stages` must be a list of mappings, got \[\]"),
        ({"seeds": [2**32]}, r"`seeds` must be a list of different integers from 0 to 2\*\*32 - 1, got \[4294967296\]"),
        ({"arms": {"a": None, "b": {"train_data": ["gone.jsonl"]}}}, "The study names gone.jsonl: there is no such file"),
        ({"arms": {"a": None, "b": {"pooling_window": 7}}}, "arm 'b': `pooling_window` must be a whole number that div"),
        ({"arms": {"a": None, "b": {"eval_generate": 4}}}, "arm 'b': eval_generate runs the model on held-out questions"),
        ({"seeds": [1, 1]}, r"`seeds` must be a list of different integers from 0 to .*, got \[1, 1\]"),
        ({"arms": {"a": {"seeds": "all"}}}, "arm 'a': `seeds` must be a list"),
        ({"arms": {}}, "needs `recipe`, .* and `arms`"),
        ({"evaluate": [{"benchmark": "mmau"}]}, "entry 1 must be a mapping with `benchmark` and `data`"),
        ({"evaluate": [{"benchmark": "mmu", "data": "x"}]}, "entry 1: argument --benchmark: invalid choice: 'mmu'"),
        ({"evaluate": [{"benchmark": "mmau", "data": "x", "controls": ["deaf"]}]}, "`controls` must be a list of none"),
        ({"evaluate": [{"benchmark": "mmau", "data": "x", "rule": "best"}]}, "not scored by 'best': its rules are mmau"),
        ({"evaluate": [{"benchmark": "air-bench-chat", "data": "x"}]}, "a judge scores it"),
        ({"evaluate": [{"benchmark": "asr", "data": "x", "rule": "wer"}]}, "'wer': error rates score it, and a study"),
        ({"evaluate": 2 * [{"benchmark": "mmau", "data": "x"}]}, "evaluates 'mmau' twice; give one of them another"),
        ({"evaluate": [{"benchmark": "mmau", "data": "nowhere.json"}]}, "nowhere.json"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_done(write, here, tmp_path, capsys, changes, message):
    path = write(**({"arms": {"a": None}} | changes))
    assert main([path, str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("falcon3-audio study: ")
    assert re.search(message, said), said
    assert not here and not (tmp_path / "out").exists()


def test_only_what_is_yet_to_be_trained_on_must_be_there(write, tmp_path):
    study = read_study(write(arms={"a": None, "b": {"train_data": ["not_copied_yet.jsonl"]}}))
    a, b = runs_of(study, tmp_path / "out", read_data(study))
    check_sets_exist([a])
    with pytest.raises(ValueError, match="The study names not_copied_yet.jsonl: there is no such file"):
        check_sets_exist([a, b])
    training = steps_of(b)[0]
    training.product.parent.mkdir(parents=True)
    training.product.touch()
    check_sets_exist([a, b])


@pytest.mark.parametrize("option", [["--only", "a"], ["--jobs", "2"]])
def test_a_report_takes_no_options_of_trainings(write, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        main([write(arms={"a": None}), str(tmp_path / "out"), "--report", *option])
    assert "--report trains nothing and reports all arms: leave out --only and --jobs" in capsys.readouterr().err


def test_two_runs_side_by_side_in_processes_of_their_own(write, tmp_path, monkeypatch):
    """With two cores, each gets one thread."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    output = tmp_path / "out"
    path = write(arms={"a": NO_LORA, "b": NO_LORA | {"learning_rate": 0.1}}, evaluate=[])
    environments = []
    run = module._run_process

    def spy(command, log, environment, *others):
        environments.append(environment)
        return run(command, log, environment, *others)

    monkeypatch.setattr(module, "_run_process", spy)
    assert main([path, str(output), "--jobs", "2"]) == 0
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == 4 * ["1"]  # two trainings, two merges
    assert {run["arm"] for run in report_of(output)["training"]} == {"a", "b"}


STUDIES = sorted((Path(module.__file__).parent / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_that_come_along_are_well_formed(path):
    """On a machine without a GPU, where bfloat16 would be refused before a training, but not for a report."""
    content = yaml.safe_load(path.read_text())
    assert set(content) <= {*KEYS, "extends"}
    study = read_study(path, to_train=False)
    assert len(study.arms) > 1 and study.evaluations
    wanted = {name for name, arm in content["arms"].items() if arm is not False}
    assert wanted <= {arm.name for arm in study.arms}


SLEEP = ["timeit", "-n1", "-r1", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]


def sleeper(log: Path) -> int:
    """The id of the process, which has written it to the log."""
    while not (said := log.read_text().splitlines()[1:] if log.exists() else []):
        time.sleep(0.05)
    return int(said[0])


def test_a_run_whose_study_was_killed_is_left_to_its_process(tmp_path, capsys):
    """The process continues without the study, and holds the lock until it exits; the next study waits for it."""
    log, lock = tmp_path / "log", tmp_path / "lock"

    class Kill(threading.Event):
        def wait(self, timeout=None):
            sleeper(log)
            os.kill(os.getpid(), signal.SIGKILL)

    def work():
        with module._locked(lock, threading.Event()) as descriptor:
            module._run_process(SLEEP, log, dict(os.environ), descriptor, Kill(), False)

    assert in_child(work) == -signal.SIGKILL
    process, waits = sleeper(log), []

    class End(threading.Event):
        def wait(self, timeout=None):
            os.kill(process, signal.SIGKILL)
            waits.append(timeout)
            time.sleep(0.05)

    with module._locked(lock, End()):
        assert waits
    assert f"Another process is working on {tmp_path}; waiting for it to finish." in capsys.readouterr().out


def test_a_study_that_is_stopped_ends_its_processes(tmp_path):
    log, stop = tmp_path / "log", threading.Event()
    threading.Thread(target=lambda: (sleeper(log), stop.set())).start()
    with open(tmp_path / "lock", "ab") as lock, pytest.raises(module.Stopped):
        module._run_process(SLEEP, log, dict(os.environ), lock.fileno(), stop, False)
    with pytest.raises(ProcessLookupError):
        os.kill(sleeper(log), 0)
