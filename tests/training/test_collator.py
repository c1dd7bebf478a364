"""The collator: chats with audio become a batch whose labels are the answers."""

import copy

import pytest
import soundfile
import torch
from datasets import Dataset
from tiny import SAMPLING_RATE, audio_tokens, question, tone
from training_runs import assistant, heard, user

from falcon3_audio.processing import TOKENS_PER_SECOND, Falcon3AudioProcessor, UnreadableAudioError
from falcon3_audio.training.collator import AudioChatCollator


TENSORS = ("input_ids", "attention_mask", "labels", "input_features", "input_features_mask")


def chat(path, *turns):
    """Turns of (question, answer); the clip opens the first."""
    messages = []
    for number, (asked, said) in enumerate(turns):
        audio = [heard(path)] if number == 0 and path else []
        messages.append(user(*audio, {"type": "text", "text": asked}))
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return {"messages": messages}


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(1), SAMPLING_RATE)
    return path


@pytest.fixture
def long_clip(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(2.3, 700), SAMPLING_RATE)
    return path


def learned(processor, row):
    """The text of each contiguous span of labels."""
    ids, spans = [token for token in row.tolist()], [[]]
    for token in ids:
        if token != -100:
            spans[-1].append(token)
        elif spans[-1]:
            spans.append([])
    texts = [processor.decode(span) for span in spans if span]
    print("learned:", texts)  # shown by `pytest -s`
    return texts


def inputs_of(batch):
    """The inputs of the model."""
    return {name: batch[name] for name in TENSORS}


def test_the_loss_is_on_answers_and_their_ends(processor, clip):
    rows = [
        chat(clip, ("What?", "a dog")),
        chat(clip, ("What?", "a bell"), ("Sure?", "yes")),
        chat(None, ("Hi", "ho")),
    ]
    batch = AudioChatCollator(processor)(rows)
    assert learned(processor, batch["labels"][0]) == ["a dog<|endoftext|>"]
    assert learned(processor, batch["labels"][1]) == ["a bell<|endoftext|>", "yes<|endoftext|>"]
    assert learned(processor, batch["labels"][2]) == ["ho<|endoftext|>"]
    assert batch["input_features"].shape[0] == 2  # the third has no audio


def test_rows_of_a_dataset_are_the_same_batch(processor, clip):
    """Arrow gives every item every key, with empty values for missing ones."""
    rows = [chat(clip, ("What?", "a dog")), chat(clip, ("What?", "a bell"), ("Sure?", "yes"))]
    plain = AudioChatCollator(processor)(rows)
    stored = AudioChatCollator(processor)(list(Dataset.from_list(rows)))
    assert plain.keys() == stored.keys()
    for name in plain:
        assert torch.equal(plain[name], stored[name])


def test_the_batch_trains_the_model(model, processor, clip):
    batch = AudioChatCollator(processor)([chat(clip, ("What?", "a dog"))])
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        loss = model(**batch).loss
    shifted = batch["labels"][0, 1:]
    by_hand = torch.nn.functional.cross_entropy(logits[0, :-1][shifted != -100], shifted[shifted != -100])
    torch.testing.assert_close(loss, by_hand)


def test_a_row_without_an_answer_is_an_error(processor, clip):
    with pytest.raises(ValueError, match="train.jsonl, row 7: no assistant message to learn from"):
        AudioChatCollator(processor)(
            [chat(clip, ("What?", "a dog")), {"messages": question(tone(1)), "origin": "train.jsonl, row 7"}]
        )


def test_several_clips_and_turns_are_masked_alike(processor, clip, long_clip):
    """Checks the spans that are learned, and that they are surrounded by all other tokens."""
    messages = [
        {"role": "system", "content": "Be brief."},
        user(heard(clip), heard(long_clip), {"type": "text", "text": "Compare."}),
        assistant("a bell, a dog"),
        user(heard(clip), {"type": "text", "text": "And this?"}),
        {"role": "assistant", "content": [{"type": "text", "text": "a bell"}]},
    ]
    batch = AudioChatCollator(processor)([{"messages": messages}])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    assert learned(processor, labels) == ["a bell, a dog<|endoftext|>", "a bell<|endoftext|>"]
    assert torch.equal(ids[labels != -100], labels[labels != -100])
    sounds = [processor.audio_token * count for count in (25, 58, 25)]  # 1 s and 2.3 s at 25 a second, rounded up
    assert processor.decode(ids[labels == -100]).split("\n")[:-1] == [
        *("<|system|>", "Be brief.", "<|user|>", sounds[0] + sounds[1] + "Compare.", "<|assistant|>"),
        *("", "<|user|>", sounds[2] + "And this?", "<|assistant|>"),
    ]
    assert batch["input_features_mask"].sum(-1).tolist() == [100, 230, 100]


