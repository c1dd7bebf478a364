"""Questions that share a clip's audio: the same losses as in rows of their own, and batches that hold clips whole."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from tiny import tone
from torch.nn.functional import cross_entropy
from training_runs import assistant, user

from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.packing import IGNORED, Unit, join_branches, pack_units, pad_rows, split_rows
from falcon3_audio.training.data.sampler import MixtureSampler


def asked(clip, name, *pairs):
    """Questions about one clip, as the training data gives them."""
    audio = {"type": "audio", "audio": clip, "sampling_rate": 16_000}
    return [
        {"messages": [user(audio, {"type": "text", "text": text}), assistant(answer)], "clip": name, "origin": name}
        for text, answer in pairs
    ]


@pytest.fixture
def examples():
    """Eight questions about three clips, not in order; one question is asked twice with different answers."""
    dog = asked(
        tone(0.9, 300), "dog", ("What is it?", "a dog"), ("What is it?", "a bell"), ("What?", "a dog, I think")
    )
    bell = asked(tone(0.5, 900), "bell", ("Why?", "it rings"), ("How long is it?", "half a second"))
    cat = asked(tone(0.2, 500), "cat", ("Is it loud?", "yes"))
    chat = [{"messages": [user("Hi"), assistant("ho")], "clip": None}] * 2
    return [dog[0], bell[0], chat[0], dog[1], cat[0], bell[1], dog[2], chat[1]]


def answer_losses(model, batch):
    """The loss of each answer token, sorted because rows are not in order."""
    inputs = {name: value for name, value in batch.items() if not name.startswith("num_")}
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
    kept = labels != IGNORED
    return cross_entropy(logits[kept], labels[kept], reduction="none").sort().values


def test_losses_are_those_of_rows_of_their_own(model, processor, examples):
    shared = AudioChatCollator(processor, questions_per_row=None)(examples)
    apart = AudioChatCollator(processor)(examples)
    assert int(shared["num_questions"]) == int(apart["num_questions"]) == 8
    assert shared["input_features"].shape[0] == 3 and apart["input_features"].shape[0] == 6
    assert shared["attention_mask"].sum() < apart["attention_mask"].sum()
    ours, theirs = answer_losses(model, shared), answer_losses(model, apart)
    assert len(theirs) == int((apart["labels"] != IGNORED).sum())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_chat_with_sounds_in_two_turns_beside_a_shared_clip(model, processor, examples):
    first, second = ({"type": "audio", "audio": tone(0.3, pitch), "sampling_rate": 16_000} for pitch in (400, 800))
    turns = [user(first), assistant("a dog"), user(second), assistant("a bell")]
    examples = [*examples, {"messages": turns, "clip": None}]
    shared, apart = (AudioChatCollator(processor, questions_per_row=limit)(examples) for limit in (None, 1))
    assert shared["input_features"].shape[0] == 5
    torch.testing.assert_close(answer_losses(model, shared), answer_losses(model, apart), rtol=0, atol=1e-5)


def test_chats_about_one_clip_with_an_answer_before_it(model, processor, examples):
    """Each has the audio for itself, since that answer is learned."""
    begun = [
        example | {"messages": [user("Hi"), assistant("ho"), *example["messages"]]}
        for example in asked(tone(0.4, 600), "late", ("What?", "a dog"), ("Which?", "a bell"))
    ]
    shared, apart = (AudioChatCollator(processor, questions_per_row=n)([*examples, *begun]) for n in (None, 1))
    assert int(shared["num_questions"]) == 10 and shared["input_features"].shape[0] == 3 + 2
    torch.testing.assert_close(answer_losses(model, shared), answer_losses(model, apart), rtol=0, atol=1e-5)


def test_what_is_learned_is_each_answer_with_its_end(processor, examples):
    batch = AudioChatCollator(processor, questions_per_row=None)(examples)
    answers = []
    for ids, segments in zip(batch["labels"], batch["segment_ids"]):
        for segment in segments.unique():
            kept = ids[(segments == segment) & (ids != IGNORED)]
            if len(kept):
                answers.append(processor.tokenizer.decode(kept))
    end = "<|endoftext|>"
    expected = ["a dog", "a bell", "a dog, I think", "it rings", "half a second", "yes", "ho", "ho"]
    assert sorted(answers) == sorted(f"{answer}{end}" for answer in expected)


def test_examples_that_do_not_fit_leave_the_others_their_audio(processor, examples):
    """The first question about a clip brings its audio, which must not be lost if that question is too long."""
    long = asked(tone(0.9, 300), "dog", ("What is it? " * 40, "a dog"))
    whole = AudioChatCollator(processor, 300, questions_per_row=None)(examples)
    batch = AudioChatCollator(processor, 300, questions_per_row=None)(long + examples)
    assert (int(batch["num_questions"]), int(batch["num_dropped"])) == (8, 1)
    torch.testing.assert_close(batch["input_features"], whole["input_features"])
    assert torch.equal(batch["input_ids"], whole["input_ids"])


def test_words_that_differ_before_the_audio_cannot_be_shared():
    ids = torch.tensor([[5, 9, 6, 7], [4, 9, 6, 7]])
    chats = [{"input_ids": row, "labels": torch.tensor([IGNORED, IGNORED, IGNORED, 7])} for row in ids]
    with pytest.raises(ValueError, match="the audio cannot be shared; set questions_per_row: 1"):
        join_branches(chats, audio_token_id=9)


def test_rows_by_hand():
    def chat(*ids):
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor([IGNORED] * (len(ids) - 1) + [ids[-1]])}

    # 9 is audio. The last token is the answer, and the one before it stays in the branch though both have it.
    two = join_branches([chat(9, 9, 1, 3), chat(9, 9, 1, 4)], 9)
    one = join_branches([chat(9, 2, 5)], 9)
    assert two.input_ids.tolist() == [9, 9, 1, 3, 1, 4] and two.position_ids.tolist() == [0, 1, 2, 3, 2, 3]
    assert lengths(pack_units([one, two, one])) == [[[6], [3, 3]]]
    padded = pad_rows([[two], [one]], pad_token_id=8)
    assert padded["segment_ids"].tolist() == [[1, 1, 2, 2, 3, 3], [1, 2, 2, 0, 0, 0]]
    assert padded["prefix_ids"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert padded["input_ids"][1].tolist() == [9, 2, 5, 8, 8, 8]
    assert padded["labels"].tolist() == [[IGNORED] * 3 + [3, IGNORED, 4], [IGNORED, IGNORED, 5] + [IGNORED] * 3]
    assert padded["attention_mask"][1].tolist() == [1, 1, 1, 0, 0, 0]


def lengths(packing):
    return [[[len(unit) for unit in row] for row in rows] for rows in packing]


def units_of(*sizes):
    return [Unit(*[torch.ones(size, dtype=torch.long)] * 4) for size in sizes]


def test_micro_batches_by_hand():
    """Rows as long as the longest unit hold 7, 5 + 2 and 4 + 3 of 7 positions; a batch has at most 14, then 7."""
    assert lengths(pack_units(units_of(4, 2, 7, 5, 3), 14)) == [[[7], [5, 2]], [[4, 3]]]
    assert lengths(pack_units(units_of(4, 2, 7, 5, 3), 7)) == [[[7]], [[5, 2]], [[4, 3]]]
    # A unit over the limit is alone. No units give one empty batch.
    assert lengths(pack_units(units_of(2, 9), 4)) == [[[9]], [[2]]]
    assert pack_units([]) == [[]] == split_rows([], len, 5)
    # Rows of 6 would be three, with 6, 6 and 4 positions used; rows of 8 are two full ones.
    assert lengths(pack_units(units_of(6, 5, 3, 2))) == [[[6, 2], [5, 3]]]
    assert split_rows(["aa", "b", "cccc", "dd", "e"], len, 8) == [["cccc", "aa"], ["dd", "b", "e"]]
    assert split_rows(["a", "bbbbbb", "c", "d"], len, 6) == [["bbbbbb"], ["a", "c", "d"]]


def test_packing_leaves_few_places_empty():
    """50 clips of up to 30 s with up to nine questions fill more than 90 % of batches of 8192 positions."""
    rng = np.random.default_rng(0)
    units = units_of(*(int(25 * rng.uniform(1, 30)) + 60 * int(rng.integers(1, 10)) for _ in range(50)))
    packing = pack_units(units, 8192)
    places = [len(rows) * max(sum(map(len, row)) for row in rows) for rows in packing]
    assert max(places) <= 8192 and sum(map(len, units)) > 0.9 * sum(places)
    packed = [id(unit) for rows in packing for row in rows for unit in row]
    assert sorted(packed) == sorted(map(id, units))


def losses_of_all(model, batches):
    return torch.cat([answer_losses(model, batch) for batch in batches]).sort().values


@pytest.mark.parametrize("limit", [None, 2, 1])
def test_micro_batches_have_the_same_losses(model, processor, examples, limit):
    collator = AudioChatCollator(processor, questions_per_row=limit)
    apart = answer_losses(model, AudioChatCollator(processor)(examples))
    for tokens in (60, 150, 10_000):
        batches = collator.micro_batches(examples, tokens)
        for batch in batches:
            # A batch without audio can have one more row, of silence.
            rows, width = batch["input_ids"].shape
            assert rows * width <= tokens + width or rows == 1
        # Each has audio; otherwise DDP would wait for the encoder's gradients.
        assert all(batch["input_features_mask"].any() for batch in batches)
        assert [int(batch.get("num_questions", 0)) for batch in batches] == [8] + [0] * (len(batches) - 1)
        torch.testing.assert_close(losses_of_all(model, batches), apart, rtol=0, atol=1e-5)
    assert len(batches) == 1
    # Six of the questions are about three clips: three, two and one per clip.
    assert sum(len(batch["input_features"]) for batch in batches) == {None: 3, 2: 4, 1: 6}[limit]
    if limit is None:  # all about one clip do not fit: two units, both with its audio
        dog = collator.micro_batches([examples[0], examples[3], examples[6]], 60)
        assert sum(len(batch["input_features"]) for batch in dog) > 1


def batches_of(clips, questions_per_row, batch_size, seed=0, epoch=0):
    """clip -> the batches that ask about it."""
    counts = np.array(clips)
    sampler = MixtureSampler([counts.sum()], [1], seed, [counts], questions_per_row, 4 * batch_size, batch_size)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(counts.sum()))
    clip_of = np.repeat(np.arange(len(counts)), counts)
    found = defaultdict(list)
    for place, index in enumerate(order):
        found[clip_of[index]].append((place // batch_size, index))
    return order, found


def test_questions_about_a_clip_come_in_one_batch():
    clips = np.random.default_rng(0).integers(1, 10, 300)
    order, found = batches_of(clips, None, 32)
    spread = [clip for clip, places in found.items() if len({batch for batch, _ in places}) > 1]
    assert len(spread) <= 6  # when nothing else filled a batch
    in_order = [clip for clip, places in found.items() if [i for _, i in places] == sorted(i for _, i in places)]
    assert len(in_order) < len(clips) / 2
    assert order == batches_of(clips, None, 32)[0] != batches_of(clips, None, 32, epoch=1)[0]


def test_a_step_has_the_same_questions_whatever_the_devices():
    clips = np.random.default_rng(0).integers(1, 10, 300)
    steps = []
    for batch_size in (32, 8, 2):  # one, four and sixteen devices
        order = list(MixtureSampler([clips.sum()], [1], 0, [clips], None, 32, batch_size))
        steps.append([sorted(order[start : start + 32]) for start in range(0, len(order), 32)])
    assert steps[0] == steps[1] == steps[2]


def test_devices_have_about_as_many_clips():
    """Half of the clips have one question, half have many: in plain order, one device would get much more audio."""
    rng = np.random.default_rng(0)
    clips = np.where(rng.random(400) < 0.5, 1, rng.integers(6, 14, 400))
    _, found = batches_of(clips, None, 32)
    per_batch = defaultdict(set)
    for clip, places in found.items():
        for batch, _ in places:
            per_batch[batch].add(clip)
    counts = [len(per_batch[batch]) for batch in sorted(per_batch)]
    steps = [counts[start : start + 4] for start in range(0, len(counts) - 4, 4)]
    assert len(steps) > 10 and np.mean([max(step) / np.mean(step) for step in steps]) < 1.3


def test_a_limit_spreads_them_and_chance_decides_which_share():
    clips = [6] * 50
    together = []
    for epoch in range(2):
        _, found = batches_of(clips, 2, 8, epoch=epoch)
        counts = [len({batch for batch, _ in places}) for places in found.values()]
        assert np.mean(counts) > 2.5
        pairs = defaultdict(set)
        for clip, places in found.items():
            for batch, index in places:
                pairs[clip, batch].add(index)
        together.append({frozenset(pair) for pair in pairs.values()})
    assert together[0] != together[1]


def test_groups_larger_than_a_batch_are_cut():
    order, found = batches_of([7, 1, 5], None, 3)
    assert len({batch for batch, _ in found[0]}) == 3
    assert len(order) == 13
