"""A checkpoint served by vLLM: the same numbers as in transformers, every way to ask, and bad clients.

`make test-serving`, or `TEST_SERVING=1 pytest tests/serving/test_vllm.py`: builds vLLM's environment once (1 to 5
minutes, 4 GB in .cache/vllm), and starts two servers: one with `falcon3-audio serve`, one with the
checkpoint's own code.
"""

import base64
import io
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import openai
import pytest
import soundfile
import torch
from peft import LoraConfig, get_peft_model
from tiny import tone
from transformers import AutoModelForMultimodalLM, AutoProcessor
from vllm_server import KEY, MODEL, Server, chat_body, input_audio, make_environment

from falcon3_audio import LORA_TARGET_MODULES
from falcon3_audio.compose import compose
from falcon3_audio.evaluation import evaluate
from falcon3_audio.evaluation.predictions import ANSWERED, read_predictions
from falcon3_audio.serving.vllm_plugin import ARCHITECTURE
from falcon3_audio.training.world.audio_world import generate_world


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        not os.environ.get("TEST_SERVING"), reason="builds an environment of 4 GB: `make test-serving` runs it"
    ),
]

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = ROOT / "training" / "tiny_backbones"
STEPS = 6  # tokens compared per answer
TOP = 5  # log-probabilities compared at each step
TOLERANCE = 1e-4
QUESTION = {"type": "text", "text": "What do you hear?"}
ENGINE = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]


def wav(seconds: float, pitch: float = 440.0, rate: int = 16_000, channels: int = 1, last=None, **form) -> bytes:
    """A wav file of tones; `last` replaces the last sample."""
    samples = np.stack([tone(seconds, pitch + channel, rate) for channel in range(channels)], axis=1)
    if last is not None:
        samples[-1] = last
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **form)
    return file.getvalue()


def audio(*args, **kwargs) -> dict:
    return {"type": "audio", "audio": wav(*args, **kwargs)}


def ask(*content) -> list[dict]:
    return [{"role": "user", "content": [*content, QUESTION]}]


SHORT = {f"{seconds} s": ask(audio(seconds, 300 + 40 * seconds)) for seconds in (0.1, 0.5, 1.3, 5)}
RATES = {
    "8 kHz": ask(audio(1.1, rate=8_000)),
    "44.1 kHz, stereo": ask(audio(2.3, rate=44_100, channels=2)),
}
SEVERAL = {
    "two": ask(audio(1.7), audio(0.4, 700)),
    "three": ask(audio(0.3, 500), audio(12, 350), audio(3.1, 900)),
    "turns": [
        *ask(audio(2.2, 520)),
        {"role": "assistant", "content": "a bell"},
        *ask(audio(0.9, 880)),
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "Which came first?"},
    ],
    "none": [{"role": "user", "content": "Which animal is it?"}],
}
# Whole and partial windows, more than the engine's step size (2,048 tokens), and the limit of 300 s.
LONG = {f"{seconds} s": ask(audio(seconds, 440 + seconds)) for seconds in (30, 45.3, 75, 120, 300)}
LONG["160 s and 161 s"] = ask(audio(160, 610), audio(161, 620))
CHATS = SHORT | RATES | SEVERAL | LONG


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)  # for the projector
    folder = tmp_path_factory.mktemp("served") / "checkpoint"
    return compose(str(BACKBONES / "whisper"), str(BACKBONES / "llm"), folder)


@pytest.fixture(scope="module")
def transformers_model(checkpoint):
    return load(checkpoint)


def load(checkpoint):
    model = AutoModelForMultimodalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    # Like the requests to the servers: generation continues after the end token, and no token is suppressed.
    model.generation_config.eos_token_id = None
    model.generation_config.suppress_tokens = None
    return model


@pytest.fixture(scope="module")
def expected(transformers_model, checkpoint):
    """Tokens and log-probabilities in transformers, `{name: [(token, {token: log-probability of the TOP}), ...]}`."""
    return {name: reference(transformers_model, checkpoint, chat) for name, chat in CHATS.items()}


