"""Models behind an endpoint: what is sent, what is recorded, and runs that are killed."""

import base64
import io
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import soundfile
from evaluation_runs import killed_while, make_questions, rows_of, run_of
from ffmpeg_files import M4A, STEREO, flac_of_a_stream
from stub_endpoint import Answer, StubEndpoint
from tiny import tone

from falcon3_audio.evaluation.answerers import Item, NoAudio
from falcon3_audio.evaluation.endpoint import Endpoint, EndpointUnavailable
from falcon3_audio.evaluation.generate import IN_A_ROW, generate
from falcon3_audio.evaluation.predictions import PREDICTIONS
from falcon3_audio.evaluation.questions import Clip
from falcon3_audio.evaluation.remote_model import RemoteModel, as_wav
from falcon3_audio.processing import load_audio


PROBE = "What do you hear?"


def words(body) -> str:
    return body["messages"][0]["content"][-1]["text"]


def clips(body) -> list[bytes]:
    parts = body["messages"][0]["content"][:-1]
    assert all(part["type"] == "input_audio" and part["input_audio"]["format"] == "wav" for part in parts)
    return [base64.b64decode(part["input_audio"]["data"]) for part in parts]


def hears(body) -> Answer:
    """Replies with the request's text and the sizes of its clips, and counts a token per 100 bytes."""
    sizes = [len(clip) for clip in clips(body)]
    usage = {"prompt_tokens": 5 + sum(sizes) // 100, "completion_tokens": 3, "total_tokens": 8}
    return Answer(f"{words(body)} {sizes}", usage=usage)


def asked(stub) -> list[str]:
    return [words(request.body) for request in stub.requests if words(request.body) != PROBE]


def model_of(stub, workers=3, retries=0, **options):
    return RemoteModel(Endpoint(stub.url, "m", retries=retries), workers, **options)


@pytest.fixture
def questions(tmp_path):
    return make_questions(tmp_path / "clips", "abcab")


def test_what_is_sent_and_recorded(questions, tmp_path):
    with StubEndpoint(hears) as stub:
        generate(questions, model_of(stub, max_new_tokens=7, seed=3), tmp_path / "out", "question")
    assert sorted(asked(stub)) == [f"What is it, {number}?" for number in range(5)]
    for request in stub.requests:
        assert {name: request.body[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
            **{"model": "m", "temperature": 0, "max_tokens": 7, "seed": 3}
        }
        if words(request.body) != PROBE:
            letter = "abcab"[int(words(request.body)[-2])]
            assert clips(request.body) == [(tmp_path / "clips" / f"{letter}.wav").read_bytes()]
    rows, run = rows_of(tmp_path / "out"), run_of(tmp_path / "out")
    size = (tmp_path / "clips" / "b.wav").stat().st_size
    assert rows["q1"]["reply"] == f"What is it, 1? [{size}]" and rows["q1"]["finish_reason"] == "stop"
    assert rows["q1"]["usage"]["prompt_tokens"] == 5 + size // 100
    assert (run["model"], run["endpoint"], run["served_models"]) == ("m", stub.url, ["stub-2026"])
    assert run["model_commit"] is None and run["audio_tokens"] is None
    assert run["audio_check"] == "two seconds of audio raised the endpoint's prompt tokens from 5 to 645"
    assert run["decoding"] == {"temperature": 0, "max_tokens": 7, "seed": 3} and "openai" in run["versions"]


def test_each_clip_is_read_once(questions, tmp_path):
    read = []

    def counted(clip):
        return Clip(clip.name, lambda: read.append(clip.name) or clip.read())

    rows = tuple(
        type(question)(question.id, tuple(map(counted, question.audio)), question.question)
        for question in questions.questions
    )
    with StubEndpoint(hears) as stub:
        generate(type(questions)("jsonl", rows, {}), model_of(stub), tmp_path / "out")
    assert sorted(read) == ["a", "b", "c"] and len(asked(stub)) == 5


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("lines", [2, 4, 6])
def test_a_killed_run_goes_on_with_what_is_left(questions, tmp_path, workers, lines):
    """Every question has its own line, even if a clip has two; settings and check come first."""
    with StubEndpoint(hears) as stub:
        generate(questions, model_of(stub), tmp_path / "whole")
        killed_while(lambda: generate(questions, model_of(stub, workers), tmp_path / "out"), lines)
        before = stub.requests.copy()
        stub.requests.clear()
        generate(questions, model_of(stub, workers), tmp_path / "out")
    assert len(asked(stub)) == len(set(asked(stub))) == 5 - (lines - 2) and before
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def test_a_run_killed_in_the_middle_of_a_request(questions, tmp_path):
    """The server kills the client while it waits for its fourth reply."""
    pids: Queue[int] = Queue()

    def deadly(body):
        if words(body) == "What is it, 4?" and len(asked(stub)) == 4:
            os.kill(pids.get(timeout=20), signal.SIGKILL)
        return hears(body)

    with StubEndpoint(deadly) as stub:

        def run():
            generate(questions, model_of(stub, workers=1), tmp_path / "out", "question")

        child = get_context("fork").Process(target=run)
        child.start()
        pids.put(child.pid)
        child.join(60)
        assert child.exitcode == -signal.SIGKILL
        first = asked(stub)
        stub.requests.clear()
        run()
        again = asked(stub)
    assert first[-1] == "What is it, 4?" and sorted(first[:-1] + again) == [f"What is it, {n}?" for n in range(5)]
    assert {row["status"] for row in rows_of(tmp_path / "out").values()} == {"answered"}


def test_errors_cost_their_row(tmp_path):
    questions = make_questions(tmp_path / "clips", "abXa")

    def moody(body):
        if words(body).startswith("What is it, 1?"):
            return Answer("cannot decode", status=400)
        return hears(body)

    with StubEndpoint(moody) as stub:
        assert generate(questions, model_of(stub), tmp_path / "out") == {"answered": 2, "failed": 2}
    rows = rows_of(tmp_path / "out")
    assert [rows[f"q{n}"]["status"] for n in range(4)] == ["answered", "failed", "failed", "answered"]
    assert rows["q1"]["error"].endswith("refused: Error code: 400 - cannot decode.") and rows["q1"]["reply"] is None
    assert rows["q2"]["error"].startswith("X ") and len(asked(stub)) == 3


def test_empty_replies_are_replies_and_replies_without_text_are_not(questions, tmp_path):
    with StubEndpoint(lambda body: Answer(None) if "3" in words(body) else "") as stub:
        generate(questions, model_of(stub), tmp_path / "out", "question")
    rows = rows_of(tmp_path / "out")
    assert rows["q0"]["status"] == "answered" and rows["q0"]["reply"] == ""
    assert rows["q3"]["status"] == "failed" and "answered without text" in rows["q3"]["error"]


def test_any_text_is_kept(questions, tmp_path):
    """Also half of a surrogate pair, which JSON can hold and UTF-8 cannot."""
    with StubEndpoint(lambda body: "\u2028 ein Hühnchen\r \ud83d") as stub:
        generate(questions, model_of(stub), tmp_path / "out")
        generate(questions, model_of(stub), tmp_path / "out")
    assert {row["reply"] for row in rows_of(tmp_path / "out").values()} == {"\u2028 ein Hühnchen\r \ud83d"}


def test_an_endpoint_that_answers_nobody_ends_the_run(questions, tmp_path):
    busy = [True]
    with StubEndpoint(
        lambda body: Answer("quota", status=429) if busy and "4" in words(body) else hears(body)
    ) as stub:
        with pytest.raises(EndpointUnavailable, match="429 - quota"):
            generate(questions, model_of(stub, workers=1), tmp_path / "out", "question")
        assert not (tmp_path / "out" / PREDICTIONS).exists()
        busy.clear()
        assert generate(questions, model_of(stub), tmp_path / "out", "question") == {"answered": 5}
    numbers = [text[-2] for text in asked(stub)]
    assert numbers[:4] == ["0", "3", "1", "4"] and sorted(numbers[4:]) == ["2", "4"]


@pytest.mark.parametrize("answer", [Answer("bad gateway", status=502), Answer(body=b"<html>restarting</html>")])
def test_a_server_that_fails_stops_the_run_and_nothing_of_it_is_final(tmp_path, answer):
    """A proxy before a server that is restarted after three replies."""
    questions, up = make_questions(tmp_path / "clips", "abcdefghijkl"), [3]

    def restarting(body):
        if words(body) != PROBE:
            up[0] -= 1
        return hears(body) if up[0] >= 0 else answer

    with StubEndpoint(restarting) as stub:
        with pytest.raises(EndpointUnavailable, match=f"It failed on {IN_A_ROW} clips in a row"):
            generate(questions, model_of(stub, workers=1), tmp_path / "out", "question")
        assert len(asked(stub)) == 3 + IN_A_ROW and not (tmp_path / "out" / PREDICTIONS).exists()
        stub.requests.clear()
        up[0] = 100
        assert generate(questions, model_of(stub, workers=1), tmp_path / "out", "question") == {"answered": 12}
        # What was asked before comes last.
        assert asked(stub) == [f"What is it, {number}?" for number in (8, 9, 10, 11, 3, 4, 5, 6, 7)]
        generate(questions, model_of(stub), tmp_path / "whole", "question")
    assert (tmp_path / "out" / PREDICTIONS).read_bytes() == (tmp_path / "whole" / PREDICTIONS).read_bytes()


def test_clips_that_the_server_always_fails_on_do_not_stop_a_run_for_ever(tmp_path, capsys):
    """Six of them, more than may fail in a row. They count as failed, and are asked again each time."""
    questions = make_questions(tmp_path / "clips", "abcdefghijkl")
    bad = {f"What is it, {number}?" for number in range(2, 8)}

    def moody(body):
        return Answer("cannot decode", status=500) if words(body) in bad else hears(body)

    def again():
        stub.requests.clear()
        return generate(questions, model_of(stub, workers=1), tmp_path / "out", "question")

    with StubEndpoint(moody) as stub:
        with pytest.raises(EndpointUnavailable):
            again()
        assert again() == {"answered": 6, "failed": 6}
        assert "6 questions failed; the same command asks them again" in capsys.readouterr().err
        row = rows_of(tmp_path / "out")["q2"]
        assert (row["status"], row["reply"], row["server_failed"]) == ("failed", None, True)
        assert row["error"].endswith("failed: Error code: 500 - cannot decode.")
        assert again() == {"answered": 6, "failed": 6} and set(asked(stub)) == bad
        bad.clear()
        assert again() == {"answered": 12} and len(asked(stub)) == 6
        assert again() == {"answered": 12} and not asked(stub)


def test_if_the_server_fails_in_the_check_the_next_run_checks_again(questions, tmp_path):
    busy = [True]

    def starting(body):
        return Answer("starting", status=503) if busy and words(body) == PROBE else hears(body)

    with StubEndpoint(starting) as stub:
        generate(questions, model_of(stub), tmp_path / "out")
        said = run_of(tmp_path / "out")["audio_check"]
        assert said.startswith("unknown: ") and said.endswith("failed: Error code: 503 - starting.")
        busy.clear()
        generate(questions, model_of(stub), tmp_path / "out")
    assert run_of(tmp_path / "out")["audio_check"].startswith("two seconds of audio raised")


def test_an_endpoint_that_does_not_hear_is_found_out_before_the_first_question(questions, tmp_path):
    deaf = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    with StubEndpoint(lambda body: Answer("a dog", usage=deaf)) as stub:
        with pytest.raises(NoAudio, match="counts 9 prompt tokens with two seconds of audio and 9 without"):
            generate(questions, model_of(stub), tmp_path / "out")
        assert len(stub.requests) == 2 and not asked(stub)
        generate(questions, model_of(stub), tmp_path / "text", control="text-only")
    assert run_of(tmp_path / "text")["audio_check"] == "no audio was played" and len(stub.requests) == 2 + 5


def test_what_cannot_be_known_is_recorded(questions, tmp_path):
    with StubEndpoint(lambda body: "a dog") as stub:
        generate(questions, model_of(stub), tmp_path / "silent")
    assert run_of(tmp_path / "silent")["audio_check"] == "unknown: the endpoint does not count prompt tokens"
    with StubEndpoint(lambda body: hears(body) if clips(body) else Answer("no audio", status=400)) as stub:
        generate(questions, model_of(stub), tmp_path / "strict")
    assert "unknown: a first question without audio failed: " in run_of(tmp_path / "strict")["audio_check"]


def test_controls(questions, tmp_path):
    with StubEndpoint(hears) as stub:
        generate(questions, model_of(stub), tmp_path / "silence", control="silence")
        for request in stub.requests[2:]:
            (clip,) = clips(request.body)
            assert not soundfile.read(io.BytesIO(clip))[0].any()
        stub.requests.clear()
        generate(questions, model_of(stub), tmp_path / "text", control="text-only")
        assert len(stub.requests) == 5 and not any(clips(request.body) for request in stub.requests)


def test_what_is_no_wav_is_sent_as_one():
    samples = np.stack([tone(0.2), tone(0.2, 600)], 1)
    flac = io.BytesIO()
    soundfile.write(flac, samples, 44_100, format="FLAC")
    wav = as_wav(flac.getvalue(), "clip")
    assert wav[:4] == b"RIFF" and as_wav(wav, "clip") == wav
    got, rate = soundfile.read(io.BytesIO(wav), dtype="float32")
    assert rate == 44_100
    np.testing.assert_allclose(got, samples, atol=2**-15)


@pytest.mark.parametrize("data", [M4A, flac_of_a_stream(STEREO.T)])
def test_what_soundfile_does_not_read_is_sent_as_it_would_be_heard(data):
    wav = as_wav(data, "clip")
    assert soundfile.info(io.BytesIO(wav)).format == "WAV"
    np.testing.assert_allclose(load_audio(wav), load_audio(data), atol=2**-15)


def test_all_questions_about_one_clip_are_one_batch_and_those_without_a_clip_are_one_each(questions):
    with StubEndpoint(hears) as stub:
        items = [Item(question, "", question.audio) for question in questions.questions]
        batches = model_of(stub).batches(items)
        assert [[item.question.id for item in batch] for batch in batches] == [["q0", "q3"], ["q1", "q4"], ["q2"]]
        deaf = [Item(question, "", ()) for question in questions.questions]
        assert [len(batch) for batch in model_of(stub).batches(deaf)] == [1] * 5


def test_several_clips_go_in_order(questions, tmp_path):
    first, second, *_ = questions.questions
    both = type(first)("both", (second.audio[0], first.audio[0]), "Which?")
    with StubEndpoint(hears) as stub:
        generate(type(questions)("jsonl", (both,), {}), model_of(stub), tmp_path / "out")
    expected = [(Path(tmp_path) / "clips" / f"{letter}.wav").read_bytes() for letter in "ba"]
    assert clips(stub.requests[-1].body) == expected
