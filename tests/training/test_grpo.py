"""GRPO: the audio of every prompt reaches generation and each log-probability pass, and the right one."""

import copy

import pytest
import soundfile
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from tiny import SAMPLING_RATE, tone
from training_runs import asked, length_reward
from transformers import AutoModelForMultimodalLM
from trl import GRPOConfig, GRPOTrainer

from falcon3_audio import LORA_TARGET_MODULES, Falcon3AudioModel
from falcon3_audio.training import grpo
from falcon3_audio.training.grpo import AudioGRPOTrainer
from falcon3_audio.training.learning import choose_trained_weights
from falcon3_audio.training.model import load_model


def lora():
    return LoraConfig(
        r=4,
        target_modules="|".join(LORA_TARGET_MODULES.values()),
        modules_to_save=["multi_modal_projector"],
        task_type="CAUSAL_LM",
    )


@pytest.fixture
def make(model, processor, questions, tmp_path):
    """Creates a trainer of a copy of the model; by default 2 replies to each of 4 questions, scored in two batches."""

    def make(
        policy=None, peft_config=None, rows=questions, trainer=AudioGRPOTrainer, rewards=length_reward, **options
    ):
        settings = {
            "per_device_train_batch_size": 4,
            "steps_per_generation": 2,
            "num_generations": 2,
            "max_completion_length": 5,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
        }
        return trainer(
            copy.deepcopy(model) if policy is None else policy,
            processing_class=processor,
            reward_funcs=rewards,
            args=GRPOConfig(output_dir=str(tmp_path), **(settings | options)),
            train_dataset=Dataset.from_list(rows),
            peft_config=peft_config,
        )

    return make


def alone(processor, rows, ids):
    """The processor's output for one prompt, which is found by its text."""
    words = processor.decode(ids)
    prompt = next(row["prompt"] for row in rows if row["prompt"][0]["content"][-1]["text"] in words)
    return processor.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=True)


class Recorder(AudioGRPOTrainer):
    """Records the result of every log-probability pass, and the same computed by hand."""

    def __init__(self, *args, **kwargs):
        self.passes = []
        super().__init__(*args, **kwargs)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        result = super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
        )
        with torch.no_grad():
            by_hand = [self.by_hand(model, row, logits_to_keep) for row in zip(input_ids, attention_mask)]
        said = [row[: len(hand)] for row, hand in zip(result[0].detach(), by_hand)]
        self.passes.append((torch.is_grad_enabled(), said, by_hand))
        return result

    def by_hand(self, model, row, logits_to_keep):
        """Log-probabilities of one reply from a plain forward of only its prompt with its clips."""
        ids, mask = row
        inputs = alone(self.processing_class, self.train_dataset, ids)
        reply = ids[-logits_to_keep:][mask[-logits_to_keep:].bool()]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], reply[None]], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = model(**inputs).logits[0, -len(reply) - 1 : -1] / self.temperature
        return logits.log_softmax(-1).gather(1, reply[:, None])[:, 0]


@pytest.fixture
def forwards(monkeypatch):
    """Every forward over more than one token per row: its prompts, and the audio it was given."""
    seen = []
    original = Falcon3AudioModel.forward

    def spy(self, *args, **kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            audio = next((name for name in ("input_features", "audio_embeds") if kwargs.get(name) is not None), None)
            seen.append((kwargs["input_ids"], audio, kwargs.get(audio)))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Falcon3AudioModel, "forward", spy)
    return seen


def test_audio_arrives_in_generation_and_in_every_scoring_pass(make, forwards, processor, model, questions):
    make(peft_config=lora(), beta=0.1).train()
    # All 8 replies are generated together; old policy and reference score 4 at a time, and training uses 4 at a time.
    assert [len(ids) for ids, _, _ in forwards] == [8, 4, 4, 4, 4, 4, 4]
    assert [name for _, name, _ in forwards] == ["audio_embeds", *["input_features"] * 6]
    (ids, _, embeds), *scored = forwards
    prompts = [alone(processor, questions, row) for row in ids]
    encoded = [
        model.get_audio_features(prompt["input_features"], prompt["input_features_mask"]).pooler_output
        for prompt in prompts
        if "input_features" in prompt
    ]
    torch.testing.assert_close(embeds, torch.cat(encoded))
    # Two replies to prompts of 1, 2, 0 and 1 clips, three times.
    assert [sum(len(features) for _, _, features in scored[at : at + 2]) for at in (0, 2, 4)] == [8, 8, 8]


