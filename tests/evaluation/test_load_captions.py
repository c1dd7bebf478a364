"""Small files in the formats of AudioCaps and Clotho: a clip is one question, and its captions are the references."""

import hashlib
import json
import sys

import pytest
from benchmark_files import write_clip
from evaluation_runs import rows_of
from stub_endpoint import Answer, StubEndpoint

from falcon3_audio.evaluation.benchmarks import BENCHMARKS, title_of
from falcon3_audio.evaluation.caption_metrics import caption_results
from falcon3_audio.evaluation.evaluate import main
from falcon3_audio.evaluation.load_captions import load_audiocaps, load_clotho
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction


AUDIOCAPS = """audiocap_id,youtube_id,start_time,caption
103549,7fmOlUlwoNg,20,Constant rattling noise
103542,VjSEIRnLAh8,30,"Food is frying, and a woman talks"
103550,-PO6u4lJj8Y,130, A bell rings
1,7fmOlUlwoNg,20,Something vibrates
"""
CLOTHO = """file_name,caption_1,caption_2,caption_3,caption_4,caption_5
Santa Motor.wav,A machine whines.,"Someone trims, slowly.",c,d,e
Radio Garble.wav,A radio.,b,c,d,e
"""


@pytest.fixture
def audiocaps(tmp_path):
    (tmp_path / "test.csv").write_text(AUDIOCAPS)
    for name in ("7fmOlUlwoNg.wav", "YVjSEIRnLAh8.flac", "-PO6u4lJj8Y_130.wav"):
        write_clip(tmp_path / name)
    return tmp_path


@pytest.fixture
def clotho(tmp_path):
    (tmp_path / "clotho_captions_evaluation.csv").write_text(CLOTHO)
    for name in ("Santa Motor.wav", "Radio Garble.wav"):
        write_clip(tmp_path / "evaluation" / name)
    return tmp_path / "clotho_captions_evaluation.csv"


def test_audiocaps_rows_of_one_clip_are_one_question(audiocaps):
    path = audiocaps / "test.csv"
    loaded = load_audiocaps(path)
    rattle, food, bell = loaded.questions
    assert (rattle.id, rattle.answer) == ("7fmOlUlwoNg", "Constant rattling noise")
    assert rattle.references == ("Constant rattling noise", "Something vibrates")
    assert food.references == ("Food is frying, and a woman talks",) and bell.references == ("A bell rings",)
    assert food.question == "Describe what is heard in one sentence." and food.choices == ()
    assert food.audio[0].read() == (audiocaps / "YVjSEIRnLAh8.flac").read_bytes()
    assert bell.audio[0].read() == (audiocaps / "-PO6u4lJj8Y_130.wav").read_bytes()
    assert loaded.sha256 == {"test.csv": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_audiocaps_says_which_clip_is_missing_and_which_rows_disagree(audiocaps):
    (audiocaps / "7fmOlUlwoNg.wav").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 3 rows.*audio file missing.*line 2 \(7fmOlUlwoNg\): none of 7fmOlUlwoNg, Y7fm"
    ):
        load_audiocaps(audiocaps / "test.csv")
    rest = load_audiocaps(audiocaps / "test.csv", on_error="skip")
    assert len(rest.questions) == 2 and rest.left_out == {"audio file missing": ["7fmOlUlwoNg"]}
    write_clip(audiocaps.parent / "x.wav")
    other = AUDIOCAPS + "2,VjSEIRnLAh8,40,Again\n3,-PO6u4lJj8Y,130,\n4,,0,Nobody's\n5,../x,0,Out\n"
    (audiocaps / "test.csv").write_text(other)
    with pytest.raises(ValueError) as error:
        load_audiocaps(audiocaps / "test.csv")
    for said in ("'30' and '40'", "'caption' is ''", "'youtube_id' is ''", "path outside the audio folder"):
        assert said in str(error.value)


def test_clotho_has_its_captions_in_a_row_and_its_clips_in_a_folder(clotho):
    motor, radio = load_clotho(clotho).questions
    assert motor.references == ("A machine whines.", "Someone trims, slowly.", "c", "d", "e")
    assert (motor.id, motor.answer) == ("Santa Motor.wav", "A machine whines.")
    assert radio.audio[0].read() == (clotho.parent / "evaluation" / "Radio Garble.wav").read_bytes()
    elsewhere = clotho.parent / "mine"
    (clotho.parent / "evaluation").rename(elsewhere)
    assert load_clotho(clotho, elsewhere).questions == (motor, radio)


@pytest.mark.parametrize(
    ("load", "content", "named"),
    [
        (load_audiocaps, CLOTHO, r"\['file_name', .*\]; AudioCaps's file also has \['audiocap_id'"),
        (load_clotho, AUDIOCAPS, r"\['audiocap_id', .*\]; Clotho's file also has \['file_name', 'caption_1'"),
    ],
)
def test_another_layout_is_an_error_with_the_columns_found(tmp_path, load, content, named):
    path = tmp_path / "other.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=named):
        load(path)


def test_a_part_is_not_called_by_the_sets_name(audiocaps, clotho):
    for name, path in (("audiocaps", audiocaps / "test.csv"), ("clotho", clotho)):
        ids = [question.id for question in BENCHMARKS[name].load(path).questions]
        assert title_of(name, ids) == f"Own questions in {BENCHMARKS[name].title}'s format"


def test_without_the_packages_a_score_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.tokenize", None)
    row = Prediction("a", ANSWERED, "a dog", answer="a dog", references=("a dog",))
    with pytest.raises(ValueError, match=r"--rule cider-d needs nltk: pip install 'falcon3-audio\[captions\]'"):
        caption_results("cider-d", [row])


def test_from_the_files_to_a_score(audiocaps, tmp_path, capsys):
    pytest.importorskip("pycocoevalcap")

    def answers(body):
        tokens = 100 * len(body["messages"][0]["content"])
        said = "Constant rattling noise."
        return Answer(said, usage={"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1})

    out = tmp_path / "out"
    with StubEndpoint(answers) as stub:
        command = ["--benchmark", "audiocaps", "--data", str(audiocaps / "test.csv"), "--output-dir", str(out)]
        assert main([*command, "--endpoint", stub.url, "--endpoint-model", "m"]) == 0
        asked = {str(request.body["messages"][0]["content"][-1]) for request in stub.requests}
    assert any("Describe what is heard in one sentence." in text for text in asked)
    row = rows_of(out)["7fmOlUlwoNg"]
    assert row["references"] == ["Constant rattling noise", "Something vibrates"]
    assert "cider-d" in capsys.readouterr().out
    found = json.loads((out / "score.json").read_text())
    assert found["rules"]["rouge-l"]["rouge_l"] == pytest.approx(1 / 3) and found["coverage"] == 1
