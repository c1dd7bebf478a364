# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Prepares a language model's tokenizer: padding, a placeholder for audio, and a chat template that uses it.

The language model is never resized, whichever placeholder is used, and its own template is embedded unchanged in ours
(chat_template.jinja), so that text-only chats are rendered and tokenized as before; only `enable_thinking` has another
default.
"""

import json
import os
import re
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from threading import RLock

from transformers import AutoTokenizer
from transformers.utils import logging


logger = logging.get_logger(__name__)


# Names of untrained slots in vocabularies: Falcon3 ">>UNUSED_7<<", Llama 3
# "<|reserved_special_token_7|>", Gemma "<unused7>", Phi-3 "<|placeholder7|>", Mistral "[control_7]" and "<SPECIAL_7>".
_UNUSED_TOKEN = re.compile(r"unused|reserved|placeholder|^\[control_\d+\]$|^<special_\d+>$", re.IGNORECASE)
# A token that ordinary text does not contain: no whitespace, punctuation at both ends.
_MARKED_TOKEN = re.compile(r"[^\w\s]\S*\w\S*[^\w\s]")
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

# A fast tokenizer keeps the padding and truncation of a call until the next, which can be another thread's. One lock
# for all: a lock per processor would have to be left out when the processor is copied, pickled or saved.
_locks = [RLock()]
if hasattr(os, "register_at_fork"):  # a forked worker would wait for a thread that it does not have
    os.register_at_fork(after_in_child=lambda: _locks.__setitem__(0, RLock()))


def tokenizing() -> AbstractContextManager:
    """The lock to hold during a call of a tokenizer that threads share."""
    return _locks[0]


def load_tokenizer(text):
    """
    The language model's tokenizer (loaded by name, or as given), set up to pad on the left, as generation needs.

    Raises a `ValueError` for one that cannot be loaded, and for one without an end token.
    """
    tokenizer = _load(text) if isinstance(text, (str, os.PathLike)) else text
    if tokenizer.eos_token is None:
        raise ValueError(
            f"The tokenizer{_of(tokenizer)} has no end token (eos_token is None), so answers could never end. Set the "
            'token that ends answers of this language model, as in `tokenizer.eos_token = "</s>"`, and save the '
            "tokenizer."
        )
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # only these are saved
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load(name: str | os.PathLike):
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"The tokenizer of {name} needs code that is not part of transformers. Choose a language model whose "
                "tokenizer is."
            ) from error
        raise ValueError(
            f"{name} holds no tokenizer, or one that cannot be loaded. Save the language model's tokenizer there. "
            f"transformers says: {error}"
        ) from error


def choose_audio_token(tokenizer, vocab_size: int | None = None, audio_token: str | None = None) -> tuple[str, int]:
    """
    Chooses the placeholder for audio; returns it and its id. Works for every tokenizer, and the language model keeps
    its shape.

    In this order: the requested token; a special token without an embedding row (text-only Gemma 3 has one for
    images), since text cannot contain it either; the last unused slot of the vocabulary (Falcon3, Llama 3, Gemma,
    Phi-3 have some); a new token `<|audio|>`, on a spare row of the embedding (Qwen2) or, if there is none (SmolLM2),
    after the last row: audio replaces the placeholders before they reach a layer. A new token is added to the
    tokenizer as a special token, so that it is never split.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): changed in place if a token is added.
        vocab_size (`int`, *optional*): rows of the language model's embedding; without it, there is no check that the
            tokenizer fits.
        audio_token (`str`, *optional*): the requested token.

    Raises a `ValueError` for a requested token that text or the chat template can contain, and for a tokenizer with
    tokens that have no embedding row.
    """
    added = tokenizer.added_tokens_encoder
    free = [token for token in added if not _is_in_use(tokenizer, token)]
    if audio_token is not None:
        _check_audio_token(tokenizer, audio_token)
    without_row = _placeholder_without_row(tokenizer, vocab_size, free)
    token = audio_token or without_row
    _check_rows(tokenizer, vocab_size, token, without_row)
    if token is None:
        slots = [name for name in free if _UNUSED_TOKEN.search(name) and not _is_in_text(tokenizer, name)]
        token = max(slots, key=added.__getitem__, default=NEW_AUDIO_TOKEN)
    if token not in added:
        _add_token(tokenizer, token)
    return token, tokenizer.convert_tokens_to_ids(token)


def _is_in_use(tokenizer, token: str) -> bool:
    """Whether a token marks beginnings, ends or padding, or appears in the chat template."""
    # The class lists these; an instance adds the tokens of other inputs (text-only Gemma 3 names one for images).
    named = (getattr(tokenizer, name) for name in type(tokenizer).SPECIAL_TOKENS_ATTRIBUTES)
    return token in named or token in str(tokenizer.chat_template)


def _is_special(tokenizer, token: str) -> bool:
    added = tokenizer.added_tokens_encoder
    return token in added and tokenizer.added_tokens_decoder[added[token]].special


def _is_in_text(tokenizer, token: str) -> bool:
    """Whether ordinary text can contain a token, as it can a word that was added to the vocabulary."""
    return not _is_special(tokenizer, token) and not _MARKED_TOKEN.fullmatch(token)


def _without_row(tokenizer, vocab_size: int | None) -> list[str]:
    ids = {} if vocab_size is None else tokenizer.get_vocab()
    return sorted((token for token in ids if ids[token] >= vocab_size), key=ids.__getitem__)


def _placeholder_without_row(tokenizer, vocab_size: int | None, free: list[str]) -> str | None:
    tokens = _without_row(tokenizer, vocab_size)
    return tokens[0] if len(tokens) == 1 and tokens[0] in free and _is_special(tokenizer, tokens[0]) else None


def _check_rows(tokenizer, vocab_size: int | None, audio_token: str | None, without_row: str | None):
    tokens = [token for token in _without_row(tokenizer, vocab_size) if token != audio_token]
    if tokens:
        remedy = "Use the tokenizer that was saved with this language model"
        if without_row is not None:  # Gemma 3's own tokenizer, for example
            remedy = "Leave out `audio_token`, and this token becomes the placeholder"
        raise ValueError(
            f"The tokenizer{_of(tokenizer)} has {len(tokens)} token(s) that the language model, with {vocab_size} "
            f"rows in its embedding, cannot read: {', '.join(map(repr, tokens[:5]))}"
            f"{' and more' if len(tokens) > 5 else ''}. {remedy}; or, if these tokens were "
            "added to it, resize the language model (`resize_token_embeddings(len(tokenizer))`) and save both."
        )


def _check_audio_token(tokenizer, token: str):
    if _is_in_use(tokenizer, token):
        why = "which this language model uses in its prompts"
    elif _is_in_text(tokenizer, token):
        why = "which text may contain"
    else:
        return
    raise ValueError(
        f"`audio_token` must be a token that no text contains, got {token!r}, {why}. Leave it out to have one chosen, "
        f"or use an unused or new one that looks like {NEW_AUDIO_TOKEN!r}."
    )


def _add_token(tokenizer, token: str):
    """
    Adds a special token behind all others. If ids have gaps (as in Phi-4-mini), `tokenizers` loads an added token with the
    number of tokens as its id, which can be another token's, unless the vocabulary has it too.
    """
    ids = tokenizer.get_vocab().values()
    behind = 1 + max(ids)
    if tokenizer.is_fast and behind > len(ids):
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())
        if not isinstance(state["model"].get("vocab"), dict):
            raise ValueError(
                f"The tokenizer{_of(tokenizer)} has gaps in its ids, so a new token would have another id once it is saved "
                "and loaded. Give a special token that is in no prompt as `audio_token`."
            )
        state["model"]["vocab"][token] = behind
        backend.model = type(backend).from_str(json.dumps(state)).model
    tokenizer.add_tokens([token], special_tokens=True)


def _of(tokenizer) -> str:
    return f" of {tokenizer.name_or_path}" if tokenizer.name_or_path else ""


def own_chat_template(tokenizer, given: str | None = None) -> str:
    """
    The language model's chat template: the `given` one, or the tokenizer's, without thoughts by default; Falcon3's
    format, with a warning, if the tokenizer has none. A tokenizer without Falcon3's tokens reads that as ordinary text; it
    starts as the tokenizer starts every text. Of a tokenizer's several templates only this one is kept: the others know
    no audio.

    Raises a `ValueError` for several templates without a "default" one.
    """
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = given or _default_template(tokenizer)
    if given:
        return given
    if tokenizer.chat_template is not None:
        return _without_thoughts(tokenizer.chat_template, tokenizer)
    logger.warning(
        f"The tokenizer{_of(tokenizer)} has no chat template, as is usual for a language model without instruction "
        "tuning. Prompts use Falcon3's format, which it has to learn in training; an instruction-tuned version of "
        "it is the better backbone."
    )
    begins_texts = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return "{{ bos_token }}" * begins_texts + FALCON3_CHAT_TEMPLATE


def _default_template(tokenizer) -> str:
    templates = tokenizer.chat_template
    if "default" not in templates:
        raise ValueError(
            f"The tokenizer{_of(tokenizer)} has chat templates for {', '.join(templates)}, but no default. Set "
            "`tokenizer.chat_template` to the one to use, and save the tokenizer."
        )
    others = ", ".join(name for name in templates if name != "default")
    logger.warning(
        f"The tokenizer{_of(tokenizer)} has several chat templates. Prompts use the default one; the others ({others}) are "
        "left out. To use another, set `tokenizer.chat_template` to it, and save the tokenizer."
    )
    return templates["default"]


def _without_thoughts(template: str, tokenizer) -> str:
    """
    Answers to sound are learned without thoughts. Templates that begin with thoughts unless told otherwise (Qwen3) put
    empty ones into each answer to learn, or look for an answer where there is none; so `enable_thinking` is false
    unless it is given, if prompts then end where answers begin.
    """
    if "enable_thinking" not in template:
        return template
    quiet = "{% set enable_thinking = enable_thinking if enable_thinking is defined else false %}" + template
    question, answer = {"role": "user", "content": "A question?"}, {"role": "assistant", "content": "An answer."}
    render = partial(tokenizer.apply_chat_template, chat_template=quiet, tokenize=False)
    fits = render([question, answer]).startswith(render([question], add_generation_prompt=True))
    return quiet if fits else template


def make_chat_template(language_model_template: str, audio_token: str) -> str:
    """
    The language model's chat template with audio items and generation markers: chat_template.jinja filled in.

    Raises an `ImportError` if this file was loaded as a checkpoint's own code, which comes without the frame.
    """
    path = Path(__file__).with_name("chat_template.jinja")
    if not path.exists():
        raise ImportError(
            "Building a processor from backbones needs the falcon3-audio package; a checkpoint's own code only loads "
            "saved ones."
        )
    frame = path.read_text(encoding="utf-8")
    # The frame marks the answers; markers inside it would be recorded at every rendering.
    inner = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", language_model_template)
    inner = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", inner)
    # At the end of a file Jinja drops one newline; inside the frame it would stay.
    inner = inner.removesuffix("\n")
    quoted = "'" + audio_token.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return frame.replace("<<language model template>>", inner).replace("<<audio token>>", quoted)


__all__ = [
    "FALCON3_CHAT_TEMPLATE",
    "NEW_AUDIO_TOKEN",
    "choose_audio_token",
    "load_tokenizer",
    "make_chat_template",
    "own_chat_template",
    "tokenizing",
]
