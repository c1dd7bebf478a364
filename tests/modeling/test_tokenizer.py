"""Chat templates, labels and placeholders against the language models' own templates, for several families."""

import json
import re

import pytest
import torch
from chat_templates import GEMMA, LLAMA3, MISTRAL, PLAIN, QWEN, SPECIAL, chat_tokenizer, make_with
from jinja2 import Environment, TemplateError
from tiny import FALCON3_TEMPLATE, make_llm, make_processor, make_tokenizer, question, tokenized, tone
from transformers import AutoProcessor, AutoTokenizer

from falcon3_audio import Falcon3AudioProcessor
from falcon3_audio.processing import tokenizer_falcon3_audio
from falcon3_audio.processing.tokenizer_falcon3_audio import make_chat_template


SOUND = tone(61.0)


# Chat templates with features that the families' templates lack.
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
# Jinja treats whitespace at the edges of a file specially.
EDGES = {
    "newline in front": "\n" + PLAIN,
    "two newlines in front": "\n\n" + PLAIN,
    "indented": "    " + PLAIN,
    "newline behind": PLAIN + "{{ '' }}\n",
    "two newlines behind": PLAIN + "{{ '' }}\n\n",
    "spaces behind": PLAIN + "\n   ",
}
TEMPLATES = {family: template for family, (template, _) in FAMILIES.items()} | EDGES


def conversations(token, clip):
    """Chats for the processor, each with the same chat with the placeholder inserted by hand."""
    audio = {"type": "audio", "audio": clip, "sampling_rate": 16_000}
    text = {"type": "text", "text": "What do you hear?"}
    user = {"role": "user", "content": [audio, text]}
    by_hand = {"role": "user", "content": token + "What do you hear?"}
    answer = {"role": "assistant", "content": " A dog. "}
    items = {"role": "assistant", "content": [{"type": "text", "text": " A dog. "}]}
    two = {"role": "user", "content": [text, audio, {"type": "text", "text": "Or this?"}, text, audio]}
    two_by_hand = {"role": "user", "content": f"What do you hear?{token}Or this?\nWhat do you hear?{token}"}
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
            # Clips of 640 samples are one token: the placeholder stays a single token.
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
    template, tools = "{% if tools %}{{ tools | tojson }}{% endif %}" + PLAIN, [{"name": "play", "parameters": {}}]
    wanted = chat_tokenizer(template).apply_chat_template(words, tokenize=False, tools=tools)
    assert "play" in wanted
    assert make_processor(chat_tokenizer(template)).apply_chat_template(words, tools=tools) == wanted


def test_a_tokenizer_without_a_template_gets_falcon3s():
    processor = make_processor(make_tokenizer(template=None))
    for chat, by_hand in conversations(processor.audio_token, None):
        wanted = make_tokenizer().apply_chat_template(by_hand, tokenize=False, add_generation_prompt=True)
        assert processor.apply_chat_template(chat, add_generation_prompt=True) == wanted


def test_falcon3s_format_begins_as_the_tokenizer_begins_texts(caplog):
    """A base model without <|user|>, trained with <s> before every text."""
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "bos_token": "<s>"}
    tokenizer = make_with(chat_tokenizer(None), name_or_path="some/base")
    processor = make_processor(tokenizer)
    (warning,) = [record.getMessage() for record in caplog.records if "chat template" in record.getMessage()]
    assert "some/base has no chat template" in warning and "Falcon3's format" in warning
    chat = with_answers(SOUND[:640], "A dog.", "b")
    inputs = tokenized(processor, chat, processor_kwargs={"return_labels": True})
    ids = inputs["input_ids"][0]
    text = "<s><|user|>\n>>UNUSED_1<<Ein Bär 🐻?\n<|assistant|>\nA dog.<|endoftext|>\n<|user|>\n"
    assert processor.decode(ids).startswith(text) and ids.tolist().count(tokenizer.bos_token_id) == 1
    assert spans(processor, inputs["labels"][0]) == ["A dog.<|endoftext|>", "b<|endoftext|>"]
    plain = make_processor(make_tokenizer(SPECIAL, None, **names))  # adds nothing before texts
    assert not plain.apply_chat_template(chat[:1]).startswith("<s>")


def test_several_templates_without_a_default_are_named():
    with pytest.raises(ValueError, match="chat templates for tool_use, rag, but no default. Set `tokenizer.chat_temp"):
        make_processor(make_tokenizer(template={"tool_use": PLAIN, "rag": PLAIN}))


@pytest.mark.parametrize("given", [None, PLAIN])
def test_the_default_of_several_named_templates_is_taken(given, tmp_path, caplog):
    """The others, which know no audio, are not saved: the tokenizer would use them for chats with tools."""
    templates = {"default": FALCON3_TEMPLATE, "tool_use": "tools!"}
    chat, tools = [{"role": "user", "content": "Hi?"}], [{"name": "play", "parameters": {}}]
    wanted = make_tokenizer(template=given or FALCON3_TEMPLATE).apply_chat_template(chat, tokenize=False)
    make_processor(make_tokenizer(template=templates), chat_template=given).save_pretrained(tmp_path)
    assert ("the others (tool_use) are left out" in caplog.text) == (given is None)
    processor, tokenizer = AutoProcessor.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert processor.chat_template == tokenizer.chat_template
    for options in ({}, {"tools": tools}):
        assert processor.apply_chat_template(chat, **options) == wanted
        assert tokenizer.apply_chat_template(chat, tokenize=False, **options) == wanted


# Labels.


def spans(processor, labels) -> list[str]:
    """The spans of text that are learned."""
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


