"""Reads OpenAI's requests into the pipeline's input, or refuses them with the reason.

Nothing that would change an answer is ignored: unsupported fields are refused by name, unless their value asks for
what the server does anyway (request_fields.py). The tokens of a prompt are counted here, without features, so that one
that is too long costs nothing. Differences from OpenAI: without `temperature` and `top_p` decoding is greedy, as in
`pipeline()`; the last message must be the user's.

    request = ChatReader("name", processor, context=8192, ...).chat(body)
"""

import copy
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import numpy as np

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.processing import SAMPLING_RATE

from .generation_queue import Sampling
from .request_audio import AudioReader, RefusedRequest
from .request_fields import check_fields


ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# A chat template loops over the chat once for each message.
MAX_MESSAGES = 512
MAX_PARTS = 2048  # of all messages
MAX_STOPS = 4
MAX_STOP_LENGTH = 200  # characters, searched for after every token
MAX_TOP_LOGPROBS = 20
READ = {
    *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p"),
    *("seed", "stop", "logprobs", "top_logprobs", "return_tokens_as_token_ids"),
}


@dataclass(frozen=True)
class ChatRequest:
    """
    Attributes:
        messages: as `pipeline` takes them; audio as 16 kHz arrays.
        prompt_tokens, audio_seconds: of all messages.
        audio_tokens: those of the prompt's tokens that are audio.
        stream, include_usage, token_ids: how to answer.
    """

    messages: list[dict[str, Any]]
    sampling: Sampling
    prompt_tokens: int
    audio_seconds: float
    audio_tokens: int = 0
    stream: bool = False
    include_usage: bool = False
    token_ids: bool = False


