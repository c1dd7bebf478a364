"""Models composed from backbones, and backbones that do not fit."""

import builtins
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import make_llm, make_whisper, prompt, question, tone
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    T5Config,
)

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor


@pytest.mark.parametrize("num_mel_bins", [80, 128])
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("gemma", {"tie_word_embeddings": True}),
        ("phi3", {}),
        ("gpt_neox", {"tie_word_embeddings": True}),
    ],
)
def test_backbones_keep_their_weights(num_mel_bins, family, options):
    """Text only gives the language model's own logits, audio the Whisper encoder's own states."""
    whisper, llm = make_whisper(num_mel_bins), make_llm(family, **options)
    model = Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=1).eval()
    ids = torch.randint(4, 300, (2, 9))
    features = torch.randn(1, num_mel_bins, 3000)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, llm(ids).logits)
        states = whisper.get_encoder()(features).last_hidden_state
        assert torch.equal(model.get_audio_features(features).last_hidden_state, states)
        audio_prompt = torch.cat([torch.full((1, 750), 1), ids[:1]], dim=1)
        assert model(audio_prompt, features).logits.isfinite().all()
    assert model.config.text_config.model_type == family
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == options.get("tie_word_embeddings", False)


def test_tied_weights_survive_saving(tmp_path):
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        make_whisper(), make_llm("qwen2", tie_word_embeddings=True), audio_token_id=1
    )
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_names_and_objects_give_the_same_model(backbone_folders, model):
    audio, text = backbone_folders
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_pretrained(text)
    composed = Falcon3AudioForConditionalGeneration.from_backbones(AutoModel.from_pretrained(audio), llm)
    assert composed.config.audio_token_id == model.config.audio_token_id == 1
    for (name, left), (_, right) in zip(composed.named_parameters(), model.named_parameters()):
        assert torch.equal(left, right) or "projector" in name, name
    assert composed.generation_config.eos_token_id == 2


def test_only_the_projector_is_new(backbone_folders):
    """Two compositions under different seeds differ in the projector's linear layers and nowhere else."""
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders))
    pairs = zip(models[0].named_parameters(), models[1].named_parameters())
    different = {name for (name, left), (_, right) in pairs if not torch.equal(left, right)}
    assert different == {f"model.multi_modal_projector.linear_{n}.weight" for n in (1, 2)}


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_dtype_is_respected(backbone_folders, processor, dtype):
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, dtype=dtype).eval()
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    inputs = prompt(processor, question(tone(1), tone(0.3)))  # float32 features
    assert model(**inputs).logits.dtype == wanted


def test_auto_dtype_is_the_language_models(backbone_folders, tmp_path):
    make_llm().to(torch.bfloat16).save_pretrained(tmp_path)
    model = Falcon3AudioForConditionalGeneration.from_backbones(backbone_folders[0], str(tmp_path), audio_token_id=1)
    assert model.dtype == torch.bfloat16


def test_device_map_and_offloading_give_the_same_logits(backbone_folders, checkpoint, model, processor, tmp_path):
    inputs = prompt(processor, question(tone(1), tone(0.3)))
    with torch.no_grad():
        expected = model(**inputs).logits
        placed = Falcon3AudioForConditionalGeneration.from_pretrained(checkpoint, device_map={"": "cpu"})
        assert torch.equal(placed(**inputs).logits, expected)
        # "auto" with next to no memory: most parts are on disk and hooks load them.
        split = Falcon3AudioForConditionalGeneration.from_pretrained(
            checkpoint, device_map="auto", max_memory={"cpu": 150_000}, offload_folder=tmp_path
        )
        assert "disk" in set(split.hf_device_map.values())
        assert torch.equal(split(**inputs).logits, expected)
        weighted = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, use_weighted_layer_sum=True)
        weighted.eval().save_pretrained(tmp_path / "weighted")
        split = Falcon3AudioForConditionalGeneration.from_pretrained(
            tmp_path / "weighted", device_map="auto", max_memory={"cpu": 20_000}, offload_folder=tmp_path
        )
        assert split.model.multi_modal_projector.layer_weights.weight.is_meta
        assert torch.equal(split(**inputs).logits, weighted(**inputs).logits)
    # Composing accepts the same map, but raises if it would need weights of a checkpoint that does not exist yet.
    composed = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, device_map="auto")
    assert composed.device.type == "cpu"
    with pytest.raises(ValueError, match="cannot be offloaded to disk"):
        Falcon3AudioForConditionalGeneration.from_backbones(
            *backbone_folders, device_map="auto", max_memory={"cpu": 150_000}, offload_folder=tmp_path
        )


