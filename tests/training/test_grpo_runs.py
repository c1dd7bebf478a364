"""Runs of GRPO: what they leave, how they go on, and their mistakes."""

import copy
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from training_runs import length_reward
from transformers import AutoModelForMultimodalLM

from falcon3_audio.training import grpo, rewards
from falcon3_audio.training.grpo import AudioGRPOTrainer
from falcon3_audio.training.model import disable_functional_dropout
from falcon3_audio.training.recipe import parse_options


@pytest.fixture
def recipe(checkpoint, clips, tmp_path):
    """Arguments of a run on three questions, and its folder."""
    rows = []
    for number, path in enumerate(clips):
        content = [{"type": "audio", "path": path}, {"type": "text", "text": f"What is it, {number}?"}]
        reply = {"role": "assistant", "content": "a dog"}
        rows.append({"messages": [{"role": "user", "content": content}, reply]})
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model": checkpoint, "train_data": data, "output_dir": tmp_path / "run", "dtype": "float32"}
    options |= {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 4, "max_steps": 2}
    options |= {"bf16": "false", "report_to": "none", "learning_rate": 0.01, "save_steps": 1, "beta": 0.04}
    return [text for name, value in options.items() for text in (f"--{name}", str(value))], tmp_path / "run"


def test_the_script_leaves_an_adapter_and_goes_on_from_a_checkpoint(recipe, checkpoint, capsys, monkeypatch):
    arguments, folder = recipe
    # An untrained model never answers correctly.
    monkeypatch.setitem(rewards.REWARDS, "exact", length_reward)
    assert grpo.main([*arguments, "--answer_tags", "true"]) == 0
    said = capsys.readouterr().out
    assert (
        "4 answers, 4 to each prompt" in said
        and "rewards/length_reward/mean" in said
        and "rewards/answer_format/mean" in said
    )
    adapted = PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(checkpoint), folder)
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in adapted.named_parameters())
    assert (folder / "processor_config.json").exists()
    assert grpo.main([*arguments, "--answer_tags", "true", "--max_steps", "3"]) == 1
    assert "started with other options (max_steps: 2 -> 3)" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoint-2")
    assert grpo.main([*arguments, "--answer_tags", "true", "--logging_steps", "1"]) == 0
    state = json.loads((folder / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "reward" in entry] == [2]
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    assert grpo.main([*arguments, "--answer_tags", "true"]) == 1
    assert f"{folder} holds a finished run without checkpoints" in capsys.readouterr().err


def test_a_resumed_run_generates_at_the_same_steps(recipe, monkeypatch):
    """Each generation serves two steps; the first after a resume has to generate, whichever of the two it is."""
    arguments, folder = recipe
    monkeypatch.setitem(rewards.REWARDS, "exact", length_reward)
    arguments = [*arguments, "--max_steps", "4", "--num_iterations", "2"]
    generate, steps = AudioGRPOTrainer._generate_and_score_completions, []
    without_dropout: list[torch.nn.Module] = []
    monkeypatch.setattr(grpo, "disable_functional_dropout", without_dropout.append)

    def spy(self, inputs):
        steps.append(self.state.global_step)
        return generate(self, inputs)

    monkeypatch.setattr(AudioGRPOTrainer, "_generate_and_score_completions", spy)
    assert grpo.main(arguments) == 0 and steps == [0, 2]
    steps.clear()
    for number in (2, 3, 4):
        shutil.rmtree(folder / f"checkpoint-{number}")
    assert grpo.main(arguments) == 0 and steps == [1, 2] and len(without_dropout) == 2


def test_the_best_step_is_that_with_the_highest_reward(tmp_path):
    options = {"output_dir": str(tmp_path), "bf16": False, "load_best_model_at_end": True, "eval_strategy": "steps"}
    options |= {"eval_steps": 2, "save_steps": 2}
    best = grpo.AudioGRPOConfig(**options)
    assert (best.metric_for_best_model, best.greater_is_better) == ("reward", True)
    chosen = grpo.AudioGRPOConfig(**options, metric_for_best_model="loss", greater_is_better=False)
    assert (chosen.metric_for_best_model, chosen.greater_is_better) == ("loss", False)


def test_policy_and_reference_have_no_dropout(model, processor, questions):
    """Whisper's layers apply it as a function, which TRL does not turn off."""
    noisy = copy.deepcopy(model).train()
    for module in noisy.model.audio_tower.modules():
        if hasattr(module, "dropout"):
            module.dropout = 0.5
    noisy.model.audio_tower.layerdrop = 0.5
    inputs = processor.apply_chat_template(questions[0]["prompt"], tokenize=True, return_dict=True)
    assert not torch.equal(noisy(**inputs).logits, noisy(**inputs).logits)
    disable_functional_dropout(noisy)
    torch.testing.assert_close(noisy(**inputs).logits, noisy(**inputs).logits, rtol=0, atol=0)


def test_options_may_stand_in_the_question_and_in_a_column(tmp_path, clips):
    row = {"audio": clips[0], "question": "Which? (A) dog (B) cat", "answer": "dog", "choices": ["dog", "cat"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (question,) = grpo.load_questions([grpo.DataSource(str(tmp_path / "rows.jsonl"))], False, with_choices=True)
    assert question["choices"] == ["dog", "cat"] and question["answer"] == "dog"
    for text in ("What bird is it?", "Which of the cats and dogs?"):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"question": text}))
        with pytest.raises(ValueError, match="'choices', which its question does not name"):
            grpo.load_questions([grpo.DataSource(str(tmp_path / "rows.jsonl"))], False, with_choices=True)[0]


