"""Memory computed from shapes: against the published counts, against loaded models, and in the README."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny import make_llm, make_tokenizer, make_whisper
from transformers import AutoConfig

from falcon3_audio import PRESETS, Falcon3AudioConfig, Falcon3AudioForConditionalGeneration
from falcon3_audio.releases_falcon3_audio import CACHE
from falcon3_audio.serving import memory


# Benchmarks are run from a clone; they are not part of the package.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks.quantised import load, weight_bytes


ROOT = Path(__file__).resolve().parents[2]


def test_the_readme_has_the_table(capsys):
    assert memory.main([]) == 0
    table = capsys.readouterr().out
    assert table in (ROOT / "serving" / "README.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [f"| {name}" for name in PRESETS]


def test_7b_by_the_published_counts():
    facts = yaml.safe_load((ROOT / "model_cards" / "facts" / "falcon3-audio-7b.yaml").read_text())
    parts = ("audio_tower", "multi_modal_projector", "language_model")
    weights, quantised = sum(facts["parameters"][part] for part in parts), facts["parameters"]["quantizable"]
    # 28 layers of q, k, v, o, gate, up and down, each with one scale per row.
    rows = 28 * (3072 + 1024 + 1024 + 3072 + 23040 + 23040 + 3072)
    found = memory.compute_memory(Falcon3AudioConfig.from_preset("falcon3-audio-7b"))
    assert found.weights["bfloat16"] == 2 * weights
    assert found.weights["8 bits"] == 2 * weights - quantised + 4 * rows
    # A byte holds two weights; one scale byte per 64 weights, and four bytes per 256 scales.
    expected = 2 * (weights - quantised) + quantised * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    assert found.weights["4 bits (NF4)"] == pytest.approx(expected, rel=1e-9)
    assert found.cache == 2 * facts["cache_values_per_token"]
    assert found.tokens == 750 + 256


def test_pooling_changes_the_tokens_of_a_request():
    config = Falcon3AudioConfig.from_preset("falcon3-audio-1b", pooling_window=1)
    assert memory.compute_memory(config).tokens == 1500 + 256


@pytest.fixture(scope="module", params=[False, True], ids=["two matrices", "tied"])
def folder(request, tmp_path_factory):
    """A checkpoint with tied embeddings, and one with a separate output head."""
    folder = tmp_path_factory.mktemp("checkpoint")
    llm = make_llm(hidden_size=64, intermediate_size=128, head_dim=16, tie_word_embeddings=request.param)
    whisper = make_whisper(d_model=64)
    Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=1).save_pretrained(folder)
    return str(folder)


def test_it_is_what_loaded_models_take(folder):
    pytest.importorskip("bitsandbytes")
    computed = memory.compute_memory(AutoConfig.from_pretrained(folder)).weights
    model = load(folder, "bfloat16")
    assert sum(weight_bytes(model).values()) == computed["bfloat16"] == 2 * model.num_parameters()
    # Each of the 14 layers also stores its weight format: in a byte, or in code books and a few lines of JSON.
    assert sum(weight_bytes(load(folder, "bitsandbytes 8 bit")).values()) == computed["8 bits"] + 14
    model = load(folder, "bitsandbytes 4 bit (NF4)")
    books = sum(
        tensor.nbytes
        for name, tensor in model.state_dict().items()
        if name.endswith(("quant_map", "quant_state.bitsandbytes__nf4"))
    )
    # A layer with fewer than 256 scales still needs four bytes for them.
    assert 0 <= sum(weight_bytes(model).values()) - books - computed["4 bits (NF4)"] <= 14 * 4


def test_torchaos_eight_bits_have_a_zero_point_besides(folder):
    pytest.importorskip("torchao")
    rows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)  # of q, k, v, o, gate, up and down; one byte each
    found = weight_bytes(load(folder, "torchao int8"))
    assert sum(found.values()) == memory.compute_memory(AutoConfig.from_pretrained(folder)).weights["8 bits"] + rows


def test_the_cache_is_what_transformers_keeps(folder):
    model = load(folder, "bfloat16")
    with torch.no_grad():
        kept = getattr(model(torch.full((1, 10), 5), use_cache=True), CACHE)
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in kept.layers)
    assert size == 10 * memory.compute_memory(model.config).cache


def test_checkpoints_are_named_as_they_were_given(folder, capsys):
    assert memory.main([folder, "falcon3-audio-1b"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {folder}", "| falcon3-audio-1b"]


def test_what_is_no_checkpoint_is_named(tmp_path, backbone_folders, capsys):
    make_tokenizer().save_pretrained(tmp_path)
    for name, reason in ((backbone_folders[1], "a model of type 'llama'; expected"), (str(tmp_path), "config.json")):
        assert memory.main([name]) == 1
        captured = capsys.readouterr()
        assert name in captured.err and reason in captured.err and len(captured.err.splitlines()) == 1
        assert not captured.out
