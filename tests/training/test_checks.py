"""Options that are each valid, but not together."""

from types import SimpleNamespace

import pytest

from falcon3_audio.training.arguments import AudioSFTConfig, DataArguments, LoraArguments
from falcon3_audio.training.checks import (
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
