"""Windows of different lengths in one sequence: same numbers as one by one, few operations, only real positions."""

import importlib.util
import shutil

import numpy as np
import pytest
import torch
from encoder_reference import features_of, make_pair, masked_reference
from tiny import tone
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from falcon3_audio import Falcon3AudioEncoder, Falcon3AudioEncoderConfig
from falcon3_audio.packed_windows_falcon3_audio import MAX_GROUPS, PackedWindows, group_lengths, make_block_mask


HAS_COMPILER = any(map(shutil.which, ("g++", "c++", "clang++")))
HAS_FLASH = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
FRAMES = [3, 700, 64, 65, 1, 128, 300, 3000, 41, 900, 3650, 260]  # 12 clips of different lengths, 13 windows


def make_encoder(**sizes) -> Falcon3AudioEncoder:
    torch.manual_seed(0)
    given = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128} | sizes
    return Falcon3AudioEncoder(Falcon3AudioEncoderConfig(**given)).eval()


@pytest.fixture(scope="module")
def batch():
    """(features, mask), with frames after each clip's end that must not be heard, except the first."""
    torch.manual_seed(1)
    features = torch.randn(len(FRAMES), 80, max(FRAMES) + 10)
    return features, (torch.arange(features.shape[-1]) < torch.tensor(FRAMES)[:, None]).long()


@pytest.fixture(scope="module")
def alone(batch):
    """The states of each clip encoded without the others."""
    encoder = make_encoder()
    with torch.no_grad():
        return [encoder(row[None], mask[None]).last_hidden_state[0] for row, mask in zip(*batch)]


def compare(encoder, batch, alone, tolerance=1e-5):
    with torch.no_grad():
        hidden = encoder(*batch).last_hidden_state
    for row, expected in zip(hidden, alone):
        assert (row[: len(expected)] - expected).abs().max() < tolerance
        assert not row[len(expected) :].any()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_batch_of_many_lengths_gives_what_each_clip_gives_alone(batch, alone, attention):
    encoder = make_encoder()
    encoder.set_attn_implementation(attention)
    compare(encoder, batch, alone)


@pytest.mark.skipif(not HAS_COMPILER, reason="flex attention on a CPU is compiled C++")
def test_flex_attention_takes_all_windows_in_one_call(batch, alone):
    # After the sizes of other tests, torch 2.13 compiles for dynamic sizes, and its own C++ compiler refuses the code.
    torch.compiler.reset()
    encoder = make_encoder()
    encoder.set_attn_implementation("flex_attention")
    compare(encoder, batch, alone)


@pytest.mark.skipif(not HAS_FLASH, reason="flash attention needs a GPU and flash-attn")
def test_flash_attention_on_a_gpu(batch, alone):
    encoder = make_encoder().to("cuda", torch.bfloat16)
    encoder.set_attn_implementation("flash_attention_2")
    moved = [part.to("cuda") for part in batch]
    with torch.no_grad():
        hidden = encoder(moved[0].bfloat16(), moved[1]).last_hidden_state.float().cpu()
    for row, expected in zip(hidden, alone):
        assert (row[: len(expected)] - expected).abs().max() < 0.1


def test_flash_attention_gets_cumulative_lengths_once_a_layer(batch, alone, monkeypatch):
    """A stand-in for the kernel, which needs a GPU: its contract, computed window by window."""
    calls = []

    def varlen(module, query, key, value, attention_mask, scaling, dropout=0.0, **lengths):
        ends = lengths["cu_seq_lens_q"]
        assert attention_mask is None and ends.dtype == torch.int32 and torch.equal(ends, lengths["cu_seq_lens_k"])
        assert lengths["max_length_q"] == lengths["max_length_k"] == int(ends.diff().max())
        calls.append(len(ends) - 1)
        parts = zip(*(states.split(ends.diff().tolist(), dim=2) for states in (query, key, value)))
        outputs = [torch.nn.functional.scaled_dot_product_attention(*part, scale=scaling) for part in parts]
        return torch.cat(outputs, dim=2).transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", varlen)
    encoder = make_encoder()
    encoder.config._attn_implementation = "flash_attention_2"
    compare(encoder, batch, alone)
    assert calls == [len(FRAMES) + 1] * 2


def test_the_reference_holds_for_more_lengths_than_groups(processor):
    whisper, encoder = make_pair()
    clips = [tone(0.3 + 0.37 * number, 300 + 50 * number) for number in range(MAX_GROUPS + 3)]
    with torch.no_grad():
        hidden = encoder(**features_of(processor, *clips)).last_hidden_state
    for row, clip in zip(hidden, clips):
        expected = masked_reference(whisper, clip)
        assert (row[: len(expected)] - expected).abs().max() < 1e-5