@pytest.mark.parametrize(("at_once", "generations"), [(1, 2), (3, 3), (4, 2)])
def test_log_probabilities_are_those_of_each_prompt_with_its_own_audio(make, at_once, generations):
    """In all three passes, also after the policy has moved away from the reference."""
    steps = 4 * generations // at_once  # to ask all four questions once
    trainer = make(
        trainer=Recorder,
        peft_config=lora(),
        beta=0.1,
        temperature=0.8,
        per_device_train_batch_size=at_once,
        steps_per_generation=steps,
        num_generations=generations,
        max_steps=2 * steps,
    )
    trainer.train()
    assert [learning for learning, _, _ in trainer.passes] == [*[False] * 2, *[True] * steps] * 2
    for _, said, by_hand in trainer.passes:
        for got, expected in zip(said, by_hand, strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)
    (_, old, _), (_, reference, _) = trainer.passes[steps + 2 : steps + 4]
    assert max((a - b).abs().max() for a, b in zip(old, reference)) > 1e-3


def test_other_audio_gives_other_log_probabilities(make, clips, tmp_path):
    """Two prompts with the same text and lengths, so that only the audio differs."""
    soundfile.write(tmp_path / "other.wav", tone(0.5, 900), SAMPLING_RATE)
    trainer = make()
    prompts = [trainer._encode(asked("?", path)) for path in (clips[0], str(tmp_path / "other.wav"))]
    assert prompts[0].ids == prompts[1].ids
    ids = torch.tensor([[*prompts[0].ids, 40, 41, 42]])
    scores = []
    for prompt in prompts:
        trainer._encoded = [prompt]
        scores.append(trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 3)[0])
    assert (scores[0] - scores[1]).abs().max() > 1e-4


def test_micro_batches_take_the_step_of_the_whole_batch(make, model):
    """Training on the same replies 8 at a time or 2 at a time, with their own audio, gives the same weights."""
    weights = {}
    for at_once, times in ((8, 1), (2, 4)):
        trainer = make(
            per_device_train_batch_size=at_once,
            steps_per_generation=times,
            gradient_accumulation_steps=times,
            optim="sgd",
            learning_rate=1.0,
            max_steps=1,
        )
        trainer.train()
        weights[at_once] = dict(trainer.model.named_parameters())
    moved = {}
    for name, before in model.named_parameters():
        torch.testing.assert_close(weights[2][name], weights[8][name], atol=1e-5, rtol=1e-4)
        moved[name] = (weights[8][name] - before).abs().max()
    for part in ("audio_tower", "multi_modal_projector", "language_model"):
        assert max(distance for name, distance in moved.items() if part in name) > 1e-3


def test_two_steps_move_adapters_and_projector_away_from_the_reference(make, model):
    trainer = make(peft_config=lora(), beta=0.1, per_device_train_batch_size=8, steps_per_generation=1)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, before[name])}
    assert all("lora_" in name or "multi_modal_projector.modules_to_save" in name for name in moved)
    for part in ("audio_tower", "multi_modal_projector", "language_model"):
        assert any(part in name for name in moved)
    first, second = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert first == pytest.approx(0, abs=1e-9) and second > 1e-5
    with trainer.model.disable_adapter():
        for name, weight in model.named_parameters():
            layer = name.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")
            names = (f"base_model.model.{candidate}" for candidate in (name, layer))
            found = [before[candidate] for candidate in names if candidate in before]
            assert not found or torch.equal(found[0], weight)


def test_an_adapter_that_exists_is_trained_on_and_its_beginning_is_the_reference(make, model):
    policy = PeftModel(copy.deepcopy(model), lora())
    torch.manual_seed(1)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    trainer = make(policy, trainer=Recorder, beta=0.1, max_steps=4)
    trainer.train()
    (_, old, _), (_, reference, by_hand), *_ = trainer.passes
    torch.testing.assert_close(torch.cat(old), torch.cat(reference))
    (_, old, _), (_, reference, by_hand) = trainer.passes[4:6]
    torch.testing.assert_close(torch.cat(reference), torch.cat(by_hand), atol=2e-5, rtol=1e-4)
    assert (torch.cat(old) - torch.cat(reference)).abs().max() > 1e-3


def test_a_whole_model_has_its_checkpoint_as_reference(make, checkpoint):
    trainer = make(AutoModelForMultimodalLM.from_pretrained(checkpoint), trainer=Recorder, beta=0.1, max_steps=4)
    trainer.train()
    (_, old, _), (_, reference, by_hand) = trainer.passes[4:6]
    torch.testing.assert_close(torch.cat(reference), torch.cat(by_hand), atol=2e-5, rtol=1e-4)
    assert (torch.cat(old) - torch.cat(reference)).abs().max() > 1e-3


