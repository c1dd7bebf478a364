"""Comparing two prediction files: what is paired, counted, printed, drawn and rejected."""

import json
import subprocess
import sys
from math import comb

import numpy as np
import pytest
from PIL import Image

from falcon3_audio.evaluation.compare import clips_of, compare, forest_plot, main, points, verdict_line, write
from falcon3_audio.evaluation.paired import compare_pairs
from falcon3_audio.evaluation.predictions import Prediction, read_predictions


CHOICES = ["a dog", "a cat", "rain"]
RUN = {
    "benchmark": "mmau",
    "prompt": "plain",
    "control": "none",
    "data_sha256": {"mmau-test-mini.json": "ab" * 32},
    "decoding": {"do_sample": False, "max_new_tokens": 64},
    "model": "lab/first",
}


def row(number, right, **more):
    """Question `number` with a right or wrong reply, as `evaluate` writes it."""
    task = ("sound", "speech", "music")[number % 3]
    content = {
        "id": f"q{number}",
        "status": "answered",
        "reply": "a dog" if right else "a cat",
        "question": "What is heard?",
        "choices": CHOICES,
        "answer": "a dog",
        "audio": [f"{number}.wav"],
        "groups": {"task": task, "difficulty": "easy" if number < 50 else "hard"},
        "prompt": "What is heard? a dog, a cat, rain",
    }
    return content | more


def write_run(folder, rows, **provenance):
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps(RUN | provenance))
    return folder


def table(both, only_a, only_b, neither):
    """For each question, whether A and B are right; spread over the groups."""
    a = [True] * (both + only_a) + [False] * (only_b + neither)
    b = [True] * both + [False] * only_a + [True] * only_b + [False] * neither
    order = np.random.default_rng(0).permutation(len(a))
    return [a[index] for index in order], [b[index] for index in order]


@pytest.fixture
def runs(tmp_path):
    """100 questions: both right 50, only A 6, only B 20, both wrong 24. B's file is in a different order."""
    a, b = table(50, 6, 20, 24)
    of_a = [row(number, right) for number, right in enumerate(a)]
    of_b = [row(number, right) for number, right in enumerate(b)]
    return write_run(tmp_path / "a", of_a), write_run(tmp_path / "b", of_b[::-1], model="lab/second")


def say(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def change(folder, change_row, **provenance):
    """Rewrites a run: `change_row` returns each row's replacement, or `None` to drop the row."""
    path = folder / "predictions.jsonl"
    rows = [change_row(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row is not None))
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(run | provenance))


def test_counts_verdict_and_flips(runs, tmp_path, capsys):
    said = say(capsys, *runs, "--output", tmp_path / "out")
    assert "A: lab/first, prompt plain: 56 right, 44 wrong" in said
    assert "B: lab/second, prompt plain: 70 right, 30 wrong" in said
    assert "Both right 50, only A 6, only B 20, both wrong 24" in said and "100 questions about 100 clips" in said
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    p = 2 * sum(comb(26, k) for k in range(7)) / 2**26
    assert result["overall"]["p"] == pytest.approx(p) and f"{p:.2g}" == "0.0094"
    low, high = result["overall"]["interval"]
    assert result["verdict"] == f"B is better by 14.0 points [{points(low)}, {points(high)}], p = 0.0094"
    assert result["verdict"] in said and "Warning" not in said
    a, b = table(50, 6, 20, 24)
    only_a = [f"q{number}" for number in range(100) if a[number] and not b[number]]
    only_b = [f"q{number}" for number in range(100) if b[number] and not a[number]]
    assert (result["only_a"], result["only_b"]) == (only_a, only_b)
    assert f"Only A right: {', '.join(only_a[:5])} and 1 more" in said
    assert f"Only B right: {', '.join(only_b[:5])} and 15 more" in said
    assert (result["a"]["provenance"], result["b"]["provenance"]) == (RUN, RUN | {"model": "lab/second"})
    assert result["a"]["sha256"] == read_predictions(runs[0]).sha256 != result["b"]["sha256"]
    assert (result["rule"], result["seed"], result["resamples"]) == ("content", 0, 10000)


