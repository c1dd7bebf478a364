"""The audio tower against transformers' WhisperEncoder, alone and with padding masked in all 3000 frames."""

import math

import numpy as np
import pytest
import torch
from encoder_reference import WINDOW, features_of, make_pair, masked_reference
from tiny import SAMPLING_RATE, make_whisper, tone
from transformers import WhisperFeatureExtractor

from falcon3_audio import (
    Falcon3AudioEncoder,
    Falcon3AudioForConditionalGeneration,
    Falcon3AudioProcessor,
)


@pytest.fixture(scope="module")
def pair():
    return make_pair()


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_a_full_window_is_whispers_bit_for_bit(num_mel_bins):
    whisper, encoder = make_pair(num_mel_bins)
    features = torch.randn(2, num_mel_bins, 3000)
    with torch.no_grad():
        expected = whisper(features).last_hidden_state
        assert torch.equal(encoder(features).last_hidden_state, expected)
        assert torch.equal(encoder(features, torch.ones(2, 3000)).last_hidden_state, expected)


def test_parameter_names_are_whispers(pair):
    whisper, encoder = pair
    assert list(encoder.state_dict()) == list(whisper.state_dict())


def test_new_encoders_have_whispers_positions(model):
    """Training would silently work around random positions; transformers does not initialise them for us."""
    whisper = make_whisper().get_encoder()
    composed = Falcon3AudioForConditionalGeneration(model.config).model.audio_tower
    for encoder in (composed, Falcon3AudioEncoder(model.config.audio_config)):
        assert torch.equal(encoder.embed_positions.weight, whisper.embed_positions.weight)
        assert not encoder.embed_positions.weight.requires_grad


@pytest.mark.parametrize(
    "samples", [1, 159, 160, 161, 320, 480, 1000, 16_000, 52_345, 147_200, WINDOW - 321, WINDOW - 1, WINDOW]
)
def test_real_frames_equal_the_reference_with_padding_masked(pair, processor, samples):
    whisper, encoder = pair
    clip = tone(samples / SAMPLING_RATE)
    with torch.no_grad():
        hidden = encoder(**features_of(processor, clip)).last_hidden_state[0]
    expected = masked_reference(whisper, clip)
    assert hidden.shape == expected.shape
    assert (hidden - expected).abs().max() < 1e-5


def test_a_ragged_batch_equals_the_reference_clip_by_clip(pair, processor):
    whisper, encoder = pair
    clips = [tone(0.4, 300), tone(3.1, 500), tone(0.005, 700), tone(3.1, 900), tone(9.2, 1100)]
    with torch.no_grad():
        hidden = encoder(**features_of(processor, *clips)).last_hidden_state
    for row, clip in zip(hidden, clips):
        expected = masked_reference(whisper, clip)
        assert (row[: len(expected)] - expected).abs().max() < 1e-5
        assert not row[len(expected) :].any(), "positions behind a clip's end are zero"


def test_long_audio_is_windows_in_a_row(pair, processor):
    whisper, encoder = pair
    long, short = tone(71.3), tone(2)
    with torch.no_grad():
        hidden = encoder(**features_of(processor, long, short)).last_hidden_state[0]
    expected = torch.cat(
        [masked_reference(whisper, long[start : start + WINDOW]) for start in range(0, len(long), WINDOW)]
    )
    assert hidden.shape == expected.shape == (3565, 32)
    assert (hidden - expected).abs().max() < 1e-5


def test_only_real_positions_are_computed(pair, processor):
    _, encoder = pair
    computed = []
    hook = encoder.layers[0].fc1.register_forward_hook(
        lambda module, args, output: computed.append(args[0].shape[:-1].numel())
    )
    with torch.no_grad():
        encoder(**features_of(processor, tone(5), tone(1), tone(1)))
    hook.remove()
    assert computed == [250 + 50 + 50]