def test_padding_is_on_the_right_and_not_learned(processor, clip, long_clip):
    rows = [chat(clip, ("What?", "a dog")), chat(long_clip, ("What do you hear in this sound?", "a bell"))]
    batch = AudioChatCollator(processor)(rows)
    alone = [AudioChatCollator(processor)([row]) for row in rows]
    for name in TENSORS[:3]:
        fill = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "labels": -100}[name]
        for row, single in zip(batch[name], alone):
            size = single[name].shape[1]
            assert torch.equal(row[:size], single[name][0]) and (row[size:] == fill).all()
    # The audio's own padding does not depend on the text's.
    assert torch.equal(batch["input_features"][1], alone[1]["input_features"][0])
    frames = alone[0]["input_features"].shape[-1]
    assert torch.equal(batch["input_features"][0, :, :frames], alone[0]["input_features"][0])
    assert (batch["input_features_mask"][0, frames:] == 0).all()


def test_a_batch_has_the_losses_of_its_rows(model, processor, clip, long_clip):
    """Whatever else is in the batch: rows with and without audio, short and long."""
    rows = [
        chat(clip, ("What?", "a dog")),
        chat(long_clip, ("What?", "a bell"), ("Sure?", "yes")),
        chat(None, ("Hi", "ho")),
    ]
    collator = AudioChatCollator(processor)
    with torch.no_grad():
        together = model(**inputs_of(collator(rows))).loss
        alone = [(batch := inputs_of(collator([row])), model(**batch).loss) for row in rows]
    counts = torch.tensor([float((batch["labels"] != -100).sum()) for batch, _ in alone])
    expected = (torch.stack([loss for _, loss in alone]) * counts).sum() / counts.sum()
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)


def test_silence_beside_text_alone_changes_nothing(model, processor):
    rows = [chat(None, ("What?", "a dog")), chat(None, ("Hi", "ho"))]
    batch = inputs_of(AudioChatCollator(processor)(rows))
    assert batch["input_ids"].shape[0] == 2 and batch["input_features"].shape[0] == 1
    end = int(batch["attention_mask"][1].sum()) - 1
    assert audio_tokens(processor, batch["input_ids"]) == 1 and batch["input_ids"][1, end] == processor.audio_token_id
    assert batch["labels"][1, end] == -100
    model = copy.deepcopy(model)
    text = {name: batch[name].clone() for name in TENSORS[:3]}
    text["input_ids"][1, end], text["attention_mask"][1, end] = processor.tokenizer.pad_token_id, 0
    model(**text).loss.backward()
    expected = {name: weight.grad for name, weight in model.named_parameters()}
    assert all(expected[name] is None for name in expected if "projector" in name)
    model.zero_grad()
    with_silence = model(**batch).loss
    with_silence.backward()
    for name, weight in model.named_parameters():
        if expected[name] is not None:
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-7, rtol=1e-5)
        elif weight.requires_grad:
            # Every trained weight gets a zero gradient, as distributed training needs.
            assert weight.grad is not None and not weight.grad.any(), name


@pytest.mark.parametrize("seconds, tokens", [(0.0, 1), (1.0, 26)])
def test_silence_makes_no_row_longer(backbone_folders, seconds, tokens):
    """It goes after the shortest row if there is room, otherwise into its own row."""
    processor = Falcon3AudioProcessor.from_backbones(*backbone_folders, trailing_silence=seconds)
    collator = AudioChatCollator(processor)
    short, long = chat(None, ("Hi", "ho")), chat(None, ("What?", "a dog " * 20))
    lengths = [len(collator._encode(row)["input_ids"]) for row in (short, long)]
    for rows, expected in (
        ([short, short], (3, max(lengths[0], tokens))),
        ([long, short], (2, lengths[1])),
        ([long, short, long], (3, lengths[1])),
    ):
        for batch in (
            collator(rows),
            AudioChatCollator(processor, questions_per_row=None).micro_batches(rows, 10)[-1],
        ):
            assert audio_tokens(processor, batch["input_ids"]) == tokens
        assert collator(rows)["input_ids"].shape == expected


