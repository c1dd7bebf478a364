"""Limits of requests, driven message by message as by a server, and once by a real server; invalid requests."""

import asyncio
import json

import pytest
from running_server import Echo

from falcon3_audio.serving import request_limits
from falcon3_audio.serving.request_limits import MIB, Limits, RequestLimits


class Client:
    """One request: `parts` are the parts of its body, `None` means the client disconnects; then it waits."""

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
        assert client.status == 413 and client.error["type"] == "invalid_request_error"
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
        assert third.status == 429 and "2 requests at a time" in third.error["message"]
        assert (b"retry-after", b"1") in third.sent[0]["headers"] and third.messages == []
        assert len(echo.bodies) == 2
        health = asyncio.create_task(Client(b"", method="GET").ask(app))  # not limited
        while len(echo.bodies) < 3:
            await asyncio.sleep(0)
        echo.wait.set()
        assert {task.status for task in await asyncio.gather(*first, health)} == {200}
        assert (await Client(b"z").ask(app)).status == 200

    run(check())


def test_who_does_not_show_the_key_is_read_and_refused():
    async def check():
        echo = Echo()
        app = RequestLimits(echo, Limits(max_requests=1), key="a-key")
        for key in (None, b"", b"a-key", b"Bearer a-ke", b"Basic a-key", b"Bearer \xff"):
            for method in ("POST", "GET", "HEAD", "DELETE"):
                client = await Client(b"a", b"b", key=key, method=method).ask(app)
                assert client.status == 401 and "API key" in client.error["message"]
                assert (client.error["type"], client.error["code"]) == ("authentication_error", "invalid_api_key")
                assert (b"www-authenticate", b"Bearer") in client.sent[0]["headers"]
                assert echo.bodies == [] and (method != "POST" or client.messages == [])
        for client in (
            Client(b"a", key=b"Bearer a-key"),
            Client(b"a", key=b"bearer a-key"),
            Client(b"a", key=b"BEARER  a-key"),
            Client(b"a", path="/tokenize"),
            Client(b"a", path="/health", method="GET"),
            Client(b"a", method="OPTIONS"),
        ):
            assert (await client.ask(app)).status == 200
        below = Client(b"a", path="/models/v1/chat/completions")
        below.scope["root_path"] = "/models"
        assert (await below.ask(app)).status == 401

    run(check())


def test_vllm_gives_key_host_and_limits_by_the_environment(monkeypatch):
    async def check():
        app = RequestLimits(Echo())
        assert (await Client(b"a").ask(app)).status == 401
        assert (await Client(b"a", key=b"bearer a-key").ask(app)).status == 200
        monkeypatch.delenv("VLLM_API_KEY")
        for host, status in ((b"evil.example:8000", 403), (b"localhost:8000", 200)):
            client = Client(b"a")
            client.scope["headers"].append((b"host", host))
            assert (await client.ask(RequestLimits(Echo()))).status == status

    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    monkeypatch.setenv("FALCON3_AUDIO_HOST", "127.0.0.1")
    run(check())


