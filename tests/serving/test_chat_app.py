"""The API over a socket, with an engine that echoes its input: OpenAI's client, browsers, and bad clients."""

import gzip
import http.client
import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_server import answer_of, post_head

from falcon3_audio.serving import http_server, request_limits
from falcon3_audio.serving.chat_app import CHAT, TRANSCRIPTION, ChatApp
from falcon3_audio.serving.chat_requests import ChatRequest
from falcon3_audio.serving.generation_queue import GenerationFailed, Part, Sampling
from falcon3_audio.serving.http_server import HttpServer
from falcon3_audio.serving.request_audio import RefusedRequest
from falcon3_audio.serving.request_limits import Limits, RequestLimits
from falcon3_audio.serving.transcription_requests import Transcription, Window


WORDS = ["a", "dog", "barks", "and", "a", "bell", "rings"]
CHAT_FIELDS = {"model": "echo", "messages": [{"role": "user", "content": " ".join(WORDS)}]}


class Echo:
    """Readers and queue in one: the answer is the last message, word by word, and starts only once `let` is set."""

    def __init__(self):
        self.let, self.broken, self.stopped = threading.Event(), threading.Event(), threading.Event()
        self.let.set()
        self.running = self.waiting = 0

    def chat(self, body):
        try:
            fields = json.loads(body)
        except ValueError as error:
            raise RefusedRequest(f"no JSON: {error}") from error
        if fields.get("model") != "echo":
            raise RefusedRequest(f"There is no model {fields.get('model')!r} here.", "model", 404)
        if wrong := {"bad", "\ud800"} & fields.keys():
            raise RefusedRequest("a field", *wrong)
        return ChatRequest(fields["messages"], Sampling(99), 5, 0.5, stream=bool(fields.get("stream")))

    def read(self, body, content_type):
        """The transcript is the number of zero bytes in the form, then a second window with "and more"."""
        assert content_type.startswith("multipart/form-data")
        said = (f"{body.count(0)} bytes", "and more")
        chats = [ChatRequest([{"role": "user", "content": text}], Sampling(99), 5, 0.5) for text in said]
        windows = [Window(0, 30, chats[0]), Window(30, 31, chats[1])]
        return Transcription(windows, "json", None, b'name="stream"' in body)

    def submit(self, generation):
        threading.Thread(target=self._answer, args=(generation,), daemon=True).start()

    def _answer(self, generation):
        assert self.let.wait(60)
        text = generation.messages[-1]["content"]
        words = text.split(" ") if generation.stream else [text]
        for number, word in enumerate(words, 1):
            if word == "long":
                while not generation.cancelled.is_set():
                    generation.parts.put(Part("long " * 1000, 1, [], None))
                    time.sleep(0.001)
            if word == "fail":
                generation.parts.put(GenerationFailed("The model failed."))
                return
            if word == "wait":
                generation.cancelled.wait(60)
            if generation.cancelled.is_set():
                self.stopped.set()
                return
            last = number == len(words)
            generation.parts.put(Part(word if last else word + " ", number, [], "stop" if last else None))


class Running:
    def __init__(self, key=None, **limits):
        self.engine = Echo()
        self.app = ChatApp("echo", self.engine, self.engine, self.engine, Limits(**limits), key, "127.0.0.1")
        self.server = HttpServer(self.app, self.app.limits, "127.0.0.1", 0)
        self.url, self.port = self.server.url, int(self.server.url.rpartition(":")[2])
        self.client = openai.OpenAI(base_url=self.url + "/v1", api_key=key or "none", max_retries=0, timeout=30)

    def ask(self, method="GET", path="/health", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return SimpleNamespace(status=answer.status, headers=answer.headers, text=answer.read().decode())

    def text(self, **fields):
        return self.client.chat.completions.create(**(CHAT_FIELDS | fields)).choices[0].message.content

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 30)

    def metrics(self):
        families = text_string_to_metric_families(self.ask(path="/metrics").text)
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }


@contextmanager
def running(**settings):
    served = Running(**settings)
    with served.server:
        try:
            yield served
        finally:
            served.engine.let.set()


@pytest.fixture(scope="module")
def server():
    with running() as served:
        yield served


def say(text):
    return {"messages": [{"role": "user", "content": text}]}


