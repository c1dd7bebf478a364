"""Limits of requests with a real server, and requests that are none."""

import http.client
import json
import threading
from contextlib import suppress

import pytest
import uvicorn
from running_server import Echo, Running, answer_of, post_head

from falcon3_audio.serving import request_limits
from falcon3_audio.serving.chat_app import CHAT
from falcon3_audio.serving.request_limits import MIB, Limits, RequestLimits


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["kept", "closed"])
def test_a_client_that_sends_too_much_is_told_so_over_a_socket(headers):
    """http.client sends everything before it reads: if the connection were cut, it would get a broken pipe."""
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
    for size, status in ((60 * MIB, 413), (MIB, 200)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", "/", b"x" * size, headers)
        assert connection.getresponse().status == status
        connection.close()
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def server(checkpoint):
    with Running(checkpoint) as running:
        yield running


@pytest.mark.parametrize(
    "head",
    [
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Content-Length: -1"],
        ["a" * 70_000],
        ["Content-Length: " + "9" * 5000],
        ["Content-Length: 2", "Content-Length: 0"],
        ["Content-Length: 0", "Content-Length: 40"],
    ],
)
def test_what_is_no_request(server, head):
    """uvicorn refuses it by itself. The bytes after it are not treated as the next request."""
    with server.connect() as connection:
        connection.sendall(post_head(*head) + SMUGGLED)
        answer = answer_of(connection)
        assert answer.status in (400, 501) and answer.read()
        assert_ended(connection)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def assert_ended(connection):
    with suppress(ConnectionResetError):  # because of unread data
        assert connection.recv(4096) == b""


CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)


@pytest.mark.parametrize(
    ("head", "body"), [(f"Content-Length: {len(SMUGGLED)}", SMUGGLED), ("Transfer-Encoding: chunked", CHUNKED)]
)
def test_a_body_of_a_get_is_no_request(server, head, body):
    with server.connect() as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n".encode() + body)
        answer = answer_of(connection)
        assert answer.status == 200 and json.load(answer) == {"status": "ok"}
        # The next answer is for the next request, not for the one in the body.
        connection.sendall(post_head("Content-Length: 1", "Connection: close") + b"{")
        assert answer_of(connection).status == 400


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
        assert server.post({}, Origin=server.url, **shown)[0] == 400  # read, but not a valid chat
        for kind in ("text/plain", ""):
            status, answer = server.post({}, **{"Content-Type": kind}, **shown)
            assert status == 415 and "application/json" in answer["error"]["message"]
        assert server.post({}, **{"Content-Type": "application/json; charset=utf-8"}, **shown)[0] == 400
        # A page's own host name that points to this machine.
        for name in ("evil.example:8000", "localhost.evil.example", "[::1"):
            wanted = 403 if key is None else 400
            assert server.post({}, Host=name, Origin=f"http://{name}", **shown)[0] == wanted
            connection = server.connection()
            connection.request("GET", "/health", headers={"Host": name})
            assert connection.getresponse().status == (403 if key is None else 200)
        for name in ("localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "192.168.0.2"):
            assert server.post({}, Host=name, **shown)[0] == 400


def test_refused_clients_are_told_before_all_is_read(checkpoint, monkeypatch):
    monkeypatch.setattr(request_limits, "LINGER", 0.02)
    with Running(checkpoint, key="a-key", limits=Limits(max_body_mib=0.001)) as server, server.connect() as connection:
        connection.sendall(post_head(f"Content-Length: {10**12}") + b"a" * 3000)
        answer = answer_of(connection)  # without the rest
        assert answer.status == 401
