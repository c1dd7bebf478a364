"""The lmms-eval plug-in: rows, prompts, scores and chats without lmms-eval; whole evaluations if it is installed."""

import importlib.util
import math
from pathlib import Path

import pytest
import soundfile
import yaml
from benchmark_files import write_json
from evaluation_runs import make_telling, rows_of
from tiny import SAMPLING_RATE, question, tone

from falcon3_audio.evaluation.answerers import NoAudio
from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.generate import generate
from falcon3_audio.evaluation.lmms_eval import TASKS, rows, scoring
from falcon3_audio.evaluation.lmms_eval.chat_model import ChatModel, cut, max_new_tokens, to_chat
from falcon3_audio.evaluation.load_mmau import load_mmau
from falcon3_audio.evaluation.local_model import LocalModel
from falcon3_audio.evaluation.questions import Clip, Question, QuestionSet


VARIABLE = "FALCON3_AUDIO_MMAU"
DOC = {"id": "q", "question": "What is it?", "choices": ["a dog", "a bell"], "answer": "a bell", "task": "sound"} | {
    "clip": "x.wav",
    "check": "",
}


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return make_telling(checkpoint, tmp_path_factory.mktemp("telling"))


@pytest.fixture
def mmau(tmp_path, monkeypatch):
    """A file in MMAU's format with three questions; an environment variable holds its path."""
    (tmp_path / "clips").mkdir()
    asked = []
    for number, task in enumerate(("sound", "music", "sound")):
        soundfile.write(
            tmp_path / "clips" / f"{number}.wav", tone(0.3 + number / 10, 300 + 100 * number, 22050), 22050
        )
        row = {"id": f"q{number}", "audio_id": f"./clips/{number}.wav", "question": f"What is it, {number}?"}
        asked.append(row | {"choices": ["a dog", "a bell"], "answer": "a bell", "task": task})
    path = write_json(tmp_path / "mmau-test-mini.json", asked)
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_rows_are_those_of_the_file_in_the_environment(mmau, tmp_path, monkeypatch):
    questions = rows.load("mmau")
    expected = {"question": "What is it, 1?", "clip": "./clips/1.wav", "task": "music", "id": "q1"}
    assert rows.row_of(questions.questions[1]) == DOC | expected
    moved = (tmp_path / "elsewhere").mkdir() or mmau.rename(tmp_path / "elsewhere" / mmau.name)
    monkeypatch.setenv(VARIABLE, str(moved))
    with pytest.raises(ValueError, match="audio file missing"):
        rows.load("mmau")
    monkeypatch.setenv(f"{VARIABLE}_AUDIO_ROOT", str(tmp_path))
    assert rows.load("mmau").questions == questions.questions
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match="FALCON3_AUDIO_MMAU is not set"):
        rows.load("mmau")
    with pytest.raises(ValueError, match="FALCON3_AUDIO_AIR_BENCH_FOUNDATION is not set"):
        rows.load("air-bench-foundation")


@pytest.mark.parametrize(
    ("groups", "task"),
    [
        ({"modality": "mix-sound-speech", "category": "Signal Layer"}, "mix-sound-speech"),  # as in MMAR
        ({"category": "sound"}, "sound"),
        ({"place": "city"}, ""),
    ],
)
def test_the_group_that_macro_averages_are_over(groups, task):
    question = Question("q", (Clip("x", bytes),), "What?", ("a dog", "a bell"), "a bell", groups)
    assert rows.row_of(question)["task"] == task


@pytest.mark.parametrize(
    ("choices", "answer", "lacks"), [((), "a bell", "options"), (("a dog", "a bell"), None, "answer")]
)
def test_what_cannot_be_scored_is_no_row(choices, answer, lacks):
    with pytest.raises(ValueError, match=f"question q has no {lacks}"):
        rows.row_of(Question("q", (Clip("x", bytes),), "What?", choices, answer))


