"""Custom questions, the checks that all loaders share, and the table of benchmarks."""

import hashlib
import json
import os
import subprocess
import sys

import pytest
from benchmark_files import without, write_clip, write_json, write_lines

from falcon3_audio.evaluation.benchmarks import BENCHMARKS
from falcon3_audio.evaluation.load_checks import choices_of
from falcon3_audio.evaluation.load_jsonl import load_jsonl


ROW = {"id": "a", "audio": "dog.wav", "question": "What barks?", "choices": ["a dog", "a seal"], "answer": "a dog"}


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "dog.wav")
    write_clip(tmp_path / "more" / "cat.flac", pitch=880.0)
    return tmp_path


def load(folder, *rows, **options):
    return load_jsonl(write_lines(folder / "mine.jsonl", list(rows)), **options)


def test_every_field_is_read(folder):
    rows = [
        ROW | {"place": "city", "description": "A dog barks twice."},
        {"id": 2, "audio": ["dog.wav", "more/cat.flac"], "question": "Which is louder?", "answer": "the cat"},
        {"id": "c", "audio": "dog.wav", "question": "What next?", "choices": ["one", "two"], "answer": None},
    ]
    path = write_lines(folder / "mine.jsonl", rows)
    loaded = load_jsonl(path)
    first, second, third = loaded.questions
    assert (first.id, first.question, first.choices, first.answer) == (
        "a",
        "What barks?",
        ("a dog", "a seal"),
        "a dog",
    )
    assert (first.groups, first.description) == ({"place": "city"}, "A dog barks twice.")
    assert (second.id, second.choices, second.answer, second.groups, second.description) == (
        "2",
        (),
        "the cat",
        {},
        None,
    )
    assert [clip.name for clip in second.audio] == ["dog.wav", "more/cat.flac"]
    assert [clip.read()[:4] for clip in second.audio] == [b"RIFF", b"fLaC"]
    assert (third.choices, third.answer) == (("one", "two"), None)
    assert loaded.benchmark == "jsonl" and loaded.left_out == {}
    assert loaded.sha256 == {"mine.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_json_list_will_do_too_and_so_do_blank_lines_and_a_byte_order_mark(folder):
    as_list = load_jsonl(write_json(folder / "mine.json", [ROW, ROW | {"id": "b"}])).questions
    text = f"{json.dumps(ROW)}\r\n\n{json.dumps(ROW | {'id': 'b'})}"
    (folder / "mine.jsonl").write_text(text, encoding="utf-8-sig", newline="")
    assert load_jsonl(folder / "mine.jsonl").questions == as_list and len(as_list) == 2


def test_clips_are_read_when_asked_for(folder):
    (question,) = load(folder, ROW).questions
    (folder / "dog.wav").write_bytes(b"written after loading")
    assert question.audio[0].read() == b"written after loading"


def test_paths_start_at_the_audio_folder(folder):
    (question,) = load(folder, ROW | {"audio": "cat.flac"}, audio_root=folder / "more").questions
    assert question.audio[0].read() == (folder / "more" / "cat.flac").read_bytes()
    inside = str(folder / "dog.wav")
    assert load(folder, ROW | {"audio": inside}).questions[0].audio[0].name == inside


def test_links_of_the_user_are_followed(folder):
    """Clips downloaded by the Hub's client are links to files outside their folder."""
    (folder / "set").mkdir()
    (folder / "set" / "dog.wav").symlink_to(folder / "dog.wav")
    assert load(folder, ROW, audio_root=folder / "set").questions[0].audio[0].read()[:4] == b"RIFF"


@pytest.mark.parametrize("path", ["../dog.wav", "more/../../dog.wav", "/etc/hostname", "../more2/dog.wav"])
def test_paths_do_not_lead_out_of_the_audio_folder(folder, path):
    write_clip(folder / "more2" / "dog.wav")  # starts with the name of the audio folder
    with pytest.raises(ValueError, match="path outside the audio folder in 1 "):
        load(folder, ROW | {"audio": path}, audio_root=folder / "more")


FAULTS = {
    "audio file missing": [{"audio": "cow.wav"}, {"audio": ["dog.wav", "cow.wav"]}, {"audio": "more"}],
    "path outside the audio folder": [{"audio": "../dog.wav"}],
    "answer not among the choices": [{"answer": "a cat"}, {"answer": "A dog"}, {"answer": "a"}],
    "field missing or malformed": [
        {"id": None},
        {"id": " "},
        {"id": True},
        {"id": 1.5},
        {"question": None},
        {"question": ""},
        {"question": ["What?"]},
        {"audio": None},
        {"audio": []},
        {"audio": ["dog.wav", 1]},
        {"audio": ["dog.wav", ""]},
        {"choices": []},
        {"choices": ["a dog"]},
        {"choices": "a dog"},
        {"choices": ["a dog", 2]},
        {"choices": ["", "a dog"]},
        {"answer": 3},
        {"answer": ""},
        {"description": ["a dog"]},
        {"options": ["a dog", "a seal"]},  # a misspelt key would turn it into an open question
        {"difficulty": 3},
    ],
}
CASES = [(reason, change) for reason, changes in FAULTS.items() for change in changes]


@pytest.mark.parametrize("reason, change", CASES, ids=[str(change) for _, change in CASES])
def test_a_faulty_row_is_an_error_or_left_out(folder, reason, change):
    rows = [ROW | {"id": "x"}, {**ROW, **change}]
    with pytest.raises(ValueError) as error:
        load(folder, *rows)
    assert f"mine.jsonl: 1 of 2 rows cannot be used: {reason} in 1 [line 2 (" in str(error.value)
    loaded = load(folder, *rows, on_error="skip")
    assert [question.id for question in loaded.questions] == ["x"]
    known = "line 2" if change.get("id", "") is None else str(change.get("id", "a"))
    assert loaded.left_out == {reason: [known]}


def test_a_field_that_is_not_there_is_named(folder):
    for key in ("id", "audio", "question"):
        with pytest.raises(ValueError, match=f"field missing or malformed in 1 .*no '{key}'"):
            load(folder, without(ROW, key))


def test_of_rows_with_one_id_the_first_is_kept(folder):
    rows = [ROW | {"id": 7}, ROW | {"id": "7", "question": "Another?"}, ROW | {"id": 8}]
    with pytest.raises(ValueError, match=r"id already used in 1 \[line 2 \(7\)"):
        load(folder, *rows)
    loaded = load(folder, *rows, on_error="skip")
    assert [(question.id, question.question) for question in loaded.questions] == [
        ("7", "What barks?"),
        ("8", "What barks?"),
    ]
    assert loaded.left_out == {"id already used": ["7"]}
    spellings = [ROW | {"id": identity} for identity in ("caf\u00e9", "cafe\u0301")]
    with pytest.raises(ValueError, match="id already used in 1"):
        load(folder, *spellings)


def test_many_faults_are_counted_and_the_first_are_named(folder):
    missing = [ROW | {"id": f"m{number}", "audio": "cow.wav"} for number in range(5)]
    rows = [ROW, *missing, "no object", ROW | {"id": "w", "answer": "a cat"}]
    with pytest.raises(ValueError) as error:
        load(folder, *rows)
    message = str(error.value)
    assert "7 of 8 rows cannot be used" in message and "\n" not in message
    for part in (
        "audio file missing in 5 ",
        "line 2 (m0)",
        "line 4 (m2)",
        "and 2 more",
        "answer not among",
        "--on-error skip",
    ):
        assert part in message
    assert "m3" not in message and "expected a JSON object, got str" in message
    assert load(folder, *rows, on_error="skip").left_out == {
        "audio file missing": ["m0", "m1", "m2", "m3", "m4"],
        "field missing or malformed": ["line 7"],
        "answer not among the choices": ["w"],
    }


def test_no_usable_row_is_an_error_in_any_case(folder):
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match="mine.jsonl holds no rows"):
            load(folder, on_error=on_error)
        with pytest.raises(ValueError, match="1 of 1 rows cannot be used.*Is --audio-root the folder"):
            load(folder, ROW | {"audio": "cow.wav"}, on_error=on_error)
        with pytest.raises(ValueError, match="1 of 1 rows cannot be used.*Is it a file of this benchmark"):
            load(folder, {"uniq_id": 1}, on_error=on_error)
    with pytest.raises(ValueError, match='on_error=\'ignore\'; expected "raise" or "skip"'):
        load(folder, ROW, on_error="ignore")


