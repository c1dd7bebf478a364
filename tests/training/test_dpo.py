"""DPO: a preference batch with its audio in both halves, through TRL's own trainer."""

import copy

import numpy as np
import pytest
import torch
from datasets import Audio, Dataset
from peft import LoraConfig
from tiny import SAMPLING_RATE
from trl import DPOConfig, DPOTrainer

from falcon3_audio import LORA_TARGET_MODULES, Falcon3AudioModel
from falcon3_audio.training.dpo import AudioPreferenceCollator


def said(role, text, *paths):
    content = [*({"type": "audio", "path": path} for path in paths), {"type": "text", "text": text}]
    return {"role": role, "content": content}


@pytest.fixture
def rows(clips):
    """One clip, two clips after an earlier turn, and none."""
    return [
        {"prompt": [said("user", "What?", clips[0])], "chosen": [said("assistant", "a dog")],
         "rejected": [said("assistant", "a long bell")]},
        {"prompt": [said("user", "Hi"), said("assistant", "ho"), said("user", "And these?", clips[1], clips[0])],
         "chosen": [said("assistant", "a bell, a dog")], "rejected": [said("assistant", "no")]},
        {"prompt": [said("user", "Hi")], "chosen": [said("assistant", "ho")], "rejected": [said("assistant", "hum")]},
    ]  # fmt: skip


@pytest.fixture
def make(model, processor, rows, tmp_path):
    """Creates TRL's trainer for a copy of the model with LoRA."""

    def make(policy=None, **options):
        settings = {"per_device_train_batch_size": 3, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1}
        settings |= {"save_strategy": "no", "report_to": "none", "bf16": False, "gradient_checkpointing": False}
        settings |= {"dataloader_pin_memory": False, "remove_unused_columns": False}
        lora = LoraConfig(
            r=4, target_modules="|".join(LORA_TARGET_MODULES.values()), modules_to_save=["multi_modal_projector"]
        )
        dataset = Dataset.from_list(rows)
        return DPOTrainer(
            copy.deepcopy(model) if policy is None else policy,
            args=DPOConfig(output_dir=str(tmp_path), **(settings | options)),
            train_dataset=dataset.add_column("images", [[]] * len(dataset)),
            processing_class=processor,
            data_collator=AudioPreferenceCollator(processor),
            peft_config=lora,
        )

    return make


def log_probability(model, processor, row, answer):
    """Of one answer and its end token, from a plain forward of only the prompt and the answer's tokens."""
    inputs = processor.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True)
    reply = processor.tokenizer(row[answer][0]["content"][-1]["text"] + "<|endoftext|>")["input_ids"]
    reply = torch.tensor([reply])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], reply], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = model(**inputs).logits[:, -reply.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(2, reply[..., None]).sum()


def test_the_mask_covers_exactly_the_answers(processor, rows):
    batch = AudioPreferenceCollator(processor)(rows)
    answers = [processor.decode(ids[mask.bool()]) for ids, mask in zip(batch["input_ids"], batch["completion_mask"])]
    expected = ["a dog", "a bell, a dog", "ho", "a long bell", "no", "hum"]
    assert answers == [f"{answer}<|endoftext|>" for answer in expected]
    assert (batch["attention_mask"] >= batch["completion_mask"]).all()
    assert (batch["input_ids"][batch["attention_mask"] == 0] == processor.tokenizer.pad_token_id).all()


def test_both_halves_have_the_audio_of_their_prompts(processor, rows, clips):
    batch = AudioPreferenceCollator(processor)(rows)
    features, mask = batch["input_features"], batch["input_features_mask"]
    assert len(features) == len(mask) == 6
    assert torch.equal(features[:3], features[3:]) and torch.equal(mask[:3], mask[3:])
    for row, path in enumerate((clips[0], clips[1], clips[0])):
        alone = processor(text=processor.audio_token, audio=path)["input_features"][0]
        assert torch.equal(features[row, :, : alone.shape[1]], alone)


def test_a_batch_without_clips_has_silence(make, processor, rows):
    """Else a process without clips would leave out a sharded encoder, and the others wait for it. It changes no loss."""
    batch = AudioPreferenceCollator(processor)(rows[2:])
    silence = processor(text=processor.audio_token, audio=np.zeros(160, np.float32), sampling_rate=SAMPLING_RATE)
    assert torch.equal(batch["input_features"], silence["input_features"])
    assert torch.equal(batch["input_features_mask"], silence["input_features_mask"])
    sounds = batch["input_ids"] == processor.audio_token_id
    assert sounds.sum() == (silence["input_ids"] == processor.audio_token_id).sum() > 0
    for sound, mask in zip(sounds, batch["completion_mask"]):
        assert not sound[: int(mask.nonzero().max()) + 1].any()  # so nothing attends to it
    trainer = make(max_steps=2)
    trainer.train()  # so that policy and reference differ
    plain = {name: batch[name] for name in ("attention_mask", "completion_mask")}
    plain["attention_mask"] = plain["attention_mask"] * ~sounds
    plain["input_ids"] = batch["input_ids"].masked_fill(sounds, processor.tokenizer.pad_token_id)
    trainer.model.eval()
    with torch.no_grad():
        losses = [trainer.compute_loss(trainer.model, dict(given)) for given in (batch, plain)]
    torch.testing.assert_close(*losses)


def test_silence_trains_the_encoder_by_nothing(make, processor, rows):
    """But its weights get a gradient, as on other devices."""
    trainer = make()
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(AudioPreferenceCollator(processor)(rows[2:]))).backward()
    grads = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    sounds = [grad for name, grad in grads.items() if ".audio_tower." in name or "multi_modal_projector" in name]
    assert sounds and all(grad is not None and not grad.any() for grad in sounds)


