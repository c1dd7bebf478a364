"""The model: prompts with audio, attention, training, and what is saved and loaded."""

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
from safetensors.torch import load_file
from tiny import SAMPLING_RATE, answer, make_llm, make_processor, make_tokenizer, make_whisper, prompt, question, tone
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
    DynamicCache,
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
from falcon3_audio.releases_falcon3_audio import CACHE


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
