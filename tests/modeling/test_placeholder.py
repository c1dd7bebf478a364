"""A placeholder without an embedding row, against the same model with one more row, which is the placeholder's."""

import copy

import pytest
import soundfile
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny import (
    answer,
    decode_compiled,
    make_llm,
    make_processor,
    make_tokenizer,
    make_whisper,
    prompt,
    question,
    tone,
)
from transformers import AutoModelForMultimodalLM, DynamicCache
from trl import DPOConfig, DPOTrainer, GRPOConfig

from falcon3_audio import LORA_TARGET_MODULES, AudioTextToTextPipeline, Falcon3AudioForConditionalGeneration
from falcon3_audio.processing import choose_audio_token
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.dpo import AudioPreferenceCollator
from falcon3_audio.training.grpo import AudioGRPOTrainer


SPECIAL = ["<|endoftext|>", "<|pad|>"]
NAMES = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
END, ROWS = 0, 280


@pytest.fixture(scope="module")
def processor():
    processor = make_processor(make_tokenizer(SPECIAL, **NAMES), vocab_size=ROWS)
    assert processor.audio_token_id == ROWS
    return processor


@pytest.fixture(scope="module")
def models():
    """(placeholder beyond the vocabulary, placeholder in the last row): same weights; answers depend on the clips."""
    ids = {"eos_token_id": END, "pad_token_id": 1}
    small, large = make_llm(vocab_size=ROWS, **ids), make_llm(vocab_size=ROWS + 1, **ids)
    weights = {name: weight.clone() for name, weight in small.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        # Large, so it would change the answer if it were left in the prompt.
        weights[name] = torch.cat([weights[name], 10 * torch.ones(1, 48)])
    large.load_state_dict(weights)
    whisper, made = make_whisper(), []
    for llm in (small, large):
        torch.manual_seed(0)
        made.append(Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=ROWS).eval())
        with torch.no_grad():
            made[-1].model.multi_modal_projector.norm_out.weight.mul_(0.3)
    # Each logit contributes to the softmax; the placeholder's must not.
    made[1].lm_head.register_forward_hook(lambda *call: call[2].index_fill(-1, torch.tensor([ROWS]), -1e9))
    assert [model.config.audio_token_is_embedded for model in made] == [False, True]
    return made


CHATS = [
    question(tone(1)),
    question(tone(0.4, 800), tone(2), text="a dog a dog a bell?"),
    question(text="what is a dog?"),
]


def test_nothing_but_the_row_differs(models, processor):
    beyond, within = models
    assert beyond.get_input_embeddings().weight.shape == beyond.lm_head.weight.shape == (ROWS, 48)
    assert beyond.generation_config.suppress_tokens is None
    assert within.generation_config.suppress_tokens == [ROWS]
    inputs = prompt(processor, *CHATS)
    with torch.no_grad():
        logits = beyond(**inputs).logits
        torch.testing.assert_close(logits, within(**inputs).logits[..., :ROWS])
    assert logits.shape[-1] == ROWS


