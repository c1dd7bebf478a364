"""One OpenAI-compatible chat endpoint, for evaluated models and for the judge.

The `openai` package does the work: timeouts, and retries with growing pauses (or the server's `Retry-After`) after
408, 409, 429, 5xx and lost connections. Errors that remain are one line each; they tell a refused request from a
server that failed and may answer later, and from an endpoint that would answer no request now. The key is read from an
environment variable and appears in no message. Set the variable only if the server asks for a key.
"""

import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai


LONGEST_MESSAGE = 500  # characters of an error that are kept; servers send whole web pages
# Statuses with which other requests would fail too: no key, not allowed, no such model or path, rate limit or quota.
UNAVAILABLE_STATUSES = (401, 403, 404, 429)
REQUEST_TIMEOUT, SERVER_ERRORS = 408, 500  # and above
# What OpenAI's newer models refuse, and the field that they take instead, if any.
REFUSED = {"max_tokens": "max_completion_tokens", "temperature": None}
WITHOUT_TEXT = ("length", "content_filter")  # reasons to end before the first word: in thoughts, or by a filter


class EndpointError(Exception):
    """A request that was not answered; the message is one line."""


class EndpointFailed(EndpointError):
    """The server had an error (5xx), sent no chat completion or no answer in time: it may answer later."""


class EndpointUnavailable(EndpointError):
    """Not reachable, key refused, no such model, rate limit or quota used up: other requests would fail as well."""


@dataclass(frozen=True)
class Reply:
    """
    Attributes:
        text: the model's complete text, or its words of refusal; can be empty.
        model: the server's name for the model, often with its version.
        finish_reason: "stop", "length", ...; `None` if the server does not say.
        usage: the server's token counts, such as `prompt_tokens`; `None` if it does not count.
        sampling: the fields of the request that differ from those asked for, since the server refused these.
    """

    text: str
    model: str
    finish_reason: str | None
    usage: dict[str, Any] | None
    sampling: dict[str, Any] | None = None


class Endpoint:
    """
    A chat model behind a URL. Threads may share it.

    Args:
        base_url: up to the version, such as "http://127.0.0.1:8000/v1".
        model: its name on the server.
        api_key_env: the environment variable with the key; servers without keys need none.
        timeout: seconds to wait for one answer.
        retries: further attempts after the first.

    Raises:
        `ValueError`: not an http(s) URL, or one with a user name, password or query: URLs are recorded.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        timeout: float = 120,
        retries: int = 3,
    ):
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The endpoint {base_url!r} is not a URL; expected one such as http://127.0.0.1:8000/v1.")
        if parts.username or parts.password or parts.query:
            raise ValueError(
                f"The URL of the endpoint at {parts.hostname} contains a user name, password or query, and URLs are "
                f"recorded with the results. Put the key in the environment variable {api_key_env}."
            )
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self._key = os.environ.get(api_key_env)
        # The client requires a key; servers without keys accept any.
        key = self._key or "none"
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=retries)
        self._renamed: dict[str, str | None] = {}  # fields that the server refused: what is sent instead

    def ask(self, messages: list[dict[str, Any]], **sampling: Any) -> Reply:
        """
        The model's reply to a chat in OpenAI's format.

        Args:
            messages: with text and `input_audio` content.
            **sampling: `temperature`, `max_tokens`, `seed` and other fields of the request.

        Raises:
            `EndpointUnavailable`: other requests would fail as well.
            `EndpointFailed`: the server failed, and still did after all retries.
            `EndpointError`: the server refused this request, or answered it without text.
        """
        try:
            completion = self._complete(messages, sampling)
        except openai.APIConnectionError as error:
            raise self._connection_error(error) from None
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except (openai.APIError, ValueError) as error:  # ValueError: the body is not JSON
            raise self._error(EndpointFailed, f"sent an invalid response: {error}") from None
        return self._reply(completion)

    def _complete(self, messages: list[dict[str, Any]], sampling: dict[str, Any]) -> Any:
        """Asks again without the fields that the server refuses; later requests do without them from the start."""
        while True:
            fields = {self._renamed.get(name, name): value for name, value in sampling.items()}
            fields = {name: value for name, value in fields.items() if name is not None}
            try:
                return self._client.chat.completions.create(
                    model=self.model,
                    messages=messages,  # type: ignore[arg-type]
                    **fields,
                )
            except openai.BadRequestError as error:
                refused = _param(error)
                if refused not in REFUSED or refused not in fields:
                    raise
                self._renamed[refused] = REFUSED[refused]

    def _reply(self, completion: Any) -> Reply:
        # The client does not check what servers send.
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message = getattr(choice, "message", None)
        if message is None:
            got = completion.model_dump() if hasattr(completion, "model_dump") else completion
            raise self._error(EndpointFailed, f"sent no chat completion: {got}")
        finish_reason = getattr(choice, "finish_reason", None)
        text = _text_of(message)
        if text is None and finish_reason not in WITHOUT_TEXT:
            raise self._error(EndpointError, f"answered without text: finish_reason {finish_reason!r}, {message}")
        usage = completion.usage.model_dump() if hasattr(completion.usage, "model_dump") else None
        return Reply(text or "", completion.model or self.model, finish_reason, usage, dict(self._renamed) or None)

    def _connection_error(self, error: openai.APIConnectionError) -> EndpointError:
        # By name, since the client has changed its HTTP library (httpx, httpx2).
        nobody = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
        if nobody:
            return self._error(EndpointUnavailable, f"cannot be reached: {error.__cause__}")
        return self._error(EndpointFailed, f"did not answer: {error} {error.__cause__ or ''}")

    def _status_error(self, error: openai.APIStatusError) -> EndpointError:
        advice = {
            401: f" Is the right key in the environment variable {self.api_key_env}?",
            404: f" Does the server have {self.model!r}, and does the URL end correctly (often in /v1)?",
        }
        # The client's message includes the server's only if that is in OpenAI's format.
        said = error.message if " - " in error.message else f"{error.message} - {error.body}"
        if error.status_code == REQUEST_TIMEOUT or error.status_code >= SERVER_ERRORS:
            return self._error(EndpointFailed, f"failed: {said}.")
        kind = EndpointUnavailable if error.status_code in UNAVAILABLE_STATUSES else EndpointError
        return self._error(kind, f"refused: {said}.", advice.get(error.status_code, ""))

    def _error(self, kind: type[EndpointError], what: str, advice: str = "") -> EndpointError:
        what = " ".join(what.split())
        if self._key:
            what = what.replace(self._key, "***")
        if len(what) > LONGEST_MESSAGE:
            what = what[:LONGEST_MESSAGE] + " ..."
        return kind(f"The endpoint {self.base_url} {what.rstrip()}{advice}")


def _text_of(message: Any) -> str | None:
    """The content, also if it is in parts, or else the words of refusal."""
    content = getattr(message, "content", None)
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(filter(None, parts)) if parts else None
    text = getattr(message, "refusal", None) if content is None else content
    return text if isinstance(text, str) else None


def _param(error: openai.BadRequestError) -> str:
    """The field that a server does not support, by OpenAI's error; empty if that is not what is wrong."""
    return error.param or "" if error.code in ("unsupported_parameter", "unsupported_value") else ""


__all__ = ["Endpoint", "EndpointError", "EndpointFailed", "EndpointUnavailable", "Reply"]
