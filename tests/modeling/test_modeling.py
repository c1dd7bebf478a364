"""The model: composed from backbones, answering with audio in the prompt, saved and loaded."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import SAMPLING_RATE, make_llm, make_processor, make_tokenizer, make_whisper, question, tone
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    BitsAndBytesConfig,
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaConfig,
    StaticCache,
    T5Config,
    WhisperFeatureExtractor,
)

from falcon3_audio import (
    LORA_TARGET_MODULES,
    PRESETS,
    Falcon3AudioConfig,
    Falcon3AudioForConditionalGeneration,
    Falcon3AudioModel,
    Falcon3AudioProcessor,
)
from falcon3_audio.generation_falcon3_audio import learned_positions
from falcon3_audio.releases_falcon3_audio import CACHE


def prompt(processor, *conversations, **kwargs):
    return processor.apply_chat_template(
        list(conversations), add_generation_prompt=True, tokenize=True, return_dict=True, **kwargs
    )


def answer(model, inputs, **kwargs):
    """Greedy new tokens, eight per prompt."""
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False} | kwargs
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


class Calls:
    """Counts the forward calls of a module."""

    def __init__(self, module):
        self.count = 0
        self.hook = module.register_forward_hook(self._count)

    def _count(self, *args):
        self.count += 1

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.hook.remove()


@pytest.fixture
def golden():
    """(model, inputs, logits) from a file, independent of this machine's random numbers."""
    folder = Path(__file__).parents[1] / "golden"
    tensors = load_file(folder / "tiny.safetensors")
    inputs = {name[7:]: tensors.pop(name) for name in list(tensors) if name.startswith("inputs.")}
    expected = tensors.pop("logits")
    model = Falcon3AudioForConditionalGeneration(Falcon3AudioConfig.from_pretrained(folder))
    model.load_state_dict(tensors)
    return model.eval(), inputs, expected


# ---------------------------------------------------------------------------------------------- composing backbones


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


def test_learned_positions_are_not_exceeded():
    for family in ("gpt2", "opt"):
        llm = make_llm(family, max_position_embeddings=40, ffn_dim=96, word_embed_proj_dim=48)
        model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), llm, audio_token_id=1).eval()
        ids = torch.full((1, 40), 5)
        assert model(input_ids=ids).logits.shape[1] == 40
        with pytest.raises(ValueError, match="got 41 tokens of text and audio, .* learned only 40 positions"):
            model(input_ids=torch.full((1, 41), 5))
        with pytest.raises(ValueError, match="got 41 tokens"):
            model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, eos_token_id=299)
    assert learned_positions(make_llm("llama").model) is None


# ---------------------------------------------------------------------------------------------- prompts with audio


def test_batched_and_single_answers_are_equal(model, processor):
    conversations = [question(tone(1)), question(tone(2.3, 600), tone(0.5, 900), text="Which is louder?"), question()]
    batch = prompt(processor, *conversations)
    assert batch["input_ids"].shape[0] == 3
    for row, conversation in zip(answer(model, batch), conversations):
        assert torch.equal(row, answer(model, prompt(processor, conversation))[0])


def test_left_and_right_padding_give_equal_logits(model, processor):
    conversations = [question(tone(1)), question(tone(2), tone(0.5), text="Which of the two is longer?")]
    rows = {}
    for side in ("left", "right"):
        inputs = prompt(processor, *conversations, processor_kwargs={"padding_side": side})
        with torch.no_grad():
            logits = model(**inputs).logits
        rows[side] = [row[mask.bool()] for row, mask in zip(logits, inputs["attention_mask"])]
    for left, right in zip(rows["left"], rows["right"]):
        torch.testing.assert_close(left, right, atol=1e-5, rtol=0)


def test_greedy_generation_is_the_argmax_of_the_full_forward(model, processor):
    inputs = prompt(processor, question(tone(1.5)))
    tokens = answer(model, inputs, min_new_tokens=None)
    full = torch.cat([inputs["input_ids"], tokens], dim=1)
    with torch.no_grad():
        logits = model(full, inputs["input_features"], inputs["input_features_mask"]).logits
    assert torch.equal(tokens[0], logits[0, -tokens.shape[1] - 1 : -1].argmax(-1))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_do_not_mix_the_audios_of_prompts(model, processor, options):
    """A prompt with two clips and one with a clip of two windows get the same answers as on their own."""
    conversations = [question(tone(1, 300), tone(2, 900)), question(tone(31, 500))]
    together = answer(model, prompt(processor, *conversations), **options)
    alone = torch.cat([answer(model, prompt(processor, chat), **options) for chat in conversations])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}, {"num_beams": 2, "use_cache": False}])
