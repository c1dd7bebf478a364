"""Every `generate` setting of the installed transformers: the pipeline's caches do not change the answers."""

import pytest
import torch
from tiny import question, tone
from transformers import GenerationConfig, pipeline
from transformers.generation import CompileConfig

from falcon3_audio.releases_falcon3_audio import CACHE


# A checkpoint whose answers depend on every clip and word.

CLIP = tone(2.5, 300)
CHATS = [question(CLIP, text=text) for text in ("What is it?", "Why?", "How long is the sound that is heard here?")]
PLAIN = {"max_new_tokens": 6, "do_sample": False}
# A value for each field for which `True` makes no sense; fields in SAMPLES are tested with sampling.
VALUES = {
    "max_length": 120,
    "max_new_tokens": 3,
    "min_length": 100,
    "min_new_tokens": 6,
    "max_time": 100.0,
    "stop_strings": ["a"],
    "num_beams": 2,
    "cache_implementation": "static",
    "cache_config": {"backend": "quanto"},
    "max_cache_len": 200,
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.1,
    "top_h": 0.5,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01,
    "repetition_penalty": 1.5,
    "encoder_repetition_penalty": 1.5,
    "length_penalty": 2.0,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[20, 21], *([token] for token in range(30, 250))],
    "forced_bos_token_id": 20,
    "forced_eos_token_id": 2,
    "exponential_decay_length_penalty": (2, 1.5),
    "suppress_tokens": list(range(10, 200)),
    "begin_suppress_tokens": list(range(10, 200)),
    "sequence_bias": [[[20, 21], 10.0], *([[token], 10.0] for token in range(30, 60))],
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 5.0},
    "num_return_sequences": 2,
    "pad_token_id": 5,
    "bos_token_id": 5,
    "eos_token_id": list(range(10, 100)),
    "encoder_no_repeat_ngram_size": 1,
    "decoder_start_token_id": 5,
    "num_assistant_tokens": 2,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.5,
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 2,
    "assistant_early_exit": 1,
    "assistant_lookbehind": 5,
    "target_lookbehind": 5,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "mtp",
    "compile_config": CompileConfig(backend="eager"),
    "continuous_batching_config": {},
    "penalty_alpha": 0.5,
    "dola_layers": "low",
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "constraints": [],
    "force_words_ids": [[20]],
    "prefill_chunk_size": 7,
    "transformers_version": "5.0.0",
}
SAMPLES = {"temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"}
FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_"))


@pytest.fixture(scope="module")
def pipe(sensitive):
    pipe = pipeline("audio-text-to-text", model=sensitive, prompt_cache_tokens=1000, **PLAIN)
    generate = pipe.model.generate

    def seeded(**options):
        torch.manual_seed(0)  # a pipeline draws random numbers before it calls `generate`
        return generate(**options)

    pipe.model.generate = seeded
    return pipe


def outcome(call) -> list[str] | str:
    """The answers, or the name of the exception."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__


def by_generate(pipe, chats, **options) -> list[str]:
    inputs = pipe.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs={"padding_side": "left"}
    )
    tokens = pipe.model.generate(**inputs, tokenizer=pipe.tokenizer, **options)
    tokens = getattr(tokens, "sequences", tokens)[:, inputs["input_ids"].shape[1] :]
    return pipe.tokenizer.batch_decode(tokens, skip_special_tokens=True)


def by_pipeline(pipe, chats, **options) -> list[str]:
    answers = pipe(chats, batch_size=len(chats), **options)
    return [record["generated_text"] for records in answers for record in records]


@pytest.mark.parametrize("field", FIELDS)
def test_answers_are_those_of_generate(pipe, field):
    options = PLAIN | {"do_sample": field in SAMPLES} | {field: VALUES.get(field, True)}
    for chats in ([CHATS[0]], CHATS):
        by_pipeline(pipe, CHATS[1:2])  # fills the caches with a part of the prompts
        expected = outcome(lambda chats=chats: by_generate(pipe, chats, **options))
        assert outcome(lambda chats=chats: by_pipeline(pipe, chats, **options)) == expected


def test_values_change_answers(pipe):
    """A value without any effect would prove nothing."""
    plain = by_generate(pipe, CHATS, **PLAIN)
    for field in ("no_repeat_ngram_size", "suppress_tokens", "bad_words_ids", "sequence_bias", "repetition_penalty"):
        assert by_generate(pipe, CHATS, **PLAIN, **{field: VALUES[field]}) != plain


@pytest.fixture
def given_cache(pipe, monkeypatch):
    """Whether `generate` was given a cache, for each call."""
    given: list[bool] = []
    generate = pipe.model.generate
    monkeypatch.setattr(
        pipe.model, "generate", lambda **options: given.append(CACHE in options) or generate(**options)
    )
    return given


def test_a_setting_that_nobody_knows_takes_the_plain_path(pipe, given_cache, monkeypatch):
    for chats in (CHATS[:1], CHATS):
        by_pipeline(pipe, chats)
        monkeypatch.setattr(pipe.model.generation_config, "of_a_later_release", 3, raising=False)
        by_pipeline(pipe, chats)
        monkeypatch.delattr(pipe.model.generation_config, "of_a_later_release")
    assert given_cache == [True, False, True, False]


@pytest.mark.parametrize(
    "options", [{"num_beams": 1}, {"use_cache": True}, {"num_return_sequences": 1}, {"output_attentions": False}]
)
def test_what_is_so_anyway_may_be_said(pipe, given_cache, options):
    by_pipeline(pipe, CHATS[:1], **options)
    by_pipeline(pipe, CHATS, **options)
    assert given_cache == [True, True]
