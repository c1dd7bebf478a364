"""The processor against Whisper's feature extractor (clips padded to 30 s), the language model's own chat template, and
token counts by hand."""

import copy
import json
import logging
import math

import numpy as np
import pytest
import soundfile
import torch
from jinja2 import TemplateError
from tiny import FALCON3_TEMPLATE, make_llm, make_tokenizer, question, tone
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, WhisperFeatureExtractor

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.processing import choose_audio_token, load_audio


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small only lose time on more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_processor(tokenizer=None, mels=80, vocab_size=None, **options):
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    return Falcon3AudioProcessor.from_backbones(
        WhisperFeatureExtractor(feature_size=mels), tokenizer, vocab_size=vocab_size, **options
    )


def tokenized(processor, conversation, **kwargs):
    return processor.apply_chat_template(conversation, tokenize=True, return_dict=True, **kwargs)


def features_of(processor, clip) -> np.ndarray:
    return processor(audio=clip, sampling_rate=16_000)["input_features"][0].numpy()


def stock_features(clip, mels=80) -> np.ndarray:
    """What Whisper is given for a window: the features of the clip padded to 30 s."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    return extractor(clip, sampling_rate=16_000, return_tensors="np")["input_features"][0]


def audio_tokens(processor, row) -> int:
    return int((row == processor.audio_token_id).sum())


# Features.

SOUND = tone(61.0)


@pytest.mark.parametrize(
    "samples, mels",
    [(samples, 80) for samples in (1, 159, 161, 321, 480, 16_000, 47_999, 479_520, 479_841, 479_999, 480_000)]
    + [(samples, 128) for samples in (1, 641, 16_001, 480_000)],
)
def test_features_are_whispers(samples, mels):
    clip, processor = SOUND[:samples], make_processor(mels=mels)
    inputs = processor(audio=clip, sampling_rate=16_000)
    frames = math.ceil(samples / 160)
    assert inputs["input_features_mask"].sum() == inputs["input_features_mask"][0, :frames].sum() == frames
    read = min(frames + 1, 3000)  # the encoder looks one frame ahead
    stock = stock_features(clip, mels)[:, :read]
    np.testing.assert_allclose(inputs["input_features"][0, :, :read].numpy(), stock, atol=1e-6, rtol=0)


@pytest.mark.parametrize("clip", [np.zeros(5_000), np.ones(5_000), 1e-6 * tone(1.0)], ids=["silence", "DC", "faint"])
def test_features_of_unusual_sounds(processor, clip):
    clip = clip.astype(np.float32)
    frames = math.ceil(len(clip) / 160) + 1
    stock = stock_features(clip)[:, :frames]
    np.testing.assert_allclose(features_of(processor, clip)[:, :frames], stock, atol=1e-6, rtol=0)


def test_features_do_not_depend_on_the_batch(processor):
    clips = [SOUND[:16_000], SOUND[5_000:5_777], SOUND[: 31 * 16_000], 3 * SOUND[:100]]
    batch = processor(text=[processor.audio_token] * 4, audio=clips, sampling_rate=16_000)
    for clip, row, mask in zip(clips, batch["input_features"], batch["input_features_mask"]):
        alone = processor(audio=clip, sampling_rate=16_000)
        width = alone["input_features"].shape[-1]
        assert torch.equal(row[:, :width], alone["input_features"][0])
        assert torch.equal(mask[:width], alone["input_features_mask"][0])
        assert not row[:, width:].any() and not mask[width:].any()


def test_long_audio_is_windows_side_by_side(processor):
    inputs = processor(audio=SOUND, sampling_rate=16_000)
    assert inputs["input_features"].shape[0] == 1 and int(inputs["input_features_mask"].sum()) == 6_100
    for start, frames in ((0, 3000), (3000, 3000), (6000, 100)):
        stock = stock_features(SOUND[start * 160 :][:480_000])[:, :frames]
        window = inputs["input_features"][0, :, start : start + frames].numpy()
        np.testing.assert_allclose(window, stock, atol=1e-6, rtol=0)


@pytest.mark.parametrize("seconds", [2.5, 31])
def test_pad_to_window_gives_stock_features(seconds):
    clip = SOUND[: int(seconds * 16_000)]
    inputs = make_processor(pad_to_window=True)(audio=clip, sampling_rate=16_000)
    windows = [stock_features(clip[start : start + 480_000]) for start in range(0, len(clip), 480_000)]
    np.testing.assert_allclose(inputs["input_features"][0].numpy(), np.concatenate(windows, 1), atol=1e-6, rtol=0)
    assert int(inputs["input_features_mask"].sum()) == seconds * 100


# Tokens.

SECOND = 16_000


@pytest.mark.parametrize(
    "samples, options, tokens",
    [
        (1, {}, 1),
        (640, {}, 1),
        (641, {}, 2),
        (SECOND, {}, 25),
        (10 * SECOND, {}, 250),
        (30 * SECOND - 1, {}, 750),
        (30 * SECOND, {}, 750),
        (30 * SECOND + 1, {}, 751),
        (61 * SECOND, {}, 1525),
        (10 * SECOND, {"pooling_window": 1}, 500),
        (SECOND, {"pooling_window": 4}, 13),
        (30 * SECOND + 1, {"pooling_window": 4}, 376),
        (1, {"pad_to_window": True}, 750),
        (30 * SECOND, {"pad_to_window": True}, 750),
        (30 * SECOND + 1, {"pad_to_window": True}, 1500),
        (61 * SECOND, {"pad_to_window": True}, 2250),
        (SECOND, {"pad_to_window": True, "pooling_window": 4}, 375),
    ],
)
def test_token_counts_by_hand(samples, options, tokens):
    processor = make_processor(**options)
    inputs = processor(text="a" + processor.audio_token, audio=SOUND[:samples], sampling_rate=16_000)
    assert inputs["input_ids"].tolist() == [[*processor.tokenizer.encode("a"), *[processor.audio_token_id] * tokens]]
    assert processor._get_num_multimodal_tokens(audio_lengths=[samples, samples])["num_audio_tokens"] == [tokens] * 2


def test_the_model_makes_as_many_tokens(processor, model):
    lengths = [1, 641, 7_777, 16_000, 479_999, 480_001]
    inputs = processor(audio=[SOUND[:length] for length in lengths], sampling_rate=16_000)
    with torch.no_grad():
        made = model.model.get_audio_features(**inputs).pooler_output.shape[0]
    assert made == sum(processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"])


# The limit.


def test_what_is_over_the_limit_is_cut_with_a_warning(caplog):
    processor, clip = make_processor(max_audio_seconds=2), SOUND[: int(3.2 * SECOND)]
    with caplog.at_level(logging.WARNING):
        inputs = processor(text=processor.audio_token, audio=clip, sampling_rate=16_000)
    assert "3.2 s" in caplog.text and "first 2 s" in caplog.text and "max_audio_seconds" in caplog.text
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), features_of(processor, clip[: 2 * SECOND]))
    assert inputs["input_ids"].shape == (1, 50)
    assert processor._get_num_multimodal_tokens(audio_lengths=[len(clip)])["num_audio_tokens"] == [50]


def test_the_limit_itself_is_heard_without_a_warning(caplog):
    processor = make_processor(max_audio_seconds=2)
    with caplog.at_level(logging.WARNING):
        processor(audio=SOUND[: 2 * SECOND], sampling_rate=16_000)
    assert not caplog.text


@pytest.mark.parametrize("kwargs", [{"truncation": False}, {"audio_kwargs": {"truncation": False}}])
def test_what_is_over_the_limit_can_be_refused(kwargs):
    processor, clip = make_processor(max_audio_seconds=2), SOUND[: int(3.2 * SECOND)]
    with pytest.raises(ValueError, match=r"audio 0 is 3\.2 s long, over the limit of 2 s.*Split it"):
        processor(audio=clip, sampling_rate=16_000, **kwargs)
    with pytest.raises(ValueError, match=r"3\.2 s long"):
        tokenized(processor, question(clip), processor_kwargs=kwargs)


# Arguments.


@pytest.mark.parametrize(
    "kwargs",
    [
        {"max_length": 90, "padding": "max_length"},
        {"max_length": 90, "padding": "max_length", "truncation": True},
        {"max_length": 90, "padding": "max_length", "truncation": False},
        {"padding": "longest", "pad_to_multiple_of": 90},
        {"text_kwargs": {"max_length": 90, "padding": "max_length"}},
    ],
)
def test_arguments_for_the_text_leave_the_audio_alone(processor, kwargs):
    clip = SOUND[: 2 * SECOND]
    inputs = processor(text=processor.audio_token + "hello", audio=clip, sampling_rate=16_000, **kwargs)
    assert inputs["input_ids"].shape == (1, 90) and audio_tokens(processor, inputs["input_ids"]) == 50
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), features_of(processor, clip))


def test_text_is_not_cut_through_the_audio(processor):
    prompt = processor.audio_token + "hello"
    cut = processor(text=prompt, audio=SOUND[:SECOND], sampling_rate=16_000, truncation=True, max_length=27)
    assert cut["input_ids"].shape == (1, 27) and audio_tokens(processor, cut["input_ids"]) == 25
    with pytest.raises(ValueError, match="truncation"):
        processor(text=prompt, audio=SOUND[:SECOND], sampling_rate=16_000, truncation=True, max_length=24)
    with pytest.raises(ValueError, match="truncation"):
        options = {"truncation": True, "max_length": 24}
        tokenized(processor, question(SOUND[:SECOND]), processor_kwargs=options)


def test_placeholders_and_audios_must_match(processor):
    token, clip = processor.audio_token, SOUND[:SECOND]
    for text, audio in (
        (["hi", token], [clip, clip]),
        (token + token, [clip]),
        (token, None),
        ("hi", clip),
        ([token, token], [clip] * 3),
    ):
        with pytest.raises(ValueError, match=r"Got \d audios, but the texts hold \d audio placeholders"):
            processor(text=text, audio=audio, sampling_rate=16_000)


def test_calls_without_sense(processor):
    for arguments, message in (
        ({}, "Give the processor `text`, `audio` or both"),
        ({"text": [3]}, "must be a string or a list of strings"),
        ({"text": "a", "images": [np.zeros((3, 8, 8))]}, "got images or videos"),
        ({"text": "a", "return_labels": True}, "use `apply_chat_template`"),
        ({"text": "a", "text_kwargs": {"return_labels": True}}, "use `apply_chat_template`"),
        ({"text": "a", "audios": [SOUND[:SECOND]]}, "audio"),  # the old name, which is easily passed over
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            processor(**arguments)


def test_no_audio_at_all(processor):
    alone = processor(text="hi")
    assert set(alone) == {"input_ids", "attention_mask"}
    assert processor(text="hi", audio=[])["input_ids"].tolist() == alone["input_ids"].tolist()


def test_one_clip_or_a_list_of_them(processor, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:SECOND], 16_000, subtype="FLOAT")
    wanted = features_of(processor, SOUND[:SECOND])
    samples = SOUND[:SECOND]
    for audio in (samples, [samples], samples.tolist(), list(samples), torch.from_numpy(samples), str(path), [path]):
        inputs = processor(text=processor.audio_token, audio=audio, sampling_rate=16_000)
        np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)
    for pair in ([path.read_bytes(), str(path)], (samples, {"array": samples, "sampling_rate": 16_000})):
        inputs = processor(text=processor.audio_token * 2, audio=pair, sampling_rate=16_000)
        for row in inputs["input_features"].numpy():
            np.testing.assert_array_equal(row, wanted)


def test_numpy_tensors(processor):
    inputs = processor(text=processor.audio_token, audio=SOUND[:SECOND], sampling_rate=16_000, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in inputs.values())
    np.testing.assert_array_equal(inputs["input_features"][0], features_of(processor, SOUND[:SECOND]))


def rate_arguments(rate):
    """Every place at which a user may say how fast an array was sampled."""
    return {
        "of the item": ({"sampling_rate": rate}, {}),
        "of the call": ({}, {"sampling_rate": rate}),
        "of the call, the item has none": ({"sampling_rate": None}, {"sampling_rate": rate}),
        "in processor_kwargs": ({}, {"processor_kwargs": {"sampling_rate": rate}}),
        "in audio_kwargs": ({}, {"processor_kwargs": {"audio_kwargs": {"sampling_rate": rate}}}),
    }


@pytest.mark.parametrize("place", rate_arguments(0))
def test_the_sampling_rate_is_heard_wherever_it_is_given(processor, place):
    clip = tone(1.0, rate=44_100)
    item, kwargs = rate_arguments(44_100)[place]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": clip, **item}]}]
    wanted = features_of(processor, load_audio(clip, 44_100))
    inputs = tokenized(processor, chat, **copy.deepcopy(kwargs))
    assert audio_tokens(processor, inputs["input_ids"]) == 25
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


@pytest.mark.parametrize("place", rate_arguments(0))
def test_an_impossible_sampling_rate_is_an_error_wherever_it_is_given(processor, place):
    item, kwargs = rate_arguments(0)[place]
    chat = [{"role": "user", "content": [{"type": "audio", "audio": SOUND[:SECOND], **item}]}]
    with pytest.raises(ValueError, match="message 0.*whole number of Hz.*got 0"):
        tokenized(processor, chat, **copy.deepcopy(kwargs))


def test_the_sampling_rate_of_a_call(processor):
    clip = tone(1.0, rate=8_000)
    wanted = features_of(processor, load_audio(clip, 8_000))
    for kwargs in ({"sampling_rate": 8_000}, {"audio_kwargs": {"sampling_rate": 8_000}}):
        inputs = processor(audio=[clip, clip], **kwargs)
        np.testing.assert_array_equal(inputs["input_features"][1].numpy(), wanted)


def test_padding_is_on_the_left(processor):
    inputs = processor(text=["a", "bell"])
    assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][0, -1] == 1
    assert processor(text=["a", "bell"], padding_side="right")["attention_mask"][0, -1] == 0


def test_a_tokenizer_object_is_made_ready_as_one_by_name_is(tmp_path):
    """It pads, and on the left, also after saving."""
    tokenizer = make_tokenizer([">>UNUSED_0<<", "<|endoftext|>"], eos_token="<|endoftext|>", padding_side="right")
    processor = make_processor(tokenizer)
    processor.save_pretrained(tmp_path)
    for made in (processor, AutoProcessor.from_pretrained(tmp_path)):
        inputs = made(text=["a", "bell"])
        assert inputs["attention_mask"][0, 0] == 0 and inputs["attention_mask"][0, -1] == 1


# Messages.


def test_audios_of_a_batch_stay_with_their_prompts(processor):
    lengths = [SECOND, 3 * SECOND, 2 * SECOND, SECOND // 2]
    a, b, c, d = (tone(length / SECOND, 300 + length) for length in lengths)
    chats = [
        question(a, b),
        question(text="Only words."),
        [*question(c), {"role": "assistant", "content": "a dog"}, *question(d, text="And this?")],
    ]
    inputs = tokenized(processor, chats, add_generation_prompt=True)
    assert [audio_tokens(processor, row) for row in inputs["input_ids"]] == [25 + 75, 0, 50 + 13]
    for clip, row in zip((a, b, c, d), inputs["input_features"].numpy(), strict=True):
        alone = features_of(processor, clip)
        np.testing.assert_array_equal(row[:, : alone.shape[1]], alone)
    for chat, row, mask in zip(chats, inputs["input_ids"], inputs["attention_mask"]):
        alone = tokenized(processor, chat, add_generation_prompt=True)
        assert row[mask.bool()].tolist() == alone["input_ids"][0].tolist()


@pytest.mark.parametrize("key", ["audio", "path", "url"])
def test_sources_in_messages(processor, tmp_path, key):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(1.0, rate=44_100), 44_100, subtype="FLOAT")
    inputs = tokenized(processor, [{"role": "user", "content": [{"type": "audio", key: str(path)}]}])
    wanted = features_of(processor, load_audio(tone(1.0, rate=44_100), 44_100))
    np.testing.assert_array_equal(inputs["input_features"][0].numpy(), wanted)


def test_messages_are_not_changed(processor, tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, SOUND[:SECOND], 16_000)
    content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
    options = {"return_labels": True, "audio_kwargs": {"sampling_rate": 16_000}}
    before = copy.deepcopy((chat, options))
    tokenized(processor, chat, processor_kwargs=options)
    tokenized(processor, [chat, chat])
    assert (chat, options) == before
    clip = SOUND[:SECOND].copy()
    chat = question(clip)
    tokenized(processor, chat)
    assert chat[0]["content"][0]["audio"] is clip and np.array_equal(clip, SOUND[:SECOND])


def message_errors(token):
    user = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
    return {
        "empty": ([], "conversation is empty"),
        "placeholder in a string": ([*user, {"role": "user", "content": "a" + token}], f"Message 2.*{token}"),
        "placeholder in an item": ([*user, *question(text=token)], f"Message 2.*{token}"),
        "no source": ([*user, {"role": "user", "content": [{"type": "audio"}]}], "message 2 needs exactly one"),
        "two sources": (
            [{"role": "user", "content": [{"type": "audio", "audio": SOUND, "path": "a.wav"}]}],
            "message 0 needs exactly one",
        ),
        "bad audio": ([*user, *question(np.zeros(0))], "message 2 is empty"),
        "no file": ([{"role": "user", "content": [{"type": "audio", "path": "nowhere.wav"}]}], "message 0.*no file"),
        "OpenAI audio": ([{"role": "user", "content": [{"type": "input_audio"}]}], "'input_audio'.*'text' or 'audio'"),
        "image": ([{"role": "user", "content": [{"type": "image", "path": "a"}]}], "'image'.*'text' or 'audio'"),
        "text under another key": ([*user, {"role": "user", "content": [{"type": "text", "content": "a"}]}], "text"),
        "text that is a list": ([*user, *question(text=["What?", "Where?"])], "text"),
        "text that is None": ([*user, *question(text=None)], "text"),
    }


@pytest.mark.parametrize("case", message_errors(""))
def test_bad_messages_are_named(processor, case):
    chat, message = message_errors(processor.audio_token)[case]
    with pytest.raises((ValueError, TemplateError), match=message):
        tokenized(processor, chat)


# Chat templates. The formats of the families, as their tokenizers have them.

QWEN = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{%- generation -%}{{ m.content + '<|im_end|>' }}{%- endgeneration -%}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MACRO = (
    "{% macro show(m, depth) %}{% if depth > 0 %}{{ show(m, depth - 1) }}{% else %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endmacro %}"
    "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}{{ show(m, 2) }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# family -> (template, end of an answer)
FAMILIES = {
    "falcon3": (FALCON3_TEMPLATE, "<|endoftext|>"),
    "qwen2.5": (QWEN, "<|im_end|>"),
    "llama3": (LLAMA3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "mistral": (MISTRAL, "<|endoftext|>"),
    "generation markers": (MARKED, "<|im_end|>"),
    "macros": (MACRO, "<|im_end|>"),
}
# Jinja treats white space at the edges of a file in its own way.
EDGES = {
    "newline in front": "\n" + PLAIN,
    "two newlines in front": "\n\n" + PLAIN,
    "indented": "    " + PLAIN,
    "newline behind": PLAIN + "{{ '' }}\n",
    "two newlines behind": PLAIN + "{{ '' }}\n\n",
    "spaces behind": PLAIN + "\n   ",
}
TEMPLATES = {family: template for family, (template, _) in FAMILIES.items()} | EDGES
SPECIAL = [
    ">>UNUSED_0<<",
    ">>UNUSED_1<<",
    "<|endoftext|>",
    "<|pad|>",
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|eot_id|>",
]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]


def chat_tokenizer(template):
    """One that, as Llama's, writes <s> in front of everything it is not told to leave alone."""
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "bos_token": "<s>"}
    tokenizer = make_tokenizer(SPECIAL, template, **names)
    first = [("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=first)
    return tokenizer


def conversations(token, clip):
    """Chats for the processor, each with the same chat in which the placeholder was put by hand."""
    audio = {"type": "audio", "audio": clip, "sampling_rate": 16_000}
    text = {"type": "text", "text": "What do you hear?"}
    user = {"role": "user", "content": [audio, text]}
    by_hand = {"role": "user", "content": token + "What do you hear?"}
    answer = {"role": "assistant", "content": " A dog. "}
    items = {"role": "assistant", "content": [{"type": "text", "text": " A dog. "}]}
    two = {"role": "user", "content": [text, audio, {"type": "text", "text": "Or this?"}, audio]}
    two_by_hand = {"role": "user", "content": token * 2 + "What do you hear?\nOr this?"}
    words = {"role": "user", "content": "And now?"}
    return [
        ([words], [words]),
        ([user], [by_hand]),
        ([{"role": "user", "content": [audio]}], [{"role": "user", "content": token}]),
        ([user, answer], [by_hand, answer]),
        ([user, items], [by_hand, answer]),
        ([user, answer, words, answer, two], [by_hand, answer, words, answer, two_by_hand]),
    ]


@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_are_those_of_the_language_model(family):
    tokenizer = chat_tokenizer(TEMPLATES[family])
    processor = make_processor(chat_tokenizer(TEMPLATES[family]))
    for chat, by_hand in conversations(processor.audio_token, SOUND[:640]):
        modes = [{"add_generation_prompt": False}, {"add_generation_prompt": True}]
        if chat[-1]["role"] == "assistant":
            modes.append({"continue_final_message": True})
        for mode in modes:
            prompt = tokenizer.apply_chat_template(by_hand, tokenize=False, **mode)
            assert processor.apply_chat_template(chat, **mode) == prompt
            # Clips of 640 samples are one token: the placeholder stands as it is.
            ids = tokenizer.apply_chat_template(by_hand, tokenize=True, **mode)["input_ids"]
            assert tokenized(processor, chat, **mode)["input_ids"].tolist() == [ids]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("gemma",)])