def test_the_encoder_runs_once_per_prompt(model, processor, options):
    inputs = prompt(processor, question(tone(1), tone(2)))
    with Calls(model.model.audio_tower) as encoder:
        tokens = answer(model, inputs, **options)
    assert encoder.count == 1
    assert tokens.shape == (1, 8)


def test_answers_do_not_depend_on_the_cache(model, processor):
    inputs = prompt(processor, question(tone(1)), question(tone(0.4), tone(2)))
    assert torch.equal(answer(model, inputs), answer(model, inputs, use_cache=False))


def test_embeds_and_features_together(model, processor):
    inputs = prompt(processor, question(tone(1)), question(tone(0.4), tone(2)))
    with torch.no_grad():
        expected = model(**inputs).logits
        embeds = dict(inputs, inputs_embeds=model.get_input_embeddings()(inputs["input_ids"]))
        ids = embeds.pop("input_ids")
        torch.testing.assert_close(model(**embeds).logits, expected)
        encoded = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        reused = model(ids, attention_mask=inputs["attention_mask"], audio_embeds=encoded).logits
        rows = list(inputs["input_features_mask"])  # as an engine passes them
        assert torch.equal(model.get_audio_features(inputs["input_features"], rows).pooler_output, encoded)
    assert torch.equal(reused, expected)
    tokens = model.generate(**embeds, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert torch.equal(tokens, answer(model, inputs))


def test_a_second_turn_goes_on_from_the_cache(model, processor):
    """The prompt cache of a chat holds the first clip; only the new one is inserted."""
    chat = question(tone(1))
    first = prompt(processor, chat)
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(**first, **{CACHE: cache}, max_new_tokens=4, do_sample=False)
    reply = processor.decode(said[0, first["input_ids"].shape[1] :])
    turn = prompt(
        processor, [*chat, {"role": "assistant", "content": "x"}, *question(tone(0.5, 800), text="And now?")]
    )
    ids = torch.cat([said, turn["input_ids"][:, first["input_ids"].shape[1] + 1 :]], dim=1)
    second = dict(turn, input_ids=ids, attention_mask=torch.ones_like(ids))
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with torch.no_grad():
        cached = model.generate(**second, **{CACHE: cache}, **options)
        fresh = model.generate(**second, **options)
    assert reply and torch.equal(cached, fresh)


def test_only_new_audio_has_to_be_given_with_a_cache(model, processor):
    first = prompt(processor, question(tone(1)))
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(**first, **{CACHE: cache}, max_new_tokens=4, do_sample=False)
    new = prompt(processor, question(tone(0.5, 800), text="And now?"))
    ids = torch.cat([said, new["input_ids"]], dim=1)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    features = {name: new[name] for name in ("input_features", "input_features_mask")}
    both = prompt(processor, question(tone(1), tone(0.5, 800)))
    features_of_both = {name: both[name] for name in features}
    cached = model.generate(ids, **features, **{CACHE: cache}, **options)
    assert torch.equal(cached, model.generate(ids, **features_of_both, **options))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_prompt_in_chunks_gives_the_same_answer(model, processor, size):
    chats = [question(tone(1)), question(tone(0.6, 600), tone(0.5, 900), text="Which is louder?"), question()]
    inputs = prompt(processor, *chats)
    assert torch.equal(answer(model, inputs, prefill_chunk_size=size), answer(model, inputs))


def test_the_rest_of_a_prompt_in_chunks_goes_on_from_the_cache(model, processor):
    inputs = prompt(processor, question(tone(1), tone(0.5, 800)))
    length = int((inputs["input_ids"] == 1).sum()) // 2  # the cache ends within the first clip
    cache = DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        embeds = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        begun = inputs["input_ids"][:, :length]
        model(begun, audio_embeds=embeds[: int((begun == 1).sum())], **{CACHE: cache})
    assert torch.equal(answer(model, inputs, prefill_chunk_size=5, **{CACHE: cache}), answer(model, inputs))


def test_a_cache_by_either_name(model, processor):
    inputs = prompt(processor, question(tone(1)))
    with torch.no_grad():
        expected = model(**inputs).logits
        for name in ("cache", "past_key_values"):
            cache = DynamicCache(config=model.config.text_config)
            assert torch.equal(model(**inputs, **{name: cache}).logits, expected)
            assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_prompt_lookup_does_not_draft_placeholders(model, processor):
    inputs = prompt(processor, question(tone(1)))
    assert torch.equal(answer(model, inputs, prompt_lookup_num_tokens=5), answer(model, inputs))


def test_a_loss_on_some_positions_is_that_of_all_where_only_they_are_learned(model, processor):
    inputs = prompt(processor, question(tone(1.0)), question(tone(0.5)))
    labels = inputs["input_ids"].clone()
    labels[:, :-4] = -100
    learned = torch.zeros_like(labels, dtype=torch.bool)
    learned[:, :-1] = labels[:, 1:] != -100
    of_all = model(**inputs, labels=labels).loss
    shifted = {"kept_positions": learned, "shift_labels": labels[:, 1:][learned[:, :-1]][None]}
    torch.testing.assert_close(model(**inputs, labels=labels, **shifted).loss, of_all)
    with pytest.raises(ValueError, match="pass `shift_labels` with `kept_positions`, or neither"):
        model(**inputs, labels=labels, kept_positions=learned)


def test_audio_of_another_width_is_an_error(model, processor):
    inputs = prompt(processor, question(tone(1)))
    with pytest.raises(ValueError, match="embeddings are 96 wide, the language model's 48"):
        model(inputs["input_ids"], audio_embeds=torch.zeros(25, 96))


def test_audio_in_the_cache_need_not_be_given_again(model, processor):
    inputs = prompt(processor, question(tone(1)))
    cache = DynamicCache(config=model.config.text_config)
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    said = model.generate(**inputs, **{CACHE: cache}, **options)
    more = model.generate(said, **{CACHE: cache}, attention_mask=torch.ones_like(said), **options)
    assert torch.equal(more[:, -8:], answer(model, inputs))


def test_audio_and_placeholders_must_match(model, processor):
    inputs = prompt(processor, question(tone(1)))
    short = dict(inputs, input_ids=inputs["input_ids"][:, 12:], attention_mask=inputs["attention_mask"][:, 12:])
    tokens = int((short["input_ids"] == 1).sum())
    message = rf"hold {tokens} audio tokens \(id 1\), but the audio gives 25"
    with pytest.raises(ValueError, match=message):
        model(**short)
    with pytest.raises(ValueError, match=message):
        model.generate(**short)
    with pytest.raises(ValueError, match=message):
        torch.compile(model, backend="eager")(**short)


def test_a_prompt_without_its_audio_is_an_error(model, processor):
    ids = prompt(processor, question(tone(1)))["input_ids"]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="hold 25 audio tokens .* but no audio was given"):
            call(input_ids=ids)
    with pytest.raises(ValueError, match="no audio was given"):
        model(ids, **{CACHE: DynamicCache(config=model.config.text_config)})
    with pytest.raises(ValueError, match="exactly one of"):
        model()
    with pytest.raises(ValueError, match="at most one of"):
        model(ids, torch.zeros(1, 80, 9), audio_embeds=torch.zeros(25, 48))