@torch.no_grad()
def reference(model, checkpoint, chat):
    processor = AutoProcessor.from_pretrained(checkpoint)
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    settings = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    answer = model.generate(**inputs, **settings)
    tokens = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    return list(zip(tokens, (row[0].log_softmax(-1) for row in answer.logits), strict=True))


@pytest.fixture(scope="module")
def adapter(transformers_model, checkpoint, tmp_path_factory):
    """(folder, expected): an adapter on the language model, as saved by a run, and its answer to "1.3 s"."""
    torch.manual_seed(1)
    config = LoraConfig(r=8, target_modules=LORA_TARGET_MODULES["language_model"], init_lora_weights=False)
    adapted = get_peft_model(load(checkpoint), config).eval()
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(folder)
    return folder, reference(adapted, checkpoint, CHATS["1.3 s"])


@pytest.fixture(scope="module")
def environment():
    make_environment()


@pytest.fixture(scope="module")
def server(environment, checkpoint, adapter, tmp_path_factory):
    """Started by `falcon3-audio serve`, with the plug-in and without remote code."""
    command = ["-m", "falcon3_audio.serving.serve", str(checkpoint), "--engine", "vllm", "--served-model-name", MODEL]
    command += ["--api-key-env", "TEST_KEY", "--", *ENGINE, "--enable-lora", "--max-lora-rank", "8"]
    command += ["--lora-modules", f"adapted={adapter[0]}"]
    with Server(command, tmp_path_factory.mktemp("serve") / "log") as running:
        yield running


@pytest.fixture(scope="module")
def remote_code_server(environment, checkpoint, tmp_path_factory):
    """Plain vLLM: no plug-in, only the code in the checkpoint."""
    command = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint), "--trust-remote-code"]
    # The backend assumes that no clip is longer than a window, so the steps must be large enough for longer ones.
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--max-num-batched-tokens", "8192", *ENGINE]
    with Server(command, tmp_path_factory.mktemp("remote-code") / "log", {"VLLM_PLUGINS": "none"}) as running:
        yield running


def answer(server, chat, **fields):
    """The same as `reference`, from the server."""
    settings = {"max_tokens": STEPS, "ignore_eos": True, "logprobs": True, "top_logprobs": TOP}
    status, body = server.chat(chat, **settings, return_tokens_as_token_ids=True, **fields)
    assert status == 200, body
    steps = body["choices"][0]["logprobs"]["content"]
    return [(token_id(step), {token_id(other): other["logprob"] for other in step["top_logprobs"]}) for step in steps]


def token_id(entry) -> int:
    return int(entry["token"].removeprefix("token_id:"))


def assert_equal(got, wanted, name=""):
    assert [token for token, _ in got] == [token for token, _ in wanted], name
    for (_, top), (_, logprobs) in zip(got, wanted, strict=True):
        assert len(top) == TOP and set(top) == set(logprobs.topk(TOP).indices.tolist()), name
        for token, logprob in top.items():
            assert abs(logprob - logprobs[token].item()) < TOLERANCE, name


def test_the_expected_answers_depend_on_the_sound(expected):
    firsts = [steps[0][1] for steps in expected.values()]
    for index, first in enumerate(firsts):
        assert all((first - other).abs().max() > 100 * TOLERANCE for other in firsts[:index])


@pytest.mark.parametrize("name", CHATS)
def test_one_at_a_time_tokens_and_log_probabilities_are_those_of_transformers(server, expected, name):
    assert_equal(answer(server, CHATS[name]), expected[name])


def test_mixed_batches_give_the_same(server, expected):
    with ThreadPoolExecutor(len(CHATS)) as pool:
        for name, got in zip(CHATS, pool.map(lambda chat: answer(server, chat), CHATS.values())):
            assert_equal(got, expected[name], name)