def test_clips_of_the_rows_columns_are_filled_in(processor, rows, clips):
    stored = {"prompt": [said("user", "And these?")], "audios": clips[:2], "chosen": rows[0]["chosen"]}
    stored["prompt"][0]["content"] = [{"type": "audio"}, {"type": "audio"}, *stored["prompt"][0]["content"]]
    stored["rejected"] = rows[0]["rejected"]
    dataset = Dataset.from_list([stored]).cast_column("audios", [Audio(decode=False)])
    inline = stored | {"prompt": [said("user", "And these?", *clips[:2])]}
    del inline["audios"]
    got, expected = (AudioPreferenceCollator(processor)(list(given)) for given in (dataset, [inline]))
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in got)


@pytest.mark.parametrize(
    ("content", "message"),
    [(" ", "has no text to learn"), ([{"type": "audio"}, {"type": "text", "text": "a"}], "`rejected` must be text")],
)
def test_replies_have_text_alone(processor, rows, content, message):
    row = rows[0] | {"rejected": [{"role": "assistant", "content": content}], "origin": "row 3"}
    with pytest.raises(ValueError, match=f"^row 3: .*{message}"):
        AudioPreferenceCollator(processor)([row])


def test_losses_are_those_computed_by_hand(make, model, processor, rows):
    """Before training, when policy and reference agree, and after it, when they differ."""
    trainer = make(max_steps=2, beta=0.3)
    batch = AudioPreferenceCollator(processor)(rows)
    losses = []
    for _ in range(2):
        trainer.model.eval()
        with torch.no_grad():
            got = trainer.compute_loss(trainer.model, dict(batch))
        ratios = {
            answer: [
                log_probability(trainer.model, processor, row, answer) - log_probability(model, processor, row, answer)
                for row in rows
            ]
            for answer in ("chosen", "rejected")
        }
        margins = torch.stack(ratios["chosen"]) - torch.stack(ratios["rejected"])
        expected = -torch.nn.functional.logsigmoid(0.3 * margins).mean()
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        losses.append(float(got))
        trainer.train()
    assert losses[1] < losses[0] - 0.01


def test_two_steps_move_adapters_and_projector(make, monkeypatch):
    heard = []
    original = Falcon3AudioModel.forward

    def spy(self, *args, **kwargs):
        heard.append(len(kwargs["input_features"]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Falcon3AudioModel, "forward", spy)
    trainer = make()
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert heard == [6, 6, 6, 6]  # policy and reference, twice
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert all("lora_" in name or "multi_modal_projector.modules_to_save" in name for name in moved)
    for part in ("audio_tower", "multi_modal_projector", "language_model"):
        assert any(part in name for name in moved)


def test_bfloat16_weights_with_a_float32_projector(make, model):
    """As `choose_trained_weights` leaves them."""
    policy = copy.deepcopy(model).to(torch.bfloat16)
    policy.model.multi_modal_projector.float()
    trainer = make(policy, bf16=True, use_cpu=True, gradient_checkpointing=True)
    trainer.train()
    assert [entry["grad_norm"] > 0 for entry in trainer.state.log_history if "grad_norm" in entry] == [True, True]


def test_rows_of_another_form_are_errors(processor, rows, tmp_path):
    collate = AudioPreferenceCollator(processor)
    broken = rows[0] | {"chosen": [said("user", "a dog")], "origin": "pairs.jsonl, row 7"}
    with pytest.raises(ValueError, match="pairs.jsonl, row 7: `prompt` must end with a user's message and `chosen`"):
        collate([rows[1], broken])
    lost = rows[0] | {"prompt": [said("user", "What?", str(tmp_path / "lost.wav"))], "origin": "row 8"}
    with pytest.raises(ValueError, match="row 8: .*lost.wav"):
        collate([lost])
    processor.max_audio_seconds = 1.0
    with pytest.raises(ValueError, match="A preference row: .* 1.3 s long, over the limit of 1 s"):
        collate(rows)