def test_pad_to_window_refuses_features_of_the_other_kind(backbone_folders, processor):
    padding = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, pad_to_window=True)
    inputs = prompt(processor, question(tone(1)))
    with pytest.raises(ValueError, match="pad_to_window=True and expects whole windows of 3000 frames"):
        padding(**inputs)


def test_a_processor_for_whole_windows_does_not_fit_a_model_without(backbone_folders, model):
    padding = Falcon3AudioProcessor.from_backbones(*backbone_folders, pad_to_window=True)
    with pytest.raises(ValueError, match="hold 750 audio tokens .* gives 25"):
        model(**prompt(padding, question(tone(1))))


def test_the_linear_projector(backbone_folders, processor):
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, projector_type="linear").eval()
    names = {name.split(".")[0] for name, _ in model.model.multi_modal_projector.named_parameters()}
    assert names == {"norm_in", "linear_1", "norm_out"}
    assert model(**prompt(processor, question(tone(1)))).logits.isfinite().all()


# ---------------------------------------------------------------------------------------------- attention, compile


def test_attention_can_be_chosen_per_tower(checkpoint, model, processor):
    inputs = prompt(processor, question(tone(1), tone(0.3)))
    mixed = AutoModelForMultimodalLM.from_pretrained(
        checkpoint, attn_implementation={"audio_config": "eager", "text_config": "sdpa"}
    )
    assert mixed.model.audio_tower.config._attn_implementation == "eager"
    assert mixed.model.language_model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        torch.testing.assert_close(mixed(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert all([model._supports_flash_attn, model._supports_sdpa, model._supports_flex_attn])


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="flex attention on a CPU is compiled C++"
)
@pytest.mark.parametrize("attention", ["flex_attention", {"text_config": "flex_attention"}])
def test_flex_attention_gives_the_same_logits(attention):
    llm = make_llm(hidden_size=64, head_dim=16)
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(d_model=64), llm, audio_token_id=1).eval()
    inputs = prompt(make_processor(vocab_size=300), question(tone(1)), question(tone(0.4), tone(2)))
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation(attention)
        logits = model(**inputs).logits
    kept = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[kept], expected[kept], atol=1e-5, rtol=0)