def test_a_and_b_exchanged_say_the_same(runs):
    a, b = map(read_predictions, runs)
    forward, backward = compare(a, b), compare(b, a)
    assert backward.verdict.startswith("A is better by 14.0 points [") and backward.overall.difference == -0.14
    assert all(end > 0 for end in map(float, backward.verdict.split("[")[1].split("]")[0].split(", ")))
    assert (forward.only_a, set(forward.only_b)) == (backward.only_b[::-1], set(backward.only_a))


def test_alike_is_called_no_difference(runs, capsys):
    said = say(capsys, runs[0], runs[0])
    assert (
        "no difference can be shown at n = 100: B - A is 0.0 points, p = 1; they differ on fewer than 6 clips" in said
    )
    assert "Only A right: none" in said
    a, b = map(np.array, table(50, 12, 14, 24))
    result = compare_pairs(a, b, np.arange(100))
    low, high = map(points, result.interval)
    assert (
        verdict_line(result) == f"no difference can be shown at n = 100: B - A is 2.0 points [{low}, {high}], p = 0.85"
    )


def test_groups_are_compared_by_themselves(runs, capsys):
    a, b = map(np.array, table(50, 6, 20, 24))
    comparison = compare(*map(read_predictions, runs))
    assert {name: list(members) for name, members in comparison.groups.items()} == {
        "task": ["music", "sound", "speech"],
        "difficulty": ["easy", "hard"],
    }
    rows = np.arange(100) % 3 == 1
    assert comparison.groups["task"]["speech"] == compare_pairs(a[rows], b[rows], np.arange(rows.sum()))
    other = compare(*map(read_predictions, runs), resamples=500, seed=3).groups["task"]["speech"]
    assert other == compare_pairs(a[rows], b[rows], np.arange(rows.sum()), 500, 3)
    said = say(capsys, *runs, "--by", "difficulty")
    easy = next(line for line in said.splitlines() if "difficulty: easy" in line).replace("│", " ").split()
    shares = (a[:50].mean(), b[:50].mean(), b[:50].mean() - a[:50].mean())
    assert easy[2:6] == ["50", *(f"{100 * share:.1f}" for share in shares)]
    assert "task:" not in said and "Of 2 groups, about 0.1 would look different" in said


def test_a_question_without_the_group_is_not_lost(runs):
    change(runs[0], lambda row: row | {"groups": {}} if row["id"] in ("q0", "q1") else row)
    change(runs[1], lambda row: row | {"groups": {}} if row["id"] in ("q1", "q2") else row)
    change(runs[1], lambda row: row | {"groups": {"difficulty": "odd"}} if row["id"] == "q3" else row)
    comparison = compare(*map(read_predictions, runs), by=["difficulty"])  # q3 counts in A's group
    assert {value: result.n for value, result in comparison.groups["difficulty"].items()} == {
        "(none)": 1,
        "easy": 49,
        "hard": 50,
    }