def test_gradient_checkpointing_gives_the_same_gradients(pair, processor):
    _, encoder = pair
    inputs = features_of(processor, tone(1), tone(2))

    def gradients():
        encoder.zero_grad()
        encoder(**inputs).last_hidden_state.square().sum().backward()
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.requires_grad]

    plain = gradients()
    encoder.train()
    encoder.gradient_checkpointing_enable()
    checkpointed = gradients()
    encoder.gradient_checkpointing_disable()
    encoder.eval()
    assert len(plain) == len(checkpointed) > 0
    for left, right in zip(plain, checkpointed):
        torch.testing.assert_close(left, right)


def test_hidden_states_of_equal_clips_have_whispers_shape(pair, processor):
    _, encoder = pair
    encoder.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = encoder(
            **features_of(processor, tone(1), tone(1)), output_hidden_states=True, output_attentions=True
        )
    encoder.set_attn_implementation("sdpa")
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 50, 32)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 4, 50, 50)] * 2


def test_wrong_features_are_named(pair):
    _, encoder = pair
    with pytest.raises(ValueError, match=r"80 mel bands.*got \(1, 128, 100\)"):
        encoder(torch.zeros(1, 128, 100))
    with pytest.raises(ValueError, match=r"\(1, 90\) for features of shape \(1, 80, 100\)"):
        encoder(torch.zeros(1, 80, 100), torch.ones(1, 90))
    with pytest.raises(ValueError, match="first frames"):
        encoder(torch.zeros(1, 80, 4), torch.tensor([[0, 0, 1, 1]]))


def test_an_empty_row_gives_no_positions(pair):
    _, encoder = pair
    mask = torch.zeros(2, 10, dtype=torch.long)
    assert encoder(torch.zeros(2, 80, 10), mask).last_hidden_state.shape == (2, 0, 32)


def test_processor_and_encoder_agree_on_every_length(model, processor):
    """The contract between two folders that cannot import each other."""
    lengths = [1, 2, 159, 160, 161, 319, 320, 321, 640, 641, 15_999, 16_000, 16_001]
    lengths += [WINDOW + step for step in (-641, -640, -481, -480, -479, -160, -1, 0, 1, 160, 161, 320, 321)]
    lengths += [int(seconds * SAMPLING_RATE) for seconds in np.linspace(0.7, 95, 30)]
    expected = processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"]
    for length, count in zip(lengths, expected):
        inputs = processor(
            text=[processor.audio_token], audio=[np.full(length, 0.1, np.float32)], sampling_rate=SAMPLING_RATE
        )
        placeholders = int((inputs["input_ids"] == processor.audio_token_id).sum())
        with torch.no_grad():
            tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        assert len(tokens) == placeholders == count >= 1, f"{length} samples"


# Silence after each clip.


def make_silent_pair(backbone_folders, **options):
    """Processor and model with options, the model's encoder with random weights (`make_pair`'s)."""
    processor = Falcon3AudioProcessor.from_backbones(*backbone_folders, **options)
    torch.manual_seed(0)
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, **options)
    return processor, model.eval()


@pytest.fixture(scope="module")
def tower_reference(pair, backbone_folders):
    """Whisper's encoder with the weights of the tiny backbones."""
    whisper, _ = make_pair()
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders)
    whisper.load_state_dict(model.model.audio_tower.state_dict())
    return whisper


@pytest.mark.parametrize("silence", [0.01, 0.5, 1.0, 2.37, 30])
def test_silence_is_encoded_as_whisper_encodes_zeros_behind_a_clip(backbone_folders, tower_reference, silence):
    processor, model = make_silent_pair(backbone_folders, trailing_silence=silence)
    seconds = (0.0001, 0.0101, 3.1, 9.2, 29.7, 30, 71.3)
    clips = [tone(length, 300 + 100 * index) for index, length in enumerate(seconds)]
    inputs = features_of(processor, *clips)
    assert inputs["input_features_mask"].sum(-1).tolist() == [math.ceil(len(clip) / 160) for clip in clips]
    with torch.no_grad():
        hidden = model.get_audio_features(**inputs).last_hidden_state
    for row, clip in zip(hidden, clips):
        windows = [clip[start : start + WINDOW] for start in range(0, len(clip), WINDOW)]
        expected = torch.cat([masked_reference(tower_reference, window, silence) for window in windows])
        assert (row[: len(expected)] - expected).abs().max() < 1e-5
        assert not row[len(expected) :].any(), "positions behind the silence are zero"


