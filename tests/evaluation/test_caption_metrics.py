"""Caption metrics against numbers worked out by hand, from the papers' formulas."""

import json
import math
from pathlib import Path

import pytest

from falcon3_audio.evaluation.predictions import ANSWERED, FAILED, Prediction, read_predictions
from falcon3_audio.evaluation.score import main as score_main
from falcon3_audio.evaluation.score import score


pytest.importorskip("pycocoevalcap")
metrics = pytest.importorskip("falcon3_audio.evaluation.caption_metrics")


def row(identity, said, *references):
    status = FAILED if said is None else ANSWERED
    return Prediction(identity, status, said, answer=references[0], references=references, audio=(identity,))


def values(rule, *rows):
    return metrics.caption_results(rule, rows)


def test_cider_d_of_bigrams_worked_out_by_hand():
    """
    Three clips with one reference each. "dog" is in two of the three references, every other word in
    one, so their weights are log(3/2) and log 3.

    Reply "a dog", reference "a dog barks": the reference's vectors for n = 1, 2, 3 have the entries (a, dog, barks),
    (a dog, dog barks), (a dog barks). The reply's have the same without "barks", so there are none for n = 3 and 4.
    Lengths are counted in bigrams, so they differ by 1: exp(-1/72). CIDEr-D is ten times the mean over n = 1 to 4.
    """
    common, rare = math.log(3 / 2), math.log(3)
    ones = (rare**2 + common**2) / (math.sqrt(rare**2 + common**2) * math.sqrt(2 * rare**2 + common**2))
    twos = rare**2 / (rare * math.sqrt(2) * rare)
    expected = 10 * math.exp(-1 / 72) * (ones + twos) / 4
    found = values(
        "cider-d", row("1", "A dog.", "a dog barks"), row("2", "rain", "one dog"), row("3", "", "wind blows there")
    )
    assert found == pytest.approx([expected, 0, 0])


def test_cider_d_clips_what_is_said_too_often():
    rows = [row(str(number), said, said) for number, said in enumerate(("a b c d", "e f g h", "i j k l"))]
    assert values("cider-d", *rows) == pytest.approx([10, 10, 10])
    # "a" eight times, once in the reference: min(8, 1) of the weight, over the norm 8, and no matching bigram.
    often = values("cider-d", row("0", "a a a a a a a a", "a b c d"), *rows[1:])[0]
    assert often == pytest.approx(10 / 4 * (1 / (8 * 2)) * math.exp(-((7 - 3) ** 2) / 72))


def test_rouge_l_takes_the_best_precision_and_recall_of_all_references():
    # "a dog barks loudly" and "a dog is heard": the longest common subsequence is 2 of 4 words, precision and recall 1/2.
    # With "dog" the recall is 1; the precision is 1/4, which is not the best.
    precision, recall, square = 2 / 4, 1.0, 1.2**2
    expected = (1 + square) * precision * recall / (recall + square * precision)
    assert values("rouge-l", row("1", "A dog barks loudly!", "a dog is heard", "dog")) == pytest.approx([expected])


def test_bleu_4_is_of_the_corpus():
    # Matched n-grams of both replies together: 9 of 10, 7 of 8, 5 of 6 and 3 of 4. The replies are as long as the references.
    rows = (row("1", "a b c d e", "a b c d e"), row("2", "f g h i x", "f g h i j"))
    results = list(zip(values("bleu-4", *rows), (0, 1)))
    found = metrics.caption_score("bleu-4", results)
    expected = (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** (1 / 4)
    assert found == {"n": 2, "bleu_4": pytest.approx(expected, rel=1e-6), "interval": None}


def test_words_are_those_of_the_penn_treebank_without_punctuation():
    """Expected: the output of Stanford's PTBTokenizer 3.4.1 with pycocoevalcap's punctuation list, run by hand."""
    tokens = metrics._tokenizer()
    said = {
        "A dog barks. Then, a bell (rings)!\nIt's loud": "a dog barks then a bell -lrb- rings -rrb- it 's loud",
        "A high-pitched beep -- doesn't stop...": "a high-pitched beep does n't stop",
        '"Hey," he says; birds\' song': "hey he says birds song",
        " ": "",
    }
    assert {text: tokens(text) for text in said} == said


def test_what_is_left_out_counts_0_and_a_row_without_references_is_an_error():
    assert values("rouge-l", row("1", None, "a"), row("2", "a", "a")) == pytest.approx([0, 1])
    assert values("rouge-l", row("1", "<think>A dog?</think>a", "a")) == pytest.approx([1])
    with pytest.raises(ValueError, match="question q and 0 more have no references, which --rule cider-d"):
        metrics.caption_results("cider-d", [Prediction("q", ANSWERED, "a", answer="a")])


def run_of(folder: Path, replies: list[str]) -> Path:
    rows = [
        {
            "id": str(number),
            "status": "answered",
            "reply": said,
            "question": "?",
            "answer": said,
            "audio": [f"{number}"],
        }
        | {"references": ["a dog barks twice", "dogs bark far away"]}
        for number, said in enumerate(replies)
    ]
    path = folder / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_score_has_all_metrics_and_says_what_it_lacks(tmp_path, capsys):
    path = run_of(tmp_path, ["a dog barks twice", "rain", "a dog", "dogs bark far away", "a bell", "dogs"])
    found = score(read_predictions(path), "audiocaps")
    assert list(found["rules"]) == ["cider-d", "rouge-l", "bleu-4"]
    rouge = found["rules"]["rouge-l"]
    low, high = rouge["interval"]
    assert rouge["n"] == 6 and low <= rouge["rouge_l"] <= high and found["rules"]["bleu-4"]["interval"] is None
    assert score_main([str(path), "--benchmark", "audiocaps"]) == 0
    said = capsys.readouterr().out
    assert "without METEOR, SPICE and SPIDEr" in said and "Own questions in AudioCaps's format" in said
    assert f"{100 * rouge['rouge_l']:.1f}" in said
