"""The estimated cost of a recipe: computed by hand for one size, and as stated in every recipe's first line."""

from pathlib import Path

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig, Qwen2Config, WhisperConfig

from falcon3_audio import PRESETS, Falcon3AudioConfig
from falcon3_audio.training import estimate
from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments, ModelArguments


RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
ESTIMATED = [
    path for path in sorted(RECIPES.rglob("*.yaml")) if not path.name.startswith(("audio_world", "nano", "dpo"))
]
PRESET_7B = PRESETS["falcon3-audio-7b"]


BUDGET = {"per_device_train_batch_size": 256, "global_batch_size": 256, "tokens_per_device": 8192}


@pytest.fixture
def hub(monkeypatch):
    """Shapes of models that the recipes use and the package does not know, from their config.json files."""
    whisper = WhisperConfig(d_model=1024, encoder_layers=24, encoder_attention_heads=16, encoder_ffn_dim=4096)
    qwen = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    shapes = {
        "Qwen/Qwen2.5-7B-Instruct": qwen,
        "openai/whisper-medium": whisper,
        "runs/ablations/two_stage_1_projector": Falcon3AudioConfig.from_preset("falcon3-audio-7b"),
    }
    monkeypatch.setattr(AutoConfig, "from_pretrained", shapes.__getitem__)


def recipe_7b(composed=None, **training):
    model = ModelArguments(audio_model=PRESET_7B["audio"], text_model=PRESET_7B["text"], **(composed or {}))
    options = {"output_dir": "unused", "bf16": False, "per_device_train_batch_size": 8} | training
    return model, LoraArguments(), DataArguments(["data/voice_instructions"]), AudioSFTConfig(**options)


@pytest.mark.parametrize(
    ("composed", "positions", "heard"),
    [
        ({}, 250, 125),
        ({"pooling_window": 1}, 250, 250),
        ({"pad_to_window": True}, 1500, 750),
        ({"trailing_silence": 1.0}, 300, 150),
        ({"trailing_silence": 30.0, "read_trailing_silence": False}, 1500, 125),
    ],
)
def test_time_is_that_of_the_matrix_products(composed, positions, heard):
    """440 K questions of 5 s: encoder positions, audio tokens and 60 of text, by the published parameter counts."""
    cost = estimate.estimate(*recipe_7b(composed), devices=1, card="h100")
    tokens = heard + 60
    llm = 3 * tokens * 2 * (7.456e9 - 131072 * 3072)  # forward, backward, forward again; the embedding is a look-up
    encoder = 3 * positions * (2 * 307.2e6 + 24 * 4 * 1024 * positions)  # with the attention scores
    by_hand = 440_000 * (llm + encoder) / (989e12 * estimate.UTILISATION) / 60
    assert cost.questions == 440_000
    assert cost.minutes == pytest.approx(
        by_hand, rel=0.03
    )  # without the language model's attention scores and the adapters


def test_a_language_model_that_names_neither_the_size_of_heads_nor_the_feed_forward_width(monkeypatch):
    """GPT-2 is as large as a Llama with the shapes that it has without saying so."""
    named = LlamaConfig(
        hidden_size=768,
        intermediate_size=4 * 768,
        num_hidden_layers=12,
        num_attention_heads=12,
        head_dim=64,
        vocab_size=50257,
    )
    monkeypatch.setattr(AutoConfig, "from_pretrained", {"gpt2": GPT2Config(), "named": named}.__getitem__)
    _, _, data, training = recipe_7b()

    def cost(name):
        model = ModelArguments(audio_model=PRESET_7B["audio"], text_model=name)
        return estimate.estimate(model, LoraArguments(lora_language_model="none"), data, training, 1, "h100")

    gpt2, llama = cost("gpt2"), cost("named")
    assert gpt2.minutes == pytest.approx(llama.minutes, rel=0.2) and gpt2.gib == pytest.approx(llama.gib, rel=0.2)


