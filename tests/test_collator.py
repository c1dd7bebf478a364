"""The collator: chats with sounds become a batch whose labels are the answers."""

import pytest
import soundfile
import torch
from datasets import Dataset
from tiny import SAMPLING_RATE, question, tone

from falcon3_audio.training.collator import AudioChatCollator


def chat(path, *turns):
    """Turns of (question, answer); the clip opens the first."""
    messages = []
    for number, (asked, said) in enumerate(turns):
        audio = [{"type": "audio", "path": str(path)}] if number == 0 and path else []
        messages.append({"role": "user", "content": [*audio, {"type": "text", "text": asked}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
    return {"messages": messages}


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.wav"
    soundfile.write(path, tone(1), SAMPLING_RATE)
    return path


def learned(processor, row):
    """The text under each unbroken stretch of labels."""
    ids, spans = [token for token in row.tolist()], [[]]
    for token in ids:
        if token != -100:
            spans[-1].append(token)
        elif spans[-1]:
            spans.append([])
    return [processor.decode(span) for span in spans if span]


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
    assert batch["input_features"].shape[0] == 2  # the third has no sound


def test_rows_of_a_dataset_are_the_same_batch(processor, clip):
    """Arrow gives every item every key, empty where it had none."""
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
    with pytest.raises(ValueError, match="train.jsonl, row 7: Conversation 0 has 0 answers"):
        AudioChatCollator(processor)(
            [chat(clip, ("What?", "a dog")), {"messages": question(tone(1)), "origin": "train.jsonl, row 7"}]
        )