def test_openais_client(server):
    assert server.text() == " ".join(WORDS)
    stream = server.client.chat.completions.create(**CHAT_FIELDS, stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    assert [chunk.delta.content.strip() for chunk in chunks] == WORDS and chunks[-1].finish_reason == "stop"
    heard = server.client.audio.transcriptions.create(model="echo", file=("a.wav", io.BytesIO(bytes(3_000_000))))
    assert heard.text == "3000000 bytes and more" and heard.usage.total_tokens == 12
    assert [model.id for model in server.client.models.list()] == ["echo"]
    assert server.client.models.retrieve("echo").owned_by == "falcon3-audio"


@pytest.mark.parametrize(
    ("fields", "kind", "param", "code", "type"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model", "model_not_found", "invalid_request_error"),
        ({"extra_body": {"bad": 1}}, openai.BadRequestError, "bad", None, "invalid_request_error"),
        (say("fail"), openai.InternalServerError, None, None, "server_error"),
    ],
)
def test_errors_are_those_of_openais_client(server, fields, kind, param, code, type):
    for stream in (False, True):
        with pytest.raises(kind) as error:
            server.client.chat.completions.create(**(CHAT_FIELDS | fields), stream=stream)
        assert (error.value.param, error.value.code, error.value.type) == (param, code, type)


def test_half_a_character_of_a_request_is_quoted(server):
    body = json.dumps(CHAT_FIELDS | {"\ud800": 1})
    answer = server.ask("POST", CHAT, body, **{"Content-Type": "application/json"})
    assert answer.status == 400 and json.loads(answer.text)["error"]["param"] == "\ud800"


def test_keys(server):
    with running(key="a-key") as guarded:
        assert guarded.text() and guarded.client.models.list().data
        assert guarded.ask().status == guarded.ask(path="/metrics").status == 200
        stranger = openai.OpenAI(base_url=guarded.url + "/v1", api_key="another", max_retries=0)
        for ask in (stranger.models.list, lambda: stranger.chat.completions.create(**CHAT_FIELDS)):
            with pytest.raises(openai.AuthenticationError, match="API key") as error:
                ask()
            assert (error.value.type, error.value.code) == ("authentication_error", "invalid_api_key")
        # A large body sent without the key is read, so that the client can read the reason.
        assert guarded.ask("POST", CHAT, b"a" * 30_000_000, Connection="close").status == 401


def test_a_stream_that_fails_says_so(server):
    stream = server.client.chat.completions.create(**(CHAT_FIELDS | say("a fail")), stream=True)
    assert next(stream).choices[0].delta.content == "a "
    with pytest.raises(openai.APIError, match="The model failed"):
        next(stream)


def test_a_transcription_as_a_stream(server):
    ask = server.client.audio.transcriptions.create
    *deltas, done = ask(model="echo", file=("a.wav", b"x"), stream=True)
    assert [event.delta for event in deltas] == ["0", " bytes", " and", " more"]
    assert (done.type, done.text) == ("transcript.text.done", "0 bytes and more")
    assert (done.usage.input_tokens, done.usage.output_tokens) == (10, 4)


def test_translations_are_refused_by_name(server):
    with pytest.raises(openai.NotFoundError, match="has no translations") as error:
        server.client.audio.translations.create(model="echo", file=("a.wav", b"x"))
    assert error.value.type == "invalid_request_error"


def test_what_is_not_there(server):
    for method, path, status in (("GET", "/no", 404), ("POST", "/v1/no", 404), ("GET", CHAT, 405), ("PUT", CHAT, 405)):
        answer = server.ask(method, path, b"{}" if method != "GET" else None)
        assert answer.status == status
        error = json.loads(answer.text)["error"]
        assert error["message"] == f"There is no {method} {path} here." and error["type"] == "invalid_request_error"
    assert "POST" in answer.headers["Allow"]


def test_head(server):
    for path in ("/health", "/v1/models", "/v1/models/echo", "/metrics"):
        answer = server.ask("HEAD", path)
        assert answer.status == 200 and answer.text == "" and int(answer.headers["Content-Length"]) > 0


def test_bodies_without_a_length(server):
    def blocks():
        yield from [b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\n', *[bytes(1000)] * 500, b"\r\n--B--"]

    answer = server.ask("POST", TRANSCRIPTION, blocks(), **{"Content-Type": "multipart/form-data; boundary=B"})
    assert answer.status == 200 and json.loads(answer.text)["text"] == "500000 bytes and more"
    body = iter([json.dumps(CHAT_FIELDS).encode()])
    assert server.ask("POST", CHAT, body, **{"Content-Type": "application/json"}).status == 200
    with running(max_body_mib=0.1) as small:
        answer = small.ask("POST", TRANSCRIPTION, blocks(), **{"Content-Type": "multipart/form-data; boundary=B"})
        assert answer.status == 413


def test_compressed_bodies(server):
    form = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--B--'
    for path, body, kind in (
        (CHAT, json.dumps(CHAT_FIELDS).encode(), "application/json"),
        (TRANSCRIPTION, form, "multipart/form-data; boundary=B"),
    ):
        compressed = {"Content-Type": kind, "Content-Encoding": "gzip"}
        answer = server.ask("POST", path, gzip.compress(body), **compressed)
        assert answer.status == 415 and "got gzip. Send it uncompressed" in json.loads(answer.text)["error"]["message"]
        assert server.ask("POST", path, body, **compressed | {"Content-Encoding": "identity"}).status == 200


def preflight(server, origin):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    return server.ask("OPTIONS", CHAT, Origin=origin, **asked)


def test_other_sites_may_ask_where_they_are_named(server):
    page, allow = "https://a.example", "Access-Control-Allow-Origin"
    with running(key="a-key", allowed_origins=(page,)) as opened:
        answer = preflight(opened, page)
        assert answer.status == 200 and answer.headers[allow] == page
        assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"]
        answer = opened.ask("POST", CHAT, b"{}", Origin=page)
        assert answer.status == 401 and answer.headers[allow] == page  # the page can read the reason
        assert opened.ask(Origin=page).headers[allow] == page
        for ask in (preflight(opened, "https://b.example"), opened.ask(Origin="https://b.example")):
            assert ask.status in (400, 403) and ask.headers[allow] is None
    for ask in (preflight(server, page), server.ask(Origin=page)):  # no origin is allowed by default
        assert ask.status in (405, 403) and ask.headers[allow] is None


def test_metrics(server):
    before = server.metrics()
    server.text()
    server.client.audio.transcriptions.create(model="echo", file=("a.wav", b"x"))
    with pytest.raises(openai.NotFoundError):
        server.text(model="gpt")
    now = server.metrics()
    grown = {name: now[name] - before.get(name, 0) for name in now}
    name = "falcon3_audio_"
    assert grown[name + "requests_total", "200"] == 2 and grown[name + "requests_total", "404"] == 1
    assert grown[name + "request_seconds_count",] == grown[name + "request_seconds_bucket", "+Inf"] == 2
    assert 0 < grown[name + "request_seconds_sum",] < 60
    assert grown[name + "prompt_tokens_total",] == 15 and grown[name + "audio_seconds_total",] == 1.5
    answer = server.ask(path="/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    described = [line.split()[1:3] for line in answer.text.splitlines() if line.startswith("# ")]
    names = {sample.rsplit("_", 1)[0] if "seconds_" in sample else sample for sample, *_ in now}
    assert {kind for kind, _ in described} == {"HELP", "TYPE"} and names
    assert {known for kind, known in described if kind == "HELP"} == {
        known for kind, known in described if kind == "TYPE"
    }


def test_health_says_when_the_device_failed():
    with running() as served:
        assert (served.ask().status, json.loads(served.ask().text)) == (200, {"status": "ok"})
        served.engine.broken.set()
        assert (served.ask().status, json.loads(served.ask().text)) == (503, {"status": "the device failed"})


def test_slow_bodies_lock_nobody_out():
    with running(max_requests=2) as served, ExitStack() as stack:
        for _ in range(60):
            slow = stack.enter_context(served.connect())
            slow.sendall(post_head("Content-Length: 900") + b"{")
        assert served.text() == " ".join(WORDS)


@pytest.mark.parametrize("text", ["a wait", "wait"])
def test_clients_that_go_stop_their_generation(text):
    with running(max_requests=1) as served:
        body = json.dumps(CHAT_FIELDS | say(text) | {"stream": " " in text}).encode()
        with served.connect() as connection:
            connection.sendall(post_head(f"Content-Length: {len(body)}") + body)
            if " " in text:
                assert answer_of(connection).status == 200
            else:
                time.sleep(0.2)
        assert served.engine.stopped.wait(30)
        status = "200" if " " in text else "499"
        while ("falcon3_audio_requests_total", status) not in served.metrics():
            time.sleep(0.01)
        assert served.text() == " ".join(WORDS)  # the place is free again


def test_a_client_that_reads_nothing_is_cut(monkeypatch):
    monkeypatch.setattr(request_limits, "IDLE", 0.5)
    monkeypatch.setattr(http_server, "IDLE", 0.5)
    with running(max_requests=1) as served, served.connect() as connection:
        body = json.dumps(CHAT_FIELDS | say("long") | {"stream": True}).encode()
        connection.sendall(post_head(f"Content-Length: {len(body)}") + body)
        while ("falcon3_audio_requests_total", "200") not in served.metrics():
            time.sleep(0.05)
        assert served.text() == " ".join(WORDS)
        while len(served.server.server_state.connections) > 1:  # OpenAI's client keeps its connection for a while
            time.sleep(0.05)


def test_an_answer_that_is_still_on_its_way_is_not_cut(monkeypatch):
    """The request finishes between two idle checks, and the client reads the answer slowly."""
    monkeypatch.setattr(http_server, "IDLE", 0.5)
    answer = bytes(2**24)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    limits = RequestLimits(app, Limits())
    with ExitStack() as stack:
        server = stack.enter_context(HttpServer(limits, limits, "127.0.0.1", 0))
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        connection = stack.enter_context(socket.create_connection(address, timeout=30))
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        received = 0
        while block := connection.recv(2**18):
            received += len(block)
            time.sleep(0.03)
    assert received > len(answer)


def test_connections_without_requests_are_cut(monkeypatch):
    monkeypatch.setattr(http_server, "IDLE", 0.3)
    with running() as served:
        for begun in (b"", b"POST / HT", post_head("Content-Length: 2") + b"{}POST"):
            with served.connect() as connection:
                connection.sendall(begun)
                if begun.endswith(b"{}POST"):
                    assert answer_of(connection).status == 404
                try:
                    while connection.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
        with served.connect() as connection:  # a connection that waits for its answer is not idle
            served.engine.let.clear()
            body = json.dumps(CHAT_FIELDS).encode()
            connection.sendall(post_head(f"Content-Length: {len(body)}") + body)
            time.sleep(1)
            served.engine.let.set()
            assert answer_of(connection).status == 200


def test_the_end_answers_what_is_running_and_not_what_has_not_arrived(monkeypatch):
    monkeypatch.setattr(http_server, "FLUSH", 1)
    with ThreadPoolExecutor(2) as pool:
        served = Running()
        served.server.__enter__()
        served.engine.let.clear()
        first, kept = pool.submit(served.text), served.connect()
        slow = served.connect()
        slow.sendall(post_head("Content-Length: 900") + b"{")
        while not served.app.limits.running:
            time.sleep(0.01)
        ended = pool.submit(served.server.__exit__)
        while not served.app.limits.draining:
            time.sleep(0.01)
        assert served.ask().status == served.ask("POST", CHAT, b"{}").status == 503  # over new connections
        assert served.ask(path="/metrics").status == 200
        kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_of(kept).status == 503 and not ended.done()
        served.engine.let.set()
        assert first.result() == " ".join(WORDS)
        ended.result(30)
        slow.close()
    with pytest.raises(ConnectionRefusedError):
        served.ask()


HOSTILE = [
    post_head("Content-Length: 5") + b'{"a":1}{"b":2}',  # longer than announced
    post_head("Content-Length: 500") + b"{}",  # shorter than announced, then disconnects
    post_head("Content-Length: 2", "Content-Length: 30") + b"{}" + b"GET /health HTTP/1.1\r\n\r\n",
    post_head("Content-Length: 2", "A: " + "a" * 100_000) + b"{}",
    post_head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n{}",
    post_head("Transfer-Encoding: chunked") + b"ZZ\r\n{}\r\n",
    post_head("Content-Length: 12") + b"[" * 12,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
    b"GET / HTTP/1.1\r\n\r\n",  # without a Host header
    b"\r\n" * 5000,
]


def test_bad_clients_among_many_change_no_answer(server):
    def good(number):
        text = f"number {number}"
        if number % 2:
            return server.text(**say(text)) == text
        stream = server.client.chat.completions.create(**(CHAT_FIELDS | say(text)), stream=True)
        return "".join(chunk.choices[0].delta.content for chunk in stream) == text

    def bad(number):
        with server.connect() as connection:
            connection.sendall(HOSTILE[number % len(HOSTILE)])
            if number % 3:  # others disconnect immediately
                connection.settimeout(0.3)
                with suppress(OSError):
                    connection.recv(10)
        return True

    asked = [bad if number % 20 == 0 else good for number in range(400)]
    with ThreadPoolExecutor(16) as pool:
        assert all(
            pool.map(lambda number: asked[number](number // 20 if asked[number] is bad else number), range(400))
        )
    assert server.text() == " ".join(WORDS)
    while server.app.limits.running:  # a place becomes free shortly after its answer
        time.sleep(0.01)
