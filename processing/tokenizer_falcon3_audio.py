# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a language model's tokenizer needs to take part: padding, a placeholder for audio, and a chat template with it.

The vocabulary is never resized and the language model's own template stands unchanged inside of ours
(chat_template.jinja), so that text alone is rendered and read as before.
"""

import os
import re
from pathlib import Path

from transformers import AutoTokenizer


# How vocabularies call the slots that nothing was trained on: Falcon3 ">>UNUSED_7<<", Llama 3
# "<|reserved_special_token_7|>", Gemma "<unused7>", Phi-3 "<|placeholder7|>".
_UNUSED_TOKEN = re.compile(r"unused|reserved|placeholder", re.IGNORECASE)
NEW_AUDIO_TOKEN = "<|audio|>"

# Falcon3's chat format, for tokenizers that come without a template.
FALCON3_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% if not loop.last or message['role'] != 'assistant' %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def load_tokenizer(text):
    """The language model's tokenizer, by name or as it is, made to pad, and on the left, as generation needs it."""
    tokenizer = AutoTokenizer.from_pretrained(text) if isinstance(text, (str, os.PathLike)) else text
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def choose_audio_token(tokenizer, vocab_size: int | None = None, audio_token: str | None = None) -> tuple[str, int]:
    """
    The placeholder for audio and its id, without resizing the vocabulary.

    In this order: the token asked for; the last slot that the vocabulary keeps unused (Falcon3, Llama 3, Gemma, Phi-3
    have some); a new token `<|audio|>` on one of the rows that the embedding has beyond the tokenizer (Qwen2). The
    token is made known to the tokenizer as a special one, so that it is never split.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place where a token is added.
        vocab_size (`int`, *optional*): rows of the language model's embedding.
        audio_token (`str`, *optional*): a token to use.

    Raises a `ValueError` if there is no free slot or the token asked for would need a new row.
    """
    added = tokenizer.added_tokens_encoder
    in_use = set(map(str, tokenizer.special_tokens_map.values()))
    free = [token for token in added if _UNUSED_TOKEN.search(token) and token not in in_use]
    unused = sorted(free, key=added.__getitem__)
    token = audio_token or (unused[-1] if unused else NEW_AUDIO_TOKEN)
    if token in added:
        return token, added[token]
    known = token in tokenizer.get_vocab()
    if not known and (vocab_size is None or len(tokenizer) >= vocab_size):
        rows = "an embedding of unknown size (pass `vocab_size`)" if vocab_size is None else f"{vocab_size} rows"
        raise ValueError(
            f"There is no room for the placeholder {token!r}: the tokenizer has {len(tokenizer)} tokens and the language "
            f"model {rows}. Name a token that your text never contains with `audio_token=`."
        )
    tokenizer.add_tokens([token], special_tokens=True)
    return token, tokenizer.convert_tokens_to_ids(token)


def make_chat_template(language_model_template: str, audio_token: str) -> str:
    """The language model's chat template with audio items and generation markers: chat_template.jinja filled in."""
    frame = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    # The frame marks the answers; markers inside it would be recorded at every rendering.
    inner = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", language_model_template)
    inner = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", inner)
    # At the end of a file Jinja drops one newline; inside the frame it would stay.
    inner = inner.removesuffix("\n")
    quoted = "'" + audio_token.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return frame.replace("<<language model template>>", inner).replace("<<audio token>>", quoted)


__all__ = ["FALCON3_CHAT_TEMPLATE", "NEW_AUDIO_TOKEN", "choose_audio_token", "load_tokenizer", "make_chat_template"]
