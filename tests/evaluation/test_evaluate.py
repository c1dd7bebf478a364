"""`falcon3-audio evaluate` from the command line to the score."""

import hashlib
import importlib
import json
import signal
import subprocess
import sys
from functools import partial

import pytest
import soundfile
from evaluation_runs import make_telling, rows_of, run_of
from stub_endpoint import Answer, StubEndpoint
from tiny import SAMPLING_RATE, tone

import falcon3_audio_cli as cli
from falcon3_audio.evaluation.evaluate import main, parse
from falcon3_audio.evaluation.journal import JOURNAL
from falcon3_audio.evaluation.predictions import PREDICTIONS, RUN


KEY = "sk-secret-0123456789"


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return make_telling(checkpoint, tmp_path_factory.mktemp("telling"))


@pytest.fixture
def data(tmp_path):
    """A file in MMAU's format with six questions about three clips; the answer is always "a dog"."""
    (tmp_path / "test-mini-audios").mkdir()
    rows = []
    for number in range(6):
        name = f"./test-mini-audios/{number % 3}.wav"
        soundfile.write(tmp_path / name, tone(0.3 + number / 20, 300 * (number + 1)), SAMPLING_RATE)
        row = {"id": f"q{number}", "audio_id": name, "question": f"What is it, {number}?", "answer": "a dog"}
        labels = {"task": "sound", "category": "c", "sub-category": "s", "difficulty": "easy"}
        rows.append(row | {"choices": ["a dog", "a bell"], "dataset": "d", "split": "test-mini"} | labels)
    path = tmp_path / "mmau.json"
    path.write_text(json.dumps(rows))
    return path


def command(data, out, *more, benchmark="mmau"):
    return ["--benchmark", benchmark, "--data", str(data), "--output-dir", str(out), *map(str, more)]


def remote(stub, *more):
    return ["--endpoint", stub.url, "--endpoint-model", "m", *more]


def hears(body) -> Answer:
    """Replies correctly except to question 5, and counts tokens."""
    content = body["messages"][0]["content"]
    usage = {"prompt_tokens": 10 * len(content), "completion_tokens": 1, "total_tokens": 1}
    return Answer("a bell" if ", 5?" in content[-1]["text"] else "a dog", usage=usage)


def test_from_an_endpoint_to_a_score(data, tmp_path, capfd):
    with StubEndpoint(hears) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub, "--seed", "4", "--max-new-tokens", "9"))) == 0
    printed = capfd.readouterr().out
    assert "6 questions (6 answered); predictions in" in printed and "83.3" in printed
    run = run_of(tmp_path / "out")
    assert (run["benchmark"], run["prompt"], run["control"], run["seed"]) == ("mmau", "plain", "none", 4)
    assert run["decoding"]["max_tokens"] == 9 and run["prompt_example"].startswith("What is it, 0?\na dog\na bell\n")
    assert {row["reply"] for row in rows_of(tmp_path / "out").values()} == {"a dog", "a bell"}


def test_from_a_model_to_a_score(folder, data, tmp_path, capfd):
    options = ("--model", folder, "--device", "cpu", "--batch-size", 2, "--max-new-tokens", 4, "--dtype", "float32")
    assert main(command(data, tmp_path / "out", *options, "--prompt", "mmar", "--control", "silence")) == 0
    assert "6 questions (6 answered)" in capfd.readouterr().out
    run = run_of(tmp_path / "out")
    assert (run["model"], run["model_dtype"], run["device"], run["batch_size"]) == (folder, "float32", "cpu", 2)
    assert run["prompt"] == "mmar" and run["control"] == "silence" and run["audio_tokens"]["min"] > 0