def test_silence_that_fills_the_window_gives_stock_whisper(backbone_folders, tower_reference):
    processor, model = make_silent_pair(backbone_folders, trailing_silence=30)
    clip = tone(2.5)
    stock = WhisperFeatureExtractor()(clip, sampling_rate=SAMPLING_RATE, return_tensors="pt")["input_features"]
    with torch.no_grad():
        hidden = model.get_audio_features(**features_of(processor, clip)).last_hidden_state
        assert (hidden - tower_reference(stock).last_hidden_state).abs().max() < 1e-5


@pytest.mark.parametrize("pooling_window", [1, 2, 5])
def test_silence_that_is_not_read_leaves_the_clips_own_tokens(backbone_folders, pooling_window):
    options = {"trailing_silence": 1.0, "pooling_window": pooling_window}
    processor, model = make_silent_pair(backbone_folders, **options)
    other, skipping = make_silent_pair(backbone_folders, **options, read_trailing_silence=False)
    clips = [tone(1.23), tone(0.001), tone(29.5), tone(30), tone(31)]
    with torch.no_grad():
        read = model.get_audio_features(**features_of(processor, *clips)).pooler_output
        kept = skipping.get_audio_features(**features_of(other, *clips)).pooler_output
    mask = features_of(processor, *clips)["input_features_mask"]
    counts, kept_counts = model.count_audio_tokens(mask).tolist(), skipping.count_audio_tokens(mask).tolist()
    per_second = 50 // pooling_window
    assert kept_counts == [math.ceil(math.ceil(len(clip) / 320) / pooling_window) for clip in clips]
    differences = [count - kept for count, kept in zip(counts, kept_counts)]
    assert differences[0] == differences[1] == differences[4] == per_second
    assert differences[2:4] == [per_second // 2, 0], "silence ends with the window"
    for long, short, count in zip(read.split(counts), kept.split(kept_counts), kept_counts):
        assert torch.equal(long[:count], short)


def test_silence_that_is_missing_is_an_error(backbone_folders, processor):
    _, model = make_silent_pair(backbone_folders, trailing_silence=1.0)
    shorter, _ = make_silent_pair(backbone_folders, trailing_silence=0.9)
    for given in (processor, shorter):
        for clips in ([tone(1)], [tone(3), tone(1)], [tone(61), tone(30), tone(1)]):
            missing = r"trailing_silence=1: it expects 100 frames .* missing after audio "
            with pytest.raises(ValueError, match=missing + ("0" if len(clips) == 1 else r"\d")):
                model.get_audio_features(**features_of(given, *clips))
    with torch.no_grad():
        assert len(model.get_audio_features(**features_of(processor, tone(30))).pooler_output) == 750


def test_a_processor_with_other_silence_does_not_fit(backbone_folders, model):
    longer, _ = make_silent_pair(backbone_folders, trailing_silence=0.5)
    skipping, _ = make_silent_pair(backbone_folders, trailing_silence=0.5, read_trailing_silence=False)
    _, reading = make_silent_pair(backbone_folders, trailing_silence=0.5)
    for given, wrong in ((longer, model), (skipping, reading)):
        inputs = given(text=[given.audio_token], audio=[tone(1)], sampling_rate=SAMPLING_RATE)
        with pytest.raises(
            ValueError, match=r"hold \d+ audio tokens .* trailing_silence=0.*read_trailing_silence=True"
        ):
            wrong(**inputs)


@pytest.mark.parametrize("silence", [0.01, 0.03, 1.0, 29.99, 30])
@pytest.mark.parametrize("read", [True, False])
@pytest.mark.parametrize("pooling_window", [1, 2, 5])
def test_they_agree_for_silence(backbone_folders, silence, read, pooling_window):
    options = {"trailing_silence": silence, "read_trailing_silence": read, "pooling_window": pooling_window}
    processor, model = make_silent_pair(backbone_folders, **options)
    lengths = [1, 160, 161, 320, 321, 16_000, 16_161]
    lengths += [WINDOW + step for step in (-16_001, -16_000, -641, -640, -321, -161, -160, -1, 0, 1, 161)]
    counts = processor._get_num_multimodal_tokens(audio_lengths=lengths)["num_audio_tokens"]
    clips = [np.full(length, 0.1, np.float32) for length in lengths]
    inputs = processor(text=[processor.audio_token] * len(clips), audio=clips, sampling_rate=SAMPLING_RATE)
    assert (inputs["input_ids"] == processor.audio_token_id).sum(-1).tolist() == counts
    assert model.count_audio_tokens(inputs["input_features_mask"]).tolist() == counts
    with torch.no_grad():
        first = model.get_audio_features(inputs["input_features"][:7], inputs["input_features_mask"][:7])
    assert len(first.pooler_output) == sum(counts[:7])


@pytest.mark.parametrize("pooling_window", [1, 2, 4, 5])
@pytest.mark.parametrize("pad_to_window", [False, True])
def test_they_agree_for_other_pooling_and_padding(backbone_folders, pooling_window, pad_to_window):
    options = {"pooling_window": pooling_window, "pad_to_window": pad_to_window}
    processor = Falcon3AudioProcessor.from_backbones(*backbone_folders, **options)
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, **options).eval()
    for seconds in (0.01, 0.99, 10, 31.234):
        inputs = processor(text=[processor.audio_token], audio=[tone(seconds)], sampling_rate=SAMPLING_RATE)
        tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"]).pooler_output
        assert len(tokens) == int((inputs["input_ids"] == processor.audio_token_id).sum())
        if pad_to_window:
            assert len(tokens) == (2 if seconds > 30 else 1) * 1500 // pooling_window


