"""Limits of requests: driven message by message as a server would, once by a real server; those of our own HTTP server."""

import asyncio
import http.client
import json
import threading
from contextlib import suppress

import pytest
import uvicorn
from running_server import Running, answer_of, post_head

from falcon3_audio.serving.http_handler import CHAT
from falcon3_audio.serving.request_limits import MIB, Limits, RequestLimits


class Echo:
    """Answers with the body it was given, after `wait` is set; what it heard is in `bodies`."""

    def __init__(self, begin_first: bool = False):
        self.bodies: list[bytes] = []
        self.wait = asyncio.Event()
        self.wait.set()
        self.begin_first = begin_first
        self.cancelled = 0
        self.types: list[str] = []

    async def __call__(self, scope, receive, send):
        self.types.append(scope["type"])
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        if self.begin_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await self.wait.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if not self.begin_first:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Client:
    """One request: `parts` are its body's, `None` is where the client goes away; after them it waits."""

    def __init__(self, *parts, length=None, method="POST", kind="http", path="/v1/chat/completions", key=None):
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        headers += [] if key is None else [(b"authorization", key)]
        self.scope = {"type": kind, "method": method, "headers": headers, "path": path}
        self.messages = [
            {"type": "http.disconnect"}
            if part is None
            else {"type": "http.request", "body": part, "more_body": index < len(parts) - 1}
            for index, part in enumerate(parts)
        ]
        self.sent = []

    async def receive(self):
        if not self.messages:
            await asyncio.Event().wait()
        return self.messages.pop(0)

    async def send(self, message):
        self.sent.append(message)

    async def ask(self, app):
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def error(self):
        return json.loads(self.body)["error"]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 30))


def test_a_body_up_to_the_limit_arrives_whole():
    async def check():
        echo = Echo()
        app = RequestLimits(echo, Limits(max_body_mib=1))
        parts = [b"a" * (MIB - 10), b"b" * 4, b"c" * 6]
        for length in (MIB, None):
            client = await Client(*parts, length=length).ask(app)
            assert client.status == 200 and client.body == b"".join(parts)
        assert (await Client(b"").ask(app)).body == b""

    run(check())


@pytest.mark.parametrize("length", [MIB + 1, None], ids=["announced", "in parts"])
def test_a_larger_body_is_read_and_refused(length):
    async def check():
        echo = Echo()
        client = Client(b"a" * MIB, b"b", length=length)
        await client.ask(RequestLimits(echo, Limits(max_body_mib=1)))
        assert client.status == 413 and client.error["code"] == 413
        assert client.error["message"] == "The body is larger than this server's limit, 1 MiB."
        assert echo.bodies == [] and client.messages == []

    run(check())


def test_too_many_at_once_are_told_to_come_again():
    async def check():
        echo = Echo()
        echo.wait.clear()
        app = RequestLimits(echo, Limits(max_requests=2))
        first = [asyncio.create_task(Client(b"x").ask(app)) for _ in range(2)]
        while len(echo.bodies) < 2:
            await asyncio.sleep(0)
        third = await Client(b"y", b"y").ask(app)
        assert third.status == 429 and "2 requests at once" in third.error["message"]
        assert (b"retry-after", b"1") in third.sent[0]["headers"] and third.messages == []
        assert len(echo.bodies) == 2
        health = asyncio.create_task(Client(b"", method="GET").ask(app))  # has no limits
        while len(echo.bodies) < 3:
            await asyncio.sleep(0)
        echo.wait.set()
        assert {task.status for task in await asyncio.gather(*first, health)} == {200}
        assert (await Client(b"z").ask(app)).status == 200

    run(check())


