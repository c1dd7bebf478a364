"""The tiny pretrained backbones: what they are, what they can do before the single stage, and how they are made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperForConditionalGeneration

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.training.tiny_backbones import make_llm, make_whisper
from falcon3_audio.training.tiny_backbones.world_texts import describe
from falcon3_audio.training.world.audio_world import QUESTION_TYPES, draw_train
from falcon3_audio.training.world.audio_world_sounds import TEST


FOLDER = Path(make_llm.__file__).parent
WHISPER, LLM = FOLDER / "whisper", FOLDER / "llm"


def weights(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # no mapping


def test_sizes_are_those_that_the_readme_tells():
    assert 2e6 < weights(WHISPER) < 5e6
    assert 3e6 < weights(LLM) < 8e6
    megabytes = sum((folder / "model.safetensors").stat().st_size for folder in (WHISPER, LLM)) / 1e6
    assert megabytes < 12
    assert f"{megabytes:.1f} MB together" in (FOLDER / "README.md").read_text()


def test_they_compose_and_the_placeholder_is_a_free_slot():
    processor = Falcon3AudioProcessor.from_backbones(WHISPER, LLM)
    model = Falcon3AudioForConditionalGeneration.from_backbones(WHISPER, LLM, dtype=torch.float32)
    assert processor.audio_token.startswith(">>UNUSED_")
    assert model.config.audio_token_id == processor.audio_token_id
    assert model.config.audio_config.max_source_positions == 1500
    assert processor.feature_extractor.nb_max_frames == 3000


def test_the_whisper_writes_down_clips_that_it_never_heard():
    whisper = WhisperForConditionalGeneration.from_pretrained(WHISPER, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(WHISPER)
    batches = make_whisper.Captioned(tokenizer, 1, seed=77)
    heard = iter(batches)
    right = []
    for features, labels in (next(heard) for _ in range(2)):
        make_whisper.set_window(whisper, features.shape[-1] // 2)
        with torch.no_grad():
            written = tokenizer.batch_decode(whisper.generate(features, max_new_tokens=40), skip_special_tokens=True)
        pad = tokenizer.pad_token_id
        wanted = tokenizer.batch_decode(labels.masked_fill(labels == -100, pad), skip_special_tokens=True)
        right += [got == text for got, text in zip(written, wanted)]
    assert len(right) == 64
    assert np.mean(right) > 0.85


def test_the_language_model_answers_questions_about_described_clips():
    tokenizer = AutoTokenizer.from_pretrained(LLM)
    llm = AutoModelForCausalLM.from_pretrained(LLM, dtype=torch.float32).eval()
    right = []
    for clip, rows in draw_train(24, np.random.default_rng(77)):
        row = next(row for row in rows if "Choose one" in row["instruction"]) if _has_choices(rows) else rows[0]
        prompt = make_llm.ask(tokenizer, describe(clip) + row["instruction"])
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            answer = llm.generate(**ids, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
        right.append(tokenizer.decode(answer, skip_special_tokens=True) == row["output"])
    assert np.mean(right) > 0.85


def _has_choices(rows):
    return any("Choose one" in row["instruction"] for row in rows)


def test_types_of_question_may_be_left_out(monkeypatch):
    """Only those: a clip's other questions are still asked, and a clip without other questions is left out."""
    monkeypatch.setattr(make_llm, "CHUNK", 60)
    tokenizer = AutoTokenizer.from_pretrained(LLM)

    def asked(without):
        batches = make_llm.Described(tokenizer, 1, seed=5, without=without)
        return [text for batch in batches for text in tokenizer.batch_decode(batch["input_ids"])]

    left_out = ["chord", "mode", "instrument", "music_description", "last_word"]  # the first four: all about a chord
    everything, rest = asked([]), asked(left_out)
    wordings = [wording for name in left_out for wording in QUESTION_TYPES[name].wordings]
    assert any(wording in text for text in everything for wording in wordings)
    assert not any(wording in text for text in rest for wording in wordings)
    kept = [name for name in QUESTION_TYPES if name not in left_out]
    assert all(any(wording in text for text in rest for wording in QUESTION_TYPES[name].wordings) for name in kept)
    assert len(everything) == 60 and len(rest) == 50  # a third are about music, half of them chords


def test_pretraining_never_meets_what_the_test_holds_out():
    heard = [clip.settings for clip, _ in draw_train(600, np.random.default_rng(3))]
    for name, held_out in (("voice", TEST.men + TEST.women), ("pitch", TEST.sound_pitches + TEST.voice_pitches)):
        met = {settings[name] for settings in heard if name in settings}
        assert met and not met & set(held_out)
    speeds = {settings["speed"] for settings in heard if "speed" in settings}
    assert speeds and not speeds & set(TEST.slow_speeds + TEST.quick_speeds)


@pytest.mark.parametrize("script", [make_whisper, make_llm], ids=["whisper", "llm"])
def test_the_scripts_make_backbones(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "CHUNK", 8)
    monkeypatch.setattr(script, "BATCH_SIZE", 4)
    monkeypatch.setattr(script, "ENOUGH_CLIPS", 60)
    assert script.main([str(tmp_path / "made"), "--clips", "8"]) == 0
    assert "M parameters" in capsys.readouterr().out
    kind = WhisperForConditionalGeneration if script is make_whisper else AutoModelForCausalLM
    assert kind.from_pretrained(tmp_path / "made").dtype == torch.float16
