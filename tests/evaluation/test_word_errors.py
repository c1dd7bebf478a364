"""Word errors: cases counted by hand, another edit distance, Whisper's spelling list, and `score --rule wer`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from falcon3_audio.evaluation.score import main
from falcon3_audio.evaluation.word_errors import (
    WordErrors,
    count_word_errors,
    error_rate,
    mean_rate,
    normalizer,
    read_spelling,
)


plain = str.lower
SPELLING = {"colour": "color", "grey": "gray"}


@pytest.mark.parametrize(
    "reference, hypothesis, expected",
    [
        ("the cat sat", "the cat sat", WordErrors(3, 0, 0, 0)),
        ("the cat sat", "the dog sat", WordErrors(3, 1, 0, 0)),
        ("the cat sat", "the sat", WordErrors(3, 0, 1, 0)),
        ("the cat sat", "the big cat sat down", WordErrors(3, 0, 0, 2)),
        ("the cat sat", "", WordErrors(3, 0, 3, 0)),
        ("the cat sat", "the dog sat down", WordErrors(3, 1, 0, 1)),
        ("a b c d", "b c d e f", WordErrors(4, 0, 1, 2)),
    ],
)
def test_the_words_of_one_row(reference, hypothesis, expected):
    assert count_word_errors([reference], [hypothesis], plain) == [expected]


def edit_distance(left, right):
    row = list(range(len(right) + 1))
    for number, one in enumerate(left, 1):
        last, row = row, [number]
        for place, other in enumerate(right):
            row.append(min(last[place + 1] + 1, row[place] + 1, last[place] + (one != other)))
    return row[-1]


words = st.lists(st.sampled_from("abcd"), max_size=9)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(words.filter(bool), words)
def test_the_errors_are_the_fewest_edits(said, heard):
    (found,) = count_word_errors([" ".join(said)], [" ".join(heard)], plain)
    assert found.errors == edit_distance(said, heard) and found.words == len(said)
    assert len(heard) == len(said) + found.insertions - found.deletions


def test_the_rate_is_the_corpus_rate():
    counts = count_word_errors(["a b c d e f g h", "x y"], ["a b c d e f g h", "z"], plain)
    found = error_rate(counts)
    assert (found["n"], found["words"], found["word_error_rate"]) == (2, 10, 0.2)  # not (0 + 1) / 2
    assert (found["substitutions"], found["deletions"], found["insertions"]) == (1, 1, 0)
    assert found["interval"] is None and found["left_out"] == 0
    low, high = error_rate(counts * 3)["interval"]
    assert 0 <= low < 0.2 < high <= 1
    assert error_rate(count_word_errors(["a"], ["a b c"], plain))["word_error_rate"] == 2
    assert mean_rate([error_rate([count]) for count in counts]) == {"macro": 0.5, "interval": None}


def test_whispers_normaliser():
    normalize = normalizer()
    said, heard = "Uh, Mr. Brown's got twenty-one [noise] dogs!", "mister brown has got 21 dogs"
    assert count_word_errors([said], [heard], normalize)[0].errors == 0
    assert count_word_errors(["A grey colour"], ["a gray color"], normalize)[0].errors == 2
    assert count_word_errors(["A grey colour"], ["a gray color"], normalizer(SPELLING))[0].errors == 0


def test_the_spelling_list_of_a_whisper(tmp_path):
    path = tmp_path / "normalizer.json"
    path.write_text(json.dumps(SPELLING))
    assert read_spelling(str(path)) == read_spelling(str(tmp_path)) == SPELLING
    for content in ("[]", "{", '{"a": 1}'):
        path.write_text(content)
        with pytest.raises(ValueError, match="normalizer.json is not a normalizer.json of Whisper"):
            read_spelling(str(path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        read_spelling(str(tmp_path / "empty"))


def test_references_without_words_are_left_out_and_counted():
    counts = count_word_errors(["two words", "uh", "[noise]", "..."], ["two", "uh", "a", ""], normalizer())
    assert counts == [WordErrors(2, 0, 1, 0), *[WordErrors(0, 0, 0, 0)] * 3]
    found = error_rate(counts)
    assert (found["n"], found["left_out"], found["word_error_rate"]) == (1, 3, 0.5)
    none = error_rate(counts[1:])
    assert (none["n"], none["left_out"], none["word_error_rate"], none["interval"]) == (0, 3, None, None)
    assert mean_rate([found, none]) == {"macro": None, "interval": None}
    with pytest.raises(ValueError, match="got 1 references but 2 hypotheses"):
        count_word_errors(["a"], ["a", "b"], plain)


def write_run(folder, rows):
    folder.mkdir()
    keys = ("id", "status", "answer", "reply", "groups")
    lines = [json.dumps(dict(zip(keys, row)) | {"question": "Transcribe."}) for row in rows]
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    (folder / "run.json").write_text(json.dumps({"benchmark": "jsonl", "model": "a/model"}))
    return folder


def test_a_reference_of_fillers_alone_does_not_hold_up_the_others(tmp_path, capsys):
    rows = [
        ("q1", "answered", "Good morning", "Good evening", {"speaker": "a"}),
        ("q2", "answered", "Uh.", "", {"speaker": "b"}),
    ]
    run = write_run(tmp_path / "run", rows)
    assert main([str(run), "--rule", "wer", "--rule", "cer"]) == 0
    said = capsys.readouterr().out
    assert "By wer, 1 of 2 references are left out: they have no words after normalisation." in said
    assert next(line for line in said.splitlines() if line.strip().startswith("wer")).replace("│", " ").split() == [
        *("wer", "1", "50.0", "-", "1")
    ]
    found = json.loads((run / "score.json").read_text())
    wer, cer = found["rules"]["wer"], found["rules"]["cer"]
    assert (wer["n"], wer["left_out"], wer["word_error_rate"], cer["n"], cer["left_out"]) == (1, 1, 0.5, 2, 0)
    assert wer["breakdowns"]["speaker"]["groups"]["b"]["word_error_rate"] is None
    assert wer["breakdowns"]["speaker"]["macro"] is None and len(found["notes"]) == 1
    assert main([str(write_run(tmp_path / "fillers", rows[1:])), "--rule", "wer"]) == 1
    assert "finds no words in any of the 1 references, such as 'Uh.'" in capsys.readouterr().err


def test_transcripts_are_scored_by_wer(tmp_path, capsys):
    rows = [
        ("q1", "answered", "The grey cat sat.", "the gray cat sat", {"speaker": "a"}),
        ("q2", "answered", "Good morning", "Good evening", {"speaker": "b"}),
        ("q3", "failed", "Two words", None, {"speaker": "b"}),
    ]
    run = write_run(tmp_path / "run", rows)
    assert main([str(run), "--rule", "wer", "--allow-incomplete"]) == 0
    assert "British instead of American is an error" in capsys.readouterr().out
    found = json.loads((run / "score.json").read_text())
    rate = found["rules"]["wer"]
    assert (rate["n"], rate["words"], rate["word_error_rate"]) == (3, 8, 0.5)
    assert (rate["substitutions"], rate["deletions"], rate["insertions"]) == (2, 2, 0)
    assert rate["breakdowns"]["speaker"]["macro"] == (0.25 + 0.75) / 2
    assert found["baselines"] is None and found["spelling"] is None
    assert {"jiwer", "transformers"} <= found["versions"].keys()
    (tmp_path / "normalizer.json").write_text(json.dumps(SPELLING))
    assert main([str(run), "--rule", "wer", "--allow-incomplete", "--spelling", str(tmp_path)]) == 0
    assert "British" not in capsys.readouterr().out
    found = json.loads((run / "score.json").read_text())
    assert (found["rules"]["wer"]["word_error_rate"], found["spelling"]) == (3 / 8, str(tmp_path))
    # "no/where" has the form of a Hub id, and the Hub is offline in tests.
    for source in ("no/where", "not a place"):
        assert main([str(run), "--rule", "wer", "--spelling", source]) == 1
        message = capsys.readouterr().err
        assert message.startswith("falcon3-audio score: ") and source in message


def rate_of(tmp_path, *rows):
    run = write_run(tmp_path / "run", rows)
    assert main([str(run), "--rule", "wer"]) == 0
    return json.loads((run / "score.json").read_text())["rules"]["wer"]["word_error_rate"]


def test_other_languages_keep_their_words_and_accents(tmp_path):
    """The English normaliser would remove "um" as a filler, and accents."""
    said = [("Ich komme um acht Uhr.", "Ich komme acht Uhr.", "de"), ("El niño está", "El nino esta", "Spanish")]
    said += [("Um, colour?", "colour", name) for name in ("en", "en_us", "English", "en-GB")]
    rows = [
        (f"q{n}", "answered", reference, reply, {"language": name}) for n, (reference, reply, name) in enumerate(said)
    ]
    assert rate_of(tmp_path, *rows) == pytest.approx((1 + 2) / (5 + 3 + 4))


def test_thoughts_are_not_part_of_a_transcript(tmp_path):
    replies = ["<think>A transcript of a cat.</think>\n\nThe cat sat.", "So a cat.</think> The cat sat.", "<think>Hm"]
    rows = [(f"q{n}", "answered", "The cat sat.", reply, {}) for n, reply in enumerate(replies)]
    assert rate_of(tmp_path, *rows) == pytest.approx(3 / 9)