def test_text_over_the_length_is_cut_and_counted(processor, clip):
    row = chat(clip, ("What?", "a dog a dog a dog a dog"))
    whole = AudioChatCollator(processor)([row])
    size = whole["input_ids"].shape[1]
    batch = AudioChatCollator(processor, max_length=size)([row])
    assert (batch["num_shortened"], batch["num_dropped"]) == (0, 0)
    batch = AudioChatCollator(processor, max_length=size - 3)([row, chat(clip, ("?", "a"))])
    assert (batch["num_shortened"], batch["num_dropped"]) == (1, 0)
    assert torch.equal(batch["input_ids"][0], whole["input_ids"][0, : size - 3])
    assert torch.equal(batch["labels"][0], whole["labels"][0, : size - 3])
    said = learned(processor, batch["labels"][0])
    assert len(said) == 1 and said[0] and "a dog a dog a dog a dog<|endoftext|>".startswith(said[0])
    assert batch["input_features"].shape[0] == 2


def test_what_would_be_cut_through_audio_or_before_the_answer_is_dropped_and_counted(model, processor, clip):
    fits = chat(None, ("Hi", "ho"))
    cases = {
        "the first clip": ([chat(clip, ("What?", "a dog"))], 30),
        "before the answer": ([chat(clip, ("What do you hear in this sound? " * 9, "a dog"))], 60),
        "the second clip, behind an answer": (
            [{"messages": [user(heard(clip)), assistant("a dog"), user(heard(clip)), assistant("a bell")]}],
            60,
        ),
    }
    for name, (rows, max_length) in cases.items():
        batch = AudioChatCollator(processor, max_length)([*rows, fits])
        assert (batch["num_shortened"], batch["num_dropped"]) == (0, 1), name
        assert learned(processor, batch["labels"][0]) == ["ho<|endoftext|>"], name
        # None of its audio is left either: tokens and features match.
        assert torch.isfinite(model(**inputs_of(batch)).loss), name


def test_a_batch_of_which_nothing_is_left_has_nothing_to_learn(model, processor, clip):
    batch = AudioChatCollator(processor, max_length=5)([chat(clip, ("What?", "a dog"))] * 2)
    assert (batch["num_shortened"], batch["num_dropped"]) == (0, 2)
    assert batch["input_ids"].shape[0] == 1 and (batch["labels"] == -100).all()
    model(**{name: batch[name] for name in TENSORS if name != "labels"})


def test_clips_over_the_processors_limit_are_dropped_and_counted(processor, clip, long_clip):
    processor.max_audio_seconds = 2.0
    batch = AudioChatCollator(processor)([chat(long_clip, ("What?", "a dog")), chat(clip, ("What?", "a bell"))])
    assert (batch["num_shortened"], batch["num_dropped"]) == (0, 1)
    assert learned(processor, batch["labels"][0]) == ["a bell<|endoftext|>"]
    assert audio_tokens(processor, batch["input_ids"]) == TOKENS_PER_SECOND


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"type": "audio", "path": "gone.wav"}], "there is no file 'gone.wav'"),
        ([{"type": "audio", "audio": 7}], "is a int; expected a path"),
        ([{"type": "image"}], "Content of type 'image' is not understood"),
        ([{"type": "audio", "audio": {"bytes": b"", "path": None}}], "is empty: 0 bytes"),
        ("<|user|> >>UNUSED_1<<", "contains the audio placeholder"),
    ],
)
def test_what_cannot_be_used_is_named(processor, content, message):
    row = {"messages": [{"role": "user", "content": content}, assistant("a dog")], "origin": "train.jsonl, row 7"}
    with pytest.raises(ValueError, match=f"^train.jsonl, row 7: .*{message}"):
        AudioChatCollator(processor)([row])


@pytest.mark.parametrize("content", ["", " \n", None, [], [{"type": "text", "text": ""}]])
def test_an_answer_without_text_is_an_error(processor, clip, content):
    row = {"messages": [user(heard(clip)), {"role": "assistant", "content": content}], "origin": "train.jsonl, row 7"}
    with pytest.raises(ValueError, match="^train.jsonl, row 7: message 1, an answer, has no text to learn"):
        AudioChatCollator(processor)([row])


def test_sound_in_an_answer_is_heard_and_not_learned(processor, clip):
    said = [{"type": "text", "text": "this"}, heard(clip), {"type": "text", "text": "is it"}]
    row = {"messages": [user("Hi"), {"role": "assistant", "content": said}]}
    batch = AudioChatCollator(processor)([row])
    assert audio_tokens(processor, batch["input_ids"]) == 25
    assert learned(processor, batch["labels"][0]) == ["this", "is it<|endoftext|>"]


