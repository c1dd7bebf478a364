"""The transformers engine: answers equal to the pipeline's, batches, streams, limits, and bad clients."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import openai
import pytest
import soundfile
from evaluation_runs import make_telling
from running_server import (
    DEFAULT_STEPS,
    QUESTION,
    STEPS,
    Running,
    answer_of,
    audio,
    encoded,
    input_audio,
    openai_chat,
    post_head,
    user,
    wav,
)
from transformers import pipeline

from falcon3_audio.evaluation import evaluate
from falcon3_audio.evaluation.predictions import ANSWERED, read_predictions
from falcon3_audio.serving import serve
from falcon3_audio.serving.chat_app import CHAT
from falcon3_audio.serving.chat_server import load
from falcon3_audio.serving.request_limits import Limits
from falcon3_audio.training.world.audio_world import generate_world


CHATS = {
    "short": [user(audio(0.1), QUESTION)],
    "mp3": [user(audio(2.3, 300, 44_100, "MP3"), QUESTION)],
    "over a window": [user(audio(31.2, 700), QUESTION)],
    "two": [user(audio(1.7), audio(0.4, 900), {"type": "text", "text": "Which is longer?"})],
    "turns": [
        {"role": "system", "content": "You are brief."},
        user(audio(2.2, 520), QUESTION),
        {"role": "assistant", "content": "a bell"},
        user(audio(0.9, 880), {"type": "text", "text": "And now?"}),
    ],
    "none": [{"role": "user", "content": "Which animal is it?"}],
}


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    return make_telling(checkpoint, tmp_path_factory.mktemp("served") / "telling")


@pytest.fixture(scope="module")
def expected(folder):
    """From `pipeline()`, one at a time: `{name: (text, tokens, prompt tokens)}`."""
    pipe = pipeline("audio-text-to-text", model=folder)
    answers = {}
    for name, chat in CHATS.items():
        inputs = pipe.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        length = inputs["input_ids"].shape[1]
        tokens = pipe.model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)[0, length:].tolist()
        text = pipe(chat, max_new_tokens=STEPS, do_sample=False)[0]["generated_text"]
        answers[name] = (text, tokens, length)
    assert len({text for text, _, _ in answers.values()}) == len(CHATS)
    return answers


@pytest.fixture(scope="module")
def server(folder):
    with Running(folder) as running:
        yield running


def words_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content for chunk in stream if chunk.choices)


@pytest.mark.parametrize("name", CHATS)
def test_greedy_answers_are_those_of_the_pipeline(server, expected, name):
    text, tokens, length = expected[name]
    extra = {"extra_body": {"return_tokens_as_token_ids": True}}
    answer = server.chat(CHATS[name], temperature=0, logprobs=True, top_logprobs=2, **extra)
    steps = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == text and answer.model == "tiny"
    assert [step.token for step in steps] == [f"token_id:{token}" for token in tokens]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (length, STEPS)
    assert all(step.logprob == step.top_logprobs[0].logprob > step.top_logprobs[1].logprob for step in steps)


def test_log_probabilities_are_the_models(server, folder):
    pipe = pipeline("audio-text-to-text", model=folder)
    template = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    inputs = pipe.processor.apply_chat_template(CHATS["turns"], **template)
    settings = {"do_sample": False, "max_new_tokens": 3, "output_scores": True, "return_dict_in_generate": True}
    scores = pipe.model.generate(**inputs, **settings).scores
    steps = server.chat(CHATS["turns"], logprobs=True, top_logprobs=4, max_tokens=3).choices[0].logprobs.content
    for step, row in zip(steps, scores, strict=True):
        wanted = row[0].log_softmax(-1).topk(4)
        assert [top.logprob for top in step.top_logprobs] == pytest.approx(wanted.values.tolist(), abs=1e-4)
        assert [top.token for top in step.top_logprobs] == pipe.tokenizer.batch_decode(wanted.indices[:, None])


def test_requests_that_wait_together_are_generated_together(server, folder, expected):
    """Streams and whole answers, greedy and sampled, of different lengths: each the same as on its own."""
    drawn = {"temperature": 1.5, "seed": 7}
    alone = server.text(CHATS["none"], **drawn)
    names = ["two", "turns", "over a window"]
    with ThreadPoolExecutor(8) as pool:
        before, first = len(server.batches), server.hold(pool, CHATS["short"])
        waiting = [pool.submit(server.text, CHATS[name]) for name in names]
        waiting.append(pool.submit(server.text, CHATS["mp3"], max_tokens=3))
        waiting.append(pool.submit(server.text, CHATS["none"], **drawn))
        stream = pool.submit(lambda: words_of(server.chat(CHATS["none"], stream=True)))
        server.wait("requests_waiting 6")
        server.let.set()
        short = pipeline("audio-text-to-text", model=folder).tokenizer.decode(expected["mp3"][1][:3])
        assert [answer.result() for answer in waiting] == [*(expected[name][0] for name in names), short, alone]
        assert stream.result() == expected["none"][0] and first.result() == expected["short"][0]
    assert server.batches[before:] == [1, 6]


def test_many_clients_at_once_get_the_same_answers(server, expected):
    names = list(CHATS) * 10
    with ThreadPoolExecutor(30) as pool:
        answers = pool.map(lambda name: server.text(CHATS[name]), names)
        assert list(answers) == [expected[name][0] for name in names]


def test_seeds_temperature_and_top_p(server, expected):
    chat = CHATS["turns"]
    drawn = {seed: server.text(chat, temperature=2, seed=seed) for seed in range(4)}
    assert len({*drawn.values(), expected["turns"][0]}) == 5
    assert server.text(chat, temperature=2, seed=3) == drawn[3]
    assert server.text(chat, temperature=2, top_p=1e-6, seed=3) == expected["turns"][0]
    assert len({server.text(chat, temperature=2) for _ in range(4)}) > 1  # without a seed


def test_a_stream_is_the_answer_in_parts(server, expected):
    *parts, usage = server.chat(CHATS["two"], stream=True, stream_options={"include_usage": True}, logprobs=True)
    assert words_of(parts) == expected["two"][0]
    assert len(parts) == STEPS and parts[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in parts] == [None] * (STEPS - 1) + ["length"]
    assert [len(part.choices[0].logprobs.content) for part in parts] == [1] * STEPS
    assert usage.choices == [] and usage.usage.total_tokens == expected["two"][2] + STEPS
    assert usage.usage == server.chat(CHATS["two"]).usage and all(part.usage is None for part in parts)
    assert usage.usage.prompt_tokens_details.audio_tokens == 43 + 10  # for 1.7 and 0.4 s, 25 per second


def test_stop_strings_end_answers_before_them(server, expected):
    text = expected["turns"][0]
    stop = ["nowhere", text[3:6]]
    answer = server.chat(CHATS["turns"], stop=stop).choices[0]
    chunks = list(server.chat(CHATS["turns"], stop=stop, stream=True))
    assert answer.message.content == words_of(chunks) == text[: text.find(text[3:6])]
    assert answer.finish_reason == chunks[-1].choices[0].finish_reason == "stop"


def test_transcriptions_are_answers_to_a_request_for_one(server):
    clip = wav(1.3, 610)
    ask = server.client.audio.transcriptions.create

    def asked(text):
        body = {"messages": [user(input_audio(encoded(clip)), {"type": "text", "text": text})]}
        return server.post(body)[1]["choices"][0]["message"]["content"].strip()

    heard = ask(model="tiny", file=("a.wav", clip))
    assert heard.text == asked("Transcribe the speech.") != ""
    assert heard.usage.output_tokens == DEFAULT_STEPS
    assert heard.usage.input_tokens - heard.usage.input_token_details.text_tokens == 33  # from 65 encoded frames
    got = ask(model="tiny", file=("a.wav", clip), prompt="About dogs.", language="fr", response_format="text")
    assert got == asked("Transcribe the speech. It is in French. About dogs.")
    *deltas, done = ask(model="tiny", file=("a.wav", clip), stream=True)
    assert "".join(event.delta for event in deltas) == done.text == heard.text
    assert done.usage.model_dump() == heard.usage.model_dump()
    for wrong, why in (
        ({"language": "xx"}, "ISO 639-1"),
        ({"response_format": "verbose_json", "timestamp_granularities": ["word"]}, "no word timestamps"),
        ({"file": ("a.wav", b"This is a text.")}, "cannot be decoded"),
    ):
        with pytest.raises(openai.BadRequestError, match=why) as error:
            ask(**{"model": "tiny", "file": ("a.wav", clip)} | wrong)
        assert error.value.param in wrong


def test_transcriptions_of_long_sound_are_those_of_its_windows(server):
    ask = server.client.audio.transcriptions.create
    clip = wav(40, 610)
    granularities = {"response_format": "verbose_json", "timestamp_granularities": ["segment"]}
    verbose = ask(model="tiny", file=("a.wav", clip), **granularities)
    first, second = verbose.segments
    assert first.start == 0 and first.end == second.start and second.end == verbose.duration == 40
    assert verbose.text == ask(model="tiny", file=("a.wav", clip)).text == f"{first.text} {second.text}"
    samples, rate = soundfile.read(io.BytesIO(clip), dtype="int16")
    for segment in verbose.segments:
        file = io.BytesIO()
        soundfile.write(file, samples[round(segment.start * rate) : round(segment.end * rate)], rate, format="WAV")
        assert ask(model="tiny", file=("a.wav", file.getvalue())).text == segment.text
        assert segment.avg_logprob < 0 and len(segment.tokens) == DEFAULT_STEPS
    subtitles = ask(model="tiny", file=("a.wav", clip), response_format="srt")
    assert subtitles.startswith("1\n00:00:00,000 --> 00:00:") and subtitles.count("-->") == 2
    assert ask(model="tiny", file=("a.wav", clip), response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 -->")
    *deltas, done = ask(model="tiny", file=("a.wav", clip), stream=True)
    assert "".join(event.delta for event in deltas) == done.text == verbose.text


def test_models_health_metrics_and_what_is_not_there(server):
    assert [model.id for model in server.client.models.list()] == ["tiny"]
    assert server.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'a/b' here") as error:
        server.client.models.retrieve("a/b")
    assert (error.value.param, error.value.code, error.value.type) == (
        "model",
        "model_not_found",
        "invalid_request_error",
    )
    assert json.loads(server.get("/health")) == {"status": "ok"}
    statuses = [f'requests_total{{status="{status}"}}' for status in (200, 404)]
    names = ["generated_tokens_total", "audio_seconds_total", *statuses]
    before = [server.metric(name) for name in names]
    server.text(CHATS["two"])
    for body, path, reason in (({"model": "gpt"}, CHAT, "only 'tiny'"), ({}, "/v1/nothing", "no POST /v1/nothing")):
        status, answer = server.post(body, path)
        assert status == 404 and reason in answer["error"]["message"]
    assert "no GET /no" in server.get("/no")
    after = [server.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after)] == pytest.approx([STEPS, 2.1, 1, 2])


BAD = {
    "no JSON": (b"{", "not JSON"),
    "unknown role": ({"messages": [{"role": "tool", "content": "a"}]}, "got 'tool'"),
    "broken base64": ({"messages": [user(input_audio("UklGR!!!"))]}, "broken base64"),
    "a text file": ({"messages": [user(input_audio(encoded(b"This is a text. " * 100)))]}, "cannot be decoded"),
    "zero seconds": ({"messages": openai_chat([user(audio(0))])}, "0 samples"),
    "an hour": ({"messages": openai_chat([user(audio(3600, 440, 1500))])}, "3600.0 s long; a clip can have 300 s"),
    "1,000 audios": ({"messages": openai_chat([user(*[audio(0.1)] * 1000)])}, "8 audios, got 1000"),
    "over the context": (
        {"messages": openai_chat([user(audio(299), QUESTION)]), "max_tokens": 800},
        "800 answer tokens were requested; the model's context holds 8192",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_reason(server, expected, name):
    body, reason = BAD[name]
    status, answer = server.post(body)
    assert status == 400 and reason in answer["error"]["message"], answer
    assert server.text(CHATS["two"]) == expected["two"][0]


def test_large_bodies_are_refused_and_read_to_their_end(server, expected):
    status, answer = server.post(b"A" * 120_000_000)
    assert status == 413 and "larger than this server's limit, 64 MiB" in answer["error"]["message"]
    assert server.text(CHATS["two"]) == expected["two"][0]


def test_no_more_requests_at_once_than_allowed(folder, expected):
    with Running(folder, limits=Limits(max_requests=2)) as server, ThreadPoolExecutor(2) as pool:
        first = server.hold(pool, CHATS["short"])
        second = pool.submit(server.text, CHATS["none"])
        server.wait("requests_waiting 1")
        with pytest.raises(openai.RateLimitError, match="2 requests at a time") as error:
            server.text(CHATS["two"])
        assert error.value.response.headers["Retry-After"] == "1"
        server.let.set()
        assert (first.result(), second.result()) == (expected["short"][0], expected["none"][0])
        assert server.text(CHATS["two"]) == expected["two"][0]


def test_requests_that_take_too_long(folder):
    with Running(folder, limits=Limits(timeout=2)) as server, ThreadPoolExecutor(2) as pool:
        with server.connect() as slow:
            slow.sendall(post_head("Content-Length: 9") + b"{")
            running = server.hold(pool, CHATS["short"])
            waiting = pool.submit(server.text, CHATS["none"])
            server.wait("requests_waiting 1")
            for request in (running, waiting):
                with pytest.raises(openai.InternalServerError, match="this server's limit, 2 s") as error:
                    request.result()
                assert error.value.status_code == 504
            answer = answer_of(slow)
            assert answer.status == 408 and "did not arrive" in answer.read().decode()
        server.let.set()
        server.wait("requests_waiting 0")
        server.wait("requests_running 0")
    assert server.batches == server.made == [1]  # abandoned requests are not generated, or stop early


def test_what_a_checkpoint_says_of_ends_is_passed_over(server, expected, monkeypatch):
    text = expected["turns"][0]
    for name, value in {"max_time": 1e-9, "prompt_lookup_num_tokens": 3, "stop_strings": [text[:3]]}.items():
        with monkeypatch.context() as patch:
            patch.setattr(server.generation_config, name, value)
            assert server.text(CHATS["turns"], timeout=20) == text


def test_keys_are_asked_for_and_not_logged(folder, caplog):
    caplog.set_level(logging.DEBUG)
    with Running(folder, key="a-key") as server:
        for key in ({}, {"Authorization": "Bearer a-ke"}, {"Authorization": "Bearer schlüssel"}):
            assert server.post({"messages": []}, **key)[0] == 401
        assert server.text(CHATS["none"]) and server.client.models.list().data
        assert "API key" in server.get("/v1/models") and "ok" in server.get("/health")
    assert "POST /v1/chat/completions" in caplog.text and "a-ke" not in caplog.text


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_go_stop_their_generation(server, expected, stream):
    body = json.dumps({"messages": openai_chat(CHATS["two"]), "max_tokens": 4000, "stream": stream}).encode()
    status = 200 if stream else 499
    before = server.metric(f'requests_total{{status="{status}"}}')
    server.let.clear()
    with server.connect() as connection:
        connection.sendall(post_head(f"Content-Length: {len(body)}") + body)
        server.wait("requests_running 1")
        if stream:
            server.let.set()
            while b"data: " not in connection.recv(4096):
                pass
    server.wait(f'requests_total{{status="{status}"}} {before + 1:.0f}')
    server.let.set()
    server.wait("requests_running 0")
    assert server.made[-1] < 4000
    assert server.text(CHATS["turns"]) == expected["turns"][0]


def test_the_end_answers_what_is_running(folder, expected):
    with ThreadPoolExecutor(2) as pool:
        server = Running(folder).__enter__()
        first, kept = server.hold(pool, CHATS["turns"]), server.connection()
        assert server.post({}, connection=kept)[0] == 400
        ended = pool.submit(server.__exit__)
        while (answer := server.post({}, connection=kept))[0] == 400:  # until the shutdown has started
            pass
        assert answer[0] == 503 and "shutting down" in answer[1]["error"]["message"] and not ended.done()
        assert server.post({})[0] == 503 and "shutting down" in server.get("/health")  # new connections too
        server.let.set()
        ended.result()
        assert first.result() == expected["turns"][0]
    with pytest.raises(ConnectionRefusedError):
        server.post({})


def test_evaluation_gets_the_same_predictions_from_the_server(server, folder, tmp_path):
    generate_world(tmp_path / "world", 3, 12, seed=0, workers=1)
    common = ["--benchmark", "mmau", "--data", str(tmp_path / "world" / "test.json"), "--prompt", "audio-world"]
    common += ["--max-new-tokens", str(STEPS), "--output-dir"]
    here = ["--model", folder, "--dtype", "float32", "--device", "cpu"]
    there = ["--endpoint", server.url + "/v1", "--endpoint-model", "tiny"]
    assert evaluate.main([*common, str(tmp_path / "here"), *here]) == 0
    assert evaluate.main([*common, str(tmp_path / "there"), *there]) == 0
    local, served = (read_predictions(tmp_path / name).rows for name in ("here", "there"))
    assert len(local) == 12 and {row.status for row in served} == {ANSWERED}
    assert [row.reply for row in served] == [row.reply for row in local]
    assert len({row.reply for row in local}) > 3


@contextmanager
def started(folder):
    """The command in a separate process, its client, and what to ask it."""
    command = [sys.executable, "-m", "falcon3_audio.serving.serve", folder, "--port", "0"]
    command += ["--engine", "transformers", "--served-model-name", "tiny", "--api-key-env", "SERVER_KEY"]
    with subprocess.Popen(command, env=os.environ | {"SERVER_KEY": "k"}, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = next((line for line in process.stderr if "is served at" in line), None)
            assert line, process.wait()
            client = openai.OpenAI(base_url=line.split()[-1], api_key="k", max_retries=0)
            yield process, client, {"model": "tiny", "messages": openai_chat(CHATS["turns"]), "stream": True}
        finally:
            process.kill()


def test_the_command_serves_until_it_is_told_to_end(folder, expected):
    with started(folder) as (process, client, chat):
        stream = client.chat.completions.create(**chat, max_tokens=300)
        words = words_of([next(stream)])
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert (words + words_of(rest)).startswith(expected["turns"][0])
        assert rest[-1].choices[0].finish_reason == "length"
        process.stderr.read()
        assert process.wait(60) == 0


def test_a_second_signal_does_not_wait(folder):
    with started(folder) as (process, client, chat):
        stream = client.chat.completions.create(**chat, max_tokens=7000)
        next(stream)
        process.send_signal(signal.SIGINT)
        while "shutting down" not in httpx.get(f"{client.base_url}models").text:
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_what_cannot_be_served_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    wrong = {("--api-key-env", "NO_KEY"): "NO_KEY, which is not set", (): "nothing"}
    for options, reason in wrong.items():
        assert serve.main([str(tmp_path / "nothing"), "--engine", "transformers", *options]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("falcon3-audio serve: ") and reason in line


def test_a_port_that_is_taken_is_named(server, folder, capsys):
    port = server.url.rpartition(":")[2]
    assert serve.main([folder, "--engine", "transformers", "--port", port]) == 1
    assert f"127.0.0.1:{port} is not available" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_no_configuration(checkpoint, tmp_path, name):
    shutil.copytree(checkpoint, tmp_path / "broken")
    for content, said in (("{}", "one of its JSON files"), ("[]", f"{name} must contain a JSON object, got list")):
        (tmp_path / "broken" / name).write_text(content)
        if content == "[]" or name == "tokenizer.json":
            with pytest.raises(ValueError, match=said):
                load(str(tmp_path / "broken"))
