"""A small file in ESC-50's format: labels are options, in the order of their numbers."""

import hashlib

import pytest
from benchmark_files import write_clip

from falcon3_audio.evaluation.benchmarks import BENCHMARKS, title_of
from falcon3_audio.evaluation.load_esc50 import CLIPS, KIND_OF, LABELS, load_esc50
from falcon3_audio.evaluation.predictions import ANSWERED, Prediction
from falcon3_audio.evaluation.rules import is_right
from falcon3_audio.evaluation.score import baselines


HEADER = "filename,fold,target,category,esc10,src_file,take"
ROWS = (
    "1-110389-A-0.wav,1,0,dog,True,110389,A",
    "1-17970-A-4.wav,1,4,frog,False,17970,A",
    "5-263831-A-11.wav,5,11,sea_waves,True,263831,A",
    "5-263831-B-0.wav,5,0,dog,True,263831,B",
)


@pytest.fixture
def folder(tmp_path):
    for row in ROWS:
        write_clip(tmp_path / "audio" / row.split(",")[0])
    return tmp_path


def write(folder, *rows, header=HEADER):
    path = folder / "meta" / "esc50.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_every_clip_is_a_question_with_all_labels(folder):
    path = write(folder, *ROWS[::-1])
    loaded = load_esc50(path)
    assert [question.id for question in loaded.questions] == [row.split(",")[0] for row in ROWS[::-1]]
    waves = loaded.questions[1]
    assert waves.choices == ("dog", "frog", "sea waves") and waves.answer == "sea waves"
    assert waves.groups == {"label": "sea waves", "kind": "natural soundscapes and water", "fold": "5"}
    assert waves.audio[0].read() == (folder / "audio" / waves.id).read_bytes()
    assert loaded.sha256 == {"esc50.csv": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert set(BENCHMARKS["esc-50"].breakdowns) == set(waves.groups)


def test_there_are_50_labels_and_a_guess_is_right_in_one_of_50():
    labels = tuple(KIND_OF)
    assert len(labels) == 50 and {len(kind) for kind in LABELS.values()} == {10}
    rows = [Prediction(label, ANSWERED, "", choices=labels, answer=label) for label in labels]
    assert baselines(rows)["random option"] == pytest.approx(0.02)
    # Each label is read as itself, alone and in a sentence, though "train" ends in "rain".
    for said in ("{}", "The sound of a {}.", "It is {}, I think"):
        assert all(
            is_right(Prediction(row.id, ANSWERED, said.format(row.id), choices=labels, answer=row.id)) for row in rows
        )


def test_own_labels_and_another_folder(folder, tmp_path):
    path = write(
        folder, "1-110389-A-0.wav,1,dog", "5-263831-A-11.wav,0,drill_hammer", header="filename,target,category"
    )
    question = load_esc50(path, audio_root=tmp_path / "audio").questions[0]
    assert (question.choices, question.groups) == (("drill hammer", "dog"), {"label": "dog", "kind": "animals"})


@pytest.mark.parametrize(
    "row, fault",
    [
        ("none.wav,1,0,dog,True,1,A", r"audio file missing in 1 \[line 5 \(line 5\): no file .*none.wav"),
        ("../meta/esc50.csv,1,0,dog,True,1,A", "path outside the audio folder"),
        (ROWS[0], "id already used in 1"),
        ("1-110389-A-0.wav,1,x,dog,True,1,A", "'target' is 'x', expected a whole number"),
        ("1-110389-A-0.wav,1,7,dog,True,1,A", "'dog' has the target 7, but 0 in an earlier row"),
        ("1-110389-A-0.wav,1,0,,True,1,A", "'category' is '', expected a text"),
        ("1-110389-A-0.wav", "'category' is None, expected a text"),
    ],
)
def test_a_faulty_row_is_named(folder, row, fault):
    with pytest.raises(ValueError, match=fault):
        load_esc50(write(folder, *ROWS[:3], row))
    assert len(load_esc50(write(folder, *ROWS[:3], row), on_error="skip").questions) == 3


def test_what_is_no_such_file_is_an_error(folder):
    with pytest.raises(ValueError, match="has the columns .*; ESC-50's file also has .'target'"):
        load_esc50(write(folder, header="filename,category"))
    with pytest.raises(ValueError, match=r"has the labels \['dog'\]; expected two or more"):
        load_esc50(write(folder, ROWS[0]))
    with pytest.raises(ValueError, match="is a folder; expected ESC-50's CSV"):
        load_esc50(folder)
    path = write(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a CSV file"):
        load_esc50(path)


def test_the_name_is_for_its_own_clips():
    ids = [str(number) for number in range(CLIPS)]
    assert title_of("esc-50", ids, KIND_OF) == "ESC-50"
    assert (
        title_of("esc-50", ids[1:], KIND_OF) == title_of("esc-50", ids, ["dog"]) == "Own questions in ESC-50's format"
    )
