"""Which token becomes the placeholder, and tokens that cannot."""

import builtins
import copy
import json
import re

import pytest
from chat_templates import PLAIN, QWEN, SPECIAL, chat_tokenizer, make_with
from tiny import audio_tokens, make_llm, make_processor, make_tokenizer, tone
from transformers import AutoTokenizer, WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.processing import choose_audio_token, load_tokenizer


SECOND = 16_000


SOUND = tone(2.0)


@pytest.mark.parametrize(
    "special, wanted",
    [
        (["<|endoftext|>", ">>UNUSED_0<<", ">>UNUSED_1<<", "<|pad|>"], ">>UNUSED_1<<"),
        (["<|endoftext|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|pad|>"], "_1|>"),
        (["<pad>", "<|endoftext|>", "<unused0>", "<unused1>", "<start_of_turn>"], "<unused1>"),
        (["<|endoftext|>", "<|placeholder1|>", "<|user|>", "<|placeholder2|>"], "<|placeholder2|>"),
    ],
    ids=["falcon3", "llama3", "gemma", "phi3"],
)
def test_an_unused_slot_becomes_the_placeholder(special, wanted):
    tokenizer = make_tokenizer(special, eos_token="<|endoftext|>")
    size = len(tokenizer)
    token, index = choose_audio_token(tokenizer)
    assert token.endswith(wanted) and index == tokenizer.convert_tokens_to_ids(token) < size == len(tokenizer)
    assert tokenizer.encode(f"a{token}{token}b").count(index) == 2


def test_a_slot_that_is_the_padding_token_is_not_free():
    tokenizer = make_tokenizer(pad_token=">>UNUSED_1<<", eos_token="<|endoftext|>", special_tokens=SPECIAL)
    assert choose_audio_token(tokenizer)[0] == ">>UNUSED_0<<"


def test_a_spare_row_of_the_embedding_becomes_the_placeholder():
    tokenizer = make_tokenizer(["<|endoftext|>", "<|im_start|>"], eos_token="<|endoftext|>")
    size = len(tokenizer)
    assert choose_audio_token(tokenizer, size + 1) == ("<|audio|>", size)
    assert choose_audio_token(tokenizer, size + 1) == ("<|audio|>", size)  # and is found again
    ids = tokenizer.encode("a<|audio|><|audio|>b")
    assert ids.count(size) == 2 and tokenizer.decode(ids, skip_special_tokens=True) == "ab"


@pytest.mark.parametrize("rows", [280, None])
def test_without_a_slot_or_a_row_the_placeholder_is_beyond_the_vocabulary(rows):
    tokenizer = make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>")
    assert len(tokenizer) == 280
    assert choose_audio_token(tokenizer, rows) == ("<|audio|>", 280)
    assert choose_audio_token(tokenizer, rows) == ("<|audio|>", 280)  # and is found again
    ids = tokenizer.encode("a<|audio|><|audio|>b")
    assert ids.count(280) == 2 and tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_the_placeholder_asked_for(tokenizer):
    assert make_processor(copy.deepcopy(tokenizer), audio_token=">>UNUSED_0<<").audio_token_id == 0
    processor = make_processor(copy.deepcopy(tokenizer), audio_token="<sound>", vocab_size=300)
    assert processor.audio_token_id == len(tokenizer)
    inputs = processor(text="<sound>x", audio=SOUND[:SECOND], sampling_rate=16_000)
    assert audio_tokens(processor, inputs["input_ids"]) == 25
    with pytest.raises(ValueError, match="must be a single token.*'never heard of it'"):
        Falcon3AudioProcessor(WhisperFeatureExtractor(), tokenizer, audio_token="never heard of it")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("sound", "which text may contain"),  # several tokens
        ("what", "which text may contain"),  # one
        ("<a sound>", "which text may contain"),
        ("...", "which text may contain"),
        ("<|endoftext|>", "uses in its prompts"),
        ("<|im_start|>", "uses in its prompts"),
    ],
)
def test_a_placeholder_that_prompts_may_contain_is_refused(token, why):
    tokenizer = chat_tokenizer(QWEN)
    size = len(tokenizer)
    with pytest.raises(ValueError, match=f"`audio_token` must be .* got '{re.escape(token)}', .*{why}.*Leave it out"):
        choose_audio_token(tokenizer, size, token)
    assert len(tokenizer) == size


