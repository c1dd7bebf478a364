"""Model cards: complete metadata, true numbers, and nothing that was not recorded or measured."""

import ast
import copy
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse

import layouts
import pytest
import soundfile
import torch
import yaml
from huggingface_hub import ModelCard
from tiny import FALCON3_TEMPLATE, SAMPLING_RATE, make_llm, make_processor, make_tokenizer, tone
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioForConditionalGeneration
from falcon3_audio.model_cards import card_for_run, render_card
from falcon3_audio.model_cards.card_facts import REQUIRED, read_mapping
from falcon3_audio.model_cards.render import main as render
from falcon3_audio.processing.audio_inputs_falcon3_audio import POOLING_WINDOW
from falcon3_audio.processing.processing_falcon3_audio import MAX_AUDIO_SECONDS


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


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL)[1]


@pytest.fixture(scope="module", params=FACTS, ids=[path.stem for path in FACTS])
def card(request):
    return render_card(request.param, [], repo_id=REPO)


@pytest.fixture(scope="module")
def facts():
    return read_mapping(WORLD) | {"repo_id": REPO}


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


def python_of(card):
    return re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)


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
    facts = read_mapping(path)
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
    assert read_mapping(path)["prompt"] == prompt.replace(processor.audio_token, "{audio}")


def test_memory_is_computed_from_the_weights():
    """Falcon3-Audio-7B by hand: 7,775,364,096 weights, of which 6,650,068,992 can be in 4 bits."""
    card = render_card(ROOT / "model_cards" / "facts" / "falcon3-audio-7b.yaml", [], repo_id=REPO)
    hardware = section(card, "Hardware")
    assert "not measured" in hardware
    assert re.findall(r"\| ([\d.]+) \|", hardware) == ["29", "14.5", "5.29"]
    # 57,344 values of 2 bytes for each of 25 x 60 tokens are 164 MiB.
    assert "0.16 GiB per minute" in hardware
    assert "becomes 25 tokens" in section(card, "Audio limits")


def test_a_recipes_settings_and_data():
    card = render_card(ROOT / "model_cards" / "facts" / "falcon3-audio-3b.yaml", [], repo_id=REPO)
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