def test_the_checkpoints_own_code_gives_the_same(server, remote_code_server, expected):
    assert f"Resolved architecture: {ARCHITECTURE}" in server.log.read_text()
    assert "Resolved architecture: TransformersMultiModalForCausalLM" in remote_code_server.log.read_text()
    chats = SHORT | SEVERAL | LONG
    for name in ("1.3 s", "two", "turns", "300 s"):
        assert_equal(answer(remote_code_server, chats[name]), expected[name], name)
    with ThreadPoolExecutor(len(chats)) as pool:
        for name, got in zip(chats, pool.map(lambda chat: answer(remote_code_server, chat), chats.values())):
            assert_equal(got, expected[name], name)


def test_a_placeholder_beyond_the_vocabulary(environment, tmp_path):
    """It is looked up neither in the embedding nor by penalties on prompt tokens."""
    torch.manual_seed(0)
    folder = compose(str(BACKBONES / "whisper"), str(BACKBONES / "llm"), tmp_path / "model", audio_token="<sound>")
    model = load(folder)
    assert not model.config.audio_token_is_embedded
    command = ["-m", "falcon3_audio.serving.serve", str(folder), "--engine", "vllm", "--served-model-name", MODEL]
    with Server([*command, "--api-key-env", "TEST_KEY", "--", *ENGINE], tmp_path / "log") as server:
        for name in ("1.3 s", "two", "turns", "none"):
            wanted = reference(model, folder, CHATS[name])
            assert_equal(answer(server, CHATS[name]), wanted, name)
            assert server.chat(CHATS[name], max_tokens=4, repetition_penalty=1.3)[0] == 200


def test_an_adapter_is_served_beside_its_base(server, adapter, expected):
    assert_equal(answer(server, CHATS["1.3 s"], model="adapted"), adapter[1])
    assert_equal(answer(server, CHATS["1.3 s"]), expected["1.3 s"])
    assert (adapter[1][0][1] - expected["1.3 s"][0][1]).abs().max() > 100 * TOLERANCE


def test_audio_urls_hold_the_same_audio(server, expected):
    url = "data:audio/wav;base64," + base64.b64encode(CHATS["1.3 s"][0]["content"][0]["audio"]).decode()
    assert_equal(answer(server, ask({"type": "audio_url", "audio_url": {"url": url}})), expected["1.3 s"])


def test_streams_are_the_answer_in_parts(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY)
    body = chat_body(CHATS["5 s"], max_tokens=12, extra_body={"ignore_eos": True})
    parts = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**body, stream=True)]
    assert len([part for part in parts if part]) > 3
    assert "".join(part or "" for part in parts) == client.chat.completions.create(**body).choices[0].message.content


def test_transcriptions_are_answers_to_a_request_for_one(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY)
    clip = wav(3.3, 610)

    def transcribe(data, **fields):
        settings = {"temperature": 0, "extra_body": {"max_completion_tokens": 12}}
        return client.audio.transcriptions.create(model=MODEL, file=("clip.wav", data), **settings, **fields).text

    def asked(text):
        chat = [{"role": "user", "content": [{"type": "audio", "audio": clip}, {"type": "text", "text": text}]}]
        return server.chat(chat, max_tokens=12)[1]["choices"][0]["message"]["content"]

    assert transcribe(clip) == asked("Transcribe the speech.") != ""
    assert transcribe(clip, prompt="It is about dogs.") == asked("Transcribe the speech. It is about dogs.")
    # In parts of up to 30 s.
    assert len(transcribe(wav(75)).split()) > len(transcribe(wav(20)).split())


def test_health_metrics_and_key(server):
    assert server.get("/health") == "" and server.running() == 0
    for key in ("", "wrong"):
        status, body = server.post(chat_body(CHATS["0.1 s"]), key=key)
        assert status == 401 and "Unauthorized" in json.dumps(body)