def test_decoding_compiles_without_a_graph_break(model, processor):
    inputs = prompt(processor, question(tone(1)))
    length = inputs["input_ids"].shape[1]
    cache = StaticCache(config=model.config.text_config, max_cache_len=length + 8)
    graphs = CompileCounter()
    decode = torch.compile(model, backend=graphs, fullgraph=True)
    expected = answer(model, inputs)[0]
    with torch.no_grad():
        token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        for step in range(3):
            assert token.item() == expected[step]
            positions = torch.tensor([[length + step]])
            token = decode(token, **{CACHE: cache}, position_ids=positions).logits[:, -1:].argmax(-1)
    assert graphs.frame_count == 1


def test_what_compiles_as_one_graph_and_what_does_not(model, processor):
    """Windows without a mask do; data-dependent shapes and checks break the graph, so the class does not claim it."""
    tower = model.model.audio_tower
    features = torch.randn(2, 80, 3000)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(tower, backend=CompileCounter(), fullgraph=True)(features).last_hidden_state
        assert torch.equal(compiled, tower(features).last_hidden_state)
    assert not model._can_compile_fullgraph
    for chat in (question(tone(1)), question()):
        torch.compiler.reset()
        with pytest.raises(torch._dynamo.exc.TorchDynamoException):
            torch.compile(model, backend=CompileCounter(), fullgraph=True)(**prompt(processor, chat))


def test_an_assistant_that_hears_gives_the_same_answer(model, processor):
    for chat in (question(tone(1)), question(tone(0.4), tone(2)), question()):
        inputs = prompt(processor, chat)
        assert torch.equal(answer(model, inputs, assistant_model=model), answer(model, inputs))


