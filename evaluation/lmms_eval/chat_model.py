"""A local model that answers chats in lmms-eval's format. Does not need lmms-eval, which calls it through model.py.

It loads models and counts audio tokens as local_model.py does, and raises if a prompt with a clip has none: adapters
have silently dropped audio. Decoding is greedy, and anything else that a task asks for is refused.
"""

from typing import Any

from falcon3_audio.processing import SAMPLING_RATE, load_audio

from ..answerers import NoAudio
from ..local_model import LocalModel


MAX_NEW_TOKENS = 256  # if a task does not say
# Of a task's `generation_kwargs`; all but the first two have no effect on greedy decoding.
KNOWN = {"max_new_tokens", "until", "do_sample", "num_beams", "temperature", "top_p", "top_k"}

Chat = list[dict[str, Any]]


class ChatModel(LocalModel):
    """A `LocalModel` that answers chats rather than a benchmark's questions."""

    def reply(self, chats: list[Chat], max_new_tokens: int) -> list[str]:
        """
        The replies to chats, with audio in the pipeline's format.

        Raises:
            `NoAudio`: no audio tokens, or none that can be counted, in the prompt of a chat with audio.
            Also what the pipeline raises.
        """
        self._pipe.forget_audio()
        heard = [any(item["type"] == "audio" for message in chat for item in message["content"]) for chat in chats]
        if any(heard) and self._pipe.audio_token_id is None:
            raise NoAudio(f"{self.name}: {self.check_audio()}, so whether it hears cannot be checked.")
        decoding = self._decoding | {"max_new_tokens": max_new_tokens}
        records = self._pipe(chats, batch_size=len(chats), **decoding)
        for has_audio, count in zip(heard, self._pipe.audio_tokens):
            if has_audio and not count:
                raise NoAudio(f"{self.name} was given a clip but its prompt has no audio tokens.")
        return [record[0]["generated_text"] for record in records]


def max_new_tokens(decoding: dict[str, Any]) -> int:
    """
    The limit of a reply in tokens, from a task's `generation_kwargs`.

    Raises:
        `ValueError`: they ask for sampling or beams, or for unknown options.
    """
    unknown = decoding.keys() - KNOWN
    sampled = decoding.get("do_sample", (decoding.get("temperature") or 0) > 0)
    if unknown or sampled or (decoding.get("num_beams") or 1) > 1:
        raise ValueError(
            f"the task asks for the decoding {decoding}; falcon3_audio decodes greedily and knows max_new_tokens and "
            "until. Try --gen_kwargs do_sample=False,num_beams=1."
        )
    return int(decoding.get("max_new_tokens", MAX_NEW_TOKENS))


def cut(reply: str, until: str | list[str] | None) -> str:
    """The reply up to the first of the stop texts."""
    for end in [until] if isinstance(until, str) else until or []:
        reply = reply.split(end)[0] if end else reply
    return reply


def to_chat(messages: Chat) -> Chat:
    """lmms-eval's messages as the pipeline takes them, the clips as mono float32 at 16 kHz, shape `(samples,)`."""
    return [message | {"content": [_to_item(item) for item in message["content"]]} for message in messages]


def _to_item(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] == "audio":
        return {"type": "audio", "audio": load_audio(item["url"]), "sampling_rate": SAMPLING_RATE}
    if item["type"] != "text":
        raise ValueError(f"the task gives the model {item['type']}; falcon3_audio takes only audio and text.")
    return item