TEXT_AS_WAV = base64.b64encode(b"This is a text. " * 100).decode()
BAD = {
    "broken base64": (ask(input_audio("UklGR!!!")), "Non-base64"),
    "a text file": (ask(input_audio(TEXT_AS_WAV)), "Invalid or corrupted audio"),
    "nothing": (ask(input_audio("")), "is empty"),
    "zero seconds": (ask(audio(0)), "The audio is empty: 0 samples"),
    "not a number": (ask(audio(1, subtype="FLOAT", last=np.nan)), "1 NaN or infinite samples"),
    "over the limit": (ask(audio(300.5)), "300.5"),
    "elsewhere": (
        ask({"type": "audio_url", "audio_url": {"url": "http://127.0.0.1/x.wav"}}),
        "fetching-is-off.invalid",
    ),
    "an hour": (ask(audio(3600, rate=1_500)), "maximum allowed duration of 300s"),
    "1,000 audios": (ask(*[audio(0.1)] * 1000), "At most 8 audio"),
    "more than the context": (ask(audio(170), audio(171)), "maximum context length"),
    "200 MB": (ask(input_audio("A" * 200_000_000)), "larger than this server's limit, 64 MiB"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_the_reason(server, expected, name):
    chat, reason = BAD[name]
    status, body = server.chat(chat)
    assert 400 <= status < 500 and reason in body["error"]["message"], (status, body)
    assert_equal(answer(server, CHATS["0.5 s"]), expected["0.5 s"])


def test_bad_files_to_transcribe_are_refused_with_the_reason(server, expected):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)
    files = {b"This is a text.": "Invalid or corrupted audio", wav(0): "empty", wav(301): "maximum allowed duration"}
    for data, reason in files.items():
        with pytest.raises(openai.BadRequestError, match=reason):
            client.audio.transcriptions.create(model=MODEL, file=("clip.wav", data))
    assert_equal(answer(server, CHATS["0.5 s"]), expected["0.5 s"])


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
    return condition()


def test_clients_that_go_in_mid_stream_leave_nothing_behind(server, expected):
    body = json.dumps(chat_body(CHATS["5 s"], stream=True, max_tokens=4000, ignore_eos=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(20):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60))
            connection.sendall(head.encode() + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert wait_for(lambda: server.running() == 20)
    assert wait_for(lambda: server.running() == 0)
    assert_equal(answer(server, CHATS["turns"]), expected["turns"])


def test_two_hundred_requests_at_once(server, transformers_model, checkpoint):
    seconds = np.random.default_rng(0).uniform(0.1, 20, 20).round(2).tolist()
    chats = [ask(audio(length, 200 + 30 * index)) for index, length in enumerate(seconds)]
    wanted = [reference(transformers_model, checkpoint, chat) for chat in chats]
    with ThreadPoolExecutor(200) as pool:
        for index, got in enumerate(pool.map(lambda chat: answer(server, chat), chats * 10)):
            assert_equal(got, wanted[index % 20], seconds[index % 20])


def test_evaluation_gets_the_same_predictions_from_the_server(server, checkpoint, tmp_path, monkeypatch):
    generate_world(tmp_path / "world", 3, 12, seed=0, workers=1)
    common = ["--benchmark", "mmau", "--data", str(tmp_path / "world" / "test.json"), "--prompt", "audio-world"]
    common += ["--max-new-tokens", "12", "--output-dir"]
    here = ["--model", str(checkpoint), "--dtype", "float32", "--device", "cpu"]
    monkeypatch.setenv("TEST_KEY", KEY)
    there = ["--endpoint", server.url + "/v1", "--endpoint-model", MODEL, "--api-key-env", "TEST_KEY"]
    assert evaluate.main([*common, str(tmp_path / "here"), *here]) == 0
    assert evaluate.main([*common, str(tmp_path / "there"), *there]) == 0
    local, served = (read_predictions(tmp_path / name).rows for name in ("here", "there"))
    assert len(local) == 12 and {row.status for row in served} == {ANSWERED}
    assert [row.reply for row in served] == [row.reply for row in local]
    assert len({row.reply for row in local}) > 3