def drafter(processor, width=24, **options):
    """Another Falcon3-Audio, to draft answers."""
    llm = make_llm(hidden_size=width, head_dim=width // 4, seed=6)
    return Falcon3AudioForConditionalGeneration.from_backbones(
        make_whisper(seed=3), llm, audio_token_id=processor.audio_token_id, **options
    ).eval()


@pytest.mark.parametrize("width", [24, 48])
def test_an_assistant_hears_the_audio_by_itself(model, processor, monkeypatch, width):
    assistant, given = drafter(processor, width), []
    generate = assistant.generate
    monkeypatch.setattr(
        assistant, "generate", lambda **options: given.append(options["audio_embeds"]) or generate(**options)
    )
    inputs = prompt(processor, question(tone(0.4), tone(2)))
    assert torch.equal(answer(model, inputs, assistant_model=assistant), answer(model, inputs))
    with torch.no_grad():
        heard = assistant.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    assert given and all(torch.equal(embeds, heard) for embeds in given)


def test_an_assistant_that_cannot_hear_the_audio_is_refused(model, processor):
    inputs = prompt(processor, question(tone(1)))
    for assistant, words in (
        (make_llm(), "must hear the audio of these prompts, but a LlamaForCausalLM takes only text"),
        (
            drafter(processor, pooling_window=4),
            "as 13 tokens with the id 1, this model as 25 with the id 1.*same token",
        ),
    ):
        with pytest.raises(ValueError, match=f"`assistant_model` .*{words}"):
            answer(model, inputs, assistant_model=assistant)
    heard = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    inputs = {"input_ids": inputs["input_ids"], "audio_embeds": heard}
    with pytest.raises(ValueError, match="encode the audio itself: pass `input_features` and"):
        answer(model, inputs, assistant_model=drafter(processor))


def test_early_exit_is_for_text_models(model, processor):
    with pytest.raises(ValueError, match="got `assistant_early_exit=1`, which transformers supports only for text"):
        answer(model, prompt(processor, question(tone(1))), assistant_early_exit=1)


@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_audio_that_does_not_match_is_counted_as_it_was_given(model, processor, options):
    inputs, shorter = prompt(processor, question(tone(1))), prompt(processor, question(tone(0.5)))
    with pytest.raises(ValueError, match="prompts hold 25 audio tokens .*, but the audio gives 13; they must match"):
        answer(model, {**shorter, "input_ids": inputs["input_ids"], "attention_mask": None}, **options)


def test_the_tensor_parallel_plan_of_the_text_model_is_kept(model):
    plan = model.tp_plan
    assert plan["model.language_model.layers.*.self_attn.q_proj"] == "colwise"
    assert plan["model.language_model.layers.*.mlp.down_proj"] == "rowwise"
    assert plan["lm_head"] == "colwise_gather_output"  # a tied head is sharded with the embedding


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("skip", [None, ["model.audio_tower", "model.multi_modal_projector", "lm_head"]])
def test_quantised_loading(tmp_path, bits, skip):
    """By default all linear layers except the head; with the documented list, only those of the language model."""
    llm = make_llm(hidden_size=64, intermediate_size=128, head_dim=16)
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(d_model=64), llm, audio_token_id=1).eval()
    model.save_pretrained(tmp_path)
    processor = Falcon3AudioProcessor.from_backbones(WhisperFeatureExtractor(), make_tokenizer(), vocab_size=300)
    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, llm_int8_skip_modules=skip)
    quantised = AutoModelForMultimodalLM.from_pretrained(tmp_path, quantization_config=how, device_map="cpu")
    layers = {
        name for name, module in quantised.named_modules() if type(module).__name__.startswith("Linear" + str(bits))
    }
    counts = [
        sum(part in name for name in layers) for part in ("audio_tower", "projector", "language_model", "lm_head")
    ]
    assert counts == ([12, 2, 14, 0] if skip is None else [0, 0, 14, 0])
    inputs = prompt(processor, question(tone(1)))
    with torch.no_grad():
        exact, rough = model(**inputs).logits.flatten(), quantised(**inputs).logits.float().flatten()
    assert torch.cosine_similarity(exact, rough, dim=0) > 0.9


# ---------------------------------------------------------------------------------------------- training


def test_gradient_reaches_both_towers_and_the_projector(model, processor):
    model = copy.deepcopy(model).train()
    chat = [*question(tone(1), tone(0.4)), {"role": "assistant", "content": "a dog"}]
    inputs = processor.apply_chat_template(
        [chat], tokenize=True, return_dict=True, processor_kwargs={"return_labels": True}
    )
    model.gradient_checkpointing_enable()
    model(**inputs).loss.backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert without == fixed == {"model.audio_tower.embed_positions.weight"}


@pytest.mark.parametrize("towers", [["audio_tower"], ["language_model"], ["audio_tower", "language_model"]])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma", "phi3"])
def test_lora_patterns_stay_in_their_tower(towers, family):
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), make_llm(family), audio_token_id=1)
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(f"model.{tower}.layers" in name for tower in towers)
    }
    pattern = "|".join(LORA_TARGET_MODULES[tower] for tower in towers)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=pattern)).base_model.model
    names = {
        name.removesuffix(".lora_A.default") for name, _ in adapted.named_modules() if name.endswith("lora_A.default")
    }
    assert names == linear and names