def test_items_stay_in_order(processor, clip, long_clip):
    """Clips and text, even if the questions about them share a row."""
    first, second = ({"type": "text", "text": text} for text in ("This", "is louder than"))
    rows = [
        {"messages": [user(first, heard(clip), second, heard(long_clip), *more), assistant("yes")], "clip": "a"}
        for more in ([], [{"type": "text", "text": "?"}, {"type": "text", "text": "Sure"}])
    ]
    token = processor.audio_token
    words = [f"This{token * 25}is louder than{token * 58}{more}" for more in ("", "?\nSure")]
    apart = AudioChatCollator(processor)(rows)
    for row, text in zip(apart["input_ids"], words):
        assert f"<|user|>\n{text}\n<|assistant|>" in processor.decode(row)
    assert apart["input_features_mask"].sum(-1).tolist() == [100, 230, 100, 230]
    collator = AudioChatCollator(processor, questions_per_row=None)
    unit = collator._encode_clip(rows)
    for chat, row, labels, mask in zip(unit, apart["input_ids"], apart["labels"], apart["attention_mask"]):
        assert torch.equal(chat["input_ids"], row[mask.bool()]) and torch.equal(chat["labels"], labels[mask.bool()])
    assert collator(rows)["input_features_mask"].sum(-1).tolist() == [100, 230]


def test_sounds_at_other_places_are_not_shared(processor, clip, long_clip):
    """Nor with different text before them; questions that are equal up to the audio share it."""
    text, other = {"type": "text", "text": "and"}, {"type": "text", "text": "or"}
    one, two = heard(clip), heard(long_clip)
    asked = [
        [one, two, text],
        [one, text, two],
        [text, one, two],
        [other, one, two],
        [one, two, other],
        [one, two, one, text],
    ]
    asked += [[one, text, two, one]]
    rows = [{"messages": [user(*items), assistant("yes")], "clip": "a"} for items in asked]
    apart = [AudioChatCollator(processor)([row]) for row in rows]
    collator = AudioChatCollator(processor, questions_per_row=None)
    assert [len(group) for group in collator._by_clip(rows)] == [2, 1, 1, 1, 1, 1]
    batch = collator(rows)
    assert int(batch["num_questions"]) == 7 and len(batch["input_features"]) == 5 * 2 - 2 + 2 * 3
    ids = [chat["input_ids"] for group in collator._by_clip(rows) for chat in collator._encode_clip(group)]
    order = [0, 4, 1, 2, 3, 5, 6]
    assert all(torch.equal(row, apart[place]["input_ids"][0]) for row, place in zip(ids, order, strict=True))


def test_clips_that_cannot_be_read_are_skipped_where_that_is_asked_for(processor, tmp_path, caplog):
    """With all of their questions; the others give the same batch as on their own."""
    good, cut = tmp_path / "good.wav", tmp_path / "cut.wav"
    for path in (good, cut):
        soundfile.write(path, tone(0.5), 16_000)
    cut.write_bytes(cut.read_bytes()[:6000])

    def asked(path, question, row):
        content = [{"type": "audio", "path": str(path)}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}, assistant("a dog")]
        return {"messages": messages, "clip": row, "origin": f"set, row {row}"}

    examples = [
        asked(path, question, row) for row, path in enumerate((good, cut, tmp_path / "gone.wav")) for question in "ab"
    ]
    for questions_per_row in (None, 1):
        with pytest.raises(UnreadableAudioError, match="set, row 1: "):
            AudioChatCollator(processor, None, questions_per_row)(examples)
        collate = AudioChatCollator(processor, None, questions_per_row, skip_bad_audio=True)
        batch, alone = collate(examples), collate(examples[:2])
        assert (batch["num_bad_audio"], batch["num_dropped"], batch["num_questions"]) == (4, 0, 2)
        assert alone["num_bad_audio"] == 0
        assert all(torch.equal(batch[name], alone[name]) for name in batch if name != "num_bad_audio")
    nothing = AudioChatCollator(processor, skip_bad_audio=True)(examples[2:])
    assert nothing["num_bad_audio"] == 4 and not (nothing["labels"] != -100).any()


def test_other_faults_of_a_row_are_not_skipped(processor):
    rows = [{"messages": [{"role": "user", "content": "Hi"}], "origin": "set, row 0"}]
    with pytest.raises(ValueError, match="set, row 0: no assistant message"):
        AudioChatCollator(processor, skip_bad_audio=True)(rows)