def test_open_questions_are_left_out_where_a_task_says_so():
    clip = (Clip("x", bytes),)
    choice = Question("a", clip, "What?", ("a dog", "a bell"), "a bell", {"category": "sound"})
    order = Question("b", clip, "Be brief.", check={"task": "Number Words (at most)", "N": 2})
    kept = rows.without_open(QuestionSet("mmau-pro", (choice, Question("c", clip, "Why?", answer="it"), order), {}))
    docs = [rows.row_of(question) for question in kept.questions]
    assert [(doc["id"], doc["task"]) for doc in docs] == [("a", "sound"), ("b", "")]
    assert rows.doc_to_text(docs[1], {"prompt": "plain"}) == "Be brief."
    said = [scores(scoring.mmau_pro_results(docs[1], [reply]))["content"] for reply in ("a dog", "a dog barks")]
    assert said == [1, 0]


def test_the_prompt_is_the_named_one():
    assert rows.doc_to_text(DOC, {"prompt": "mmar"}) == (
        "What is it?\nSelect one option from the provided choices:\na dog\na bell"
    )
    assert rows.doc_to_text(DOC, {"prompt": "air-bench-foundation"}).endswith("\nWhat is it?\nA. a dog\nB. a bell")


def scores(results):
    return {metric: item.get("score") for metric, item in results.items() if not metric.endswith("_macro")}


def test_both_rules_side_by_side():
    """ "the" and "correct" occur in no option; the label is wrong by the official rule and right by content."""
    keys = ("official", "official_sound")
    worded = scores(scoring.mmau_results(DOC, ["The correct one is a bell"]))
    label = scores(scoring.mmau_results(DOC, ["B"]))
    assert [worded[key] for key in keys] == [1, 1] and [label[key] for key in keys] == [0, 0]
    assert worded["content"] == label["content"] == label["content_sound"] == 1
    vague = scores(scoring.mmau_results(DOC, ["a cat"]))
    assert (vague["official"], vague["content"], vague["content_unresolved"]) == (0, 0, 1)
    assert label["content_unresolved"] == label["official_left_out"] == 0


def test_what_air_bench_leaves_out_has_no_official_score():
    labelled = scores(scoring.air_bench_results(DOC, ["B. a bell"]))
    named = scores(scoring.air_bench_results(DOC, ["a bell"]))
    assert (labelled["official"], labelled["official_left_out"], labelled["content"]) == (1, 0, 1)
    assert (named["official"], named["official_left_out"], named["content"]) == (None, 1, 1)
    item = scoring.air_bench_results(DOC, ["a bell"])["official"]
    assert item == {"clip": "x.wav"}


def test_micro_and_macro():
    items = [{"score": 1.0}, {"score": 0.0}, {"clip": "x"}, {"score": 1.0}]
    pairs = list(zip("aaab", items))
    assert scoring.share(items) == 2 / 3 and scoring.macro(pairs) == (1 / 2 + 1) / 2
    assert math.isnan(scoring.share([{}])) and math.isnan(scoring.macro([*pairs, ("c", {})]))


def test_macro_averages_are_over_tasks():
    asked = [("a", "B"), ("a", "C. it"), ("b", "A"), ("b", "B"), ("b", "a cat")]
    results = [scoring.air_bench_results(DOC | {"task": task}, [reply]) for task, reply in asked]
    made = {metric: [result[metric] for result in results] for metric in ("official_macro", "content_macro")}
    assert scoring.macro(made["official_macro"]) == (1 / 2 + 1 / 2) / 2  # the last reply is left out
    assert scoring.macro(made["content_macro"]) == pytest.approx((1 / 2 + 1 / 3) / 2)


class Loader(yaml.SafeLoader):
    """Reads `!function a.b.c` as a pair of module and name."""


Loader.add_constructor("!function", lambda loader, node: tuple(loader.construct_scalar(node).rsplit(".", 1)))


