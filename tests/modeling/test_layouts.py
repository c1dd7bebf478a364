"""Backbones laid out like published ones: each composes, trains, saves, loads, answers and reads text as before."""

import json

import pytest
import torch
from layouts import LAYOUTS
from tiny import question, tokenized, tone
from training_runs import SETTINGS, parse, weights_of, write_chats, write_recipe
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, pipeline

from falcon3_audio.compose import compose
from falcon3_audio.training import sft


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request, backbone_folders, tmp_path_factory):
    """(layout, folder of the language model, folder of the composed checkpoint)."""
    layout = LAYOUTS[request.param]
    folder = tmp_path_factory.mktemp("layout")
    text = layout.save(folder / "text")
    return layout, text, compose(backbone_folders[0], text, folder / "composed")


def test_the_placeholder_and_the_language_models_shape(layout):
    layout, text, composed = layout
    model, processor = AutoModelForMultimodalLM.from_pretrained(composed), AutoProcessor.from_pretrained(composed)
    llm = AutoModelForCausalLM.from_pretrained(text)
    assert processor.audio_token == layout.placeholder
    assert model.config.audio_token_id == processor.audio_token_id
    rows = llm.get_input_embeddings().weight.shape[0]
    assert layout.beyond == (processor.audio_token_id >= rows) == (not model.config.audio_token_is_embedded)
    assert model.get_input_embeddings().weight.shape == model.lm_head.weight.shape == (rows, 48)
    suppressed = json.loads((composed / "generation_config.json").read_text()).get("suppress_tokens")
    assert suppressed == (None if layout.beyond else [processor.audio_token_id])


def test_text_is_read_as_by_the_language_model(layout):
    _, text, composed = layout
    model, processor = AutoModelForMultimodalLM.from_pretrained(composed), AutoProcessor.from_pretrained(composed)
    llm, tokenizer = AutoModelForCausalLM.from_pretrained(text), AutoTokenizer.from_pretrained(text)
    chat = [{"role": "user", "content": "what do you hear?"}, {"role": "assistant", "content": "a dog"}]
    for messages, begin in ((chat[:1], True), (chat, False)):
        ids = tokenized(processor, messages, add_generation_prompt=begin)["input_ids"]
        own = tokenizer.apply_chat_template(messages, add_generation_prompt=begin, return_tensors="pt")["input_ids"]
        assert torch.equal(ids, own)
        with torch.no_grad():
            assert torch.equal(model(ids).logits, llm(own).logits)


def test_it_answers(layout):
    _, _, composed = layout
    pipe = pipeline("audio-text-to-text", model=str(composed), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    clips = [tone(0.7), tone(1.3, 700)]
    together = pipe(clips, text="what is it?", batch_size=2)
    alone = [pipe(clip, text="what is it?") for clip in clips]
    assert [row[0]["generated_text"] for row in together] == [row[0]["generated_text"] for row in alone]
    assert all(row[0]["generated_text"] for row in alone)


def test_the_token_that_ends_answers_in_training_ends_them(layout):
    _, _, composed = layout
    processor = AutoProcessor.from_pretrained(composed)
    model = AutoModelForMultimodalLM.from_pretrained(composed)
    chat = [*question(tone(0.3)), {"role": "assistant", "content": "dog"}]
    labels = tokenized(processor, chat, processor_kwargs={"return_labels": True})["labels"][0]
    names = processor.tokenizer.convert_ids_to_tokens(labels[labels != -100].tolist())
    first = processor.tokenizer.convert_tokens_to_ids(
        next(name for name in names if name[0] in "<" and name[1] != "0")
    )
    ends = model.generation_config.eos_token_id
    assert first in (ends if isinstance(ends, list) else [ends])
    assert processor.tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])


def test_it_trains(layout, backbone_folders, tmp_path):
    """One step of the training script on chats with one or several turns and clips; the trained weights change."""
    _, text, _ = layout
    recipe = SETTINGS | {"max_steps": 1, "save_steps": 1, "gradient_checkpointing": False, "global_batch_size": 10}
    recipe |= {"per_device_train_batch_size": 10, "max_length": 512, "questions_per_row": 4, "warmup_steps": 0}
    data = str(write_chats(tmp_path / "chats"))
    path = write_recipe(tmp_path / "recipe.yaml", audio_model=backbone_folders[0], text_model=text, **recipe)
    run = tmp_path / "run"
    trainer = sft.train(*parse("--config", path, "--train_data", data, "--output_dir", str(run)))
    entry = trainer.state.log_history[0]
    assert entry["loss"] > 0 and entry["num_dropped"] == 0
    moved = weights_of(run)
    assert all(weight.any() for name, weight in moved.items() if "lora_B" in name)
    assert any("lora_B" in name and "audio_tower" in name for name in moved)