def test_backbones_that_do_not_fit_are_named(backbone_folders, tmp_path):
    audio, text = backbone_folders
    compose = Falcon3AudioForConditionalGeneration.from_backbones
    with pytest.raises(ValueError, match="must be a Whisper model, got .* of type 'llama'"):
        compose(text, text)
    with pytest.raises(ValueError, match="Pass `audio_token_id"):
        compose(make_whisper(), make_llm())
    with pytest.raises(ValueError, match="final_logit_softcapping=30.0"):
        compose(audio, make_llm("gemma2", final_logit_softcapping=30.0), audio_token_id=1)
    with pytest.raises(ValueError, match="bias in its output head"):
        compose(audio, make_llm("phi"), audio_token_id=1)
    with pytest.raises(ValueError, match="FalconMambaForCausalLM (gives other logits, or no key-value|cannot be run)"):
        compose(audio, make_llm("falcon_mamba"), audio_token_id=1)
    with pytest.raises(ValueError, match="MiniMaxForCausalLM cannot be run .*cache of its own"):
        compose(audio, make_llm("minimax", num_local_experts=2), audio_token_id=1)
    with pytest.raises(ValueError, match="CohereForCausalLM changes its logits .*logit_scale=0.0625"):
        compose(audio, make_llm("cohere"), audio_token_id=1)
    with pytest.raises(ValueError, match="FalconH1ForCausalLM gives other logits"):
        compose(audio, make_llm("falcon_h1", embedding_multiplier=5.0, lm_head_multiplier=0.5), audio_token_id=1)
    with pytest.raises(
        ValueError, match="has no end token .eos_token_id in its generation_config., so generation would"
    ):
        compose(audio, make_llm(eos_token_id=None), audio_token_id=1)
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration of type 'llava' takes more than text"):
        compose(audio, AutoModelForMultimodalLM.from_config(tiny_llava()), audio_token_id=1)


def tiny_llava():
    return LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1),
        text_config=make_llm().config,
    )


def test_folders_that_do_not_fit_are_named_before_weights_are_read(backbone_folders, tmp_path):
    audio, text = backbone_folders
    compose = Falcon3AudioForConditionalGeneration.from_backbones
    wrong = {
        "llava": (tiny_llava(), "'.*llava' of type 'llava' takes more than text"),
        "t5": (T5Config(), "must be a causal language model, got '.*t5' of type 't5'"),
        "gptq": (
            LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}),
            "'.*gptq' is quantised .gptq., and quantised .* Use the original, unquantised model, .*`load_in_4bit`",
        ),
        "awq": (LlamaConfig(quantization_config={"quant_method": "awq", "bits": 4}), "is quantised .awq."),
    }
    for name, (config, message) in wrong.items():
        config.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=message):
            compose(audio, str(tmp_path / name), audio_token_id=1)
    quantised = AutoConfig.from_pretrained(audio)
    quantised.quantization_config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    quantised.save_pretrained(tmp_path / "whisper-8bit")
    with pytest.raises(ValueError, match="'.*whisper-8bit' is quantised .bitsandbytes."):
        compose(str(tmp_path / "whisper-8bit"), text)


def test_backbones_whose_files_lack_weights_are_refused(backbone_folders, tmp_path):
    """transformers would fill in random ones."""
    audio, text = backbone_folders
    compose = Falcon3AudioForConditionalGeneration.from_backbones
    make_llm().model.save_pretrained(tmp_path / "headless")
    with pytest.raises(
        ValueError, match="headless' has no weights for 1 tensors of a LlamaForCausalLM, such as lm_head"
    ):
        compose(audio, str(tmp_path / "headless"), audio_token_id=1)
    shutil.copytree(audio, tmp_path / "renamed")
    weights = load_file(tmp_path / "renamed" / "model.safetensors")
    renamed = {f"module.{name}": weight for name, weight in weights.items()}
    save_file(renamed, tmp_path / "renamed" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="renamed' has no weights for .* such as encoder.*others, such as module."):
        compose(str(tmp_path / "renamed"), text)


def test_folders_without_a_model_are_named(backbone_folders, tmp_path):
    audio, text = backbone_folders
    compose = Falcon3AudioForConditionalGeneration.from_backbones
    folder = tmp_path / "lora"
    folder.mkdir()
    with pytest.raises(ValueError, match="lora' holds no model: there is no config.json"):
        compose(audio, str(folder))
    (folder / "adapter_config.json").write_text("{}")
    for backbones in ((audio, str(folder)), (str(folder), text)):
        with pytest.raises(ValueError, match="lora' is an adapter: merge it into its model first"):
            compose(*backbones)


def test_models_with_code_of_their_own_are_refused(backbone_folders, tmp_path, monkeypatch):
    """Without transformers' question whether to run that code: the composed model could not."""
    audio, text = backbone_folders
    monkeypatch.setattr(builtins, "input", lambda question: pytest.fail(question))
    shutil.copytree(text, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MyConfig"}}
    (tmp_path / "own" / "config.json").write_text(json.dumps(config))
    for backbones in ((audio, str(tmp_path / "own")), (str(tmp_path / "own"), text)):
        with pytest.raises(ValueError, match="own' needs code that is not part of transformers. Choose a model whose"):
            Falcon3AudioForConditionalGeneration.from_backbones(*backbones)
    with pytest.raises(ValueError, match="custom code"):
        Falcon3AudioProcessor.from_backbones(audio, str(tmp_path / "own"))