def test_a_slot_that_the_chat_template_uses_is_not_free():
    tokenizer = make_tokenizer(SPECIAL, "{{ '>>UNUSED_1<<' }}" + PLAIN, eos_token="<|endoftext|>")
    assert choose_audio_token(tokenizer)[0] == ">>UNUSED_0<<"


def test_tokens_without_a_row_are_refused():
    """Except a single one that no prompt contains, which becomes the placeholder; texts must not contain it either."""
    message = r"2 token\(s\) that the language model, with 280 rows .*: '<new>', '<newer>'. Use the tokenizer .*resize"
    tokenizer = make_tokenizer(eos_token="<|endoftext|>", special_tokens=["<|endoftext|>"])
    tokenizer.add_tokens(["<new>"], special_tokens=True)
    assert choose_audio_token(copy.deepcopy(tokenizer), 280) == ("<new>", 280)
    with pytest.raises(ValueError, match="1 token.*'<new>'. Leave out `audio_token`, and this token becomes"):
        choose_audio_token(copy.deepcopy(tokenizer), 280, audio_token="<|audio|>")
    with pytest.raises(ValueError, match="that the language model.*cannot read: '<new>'"):
        choose_audio_token(make_with(tokenizer, chat_template="<new>" + PLAIN), 280)
    with pytest.raises(ValueError, match=r"31 token\(s\).* and more\. Use"):
        choose_audio_token(copy.deepcopy(tokenizer), 250)
    tokenizer.add_tokens(["<newer>"])
    with pytest.raises(ValueError, match=message):
        make_processor(tokenizer, vocab_size=280)


def test_a_token_that_the_tokenizer_names_for_another_input_can_be_the_placeholder():
    """As Gemma 3's for images: the language model reads only text."""
    tokenizer = make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>", image_token="<image>")
    assert choose_audio_token(copy.deepcopy(tokenizer), 280) == ("<image>", 280)
    assert choose_audio_token(tokenizer, 280, audio_token="<image>") == ("<image>", 280)


@pytest.mark.parametrize("rows", [320, 311, None])
def test_ids_with_gaps_stay_as_they_are(tmp_path, rows):
    """As in Phi-4-mini, whose special tokens are behind gaps: `tokenizers` loads added tokens with other ids."""
    make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>").save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text())
    behind = {"<|user|>": 300, "<|assistant|>": 310}
    saved["model"]["vocab"] |= behind
    saved["added_tokens"] += [saved["added_tokens"][0] | {"id": behind[token], "content": token} for token in behind]
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    tokenizer = make_with(AutoTokenizer.from_pretrained(tmp_path), chat_template="<|user|>" + PLAIN)
    text = "What is <|user|> it?<|assistant|>"
    before = tokenizer.encode(text)
    assert choose_audio_token(tokenizer, rows) == ("<|audio|>", 311)
    tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert one.encode(text) == before and one.encode(f"<|audio|>{text}") == [311, *before]
        assert one.decode([311, *before]) == f"<|audio|>{text}"
        assert choose_audio_token(one, rows) == ("<|audio|>", 311)


@pytest.mark.parametrize("word", ["pancake", "unused", "<laugh>"])
def test_a_word_that_was_added_is_no_placeholder(word):
    """Every text with it would be refused."""
    tokenizer = make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>")
    tokenizer.add_tokens([word])
    with pytest.raises(ValueError, match=f"280 rows .* cannot read: '{word}'. Use the tokenizer that was saved"):
        choose_audio_token(copy.deepcopy(tokenizer), 280)
    assert choose_audio_token(copy.deepcopy(tokenizer), 281) == ("<|audio|>", 281)  # resized
    if word != "<laugh>":
        with pytest.raises(ValueError, match=f"got '{word}', which text may contain"):
            choose_audio_token(tokenizer, 281, word)


def test_a_tokenizer_without_an_end_token_is_refused():
    with pytest.raises(ValueError, match="has no end token .* answers could never end. Set the token"):
        make_processor(make_tokenizer(["<|pad|>"], pad_token="<|pad|>"))


def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda question: pytest.fail(question))
    make_llm().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path} holds no tokenizer, .*Save the language model's tokenizer there"
    ):
        load_tokenizer(str(tmp_path))
    own = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["mine.MyTokenizer", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match=f"tokenizer of {tmp_path} needs code that is not part of transformers"):
        load_tokenizer(str(tmp_path))
