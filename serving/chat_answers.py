"""Answers in the format of OpenAI's chat completions: whole, or as the events of a stream."""

import json
import time
import uuid
from typing import Any

from .chat_requests import ChatReader, ChatRequest
from .generation_queue import INCOMPLETE, Part, Step


class ChatAnswer:
    """
    Attributes:
        chats: the question that the parts answer.
        stream: whether the answer is sent as `events`, or `whole`.
    """

    def __init__(self, model: str, reader: ChatReader, request: ChatRequest):
        self.chats, self.stream = [request], request.stream
        self._reader, self._request = reader, request
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._begun = False

    def whole(self, parts: list[Part]) -> dict[str, Any]:
        (part,) = parts
        message = {"role": "assistant", "content": part.text}
        usage = self._usage(part.tokens)
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(part, message=message)],
            "usage": usage,
        }

    def events(self, number: int, part: Part) -> list[str]:
        """The events for text added to the answer; the last part also ends the stream."""
        delta = {"content": part.text} if self._begun else {"role": "assistant", "content": part.text}
        self._begun = True
        events = [self._chunk([self._choice(part, delta=delta)])]
        if part.finish_reason and self._request.include_usage:
            events.append(self._chunk([], usage=self._usage(part.tokens)))
        return [*events, "[DONE]"] if part.finish_reason else events

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        more = {"usage": usage} if self._request.include_usage else {}
        return json.dumps({**self._head, "object": "chat.completion.chunk", "choices": choices, **more})

    def _choice(self, part: Part, **content: Any) -> dict[str, Any]:
        wanted = self._request.sampling.top_logprobs is not None
        logprobs = {"content": [self._step(step) for step in part.steps]} if wanted else None
        return {"index": 0, **content, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _step(self, step: Step) -> dict[str, Any]:
        top = [self._token(token, logprob) for token, logprob in step.top]
        return self._token(step.token, step.logprob) | {"top_logprobs": top}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._reader.token(token)
        name = f"token_id:{token}" if self._request.token_ids else text
        # The text of an incomplete character does not tell its bytes.
        known = None if INCOMPLETE in text else list(text.encode())
        return {"token": name, "logprob": logprob, "bytes": known}

    def _usage(self, tokens: int) -> dict[str, Any]:
        prompt = self._request.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "prompt_tokens_details": {"audio_tokens": self._request.audio_tokens},
            "completion_tokens": tokens,
            "total_tokens": prompt + tokens,
        }


__all__ = ["ChatAnswer"]