def test_projections_and_feed_forward_see_real_positions_alone(batch):
    encoder = make_encoder()
    seen = []
    layer = encoder.layers[0]
    for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.out_proj, layer.fc1, layer.fc2):
        module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        encoder(*batch)
    assert seen == [sum(-(-count // 2) for count in FRAMES)] * 5


def test_gradients_of_a_padded_batch_are_those_of_each_clip(batch):
    encoder = make_encoder()

    def gradients(*parts):
        encoder.zero_grad()
        for features, mask in parts:
            encoder(features, mask).last_hidden_state.square().sum().backward()
        return {name: weight.grad.clone() for name, weight in encoder.named_parameters() if weight.requires_grad}

    features, mask = batch[0][:, :, :1000], batch[1][:, :1000]
    whole = gradients((features, mask))
    apart = gradients(*((row[None], part[None]) for row, part in zip(features, mask)))
    for name, gradient in apart.items():
        torch.testing.assert_close(whole[name], gradient, rtol=1e-4, atol=1e-3, msg=name)


def test_hidden_states_of_a_batch_are_packed_shortest_first(batch):
    encoder = make_encoder()
    encoder.set_attn_implementation("eager")
    features, mask = batch[0][:3], batch[1][:3]
    with torch.no_grad():
        outputs = encoder(features, mask, output_hidden_states=True, output_attentions=True)
        first = encoder(features[:1], mask[:1], output_hidden_states=True)
    assert [tuple(state.shape) for state in outputs.hidden_states[:-1]] == [(1, 2 + 350 + 32, 64)] * 2
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    assert outputs.attentions is None or all(weights is None for weights in outputs.attentions)
    torch.testing.assert_close(outputs.hidden_states[1][0, :2], first.hidden_states[1][0], atol=1e-5, rtol=0)


def test_layers_may_be_dropped_in_training(batch):
    encoder = make_encoder(layerdrop=1.0).train()
    ran = []
    for layer in encoder.layers:
        layer.register_forward_hook(lambda *_: ran.append(1))
    encoder(*batch)
    assert not ran


# Groups.


def padded_pairs(lengths, bounds) -> int:
    return sum((stop - start) * lengths[stop - 1] ** 2 for start, stop in bounds)


def test_few_lengths_are_not_padded():
    assert group_lengths([5, 5, 7, 7, 9, 11, 20, 21]) == [(0, 2), (2, 4), (4, 5), (5, 6), (6, 7), (7, 8)]
    windows = PackedWindows([5, 7, 5], limit=10, device="cpu")
    assert windows.padded is None and windows.groups == [(2, 5), (1, 7)] and not windows.is_even


@pytest.mark.parametrize("count", [7, 20, 64])
def test_groups_hold_all_windows_and_pad_little(count):
    lengths = sorted((np.random.default_rng(count).permutation(1500)[:count] + 1).tolist())
    bounds = group_lengths(lengths)
    assert len(bounds) == MAX_GROUPS and bounds[0][0] == 0 and bounds[-1][1] == count
    assert all(left[1] == right[0] for left, right in zip(bounds, bounds[1:]))
    # Compare with the optimal split, found by trying all of them.
    best = {0: {0: 0}}
    for groups in range(1, MAX_GROUPS + 1):
        best[groups] = {
            stop: min(
                best[groups - 1][start] + (stop - start) * lengths[stop - 1] ** 2
                for start in best[groups - 1]
                if start < stop
            )
            for stop in range(groups, count + 1)
        }
    assert padded_pairs(lengths, bounds) <= 1.1 * best[MAX_GROUPS][count]


def test_padding_and_back(batch):
    positions = [-(-count // 2) for count in FRAMES]
    windows = PackedWindows(positions, limit=1500, device="cpu")
    states = torch.arange(sum(positions)).float()[:, None]
    parts = windows.split(states)
    assert [tuple(part.shape[:2]) for part in parts] == windows.groups and len(windows.groups) == MAX_GROUPS
    assert torch.equal(windows.join(parts), states)
    masks = windows.masks(torch.float32)
    ends = np.cumsum(windows.lengths)
    number = 0
    for part, mask in zip(parts, masks):
        for row in range(len(part)):
            heard = part[row, :, 0] if mask is None else part[row, mask[row, 0, 0] == 0, 0]
            assert heard.tolist() == list(range(ends[number] - windows.lengths[number], ends[number]))
            number += 1
    # The places in the batch: clip after clip.
    flat = torch.full((len(FRAMES) * max(positions),), -1.0)
    flat[windows.places] = states[:, 0]
    assert [(row >= 0).sum().item() for row in flat.view(len(FRAMES), -1)] == positions


@pytest.mark.parametrize("lengths", [[1, 2, 3], [100, 128, 129], [64] * 5 + [500], [300, 1500, 1500], [128, 128, 256]])
def test_the_block_mask_is_that_of_all_pairs(lengths):
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = make_block_mask(lengths, torch.device("cpu"))
    same = owner[:, None] == owner[None]
    index = torch.arange(len(owner))
    assert torch.equal(mask.mask_mod(0, 0, index[:, None], index[None]), same)
    blocks = -(-len(owner) // 128)
    padded = torch.nn.functional.pad(same, (0, blocks * 128 - len(owner)) * 2)
    wanted = padded.view(blocks, 128, blocks, 128).any(3).any(1)
    # Unneeded blocks between needed ones can be included; no needed block can be left out.
    looked_at = mask.to_dense()[0, 0].bool()
    assert (looked_at | ~wanted).all() and looked_at.sum() <= 1.5 * wanted.sum()