@pytest.mark.parametrize("name", ["mmau", "mmar", "air_bench_foundation", "mmsu", "esc_50", "mmau_pro_without_open"])
def test_task_files_name_what_there_is(name):
    task = yaml.load((TASKS / f"{name}_falcon3_audio.yaml").read_text(), Loader)
    assert task["task"] == f"{name}_falcon3_audio" and task["dataset_path"] in BENCHMARKS
    assert task["dataset_path"] == name.replace("_without_open", "").replace("_", "-")
    assert task.get("dataset_name") == (rows.WITHOUT_OPEN if "without_open" in name else None)
    assert task["class"] == ("falcon3_audio.evaluation.lmms_eval.benchmark_task", "BenchmarkTask")

    def function(pair):
        return getattr(importlib.import_module(pair[0]), pair[1])

    assert "a bell" in function(task["doc_to_text"])(DOC, task["lmms_eval_specific_kwargs"])
    results = [function(task["process_results"])(DOC | {"task": t}, ["B"]) for t in ("sound", "music", "speech")]
    scored = results[0].get("official", {"score": None})["score"]
    assert scored == {"mmau": 0, "mmar": 0, "air_bench_foundation": 1, "mmsu": 1}.get(name)
    made = {metric: [result[metric] for result in results if metric in result] for metric in set().union(*results)}
    for metric in task["metric_list"]:
        assert 0 <= function(metric["aggregation"])(made[metric["metric"]]) <= 1
    assert max_new_tokens(task["generation_kwargs"]) == 256 and task["generation_kwargs"]["until"] == []
    assert task["cluster_key"] in results[0]["content"] and task["doc_to_target"] in DOC


def test_decoding_is_greedy_or_refused():
    assert max_new_tokens({}) == 256
    assert (
        max_new_tokens({"max_new_tokens": 7, "temperature": 0.0, "top_p": None, "num_beams": 1, "until": ["x"]}) == 7
    )
    assert max_new_tokens({"do_sample": False, "temperature": 0.7}) == 256
    for decoding in ({"do_sample": True}, {"temperature": 0.2}, {"num_beams": 4}, {"min_new_tokens": 1}):
        with pytest.raises(ValueError, match="decodes greedily"):
            max_new_tokens(decoding)


def test_replies_are_cut():
    assert cut("a bell\n\nor a dog. No", ["No", "\n\n"]) == "a bell"
    assert cut("a bell. No", ". ") == "a bell"
    assert cut("a\n\nb", []) == cut("a\n\nb", None) == cut("a\n\nb", [""]) == "a\n\nb"


def message(shown, text="What?", kind="audio"):
    """A chat of one message in lmms-eval's form."""
    return [{"role": "user", "content": [{"type": kind, "url": shown}, {"type": "text", "text": text}]}]


def test_messages_become_chats():
    [asked] = to_chat(message({"array": tone(1.0, rate=8000), "sampling_rate": 8000}))
    audio, text = asked["content"]
    assert asked["role"] == "user" and text == {"type": "text", "text": "What?"}
    assert audio["sampling_rate"] == SAMPLING_RATE and audio["audio"].shape == (SAMPLING_RATE,)
    with pytest.raises(ValueError, match="gives the model image"):
        to_chat(message(None, kind="image"))


def test_replies_in_batches_are_those_of_evaluate(folder, mmau, tmp_path):
    made = load_mmau(mmau)
    generate(made, LocalModel(folder, device="cpu", batch_size=3, max_new_tokens=6), tmp_path / "out", "question")
    model = ChatModel(folder, device="cpu")
    chats = [to_chat(message(asked.audio[0].read(), asked.question)) for asked in made.questions]
    replies = model.reply(chats, 6)
    assert replies == [row["reply"] for row in rows_of(tmp_path / "out").values()] and len(set(replies)) == 3
    assert all(reply.startswith(short) for reply, short in zip(replies, model.reply(chats, 2)))
    assert model.reply(chats, 2) != replies