def test_bodies_that_arrive_take_no_place_and_share_a_limit():
    """Any number can be slow, but their total size is limited; a refused body is released."""

    async def check():
        echo = Echo()
        app = RequestLimits(echo, Limits(max_body_mib=2, max_bodies_mib=3, max_requests=1))
        part = b"a" * (MIB // 2)
        slow = [Client(part, b"b") for _ in range(5)]
        for client in slow:
            client.messages.pop()  # the rest never arrives
        tasks = [asyncio.create_task(client.ask(app)) for client in slow]
        while any(client.messages for client in slow):
            await asyncio.sleep(0)
        assert (await Client(part).ask(app)).status == 200
        for _ in range(2):
            client = await Client(part, b"b" * 10).ask(app)
            assert client.status == 429 and client.error["type"] == "rate_limit_error" and client.messages == []
            assert (
                client.error["message"]
                == "This server holds at most 3 MiB of requests at a time, and is full. Try again."
            )
        tasks.pop().cancel()
        await asyncio.sleep(0)
        assert (await Client(part, b"b" * 10).ask(app)).status == 200
        assert len(echo.bodies) == 2
        for task in tasks:
            task.cancel()

    run(check())


def test_a_server_that_drains_takes_nothing_new(monkeypatch):
    monkeypatch.setattr(request_limits, "LINGER", 0.02)

    async def check():
        echo = Echo()
        echo.wait.clear()
        app = RequestLimits(echo, Limits())
        running = asyncio.create_task(Client(b"x").ask(app))
        while not echo.bodies:
            await asyncio.sleep(0)
        app.draining = True
        for client in (Client(b"y"), Client(method="GET", path="/health"), Client(method="GET")):
            await client.ask(app)
            assert client.status == 503 and (b"retry-after", b"1") in client.sent[0]["headers"]
            assert client.error["type"] == "server_error" and "shutting down" in client.error["message"]
        echo.wait.set()
        assert (await running).status == 200 and app.running == 0
        assert (await Client(b"", method="GET", path="/metrics").ask(app)).status == 200

    run(check())


def test_a_client_that_reads_nothing_is_given_up(monkeypatch):
    async def check():
        app = RequestLimits(Echo(), Limits(max_requests=1))
        client = Client(b"a")
        client.send = lambda message: asyncio.Event().wait()
        await client.ask(app)
        assert app.running == 0 and (await Client(b"z").ask(app)).status == 200

    monkeypatch.setattr(request_limits, "IDLE", 0.02)
    run(check())


def test_a_stream_that_takes_too_long_says_so():
    async def application(scope, receive, send):
        kind = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        await asyncio.Event().wait()

    client = Client(b"a")
    run(client.ask(RequestLimits(application, Limits(timeout=0.05))))
    first, last = client.body.decode().rstrip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert first == "data: a" and error["type"] == "server_error" and "limit, 0.05 s" in error["message"]
    assert not client.sent[-1].get("more_body")


def test_sites_that_may_ask():
    async def check():
        limits = Limits(allowed_origins=("https://a.example", "http://localhost:3000"))
        for allowed, origin, status in (
            (limits, "https://a.example", 200),
            (limits, "http://localhost:3000", 200),
            (limits, "https://b.example", 403),
            (limits, "http://a.example", 403),
            (limits, "http://here:8000", 200),  # its own
            (Limits(allowed_origins=("*",)), "https://b.example", 200),
            (Limits(), "null", 403),
        ):
            for method in ("POST", "GET"):
                client = Client(b"a", method=method)
                client.scope["headers"] += [(b"host", b"here:8000"), (b"origin", origin.encode())]
                assert (await client.ask(RequestLimits(Echo(), allowed))).status == status

    run(check())


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([b"gzip"], "gzip"),
        ([b"GZIP"], "GZIP"),
        ([b"deflate, br"], "deflate, br"),
        ([b"zstd", b"identity"], "zstd"),
        ([b"identity"], None),
        ([b"Identity, "], None),
        ([b""], None),
    ],
)
def test_compressed_bodies_are_refused_by_name(lines, named):
    async def check():
        echo = Echo()
        client = Client(b"\x1f\x8b", b"rest")
        client.scope["headers"] += [(b"content-encoding", line) for line in lines]
        await client.ask(RequestLimits(echo, Limits()))
        if named is None:
            assert client.status == 200 and echo.bodies == [b"\x1f\x8brest"]
            return
        assert client.status == 415 and echo.bodies == [] and client.messages == []
        said = f"Expected a body without Content-Encoding, got {named}. Send it uncompressed."
        assert client.error == {"message": said, "type": "invalid_request_error", "param": None, "code": None}

    run(check())


def test_what_is_no_request_passes():
    echo = Echo()
    run(Client(kind="lifespan").ask(RequestLimits(echo, Limits(max_requests=1))))
    assert echo.types == ["lifespan"]


def test_a_websocket_of_another_site_is_closed():
    echo, client = Echo(), Client(kind="websocket")
    client.scope["headers"] = [(b"host", b"here"), (b"origin", b"https://other.example")]
    run(client.ask(RequestLimits(echo, Limits())))
    assert echo.types == [] and client.sent == [{"type": "websocket.close", "code": 1008}]


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


def test_time_limits(monkeypatch):
    monkeypatch.setattr(request_limits, "LINGER", 0.02)

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

        # In the middle of an answer: nothing more is sent; the error reaches the server, which cuts the connection.
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
    given = Limits(1.5, 20, 7, 0.5, ("https://a.example", "*"))
    for name, value in given.as_environment().items():
        monkeypatch.setenv(name, value)
    assert Limits.from_environment() == given == RequestLimits(Echo()).limits
    monkeypatch.delenv("FALCON3_AUDIO_TIMEOUT")
    assert Limits.from_environment() == Limits(1.5, 20, 7, allowed_origins=("https://a.example", "*"))
    monkeypatch.setenv("FALCON3_AUDIO_MAX_REQUESTS", "many")
    with pytest.raises(ValueError, match="many"):
        Limits.from_environment()


@pytest.mark.parametrize("name", ["max_body_mib", "max_bodies_mib", "max_requests", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_limits_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, got {value}"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"max_body_mib": 65, "max_bodies_mib": 64.5}, r"must be max_body_mib \(65\) or more, got 64.5"),
        ({"allowed_origins": ("https://a.example/",)}, "like https://example.org, or .*, got 'https://a.example/'"),
        ({"allowed_origins": ("a.example",)}, "got 'a.example'"),
        ({"allowed_origins": ("https://A.example",)}, "got 'https://A.example'"),
    ],
)
def test_settings_that_mean_nothing(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        Limits(**wrong)


def test_a_refused_body_without_an_end_is_taken_for_a_while(monkeypatch):
    monkeypatch.setattr(request_limits, "LINGER", 0.02)

    async def check():
        client = Client(b"a" * MIB, b"b", b"never the last")
        client.messages[-1]["more_body"] = True  # and then nothing arrives
        await client.ask(RequestLimits(Echo(), Limits(max_body_mib=1)))
        assert client.status == 413 and client.messages == []
        assert [message.get("more_body", False) for message in client.sent[1:]] == [True, False]

    run(check())