def test_questions_about_one_clip_are_one_cluster(tmp_path, capsys):
    a, b = table(20, 4, 12, 24)
    a, b = np.repeat(a, 10), np.repeat(b, 10)
    folders = [
        write_run(tmp_path / name, [row(n, right, audio=[f"{n // 10}.wav"]) for n, right in enumerate(side)])
        for name, side in (("a", a), ("b", b))
    ]
    said = say(capsys, *folders)
    assert "600 questions about 60 clips" in said and "no difference can be shown at n = 600" in said
    # 2 * (1 + 16 + 120 + 560 + 1820) / 2**16; counted as 40 against 120 questions, it would look certain.
    assert "p = 0.077" in said and "McNemar, as if questions about one clip were independent: p < 0.001" in said
    clustered = compare_pairs(a, b, np.arange(600) // 10)
    assert compare(*map(read_predictions, folders)).overall == clustered
    change(folders[0], lambda row: {name: value for name, value in row.items() if name != "audio"})
    assert compare(*map(read_predictions, folders)).overall == clustered  # by the names of B's clips


def test_clips_shared_in_any_way_belong_together():
    def about(*audio):
        return Prediction("id", "answered", "a dog", audio=audio)

    rows = [about("1"), about("2"), about("2", "3"), about("3"), about(), about(), about("1")]
    numbers = clips_of(rows)
    assert [[int(a == b) for b in numbers] for a in numbers] == [
        [1, 0, 0, 0, 0, 0, 1],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [1, 0, 0, 0, 0, 0, 1],
    ]


def test_other_questions_are_an_error_that_names_them(runs, tmp_path, capsys):
    change(runs[0], lambda row: None if row["id"] == "q7" else row)

    def other(row):
        if row["id"] in ("q1", "q2", "q3", "q4"):
            return None
        row["choices"] = row["choices"][::-1] if row["id"] in ("q5", "q6") else row["choices"]
        row["answer"] = "rain" if row["id"] in ("q6", "q8") else row["answer"]
        return row

    change(runs[1], other)
    error = say(capsys, *runs, code=1)
    assert error.startswith("falcon3-audio compare: A (") and error.count("\n") == 1
    assert "4 questions (q1, q2, q3, ...) only in A; 1 question (q7) only in B; " in error
    assert "2 questions (q5, q6) with other choices; 2 questions (q6, q8) with another answer" in error
    assert "--common compares the 92 that are the same" in error
    said = say(capsys, *runs, "--common", "--output", tmp_path / "out")
    assert "92 questions about 92 clips" in said and "Left out: 2 questions (q6, q8) with another answer." in said
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert result["left_out"]["only in A"] == ["q1", "q2", "q3", "q4"] and result["overall"]["n"] == 92
    kept = [number for number in range(100) if number not in range(1, 9)]
    a, b = (np.array(side)[kept] for side in table(50, 6, 20, 24))
    assert result["overall"]["only_b"] == (b & ~a).sum() and result["overall"]["only_a"] == (a & ~b).sum()
    change(runs[1], lambda row: row | {"id": "x" + row["id"]})
    for options in ([], ["--common"]):
        assert "No question is the same in both." in say(capsys, *runs, *options, code=1)


@pytest.mark.parametrize("lacking, said", [({"answer": None}, "no answer"), ({"choices": []}, "no options")])
def test_questions_that_no_rule_can_score(runs, capsys, lacking, said):
    for run in runs:
        change(run, lambda row: row | lacking if row["id"] == "q7" else row)
    assert f"falcon3-audio compare: question q7 has {said}" in say(capsys, *runs, code=1)


def test_open_questions_alone_leave_nothing_to_compare(runs, capsys):
    for run in runs:
        change(run, lambda row: row | {"choices": []})
    said = say(capsys, *runs, "--without-open", code=1)
    assert "hold only open questions, which `falcon3-audio judge` rates" in said and said.count("\n") == 1


def test_clips_that_all_differ_alike_say_nothing_of_smaller_differences(tmp_path, capsys):
    """Ten clips with three questions each: B has all right, A none."""
    a, b = (
        write_run(tmp_path / name, [row(n, right, audio=[f"{n // 3}.wav"]) for n in range(30)])
        for name, right in (("a", False), ("b", True))
    )
    said = say(capsys, a, b)
    assert "B is better by 100.0 points [" in said and "A true difference of" not in said
    overall = compare(*map(read_predictions, (a, b))).overall
    assert (overall.standard_error, overall.detectable) == (None, None)


def test_questions_are_the_same_in_another_spelling_and_with_labels(runs, capsys):
    change(runs[0], lambda row: row | {"id": "caf\u00e9" + row["id"]})

    def otherwise(row):
        labelled = [f"({letter}) {choice}" for letter, choice in zip("ABC", row["choices"])]
        return row | {"id": "cafe\u0301" + row["id"], "choices": labelled, "answer": labelled[0]}

    change(runs[1], otherwise)
    said = say(capsys, *runs)
    assert "100 questions about 100 clips" in said and "B is better by 14.0 points" in said


def test_what_is_unfair_is_said(runs, capsys):
    other = {"q3": {"prompt": "?"}, "q4": {"question": "Which?"}}
    change(
        runs[1],
        lambda row: row | other.get(row["id"], {}),
        prompt="r1-aqa",
        data_sha256={"mmau-test-mini.json": "cd" * 32},
        decoding={"do_sample": True, "max_new_tokens": 64},
        control="silence",
    )
    said = say(capsys, *runs)
    assert "Warning: prompt differs: 'plain' in A, 'r1-aqa' in B." in said
    assert f"Warning: data_sha256 differs: mmau-test-mini.json: '{'ab' * 32}' in A, '{'cd' * 32}' in B." in said
    assert "Warning: decoding differs: do_sample: False in A, True in B." in said
    assert "Warning: The prompt is worded differently for 1 question (q3)." in said
    assert "Warning: The question is worded differently for 1 question (q4)." in said
    assert "benchmark differs" not in said and "B: lab/second (silence), prompt r1-aqa" in said
    (runs[0] / "run.json").unlink()
    said = say(capsys, *runs)
    assert "Warning: A has no run.json" in said and "prompt differs" not in said


def test_nobody_gains_by_not_answering(runs, capsys):
    def silent(row):
        status = {"q0": "failed", "q1": "failed", "q2": "missing"}.get(row["id"], "answered")
        return row | {"status": status, "reply": row["reply"] if status == "answered" else None}

    change(runs[1], silent)
    for rule in ("content", "mmau-official"):
        said = say(capsys, *runs, "--rule", rule)
        assert "Warning: B has 2 failed and 1 missing replies; they count as wrong." in said
        assert "100 questions about 100 clips" in said
    b = np.array(table(50, 6, 20, 24)[1])
    assert compare(*map(read_predictions, runs), "mmau-official").overall.accuracy_b == b[3:].sum() / 100


def test_replies_that_the_official_rule_drops_count_as_wrong(runs, capsys):
    """AIR-Bench's scorer reads a letter and drops a row without one."""
    for run in runs:
        change(run, lambda row: row | {"reply": "A" if row["reply"] == "a dog" else "B"})
    change(runs[1], lambda row: row | {"reply": "it is a dog."} if row["id"] in ("q0", "q1") else row)
    said = say(capsys, *runs, "--rule", "air-bench-official")
    assert "Warning: B has 2 replies that the rule's own score leaves out; here they count as wrong." in said
    assert "100 questions" in said and "2 left out" in said


def test_published_files_compare_with_runs(runs, tmp_path, capsys):
    rows = [
        {"id": f"q{n}", "audio_id": f"{n}.wav", "question": "What is heard?", "choices": CHOICES, "answer": "a dog",
         "task": "sound", "model_output": "a dog" if right else "rain"}
        for n, right in enumerate(table(50, 6, 20, 24)[1])
    ]  # fmt: skip
    (tmp_path / "published.json").write_text(json.dumps(rows))
    said = say(capsys, runs[0], tmp_path / "published.json", "--rule", "mmau-official", "--by", "task")
    assert "B is better by 14.0 points" in said and "task: speech" in said
    assert f"B: {tmp_path.name}/published.json, prompt unknown: 70 right" in said
    assert "Warning: B has no run.json" in said and "worded" not in said  # no prompt is known


def test_files_that_name_no_clips(runs, capsys):
    for run in runs:
        change(run, lambda row: row | {"audio": []})
    assert "No clip is named for 100 questions (q0, q1, q2, ...); each counts" in say(capsys, *runs)


def test_the_plot_shows_what_was_computed(runs):
    comparison = compare(*map(read_predictions, runs))
    (axis,) = forest_plot(comparison).axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:3] == ["all questions (n = 100)", "task", "music (n = 33)"]
    assert labels[5:] == ["difficulty", "easy (n = 50)", "hard (n = 50)"]
    whisker, marker = axis.lines[:2]
    low, high = comparison.overall.interval
    assert list(whisker.get_xdata()) == [100 * low, 100 * high]
    assert list(marker.get_xdata()) == pytest.approx([14.0]) and list(marker.get_ydata()) == [0]
    assert whisker.get_color() == "#0072b2"  # B is better
    assert "accuracy of B - accuracy of A (points" in axis.get_xlabel()
    assert axis.get_title(loc="left") == f"A: lab/first\nB: lab/second\n{comparison.verdict}"
    easy = comparison.groups["difficulty"]["easy"]
    low, high = map(points, easy.interval)
    assert f"{points(easy.difference)} [{low}, {high}]" in [text.get_text() for text in axis.texts]
    # A group with too few flips has a hollow marker and no whisker.
    few = compare(*map(read_predictions, (runs[0], runs[0])), by=["task"])
    (axis,) = forest_plot(few).axes
    assert len(axis.lines) == 4 + 1 and {line.get_markerfacecolor() for line in axis.lines[:4]} == {"white"}