def test_processes_of_a_launcher_share_the_questions(folder, data, tmp_path, capfd):
    options = ("--model", folder, "--device", "cpu", "--batch-size", 2, "--max-new-tokens", 4, "--dtype", "float32")
    assert main(command(data, tmp_path / "one", *options)) == 0
    assert "questions/s" in capfd.readouterr().err
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command(data, tmp_path / "two", *options)
    done = subprocess.run(
        [*launch, "-m", "falcon3_audio.evaluation.evaluate", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "6 questions (6 answered)" in done.stdout
    for name in (PREDICTIONS, "journal-1.jsonl", "score.json"):
        assert (tmp_path / "two" / name).exists()
    assert (tmp_path / "two" / PREDICTIONS).read_bytes() == (tmp_path / "one" / PREDICTIONS).read_bytes()


def test_another_setting_in_the_same_folder_is_one_line(data, tmp_path, capsys):
    with StubEndpoint(hears) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub))) == 0
        capsys.readouterr()
        assert main(command(data, tmp_path / "out", *remote(stub, "--prompt", "r1-aqa"))) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "prompt: 'plain' -> 'r1-aqa'" in error


def test_a_prompt_of_your_own_is_part_of_the_run(data, tmp_path, capsys):
    words = tmp_path / "mine.txt"
    words.write_text("Listen. {question} Say one of: {inline_choices}\n")
    own = ("--prompt-file", words)
    with StubEndpoint(hears) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub, *own))) == 0
        run = run_of(tmp_path / "out")
        text = "Listen. {question} Say one of: {inline_choices}"
        assert (run["prompt"], run["prompt_text"]) == ("file mine.txt", text)
        assert run["prompt_sha256"] == hashlib.sha256(text.encode()).hexdigest()
        assert run["prompt_example"] == "Listen. What is it, 0? Say one of: a dog, a bell"
        words.write_text("Listen. {question} Choose: {inline_choices}")
        asked = len(stub.requests)
        assert main(command(data, tmp_path / "out", *remote(stub, *own))) == 1
        words.write_text("{queston}")
        assert main(command(data, tmp_path / "other", *remote(stub, *own))) == 1
        assert len(stub.requests) == asked  # neither run started
    said = capsys.readouterr().err
    assert "prompt_text: 'Listen." in said and "has the placeholder {queston}; known are {question}" in said


def test_failed_questions_are_counted_and_the_exit_code_says_so(data, tmp_path, capfd):
    (tmp_path / "test-mini-audios" / "1.wav").write_bytes(b"RIFF no sound")
    with StubEndpoint(hears) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub))) != 0
        assert "6 questions (4 answered, 2 failed)" in capfd.readouterr().out
        assert main(command(data, tmp_path / "out", *remote(stub, "--allow-incomplete"))) == 0
    assert rows_of(tmp_path / "out")["q1"]["error"].startswith("./test-mini-audios/1.wav ")


def test_when_every_question_fails_the_reason_is_printed(data, tmp_path, capsys):
    with StubEndpoint(lambda body: Answer("no audio model", status=400)) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub))) == 1
    assert "Every question failed, the first because: The endpoint" in capsys.readouterr().err


def test_clips_that_are_missing(data, tmp_path, capsys):
    (tmp_path / "test-mini-audios" / "1.wav").unlink()
    with StubEndpoint(hears) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub))) == 1
        assert "audio file missing" in capsys.readouterr().err and not stub.requests
        skip = command(data, tmp_path / "out", *remote(stub, "--on-error", "skip"))
        assert main(skip) == 1
        said = capsys.readouterr().err
        assert "left out, audio file missing: 2" in said and "with --allow-incomplete the exit status is 0" in said
        assert main([*skip, "--allow-incomplete"]) == 0
    assert (
        run_of(tmp_path / "out")["left_out"] == {"audio file missing": ["q1", "q4"]}
        and len(rows_of(tmp_path / "out")) == 4
    )


def test_the_key_is_sent_and_written_nowhere(data, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with StubEndpoint(hears, key=KEY) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub, "--api-key-env", "MY_KEY"))) == 0
    with StubEndpoint(hears, key="another") as stub:
        assert main(command(data, tmp_path / "no", *remote(stub, "--api-key-env", "MY_KEY"))) == 1
    printed = capfd.readouterr()
    assert "Is the right key in the environment variable MY_KEY?" in printed.err
    assert KEY not in printed.out + printed.err
    written = [path.read_text() for path in tmp_path.glob("*/*") if path.suffix in (".json", ".jsonl")]
    assert len(written) >= 3 and not any(KEY in text for text in written)