def test_system_prompts(family):
    template = FAMILIES[family][0]
    chat = [{"role": "system", "content": "Be brief."}, *question(text="Hi?")]
    by_hand = [chat[0], {"role": "user", "content": "Hi?"}]
    wanted = chat_tokenizer(template).apply_chat_template(by_hand, tokenize=False, add_generation_prompt=True)
    assert make_processor(chat_tokenizer(template)).apply_chat_template(chat, add_generation_prompt=True) == wanted


def test_errors_of_the_language_models_template_come_through():
    processor = make_processor(chat_tokenizer(GEMMA))
    with pytest.raises(TemplateError, match="System role not supported"):
        processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *question()])


def test_variables_reach_the_language_models_template():
    words, options = [{"role": "user", "content": "Hi?"}], {"add_generation_prompt": True, "enable_thinking": False}
    wanted = chat_tokenizer(QWEN).apply_chat_template(words, tokenize=False, **options)
    assert "</think>" in wanted
    assert make_processor(chat_tokenizer(QWEN)).apply_chat_template(words, **options) == wanted


def test_a_tokenizer_without_a_template_gets_falcon3s():
    processor = make_processor(make_tokenizer(template=None))
    for chat, by_hand in conversations(processor.audio_token, None):
        wanted = make_tokenizer().apply_chat_template(by_hand, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(chat, add_generation_prompt=True) == wanted


def test_the_default_of_several_named_templates_is_taken():
    tokenizer = make_tokenizer(template={"default": FALCON3_TEMPLATE, "tool_use": "tools!"})
    wanted = make_tokenizer().apply_chat_template([{"role": "user", "content": "Hi?"}], tokenize=False)
    assert make_processor(tokenizer).apply_chat_template([{"role": "user", "content": "Hi?"}]) == wanted


# Labels.


def spans(processor, labels) -> list[str]:
    """The stretches of text that are learned."""
    found, last = [], -100
    for label in labels.tolist():
        if label != -100:
            found.append([]) if last == -100 else None
            found[-1].append(label)
        last = label
    return [processor.tokenizer.decode(ids) for ids in found]


def with_answers(clip, *answers):
    """Turns with audio in every question."""
    turns = [(*question(clip, text="Ein Bär 🐻?"), {"role": "assistant", "content": answer}) for answer in answers]
    return [message for turn in turns for message in turn]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_answers_and_their_end_tokens(family):
    template, end = FAMILIES[family]
    processor = make_processor(chat_tokenizer(template))
    answers = ["A dog.", "Ein Bär 🐻?", "a\n\nb"]
    inputs = tokenized(processor, with_answers(SOUND[:3_000], *answers), processor_kwargs={"return_labels": True})
    labels, ids = inputs["labels"][0], inputs["input_ids"][0]
    assert spans(processor, labels) == [answer + end for answer in answers]
    assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_labels_agree_with_the_language_models_own_markers():
    words = [message | {"content": str(message["content"])} for message in with_answers(None, "A dog.", "b")]
    tokenizer = chat_tokenizer(MARKED)
    own = tokenizer.apply_chat_template(words, tokenize=True, return_assistant_tokens_mask=True)
    inputs = tokenized(make_processor(chat_tokenizer(MARKED)), words, processor_kwargs={"return_labels": True})
    assert (inputs["labels"][0] != -100).int().tolist() == own["assistant_masks"]
    assert inputs["input_ids"][0].tolist() == own["input_ids"]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_labels_of_a_padded_batch(padding_side):
    processor = make_processor(chat_tokenizer(LLAMA3))
    chats = [with_answers(SOUND[:20_000], "A dog."), with_answers(SOUND[:1_000], "A bell", "b")]
    chats.append([{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hi."}])
    options = {"return_labels": True, "padding_side": padding_side}
    inputs = tokenized(processor, chats, processor_kwargs=options)
    assert inputs["labels"].shape == inputs["input_ids"].shape
    assert (inputs["labels"][inputs["attention_mask"] == 0] == -100).all()
    assert (inputs["attention_mask"][2, 0] == 0) == (padding_side == "left")
    ends = [["A dog.<|eot_id|>"], ["A bell<|eot_id|>", "b<|eot_id|>"], ["Hi.<|eot_id|>"]]
    assert [spans(processor, row) for row in inputs["labels"]] == ends


def test_a_conversation_without_an_answer_has_no_labels(processor):
    chats = [with_answers(SOUND[:1_000], "A dog."), question(SOUND[:1_000])]
    with pytest.raises(ValueError, match=r"Conversations \[1\] have no answer"):
        tokenized(processor, chats, processor_kwargs={"return_labels": True})
    words = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    length = len(
        processor.tokenizer(processor.apply_chat_template(words[:1], add_generation_prompt=True))["input_ids"]
    )
    options = {"return_labels": True, "truncation": True, "max_length": length}
    with pytest.raises(ValueError, match=r"Conversations \[0\] have no answer"):
        tokenized(processor, words, processor_kwargs=options)
    cut = tokenized(processor, words, processor_kwargs=options | {"max_length": length + 2})
    assert spans(processor, cut["labels"][0]) == ["He"]


def test_labels_are_never_left_out_in_silence(processor):
    chat = with_answers(SOUND[:1_000], "A dog.")
    with pytest.raises(ValueError, match="return_labels"):
        processor.apply_chat_template(chat, processor_kwargs={"return_labels": True})
    try:
        inputs = tokenized(processor, chat, processor_kwargs={"text_kwargs": {"return_labels": True}})
    except ValueError:
        return
    assert spans(processor, inputs["labels"][0]) == ["A dog.<|endoftext|>"]


# The placeholder token.


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
    assert tokenizer.encode("a<|audio|><|audio|>b").count(size) == 2


@pytest.mark.parametrize("rows, named", [(280, "280 rows"), (None, "unknown size")])
def test_no_room_for_a_placeholder(rows, named):
    tokenizer = make_tokenizer(["<|endoftext|>"], eos_token="<|endoftext|>")
    assert len(tokenizer) == 280
    with pytest.raises(ValueError, match=f"no room.*280 tokens.*{named}.*audio_token="):
        choose_audio_token(tokenizer, rows)
    assert len(tokenizer) == 280


def test_the_placeholder_asked_for(tokenizer):
    assert make_processor(copy.deepcopy(tokenizer), audio_token=">>UNUSED_0<<").audio_token_id == 0
    word = next(word for word in tokenizer.get_vocab() if len(word) > 3 and word.isalpha())
    processor = make_processor(copy.deepcopy(tokenizer), audio_token=word)
    assert processor.audio_token_id == tokenizer.convert_tokens_to_ids(word)
    inputs = processor(text=word + "x", audio=SOUND[:SECOND], sampling_rate=16_000)
    assert audio_tokens(processor, inputs["input_ids"]) == 25
    with pytest.raises(ValueError, match="must be one token.*'never heard of it'"):
        Falcon3AudioProcessor(WhisperFeatureExtractor(), tokenizer, audio_token="never heard of it")


# Saving.


@pytest.mark.parametrize("family", ["falcon3", "qwen2.5"])
def test_a_saved_processor_is_the_same(tmp_path, family):
    unused = [] if family == "qwen2.5" else [">>UNUSED_0<<"]
    special = [*unused, "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    tokenizer = make_tokenizer(special, FAMILIES[family][0], **names)
    options = {"pooling_window": 4, "pad_to_window": True, "max_audio_seconds": 45.5}
    processor = make_processor(tokenizer, mels=128, vocab_size=300, **options)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is Falcon3AudioProcessor
    for name in (*options, "audio_token", "audio_token_id", "chat_template", "model_input_names"):
        assert getattr(loaded, name) == getattr(processor, name), name
    chats = [with_answers(SOUND[:2_000], "A dog."), with_answers(SOUND[:1_000], "b", "c")]
    ours, theirs = (tokenized(each, chats, processor_kwargs={"return_labels": True}) for each in (processor, loaded))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names_and_objects_give_the_same_processor(tmp_path, backbone_folders):
    tokenizer = make_tokenizer(["<|endoftext|>", "<|pad|>"], QWEN, eos_token="<|endoftext|>", pad_token="<|pad|>")
    tokenizer.save_pretrained(tmp_path)
    make_llm().save_pretrained(tmp_path)  # 300 rows for 280 tokens
    by_name = Falcon3AudioProcessor.from_backbones(backbone_folders[0], str(tmp_path))
    by_object = make_processor(tokenizer, vocab_size=300)
    assert (by_name.audio_token, by_name.audio_token_id) == ("<|audio|>", 280)
    assert (by_object.audio_token, by_object.audio_token_id) == ("<|audio|>", 280)
    assert by_name.chat_template == by_object.chat_template
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] > by_name.audio_token_id