def test_questions_about_one_clip_pay_for_its_sound_once():
    """Open-ASQA: 9.48 questions a clip of 9.2 s, 230 audio tokens. The voice instructions have one each."""
    model, lora, _, _ = recipe_7b()

    def minutes(data, **training):
        return estimate.estimate(
            model, lora, DataArguments([data]), recipe_7b(**training)[3], devices=8, card="h100"
        ).minutes

    apart, shared = (
        minutes("data/open_asqa", questions_per_row=1),
        minutes("data/open_asqa", per_device_train_batch_size=32),
    )
    llm, encoder = 2 * (7.456e9 - 131072 * 3072), 2 * 307.2e6
    by_hand = ((230 + 60) * llm + 460 * encoder) / ((230 / 9.48 + 60) * llm + 460 / 9.48 * encoder)
    assert apart / shared == pytest.approx(by_hand, rel=0.03)
    # A row shares at most as many questions as a batch has.
    assert shared < minutes("data/open_asqa", per_device_train_batch_size=4) < apart
    assert minutes("data/open_asqa", questions_per_row=4) == minutes("data/open_asqa", per_device_train_batch_size=4)
    assert minutes("data/voice_instructions", questions_per_row=1) == minutes("data/voice_instructions")
    # With a token budget, a device packs its part of the step.
    assert minutes("data/open_asqa", per_device_train_batch_size=32) == minutes("data/open_asqa", **BUDGET)


def test_four_bits_are_those_of_the_linear_layers():
    """Falcon3-7B has 28 layers of q and o (3072 x 3072), k and v (1024 x 3072), and 3 x 23040 x 3072."""
    linear = 28 * 3072 * (2 * 3072 + 2 * 1024 + 3 * 23040)
    bits = 4 + 8 / 64 + 32 / (64 * 256)  # with a scale per 64 weights, and one per 256 of these
    plain, quantised = (
        estimate.estimate(*recipe_7b({"load_in_4bit": flag}), devices=1, card="h100").gib for flag in (False, True)
    )
    assert plain - quantised == pytest.approx(linear * (16 - bits) / 8 / 2**30)


def test_memory_is_at_least_the_weights_and_grows_with_what_is_kept():
    frozen = (7.456e9 + 307.2e6) * 2 / 2**30
    checkpointed = estimate.estimate(*recipe_7b(), devices=1, card="h100").gib
    kept = estimate.estimate(*recipe_7b(activation_checkpointing=False), devices=1, card="h100").gib
    assert frozen + 2 < checkpointed < frozen + 6
    assert kept > checkpointed + 8
    # 256 questions of 185 tokens on one device are 47,360 tokens, of which 8,192 go through it at a time.
    whole = estimate.estimate(*recipe_7b(per_device_train_batch_size=256), devices=1, card="h100").gib
    packed = estimate.estimate(*recipe_7b(**BUDGET), devices=1, card="h100").gib
    half = estimate.estimate(*recipe_7b(per_device_train_batch_size=128), devices=1, card="h100").gib
    assert (whole - packed) / (whole - half) == pytest.approx((47_360 - 8192) / (47_360 / 2))


def test_more_devices_take_less_time_and_a_frozen_encoder_costs_its_forward_only():
    model, lora, data, training = recipe_7b()
    one = estimate.estimate(model, lora, data, training, 1, "h100")
    eight = estimate.estimate(model, lora, data, training, 8, "h100")
    assert eight.minutes == pytest.approx(one.minutes / 8)
    frozen = estimate.estimate(model, LoraArguments(lora_audio_tower="none"), data, training, 1, "h100")
    encoder = 440_000 * 250 * 2 * 307.2e6 / (989e12 * estimate.UTILISATION) / 60
    assert one.minutes - frozen.minutes == pytest.approx(2 * encoder, rel=0.15)


@pytest.mark.parametrize("path", ESTIMATED, ids=lambda path: path.stem)
def test_every_recipe_begins_with_its_estimate(path, hub, capsys):
    devices, _, card = path.read_text().split()[1:4]
    assert estimate.main([str(path), "--devices", devices, "--card", card.lower()]) == 0
    assert path.read_text().splitlines()[0] == capsys.readouterr().out.strip()


def test_a_card_is_named_with_its_own_memory():
    line = estimate.describe(estimate.Cost(90, 20, 1), 2, "h200", AudioSFTConfig(output_dir="unused", bf16=False))
    assert line.startswith("# 2 x H200 141 GB: about 90 minutes and 20 GiB per GPU")


def test_what_is_not_known_is_said(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: {RECIPES / 'falcon3_audio_1b.yaml'}\n")
    assert estimate.main([str(recipe)]) == 1
    assert "only one level is allowed" in capsys.readouterr().err
    recipe.write_text("audio_model: a\ntext_model: b\ntrain_data: [mine]\noutput_dir: out\n")
    model, lora, _, training = recipe_7b()
    with pytest.raises(ValueError, match="sizes are known only for data/open_asqa"):
        estimate.estimate(model, lora, DataArguments(["mine"]), training, 1, "h100")
    with pytest.raises(ValueError, match="expected one of h100, h200, a100"):
        estimate.estimate(model, lora, DataArguments(["data/open_asqa"]), training, 1, "t4")
