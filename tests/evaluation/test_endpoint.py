"""The client of chat endpoints, against a stub server."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from stub_endpoint import Answer, StubEndpoint

from falcon3_audio.evaluation.endpoint import Endpoint, EndpointError, EndpointFailed, EndpointUnavailable


CHAT = [{"role": "user", "content": "What do you hear?"}]
KEY = "sk-secret-0123456789"


def in_turn(*answers):
    """Returns each answer once, then repeats the last."""
    left = list(answers)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


def error_of(*answers, kind=EndpointError, retries=0, **options):
    with StubEndpoint(in_turn(*answers)) as stub, pytest.raises(EndpointError) as caught:
        Endpoint(stub.url, "m", retries=retries, **options).ask(CHAT)
    message = str(caught.value)
    assert caught.type is kind and "\n" not in message and stub.url in message
    return message


def test_what_is_asked_and_answered(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    with StubEndpoint(lambda body: Answer(" a dog\n", usage=usage, finish_reason="length")) as stub:
        reply = Endpoint(stub.url, "m").ask(CHAT, temperature=0, max_tokens=5, seed=3)
    assert (reply.text, reply.model, reply.finish_reason) == (" a dog\n", "stub-2026", "length")
    assert {name: reply.usage[name] for name in usage} == usage
    (request,) = stub.requests
    assert request.body == {"model": "m", "messages": CHAT, "temperature": 0, "max_tokens": 5, "seed": 3}


def test_a_server_that_does_not_count_and_an_empty_reply():
    with StubEndpoint(lambda body: "") as stub:
        reply = Endpoint(stub.url, "m").ask(CHAT)
    assert reply.text == "" and reply.usage is None


@pytest.mark.parametrize("status", [429, 500, 503])
def test_busy_and_broken_servers_are_asked_again(status):
    with StubEndpoint(in_turn(Answer("busy", status=status), Answer("busy", status=status), "a dog")) as stub:
        assert Endpoint(stub.url, "m", retries=2).ask(CHAT).text == "a dog"
    assert len(stub.requests) == 3


def test_what_stays_an_error_after_all_retries():
    for status in (408, 500, 502, 503, 504):
        said = error_of(Answer("broken", status=status), kind=EndpointFailed, retries=2)
        assert f"failed: Error code: {status} - broken." in said
    assert "refused: Error code: 429 - slow down" in error_of(
        Answer("slow down", status=429), kind=EndpointUnavailable, retries=1
    )
    assert "400 - audio too long" in error_of(Answer("audio too long", status=400))
    assert "400 - {'detail': 'no audio'}" in error_of(Answer(status=400, body=b'{"detail": "no audio"}'))
    unknown = error_of(Answer("no such model", status=404), kind=EndpointUnavailable)
    assert "Does the server have 'm'" in unknown


def test_requests_that_are_wrong_are_not_repeated():
    with StubEndpoint(lambda body: Answer("no", status=400)) as stub, pytest.raises(EndpointError):
        Endpoint(stub.url, "m", retries=3).ask(CHAT)
    assert len(stub.requests) == 1


def test_a_slow_server():
    said = error_of(Answer("late", seconds=1), kind=EndpointFailed, timeout=0.1)
    assert "did not answer: Request timed out." in said


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EndpointUnavailable, match=f"{url} cannot be reached"):
        Endpoint(url, "m", retries=0).ask(CHAT)


@pytest.mark.parametrize(
    "answer, said",
    [
        (Answer(body=b"{not json"), "sent an invalid response"),
        (Answer(body=b"<html>\n<p>hello</html>", headers={"Content-Type": "text/html"}), "<html> <p>hello</html>"),
        (Answer(body=b"[]"), "no chat completion"),
        (Answer(body=b"null"), "no chat completion"),
        (Answer(body=b"{}"), "no chat completion"),
        (Answer(body=b'{"error": {"message": "upstream is gone"}}'), "upstream is gone"),
        (Answer(body=b'{"choices": []}'), "no chat completion"),
        (Answer(body=b'{"choices": [null]}'), "no chat completion"),
    ],
)
def test_malformed_answers_are_errors_of_the_server_and_never_empty_replies(answer, said):
    assert said in error_of(answer, kind=EndpointFailed)


@pytest.mark.parametrize(
    "answer, said",
    [
        (Answer(body=b'{"choices": [{"message": "hello"}]}'), "answered without text"),
        (Answer(None, finish_reason="tool_calls"), "answered without text: finish_reason 'tool_calls'"),
    ],
)
def test_answers_without_text_are_errors(answer, said):
    assert said in error_of(answer)


@pytest.mark.parametrize(
    "message, finish_reason, text",
    [
        ({"content": None}, "length", ""),  # cut off in thoughts, which the server keeps to itself
        ({"content": None}, "content_filter", ""),
        ({"content": None, "refusal": "I can't help with that."}, "stop", "I can't help with that."),
        ({"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "dog"}]}, "stop", "a dog"),
    ],
)
def test_what_a_model_says_other_than_in_one_text(message, finish_reason, text):
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
    with StubEndpoint(lambda _: Answer(body=body.encode())) as stub:
        reply = Endpoint(stub.url, "m").ask(CHAT)
    assert (reply.text, reply.finish_reason) == (text, finish_reason)


def test_fields_that_a_server_refuses_are_sent_in_its_way():
    def newer(body):
        for name, code in (("max_tokens", "unsupported_parameter"), ("temperature", "unsupported_value")):
            if name in body:
                error = {"message": f"Unsupported: {name}", "param": name, "code": code}
                return Answer(status=400, body=json.dumps({"error": error}).encode())
        return "a dog"

    with StubEndpoint(newer) as stub:
        endpoint = Endpoint(stub.url, "m")
        for _ in range(2):
            reply = endpoint.ask(CHAT, temperature=0, max_tokens=5, seed=3)
            assert reply.text == "a dog"
            assert reply.sampling == {"max_tokens": "max_completion_tokens", "temperature": None}
    assert len(stub.requests) == 4  # the second question is asked once
    assert stub.requests[-1].body == {"model": "m", "messages": CHAT, "max_completion_tokens": 5, "seed": 3}


def test_the_key_is_shown_to_the_server_and_to_nobody_else(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with StubEndpoint(lambda body: "a dog", key=KEY) as stub:
        assert Endpoint(stub.url, "m", api_key_env="MY_KEY").ask(CHAT).text == "a dog"
    with StubEndpoint(lambda body: "a dog", key="another") as stub, pytest.raises(EndpointUnavailable) as caught:
        Endpoint(stub.url, "m", api_key_env="MY_KEY").ask(CHAT)
    assert stub.requests[0].key == KEY  # the server repeats the key in its error message
    assert KEY not in str(caught.value) and "Incorrect API key provided: ***." in str(caught.value)
    assert "environment variable MY_KEY?" in str(caught.value)
    seen = Answer(body=f'{{"seen": "{KEY}"}}'.encode())
    assert KEY not in error_of(seen, kind=EndpointFailed, api_key_env="MY_KEY")


def test_without_a_key_servers_that_want_one_say_so(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        StubEndpoint(lambda body: "a dog", key=KEY) as stub,
        pytest.raises(EndpointUnavailable, match="OPENAI_API_KEY"),
    ):
        Endpoint(stub.url, "m").ask(CHAT)


def test_long_messages_are_cut():
    message = error_of(Answer("x" * 10_000, status=400))
    assert 500 < len(message) < 600 and message.endswith(" ...")


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://host/v1", "http:///v1", ""])
def test_no_url(url):
    with pytest.raises(ValueError, match="expected one such as http://127.0.0.1:8000/v1"):
        Endpoint(url, "m")


@pytest.mark.parametrize("url", ["http://me:sk-1@host/v1", "http://me@host/v1", "https://host/v1?key=sk-1"])
def test_urls_with_secrets_are_refused_without_repeating_them(url):
    with pytest.raises(ValueError, match="MY_KEY") as caught:
        Endpoint(url, "m", api_key_env="MY_KEY")
    assert "sk-1" not in str(caught.value) and "me" not in str(caught.value).split("host holds")[0].split()


def test_threads_share_an_endpoint():
    with StubEndpoint(lambda body: body["messages"][0]["content"]) as stub, ThreadPoolExecutor(8) as pool:
        endpoint = Endpoint(stub.url, "m")
        said = pool.map(lambda n: endpoint.ask([{"role": "user", "content": str(n)}]).text, range(40))
        assert list(said) == [str(number) for number in range(40)]
