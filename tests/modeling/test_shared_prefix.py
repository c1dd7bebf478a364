"""Rows in which questions share their audio, against the same questions in separate rows."""

import copy

import pytest
import torch
from tiny import make_llm, tone
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.shared_prefix_falcon3_audio import shared_prefix_mask


RATE = 16_000
BRANCHES = [["What is it?", "Why?", "How long is the sound that you hear?"], ["Is it loud?", "Where?"]]


@pytest.fixture
def clips(processor):
    """Two clips: (ids of the audio prefix, ids of each question, features, mask)."""
    made = []
    for clip, texts in zip((tone(0.7, 400), tone(1.2, 900)), BRANCHES):
        inputs = processor(text="Hear " + processor.audio_token, audio=clip, sampling_rate=RATE, return_tensors="pt")
        branches = [torch.tensor(processor.tokenizer(text)["input_ids"]) for text in texts]
        made.append((inputs["input_ids"][0], branches, inputs["input_features"], inputs["input_features_mask"]))
    return made


def separate(model, clips):
    """Per-token losses of each branch, from a separate row."""
    losses = []
    for prefix, branches, features, mask in clips:
        for branch in branches:
            ids = torch.cat([prefix, branch])[None]
            logits = model(input_ids=ids, input_features=features, input_features_mask=mask).logits[0]
            losses.append(cross_entropy(logits[len(prefix) : -1], branch[1:], reduction="none"))
    return losses


def shared(model, clips, padding=3):
    """The same losses, with all clips and branches in one right-padded row."""
    ids, positions, segments, prefixes, spans = [], [], [], [], []
    segment = 0
    for prefix, branches, _, _ in clips:
        segment += 1
        root = segment
        ids.append(prefix), positions.append(torch.arange(len(prefix)))
        segments.append(torch.full_like(prefix, root)), prefixes.append(torch.full_like(prefix, root))
        for branch in branches:
            segment += 1
            start = sum(map(len, ids))
            spans.append((start, start + len(branch)))
            ids.append(branch), positions.append(len(prefix) + torch.arange(len(branch)))
            segments.append(torch.full_like(branch, segment)), prefixes.append(torch.full_like(branch, root))
    zeros = torch.zeros(padding, dtype=torch.long)
    row = {"input_ids": ids, "position_ids": positions, "segment_ids": segments, "prefix_ids": prefixes}
    inputs = {name: torch.cat([*parts, zeros])[None] for name, parts in row.items()}
    width = max(features.shape[-1] for *_, features, _ in clips)
    pad = torch.nn.functional.pad
    features = torch.cat([pad(features, (0, width - features.shape[-1])) for *_, features, _ in clips])
    mask = torch.cat([pad(mask, (0, width - mask.shape[-1])) for *_, mask in clips])
    logits = model(**inputs, input_features=features, input_features_mask=mask).logits[0]
    tokens = inputs["input_ids"][0]
    return [cross_entropy(logits[a : b - 1], tokens[a + 1 : b], reduction="none") for a, b in spans]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention"])
def test_losses_equal_those_of_rows_of_their_own(model, clips, attention):
    model = copy.deepcopy(model)
    with torch.no_grad():
        expected = separate(model, clips)
        model.model.language_model.set_attn_implementation(attention)
        torch.testing.assert_close(shared(model, clips), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_rows_of_their_own(model, clips, checkpointing):
    model = copy.deepcopy(model).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for losses in (separate, shared):
        model.zero_grad()
        torch.cat(losses(model, clips)).sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert any(name.startswith("model.audio_tower") for name in gradients[0])
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["mistral", "phi3", "starcoder2"])
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_a_sliding_window_of_all_layers_is_kept(whisper, processor, clips, family, attention):
    """These families do not list the kinds of their layers."""
    losses = []
    for window in (8, None):
        llm = make_llm(family, sliding_window=window)
        token = processor.audio_token_id
        model = Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=token).eval()
        with torch.no_grad():
            losses.append(separate(model, clips))
            model.model.language_model.set_attn_implementation(attention)
            torch.testing.assert_close(shared(model, clips), losses[-1], rtol=0, atol=1e-5)
    assert not torch.allclose(losses[0][0], losses[1][0], atol=1e-3), "the window matters"


def test_who_sees_whom():
    config = make_llm().config
    config._attn_implementation = "sdpa"
    positions = torch.tensor([[0, 1, 2, 2, 0, 1, 0]])
    segments, prefixes = torch.tensor([[1, 1, 2, 3, 4, 5, 0]]), torch.tensor([[1, 1, 1, 1, 4, 4, 0]])
    mask = shared_prefix_mask(config, torch.zeros(1, 7, config.hidden_size), segments, prefixes, positions)
    seen = [[key for key in range(7) if mask[0, 0, query, key]] for query in range(7)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [4], [4, 5], [6]]


def test_attention_that_cannot_be_masked_is_refused(model, clips):
    for name, value, words in (
        ("_attn_implementation", "flash_attention_2", "need attention with a mask.*got 'flash_attention_2'"),
        (
            "layer_types",
            ["full_attention", "sliding_attention"],
            "full attention in every layer, got .* Set questions_per_row: 1",
        ),
    ):
        config = make_llm().config
        config._attn_implementation = "sdpa"
        setattr(config, name, value)
        with pytest.raises(ValueError, match=words):
            shared_prefix_mask(config, torch.zeros(1, 2, 48), *torch.ones(3, 1, 2))
    ids = torch.tensor([[5, 6]])
    with pytest.raises(ValueError, match="need `prefix_ids` and `position_ids`"):
        model(input_ids=ids, segment_ids=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("bloom", {}, "reads position ids, but bloom uses ALiBi. Set questions_per_row: 1"),
        ("mpt", {}, "reads position ids, but mpt uses ALiBi"),
        ("falcon", {"alibi": True}, "reads position ids, but falcon uses ALiBi"),
        ("gpt_neo", {}, r"full attention in every layer, got \['global', 'local'\]"),
    ],
)
def test_families_in_which_tokens_have_their_place_in_the_row_are_refused(family, options, words):
    config = CONFIG_MAPPING[family](**options)
    config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=words):
        shared_prefix_mask(config, torch.zeros(1, 2, 48), *torch.ones(3, 1, 2))
