"""What of the model is trained, in what precision, and what is not even computed."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from tiny import make_llm, make_whisper
from torch import nn
from training_runs import assistant, parse, user

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.compose import compose
from falcon3_audio.modeling_falcon3_audio_encoder import Falcon3AudioAttention
from falcon3_audio.training.arguments import COMPOSED, LoraArguments, ModelArguments
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.learning import choose_trained_weights, count_parameters
from falcon3_audio.training.model import load_model
from falcon3_audio.training.run_folder import describe_recipe


# Listed by hand: the linear layers in a layer of each tower, by choice.
ENCODER = {
    "all": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2"},
    "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"},
    "qv": {"self_attn.q_proj", "self_attn.v_proj"},
    "none": set(),
}
LANGUAGE_MODEL = {
    "all": {
        *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    },
    "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
    "qv": {"self_attn.q_proj", "self_attn.v_proj"},
    "none": set(),
}


@pytest.fixture
def load(checkpoint, tmp_path):
    def load(**options):
        return load_model(ModelArguments(**({"model": checkpoint, "dtype": "float32"} | options)), tmp_path)[0]

    return load


@pytest.fixture
def batch(processor):
    sound = {"type": "audio", "audio": torch.randn(8000).mul(0.1).numpy(), "sampling_rate": 16_000}
    batch = AudioChatCollator(processor)([{"messages": [user(sound), assistant("a dog")]}])
    return {name: value for name, value in batch.items() if not name.startswith("num_")}


@pytest.mark.parametrize("encoder", ENCODER)
@pytest.mark.parametrize("language_model", LANGUAGE_MODEL)
def test_lora_is_on_exactly_the_chosen_layers(load, encoder, language_model):
    arguments = LoraArguments(lora_r=2, lora_audio_tower=encoder, lora_language_model=language_model)
    model = load()
    config = choose_trained_weights(model, arguments)
    if config is not None:
        model = get_peft_model(model, config)
    expected = {f"model.audio_tower.layers.{n}.{layer}" for n in range(2) for layer in ENCODER[encoder]}
    expected |= {
        f"model.language_model.layers.{n}.{layer}" for n in range(2) for layer in LANGUAGE_MODEL[language_model]
    }
    trained = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    adapted = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert adapted == expected
    # Everything else that is trained is the whole projector.
    rest = {name.replace("modules_to_save.default.", "") for name in trained if ".lora_" not in name}
    projector = [
        f"{part}.{kind}" for part in ("norm_in", "linear_1", "linear_2", "norm_out") for kind in ("weight", "bias")
    ]
    assert rest == {f"model.multi_modal_projector.{name}" for name in projector}


def test_rank_and_scale_reach_every_layer(load):
    arguments = LoraArguments(lora_r=3, lora_alpha=12, lora_dropout=0.25)
    model = load()
    model = get_peft_model(model, choose_trained_weights(model, arguments))
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(layers) == 2 * 6 + 2 * 7
    for layer in layers:
        assert layer.lora_A["default"].out_features == 3
        assert layer.scaling["default"] == 4.0
        assert layer.lora_dropout["default"].p == 0.25


def test_a_tower_without_the_layers_looked_for_is_an_error(load):
    model = load()
    for layer in model.model.language_model.layers:
        layer.self_attn.query_key_value = layer.self_attn.q_proj
        del layer.self_attn.q_proj, layer.self_attn.v_proj
    with pytest.raises(ValueError, match=r"nothing in the language_model matches .*N\.self_attn\.query_key_value"):
        choose_trained_weights(model, LoraArguments(lora_language_model="qv"))


def test_the_projector_is_float32_beside_frozen_bfloat16(load):
    for towers in ("all", "none"):
        model = load(dtype="bfloat16")
        arguments = LoraArguments(lora_audio_tower=towers, lora_language_model=towers)
        config = choose_trained_weights(model, arguments)
        model = model if config is None else get_peft_model(model, config)
        for name, weight in model.named_parameters():
            if "original_module" not in name:
                assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16), name
        assert sum(weight.requires_grad for weight in model.parameters()) == (8 + 2 * (12 + 14) if config else 8)


@pytest.mark.parametrize(("choice", "expected"), [("none", [False] * 2), ("all", [True] * 4)])
def test_no_backward_of_a_frozen_encoder_even_with_activation_checkpointing(
    load, batch, monkeypatch, choice, expected
):
    """Checkpointed layers in the backward pass are computed twice, which shows that the spy would notice."""
    passes, original = [], Falcon3AudioAttention.forward

    def spy(self, *args, **kwargs):
        outputs = original(self, *args, **kwargs)
        passes.append(outputs[0].requires_grad)
        return outputs

    monkeypatch.setattr(Falcon3AudioAttention, "forward", spy)
    model = load()
    model = get_peft_model(model, choose_trained_weights(model, LoraArguments(lora_audio_tower=choice)))
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()  # as TRL does with adapters
    model.train()
    model(**batch).loss.backward()
    assert passes == expected
    gradients = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("audio_tower" in name for name in gradients) == any(expected)
    assert any("multi_modal_projector" in name for name in gradients)
    assert any("language_model" in name for name in gradients)


def test_four_bits_are_for_the_language_model_alone(load, batch):
    pytest.importorskip("bitsandbytes")
    whole, model = load(), load(load_in_4bit=True, dtype="bfloat16")
    four_bit = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert four_bit == {name for name in linear if name.startswith("model.language_model.")}
    assert linear - four_bit > {"lm_head", "model.multi_modal_projector.linear_1", "model.audio_tower.layers.0.fc1"}
    assert len(four_bit) == 2 * 7
    layer = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert (layer.weight.quant_type, layer.compute_dtype) == ("nf4", torch.bfloat16)
    assert [all_ for all_, _ in count_parameters(model).values()] == [
        all_ for all_, _ in count_parameters(whole).values()
    ]
    model = get_peft_model(model, choose_trained_weights(model, LoraArguments()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch).loss
    loss.backward()
    with torch.no_grad():
        # Coarse weights, but the same model.
        assert abs(loss - whole(**batch).loss) < 0.1
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


def test_counts_are_of_the_model_and_what_is_trained(load):
    model = load()
    sizes = {
        part: sum(weight.numel() for name, weight in model.named_parameters() if pattern.match(name))
        for part, pattern in (
            ("audio_tower", re.compile(r"model\.audio_tower")),
            ("multi_modal_projector", re.compile(r"model\.multi_modal_projector")),
            ("language_model", re.compile(r"model\.language_model|lm_head")),
        )
    }
    model = get_peft_model(model, choose_trained_weights(model, LoraArguments(lora_r=1)))
    # Rank 1: a row and a column per layer. Encoder 32 wide (64 within), language model 48 (96 within; 24 for keys).
    encoder = 2 * (4 * (32 + 32) + 2 * (32 + 64))
    language_model = 2 * (2 * (48 + 48) + 2 * (48 + 24) + 3 * (48 + 96))
    projector = sizes["multi_modal_projector"]
    assert count_parameters(model) == {
        "audio_tower": (sizes["audio_tower"] + encoder, encoder),
        "multi_modal_projector": (projector, projector),
        "language_model": (sizes["language_model"] + language_model, language_model),
    }
    assert projector == 2 * 32 + (32 + 1) * 48 + (48 + 1) * 48 + 2 * 48


def test_a_composed_base_is_kept_and_its_projector_follows_the_seed(backbone_folders, tmp_path):
    audio, text = backbone_folders
    arguments = ModelArguments(audio_model=audio, text_model=text, pooling_window=1, dtype="float32")

    def projector(run, seed):
        load_model(arguments, tmp_path / run, seed)
        return load_file(tmp_path / run / "base" / "model.safetensors")["model.multi_modal_projector.linear_1.weight"]

    first = projector("a", seed=1)
    assert torch.equal(projector("b", seed=1), first)
    assert not torch.equal(projector("c", seed=2), first)
    assert torch.equal(projector("c", seed=1), projector("c", seed=3))  # an existing base is not composed again
    config = json.loads((tmp_path / "a" / "base" / "config.json").read_text())
    assert config["pooling_window"] == 1


def test_a_composed_model_keeps_the_options_that_it_was_composed_with(load, checkpoint, processor):
    load(pooling_window=2, audio_token=processor.audio_token)
    message = f"{checkpoint} is already composed with other options: pooling_window=1 but it has 2, projector_type"
    with pytest.raises(
        ValueError, match=message + "='linear' but it has 'mlp'. Leave them out, or give `audio_model`"
    ):
        load(pooling_window=1, projector_type="linear")
    with pytest.raises(ValueError, match="audio_token='<sound>' but it has '>>UNUSED_1<<'"):
        load(audio_token="<sound>")


def test_a_projector_that_exists_is_not_fitted(load, checkpoint, caplog):
    """A recipe that says so can still be used for a composed model."""
    with caplog.at_level("WARNING"):
        load(projector_start="fitted")
    assert f"projector_start=fitted has no effect: {checkpoint} already has a projector" in caplog.text


def test_composing_takes_the_placeholder_asked_for(backbone_folders, tmp_path):
    audio, text = backbone_folders
    arguments = ModelArguments(audio_model=audio, text_model=text, audio_token="<sound>", dtype="float32")
    model, processor = load_model(arguments, tmp_path)
    assert processor.audio_token == "<sound>" and model.config.audio_token_id == processor.audio_token_id == 280


def test_weights_that_cannot_be_read_are_named(load, checkpoint, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in Path(checkpoint).iterdir():
        data = path.read_bytes() if path.is_file() else b""
        (folder / path.name).write_bytes(data[: len(data) // 2] if path.suffix == ".safetensors" else data)
    with pytest.raises(ValueError, match=f"weights in {folder} cannot be read"):
        load(model=str(folder))


def test_options_that_are_given_count_also_with_their_default(backbone_folders, tmp_path):
    """`--trailing_silence 0` for a model that was composed with a second of it."""
    silent = str(tmp_path / "model")
    compose(*backbone_folders, silent, trailing_silence=1.0)
    options = ["--model", silent, "--train_data", "chats.jsonl", "--output_dir", str(tmp_path / "run")]
    options += ["--bf16", "false"]
    asked, *others = parse(*options)
    load_model(asked, str(tmp_path / "run"), seed=0)
    assert not COMPOSED.keys() & describe_recipe(asked, *others).keys()
    asked, *_ = parse(*options, "--trailing-silence", "0", "--pooling_window=2")
    with pytest.raises(ValueError, match=r"other options: trailing_silence=0.0 but it has 1.0\. Leave them out"):
        load_model(asked, str(tmp_path / "run"), seed=0)


@pytest.mark.parametrize(
    "family, options, adapted, left_out",
    [
        ("llama", {}, 14, []),
        (
            "falcon_h1",
            {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
            14,
            ["mamba.in_proj", "mamba.out_proj"],
        ),
        ("mixtral", {"num_local_experts": 4}, 8, ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]),
    ],
)
def test_layers_without_lora_are_named(family, options, adapted, left_out, caplog):
    llm = make_llm(family, **options)
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), llm, audio_token_id=1)
    with caplog.at_level("WARNING"):
        found = choose_trained_weights(model, LoraArguments())
    layers = [name for name, _ in model.named_modules() if re.fullmatch(found.target_modules, name)]
    assert sum("language_model" in name for name in layers) == adapted
    said = [text for text in caplog.messages if "Without LoRA are" in text]
    assert len(said) == bool(left_out)
    for name in left_out:
        assert f"model.language_model.layers.N.{name}" in said[0] and "convNd" not in said[0]