def test_bfloat16_weights_with_a_float32_projector(make, model):
    """As `choose_trained_weights` leaves them."""
    policy = copy.deepcopy(model).to(torch.bfloat16)
    policy.model.multi_modal_projector.float()
    trainer = make(policy, lora(), beta=0.1, bf16=True, use_cpu=True, gradient_checkpointing=True)
    trainer.train()
    assert [entry["grad_norm"] > 0 for entry in trainer.state.log_history if "grad_norm" in entry] == [True, True]
    assert [entry["peak_memory_gib"] > 0.05 for entry in trainer.state.log_history if "loss" in entry] == [True, True]


def test_what_is_trained_beside_four_bits_is_float32(make, checkpoint, tmp_path):
    pytest.importorskip("bitsandbytes")
    arguments = grpo.ModelArguments(model=checkpoint, dtype="bfloat16", load_in_4bit=True)
    policy, _ = load_model(arguments, tmp_path)
    trainer = make(policy, choose_trained_weights(policy, grpo.LoraArguments()), bf16=True, use_cpu=True)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in trained} == {torch.float32}
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trained)


def test_evaluation_hears_too(make, questions, forwards):
    trainer = make(per_device_eval_batch_size=4, beta=0.1, peft_config=lora())
    metrics = trainer.evaluate(Dataset.from_list(questions))
    assert metrics["eval_rewards/length_reward/mean"] > 0
    assert [audio for _, audio, _ in forwards].count("input_features") >= 2


def test_rewards_get_the_columns_and_prompts_without_audio(make, clips):
    seen = {}

    def reward(prompts, completions, answer, **others):
        seen.update(prompts=prompts, answer=answer)
        return [0.0] * len(prompts)

    rows = [asked("?", clips[0]) | {"answer": "a bell"}, asked("Hi")]
    make(rows=rows, rewards=reward, num_generations=4, max_steps=1).train()
    assert sorted(seen["answer"]) == [*["a bell"] * 4, *["a dog"] * 4]
    contents = [prompt[0]["content"] for prompt in seen["prompts"]]
    assert [{"type": "audio"}, {"type": "text", "text": "?"}] in contents
    assert [{"type": "text", "text": "Hi"}] in contents


def test_the_stock_trainer_scores_without_audio(make, questions):
    """Why there is a subclass: the stock trainer does not start, and if it did, the model would refuse its inputs."""
    with pytest.raises(AttributeError, match="image_token_id"):
        make(trainer=GRPOTrainer)

    class Started(GRPOTrainer):
        def __init__(self, model, **options):
            model.config.image_token_id = model.config.audio_token_id
            super().__init__(model, **options)

    trainer = make(trainer=Started, rows=[questions[0], questions[0]], num_generations=4)
    with pytest.raises(ValueError, match="no audio was given"):
        trainer.train()


def test_another_trl_is_an_error(make, monkeypatch):
    trainer = make()
    trainer._encoded = [trainer._encode(asked(text)) for text in ("One?", "Two?")]
    ids = torch.tensor([[*prompt.ids, 40] for prompt in reversed(trainer._encoded)])
    with pytest.raises(RuntimeError, match="another order than their audio"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 1)
    with pytest.raises(RuntimeError, match="1 rows for 2 prompts"):
        trainer._get_per_token_logps_and_entropies(trainer.model, ids[:1], torch.ones_like(ids[:1]), 1)
    with pytest.raises(RuntimeError, match="lost between generation and loss"):
        trainer.compute_loss(trainer.model, {})
    monkeypatch.setattr(GRPOTrainer, "_tokenize_prompts", lambda self, inputs: None)
    with pytest.raises(RuntimeError, match=r"written for TRL 1\.16.*_tokenize_prompts takes \['self', 'inputs'\]"):
        make()


def test_what_cannot_hear_is_refused(make):
    with pytest.raises(ValueError, match="use_vllm, which would generate without the audio"):
        make(use_vllm=True)
    with pytest.raises(ValueError, match="got str and Falcon3AudioProcessor"):
        make(policy="a/name")


def test_prompts_that_cannot_be_heard_are_named(make, clips, processor):
    trainer = make()
    lost = asked("?", "lost.wav") | {"origin": "chats.jsonl, row 7"}
    with pytest.raises(ValueError, match="chats.jsonl, row 7: .*lost.wav"):
        trainer._encode(lost)
    processor.max_audio_seconds = 1.0
    with pytest.raises(ValueError, match="A prompt: .* 1.3 s long, over the limit of 1 s"):
        trainer._encode(asked("?", clips[1]))


def test_the_placeholder_stays_out_of_replies_and_the_config_as_it_was(make, model):
    trainer = make()
    assert trainer.generation_config.suppress_tokens == [model.config.audio_token_id]
    assert "image_token_id" not in trainer.model.config.to_dict()
