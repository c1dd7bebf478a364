"""The new projector's start, fitted to clips and to the language model's embeddings."""

import pytest
import torch
from safetensors.torch import load_file
from tiny import make_llm, make_whisper, tone
from training_runs import assistant, parse, user, weights_of, write_recipe

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.training import sft
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.projector_start import fit_projector


@pytest.fixture
def clips(processor):
    sounds = [{"type": "audio", "audio": tone(0.3 + n / 10, 200 + 90 * n), "sampling_rate": 16_000} for n in range(12)]
    return [AudioChatCollator(processor)([{"messages": [user(sound), assistant("a dog")]}]) for sound in sounds]


@torch.no_grad()
def tokens_of(model, clips):
    given = [(clip["input_features"], clip["input_features_mask"]) for clip in clips]
    return torch.cat([model.get_audio_features(*features).pooler_output for features in given])


@pytest.mark.parametrize("projector_type", ["mlp", "linear"])
def test_tokens_have_the_moments_of_the_embeddings(backbone_folders, clips, projector_type):
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        *backbone_folders, projector_type=projector_type
    ).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    fit_projector(model, iter(clips))
    tokens, embeddings = tokens_of(model, clips), model.get_input_embeddings().weight.detach()
    torch.testing.assert_close(tokens.mean(0), embeddings.mean(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.var(0), embeddings.var(0), atol=1e-6, rtol=1e-2)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    norms = {
        f"model.multi_modal_projector.{norm}.{part}" for norm in ("norm_in", "norm_out") for part in ("weight", "bias")
    }
    assert changed == norms


@pytest.mark.parametrize("family", ["gemma", "gemma3_text"])
def test_scaled_embeddings_count_as_the_language_model_reads_them(clips, family):
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        make_whisper(), make_llm(family), audio_token_id=1
    ).eval()
    fit_projector(model, iter(clips))
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.arange(300))
    assert embeddings.std() > 5 * model.get_input_embeddings().weight.std()
    torch.testing.assert_close(tokens_of(model, clips).var(0), embeddings.var(0), atol=1e-4, rtol=1e-2)


def test_clips_are_less_alike(backbone_folders, clips):
    """The purpose of the fit: a lower mean correlation between clips, each represented by its mean token."""

    def likeness(model):
        means = torch.stack([tokens_of(model, [clip]).mean(0) for clip in clips])
        return float(torch.corrcoef(means).triu(1).sum() / (len(clips) * (len(clips) - 1) / 2))

    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders).eval()
    before = likeness(model)
    fit_projector(model, iter(clips))
    assert likeness(model) < before - 0.1


def test_halves_stay_halves(backbone_folders, clips):
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, dtype="bfloat16").eval()
    fit_projector(model, iter(clips))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    embeddings = model.get_input_embeddings().weight.detach().float()
    torch.testing.assert_close(tokens_of(model, clips).float().var(0), embeddings.var(0), atol=1e-5, rtol=0.1)


def test_without_clips(model):
    with pytest.raises(ValueError, match="No training clip to fit the projector to; set projector_start to `random`"):
        fit_projector(model, iter([]))


def test_a_run_starts_from_it(recipe, tmp_path):
    """The base that a run saves has it, the same for the same seed, and only its norms differ from a random one."""

    def base(name, **options):
        path = write_recipe(tmp_path / f"{name}.yaml", extends=recipe, max_steps=1, save_steps=1, **options)
        sft.train(*parse("--config", path, "--output_dir", str(tmp_path / name)))
        assert not list((tmp_path / name).glob("*.draft"))
        return load_file(tmp_path / name / "base" / "model.safetensors")

    fitted, again, random = base("a", projector_start="fitted"), base("b", projector_start="fitted"), base("c")
    assert all(torch.equal(fitted[name], again[name]) for name in fitted)
    changed = {name for name in fitted if not torch.equal(fitted[name], random[name])}
    norms = {
        f"model.multi_modal_projector.{norm}.{part}" for norm in ("norm_in", "norm_out") for part in ("weight", "bias")
    }
    assert changed == norms
    assert weights_of(tmp_path / "a").keys() == weights_of(tmp_path / "c").keys()
