"""What is compared when a study resumes, and what it says to remove, on folders filled by hand."""

import json
import threading
from dataclasses import make_dataclass, replace

import pytest
import yaml
from training_runs import write_jsonl, write_recipe

from falcon3_audio.training.run_folder import RECIPE, start_or_go_on
from falcon3_audio.training.studies import study_runs as module
from falcon3_audio.training.studies.study_file import SFT, make_study
from falcon3_audio.training.studies.study_runs import (
    changes,
    check_unchanged,
    read_data,
    runs_of,
    steps_of,
    write_record,
)
from falcon3_audio.training.study import main, perform, perform_all
from falcon3_audio.whole_files import write_json


@pytest.fixture
def data(tmp_path):
    """A set with its questions, clips and report in one folder, and a benchmark."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_json(folder / "report.json", {"finished": True, "parameters": {"seed": 0}})
    for name in ("train.jsonl", "clips.jsonl"):
        write_jsonl(folder / name, [{"path": "a.wav"}])
    (folder / "a.wav").touch()
    row = {"id": "q", "audio_id": "a.wav", "question": "What?", "choices": ["a dog", "a bell"], "answer": "a dog"}
    (folder / "test.json").write_text(json.dumps([row | {"task": "sound", "category": "c", "difficulty": "easy"}]))
    return folder


@pytest.fixture
def runs(data, tmp_path):
    """The runs of a study with these options and the data now on disk."""
    recipe = write_recipe(tmp_path / "recipe.yaml", model="a/base", train_data=[str(data / "train.jsonl")], bf16=False)

    def runs(name="mmau", **content):
        asked = {"name": name, "benchmark": "mmau", "data": str(data / "test.json"), "controls": ["silence"]}
        study = make_study("mine", recipe, {"evaluate": [asked]} | content, "mine.yaml")
        module.data_sha256.cache_clear()
        return runs_of(study, tmp_path / "out", read_data(study))

    return runs


def end(run):
    """Writes the files of a run whose steps have all finished."""
    for step in steps_of(run):
        step.folder.mkdir(parents=True, exist_ok=True)
        step.log.write_text("said")
        step.product.write_text("{}")
        if step.trains or step.evaluates:
            write_record(step)


def test_an_evaluation_may_have_any_name(runs, data):
    """An evaluation with the name of the training has its own digests."""
    for name in ("train", "mmau"):
        (run,) = runs(name, arms={"a": None})
        training, _, asking, _ = steps_of(run)
        assert str(data / "train.jsonl") in training.data and "test.json" not in training.data
        assert "test.json" in asking.data and str(data / "train.jsonl") not in asking.data


@pytest.mark.parametrize(
    ("file", "steps"), [("report.json", 3), ("clips.jsonl", 3), ("train.jsonl", 1), ("test.json", 2)]
)
def test_what_describes_a_set_is_part_of_it(runs, data, file, steps):
    """For the training, and for the evaluations with and without sound."""
    (run,) = runs(arms={"a": None})
    end(run)
    assert changes(run) == ([], [])
    (data / file).write_text((data / file).read_text() + "\n")
    words, _ = changes(*runs(arms={"a": None}))
    assert len(words) == steps and all(f"{file}: " in word for word in words)


def test_a_report_beside_a_file_that_is_not_a_sets_says_nothing_about_it(runs, data):
    """For example a study's own report, which changes."""
    write_json(data / "report.json", {"format": 1, "study": "mine"})
    (run,) = runs(arms={"a": None})
    assert [list(step.data) for step in steps_of(run) if step.trains] == [[str(data / "train.jsonl")]]
    with pytest.raises(ValueError, match="is not a report of a prepared set"):
        runs(arms={"a": {"train_data": str(data)}})


def test_the_report_of_a_set_is_not_replaced(data, tmp_path, capsys):
    path = write_recipe(tmp_path / "study.yaml", recipe="recipe.yaml", arms={"a": None})
    write_recipe(tmp_path / "recipe.yaml", model="a/base", train_data=[str(data / "train.jsonl")], bf16=False)
    before = (data / "report.json").read_bytes()
    assert main([path, str(data), "--report"]) == 1
    assert "is a prepared set, whose report the study would overwrite" in capsys.readouterr().err
    assert (data / "report.json").read_bytes() == before


def test_what_steps_made_is_to_be_removed_and_nothing_of_the_users(runs, tmp_path):
    """As in the demo, whose run shares its folder with other files."""
    (run,) = runs(arms={"a": None})
    home = tmp_path / "runs" / "my demo"
    end(replace(run, folder=home))
    (home / "world").mkdir()
    (run,) = runs(arms={"a": {"lora_r": 4}})
    run = replace(run, folder=home)
    words, made = changes(run)
    assert words == ["lora_r: 8 -> 4"]
    assert made == [home / name for name in ("run", "train.log", "model", "merge.log", "scores/mmau")]
    with pytest.raises(ValueError) as error:
        perform(run, {}, threading.Event())
    assert f"a, seed 0: lora_r: 8 -> 4\n    rm -r '{home}/run' '{home}/train.log' '{home}/model'" in str(error.value)
    assert "--only" not in str(error.value)
    # If only the prompt changes, the model stays.
    (run,) = runs(arms={"a": None}, evaluate=[])
    asked = {"benchmark": "mmau", "data": str(tmp_path / "data" / "test.json"), "prompt": "audio-world"}
    (run,) = runs(arms={"a": None}, evaluate=[asked])
    _, made = changes(replace(run, folder=home))
    assert made == [home / "scores" / "mmau" / name for name in ("none", "none.log")]


