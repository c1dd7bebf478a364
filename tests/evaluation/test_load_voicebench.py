"""Small parquet folders in VoiceBench's layout: asked with audio only, and rated by a stub judge."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import write_clip
from evaluation_runs import make_telling, rows_of
from stub_endpoint import Answer, StubEndpoint

from falcon3_audio.evaluation import judge
from falcon3_audio.evaluation.evaluate import main
from falcon3_audio.evaluation.load_voicebench import load_voicebench


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.wav")


def parquet(path, clip, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio = {"audio": {"bytes": clip, "path": "clip.wav"}}
    pq.write_table(pa.Table.from_pylist([audio | row for row in rows]), path)
    return path.parent


def test_requests_are_numbered_in_their_split(tmp_path, clip):
    asked = ("Name a bird.", "What is 2 + 2?", "Tell a joke.")
    parquet(tmp_path / "wildvoice" / "test-00000-of-00002.parquet", clip, *({"prompt": text} for text in asked[:2]))
    folder = parquet(tmp_path / "wildvoice" / "test-00001-of-00002.parquet", clip, {"prompt": asked[2]})
    questions = load_voicebench(folder).questions
    assert [question.id for question in questions] == [f"wildvoice/test/{number}" for number in (1, 2, 3)]
    assert tuple(question.question for question in questions) == asked
    assert {(question.answer, question.choices, question.groups["task"]) for question in questions} == {
        (None, (), "wildvoice")
    }
    assert questions[2].audio[0].read() == clip
    assert [question.question for question in load_voicebench(folder / "test-00000-of-00002.parquet").questions] == [
        *asked[:2]
    ]


def test_each_accent_is_a_task_and_has_references(tmp_path, clip):
    row = {"prompt": "Who wrote Hamlet?", "reference": "Shakespeare"}
    parquet(tmp_path / "sd-qa" / "usa-00000-of-00001.parquet", clip, row)
    folder = parquet(tmp_path / "sd-qa" / "ind_n-00000-of-00001.parquet", clip, row)
    found = [(question.id, question.groups["task"], question.answer) for question in load_voicebench(folder).questions]
    assert found == [("sd-qa/ind_n/1", "sd-qa ind_n", "Shakespeare"), ("sd-qa/usa/1", "sd-qa usa", "Shakespeare")]


def test_other_subsets_and_layouts_are_errors(tmp_path, clip):
    other = parquet(tmp_path / "mmsu" / "law-00000-of-00001.parquet", clip, {"prompt": "?", "reference": "A"})
    with pytest.raises(
        ValueError, match="folder 'mmsu'; expected the name of one of VoiceBench's open subsets.*alpacaeval,"
    ):
        load_voicebench(other)
    lacking = parquet(tmp_path / "sd-qa" / "usa-00000-of-00001.parquet", clip, {"prompt": "?"})
    with pytest.raises(ValueError, match=r"columns \['audio', 'prompt'\]; VoiceBench's sd-qa.*\['reference'\]"):
        load_voicebench(lacking)
    (tmp_path / "commoneval").mkdir()
    with pytest.raises(ValueError, match="holds no parquet files; expected VoiceBench's"):
        load_voicebench(tmp_path / "commoneval")
    empty = parquet(tmp_path / "alpacaeval" / "test.parquet", clip, {"prompt": "Hello"}, {"prompt": " "})
    with pytest.raises(ValueError, match=r"row 2 \(alpacaeval/test/2\): 'prompt' is ' ', expected a text"):
        load_voicebench(empty)


@pytest.fixture
def folder(tmp_path, clip):
    rows = ({"prompt": "Who wrote Hamlet?", "reference": "Shakespeare"}, {"prompt": "Who, then?", "reference": "Me"})
    return parquet(tmp_path / "sd-qa" / "usa-00000-of-00001.parquet", clip, *rows)


def command(folder, out, *more):
    return ["--benchmark", "voicebench", "--data", str(folder), "--output-dir", str(out), *map(str, more)]


def test_from_sound_alone_to_a_judgement(folder, tmp_path, capsys):
    def answers(body):
        content = body["messages"][0]["content"]
        if len(content) == 1 and content[0]["type"] == "input_audio":
            return "It was Shakespeare."
        tokens = 100 if any(part["type"] == "input_audio" for part in content) else 10  # the audio check
        return Answer("yes", usage={"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1})

    with StubEndpoint(answers) as stub:
        assert main(command(folder, tmp_path / "out", "--endpoint", stub.url, "--endpoint-model", "m")) == 0
    rows = rows_of(tmp_path / "out")
    assert {row["reply"] for row in rows.values()} == {"It was Shakespeare."}
    assert rows["sd-qa/usa/1"]["question"] == "Who wrote Hamlet?" and rows["sd-qa/usa/1"]["prompt"] == ""

    def rates(body):
        asked = body["messages"][0]["content"]
        right = "<reference>\nShakespeare\n</reference>" in asked
        assert "<request>\nWho" in asked and "<answer>\nIt was Shakespeare.\n</answer>" in asked
        return f"It is.\n**Score: {5 if right else 2}**"

    with StubEndpoint(rates) as stub:
        assert judge.main([str(tmp_path / "out"), "--endpoint", stub.url, "--judge", "m"]) == 0
    result = json.loads((tmp_path / "out" / "predictions.judge-voicebench" / "judge.json").read_text())
    block = result["judges"]["m"]
    assert block["score"]["value"] == 3.5 and block["by task"]["means"] == {"sd-qa usa": 3.5}
    assert "not comparable with published scores" in result["provenance"]["wording"]
    assert "rubric 'voicebench', 1 to 5" in capsys.readouterr().out


def test_a_request_without_a_reference_is_rated_by_itself(tmp_path, clip):
    out = tmp_path / "out"
    out.mkdir()
    row = {"id": "1", "status": "answered", "reply": "A robin.", "question": "Name a bird.", "audio": ["1"]}
    (out / "predictions.jsonl").write_text(json.dumps(row) + "\n")

    def rates(body):
        assert "<reference>" not in body["messages"][0]["content"]
        return "score: 4"

    options = [str(out), "--judge", "m", "--rubric", "voicebench"]
    with StubEndpoint(rates) as stub:
        assert judge.main([*options, "--endpoint", stub.url]) == 0
    block = json.loads((out / "predictions.judge-voicebench" / "judge.json").read_text())["judges"]["m"]
    assert block["score"]["value"] == 4 and block["length"]["mean words of the references"] is None
    assert "without a reference" in block["score at equal length"]["reason"]
    with StubEndpoint(lambda body: "score: 6") as stub:
        assert judge.main([*options, "--endpoint", stub.url]) == 1


def test_a_model_here_is_asked_by_sound_alone(folder, checkpoint, tmp_path, capsys):
    model = make_telling(checkpoint, tmp_path / "model")
    more = ("--model", model, "--device", "cpu", "--max-new-tokens", 3)
    assert main(command(folder, tmp_path / "out", *more)) == 0
    assert all(row["status"] == "answered" and row["audio_tokens"] for row in rows_of(tmp_path / "out").values())
    assert main(command(folder, tmp_path / "deaf", *more, "--control", "text-only")) == 1
    assert "'sound-alone' has no text and the control 'text-only' no audio" in capsys.readouterr().err