# Of reasoning models: with empty thoughts in the last answer, as Qwen3; with a prompt that opens them, as Nemotron.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and (loop.last or all_think) %}{{ empty }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ empty }}{% else %}{{ opened }}{% endif %}{% endif %}"
)
QWEN3 = "{% set empty, opened, all_think = '<think>\n\n</think>\n\n', '', false %}" + THINKING
NEMOTRON = "{% set empty, opened, all_think = '<think></think>', '<think>\n', true %}" + THINKING


@pytest.mark.parametrize(
    ("template", "asked", "thinking", "turns"),
    [
        (QWEN3, "<think>\n\n</think>\n\n", "assistant\n", 1),
        (NEMOTRON, "<think></think>", "<think>\n", 3),
        (QWEN, "assistant\n", "assistant\n", 3),  # answers have no thoughts, whatever the prompt says
    ],
    ids=["qwen3", "nemotron", "qwen2.5"],
)
def test_answers_are_learned_without_thoughts(template, asked, thinking, turns):
    processor = make_processor(chat_tokenizer(template))
    answers = ["A dog.", "b", "c"][:turns]
    inputs = tokenized(processor, with_answers(SOUND[:3_000], *answers), processor_kwargs={"return_labels": True})
    assert spans(processor, inputs["labels"][0]) == [answer + "<|im_end|>" for answer in answers]
    render = processor.apply_chat_template
    assert render(question(), add_generation_prompt=True).endswith(asked)
    assert render(question(), add_generation_prompt=True, enable_thinking=True).endswith(thinking)


# Words that also appear in roles, tokens or other turns, or are empty.
TRICKY = [
    ["a", "a", "a", "a"],
    ["yes", "yes", "assistant", "user"],
    ["", "ok", "", "no"],
    ["e", "1", "e", "1", "1", "e"],
]


@pytest.mark.parametrize("words", TRICKY, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_answers_that_look_like_other_words(family, words):
    """Each answer must start where its prompt ends: the prompt is tokenized separately to find its length."""
    template, end = FAMILIES[family]
    processor = make_processor(chat_tokenizer(template))
    chat = [{"role": ("user", "assistant")[index % 2], "content": word} for index, word in enumerate(words)]
    inputs = tokenized(processor, chat, processor_kwargs={"return_labels": True})
    wanted = torch.full_like(inputs["input_ids"][0], -100)
    for turn in range(1, len(words), 2):
        before = tokenized(processor, chat[:turn], add_generation_prompt=True)["input_ids"].shape[1]
        length = len(processor.tokenizer.encode(words[turn] + end, add_special_tokens=False))
        wanted[before : before + length] = inputs["input_ids"][0, before : before + length]
    assert torch.equal(inputs["labels"][0], wanted)


def test_what_a_prompt_costs_grows_with_its_turns():
    """Counted in messages rendered by the language model's template; each turn once rendered all turns before it."""
    template = make_chat_template(PLAIN.replace("{% endfor", "{{ written() }}{% endfor", 1), "<|audio|>")
    plain = re.sub(r"\{%-? (end)?generation %\}", "", template)  # a tag that only transformers has
    rendered = Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain)
    counts, written = [], []
    for turns in (10, 20, 40):
        written.clear()
        chat = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}] * turns
        rendered.render(messages=chat, written=lambda: written.append(1) or "")
        counts.append(len(written))
    assert counts[1] == 2 * counts[0] and counts[2] == 4 * counts[0]


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
    with pytest.raises(ValueError, match="Conversation 1 has 0 answers"):
        tokenized(processor, chats, processor_kwargs={"return_labels": True})
    words = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    length = len(
        processor.tokenizer(processor.apply_chat_template(words[:1], add_generation_prompt=True))["input_ids"]
    )
    options = {"return_labels": True, "truncation": True, "max_length": length}
    with pytest.raises(ValueError, match="Conversation 0 has 1 answers .* but 0 were found"):
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


# Saving.


@pytest.mark.parametrize("family", ["falcon3", "qwen2.5"])
def test_a_saved_processor_is_the_same(tmp_path, family):
    unused = [] if family == "qwen2.5" else [">>UNUSED_0<<"]
    special = [*unused, "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    names = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    tokenizer = make_tokenizer(special, FAMILIES[family][0], **names)
    options = {"pooling_window": 4, "max_audio_seconds": 45.5}
    padding = {"pad_to_window": True}, {"trailing_silence": 0.7, "read_trailing_silence": False}
    options |= padding[family == "qwen2.5"]
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


def test_answers_that_the_template_rewrites_are_not_lost_in_silence():
    """Like templates that strip the thinking from earlier answers: only the last one can be learned."""
    rewriting = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content if m.role != 'assistant' or loop.last else '(said before)' }}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    processor = make_processor(chat_tokenizer(rewriting))
    labels = {"processor_kwargs": {"return_labels": True}}
    assert spans(processor, tokenized(processor, with_answers(SOUND[:1_000], "one"), **labels)["labels"][0])
    with pytest.raises(ValueError, match="Conversation 0 has 2 answers .* but 1 were found.*in its own conversation"):
        tokenized(processor, with_answers(SOUND[:1_000], "one", "two"), **labels)


def test_a_saved_tokenizer_pads_on_the_left(tmp_path):
    """The tokenizer itself, as for pipelines that are not ours: a side set on it later is not saved."""
    processor = make_processor()
    for _ in range(2):
        assert processor.tokenizer.padding_side == "left"
        processor.save_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(tmp_path)


def test_composing_from_a_checkpoints_own_code_names_the_package(tmp_path, monkeypatch):
    """A checkpoint has no template frame next to its code, only the finished template."""
    monkeypatch.setattr(tokenizer_falcon3_audio, "__file__", str(tmp_path / "tokenizer_falcon3_audio.py"))
    with pytest.raises(ImportError, match="needs the falcon3-audio package"):
        make_processor()