def test_of_stages_the_changed_one_and_those_after_it_are_made_again(runs, tmp_path):
    (run,) = runs(arms={"a": [{}, {"lora_r": 4}, {}]})
    end(run)
    (run,) = runs(arms={"a": [{}, {"lora_r": 2}, {}]})
    words, made = changes(run)
    assert words == ["lora_r: 4 -> 2"]
    assert {path.relative_to(run.folder).parts[0] for path in made} == {"stage-2", "stage-3", "scores"}
    assert run.folder / "stage-3" / "run" in made


def test_fewer_stages_ask_another_model(runs):
    """The scores of the model of a later stage are not those of the stage before."""
    (run,) = runs(arms={"a": [{}, {}, {"lora_r": 4}]})
    end(run)
    (run,) = runs(arms={"a": [{}, {}]})
    words, made = changes(run)
    assert words == ["stages: 3 -> 2"] * 2  # with sound and with silence
    assert made == [run.folder / "scores" / "mmau"] or {path.parent for path in made} == {
        run.folder / "scores" / "mmau"
    }
    (run,) = runs(arms={"a": [{}, {}, {"lora_r": 4}]})
    record = run.folder / "scores" / "mmau" / "none.json"
    before = json.loads(record.read_text())
    del before["settings"]["stages"]  # as before this was recorded
    write_json(record, before)
    assert changes(run) == ([], [])


@pytest.mark.parametrize("key", ["prompt_file", "paraphrases"])
def test_the_words_in_which_questions_are_asked_are_data(runs, data, key):
    file = data / "words.txt"
    file.write_text("{question}")
    asked = {"benchmark": "mmau", "data": str(data / "test.json"), key: str(file)}
    (run,) = runs(arms={"a": None}, evaluate=[asked])
    end(run)
    assert changes(run) == ([], [])
    file.write_text("Listen. {question}")
    words, _ = changes(*runs(arms={"a": None}, evaluate=[asked]))
    assert len(words) == 1 and f"{key}: {file}: " in words[0]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        runs(arms={"a": None}, evaluate=[asked])


def test_a_local_model_is_data(runs, tmp_path):
    """Its weights too: retrained, they keep their size."""
    model = tmp_path / "llm"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"1234")
    arms = {"a": {"audio_model": "a/whisper", "text_model": str(model)}}
    (run,) = runs(arms=arms)
    end(run)
    assert changes(run) == ([], [])
    (model / "model.safetensors").write_bytes(b"4321")
    words, _ = changes(*runs(arms=arms))
    assert len(words) == 1 and words[0].startswith(f"{model}: ")


def test_open_questions_are_refused_before_anything_is_trained(runs, data, tmp_path):
    rows = [{"id": "1", "audio": "a.wav", "question": "What?", "choices": ["a dog", "a bell"], "answer": "a dog"}]
    rows.append({"id": "2", "audio": "a.wav", "question": "Why?", "answer": "It is late."})
    write_jsonl(data / "mixed.jsonl", rows)
    with pytest.raises(ValueError, match="mixed.jsonl has 1 open questions \\('2' for one\\)"):
        runs(arms={"a": None}, evaluate=[{"benchmark": "jsonl", "data": str(data / "mixed.jsonl")}])


def test_what_another_process_made_meanwhile_is_compared_too(runs, monkeypatch):
    """Another study makes the run with another option while this one waits for the run's lock."""
    (mine,), (other,) = runs(arms={"a": {"lora_r": 2}}), runs(arms={"a": {"lora_r": 4}})
    check_unchanged([mine])
    end(other)
    (said,) = perform_all([mine])
    assert "lora_r: 4 -> 2" in said


def test_an_option_that_is_new_had_its_default(runs, tmp_path, monkeypatch):
    """In the record of a study, and in that of a run."""
    (run,) = runs(arms={"a": None})
    end(run)
    record = json.loads((run.folder / "train.json").read_text())
    # As before these options existed, or were recorded.
    for option in ("lora_alpha", "questions_per_row", "lora_dropout", "average_tokens_across_devices"):
        del record["settings"][option]
    record["settings"]["pooling_window"] = 2  # recorded formerly, though the run's `model` has its own
    write_json(run.folder / "train.json", record)
    assert changes(run) == ([], [])
    (run,) = runs(arms={"a": {"lora_alpha": 8}})
    assert changes(run)[0] == ["lora_alpha: 16 -> 8"]

    place = tmp_path / "run"
    checkpoint = place / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    write_json(checkpoint / "trainer_state.json", {"global_step": 2})
    (place / RECIPE).write_text(yaml.safe_dump({"lora_r": 8}))
    later = [make_dataclass("Later", [("new", list, None), ("other", int, 3)])]
    assert start_or_go_on(place, {"lora_r": 8, "new": None, "other": 3}, options=[*SFT.options, *later]) == checkpoint
    with pytest.raises(ValueError, match=r"\(other: 3 -> 4\)"):
        start_or_go_on(place, {"lora_r": 8, "new": None, "other": 4}, options=[*SFT.options, *later])