def test_who_does_not_show_the_key_is_not_read(monkeypatch):
    async def check():
        echo = Echo()
        app = RequestLimits(echo, Limits(max_requests=1))
        for key in (None, b"", b"a-key", b"Bearer a-ke", b"Basic a-key", b"Bearer \xff"):
            client = Client(b"a", b"b", key=key)
            await client.ask(app)
            assert client.status == client.error["code"] == 401 and "API key" in client.error["message"]
            assert len(client.messages) == 2 and echo.bodies == []
        for client in (
            Client(b"a", key=b"Bearer a-key"),
            Client(b"a", key=b"bearer a-key"),
            Client(b"a", path="/tokenize"),
            Client(b"a", method="GET"),  # is vLLM's to refuse
        ):
            assert (await client.ask(app)).status == 200
        below = Client(b"a", path="/models/v1/chat/completions")
        below.scope["root_path"] = "/models"
        assert (await below.ask(app)).status == 401

    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    run(check())


def test_what_is_no_request_passes():
    echo = Echo()
    run(Client(kind="lifespan").ask(RequestLimits(echo, Limits(max_requests=1))))
    assert echo.types == ["lifespan"]


@pytest.mark.parametrize("parts", [(None,), (b"a", None)])
def test_a_client_that_goes_while_it_sends_is_forgotten(parts):
    async def check():
        echo = Echo()
        app = RequestLimits(echo, Limits(max_requests=1))
        client = await Client(*parts).ask(app)
        assert echo.bodies == [] and client.sent == []
        assert (await Client(b"z").ask(app)).status == 200  # its place is free again

    run(check())


def test_the_application_learns_that_a_client_has_gone():
    async def application(scope, receive, send):
        heard.extend([await receive(), await receive()])

    heard: list[dict] = []
    client = Client(b"a", None)
    client.messages[0]["more_body"] = False
    run(client.ask(RequestLimits(application, Limits())))
    assert heard == [
        {"type": "http.request", "body": b"a", "more_body": False},
        {"type": "http.disconnect"},
    ]


def test_time_limits():
    async def check():
        limits = Limits(timeout=0.05, max_requests=1)
        slow = Client(b"a", b"b")
        slow.messages.pop()
        await slow.ask(RequestLimits(Echo(), limits))
        assert (
            slow.status == 408
            and slow.error["message"] == "The body did not arrive within this server's limit, 0.05 s."
        )

        echo = Echo()
        echo.wait.clear()
        app = RequestLimits(echo, limits)
        client = await Client(b"a").ask(app)
        assert client.status == 504 and "answer was not ready within this server's limit" in client.error["message"]
        assert echo.cancelled == 1
        echo.wait.set()
        assert (await Client(b"a").ask(app)).status == 200

        # In the middle of an answer: nothing more is sent, and the server hears of it and cuts the connection.
        echo = Echo(begin_first=True)
        echo.wait.clear()
        client = Client(b"a")
        with pytest.raises(TimeoutError):
            await client.ask(RequestLimits(echo, limits))
        assert [message["type"] for message in client.sent] == ["http.response.start"]

    run(check())


def test_time_outs_of_the_application_stay_its_own():
    async def application(scope, receive, send):
        raise TimeoutError("the engine's")

    with pytest.raises(TimeoutError, match="the engine's"):
        run(Client(b"a").ask(RequestLimits(application, Limits())))


def test_settings_from_the_environment(monkeypatch):
    given = Limits(max_body_mib=1.5, max_requests=7, timeout=0.5)
    for name, value in given.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Limits.from_environment() == given == RequestLimits(Echo()).limits
    monkeypatch.delenv("FALCON3_AUDIO_TIMEOUT")
    assert Limits.from_environment() == Limits(max_body_mib=1.5, max_requests=7)