class ChatReader:
    """
    Reads requests. Thread-safe.

    Args:
        model: the name that requests must use, if any.
        processor: is copied, since tokenizers are not thread-safe.
        context: positions of the language model, for prompt and answer.
        max_tokens: of answers to requests that set no limit.
        max_audios: in one chat.
        audio: reads the audio.
    """

    def __init__(
        self,
        model: str,
        processor: Falcon3AudioProcessor,
        context: int,
        max_tokens: int,
        max_audios: int,
        audio: AudioReader,
    ):
        self._model, self._context, self._max_tokens = model, context, max_tokens
        self._max_audios, self._audio = max_audios, audio
        self._processor = copy.deepcopy(processor)
        self._longest_token = max(map(len, processor.tokenizer.get_vocab()))
        self._tokenizing = threading.Lock()

    def token(self, token: int) -> str:
        """The text of one token; U+FFFD for part of a character."""
        with self._tokenizing:
            return self._processor.tokenizer.decode([token])

    def chat(self, body: bytes) -> ChatRequest:
        """A chat, in JSON. Raises a `RefusedRequest`."""
        try:
            fields = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise RefusedRequest(f"The body is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise RefusedRequest(f"The body must be a JSON object, got {type(fields).__name__}.")
        return self._read(fields)

    def ask_about(self, clip: np.ndarray, text: str, settings: dict[str, Any]) -> ChatRequest:
        """One question about samples at 16 kHz, with the settings of a chat. Raises a `RefusedRequest`."""
        self._check_length([text], "prompt")
        sound = {"type": "audio", "audio": clip, "sampling_rate": SAMPLING_RATE}
        messages = [{"role": "user", "content": [sound, {"type": "text", "text": text}]}]
        return self._request(settings, messages, "prompt")

    def read_file(self, data: bytes, param: str) -> np.ndarray:
        """See `AudioReader`."""
        return self._audio.read_file(data, param)

    def check_model(self, name: Any) -> None:
        """Raises a `RefusedRequest` if a client asks for another model."""
        if name not in (None, self._model):
            raise RefusedRequest(f"There is no model {name!r:.200} here, only {self._model!r}.", "model", 404)

    def _read(self, body: dict[str, Any]) -> ChatRequest:
        check_fields(body, READ, "chats")
        self.check_model(body.get("model"))
        stream, options = _flag(body, "stream"), _stream_options(body)
        if options and not stream:
            raise RefusedRequest("stream_options are only for streams: set stream to true.", "stream_options")
        request = self._request(body, self._messages(body.get("messages")), "messages")
        return replace(
            request,
            stream=stream,
            include_usage=_flag(options, "include_usage"),
            token_ids=_flag(body, "return_tokens_as_token_ids"),
        )

    def _request(self, settings: dict[str, Any], messages: list[dict[str, Any]], param: str) -> ChatRequest:
        """`param` is the field with the texts."""
        tokens, heard = self._count_tokens(messages, param)
        seconds = sum(len(item["audio"]) for item in _audio_items(messages)) / SAMPLING_RATE
        return ChatRequest(messages, self._sampling(settings, tokens, param), tokens, seconds, heard)

    def _messages(self, messages: Any) -> list[dict[str, Any]]:
        if not isinstance(messages, list) or not 0 < len(messages) <= MAX_MESSAGES:
            got = len(messages) if isinstance(messages, list) else type(messages).__name__
            raise RefusedRequest(f"messages must be a list of 1 to {MAX_MESSAGES} messages, got {got}.", "messages")
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        parts = sum(len(content) for content in contents if isinstance(content, list))
        if parts > MAX_PARTS:
            raise RefusedRequest(f"The messages can have {MAX_PARTS} parts, got {parts}.", "messages")
        read = [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]
        self._check_length(_texts(read), "messages")
        if read[-1]["role"] != "user":
            raise RefusedRequest(f"The last message must be the user's, got role {read[-1]['role']!r}.", "messages")
        items = list(_audio_items(read))
        if len(items) > self._max_audios:
            raise RefusedRequest(f"A chat can have {self._max_audios} audios, got {len(items)}.", "messages")
        clips = self._audio.read_all([item.pop("source") for item in items], "messages")
        for item, clip in zip(items, clips, strict=True):
            item |= {"audio": clip, "sampling_rate": SAMPLING_RATE}
        return read

    def _check_length(self, texts: Iterable[str], param: str) -> None:
        """Building a prompt of very long texts and tokenizing it would take minutes."""
        length = sum(map(len, texts))
        if length > self._context * self._longest_token:
            raise RefusedRequest(
                f"The texts have {length} characters; the model's context of {self._context} tokens holds fewer.",
                param,
            )

    def _count_tokens(self, messages: list[dict[str, Any]], param: str) -> tuple[int, int]:
        """The tokens of the prompt, and how many of them are audio."""
        try:
            prompt = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # Templates raise these for roles, and the processor for a placeholder in a text.
        except (ValueError, jinja2.TemplateError) as error:
            raise RefusedRequest(f"The chat cannot be turned into a prompt: {error}", param) from error
        with self._tokenizing:
            written = len(self._processor.tokenizer.encode(prompt, add_special_tokens=False))
        lengths = [len(item["audio"]) for item in _audio_items(messages)]
        heard = sum(self._processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"])
        return written - len(lengths) + heard, heard

    def _sampling(self, body: dict[str, Any], prompt_tokens: int, param: str) -> Sampling:
        left = self._context - prompt_tokens
        field = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
        wanted = _number(body, field, 1, 2**31, None, int)
        if left < (1 if wanted is None else wanted):
            asked = "" if wanted is None else f" and {wanted} answer tokens were requested"
            raise RefusedRequest(
                f"The prompt has {prompt_tokens} tokens{asked}; the model's context holds {self._context} in total.",
                param if wanted is None or left < 1 else field,
            )
        top_p = _number(body, "top_p", 0, 1, 1.0)
        if top_p == 0:
            raise RefusedRequest("top_p must be above 0, got 0; for greedy decoding, use temperature 0.", "top_p")
        return Sampling(
            max_tokens=min(self._max_tokens, left) if wanted is None else wanted,
            # OpenAI's default is 1, this project's pipeline decodes greedily.
            temperature=_number(body, "temperature", 0, 2, 0.0 if body.get("top_p") is None else 1.0),
            top_p=top_p,
            seed=_number(body, "seed", -(2**63), 2**63 - 1, None, int),
            stop=_stops(body.get("stop")),
            top_logprobs=_top_logprobs(body),
        )


def _message(message: Any, name: str) -> dict[str, Any]:
    """The message as read; its audio items have a `source`: a URL, or base64 or a URL as bytes."""
    if not isinstance(message, dict):
        raise RefusedRequest(f"{name} must be an object with role and content, got {type(message).__name__}.", name)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        raise RefusedRequest(f"The role of {name} must be one of {', '.join(ROLES)}, got {str(role)[:100]!r}.", name)
    more = sorted(key for key, value in message.items() if value and key not in ("role", "content", "name"))
    if more:
        raise RefusedRequest(f"This server does not support {more[0][:100]!r} of {name}.", name)
    if isinstance(content, str):
        return {"role": ROLES[role], "content": _text(content, name)}
    if not isinstance(content, list) or not content:
        raise RefusedRequest(f"The content of {name} must be a string or a list of parts, got {content!r:.100}.", name)
    items = [_item(part, f"{name}.content[{index}]") for index, part in enumerate(content)]
    if role != "user" and any(item["type"] == "audio" for item in items):
        raise RefusedRequest(f"Only the user's messages can contain audio, and {name} has the role {role!r}.", name)
    return {"role": ROLES[role], "content": items}


def _item(part: Any, name: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text":
        return {"type": "text", "text": _text(part.get("text"), name)}
    if kind not in ("input_audio", "audio_url"):
        raise RefusedRequest(f"{name} must be of type text, input_audio or audio_url, got {kind!r:.100}.", name)
    inner, key = part.get(kind), "url" if kind == "audio_url" else "data"
    source = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(source, str):
        raise RefusedRequest(f'{name} must hold {{"{kind}": {{"{key}": "..."}}}}, with a string.', name)
    return {"type": "audio", "source": source if kind == "audio_url" else source.encode(errors="replace")}


def _text(text: Any, name: str) -> str:
    if not isinstance(text, str):
        raise RefusedRequest(f"The text of {name} must be a string, got {type(text).__name__}.", name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RefusedRequest(f"The text of {name} contains an unpaired surrogate: {error.reason}.", name) from error
    return text


def _audio_items(messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for message in messages:
        if not isinstance(message["content"], str):
            yield from (item for item in message["content"] if item["type"] == "audio")


def _texts(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (item["text"] for item in content if "text" in item)


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RefusedRequest(f"{name} must be true or false, got {value!r:.100}.", name)
    return bool(value)


def _number(body: dict[str, Any], name: str, low: float, high: float, default: Any, kind: type = float) -> Any:
    value = body.get(name)
    if value is None:
        return default
    number = isinstance(value, int) or (kind is float and isinstance(value, float))
    if not number or isinstance(value, bool) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise RefusedRequest(f"{name} must be {what} from {low} to {high}, got {value!r:.100}.", name)
    return value


def _stream_options(body: dict[str, Any]) -> dict[str, Any]:
    """Those that are given and not off."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise RefusedRequest(f"stream_options must be an object, got {options!r:.100}.", "stream_options")
    wanted = {name: value for name, value in options.items() if value is not None and value is not False}
    if strangers := sorted(wanted.keys() - {"include_usage"}):
        why = f"stream_options can only have include_usage here, got {strangers[0][:100]!r}."
        raise RefusedRequest(why, "stream_options")
    return wanted


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else [] if stop is None else stop
    texts = isinstance(stops, list) and all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in stops)
    if not texts or len(stops) > MAX_STOPS:
        raise RefusedRequest(
            f"stop must be up to {MAX_STOPS} texts of 1 to {MAX_STOP_LENGTH} characters, got {stop!r:.100}.", "stop"
        )
    return tuple(stops)


def _top_logprobs(body: dict[str, Any]) -> int | None:
    top = _number(body, "top_logprobs", 0, MAX_TOP_LOGPROBS, 0, int)
    if _flag(body, "logprobs"):
        return top
    if top:
        raise RefusedRequest("top_logprobs needs logprobs: true.", "top_logprobs")
    return None


__all__ = ["ChatReader", "ChatRequest", "RefusedRequest"]
