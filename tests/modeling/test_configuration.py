"""The configuration: presets, sub-configs of any family, and errors that name the field and the allowed values."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig, Qwen2Config, WhisperConfig

from falcon3_audio import Falcon3AudioConfig, Falcon3AudioEncoderConfig
from falcon3_audio.releases_falcon3_audio import CACHE


@pytest.mark.parametrize(
    ("name", "audio_width", "audio_layers", "text_width", "text_layers", "intermediate", "positions"),
    [
        ("falcon3-audio-1b", 768, 12, 2048, 18, 8192, 8192),
        ("falcon3-audio-3b", 1024, 24, 3072, 22, 9216, 32768),
        ("falcon3-audio-7b", 1024, 24, 3072, 28, 23040, 32768),
    ],
)
def test_presets(name, audio_width, audio_layers, text_width, text_layers, intermediate, positions):
    config = Falcon3AudioConfig.from_preset(name)
    audio, text = config.audio_config, config.text_config
    assert (audio.hidden_size, audio.num_hidden_layers, audio.num_mel_bins) == (audio_width, audio_layers, 80)
    assert (text.hidden_size, text.num_hidden_layers, text.intermediate_size) == (
        text_width,
        text_layers,
        intermediate,
    )
    assert (text.max_position_embeddings, text.vocab_size, text.head_dim) == (positions, 131072, 256)
    assert text.rope_parameters["rope_theta"] == 1000042.0
    assert (config.pooling_window, config.projector_type, config.pad_to_window) == (2, "mlp", False)


def test_a_preset_with_a_field_replaced():
    config = Falcon3AudioConfig.from_preset("falcon3-audio-1b", pooling_window=1, projector_type="linear")
    assert (config.pooling_window, config.projector_type, config.text_config.hidden_size) == (1, "linear", 2048)
    with pytest.raises(ValueError, match="'falcon3-audio-2b': choose one of falcon3-audio-1b, "):
        Falcon3AudioConfig.from_preset("falcon3-audio-2b")


def test_whispers_config_gives_the_encoders_part():
    whisper = WhisperConfig(
        num_mel_bins=128, d_model=64, encoder_layers=3, encoder_attention_heads=4, encoder_ffn_dim=99
    )
    for given in (whisper, whisper.to_dict()):
        audio = Falcon3AudioConfig(audio_config=given).audio_config
        assert type(audio) is Falcon3AudioEncoderConfig
        assert (audio.num_mel_bins, audio.hidden_size, audio.num_hidden_layers) == (128, 64, 3)
        assert (audio.num_attention_heads, audio.intermediate_size, audio.max_source_positions) == (4, 99, 1500)
        assert audio.d_model == 64  # Whisper's own names work too


@pytest.mark.parametrize("given", [Qwen2Config(vocab_size=5000), {"model_type": "qwen2", "vocab_size": 5000}])
def test_any_text_config(given):
    config = Falcon3AudioConfig(text_config=given)
    assert type(config.text_config) is Qwen2Config and config.text_config.vocab_size == 5000


def test_tying_follows_the_text_config():
    assert Falcon3AudioConfig(text_config=LlamaConfig(tie_word_embeddings=True)).tie_word_embeddings is True
    assert Falcon3AudioConfig().tie_word_embeddings is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pooling_window": 7}, r"`pooling_window` must divide .* got 7, allowed are \[1, 2, 3, 4, 5, 6"),
        ({"pooling_window": 0}, "`pooling_window` must divide"),
        ({"pooling_window": "2"}, r"'pooling_window'[\s\S]*expected int, got str"),
        ({"projector_type": "qformer"}, r"'projector_type'[\s\S]*'mlp', 'linear'"),
        ({"pad_to_window": "yes"}, r"'pad_to_window'[\s\S]*expected bool"),
        ({"audio_token_id": -1}, "`audio_token_id` must be an id of the tokenizer, 0 or more, got -1"),
        ({"trailing_silence": -0.1}, "`trailing_silence` must be from 0 to the 30 s of a window, got -0.1"),
        ({"trailing_silence": float("nan")}, "`trailing_silence` must be from 0 to the 30 s of a window, got nan"),
        (
            {"trailing_silence": 30.5},
            "`trailing_silence` must be from 0 to .* got 30.5. Use 30 to encode every window in full",
        ),
        ({"trailing_silence": 0.004}, "`trailing_silence` must be 0 or at least one mel frame .* got 0.004"),
        ({"trailing_silence": "1"}, r"'trailing_silence'"),
        ({"read_trailing_silence": "no"}, r"'read_trailing_silence'[\s\S]*expected bool"),
        (
            {"trailing_silence": 1.0, "pad_to_window": True},
            "`pad_to_window` already encodes and reads the whole window",
        ),
        (
            {"read_trailing_silence": False, "pad_to_window": True},
            "trailing_silence=30 with read_trailing_silence=False",
        ),
        (
            {"audio_config": {"num_attention_heads": 7}},
            "`num_attention_heads` must divide `hidden_size`, got 7 .* 768",
        ),
        ({"audio_config": {"num_mel_bins": 0}}, "`num_mel_bins` must be at least 1, got 0"),
    ],
)
def test_wrong_values_name_the_field_and_what_is_allowed(wrong, message):
    with pytest.raises(StrictDataclassError, match=message):
        Falcon3AudioConfig(**wrong)


def test_the_audio_token_may_lie_beyond_the_vocabulary():
    within, beyond = (Falcon3AudioConfig(audio_token_id=number) for number in (131071, 131072))
    assert within.audio_token_is_embedded and not beyond.audio_token_is_embedded
    assert within.text_config.vocab_size == beyond.text_config.vocab_size == 131072


def test_wrong_families_are_named():
    with pytest.raises(ValueError, match="`audio_config` must describe a Whisper encoder .* got model_type 'bert'"):
        Falcon3AudioConfig(audio_config={"model_type": "bert"})
    with pytest.raises(ValueError, match="`text_config` has the unknown model_type 'falcon9'"):
        Falcon3AudioConfig(text_config={"model_type": "falcon9"})


def test_saving_and_loading(tmp_path):
    silence = {"trailing_silence": 0.5, "read_trailing_silence": False}
    for options in ({"pad_to_window": True}, silence):
        config = Falcon3AudioConfig.from_preset("falcon3-audio-3b", audio_token_id=7, **options)
        assert {name: getattr(config, name) for name in options} == options
        config.save_pretrained(tmp_path)
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is Falcon3AudioConfig
        assert loaded.to_dict() | {"_name_or_path": ""} == config.to_dict()


def test_checkpoints_from_before_an_option_keep_what_they_were_trained_with(tmp_path):
    Falcon3AudioConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved.pop("trailing_silence"), saved.pop("read_trailing_silence")) == (0.0, True)
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.trailing_silence, config.read_trailing_silence) == (0.0, True)


def test_the_saved_file_names_its_code_and_its_pipeline(tmp_path):
    """Importing the package registers the pipeline, so loading does not require `trust_remote_code`."""
    config = Falcon3AudioConfig()
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["custom_pipelines"]["audio-text-to-text"]["impl"] == "pipeline_falcon3_audio.AudioTextToTextPipeline"
    assert "AutoModelForSpeechSeq2Seq" not in saved["auto_map"]
    for reference in [*saved["auto_map"].values(), saved["custom_pipelines"]["audio-text-to-text"]["impl"]]:
        module = reference.split(".")[0]
        assert (tmp_path / f"{module}.py").exists() or module.startswith(("modeling", "processing"))
    assert AutoConfig.from_pretrained(tmp_path).custom_pipelines == {}


def test_a_trainer_gathers_neither_cache_nor_audio_as_predictions():
    assert {CACHE, "audio_hidden_states"} <= set(Falcon3AudioConfig.keys_to_ignore_at_inference)
