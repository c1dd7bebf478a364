"""Model cards: complete metadata, correct numbers, and nothing that was not recorded or measured."""

import ast
import copy
import re
from pathlib import Path
from urllib.parse import urlparse

import layouts
import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from model_card_text import python_of, section
from tiny import FALCON3_TEMPLATE, SAMPLING_RATE, make_processor, make_tokenizer, tone
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioForConditionalGeneration
from falcon3_audio.model_cards import render_card
from falcon3_audio.model_cards.card_facts import MAY_BE_NULL, REQUIRED
from falcon3_audio.processing.audio_inputs_falcon3_audio import POOLING_WINDOW
from falcon3_audio.processing.processing_falcon3_audio import MAX_AUDIO_SECONDS
from falcon3_audio.training.publishing.card import read_facts
from falcon3_audio.yaml_files import read_yaml


ROOT = Path(__file__).resolve().parents[2]
FACTS = sorted((ROOT / "model_cards" / "facts").glob("*.yaml"))
NANO = "falcon3-audio-nano"
WORLD = ROOT / "model_cards" / "facts" / "falcon3-audio-world.yaml"
TINY = ROOT / "training" / "tiny_backbones"
REPO = "somebody/some-model"
# As published: config.json of openai/whisper-base and of HuggingFaceTB/SmolLM2-135M-Instruct.
WHISPER_BASE = {
    **{"model_type": "falcon3_audio_encoder", "num_mel_bins": 80, "d_model": 512, "encoder_layers": 6},
    **{"encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
}
SMOLLM2_135M = {
    **{"model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "head_dim": 64},
    **{"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    **{"max_position_embeddings": 8192, "tie_word_embeddings": True},
}
ENCODED = {"trailing_silence": 1.0, "read_trailing_silence": True}
SECTIONS = (
    *("Use", "Prompt format", "Audio limits", "Training data", "Training procedure", "Evaluation", "Hardware"),
    *("Limitations and biases", "Licence", "Citation"),
)


@pytest.fixture(scope="module", params=FACTS, ids=[path.stem for path in FACTS])
def card(request):
    return render_card(read_facts(request.param, REPO), [])


@pytest.fixture(scope="module")
def facts():
    return read_facts(WORLD, REPO)


def test_there_is_a_card_for_every_preset():
    assert {path.stem for path in FACTS} == {*PRESETS, "falcon3-audio-world", NANO}


def test_metadata_is_complete_and_survives_the_file(card, tmp_path):
    card.save(tmp_path / "README.md")
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.content == card.content and loaded.data.to_dict() == card.data.to_dict()
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "audio-text-to-text" and data["library_name"] == "transformers"
    assert data["language"] == ["en"] and "falcon3-audio" in data["tags"]
    assert "model-index" not in data
    preset = next((one for name, one in PRESETS.items() if name.upper() in card.text[:40].upper()), None)
    if NANO in card.text[:40].lower():
        assert data["base_model"] == ["HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-base"]
        assert data["license"] == "apache-2.0" and data["base_model_relation"] == "finetune"
    elif preset:
        assert data["base_model"] == [preset["text"], preset["audio"]] and data["base_model_relation"] == "finetune"
        assert (data["license"], data["license_name"]) == ("other", "falcon-llm-license")
        assert urlparse(data["license_link"]).netloc == "falconllm.tii.ae"
    else:  # its backbones are folders
        assert data["license"] == "apache-2.0" and not {"base_model", "base_model_relation"} & set(data)


def test_sections_and_the_papers_authors(card):
    assert re.findall(r"^## (.*)", card.text, re.MULTILINE) == list(SECTIONS)
    assert "**These weights are not by the authors of that paper**" in card.text.split("## Use")[0]
    assert "https://arxiv.org/abs/2509.07526" in card.text and "eprint = {2509.07526}" in section(card, "Citation")
    assert not re.search(
        r"\b(official|our (model|paper|weights)|we (release|train|present))\b", card.text, re.IGNORECASE
    )
    assert "{{" not in card.text and "None" not in re.sub(r"^None", "", card.text, flags=re.MULTILINE)


def test_links(card):
    links = re.findall(r"\[[^\]\n]+\]\(([^)\n]*)\)", card.text)
    bare = re.findall(r"https?://[^\s)}`\]]+", card.text)
    assert len(links) >= 4 and set(links) <= set(bare)
    for link in bare:
        parsed = urlparse(link)
        assert parsed.scheme == "https" and "." in parsed.netloc and not re.search(r"[<>{}|\s]", link)


def test_a_card_without_results_says_so_and_gives_no_number(card):
    evaluation = section(card, "Evaluation")
    assert "Nothing has been measured" in evaluation and not re.search(r"\d", evaluation)


def test_what_is_not_verified_is_not_offered(facts):
    assert "vllm" not in render_card(facts, []).text.lower()
    assert f"vllm serve {REPO} --trust-remote-code" in render_card(facts | {"vllm": "0.1"}, []).text


def test_snippets_compile(card):
    snippets = python_of(card)
    assert len(snippets) == 2 and all(ast.parse(code) for code in snippets)


def test_snippets_run(facts, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("clip.wav", tone(0.3), SAMPLING_RATE)
    for code in python_of(render_card(facts, [])):
        assert REPO in code
        exec(compile(code.replace(REPO, checkpoint).replace("=64", "=2"), "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 2


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_the_numbers_are_those_of_the_model(path):
    facts = read_yaml(path)
    if path.stem in PRESETS:
        config = Falcon3AudioConfig.from_preset(path.stem)
        assert facts["backbones"] == {part: PRESETS[path.stem][part] for part in ("audio", "text")}
    elif path.stem == NANO:
        config = Falcon3AudioConfig(
            audio_config=WHISPER_BASE, text_config=SMOLLM2_135M, audio_token_id=0, tie_word_embeddings=True, **ENCODED
        )
    else:
        audio, text = (AutoConfig.from_pretrained(TINY / name) for name in ("whisper", "llm"))
        config = Falcon3AudioConfig(audio_config=audio, text_config=text, audio_token_id=0)
    with torch.device("meta"):
        model = Falcon3AudioForConditionalGeneration(config)
    model.tie_weights()

    def count(*modules):
        weights = {id(weight): weight for module in modules for weight in module.parameters()}  # tied ones once
        return sum(weight.numel() for weight in weights.values())

    parts = model.model
    layers = [layer for layer in parts.language_model.modules() if isinstance(layer, nn.Linear)]
    assert facts["parameters"] == {
        "audio_tower": count(parts.audio_tower),
        "multi_modal_projector": count(parts.multi_modal_projector),
        "language_model": count(parts.language_model, model.lm_head),
        "quantizable": count(*layers),
    }
    text = config.text_config
    assert facts["cache_values_per_token"] == text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    assert facts["context"] == text.max_position_embeddings
    assert facts["audio"] == {
        "pooling_window": POOLING_WINDOW,
        "pad_to_window": config.pad_to_window,
        "max_audio_seconds": MAX_AUDIO_SECONDS,
    } | (ENCODED if path.stem == NANO else {})


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.stem)
def test_the_prompt_is_what_the_processor_makes(path):
    tokenizer = make_tokenizer() if path.stem in PRESETS else AutoTokenizer.from_pretrained(TINY / "llm")
    tokenizer = layouts.smollm2() if path.stem == NANO else tokenizer
    assert path.stem not in PRESETS or tokenizer.chat_template == FALCON3_TEMPLATE
    processor = make_processor(tokenizer)
    content = [{"type": "audio", "path": "clip.wav"}, {"type": "text", "text": "What sound is heard?"}]
    chat = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert read_yaml(path)["prompt"] == prompt.replace(processor.audio_token, "{audio}")


def test_memory_is_computed_from_the_weights():
    """Falcon3-Audio-7B by hand: 7,775,364,096 weights, of which 6,650,068,992 can be in 4 bits."""
    card = render_card(read_facts(ROOT / "model_cards" / "facts" / "falcon3-audio-7b.yaml", REPO), [])
    hardware = section(card, "Hardware")
    assert "not measured" in hardware
    assert re.findall(r"\| ([\d.]+) \|", hardware) == ["29", "14.5", "5.29"]
    # 57,344 values of 2 bytes for each of 25 x 60 tokens are 164 MiB.
    assert "0.16 GiB per minute" in hardware
    assert "becomes 25 tokens" in section(card, "Audio limits")


def test_a_recipes_settings_and_data():
    card = render_card(read_facts(ROOT / "model_cards" / "facts" / "falcon3-audio-3b.yaml", REPO), [])
    procedure = section(card, "Training procedure")
    for row in ("LoRA rank | 8", "learning rate | 0.0002", "questions per step | 256", "computed in bfloat16 | yes"):
        assert f"| {row} |" in procedure
    assert "`falcon3_audio_3b.yaml`" in procedure and not re.search("^- ", procedure, re.MULTILINE)
    assert "Open-ASQA" in section(card, "Training data") and "Voice instructions" in section(card, "Training data")
    assert "no record here of a finished training run" in card.text
    licence = section(card, "Licence")
    assert all(name in licence for name in ("Apache-2.0", "MIT", "Falcon LLM licence"))


def test_missing_facts_are_named(facts):
    for name in REQUIRED:
        incomplete = copy.deepcopy(facts)
        *parents, last = name.split(".")
        del (incomplete[parents[0]] if parents else incomplete)[last]
        with pytest.raises(ValueError, match=rf"lacks facts: {re.escape(name)}\."):
            render_card(incomplete, [])
    with pytest.raises(ValueError, match=r"lacks facts: dtype, context\.$"):
        render_card({name: value for name, value in facts.items() if name not in ("dtype", "context")}, [])
    with pytest.raises(ValueError, match=r"lacks facts: training\.recipe\."):
        render_card(facts | {"training": {"status": "planned"}}, [])


def with_fact(facts, name, value):
    changed = copy.deepcopy(facts)
    *parents, last = name.split(".")
    (changed[parents[0]] if parents else changed)[last] = value
    return changed


@pytest.mark.parametrize("name", REQUIRED)
def test_facts_that_are_null_are_not_known_or_named(name, facts):
    if name not in MAY_BE_NULL:
        with pytest.raises(ValueError, match=f"{name} must be"):
            render_card(with_fact(facts, name, None), [])
        return
    text = render_card(with_fact(facts, name, None), []).text
    assert "{{" not in text and "None" not in re.sub(r"^None", "", text, flags=re.MULTILINE)
    gone = {"prompt": "<|user|>", "context": "positions", "audio.max_audio_seconds": "max_audio_seconds"}
    assert name not in gone or gone[name] not in text


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("parameters.audio_tower", "many", "a whole number"),
        ("parameters.quantizable", 1.5, "a whole number"),
        ("parameters.language_model", float("inf"), "a whole number"),
        ("cache_values_per_token", -1, "a whole number"),
        ("audio.pooling_window", 0, "a number over 0"),
        ("context", True, "a number over 0 or null"),
        ("audio.pad_to_window", "no", "true or false"),
        ("languages", "en", "a list of strings or null"),
        ("limitations", [1], "a list of strings or null"),
        ("prompt", ["a"], "a string or null"),
        ("name", 3, "a string"),
        ("training.status", ["planned"], "a string"),
        ("training.recipe", None, "a string"),
    ],
)
def test_facts_of_another_kind_are_named(name, value, expected, facts):
    with pytest.raises(ValueError, match=re.escape(f"{name} must be {expected}, got {value!r}.")):
        render_card(with_fact(facts, name, value), [])


def test_facts_that_are_not_understood(facts, tmp_path):
    with pytest.raises(ValueError, match="relation must be one of finetune, adapter, merge, None; got 'child'"):
        render_card(facts | {"relation": "child"}, [])
    with pytest.raises(ValueError, match="repo_id must be ORG/NAME on the Hub, got 'model'"):
        render_card(facts | {"repo_id": "model"}, [])
    with pytest.raises(ValueError, match=r"must name its base model by its Hub id \(adapter_of\), got None"):
        render_card(facts | {"relation": "adapter"}, [])
    (tmp_path / "facts.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="must be a YAML mapping, got list"):
        read_facts(tmp_path / "facts.yaml", REPO)
