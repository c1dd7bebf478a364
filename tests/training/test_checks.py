"""Options that are each valid, but not together."""

from types import SimpleNamespace

import pytest
from tiny import make_llm, make_whisper

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments
from falcon3_audio.training.checks import (
    check_fits,
    check_ignored,
    check_learning_rates,
    check_sound_everywhere,
    check_together,
)
from falcon3_audio.training.dpo import AudioDPOConfig
from falcon3_audio.training.grpo import AudioGRPOConfig


STREAM = {"path": "some.jsonl", "streaming": True}


@pytest.mark.parametrize("trainer", [AudioSFTConfig, AudioGRPOConfig, AudioDPOConfig])
@pytest.mark.parametrize(
    ("source", "advice"),
    [("some.jsonl", "leave it out, or set max_steps to -1 to train by epochs."), (STREAM, "leave it out.")],
)
def test_epochs_beside_steps(tmp_path, trainer, source, advice):
    data = DataArguments([source])

    def options(**given):
        return trainer(output_dir=str(tmp_path), bf16=False, **given)

    for check in (check_ignored, check_together):
        for given in ({"max_steps": 5}, {"num_train_epochs": 2}, {"max_steps": -1, "num_train_epochs": 0.5}):
            check(data, options(**given))
        with pytest.raises(ValueError, match="^max_steps=5 sets how long to train, so num_train_epochs=2 ") as error:
            check(data, options(max_steps=5, num_train_epochs=2))
        assert str(error.value).endswith(f"would be ignored: {advice}")


@pytest.mark.parametrize("trainer", [AudioSFTConfig, AudioGRPOConfig, AudioDPOConfig])
def test_a_run_that_would_do_nothing_of_what_it_says(tmp_path, trainer):
    def options(folder="run", **given):
        return trainer(output_dir=str(tmp_path / folder), bf16=False, **given)

    data, held_out = DataArguments(["some.jsonl"]), DataArguments(["some.jsonl"], ["other.jsonl"])
    check_ignored(held_out, options(eval_strategy="epoch"))
    check_ignored(data, options(max_steps=0))  # as -1: by epochs
    for epochs in (0, -1):
        with pytest.raises(ValueError, match=f"^num_train_epochs must be above 0, got {epochs}: the run would train"):
            check_ignored(data, options(num_train_epochs=epochs))
    for strategy in ("steps", "epoch"):
        with pytest.raises(
            ValueError, match=f"^eval_strategy is `{strategy}`, but there is nothing to evaluate: give"
        ):
            check_ignored(data, options(eval_strategy=strategy, eval_steps=2))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="^output_dir must be a folder, but .*/file is a file. Give another"):
        check_together(data, options("file"))


@pytest.mark.parametrize("tower", ["audio_tower", "language_model"])
def test_a_rate_for_a_frozen_tower(tmp_path, tower):
    training = AudioSFTConfig(output_dir=str(tmp_path), bf16=False, **{f"{tower}_learning_rate": 1e-5})
    other = {"audio_tower": "language_model", "language_model": "audio_tower"}[tower]
    for lora in (LoraArguments(), LoraArguments(**{f"lora_{other}": "none"})):
        check_learning_rates(lora, training)
    frozen = LoraArguments(**{f"lora_{tower}": "none"})
    check_learning_rates(frozen, AudioSFTConfig(output_dir=str(tmp_path), bf16=False, projector_learning_rate=1e-3))
    with pytest.raises(ValueError, match=f"^{tower}_learning_rate=1e-05 would be ignored, because lora_{tower}: none"):
        check_learning_rates(frozen, training)


def test_rows_that_a_language_model_cannot_take(tmp_path):
    """Said before the first step, not at the first clip with several questions."""
    sliding = make_llm("gemma3_text", layer_types=["sliding_attention", "full_attention"], sliding_window=8)
    models = [
        Falcon3AudioForConditionalGeneration.from_backbones(make_whisper(), llm, audio_token_id=1)
        for llm in (make_llm(), sliding, make_llm("gpt2", max_position_embeddings=40))
    ]
    plain, windows, learned = models

    def options(**given):
        return AudioSFTConfig(output_dir=str(tmp_path), bf16=False, **given)

    check_fits(plain, options(), may_share=True)
    check_fits(windows, options(), may_share=False)
    check_fits(windows, options(questions_per_row=1), may_share=True)
    for given, may_share in (({}, True), ({"tokens_per_device": 64, "max_length": 64, "global_batch_size": 4}, False)):
        with pytest.raises(ValueError, match="full attention in every layer, got .*Set questions_per_row: 1"):
            check_fits(windows, options(**given), may_share=may_share)
    check_fits(learned, options(max_length=40), may_share=True)
    with pytest.raises(ValueError, match="max_length is 41, but the language model has learned only 40 positions"):
        check_fits(learned, options(max_length=41), may_share=True)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed"])
@pytest.mark.parametrize("option", ["train_data", "eval_data"])
def test_a_sharded_encoder_needs_clips_everywhere(option, strategy):
    sharded = {"is_fsdp_enabled": strategy == "fsdp", "is_deepspeed_enabled": strategy == "deepspeed"}
    whole = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False)

    def data(*sounds):
        sets = [{"path": f"{number}.jsonl", "sound": sound} for number, sound in enumerate(sounds)]
        return DataArguments(**({"train_data": ["all.jsonl"]} | {option: sets}))

    for sounds in ((True, True), (False,)):
        check_sound_everywhere(data(*sounds), SimpleNamespace(**sharded))
    for sounds in (("some",), (True, False), (True, "some")):
        check_sound_everywhere(data(*sounds), whole)
        with pytest.raises(
            ValueError, match=f"^{option} has prompts with and without clips .*`sound: {str(sounds[-1]).lower()}`"
        ):
            check_sound_everywhere(data(*sounds), SimpleNamespace(**sharded))
