"""Results in model cards: taken from score files with all their provenance, and shown unchanged."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from falcon3_audio.evaluation.benchmarks import BENCHMARKS, ids_digest, title_of
from falcon3_audio.evaluation.load_air_bench import FOUNDATION
from falcon3_audio.evaluation.local_model import LocalModel
from falcon3_audio.evaluation.score import FORMAT as SCORE_FORMAT
from falcon3_audio.evaluation.score import main as score
from falcon3_audio.model_cards import render_card
from falcon3_audio.model_cards.record import main as record
from falcon3_audio.model_cards.results import FORMAT, add_result, eval_result_files, read_results, results_of
from falcon3_audio.training.publishing.card import card_for_run, read_facts
from falcon3_audio.training.publishing.card import main as render


WORLD = Path(__file__).resolve().parents[2] / "model_cards" / "facts" / "falcon3-audio-world.yaml"
REPO = "somebody/some-model"
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PROVENANCE = {
    "benchmark": "mmau",
    "data_sha256": {"mmau-test-mini.json": "feed5eed"},
    "prompt": "plain",
    "prompt_example": "Which of 7 bells?\nA bell",
    "control": "none",
    "decoding": {"do_sample": False, "max_new_tokens": 256},
    "model": REPO,
    "model_commit": COMMIT,
    "model_commit_is": "commit on the Hub",
    "model_dtype": "bfloat16",
    "versions": {"falcon3-audio": "0.1.0", "torch": "2.13.0"},
    "created": "2031-02-03T04:05:06+00:00",
}


def write_score(folder, replies=("a bell", "a bell", "a bell", ""), **changed):
    """The file that `falcon3-audio score` writes for four questions whose answer is always a bell."""
    folder.mkdir()
    rows = [
        {"id": str(n), "status": "missing" if reply is None else "answered", "reply": reply, "answer": "a bell"}
        | {"choices": ["a bell", "a dog"], "groups": {"task": "sound" if n % 2 else "music"}}
        for n, reply in enumerate(replies)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(PROVENANCE | changed))
    assert score([str(folder), "--allow-incomplete"]) == 0
    return folder / "score.json"


def evaluation_of(card):
    return card.text.split("## Evaluation")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def facts():
    return read_facts(WORLD, REPO)


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[]\n")
    return path


def test_the_projects_results_are_empty_or_whole():
    assert FORMAT == SCORE_FORMAT
    for entry in read_results():
        assert render_card(read_facts(WORLD, entry["model"]), [entry])


def test_a_score_becomes_a_result_on_the_card(facts, results, tmp_path, capsys):
    assert record(["add", str(write_score(tmp_path / "run")), "--model", REPO, "--file", str(results)]) == 0
    assert "mmau (mmau-official, content) of somebody/some-model added" in capsys.readouterr().out
    (entry,) = read_results(results)
    assert str(tmp_path) not in results.read_text() and not list(tmp_path.glob("*.tmp"))
    card = render_card(facts, [entry])
    evaluation = evaluation_of(card)
    # 3 of 4: Wilson's limits by hand; music 2 of 2, sound 1 of 2.
    assert "| all questions | 75.0 (30.1, 95.4) | 75.0 (30.1, 95.4) |" in evaluation
    assert "| task: music | 100.0 (34.2, 100.0) |" in evaluation and "| task: sound | 50.0 (9.5, 90.5) |" in evaluation
    assert "4 were asked and answered; 1 of the answers were empty" in evaluation
    for said in (
        COMMIT,
        "feed5eed",
        "`plain`",
        '"do_sample": false',
        "torch 2.13.0",
        "2031-02-03",
        "~~~text\nWhich of 7",
    ):
        assert said in evaluation
    assert "Nothing has been measured" not in card.text


def test_a_file_of_ones_own_is_made_and_the_card_takes_it(tmp_path, capsys):
    own = tmp_path / "mine.json"
    for prompt, folder in (("plain", "first"), ("mmar", "second")):
        score_file = write_score(tmp_path / folder, prompt=prompt)
        assert record(["add", str(score_file), "--model", REPO, "--file", str(own)]) == 0
    assert [entry["run"]["prompt"] for entry in read_results(own)] == ["plain", "mmar"]
    capsys.readouterr()
    assert render([str(WORLD), "--repo-id", REPO, "--results", str(own)]) == 0
    assert capsys.readouterr().out.count("| all questions | 75.0 (30.1, 95.4) |") == 2
    assert render([str(WORLD), "--repo-id", REPO]) == 0  # the project's own results
    assert "75.0" not in capsys.readouterr().out
    assert render([str(WORLD), "--repo-id", REPO, "--results", str(tmp_path / "none.json")]) == 1
    assert "none.json" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is the score of"):
        add_result(write_score(tmp_path / "third"), "somebody/other", tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_no_number_of_the_evaluation_is_from_elsewhere(facts, results, tmp_path):
    entry = add_result(write_score(tmp_path / "run"), REPO, results)
    recorded = results.read_text()
    shares = {f"{100 * float(number):.1f}" for number in NUMBER.findall(recorded) if float(number) <= 1}
    known = {*NUMBER.findall(recorded), *shares, "95"}  # 95 % intervals
    evaluation = evaluation_of(render_card(facts, [entry]))
    assert len(NUMBER.findall(evaluation)) > 20 and set(NUMBER.findall(evaluation)) <= known


def test_the_model_index_has_the_results_and_survives(facts, results, tmp_path):
    entries = [add_result(write_score(tmp_path / "run"), REPO, results)]
    card = render_card(facts, entries)
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == card.data.to_dict()
    (index,) = loaded.data.to_dict()["model-index"]
    (measured,) = index["results"]
    assert (
        measured["task"]["type"] == "audio-text-to-text"
        and measured["dataset"]["name"] == "Own questions in MMAU's format"
    )
    assert measured["dataset"]["type"] == "own-questions"
    assert measured["dataset"]["revision"] == "mmau-test-mini.json sha256:feed5eed"
    official, by_content = measured["metrics"]
    assert (official["type"], official["value"], official["args"]["rule"]) == ("accuracy", 0.75, "mmau-official")
    assert official["args"]["n"] == 4 and official["args"]["model_commit"] == COMMIT
    assert "verified" not in official and by_content["args"]["rule"] == "content"


def test_only_the_benchmarks_own_questions_have_its_name(facts, results, tmp_path, monkeypatch):
    entry = add_result(write_score(tmp_path / "run"), REPO, results)
    assert "### Own questions in MMAU's format" in render_card(facts, [entry]).text
    known = replace(BENCHMARKS["mmau"], ids_sha256=(ids_digest("0123"),))
    monkeypatch.setitem(BENCHMARKS, "mmau", known)
    entry = add_result(write_score(tmp_path / "whole"), REPO, results)
    card = render_card(facts, [entry])
    (measured,) = card.data.to_dict()["model-index"][0]["results"]
    assert measured["dataset"]["name"] == "MMAU" and measured["dataset"]["type"] == "mmau"
    assert "### MMAU\n" in card.text
    (content,) = eval_result_files([entry]).values()
    (shown,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (shown.dataset_id, shown.value) == ("gamma-lab-umd/MMAU-test-mini", 75.0)
    assert "rule mmau-official, prompt" in shown.notes and "n 4, 95 % interval" in shown.notes
    # The benchmark's own rule, even if others were scored too; no interval if the entry has none.
    entry["rules"] = dict(reversed(entry["rules"].items()))
    assert eval_result_files([entry]) == {".eval_results/mmau.yaml": content}
    entry["rules"]["mmau-official"]["interval"] = None
    assert "n 4" in eval_result_files([entry])[".eval_results/mmau.yaml"]
    del entry["rules"]["mmau-official"]
    assert eval_result_files([entry | {"rules": {**entry["rules"], "wer": {"word_error_rate": 0.5}}}]) == {}
    entry = add_result(write_score(tmp_path / "part", ("a bell",) * 3), REPO, results)
    assert entry["title"] == "Own questions in MMAU's format" and eval_result_files([entry]) == {}
    del entry["title"]
    with pytest.raises(ValueError, match="lacks provenance: title"):
        render_card(facts, [entry])


def test_what_users_wrote_stays_in_its_place_on_the_card(facts, results, tmp_path):
    prompt = "Look:\n~~~\n## Licence\n~~~~\n```"
    entry = add_result(write_score(tmp_path / "run", prompt_example=prompt), REPO, results)
    for rule in entry["rules"].values():
        groups = rule["breakdowns"]["task"]["groups"]
        groups["a|b\nc"] = groups.pop("music")
    evaluation = evaluation_of(render_card(facts | {"prompt": "```\n{audio}\n"}, [entry]))
    assert f"\n~~~~~text\n{prompt}\n~~~~~\n" in render_card(facts, [entry]).text
    assert "\n| task: a\\|b c | 100.0 (34.2, 100.0) |" in evaluation
    assert "\n````text\n```\n{audio}\n````\n" in render_card(facts | {"prompt": "```\n{audio}\n"}, [entry]).text


def test_air_bench_is_known_by_its_tasks_and_size():
    ids = list(map(str, range(19_000)))
    assert title_of("air-bench-foundation", ids, FOUNDATION) == "AIR-Bench Foundation"
    own = "Own questions in AIR-Bench Foundation's format"
    assert title_of("air-bench-foundation", ids, ["Music_AQA"]) == own
    assert title_of("air-bench-foundation", ids[1:], FOUNDATION) == own
    assert title_of("jsonl", ids) == "Own questions"


def test_word_error_rates_are_results_too(facts):
    rate = {"n": 5, "word_error_rate": 0.25, "interval": [0.125, 0.5], "breakdowns": {}}
    entry = {
        "model": REPO,
        "format": 1,
        "benchmark": "jsonl",
        "title": "Own questions",
        "coverage": 1.0,
        "rules": {"wer": rate},
    }
    entry |= {"data_sha256": {"a.jsonl": "ab"}, "counts": {"questions": 5, "empty": 0}, "predictions_sha256": "cd"}
    card = render_card(facts, [entry | {"run": PROVENANCE}])
    assert "| all questions | 25.0 (12.5, 50.0) |" in evaluation_of(card)
    assert (card.data.eval_results[0].metric_type, card.data.eval_results[0].metric_value) == ("wer", 0.25)


def test_captions_are_results_with_what_the_score_says_of_them(facts):
    rules = {
        "cider-d": {"n": 5, "cider_d": 1.125, "interval": [1.0, 1.25], "breakdowns": {}},
        "bleu-4": {"n": 5, "bleu_4": 0.25, "interval": None, "breakdowns": {}},
    }
    entry = {"model": REPO, "format": 1, "benchmark": "clotho", "title": "Clotho", "coverage": 1.0, "rules": rules}
    entry |= {"data_sha256": {"a.csv": "ab"}, "counts": {"questions": 5, "empty": 0}, "predictions_sha256": "cd"}
    card = render_card(facts, [entry | {"run": PROVENANCE, "notes": ["Without SPICE."]}])
    assert "| all questions | 112.5 (100.0, 125.0) | 25.0 |" in evaluation_of(card)
    assert "\n- Without SPICE.\n" in evaluation_of(card)
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics == {"cider-d": 1.125, "bleu-4": 0.25}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"control": "silence"}, "this is the control 'silence', not a score of the model"),
        ({"model": "somebody/else"}, "is the score of somebody/else, not of somebody/some-model"),
        ({"model_commit": None, "created": None}, r"lacks provenance: run\.model_commit, run\.created\."),
        ({"prompt": None}, r"lacks provenance: run\.prompt\."),
        ({"data_sha256": None}, r"lacks provenance: data_sha256\."),
        ({"replies": ("a bell", None)}, r"coverage is 0\.5: not every question has a reply"),
        ({"left_out": {"audio missing": ["9"]}}, r"coverage is 0\.8: not every question has a reply"),
        (
            {"replies": ("a bell",) * 2, "benchmark": "air-bench-foundation"},
            "nothing was scored by air-bench-official",
        ),
    ],
)
def test_scores_that_are_refused(changed, message, results, tmp_path):
    with pytest.raises(ValueError, match=message):
        add_result(write_score(tmp_path / "run", **changed), REPO, results)
    assert results.read_text() == "[]\n"


def test_files_that_are_no_scores(results, tmp_path, capsys):
    other = tmp_path / "other.json"
    for content, message in (("{", "not valid JSON"), ("[1]", "is not a score file"), ("{}", "is not a score file")):
        other.write_text(content)
        assert record(["add", str(other), "--model", REPO, "--file", str(results)]) == 1
        said = capsys.readouterr().err
        assert message in said and said.startswith("falcon3-audio results: ") and said.count("\n") == 1
    written = write_score(tmp_path / "run")
    assert record(["add", str(written), "--model", "no-owner", "--file", str(results)]) == 1
    assert "needs the Hub id (ORG/NAME)" in capsys.readouterr().err
    written.write_text(written.read_text().replace('"format": 1', '"format": 2'))
    assert record(["add", str(written), "--model", REPO, "--file", str(results)]) == 1
    assert "got the format 2; expected 1" in capsys.readouterr().err
    assert record(["add", str(tmp_path / "none.json"), "--model", REPO, "--file", str(results)]) == 1


def test_a_new_score_replaces_that_of_the_same_questions_only(results, tmp_path):
    add_result(write_score(tmp_path / "first"), REPO, results)
    add_result(write_score(tmp_path / "again", ("a dog",) * 4), REPO, results)
    assert [entry["rules"]["content"]["right"] for entry in read_results(results)] == [0]
    add_result(write_score(tmp_path / "mmar", prompt="mmar"), REPO, results)
    add_result(write_score(tmp_path / "other", model="another/model"), "another/model", results)
    entries = read_results(results)
    assert [(entry["model"], entry["run"]["prompt"]) for entry in entries] == [
        ("another/model", "plain"),
        (REPO, "plain"),
        (REPO, "mmar"),
    ]


def test_a_score_of_several_ways_to_ask_stands_beside_that_of_one(results, tmp_path):
    ways = ({}, {"shuffled_orders": 2}, {"paraphrases_sha256": {"words.jsonl": "ab"}})
    for number, way in enumerate(ways):
        add_result(write_score(tmp_path / str(number), **way), REPO, results)
    assert [entry["title"].partition(" in 1 ")[2] for entry in read_results(results)] == [
        *("", "orders of the options", "wordings")
    ]


def test_results_of_another_model_are_refused(facts, results, tmp_path):
    entry = add_result(write_score(tmp_path / "run"), REPO, results)
    with pytest.raises(ValueError, match="got a result of somebody/some-model for the card of somebody/other"):
        render_card(facts | {"repo_id": "somebody/other"}, [entry])
    assert results_of("somebody/other", path=results) == []
    del entry["run"]["decoding"]
    with pytest.raises(ValueError, match=r"lacks provenance: run\.decoding"):
        render_card(facts, [entry])


def test_a_run_card_takes_what_was_measured_with_its_files(checkpoint, results, tmp_path):
    copy_of_it = tmp_path / "published"
    shutil.copytree(checkpoint, copy_of_it)
    described = LocalModel(checkpoint).describe()
    assert described["model"] == checkpoint
    add_result(write_score(tmp_path / "measured", **described), REPO, results)
    assert checkpoint not in results.read_text()
    card = card_for_run(copy_of_it, copy_of_it, REPO, results=results)
    assert "75.0" in evaluation_of(card) and described["model_commit"] in card.text
    config = json.loads((copy_of_it / "config.json").read_text())
    (copy_of_it / "config.json").write_text(json.dumps(config | {"initializer_range": 0.5}))
    with pytest.raises(
        ValueError, match=f"with other files .* than those in {copy_of_it}.*falcon3-audio merge RUN OUT"
    ):
        card_for_run(copy_of_it, copy_of_it, REPO, results=results)
    other = card_for_run(copy_of_it, copy_of_it, "somebody/other", results=results)
    assert "Nothing has been measured" in other.text


def test_a_downloaded_commit_takes_the_results_of_that_commit(checkpoint, results, tmp_path):
    add_result(write_score(tmp_path / "run"), REPO, results)
    snapshot = tmp_path / "snapshots" / COMMIT
    shutil.copytree(checkpoint, snapshot)
    assert len(results_of(REPO, snapshot, results)) == 1
    with pytest.raises(ValueError, match="was measured with other files"):
        results_of(REPO, Path(checkpoint), results)
