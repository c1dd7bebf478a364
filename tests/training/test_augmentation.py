"""Augmented clips: what changes, that it depends only on seed, pass and row, and that evaluation never hears them."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader
from training_runs import (
    TEXT,
    assistant,
    clip_row,
    heard,
    log_of,
    parse,
    user,
    write_chats,
    write_clips,
    write_jsonl,
)

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor, UnreadableAudioError
from falcon3_audio.training import sft
from falcon3_audio.training.augmentation import Augmentation, Augmenter, in_room, read_augmentation, with_noise
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.sampler import PASS, MixtureSampler, Place, WithPass
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data, questions_per_clip


ALL = {
    "prob": 1.0,
    "speed": [0.9, 1.1],
    "noise_snr_db": [5, 20],
    "gain_db": [-6, 6],
    "mask_time_prob": 0.2,
    "mask_time_length": 3,
    "mask_feature_prob": 0.2,
}


@pytest.fixture
def sound():
    return np.sin(np.arange(16_000) * 2 * np.pi * 440 / SAMPLING_RATE).astype(np.float32) * 0.3


@pytest.fixture
def examples(tmp_path):
    return load_training_data([DataSource(str(write_chats(tmp_path / "chats")))])[0]


def draw():
    return np.random.default_rng(0)


def collator(processor, seed=0, **options):
    augmenter = Augmenter(Augmentation(**(options or ALL)), seed)
    return AudioChatCollator(processor, augmenter=augmenter, questions_per_row=None)


def test_speed_changes_length_and_pitch(sound):
    faster = Augmenter(Augmentation(prob=1.0, speed=[1.25]), 0).of_samples(sound, draw())
    assert len(faster) == 12_800
    spectrum = np.abs(np.fft.rfft(faster))
    assert spectrum.argmax() * SAMPLING_RATE / len(faster) == pytest.approx(550, abs=2)
    slower = Augmenter(Augmentation(prob=1.0, speed=[0.8]), 0, longest=1.1).of_samples(sound, draw())
    assert np.array_equal(slower, sound)  # 1.25 s would be too long for the processor


@pytest.mark.parametrize("snr", [0, 10, 30])
def test_noise_is_as_loud_as_asked(sound, snr):
    noise = draw().standard_normal(len(sound), dtype=np.float32) * 7
    added = with_noise(sound, noise, snr) - sound
    assert 10 * np.log10(np.mean(sound**2) / np.mean(added**2)) == pytest.approx(snr, abs=0.01)
    silence = np.zeros(100, dtype=np.float32)
    assert np.array_equal(with_noise(silence, noise[:100], snr), silence)


def test_noise_comes_from_files(sound, tmp_path):
    soundfile.write(tmp_path / "hum.wav", np.sign(sound[:1000]), SAMPLING_RATE)
    augmenter = Augmenter(Augmentation(prob=1.0, noise_snr_db=[0, 0], noise=str(tmp_path)), 0)
    added = augmenter.of_samples(sound * 0.1, draw()) - sound * 0.1
    levels = np.unique(np.round(added, 4))
    assert len(levels) <= 3 and levels[0] == pytest.approx(-levels[-1], abs=1e-4)  # a repeated square wave


def test_a_room_keeps_length_and_loudness_and_delays_nothing(sound):
    response = np.zeros(4000, dtype=np.float32)
    response[[800, 1600]] = 0.5, 0.25  # the direct sound after 50 ms
    heard_in_room = in_room(sound, response)
    expected = sound + 0.5 * np.concatenate([np.zeros(800, dtype=np.float32), sound[:-800]])
    expected *= np.sqrt(np.mean(sound**2) / np.mean(expected**2))
    assert np.allclose(heard_in_room, expected, atol=1e-5)
    assert np.array_equal(in_room(sound, np.zeros(10, dtype=np.float32)), sound)


def test_gain_stays_within_what_can_be_heard(sound):
    louder = Augmenter(Augmentation(prob=1.0, gain_db=[6, 6]), 0).of_samples(sound, draw())
    assert np.allclose(louder, sound * 10 ** (6 / 20), atol=1e-6)
    assert np.abs(Augmenter(Augmentation(prob=1.0, gain_db=[40, 40]), 0).of_samples(sound, draw())).max() == 1


def test_masks_hide_a_share_of_frames_and_bands(sound):
    augmenter = Augmenter(Augmentation(prob=1.0, mask_time_prob=0.1, mask_feature_prob=0.25), 0)
    features, mask = torch.ones(1, 80, 500), torch.ones(1, 500)
    mask[:, 400:] = 0
    hidden = augmenter.of_features({"origin": "row"}, features, mask)[0] == 0
    assert features.all()  # the input is unchanged
    assert 0 < hidden.all(0).sum() <= 50 and not hidden.all(0)[400:].any()
    assert 0 < hidden[:, :400].all(1).sum() <= 30 and not hidden[:, 400:].any()


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (4, {"mask_time_prob": 1.0, "mask_time_length": 50}),  # most seeds draw no span
        (0, {"mask_feature_prob": 1.0, "mask_feature_length": 80}),
    ],
)
def test_masks_leave_the_silence_behind_a_clip(backbone_folders, sound, seed, options):
    """Even those longer than the clip, or of all bands: the model takes frames of zeros for missing silence."""
    silence = {"trailing_silence": 0.3}
    listener = Falcon3AudioProcessor.from_backbones(*backbone_folders, **silence)
    model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, **silence).eval()
    clip = {"type": "audio", "audio": sound[:3200], "sampling_rate": SAMPLING_RATE}
    batch = collator(listener, seed, prob=1.0, **options)([{"messages": [user(clip, TEXT), assistant("a dog")]}])
    features, mask = batch["input_features"], batch["input_features_mask"]
    assert not features[mask.bool()[:, None].expand_as(features)].any()  # all of the clip is hidden
    assert model.get_audio_features(features, mask).pooler_output.isfinite().all()


def test_it_follows_seed_epoch_and_row_alone(processor, examples):
    """Not the batch or the workers, even workers that persist across epochs."""

    def features(collate, rows, turn=0):
        return [collate([examples[row] | {PASS: turn}])["input_features"] for row in rows]

    def same(some, others):
        return [one.shape == other.shape and torch.equal(one, other) for one, other in zip(some, others)]

    first = features(collator(processor), [3, 4])
    assert same(first, features(collator(processor), [3, 4])) == [True, True]
    for other, turn in ((collator(processor, seed=1), 0), (collator(processor), 1), (AudioChatCollator(processor), 0)):
        assert same(first, features(other, [3, 4], turn)) == [False, False]
    collate, places = collator(processor), []
    options = {"num_workers": 1, "collate_fn": collate, "persistent_workers": True}
    loader = DataLoader(WithPass(examples), batch_size=1, sampler=places, **options)
    epochs = []
    for epoch in (0, 1):
        places[:] = [Place(row, epoch) for row in range(len(examples))]
        epochs.append([batch["input_features"] for batch in loader])
    assert same([epochs[0][3]], first[:1]) == [True]
    assert same([epochs[1][3]], features(collator(processor), [3], turn=1)) == [True]
    batch = collate([examples[4], examples[3]])
    frames = first[0].shape[-1]
    assert torch.equal(batch["input_features"][1, :, :frames], first[0][0])


@pytest.fixture
def about_a_clip(tmp_path):
    """Three questions about one clip."""
    (clip,) = write_clips(tmp_path, 1)
    rows = [clip_row(clip, 3) | {"audio": str(clip)}]
    return load_training_data([DataSource(str(write_jsonl(tmp_path / "clips.jsonl", rows)))])[0]


def test_repeats_within_an_epoch_differ(processor, about_a_clip):
    """With a weight of 4 for one clip, in one batch or in several, in any process."""

    def heard_in(batch_size, collate, workers=0):
        sampler = MixtureSampler([3], [4], clips=questions_per_clip(about_a_clip, [3]), questions_per_row=None)
        loader = DataLoader(
            WithPass(about_a_clip),
            batch_size,
            sampler=sampler,
            num_workers=workers,
            collate_fn=lambda rows: collate(rows),
        )
        batches = [(batch["input_features"], batch["input_features_mask"]) for batch in loader]
        return [
            features[:, : int(mask.sum())] for some, masks in batches for features, mask in zip(some, masks)
        ]  # of each clip

    at_once = heard_in(12, collator(processor))
    assert len(at_once) == 4
    assert not any(
        one.shape == other.shape and torch.equal(one, other) for one, other in itertools.combinations(at_once, 2)
    )
    for batch_size, workers in ((3, 0), (6, 2)):
        others = heard_in(batch_size, collator(processor), workers)
        assert len(others) == 4
        assert all(any(torch.equal(one, other) for other in others if other.shape == one.shape) for one in at_once)
    # Without augmentation the repeats of a step still share the clip.
    assert len(heard_in(12, AudioChatCollator(processor, questions_per_row=None))) == 1


def test_questions_that_share_a_clip_share_what_became_of_it(processor, about_a_clip):
    examples = about_a_clip
    shared = collator(processor)(list(examples))
    assert shared["input_features"].shape[0] == 1
    alone = collator(processor)
    alone.questions_per_row = 1
    separate = alone(list(examples))
    assert separate["input_features"].shape[0] == 3
    assert all(torch.equal(features, shared["input_features"][0]) for features in separate["input_features"])


def test_chats_without_sound_stay(processor):
    chat = {"messages": [user("Hi"), assistant("ho")], "origin": "row"}
    ours, plain = collator(processor)([chat]), AudioChatCollator(processor, questions_per_row=None)([chat])
    assert ours.keys() == plain.keys() and all(torch.equal(ours[name], plain[name]) for name in ours)


def test_a_run_augments_what_it_trains_on_and_nothing_else(recipe, finished_run, tmp_path, capsys):
    """A run trains differently with it; the recipe records it, and a run resumes only with the same augmentation."""
    options = ("--config", recipe, "--eval_data", str(write_chats(tmp_path / "held_out")), "--eval_strategy", "steps")
    options += ("--eval_steps", "6", "--output_dir", str(tmp_path / "run"), "--save_total_limit", "9")
    wanted = {"prob": 1, "noise_snr_db": [0, 10], "speed": [0.9, 1.1]}
    assert sft.main([*options, "--augmentation", json.dumps(wanted)]) == 0
    assert "of training clips, each with a probability of 1: speed [0.9, 1.1]" in capsys.readouterr().out
    ours, theirs = (
        [entry["loss"] for entry in log_of(run)] for run in (tmp_path / "run", Path(finished_run.args.output_dir))
    )
    assert ours != theirs
    assert sft.main([*options, "--augmentation", json.dumps(wanted | {"prob": 0.5})]) == 1
    assert "started with other options (augmentation: " in capsys.readouterr().err
    again = [*options, "--augmentation", json.dumps(wanted)]
    assert sft.main([*again, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-2")]) == 0
    assert [entry["loss"] for entry in log_of(tmp_path / "run")] == pytest.approx(ours, abs=1e-6)


def test_a_run_tells_the_passes_apart(recipe, tmp_path, monkeypatch):
    """Over more than one epoch of all its sets."""
    heard, of_example = [], Augmenter.of_example

    def spy(self, example):
        heard.append((example["origin"], example[PASS]))
        return of_example(self, example)

    monkeypatch.setattr(Augmenter, "of_example", spy)
    options = ("--save_strategy", "no", "--questions_per_row", "1", "--output_dir", str(tmp_path / "run"))
    sft.train(*parse("--config", recipe, *options, "--augmentation", json.dumps(ALL)))
    assert len(heard) == len(set(heard)) > 15  # questions an epoch
    assert {turn for _, turn in heard} == {0, 1}


def test_evaluation_hears_clips_as_they_are(recipe, tmp_path):
    options = ("--max_steps", "1", "--save_strategy", "no", "--output_dir", str(tmp_path / "run"))
    trainer = sft.train(*parse("--config", recipe, *options, "--augmentation", json.dumps(ALL)))
    assert trainer.data_collator.augmenter is None and trainer._train_collator.augmenter is not None
    assert trainer.get_eval_dataloader("train").collate_fn.augmenter is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{", "augmentation must be a JSON object on the command line"),
        ({"pitch": [1, 2]}, "augmentation must be a mapping with any of prob, speed, "),
        ({}, "enables nothing"),
        ({"speed": [1.1], "prob": 0}, "enables nothing"),
        ({"speed": 1.1}, "speed must be a list of factors"),
        ({"speed": [11]}, "speed must be a list of factors from 0.5 to 2"),
        ({"gain_db": [6, -6]}, "gain_db must be two numbers, from and to, got"),
        ({"noise_snr_db": [5]}, "noise_snr_db must be two numbers"),
        ({"mask_time_prob": 2}, "mask_time_prob must be a share"),
        ({"mask_time_prob": 0.1, "mask_time_length": 0}, "mask_time_length must be a whole number"),
        ({"impulse_responses": "nowhere"}, "impulse_responses must be a folder with audio files"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ValueError, match=message):
        read_augmentation(given)


def test_noise_needs_a_level(tmp_path, sound):
    soundfile.write(tmp_path / "hum.wav", sound, SAMPLING_RATE)
    with pytest.raises(ValueError, match="`noise` needs noise_snr_db"):
        read_augmentation({"noise": str(tmp_path)})


def test_a_clip_that_cannot_be_read_is_named(processor, tmp_path):
    chat = {"messages": [user(heard(tmp_path / "gone.wav"), TEXT), assistant("a dog")], "origin": "set, row 7"}
    with pytest.raises(UnreadableAudioError, match="set, row 7: .*gone.wav"):
        collator(processor)([chat])
    chat["messages"][0]["content"][0] = {"type": "audio", "audio": 7}
    with pytest.raises(ValueError, match="set, row 7: .* is a int; expected a path"):
        collator(processor)([chat])


@pytest.mark.parametrize("option", ["noise", "impulse_responses"])
def test_a_file_of_ours_that_cannot_be_read_is_no_bad_clip(processor, examples, tmp_path, option):
    """The error names it and stops the run, even if unreadable clips are skipped."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "broken.wav").write_bytes(b"no sound")
    (tmp_path / "files" / "._hidden.wav").write_bytes(b"")
    collate = collator(processor, prob=1.0, noise_snr_db=[5, 5], **{option: str(tmp_path / "files")})
    collate.skip_bad_audio = True
    with pytest.raises(OSError, match=f"^augmentation: a file of `{option}` cannot be used; fix it, .*broken.wav"):
        collate([examples[0]])
    (tmp_path / "files" / "broken.wav").unlink()
    with pytest.raises(ValueError, match=f"{option} must be a folder with audio files"):
        collator(processor, prob=1.0, noise_snr_db=[5, 5], **{option: str(tmp_path / "files")})