def test_a_model_that_does_not_hear_ends_the_run(folder, monkeypatch):
    model = ChatModel(folder, device="cpu")
    words = question(text="What?")
    chat = question(tone(0.3))
    assert model.reply([words], 2)  # without a clip there is nothing to hear
    apply = model._pipe.processor.apply_chat_template

    def deaf(chats, **options):
        return apply([words for _ in chats], **options)

    monkeypatch.setattr(model._pipe.processor, "apply_chat_template", deaf)
    for earlier in (chat, [*chat, {"role": "assistant", "content": words[0]["content"]}, *words]):
        with pytest.raises(NoAudio, match="without audio tokens|no audio tokens"):
            model.reply([earlier], 2)
    monkeypatch.setattr(type(model._pipe), "audio_token_id", None)
    with pytest.raises(NoAudio, match="neither the model's config nor its processor names an audio token"):
        model.reply([chat], 2)


def evaluated(folder, **options):
    """lmms-eval's results and samples for the task."""
    evaluator = importlib.import_module("lmms_eval.evaluator")
    manager = importlib.import_module("lmms_eval.tasks").TaskManager(
        include_path=str(TASKS), model_name="falcon3_audio"
    )
    given = {"model": "falcon3_audio", "model_args": f"pretrained={folder}", "tasks": ["mmau_falcon3_audio"]}
    given |= {"device": "cpu", "batch_size": 2, "task_manager": manager, "log_samples": True}
    results = evaluator.simple_evaluate(**given | options)
    return results["results"]["mmau_falcon3_audio"], results["samples"]["mmau_falcon3_audio"], results


needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms-eval is not installed (extra lmms-eval)"
)


@needs_lmms_eval
def test_lmms_eval_gets_the_replies_of_evaluate(folder, mmau, tmp_path):
    generate(load_mmau(mmau), LocalModel(folder, device="cpu", batch_size=2, max_new_tokens=6), tmp_path / "out")
    expected = rows_of(tmp_path / "out")
    _, samples, results = evaluated(folder, gen_kwargs="max_new_tokens=6")
    assert {sample["doc"]["id"]: sample["filtered_resps"][0] for sample in samples} == {
        identity: row["reply"] for identity, row in expected.items()
    }
    assert [sample["arguments"][0] for sample in samples] == [row["prompt"] for row in expected.values()]
    assert results["configs"]["mmau_falcon3_audio"]["metadata"]["data_sha256"] == load_mmau(mmau).sha256


@needs_lmms_eval
def test_lmms_eval_scores_by_both_rules(folder, mmau, monkeypatch):
    said = iter(["a bell", "B", "a cat"])
    monkeypatch.setattr(ChatModel, "reply", lambda self, chats, limit: [next(said) for _ in chats])
    scored, _, _ = evaluated(folder)
    found = {name.removesuffix(",none"): value for name, value in scored.items() if name.endswith(",none")}
    assert found["official"] == pytest.approx(1 / 3) and found["content"] == pytest.approx(2 / 3)
    assert (found["official_sound"], found["official_music"]) == (0.5, 0)
    assert (found["content_sound"], found["content_music"]) == (0.5, 1)
    assert found["content_unresolved"] == pytest.approx(1 / 3)
    # The standard error of 1, 0, 0.
    assert found["official_stderr_clt"] == pytest.approx((1 / 3) ** 0.5 / 3**0.5)


@needs_lmms_eval
def test_lmms_eval_stops_where_a_clip_cannot_be_read(folder, mmau):
    (Path(mmau).parent / "clips" / "1.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(ValueError, match="1.wav cannot be decoded"):
        evaluated(folder)


@needs_lmms_eval
def test_what_lmms_eval_cannot_ask_for(folder, monkeypatch):
    adapter = importlib.import_module("falcon3_audio.evaluation.lmms_eval.model").Falcon3Audio
    with pytest.raises(ValueError, match="--batch_size auto"):
        adapter(folder, batch_size="auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="one process"):
        adapter(folder)