@pytest.mark.parametrize("name", ["max_body_mib", "max_requests", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {value}"):
        Limits(**{name: value})


def test_a_client_that_sends_too_much_is_told_so_over_a_socket():
    """http.client sends all it has before it reads: were the connection cut, it would see a broken pipe."""
    config = uvicorn.Config(
        RequestLimits(Echo(), Limits(max_body_mib=1)), port=0, log_level="critical", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    for size, status in ((20 * MIB, 413), (MIB, 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/", b"x" * size)
        assert connection.getresponse().status == status
        connection.close()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def server(checkpoint):
    with Running(checkpoint) as running:
        yield running


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (["Transfer-Encoding: chunked"], 411),
        (["Content-Length: -1"], 411),
        (["a" * 70_000], 431),
        (["Content-Length: " + "9" * 5000], 411),
        (["Content-Length: 2", "Content-Length: 0"], 411),
        (["Content-Length: 0", "Content-Length: 40"], 411),
    ],
)
def test_what_is_no_request(server, head, status):
    """What follows is not taken for the next request."""
    with server.connect() as connection:
        connection.sendall(post_head(*head) + SMUGGLED)
        answer = answer_of(connection)
        assert answer.status == status and json.load(answer)["error"]["code"] == status
        assert_ended(connection)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\n\r\n"


def assert_ended(connection):
    with suppress(ConnectionResetError):  # because of what was not read
        assert connection.recv(4096) == b""


@pytest.mark.parametrize("head", [f"Content-Length: {len(SMUGGLED)}", "Transfer-Encoding: chunked"])
def test_a_body_of_a_get_is_no_request(server, head):
    with server.connect() as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\n{head}\r\n\r\n".encode() + SMUGGLED)
        answer = answer_of(connection)
        assert answer.status == 200 and answer.read() == b'{"status": "ok"}'
        assert_ended(connection)


def test_connections_end_after_errors_of_the_server(server, monkeypatch):
    monkeypatch.setattr(server.reader, "chat", lambda *arguments: 1 / 0)
    with server.connect() as connection:
        connection.sendall(post_head("Content-Length: 2") + b"{}" + SMUGGLED)
        answer = answer_of(connection)
        assert answer.status == 500 and "ZeroDivisionError" in answer.read().decode()
        assert_ended(connection)


@pytest.mark.parametrize("key", [None, "a-key"])
def test_web_pages_of_others_are_refused(checkpoint, key):
    with Running(checkpoint, key=key, limits=Limits(max_body_mib=1)) as server:
        host = server.url.removeprefix("http://")
        shown = {"Authorization": f"Bearer {key}"}
        elsewhere = ["http://evil.example", "null", "http://localhost:1", f"http://evil.example/{host}"]
        for origin in elsewhere:
            for path in (CHAT, "/v1/audio/transcriptions"):
                status, answer = server.post({}, path, Origin=origin, **shown)
                assert status == 403 and "other sites" in answer["error"]["message"]
        assert server.post({}, Origin=server.url, **shown)[0] == 400  # read, and found to be no chat
        for kind in ("text/plain", ""):
            status, answer = server.post({}, **{"Content-Type": kind}, **shown)
            assert status == 415 and "application/json" in answer["error"]["message"]
        assert server.post({}, **{"Content-Type": "application/json; charset=utf-8"}, **shown)[0] == 400
        # A page's own name for this machine.
        for name in ("evil.example:8000", "localhost.evil.example", "[::1"):
            wanted = 403 if key is None else 400
            assert server.post({}, Host=name, Origin=f"http://{name}", **shown)[0] == wanted
            connection = server.connection()
            connection.request("GET", "/health", headers={"Host": name})
            assert connection.getresponse().status == (403 if key is None else 200)
        for name in ("localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "192.168.0.2"):
            assert server.post({}, Host=name, **shown)[0] == 400


def test_refused_clients_are_read_no_further_than_bodies_may_go(checkpoint):
    with Running(checkpoint, key="a-key", limits=Limits(max_body_mib=0.001)) as server, server.connect() as connection:
        connection.sendall(post_head(f"Content-Length: {10**12}") + b"a" * 3000)
        answer = answer_of(connection)  # without the rest
        assert answer.status == 401 and answer.getheader("Connection") == "close"