OPTIONS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "a static cache": {"cache_implementation": "static"},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "a penalty": {"repetition_penalty": 3.0},
    "a penalty on the prompt": {"encoder_repetition_penalty": 3.0},
    "no n-gram twice": {"no_repeat_ngram_size": 1},
    "no n-gram of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "beams with both": {"num_beams": 3, "repetition_penalty": 3.0, "no_repeat_ngram_size": 2},
    "guidance": {"guidance_scale": 1.5, "repetition_penalty": 3.0},
    "invalid values": {"remove_invalid_values": True, "repetition_penalty": 3.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_way_to_generate_gives_the_same(models, processor, options):
    inputs = prompt(processor, *CHATS)
    beyond, within = (answer(model, inputs, **options) for model in models)
    assert torch.equal(beyond, within)
    assert len(set(map(tuple, beyond.tolist()))) > 1, "the answers are told apart"


@pytest.mark.parametrize("chat", CHATS, ids=["a clip", "two clips", "none"])
def test_drafts_do_not_hold_the_placeholder(models, processor, chat):
    """Drafts copied from the prompt, with settings that look at the prompt, or made by an assistant that hears."""
    inputs = prompt(processor, chat)
    beyond, within = models
    for options in ({}, {"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 3}):
        expected = answer(beyond, inputs, **options)
        assert torch.equal(expected, answer(within, inputs, **options))
        assert torch.equal(answer(beyond, inputs, prompt_lookup_num_tokens=5, **options), expected)
        assert torch.equal(answer(beyond, inputs, assistant_model=beyond, **options), expected)


def test_sampling_says_tokens_of_the_vocabulary(models, processor):
    torch.manual_seed(0)
    options = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 0,
        "repetition_penalty": 1.1,
        "num_return_sequences": 20,
    }
    tokens = answer(models[0], prompt(processor, CHATS[0]), **options)
    assert tokens.max() < ROWS and len(tokens.unique()) > 50


def test_the_placeholder_is_never_generated(models, processor):
    """Not by a model that got a row for it later, and not with settings that suppress other tokens."""
    beyond, within = models
    resized = copy.deepcopy(beyond)
    resized.resize_token_embeddings(ROWS + 1, mean_resizing=False)
    assert resized.config.audio_token_is_embedded
    inputs = prompt(processor, CHATS[0])
    for model in (resized, copy.deepcopy(within)):
        model.lm_head.register_forward_hook(lambda *call: call[2].index_fill(-1, torch.tensor([ROWS]), 30))
        for options in ({}, {"suppress_tokens": [END]}, {"do_sample": True, "top_k": 1}):
            expected = answer(beyond, inputs, **options)
            assert torch.equal(answer(model, inputs, **options), expected)
        assert torch.equal(answer(model, inputs, prompt_lookup_num_tokens=5), answer(beyond, inputs))
        assert (answer(model, inputs, num_beams=2) != ROWS).all()


def test_embeddings_alone_cannot_show_where_audio_goes(models, processor):
    beyond, _ = models
    inputs = prompt(processor, CHATS[1])
    ids = inputs.pop("input_ids")
    heard = beyond.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
    places = ids == ROWS
    embeds = beyond.get_input_embeddings()(ids.masked_fill(places, 0))
    for call in (beyond, beyond.generate):
        with pytest.raises(ValueError, match="no embedding, so `inputs_embeds` cannot .* Pass `input_ids` instead"):
            call(inputs_embeds=embeds, **inputs)
    # It works if the caller inserts the audio, as the message suggests.
    embeds = embeds.masked_scatter(places[..., None], heard)
    with torch.no_grad():
        expected = beyond(ids, audio_embeds=heard).logits
        assert torch.equal(beyond(inputs_embeds=embeds).logits, expected)
    said = beyond.generate(inputs_embeds=embeds, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert torch.equal(said, answer(beyond, {"input_ids": ids, "audio_embeds": heard}))


def test_a_prompt_without_its_audio_is_an_error(models, processor):
    for call in (models[0], models[0].generate):
        with pytest.raises(ValueError, match=f"hold 25 audio tokens .id {ROWS}., but no audio was given"):
            call(input_ids=prompt(processor, CHATS[0])["input_ids"])


def test_a_second_turn_goes_on_from_the_cache(models, processor):
    beyond, _ = models
    first = prompt(processor, CHATS[0])
    cache = DynamicCache(config=beyond.config.text_config)
    said = beyond.generate(**first, past_key_values=cache, max_new_tokens=4, do_sample=False)
    new = prompt(processor, CHATS[1])
    ids = torch.cat([said, new["input_ids"]], dim=1)
    both = {
        name: prompt(processor, [*CHATS[0], *CHATS[1]])[name] for name in ("input_features", "input_features_mask")
    }
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "repetition_penalty": 3.0,
        "attention_mask": torch.ones_like(ids),
    }
    fresh = beyond.generate(ids, **both, **options)
    assert torch.equal(beyond.generate(ids, **both, past_key_values=copy.deepcopy(cache), **options), fresh)
    given = {name: new[name] for name in both}
    assert torch.equal(beyond.generate(ids, **given, past_key_values=cache, **options), fresh)


def test_the_pipeline_shares_clips_and_turns(models, processor):
    """Cached clips, prompts with a common prefix, and cached earlier turns."""
    beyond, within = models
    chats = [question(tone(2), text=text) for text in ("what?", "what is it?", "a dog or a bell?")]
    turns = [*chats[0], {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "what do you hear?"}]
    said = []
    for model in (beyond, within):
        pipe = AudioTextToTextPipeline(model=model, processor=processor, prompt_cache_tokens=1000)
        together = pipe(text=chats, batch_size=3, max_new_tokens=8)
        one_by_one = [pipe(text=chat, max_new_tokens=8) for chat in [*chats, turns]]
        assert [row[0]["generated_text"] for row in together] == [row[0]["generated_text"] for row in one_by_one[:3]]
        said.append([row[0]["generated_text"] for row in one_by_one])
    assert said[0] == said[1]


def test_decoding_compiles_without_a_graph_break(models, processor):
    beyond, _ = models
    inputs = prompt(processor, CHATS[0])
    tokens, graphs = decode_compiled(beyond, inputs)
    assert tokens == answer(beyond, inputs)[0, :4].tolist()
    assert graphs == 1


def test_a_compiled_forward_gives_the_same_loss(models, processor):
    beyond, within = models
    batch = collate(processor)
    compiled = torch.compile(beyond, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(**batch).loss, within(**batch).loss)


def collate(processor, **options):
    clip = {"type": "audio", "audio": tone(0.7), "sampling_rate": 16_000}
    examples = [
        {"messages": [{"role": "user", "content": [clip, {"type": "text", "text": text}]}, answer], "clip": "one"}
        for text, answer in (
            ("What?", {"role": "assistant", "content": "a dog"}),
            ("And how long?", {"role": "assistant", "content": "short"}),
        )
    ]
    batch = AudioChatCollator(processor, **options)(examples)
    assert (batch["labels"] != ROWS).all()
    return {name: value for name, value in batch.items() if not name.startswith("num_")}


@pytest.mark.parametrize("sharing", [{}, {"questions_per_row": None}], ids=["rows of their own", "a shared row"])
def test_losses_and_gradients(models, processor, sharing):
    batch = collate(processor, **sharing)
    assert ("segment_ids" in batch) == bool(sharing)
    gradients = []
    for model in models:
        model = copy.deepcopy(model)
        loss = model(**batch).loss
        loss.backward()
        weights = {name: weight.grad[:ROWS] for name, weight in model.named_parameters() if weight.grad is not None}
        gradients.append({"loss": loss.detach()} | weights)
    assert gradients[0].keys() == gradients[1].keys()
    assert gradients[0]["model.multi_modal_projector.linear_1.weight"].any()
    for name, gradient in gradients[0].items():
        if "embed_tokens" not in name:
            torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_labels_that_are_the_prompt_itself(models, processor):
    """As in many training scripts: audio positions have no logit, and are not learned."""
    inputs = prompt(processor, CHATS[0])
    ids = inputs["input_ids"]
    with torch.no_grad():
        loss = models[0](**inputs, labels=ids).loss
        assert torch.equal(loss, models[0](**inputs, labels=ids.masked_fill(ids == ROWS, -100)).loss)
    assert loss.isfinite()


@pytest.fixture
def clip(tmp_path):
    soundfile.write(tmp_path / "clip.wav", tone(0.7), 16_000)
    return str(tmp_path / "clip.wav")


def lora():
    return LoraConfig(
        r=2, target_modules=LORA_TARGET_MODULES["language_model"], modules_to_save=["multi_modal_projector"]
    )


STEP = {"max_steps": 1, "learning_rate": 1e-2, "save_strategy": "no", "report_to": "none", "bf16": False}
STEP |= {"gradient_checkpointing": False, "dataloader_pin_memory": False}


def heard(clip, text):
    return [{"role": "user", "content": [{"type": "audio", "path": clip}, {"type": "text", "text": text}]}]


def moved(trainer) -> bool:
    trainer.train()
    return all(weight.any() for name, weight in trainer.model.named_parameters() if "lora_B" in name)


def test_grpo(models, processor, clip, tmp_path):
    """Sampling with a penalty, which looks up the prompt's tokens, and a step on the samples."""
    options = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 5}
    trainer = AudioGRPOTrainer(
        copy.deepcopy(models[0]),
        processing_class=processor,
        reward_funcs=lambda completions, **_: [len(completion[0]["content"]) for completion in completions],
        args=GRPOConfig(output_dir=str(tmp_path), repetition_penalty=1.1, **options, **STEP),
        train_dataset=Dataset.from_list([{"prompt": heard(clip, text)} for text in ("what?", "a dog?")]),
        peft_config=lora(),
    )
    assert moved(trainer)


def test_dpo(models, processor, clip, tmp_path):
    said = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "dog"), ("rejected", "bell"))}
    rows = Dataset.from_list([{"prompt": heard(clip, "what?"), **said}] * 2)
    trainer = DPOTrainer(
        copy.deepcopy(models[0]),
        args=DPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=2, remove_unused_columns=False, **STEP),
        train_dataset=rows.add_column("images", [[]] * len(rows)),
        processing_class=processor,
        data_collator=AudioPreferenceCollator(processor),
        peft_config=lora(),
    )
    assert moved(trainer)


def test_an_adapter_is_saved_without_the_embedding(models, tmp_path):
    """PEFT saves embeddings if their size differs from the base model's; here it is the same."""
    models[0].save_pretrained(tmp_path / "base")
    base = AutoModelForMultimodalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora()).save_pretrained(tmp_path / "adapter")
    assert not [name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "embed" in name]


def test_python_takes_the_token_that_the_processor_takes(backbone_folders, tmp_path):
    make_tokenizer(SPECIAL, **NAMES).save_pretrained(tmp_path)
    make_llm(vocab_size=ROWS, eos_token_id=END).save_pretrained(tmp_path)
    from_backbones = Falcon3AudioForConditionalGeneration.from_backbones
    assert from_backbones(backbone_folders[0], str(tmp_path)).config.audio_token_id == ROWS
    model = from_backbones(backbone_folders[0], str(tmp_path), audio_token="<sound>")
    assert model.config.audio_token_id == choose_audio_token(make_tokenizer(SPECIAL, **NAMES), ROWS, "<sound>")[1]
    with pytest.raises(ValueError, match="at most one of `audio_token` and `audio_token_id`"):
        from_backbones(backbone_folders[0], str(tmp_path), audio_token="<sound>", audio_token_id=3)
