"""A clip is encoded once for all questions about it, within a bound, and encoded again when the weights change."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from peft.utils.hotswap import hotswap_adapter
from tiny import tone
from transformers import pipeline

from falcon3_audio import LORA_TARGET_MODULES
from falcon3_audio.audio_cache_falcon3_audio import AudioCache, digests


RATE = 16_000
CLIPS = [tone(0.5, 300), tone(1.3, 1000), tone(0.9, 2000)]


@pytest.fixture
def features(processor):
    """(input_features, mask) of three clips, padded to the longest."""
    inputs = processor(
        text=[processor.audio_token] * 3, audio=CLIPS, sampling_rate=RATE, padding=True, return_tensors="pt"
    )
    return inputs["input_features"], inputs["input_features_mask"]


@pytest.fixture
def encoded(model, monkeypatch):
    """The number of clips in each call of the encoder."""
    counts = []
    get = model.get_audio_features

    def count(input_features, *args, **kwargs):
        counts.append(len(input_features))
        return get(input_features, *args, **kwargs)

    monkeypatch.setattr(model, "get_audio_features", count)
    return counts


def test_embeddings_are_those_of_the_encoder_and_each_clip_is_encoded_once(model, features, encoded):
    cache = AudioCache(model, max_tokens=1000)
    keys = digests(*features)
    with torch.no_grad():
        expected = model.get_audio_features(*features).pooler_output
        counts = model.count_audio_tokens(features[1]).tolist()
        first, second, third = expected.split(counts)
        encoded.clear()
        torch.testing.assert_close(cache.embed(keys[:1], features[0][:1], features[1][:1]), first)
        torch.testing.assert_close(cache.embed(keys, *features), expected)
        order = [2, 0, 0, 1]
        again = cache.embed([keys[row] for row in order], features[0][order], features[1][order])
    torch.testing.assert_close(again, torch.cat([third, first, first, second]))
    assert encoded == [1, 2]  # the first clip, then the other two together, then none


def test_clips_are_told_apart_by_what_is_encoded(features):
    input_features, mask = features
    names = digests(input_features, mask)
    assert len(set(names)) == 3
    assert digests(input_features[:1, :, :70], mask[:1, :70]) == names[:1]  # less padding
    louder = input_features.clone()
    louder[0, 0, 0] += 0.01
    assert digests(louder, mask)[0] != names[0]
    end = int(mask[0].sum())
    for place in (end, end + 1):  # a frame the last positions attend to, and encoded silence
        behind = input_features.clone()
        behind[0, 0, place] += 0.01
        assert digests(behind, mask)[0] != names[0] and digests(behind, mask)[1:] == names[1:]
    shorter = mask.clone()
    shorter[0, int(mask[0].sum()) - 1] = 0
    assert digests(input_features, shorter)[0] != names[0]


def test_the_clip_that_was_not_used_for_longest_goes_first(model, features, encoded):
    counts = model.count_audio_tokens(features[1]).tolist()
    cache = AudioCache(model, max_tokens=sum(counts) - 1)
    keys = digests(*features)

    def ask(row):
        return cache.embed(keys[row : row + 1], features[0][row : row + 1], features[1][row : row + 1])

    with torch.no_grad():
        for row in (0, 1, 0, 2):  # the last one evicts 1
            ask(row)
        encoded.clear()
        ask(0), ask(2)
        assert encoded == []
        ask(1)
        assert encoded == [1]
        small = AudioCache(model, max_tokens=1)
        whole = small.embed(keys, *features)  # returned even if it is more than the cache can keep
        assert len(whole) == sum(counts) and len(small._clips) == 0


@pytest.fixture
def check_fresh(model, features):
    """Checks that a cache returns what its model, `check_fresh.model`, gives now; returns it."""
    model = copy.deepcopy(model)
    cache, keys = AudioCache(model, max_tokens=1000), digests(*features)

    def check():
        with torch.no_grad():
            expected = model.get_audio_features(*features).pooler_output
            torch.testing.assert_close(cache.embed(keys, *features), expected)
        return expected

    check.model = model
    return check


def test_other_weights_are_other_embeddings(check_fresh):
    model = check_fresh.model
    before = check_fresh()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.weight.mul_(2)
    changed = check_fresh()
    assert not torch.allclose(before, changed)
    model.model.audio_tower.layers[0].fc1.weight = torch.nn.Parameter(
        torch.randn_like(model.model.audio_tower.layers[0].fc1.weight)
    )
    assert not torch.allclose(changed, check_fresh())
    adapted = get_peft_model(
        model, LoraConfig(target_modules=LORA_TARGET_MODULES["audio_tower"], init_lora_weights=False)
    )
    with_adapter = check_fresh()
    with adapted.disable_adapter():
        assert not torch.allclose(with_adapter, check_fresh())
    torch.testing.assert_close(check_fresh(), with_adapter)
    with rescale_adapter_scale(adapted, 0.25):
        assert not torch.allclose(with_adapter, check_fresh())


def test_weights_that_an_adapter_was_merged_into_are_other_embeddings(check_fresh, tmp_path):
    """PEFT writes through `weight.data`, so no version counter sees the change."""
    settings = LoraConfig(target_modules=LORA_TARGET_MODULES["audio_tower"], init_lora_weights=False)
    for name in ("first", "second"):
        get_peft_model(copy.deepcopy(check_fresh.model), settings).save_pretrained(tmp_path / name)
    seen = [check_fresh()]
    adapted = PeftModel.from_pretrained(check_fresh.model, str(tmp_path / "first"))
    adapted.merge_adapter()
    seen.append(check_fresh())
    adapted.unmerge_adapter()
    check_fresh()
    hotswap_adapter(adapted, str(tmp_path / "second"), adapter_name="default")
    seen.append(check_fresh())
    adapted.unload()
    check_fresh()
    PeftModel.from_pretrained(check_fresh.model, str(tmp_path / "second")).merge_and_unload()
    torch.testing.assert_close(check_fresh(), seen[2])
    assert not any(torch.allclose(*pair) for pair in combinations(seen, 2))


class Numbers(torch.nn.Module):
    """Encodes a clip as its number, two tokens each."""

    def get_audio_features(self, input_features, mask, return_dict):
        return SimpleNamespace(pooler_output=input_features[:, 0, :1].repeat_interleave(2, 0))

    def count_audio_tokens(self, mask):
        return torch.full((len(mask),), 2)


def test_threads_share_a_cache(switch_often):
    """2,000 calls with constant evictions; the cache is cleared every 50 calls."""
    cache = AudioCache(Numbers(), max_tokens=7)

    def ask(call):
        numbers = [(call * step) % 11 for step in (1, 3, 7)]
        features = torch.tensor(numbers, dtype=torch.float32)[:, None, None].expand(3, 1, 2)
        if call % 50 == 0:
            cache.clear()
        embeds = cache.embed([str(number) for number in numbers], features, torch.ones(3, 2))
        return embeds.flatten().tolist() == [number for number in numbers for _ in range(2)]

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(ask, range(2000))) == 2000
    assert sum(map(len, cache._clips.values())) <= 7


def test_a_cache_can_be_copied_and_pickled():
    for other in (copy.deepcopy(AudioCache(Numbers(), 7)), pickle.loads(pickle.dumps(AudioCache(Numbers(), 7)))):
        other.clear()
        assert other.max_tokens == 7


def test_the_pipeline_encodes_a_clip_once_for_all_questions_and_turns(checkpoint, monkeypatch):
    options = dict(model=checkpoint, max_new_tokens=8, do_sample=False)
    pipe, without = (
        pipeline("audio-text-to-text", **options),
        pipeline("audio-text-to-text", audio_cache_tokens=0, **options),
    )
    windows = []
    forward = type(pipe.model.model.audio_tower).forward
    monkeypatch.setattr(
        type(pipe.model.model.audio_tower),
        "forward",
        lambda self, features, *args, **kwargs: (
            windows.append(len(features)) or forward(self, features, *args, **kwargs)
        ),
    )
    clips, texts = [CLIPS[0], CLIPS[1], CLIPS[0], CLIPS[1]], ["What?", "What?", "Why?", "Where?"]
    expected = without(clips, text=texts, sampling_rate=RATE, batch_size=2)
    assert windows == [2, 2]
    windows.clear()
    got = pipe(clips, text=texts, sampling_rate=RATE, batch_size=2)
    assert [row[0]["generated_text"] for row in got] == [row[0]["generated_text"] for row in expected]
    assert windows == [2]
    chat = pipe(CLIPS[0], text="What?", sampling_rate=RATE, return_full_text=True)[0]["generated_text"]
    turn = [*chat, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    assert pipe(turn)[0]["generated_text"] == without(turn)[0]["generated_text"]
    assert windows == [2, 1]  # only the pipeline without a cache encodes again
    assert pipe(text="Hello?")[0]["generated_text"] == without(text="Hello?")[0]["generated_text"]
    both = pipe([[CLIPS[2], CLIPS[0]]], text="Which?", sampling_rate=RATE)
    assert (
        both[0][0]["generated_text"]
        == without([[CLIPS[2], CLIPS[0]]], text="Which?", sampling_rate=RATE)[0][0]["generated_text"]
    )
    assert windows == [2, 1, 1, 2]