# ---------------------------------------------------------------------------------------------- saving, Auto classes


def test_two_loads_are_equal_and_answer_as_before(checkpoint, model, processor):
    inputs = prompt(processor, question(tone(1), tone(2)))
    first, second = (AutoModelForMultimodalLM.from_pretrained(checkpoint) for _ in range(2))
    for (name, left), (_, right) in zip(first.named_parameters(), second.named_parameters()):
        assert torch.equal(left, right), name
    with torch.no_grad():
        assert torch.equal(first(**inputs).logits, model(**inputs).logits)
    assert torch.equal(answer(first, inputs), answer(model, inputs))


def test_auto_classes(checkpoint):
    assert type(AutoConfig.from_pretrained(checkpoint)) is Falcon3AudioConfig
    assert type(AutoProcessor.from_pretrained(checkpoint)) is Falcon3AudioProcessor
    assert type(AutoFeatureExtractor.from_pretrained(checkpoint)) is WhisperFeatureExtractor
    assert type(AutoModel.from_pretrained(checkpoint)) is Falcon3AudioModel
    for auto_class in (AutoModelForMultimodalLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM):
        assert type(auto_class.from_pretrained(checkpoint)) is Falcon3AudioForConditionalGeneration
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint)


def test_a_saved_folder_loads_where_the_package_is_not_installed(checkpoint, model, processor, tmp_path):
    """A clean process that cannot import falcon3_audio: every Auto class, the pipeline, and saving again."""
    clip = tone(1)
    expected = answer(model, prompt(processor, question(clip)))[0].tolist()
    np.save(tmp_path / "clip.npy", clip)
    script = Path(__file__).parents[1] / "load_remote_code.py"
    arguments = [checkpoint, tmp_path / "clip.npy", SAMPLING_RATE, tmp_path / "again"]
    run = subprocess.run(
        [sys.executable, "-I", script, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    results = [json.loads(line[7:]) for line in run.stdout.splitlines() if line.startswith("RESULT ")]
    assert run.returncode == 0 and len(results) == 2, run.stderr[-3000:]
    for result in results:
        assert result["classes"] == [
            "Falcon3AudioConfig",
            "WhisperFeatureExtractor",
            "Falcon3AudioModel",
            *["Falcon3AudioForConditionalGeneration"] * 3,
        ]
        assert result["tokens"] == expected
        assert result["said"] == processor.decode(expected, skip_special_tokens=True)


def test_golden_numbers(golden):
    """A fixed tiny model, its inputs and the logits it had when the file was made (tests/golden/make_golden.py)."""
    model, inputs, expected = golden
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("preset", "audio", "text"),
    [("falcon3-audio-1b", 88.2, 1669), ("falcon3-audio-3b", 307.2, 3228), ("falcon3-audio-7b", 307.2, 7456)],
)
def test_presets_have_the_published_sizes(preset, audio, text):
    """Millions of parameters as counted from the published checkpoints."""
    with torch.device("meta"):
        model = Falcon3AudioForConditionalGeneration(Falcon3AudioConfig.from_preset(preset))

    def millions(module):
        return sum(parameter.numel() for parameter in module.parameters()) / 1e6

    assert millions(model.model.audio_tower) == pytest.approx(audio, abs=0.05)
    assert millions(model.model.language_model) + millions(model.lm_head) == pytest.approx(text, abs=0.5)
    assert set(PRESETS) == {"falcon3-audio-1b", "falcon3-audio-3b", "falcon3-audio-7b"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling_window": 7}, "`pooling_window` must divide the 1500 positions"),
        ({"trailing_silence": 99.0}, "`trailing_silence` must be from 0 to the 30 s"),
        (
            {"pad_to_window": True, "trailing_silence": 1.0},
            "`pad_to_window` already encodes and reads the whole window",
        ),
    ],
)
def test_options_that_a_config_refuses_are_refused_on_loading(checkpoint, options, message):
    with pytest.raises(ValueError, match=message):
        AutoModelForMultimodalLM.from_pretrained(checkpoint, **options)
    assert AutoModelForMultimodalLM.from_pretrained(checkpoint, trailing_silence=1.0).config.trailing_silence == 1.0