# A learned weighted mean over the layers.


def make_weighted(backbone_folders, weights):
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, use_weighted_layer_sum=True).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.layer_weights.weight.copy_(torch.tensor(weights))
    return model


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.5, -0.5]])
def test_a_weighted_mean_over_whispers_layers(backbone_folders, tower_reference, weights):
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2])) for layer in tower_reference.layers]
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        tower_reference(features)
        shares = torch.tensor(weights).exp() / torch.tensor(weights).exp().sum()
        outputs = [output[0] if isinstance(output, tuple) else output for output in outputs]
        expected = tower_reference.layer_norm(sum(share * output for share, output in zip(shares, outputs)))
        model = make_weighted(backbone_folders, weights)
        found = model.get_audio_features(features).last_hidden_state
        plain = tower_reference(features).last_hidden_state
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (found - plain).abs().max() > 0.01


def test_the_mean_is_learned_with_a_frozen_encoder(backbone_folders, processor):
    """No backward pass runs through the layers, even if embeddings require grad, as for gradient checkpointing."""
    model = make_weighted(backbone_folders, [0.0, 0.0])
    tower = model.model.audio_tower
    tower.requires_grad_(False)
    tower.conv1.register_forward_hook(lambda module, given, output: output.requires_grad_(True))
    seen = []
    tower.layers[-1].register_forward_hook(lambda module, given, output: seen.append(output.requires_grad))
    clips = features_of(processor, tone(1.0), tone(0.3))  # of different lengths: packed
    model.get_audio_features(**clips).pooler_output[:, 0].sum().backward()
    assert model.model.multi_modal_projector.layer_weights.weight.grad.abs().min() > 0
    assert seen == [False]


def test_the_mean_starts_with_all_layers_alike_and_is_saved(backbone_folders, processor, tmp_path):
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, use_weighted_layer_sum=True).eval()
    weights = model.model.multi_modal_projector.layer_weights.weight
    assert weights.shape == (2,) and not weights.any()
    with torch.no_grad():
        weights[0] = 2
    model.save_pretrained(tmp_path)
    again = Falcon3AudioForConditionalGeneration.from_pretrained(tmp_path)
    clips = features_of(processor, tone(0.5))
    with torch.no_grad():
        expected, found = (one.get_audio_features(**clips).pooler_output for one in (model, again))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_to_be_split_is_in_the_model(backbone_folders, weighted):
    """FSDP wraps each of these classes as a unit, and refuses a name that it does not find."""
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, use_weighted_layer_sum=weighted)
    classes = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= classes
    assert ("Falcon3AudioLayerWeights" in model._no_split_modules) is weighted