def test_open_questions_are_left_to_a_judge_and_secret_answers_unscored(data, tmp_path, capfd):
    rows = [{"id": "1", "audio": "test-mini-audios/0.wav", "question": "What?", "choices": ["a", "b"]}]
    (tmp_path / "mine.jsonl").write_text(json.dumps(rows[0]))
    with StubEndpoint(hears) as stub:
        assert main(command(tmp_path / "mine.jsonl", tmp_path / "out", *remote(stub), benchmark="jsonl")) == 0
        assert "nothing to score" in capfd.readouterr().out
        chat = tmp_path / "Chat_meta.json"
        row = {"path": "0.wav", "question": "What?", "answer_gt": "a dog", "meta_info": "a dog barks"}
        chat.write_text(json.dumps([row | {"task_name": "sound_QA", "dataset_name": "d", "uniq_id": 1}]))
        (tmp_path / "test-mini-audios").rename(tmp_path / "sound_QA_d")
        assert main(command(chat, tmp_path / "chat", *remote(stub), benchmark="air-bench-chat")) == 0
        (tmp_path / "sound_QA_d" / "1.wav").unlink()
        rows = [json.loads(chat.read_text())[0] | {"path": f"{n}.wav", "uniq_id": n} for n in range(2)]
        chat.write_text(json.dumps(rows))
        skip = command(chat, tmp_path / "part", *remote(stub, "--on-error", "skip"), benchmark="air-bench-chat")
        assert main(skip) == 1 and main([*skip, "--allow-incomplete"]) == 0
    assert f"falcon3-audio judge {tmp_path / 'chat'}" in capfd.readouterr().out
    assert rows_of(tmp_path / "chat")["1"]["prompt"] == "What?"


