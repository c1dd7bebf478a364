"""Limits of requests: driven message by message as a server would, and once by a real server."""

import asyncio
import http.client
import json
import threading

import pytest
import uvicorn

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

    def __init__(self, *parts, length=None, method="POST", kind="http"):
        headers = [] if length is None else [(b"content-length", str(length).encode())]
        self.scope = {"type": kind, "method": method, "headers": headers}
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