@pytest.mark.parametrize(
    "content, message",
    [
        (b'{"id": 1}\n{"id": 2', "mine.jsonl is neither a JSON list nor JSON lines in line 2: "),
        (b'[{"id": 1}', "mine.jsonl is neither a JSON list nor JSON lines: "),
        (b"id,audio\n", "mine.jsonl is neither a JSON list nor JSON lines in line 1: "),
        (b'{"id": "\xff"}', "mine.jsonl is neither a JSON list nor JSON lines: 'utf-8' codec"),
        (b"\n", "mine.jsonl holds no rows"),
        (b"[]", "mine.jsonl holds no rows"),
    ],
)
def test_what_is_not_json_is_an_error(folder, content, message):
    (folder / "mine.jsonl").write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_jsonl(folder / "mine.jsonl", on_error="skip")
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_an_error(folder):
    with pytest.raises(ValueError, match="none.jsonl does not exist"):
        load_jsonl(folder / "none.jsonl")
    with pytest.raises(ValueError, match="more is a folder"):
        load_jsonl(folder / "more")


def test_choices_keep_their_text_but_for_empty_ones_at_the_end():
    assert choices_of([" a", "b ", "a", "", " "]) == (" a", "b ", "a")


def test_benchmarks_have_loaders_prompts_and_rules():
    assert list(BENCHMARKS) == [
        *("mmau", "mmar", "air-bench-foundation", "air-bench-chat", "mmau-pro", "mmsu", "voicebench", "esc-50"),
        *("audiocaps", "clotho", "asr", "jsonl"),
    ]
    prompts = pytest.importorskip("falcon3_audio.evaluation.prompts").PROMPTS
    rules = pytest.importorskip("falcon3_audio.evaluation.rules").RULES
    for benchmark in BENCHMARKS.values():
        assert benchmark.prompt in prompts and set(benchmark.rules) <= {
            *rules,
            "wer",
            "cer",
            "cider-d",
            "rouge-l",
            "bleu-4",
        }


def test_questions_are_loaded_without_torch_or_datasets(folder):
    path = write_lines(folder / "mine.jsonl", [ROW])
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'numpy'): sys.modules[name] = None\n"
        "from falcon3_audio.evaluation.benchmarks import BENCHMARKS\n"
        "print(BENCHMARKS['jsonl'].load(sys.argv[1]).questions[0].id)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert (result.returncode, result.stdout) == (0, "a\n"), result.stderr