def test_a_command_killed_while_it_waits_for_a_reply_goes_on(data, tmp_path):
    """The real command in its own process; the server kills it at the fourth question."""
    running = []

    def deadly(body):
        if ", 4?" in body["messages"][0]["content"][-1]["text"] and running:
            running[0].send_signal(signal.SIGKILL)
        return hears(body)

    with StubEndpoint(deadly) as stub:
        arguments = command(data, tmp_path / "out", *remote(stub, "--batch-size", "1"))
        process = [sys.executable, "-m", "falcon3_audio.evaluation.evaluate", *arguments]
        running.append(subprocess.Popen(process, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        assert running[0].wait(60) == -signal.SIGKILL
        running.clear()
        assert not (tmp_path / "out" / PREDICTIONS).exists() and not (tmp_path / "out" / RUN).exists()
        before = len(stub.requests)
        assert main(arguments) == 0
        after = [request.body["messages"][0]["content"][-1]["text"][:14] for request in stub.requests[before:]]
        assert main(command(data, tmp_path / "whole", *remote(stub))) == 0
    # Questions are asked clip by clip: 0, 3, 1, then 4.
    assert sorted(after) == ["What is it, 2?", "What is it, 4?", "What is it, 5?"]
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def test_a_run_that_the_user_stops_ends_with_one_line_and_goes_on(data, tmp_path):
    running = []

    def impatient(body) -> Answer:
        if len(stub.requests) == 5:
            running[0].send_signal(signal.SIGINT)
        return hears(body)

    with StubEndpoint(impatient) as stub:
        arguments = command(data, tmp_path / "out", *remote(stub, "--batch-size", "1"))
        process = [sys.executable, "-m", "falcon3_audio.evaluation.evaluate", *arguments]
        # Shells start background jobs with SIGINT ignored, and children inherit this.
        restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        running.append(subprocess.Popen(process, stderr=subprocess.PIPE, text=True, preexec_fn=restore))
        error = running[0].communicate(timeout=60)[1]
        assert running.pop().returncode == 130
        assert error == (
            "falcon3-audio evaluate: stopped. Run the same command again to resume: "
            f"finished answers are in {tmp_path / 'out'}.\n"
        )
        assert main(arguments) == 0
    assert len(rows_of(tmp_path / "out")) == 6


@pytest.mark.parametrize(
    "verb, arguments",
    [
        ("score", ["x"]),
        ("compare", ["x", "y"]),
        ("judge", ["x", "--endpoint", "http://a/v1", "--judge", "m"]),
        ("evaluate", ["--benchmark", "mmau", "--data", "x", "--output-dir", "out", "--model", "m"]),
    ],
)
def test_verbs_that_the_user_stops_end_with_one_line(verb, arguments, monkeypatch, capsys):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    module = importlib.import_module(f"falcon3_audio.evaluation.{verb}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate" if verb == "evaluate" else "read_predictions", stop)
        assert cli.main([verb, *arguments]) == 130
        said = capsys.readouterr().err
        assert said.startswith(f"falcon3-audio {verb}: stopped. ") and said.count("\n") == 1
        assert "same command" in said
    monkeypatch.setattr(cli.importlib, "import_module", stop)
    assert cli.main([verb, *arguments]) == 130
    assert capsys.readouterr().err == f"falcon3-audio {verb}: stopped.\n"


def test_an_endpoint_that_nobody_answers_at_is_one_line(data, tmp_path, capsys):
    with StubEndpoint(hears) as stub:
        pass
    assert main(command(data, tmp_path / "out", *remote(stub))) == 1
    error = capsys.readouterr().err
    assert error.startswith("falcon3-audio evaluate: The endpoint") and error.count("\n") == 1
    assert "cannot be reached" in error and (tmp_path / "out" / JOURNAL).exists()
    assert error.endswith(f"Run the same command again to resume: finished answers are in {tmp_path / 'out'}.\n")


def test_a_server_that_fails_is_one_line_that_says_how_to_go_on(data, tmp_path, capsys):
    rows = json.loads(data.read_text())
    for number, row in enumerate(rows):  # each about its own clip
        row["audio_id"] = f"./test-mini-audios/own-{number}.wav"
        soundfile.write(tmp_path / row["audio_id"], tone(0.3, 300 * (number + 1)), SAMPLING_RATE)
    data.write_text(json.dumps(rows))
    with StubEndpoint(lambda body: Answer("restarting", status=503)) as stub:
        assert main(command(data, tmp_path / "out", *remote(stub))) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        f"falcon3-audio evaluate: The endpoint {stub.url} failed: Error code: 503 - restarting. It "
    )
    assert "in a row. Run the same command again to resume" in error and error.count("\n") == 1


def test_no_such_model_is_one_line(data, tmp_path, capsys):
    assert main(command(data, tmp_path / "out", "--model", tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.startswith("falcon3-audio evaluate: Unrecognized model") and error.count("\n") == 1


@pytest.mark.parametrize(
    "options, said",
    [
        ((), "one of the arguments --model --endpoint is required"),
        (("--model", "a", "--endpoint", "b"), "not allowed with argument"),
        (("--endpoint", "http://a/v1"), "--endpoint needs --endpoint-model"),
        (
            ("--endpoint", "http://a/v1", "--endpoint-model", "m", "--dtype", "float32"),
            "--dtype does nothing with --endp",
        ),
        (
            ("--endpoint", "http://a/v1", "--endpoint-model", "m", "--trust-remote-code"),
            "--trust-remote-code does noth",
        ),
        (("--model", "a", "--api-key-env", "K"), "--api-key-env does nothing with --model"),
        (("--model", "a", "--batch-size", "0"), "got 0, expected 1 or more"),
        (("--model", "a", "--control", "noise"), "invalid choice: 'noise'"),
    ],
)
def test_options_that_make_no_sense(options, said, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(command("x.json", "out", *options))
    assert caught.value.code == 2 and said in capsys.readouterr().err