def test_facts_that_are_not_understood(facts, tmp_path):
    with pytest.raises(ValueError, match="relation must be one of finetune, adapter, merge, None; got 'child'"):
        render_card(facts | {"relation": "child"}, [])
    with pytest.raises(ValueError, match="repo_id must be ORG/NAME on the Hub, got 'model'"):
        render_card(facts, [], repo_id="model")
    with pytest.raises(ValueError, match=r"names its base model by its Hub id \(adapter_of\), got None"):
        render_card(facts | {"relation": "adapter"}, [])
    (tmp_path / "facts.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="must be a YAML mapping, got list"):
        render_card(tmp_path / "facts.yaml", [])


#
# Cards of runs
#

RECIPE = {
    "model": None,
    "audio_model": "openai/whisper-small.en",
    "text_model": "tiiuae/Falcon3-1B-Instruct",
    "lora_r": 4,
    "learning_rate": 3e-4,
    "train_data": [
        {"path": "somebody/sounds", "name": "clean", "split": "train", "weight": 0.5},
        {"path": "mine/prepared", "name": None, "split": "train", "weight": 1.0},
    ],
    "examples": [1200, 34],
}
LOG = [{"step": 10, "loss": 2.5, "peak_memory_gib": 3.5}, {"step": 20, "loss": 1.23456, "peak_memory_gib": 2.0}]
HEARD = [
    {"step": 10, "eval_hearing": -0.1, "eval_hearing_low": -0.2, "eval_hearing_high": 0.1},
    {"step": 20, "eval_hearing": 0.25, "eval_hearing_low": 0.2, "eval_hearing_high": 0.3},
    {"step": 20, "eval_few_hearing": 0.5},
    {"step": 20, "eval_odd_hearing": float("nan")},
]
STATE = {"global_step": 20, "epoch": 0.5, "log_history": [*LOG, *HEARD, {"step": 20, "train_runtime": 9.0}]}


@pytest.fixture
def run(tmp_path):
    """A run's records; the second of its sets is a folder beside it, though its name would do for a Hub id."""
    folder = tmp_path / "work" / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    prepared = tmp_path / "work" / "mine" / "prepared"
    prepared.mkdir(parents=True)
    annotations = {"sha256": "abc123", "folder": str(tmp_path)}
    report = {"finished": True, "parameters": {"source": "open-asqa", "annotations": annotations}}
    report |= {"total": {"clips": 17, "questions": 34, "hours": 0.25}, "datasets": {"as_20k": {}, "fsd50k": {}}}
    (prepared / "report.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """What `save_model` leaves of an adapter, as far as a card reads it."""
    folder = tmp_path / "adapter"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    return folder


def test_a_run_card_has_what_was_recorded(run, checkpoint, tmp_path):
    card = card_for_run(run, checkpoint, REPO)
    data = card.data.to_dict()
    assert data["base_model"] == ["tiiuae/Falcon3-1B-Instruct", "openai/whisper-small.en"]
    assert data["base_model_relation"] == "finetune" and data["language"] == ["en"]
    assert data["datasets"] == ["somebody/sounds"]
    sets = section(card, "Training data")
    assert "name `clean`, split `train`. 1,200 examples. 0.5 passes" in sets
    assert "17 clips, 0.25 hours and 34 questions of as_20k, fsd50k; sha256 of the annotations `abc123`" in sets
    assert "mine" not in card.content and str(tmp_path) not in card.content and checkpoint not in card.content
    procedure = section(card, "Training procedure")
    assert "| LoRA rank | 4 |" in procedure and "| learning rate | 0.0003 |" in procedure
    assert "- 20 steps, 0.5 epochs." in procedure
    assert "loss 1.235 (mean of steps 11 to 20)" in procedure and "3.5 GiB" in procedure
    assert (
        "After 20 steps silence in place of the clips costs 0.25 nats per answer token (eval_hearing; 95 %"
        in procedure
    )
    assert "After 20 steps eval_odd_hearing could not be measured" in procedure
    assert "interval 0.2 to 0.3)." in procedure and "(eval_few_hearing)." in procedure and "-0.1" not in procedure
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    assert f"stored as {config['dtype']}" in section(card, "Hardware")
    assert "{audio}What sound is heard?" in section(card, "Prompt format")


def test_a_run_cards_weights_are_counted(run, checkpoint, model):
    hardware = section(card_for_run(run, checkpoint, REPO), "Hardware")
    parts = model.model
    for modules in ([parts.audio_tower], [parts.multi_modal_projector], [parts.language_model, model.lm_head]):
        count = sum(weight.numel() for module in modules for weight in module.parameters())
        assert f"{count:,} " in hardware


def test_tied_weights_are_counted_once(run, checkpoint, tmp_path):
    config = AutoConfig.from_pretrained(checkpoint)
    tied = make_llm(tie_word_embeddings=True)
    config.text_config, config.tie_word_embeddings = tied.config, True
    folder = tmp_path / "tied"
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config.save_pretrained(folder)
    hardware = section(card_for_run(run, folder, REPO), "Hardware")
    assert f"{sum(weight.numel() for weight in tied.parameters()):,} language model" in hardware


def test_an_adapters_card_names_its_base(run, adapter, checkpoint, tmp_path):
    shutil.copytree(checkpoint, run / "base")
    with pytest.raises(ValueError, match="nobody else could load. Push that first"):
        card_for_run(run, adapter, REPO)
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="is None, which nobody else could load"):
        card_for_run(run, tmp_path / "nameless", REPO)
    card = card_for_run(run, adapter, REPO, base_model="somebody/base")
    assert card.data.to_dict()["base_model"] == ["somebody/base"] and card.data.base_model_relation == "adapter"
    assert "lora" in card.data.tags and card.data.license_name == "falcon-llm-license"
    (code,) = python_of(card)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    named = {argument.value for call in calls for argument in call.args if isinstance(argument, ast.Constant)}
    assert named == {"somebody/base", REPO}
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "somebody/other"}))
    assert card_for_run(run, adapter, REPO).data.base_model == ["somebody/other"]


def test_a_composed_base_and_a_checkpoint_without_records(run, checkpoint):
    shutil.copytree(checkpoint, run / "base")
    composed = card_for_run(run / "base", run / "base", REPO)
    assert composed.data.base_model_relation == "merge" and "has not been trained" in composed.text
    assert composed.data.datasets is None and "steps" not in section(composed, "Training procedure")
    unknown = card_for_run(checkpoint, checkpoint, REPO)
    assert not {"base_model", "base_model_relation", "license", "language"} & set(unknown.data.to_dict())
    for title in ("Training data", "Training procedure"):
        assert section(unknown, title).strip() == "Not recorded with this checkpoint."


def test_other_base_models_are_linked_not_guessed_about(run, checkpoint):
    recipe = RECIPE | {"audio_model": None, "text_model": None, "model": "somebody/base", "num_generations": 8}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"examples": 1234}))
    card = card_for_run(run, checkpoint, REPO)
    assert card.data.base_model == ["somebody/base"] and card.data.language is None
    assert card.data.license_link == "https://huggingface.co/somebody/base"
    assert "GRPO" in section(card, "Training procedure") and "1,234" not in section(card, "Training data")


def test_a_run_that_has_not_ended(run, checkpoint):
    (run / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="has no trainer_state.json: it has not ended"):
        card_for_run(run, checkpoint, REPO)
    (run / "recipe.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="recipe.yaml is no YAML"):
        card_for_run(run, checkpoint, REPO)


#
# The command
#


def test_the_command_writes_a_card(run, checkpoint, tmp_path, capsys):
    assert render([str(WORLD), "--repo-id", REPO]) == 0
    assert capsys.readouterr().out.strip() == render_card(WORLD, [], repo_id=REPO).content.strip()
    output = tmp_path / "card" / "README.md"
    assert render([str(run), "--checkpoint", checkpoint, "--repo-id", REPO, "--output", str(output)]) == 0
    assert ModelCard.load(output).content == card_for_run(run, checkpoint, REPO).content
    for arguments in ([str(tmp_path / "none.yaml")], [str(WORLD), "--base-model", "a/b"], [str(run)]):
        assert render([*arguments, "--repo-id", REPO]) == 1
        said = capsys.readouterr().err
        assert said.startswith("falcon3-audio card: ") and "Traceback" not in said