def test_a_sharded_run_needs_clips_everywhere(recipe, tmp_path, monkeypatch, capsys):
    """Else it would hang at the first batch without a clip."""
    sharded = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    monkeypatch.setattr(grpo, "AudioGRPOTrainer", lambda *args, **options: sharded)
    (tmp_path / "mixed.yaml").write_text(f"train_data: [{{path: {recipe[0][3]}, sound: some}}]\n")
    arguments = [text for text in recipe[0] if text not in ("--train_data", recipe[0][3])]
    assert grpo.main(["--config", str(tmp_path / "mixed.yaml"), *arguments]) == 1
    assert "train_data has prompts with and without clips" in capsys.readouterr().err


def test_questions_ask_for_tags_if_told(recipe, processor):
    source = grpo.DataArguments(train_data=[recipe[0][3]]).train_data
    plain, tagged = (grpo.load_questions(source, tags)[1] for tags in (False, True))
    assert plain["answer"] == tagged["answer"] == "a dog" and plain["origin"].endswith("row 1")
    texts = ["".join(item.get("text") or "" for item in row["prompt"][0]["content"]) for row in (plain, tagged)]
    assert texts == ["What is it, 1?", "What is it, 1? Output the final answer in <answer> </answer>."]
    prompt = processor.apply_chat_template(tagged["prompt"], tokenize=False)
    assert texts[1] in prompt


def test_a_prompt_of_sound_alone_asks_for_tags_too(tmp_path):
    chat = [
        {"role": "user", "content": [{"type": "audio", "path": "dog.wav"}]},
        {"role": "assistant", "content": "a dog"},
    ]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}))
    (question,) = grpo.load_questions([grpo.DataSource(str(tmp_path / "chats.jsonl"))], True)
    assert question["prompt"][0]["content"][1] == {"type": "text", "text": rewards.TAGS_REQUEST.strip()}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["--unheard_of", "1"], "unheard_of"),
        (["--train_data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--num_generations", "3"], "divisible"),
        (["--dtype", "bfloat16"], "The frozen weights are torch.bfloat16"),
    ],
)
def test_mistakes_are_one_line(recipe, changes, error, capsys):
    arguments, _ = recipe
    assert grpo.main([*arguments, *changes]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("falcon3-audio grpo: ") and error in said


def test_the_recipe_has_only_options_that_exist(tmp_path):
    path = Path(grpo.__file__).parent / "recipes" / "audio_world_grpo.yaml"
    options = [grpo.ModelArguments, grpo.LoraArguments, grpo.DataArguments, grpo.RewardArguments, grpo.AudioGRPOConfig]
    *_, reward, args = parse_options(options, ["--config", str(path), "--output_dir", str(tmp_path)], "grpo")
    assert args.num_generations == 8 and args.disable_dropout and not reward.answer_tags


def test_an_adapter_without_its_base_is_no_model_to_begin_with(recipe, tmp_path, capsys):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert grpo.main([*recipe[0], "--model", str(tmp_path)]) == 1
    assert "comes without its base model" in capsys.readouterr().err


def test_an_answer_that_is_not_text_alone_is_an_error(tmp_path):
    """Its audio would silently not be compared."""
    answer = [{"type": "text", "text": "A dog."}, {"type": "audio", "path": "dog.wav"}]
    chat = [{"role": "user", "content": "What barks?"}, {"role": "assistant", "content": answer}]
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": chat}))
    with pytest.raises(ValueError, match="row 0: answers are compared as text, but this one also has audio"):
        grpo.load_questions([grpo.DataSource(str(path))], False)[0]


def test_a_row_without_an_answer_and_a_weight_are_errors(tmp_path):
    path = tmp_path / "chats.jsonl"
    hi = {"role": "user", "content": "Hi"}
    path.write_text(json.dumps({"messages": [hi, {"role": "assistant", "content": "Ho"}, hi]}))
    with pytest.raises(ValueError, match="row 0: needs a question, followed by the right answer at the end"):
        grpo.load_questions([grpo.DataSource(str(path), sound=False)], False)[0]
    with pytest.raises(ValueError, match="leave out the weight"):
        grpo.load_questions([grpo.DataSource(str(path), weight=2)], False)
