"""Answers: batches, caches, chunks, compiled steps and assistants give what greedy steps of the full forward give."""

import pytest
import torch
from accelerate import cpu_offload
from tiny import answer, decode_compiled, make_llm, make_whisper, prompt, question, tone
from transformers import DynamicCache
from transformers.utils import logging

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.generation_falcon3_audio import learned_positions
from falcon3_audio.releases_falcon3_audio import CACHE


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


def test_a_prompt_that_is_longer_than_the_context_is_said(caplog):
    llm = make_llm(max_position_embeddings=40)
    model = Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), llm, audio_token_id=1).eval()
    for given in ("input_ids", "inputs_embeds"):
        for tokens, warnings in ((40, 0), (41, 1)):
            caplog.clear()
            logging.get_logger().warning_once.cache_clear()
            ids = torch.full((2, tokens), 5)
            prompts = {given: ids if given == "input_ids" else model.get_input_embeddings()(ids)}
            for _ in range(2):
                model.generate(**prompts, max_new_tokens=1, do_sample=False)
            said = [record.message for record in caplog.records if "positions" in record.message]
            assert len(said) == warnings
            assert all("has 41 tokens of text and audio" in text and "for 40 positions" in text for text in said)


@pytest.mark.parametrize("token", [1, 300], ids=["embedded", "beyond the vocabulary"])
def test_weights_that_are_offloaded_give_the_same_answer(token):
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        make_whisper(), make_llm(), audio_token_id=token
    ).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 5, 6, 7]])}
    expected = answer(model, inputs)
    offloaded = cpu_offload(model, execution_device=torch.device("cpu"))
    assert offloaded.device.type == "meta"
    assert torch.equal(answer(offloaded, inputs), expected)


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


def test_audio_in_the_cache_need_not_be_given_again(model, processor):
    inputs = prompt(processor, question(tone(1)))
    cache = DynamicCache(config=model.config.text_config)
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    said = model.generate(**inputs, **{CACHE: cache}, **options)
    more = model.generate(said, **{CACHE: cache}, attention_mask=torch.ones_like(said), **options)
    assert torch.equal(more[:, -8:], answer(model, inputs))


def test_decoding_compiles_without_a_graph_break(model, processor):
    inputs = prompt(processor, question(tone(1)))
    tokens, graphs = decode_compiled(model, inputs)
    assert tokens == answer(model, inputs)[0, :4].tolist()
    assert graphs == 1


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
