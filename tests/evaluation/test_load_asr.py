"""Small transcript sets in their published formats, and their error rates, worked out by hand."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_files import write_clip, write_json, write_lines
from stub_endpoint import StubEndpoint

from falcon3_audio.evaluation import evaluate, score
from falcon3_audio.evaluation.load_asr import ASK, load_asr
from falcon3_audio.evaluation.predictions import read_predictions


def write_librispeech(folder):
    """Two splits with one chapter each, as on openslr.org."""
    for split, chapter, lines in (
        ("test-clean", "61/70968", ["HE BEGAN A CONFUSED COMPLAINT", "MARK THAT"]),
        ("test-other", "116/288045", ["AS I APPROACHED THE CITY"]),
    ):
        where = folder / split / chapter
        name = chapter.replace("/", "-")
        for number, _ in enumerate(lines):
            write_clip(where / f"{name}-{number:04}.flac", 300.0 + number)
        transcripts = [f"{name}-{number:04} {line}\n" for number, line in enumerate(lines)]
        (where / f"{name}.trans.txt").write_text("".join(transcripts))
    return folder


def test_librispeech_as_it_is_published(tmp_path):
    loaded = load_asr(write_librispeech(tmp_path / "LibriSpeech"))
    assert [(question.id, question.answer, question.groups) for question in loaded.questions] == [
        ("61-70968-0000", "HE BEGAN A CONFUSED COMPLAINT", {"split": "test-clean"}),
        ("61-70968-0001", "MARK THAT", {"split": "test-clean"}),
        ("116-288045-0000", "AS I APPROACHED THE CITY", {"split": "test-other"}),
    ]
    first = loaded.questions[0]
    assert (first.question, first.choices, loaded.benchmark) == (ASK, (), "asr")
    assert first.audio[0].read()[:4] == b"fLaC" and first.audio[0].name == "61-70968-0000.flac"
    transcripts = tmp_path / "LibriSpeech/test-clean/61/70968/61-70968.trans.txt"
    line = f"{hashlib.sha256(transcripts.read_bytes()).hexdigest()}  61-70968.trans.txt\n"
    assert loaded.sha256["test-clean"] == hashlib.sha256(line.encode()).hexdigest()
    alone = load_asr(tmp_path / "LibriSpeech" / "test-other")
    assert [question.groups for question in alone.questions] == [{"split": "test-other"}]


def test_parquet_files_and_their_splits(tmp_path):
    content = write_clip(tmp_path / "x.wav")
    for name, rows in (
        ("test.clean-00000-of-00001", [{"id": "1-2-3", "text": "Hello there", "dataset": "librispeech"}]),
        ("test.other-00000-of-00001", [{"id": "4-5-6", "text": "Good bye", "dataset": "librispeech"}]),
    ):
        rows = [row | {"audio": {"bytes": content, "path": "x.wav"}} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    loaded = load_asr(tmp_path)
    assert [(question.id, question.answer, question.groups) for question in loaded.questions] == [
        ("1-2-3", "Hello there", {"split": "test.clean", "dataset": "librispeech"}),
        ("4-5-6", "Good bye", {"split": "test.other", "dataset": "librispeech"}),
    ]
    assert loaded.questions[1].audio[0].read() == content and len(loaded.sha256) == 2
    with pytest.raises(ValueError, match="holds its audio itself; leave it out"):
        load_asr(tmp_path, audio_root=tmp_path)


def test_json_lines_with_other_names_and_without_ids(tmp_path):
    content = write_clip(tmp_path / "clips" / "x.wav")
    write_lines(
        tmp_path / "dev.jsonl",
        [{"audio_filepath": "clips/x.wav", "text": None, "sentence": "Guten Tag", "language": "de"}],
    )
    write_lines(tmp_path / "test.jsonl", [{"id": 7, "audio": "clips/x.wav", "text": "Hi", "split": "mine"}])
    dev, test = load_asr(tmp_path).questions
    assert (dev.id, dev.answer, dev.groups) == ("dev, line 1", "Guten Tag", {"split": "dev", "language": "de"})
    assert (test.id, test.answer, test.groups) == ("7", "Hi", {"split": "mine"})
    assert dev.audio[0].read() == content
    single = load_asr(
        write_json(tmp_path / "list.json", [{"audio": "x.wav", "text": "Hi"}]), audio_root=tmp_path / "clips"
    )
    assert single.questions[0].id == "list, row 1"


def test_files_of_one_split_have_ids_of_their_own(tmp_path):
    write_clip(tmp_path / "x.wav")
    for number in range(2):
        write_lines(tmp_path / f"test-0000{number}-of-00002.jsonl", [{"audio": "x.wav", "text": f"Hi {number}"}])
    first, second = load_asr(tmp_path).questions
    assert [first.id, second.id] == [f"test-0000{number}-of-00002, line 1" for number in range(2)]
    assert first.groups == second.groups == {"split": "test"}


def test_recordings_with_the_same_id_are_told_apart_by_their_place(tmp_path):
    """As in FLEURS: an id is that of a sentence, which several people read."""
    write_clip(tmp_path / "x.wav")
    write_lines(tmp_path / "test.jsonl", [{"id": 7, "audio": "x.wav", "text": "Hi"}] * 2)
    assert [question.id for question in load_asr(tmp_path).questions] == ["test.jsonl, line 1", "test.jsonl, line 2"]


@pytest.mark.parametrize(
    "row, fault",
    [
        ({"audio": "x.wav"}, "no transcript .looked for text, sentence"),
        ({"audio": "x.wav", "text": " "}, "'text' is ' ', expected a text"),
        ({"text": "Hi"}, "no 'audio'"),
        ({"audio": "none.wav", "text": "Hi"}, "audio file missing"),
        ({"audio": "../x.wav", "text": "Hi"}, "path outside the audio folder"),
        ({"id": [], "audio": "x.wav", "text": "Hi"}, r"'id' is \[\], expected a text"),
        ("no row", "expected a JSON object, got str"),
    ],
)
def test_a_faulty_row_is_named(tmp_path, row, fault):
    write_clip(tmp_path / "x.wav")
    path = write_lines(tmp_path / "own.jsonl", [{"audio": "x.wav", "text": "Hi"}, row])
    with pytest.raises(ValueError, match=fault) as error:
        load_asr(path)
    assert "[own.jsonl, line 2 (" in str(error.value)
    assert len(load_asr(path, on_error="skip").questions) == 1


def test_what_holds_no_transcripts_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no transcripts; expected parquet, .json or .jsonl"):
        load_asr(tmp_path)
    with pytest.raises(ValueError, match="does not exist; expected a file of transcripts"):
        load_asr(tmp_path / "none")
    libri = write_librispeech(tmp_path / "LibriSpeech")
    with pytest.raises(ValueError, match="LibriSpeech's clips are next to"):
        load_asr(libri, audio_root=tmp_path)
    (libri / "test-clean/61/70968/61-70968-0001.flac").unlink()
    with pytest.raises(ValueError, match=r"audio file missing in 1 \[61-70968.trans.txt, line 2 "):
        load_asr(libri / "test-clean")
    next((libri / "test-other").rglob("*.trans.txt")).write_bytes(b"\xff")
    with pytest.raises(ValueError, match="116-288045.trans.txt is not UTF-8 text"):
        load_asr(libri)


def test_a_model_is_asked_and_both_rates_are_given_by_split(tmp_path):
    data, out = write_librispeech(tmp_path / "LibriSpeech"), tmp_path / "out"
    # The first two requests check whether the endpoint hears.
    said = iter(("Noise.", "Noise.", "He began a confused complain.", "mark that", "I approached the the city"))
    with StubEndpoint(lambda body: next(said)) as stub:
        model = ["--endpoint", stub.url, "--endpoint-model", "m", "--batch-size", "1"]
        assert evaluate.main(["--benchmark", "asr", "--data", str(data), "--output-dir", str(out), *model]) == 0
    result = json.loads((out / "score.json").read_text())
    assert (result["title"], list(result["rules"])) == ("Transcripts", ["wer", "cer"])
    wer, cer = result["rules"].values()
    # One word is substituted, "AS" is deleted and "the" inserted, of 5 + 2 + 5 words.
    assert (wer["words"], wer["substitutions"], wer["deletions"], wer["insertions"]) == (12, 1, 1, 1)
    splits = wer["breakdowns"]["split"]
    assert {name: part["word_error_rate"] for name, part in splits["groups"].items()} == {
        "test-clean": pytest.approx(1 / 7),
        "test-other": pytest.approx(2 / 5),
    }
    assert splits["macro"] == pytest.approx((1 / 7 + 2 / 5) / 2)
    # Characters: the references have 25, 8 and 20; the errors are "t", "AS" and "the".
    assert (cer["characters"], cer["character_error_rate"]) == (53, pytest.approx(6 / 53))
    again = score.score(read_predictions(out), data=data, rules=["cer"])
    assert again["rules"]["cer"]["character_error_rate"] == pytest.approx(6 / 53)


def test_characters_of_scripts_without_spaces(tmp_path):
    rows = [
        {
            "id": "zh",
            "question": "q",
            "answer": "今天天气很好。",
            "reply": "今天 天汽，好",
        },  # one of 6 substituted, one deleted
        {"id": "ja", "question": "q", "answer": "かぎ", "reply": "か\u304d\u3099"},  # the same in another spelling
    ]
    found = read_predictions(write_lines(tmp_path / "theirs.jsonl", rows))
    cer = score.score(found, "asr", rules=["cer"])["rules"]["cer"]
    assert (cer["characters"], cer["substitutions"], cer["deletions"], cer["insertions"]) == (8, 1, 1, 0)