def test_the_same_comparison_is_the_same_bytes(runs, tmp_path):
    comparison = compare(*map(read_predictions, runs))
    first, again = (write(comparison, tmp_path / name / "deep") for name in ("one", "two"))
    assert [path.name for path in first] == ["comparison.json", "comparison.png", "comparison.svg"]
    for path, other in zip(first, again):
        assert path.read_bytes() == other.read_bytes()
        assert not list(path.parent.glob("*.tmp"))
    svg = first[2].read_text()
    assert "<dc:date>" not in svg and "music (n = 33)" in svg and "B: lab/second" in svg
    with Image.open(first[1]) as image:
        assert image.format == "PNG" and image.width > 800


def test_names_are_no_formulas_and_no_markup(runs, tmp_path, capsys):
    task = "[b]$\\frac$:dog:"
    change(runs[0], lambda row: row | {"groups": {"task": task}}, model="[red]a$b$c")
    said = say(capsys, *runs, "--output", tmp_path / "out")
    assert f"task: {task}" in said and "A: [red]a$b$c," in said
    assert f"{task} (n = 100)" in (tmp_path / "out" / "comparison.svg").read_text()


def test_without_torch(runs, tmp_path):
    code = """
import sys
from importlib.machinery import PathFinder

class WithoutTorch:
    def find_spec(name, path=None, target=None):
        return None if name == "torch" else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
from falcon3_audio.evaluation.compare import main
code = main(sys.argv[1:])
assert not {"torch", "transformers"} & {*sys.modules}
sys.exit(code)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, runs), "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "B is better by 14.0 points" in run.stdout
    # Another process draws and writes the same bytes.
    for path in write(compare(*map(read_predictions, map(str, runs))), tmp_path / "here"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_what_cannot_be_compared_is_one_line(runs, tmp_path, capsys):
    def error(*arguments):
        said = say(capsys, *arguments, code=1)
        assert said.startswith("falcon3-audio compare: ") and said.count("\n") == 1
        return said

    assert f"{tmp_path / 'nowhere'} does not exist" in error(runs[0], tmp_path / "nowhere")
    assert "No question has the group 'colour'; the files have difficulty, task." in error(
        *runs, "--by", "task,colour"
    )
    assert "got 5 resamples; the ends of a 95 % interval need 100" in error(*runs, "--resamples", "5")
    (tmp_path / "file").write_text("mine")
    assert str(tmp_path / "file") in error(*runs, "--output", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / "comparison.png").mkdir(parents=True)
    assert "comparison.png" in error(*runs, "--output", tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tmp"))
    for run in runs:
        (run / "predictions.jsonl").write_text("")
    assert "hold no questions" in error(*runs)


def test_published_rows_are_read_as_loaders_read_them(runs, tmp_path, capsys):
    """MMAR has empty options at the end, and MMAU has white space around some options."""
    rows = [
        {"id": f"q{n}", "audio_id": f"{n}.wav", "question": "What is heard?", "choices": [*CHOICES, ""], "answer": "a dog ",
         "model_output": "a dog"}
        for n in range(100)
    ]  # fmt: skip
    (tmp_path / "published.json").write_text(json.dumps(rows))
    assert "B: " in say(capsys, runs[0], tmp_path / "published.json", "--by", "task")
