"""The trainer around TRL's: what it logs, what it stops at, the order on several devices, and memory."""

import gc
import math
import re
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader
from training_runs import (
    TEXT,
    assistant,
    farthest,
    heard,
    history_of,
    log_of,
    parse,
    user,
    weights_of,
    write_chats,
    write_clips,
    write_jsonl,
    write_recipe,
)
from transformers import AutoModelForMultimodalLM, TrainerCallback

from falcon3_audio.training import sft
from falcon3_audio.training import trainer as module
from falcon3_audio.training.arguments import DataSource, LoraArguments
from falcon3_audio.training.callbacks import EpochOrder
from falcon3_audio.training.collator import AudioChatCollator, newly_dropped
from falcon3_audio.training.data.sampler import MixtureSampler
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio.training.loss_curve import plot_loss
from falcon3_audio.training.plan import describe_plan, estimate_step
from falcon3_audio.training.trainer import AudioSFTTrainer


@pytest.fixture
def start(recipe, tmp_path):
    """Trains by the recipe with some options changed; returns the trainer."""

    def start(*options, **changed):
        path = write_recipe(Path(recipe).with_name("changed.yaml"), extends=Path(recipe).name, **changed)
        return sft.train(*parse("--config", path, "--output_dir", str(tmp_path / "run"), *options))

    return start


def test_a_log_line_says_what_a_step_took(start, tmp_path, monkeypatch):
    """One step by a clock that advances 2 s between calls and is called four times: 2 of 6 s are spent reading."""
    clips = write_clips(tmp_path, 2, seconds=1.0)  # 1 s and 1.02 s
    (long,) = write_clips(tmp_path / "long", 1, seconds=5.0)
    rows = [
        [user(heard(clips[0]), TEXT), assistant("a bell")],
        [user(heard(clips[1]), TEXT), assistant("a dog")],
        [user("Hi"), assistant("ho")],
        [user(heard(long), TEXT), assistant("too long")],
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": row} for row in rows])
    ticks = iter(range(0, 1000, 2))
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    trainer = start("--max_steps", "1", "--lora_dropout", "0", train_data=[{"path": str(path), "sound": "some"}])
    (entry,) = log_of(tmp_path / "run")
    processor = trainer.processing_class
    tokens = sum(len(processor.apply_chat_template(row, tokenize=True)[0]) for row in rows[:3])
    assert entry["samples_per_second"] == 3 / 6
    assert entry["tokens_per_second"] == pytest.approx(tokens / 6, abs=0.01)
    assert entry["data_wait_share"] == pytest.approx(2 / 6, abs=0.001)
    # If the two without audio share a batch, it has a hundredth of a second of silence.
    assert entry["audio_seconds_per_second"] in (round(2.02 / 6, 2), round(2.03 / 6, 2))
    assert (entry["num_dropped"], entry["num_shortened"]) == (1, 0)
    for name in ("loss", "grad_norm", "learning_rate", "peak_memory_gib"):
        assert math.isfinite(entry[name])
    # The loss is the mean over all answer tokens of the step, for the base model because this is the first.
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path / "run" / "base")
    batch = AudioChatCollator(processor, 64)(list(trainer.train_dataset))
    with torch.no_grad():
        loss = model(**{name: value for name, value in batch.items() if not name.startswith("num_")}).loss
    assert entry["loss"] == pytest.approx(float(loss), abs=1e-4)


def test_totals_count_on_over_the_run(finished_run):
    """One of the sets has a clip that is too long, and one row in eleven is shortened."""
    entries = log_of(Path(finished_run.args.output_dir))
    assert [entry["step"] for entry in entries] == list(range(1, 7))
    dataset, collator = finished_run.train_dataset, finished_run.data_collator
    ours = finished_run.sampler
    sampler = MixtureSampler(
        ours.sizes, [1, 0.5, 0.25], finished_run.args.seed, ours.clips, None, step_size=4, batch_size=2
    )
    order = list(sampler)
    sampler.set_epoch(1)
    order = [order[:4], order[4:8], order[8:12], order[12:], *([*sampler][n : n + 4] for n in (0, 4))]
    totals = {"num_dropped": 0, "num_shortened": 0}
    for entry, step in zip(entries, order, strict=True):
        for index in step:
            batch = collator([dataset[index]])
            totals = {name: count + int(batch[name]) for name, count in totals.items()}
        assert {name: entry[name] for name in totals} == totals
    assert totals["num_dropped"] > 0 and totals["num_shortened"] > 0


def test_the_head_sees_nothing_but_what_is_learned(finished_run):
    """The vocabulary of Falcon3 is 40 to 60 times as wide as its states; logits of a prompt would be wasted."""
    trainer = finished_run
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    labels = batch["labels"]
    inputs = {name: value for name, value in batch.items() if not name.startswith("num_")}
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).loss
    seen = []
    base = trainer.model.get_base_model().model
    hook = base.register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state.shape[:2]))
    try:
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=(labels[:, 1:] != -100).sum())
    finally:
        hook.remove()
    assert seen == [(1, int((labels != -100).sum()))] and labels.numel() > 2 * seen[0][1]
    assert float(loss.detach()) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_packed_steps_are_those_of_whole_batches(recipe, tmp_path, accumulated):
    """Without dropout: the same losses and weights for any micro-batches. A packed run also resumes."""
    options = {"gradient_accumulation_steps": accumulated, "per_device_train_batch_size": 8 // accumulated}
    options |= {"extends": recipe, "global_batch_size": None, "lora_dropout": 0.0, "max_steps": 3, "save_steps": 1}

    def run(name, *arguments, **changed):
        path = write_recipe(tmp_path / f"{name}.yaml", **(options | changed))
        sft.train(*parse("--config", path, "--output_dir", str(tmp_path / name), *arguments))
        return weights_of(tmp_path / name), log_of(tmp_path / name)

    whole, expected = run("whole")
    ours, log = run("packed", tokens_per_device=100)
    assert farthest(ours, whole) < 1e-5
    for name in ("loss", "grad_norm", "num_dropped", "num_shortened"):
        assert [entry[name] for entry in log] == pytest.approx([entry[name] for entry in expected], rel=1e-4)
    assert expected[-1]["num_dropped"] > 0
    checkpoint = str(tmp_path / "packed" / "checkpoint-1")  # in the middle of an epoch
    assert farthest(run("on", "--resume_from_checkpoint", checkpoint, tokens_per_device=100)[0], ours) == 0


@pytest.mark.parametrize("padded", [False, True], ids=["real frames", "whole windows"])
def test_compiled_layers_learn_the_same(recipe, tmp_path, monkeypatch, padded):
    """
    All layers of the language model are compiled, the encoder's only where windows are whole. Micro-batches have one
    row, as in recipes/nano.yaml; those of the evaluation have more. The forward and backward graphs are captured as usual, but
    run with torch's own kernels: inductor's take a minute to build, need a C++ compiler, and are torch's to test.
    """
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    options = {"lora_dropout": 0.0, "max_steps": 2, "per_device_train_batch_size": 0, "tokens_per_device": 100}
    options["pad_to_window"] = padded

    def run(name, **changed):
        path = write_recipe(tmp_path / f"{name}.yaml", extends=recipe, **options, **changed)
        trainer = sft.train(*parse("--config", path, "--output_dir", str(tmp_path / name)))
        compiled = {
            re.sub(r"\.\d+$", "", name)
            for name, module in trainer.model.named_modules()
            if module._compiled_call_impl is not None
        }
        history = history_of(tmp_path / name)
        losses = [entry[key] for entry in history for key in ("loss", "eval_train_loss") if key in entry]
        return weights_of(tmp_path / name), losses, compiled

    expected, losses, nothing = run("eager")
    ours, our_losses, compiled = run("compiled", compile_layers=True)
    expected_names = {"model.language_model.layers"} | ({"model.audio_tower.layers"} if padded else set())
    assert not nothing and {name.removeprefix("base_model.model.") for name in compiled} == expected_names
    assert ours.keys() == expected.keys() and farthest(ours, expected) < 1e-4
    assert len(losses) == 3 and our_losses == pytest.approx(losses, rel=1e-4)  # two steps, one evaluation


def test_dropping_the_only_batch_is_refused(start):
    with pytest.raises(
        ValueError, match="dataloader_drop_last drops all 15 questions of an epoch: each of 1 .* 64 at a time"
    ):
        start("--dataloader_drop_last", "true", "--per_device_train_batch_size", "64", "--global_batch_size", "64")


def test_the_evaluation_loss_is_that_of_the_held_out_answers(start, tmp_path):
    trainer = start("--max_steps", "1", "--save_strategy", "no")
    held_out = load_training_data([DataSource(str(write_chats(tmp_path / "chats", 4)))])[0].select(range(4))
    metrics = trainer.evaluate(eval_dataset=held_out)
    batch = AudioChatCollator(trainer.processing_class, 64)(list(held_out))
    with torch.no_grad():
        loss = trainer.model.eval()(**{name: batch[name] for name in batch if not name.startswith("num_")}).loss
    assert metrics["eval_loss"] == pytest.approx(float(loss), abs=1e-5)
    assert not trainer._seen  # rates are only of training
    too_long = load_training_data([DataSource(str(write_chats(tmp_path / "long", 1, seconds=4.0)))])[0].select([0])
    with pytest.raises(ValueError, match="No example of the set to evaluate on fits into max_length"):
        trainer.evaluate(eval_dataset=too_long)


def test_a_loss_that_is_no_number_stops_the_run(start, tmp_path, monkeypatch):
    """Without a mock: this learning rate overflows float32."""
    with pytest.raises(FloatingPointError, match="The loss is nan in step [23]. Nothing of this step is saved"):
        start("--learning_rate", "1e38", "--warmup_steps", "0", "--save_strategy", "no")
    assert (
        not list((tmp_path / "run").glob("checkpoint-*")) and not (tmp_path / "run" / "adapter_config.json").exists()
    )


def test_weights_that_are_no_numbers_are_not_saved(finished_run, tmp_path):
    weight = next(weight for weight in finished_run.model.parameters() if weight.requires_grad)
    kept = weight.data.clone()
    weight.data[0] = math.inf
    try:
        with pytest.raises(FloatingPointError, match="1 trained weights are no longer finite .*lora_A"):
            finished_run.save_model(str(tmp_path / "saved"))
    finally:
        weight.data = kept
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize("process", [0, 1])
def test_every_device_goes_on_in_the_order_of_its_epoch(process):
    """Resuming in the middle of the second epoch on two devices, as transformers and accelerate do."""

    def loader_of(sampler):
        loader = DataLoader(range(24), batch_size=2, sampler=sampler)
        return prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)

    sampler = MixtureSampler([24], [1], seed=5)
    sampler.set_epoch(1)
    order = torch.tensor(list(sampler)).view(-1, 2)[process::2]
    resumed = MixtureSampler([24], [1], seed=5)
    loader = skip_first_batches(loader_of(resumed), 2)
    callback = EpochOrder(resumed)
    callback.on_epoch_begin(None, SimpleNamespace(epoch=1.5), None)
    loader.set_epoch(1)
    assert torch.equal(torch.stack(list(loader)), order[2:])


def test_the_plan_is_what_will_happen(finished_run, monkeypatch):
    lines = dict(
        line.split(maxsplit=1) if not line.startswith("a step") else ("a step", line[6:].strip())
        for line in describe_plan(finished_run, LoraArguments(), global_batch=4, done=2).splitlines()
    )
    trained = {name: w.numel() for name, w in finished_run.model.named_parameters() if w.requires_grad}
    total = sum(w.numel() for name, w in finished_run.model.named_parameters() if "original_module" not in name)
    assert lines["together"] == f"{total / 1e6:,.2f} M parameters, {sum(trained.values()) / total:.2%} trained"
    assert "LoRA of rank 8 on: all" in lines["audio_tower"] and "in full" in lines["multi_modal_projector"]
    assert lines["precision"] == "frozen weights float32, trained float32, computed in float32"
    assert lines["attention"].startswith("sdpa")
    assert lines["batch"] == "4 questions: 2 on each of 1 device(s), 2 times"
    monkeypatch.setattr(finished_run.args, "tokens_per_device", 4096)
    packed = describe_plan(finished_run, LoraArguments(), global_batch=4, done=2)
    assert "4 questions: 2 on each of 1 device(s), in micro-batches of at most 4,096 tokens" in packed
    assert lines["steps"] == "4 to go of 6, 15 questions per epoch"
    expected = "loss with silence minus loss with the clips, every 512 steps and at the end, on 21 training questions"
    assert lines["hearing"].startswith(expected)
    with monkeypatch.context() as patch:
        patch.setattr(finished_run, "eval_dataset", finished_run.train_dataset)
        patch.setattr(finished_run.args, "eval_strategy", "epoch")
        assert "every epoch, on 21 questions of eval_data" in describe_plan(
            finished_run, LoraArguments(), global_batch=4, done=2
        )
    dropped = int(lines["NOTE"].split()[0])
    assert lines["NOTE"].startswith(
        f"{dropped} of the first 15 questions are left out: their clips are longer than max_audio"
    )
    monkeypatch.setattr(finished_run.args, "warmup_steps", 6)
    assert "all 6 step(s) are warm-up" in describe_plan(finished_run, LoraArguments(), global_batch=4, done=2)
    estimate = estimate_step(finished_run, 4)
    assert estimate.dropped == dropped
    assert lines["a step"].startswith(f"about {estimate.tokens:,.0f} tokens and {estimate.hours:.3f} h")


def test_the_estimate_of_a_step_is_the_mean_of_what_comes_first(finished_run):
    """Here over a whole epoch: 15 questions, two of which share a clip of the second set."""
    dataset, collator = finished_run.train_dataset, finished_run.data_collator
    order = list(finished_run.sampler)
    batches = [collator([dataset[index] for index in order[start : start + 2]]) for start in range(0, 15, 2)]
    assert any("segment_ids" in batch for batch in batches)
    dropped = sum(int(batch["num_dropped"]) for batch in batches)
    assert sum(int(batch["num_questions"]) for batch in batches) == 15 - dropped
    found = estimate_step(finished_run, 30)
    assert (found.questions, found.dropped) == (15, dropped)
    assert found.tokens == pytest.approx(2 * sum(int(batch["attention_mask"].sum()) for batch in batches))
    frames = sum(int(batch["input_features_mask"].sum()) for batch in batches)
    assert found.hours == pytest.approx(2 * frames / 100 / 3600)


def test_questions_that_are_all_too_long_are_an_error_before_the_first_step(finished_run, monkeypatch):
    monkeypatch.setattr(finished_run.data_collator, "max_length", 5)
    monkeypatch.setattr(finished_run.args, "max_length", 5)
    with pytest.raises(
        ValueError, match=r"^15 of the first 15 questions .* max_length=5 \(0 s of audio\) .*Raise max_len"
    ):
        describe_plan(finished_run, LoraArguments(), global_batch=4, done=2)


def test_many_questions_that_are_left_out_are_told_once():
    history = [{"step": step, "num_dropped": dropped} for step, dropped in ((10, 2), (20, 3), (30, 7), (40, 9))]
    told = [newly_dropped([*history[:count], {"step": 40, "eval_loss": 1.0}], 4) for count in range(5)]
    assert [len(lines) for lines in told] == [0, 0, 0, 1, 0]
    assert told[3][0].startswith("6% of the questions so far were left out") and "Raise max_length" in told[3][0]


def test_four_bits_leave_what_is_trained_in_float32(start, tmp_path):
    pytest.importorskip("bitsandbytes")
    trainer = start("--load_in_4bit", "true", "--dtype", "bfloat16", "--bf16", "true", "--max_steps", "2")
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    # B starts at zero.
    assert all(weight.any() for name, weight in trained.items() if "lora_B" in name)
    assert all(math.isfinite(entry["loss"]) for entry in log_of(tmp_path / "run"))


def test_the_loss_curve_is_a_picture(finished_run, tmp_path):
    log = [*log_of(Path(finished_run.args.output_dir)), {"step": 4, "eval_loss": 5.0}]
    picture = matplotlib.image.imread(plot_loss(log, tmp_path / "curve.png"))
    assert picture.shape[:2] == (960, 960) and picture.std() > 0.05
    heard = [{"step": 2, "eval_hearing": 0.1}, {"step": 4, "eval_hearing": 0.2, "eval_hearing_low": 0.1}]
    seen = [matplotlib.image.imread(plot_loss([*log, *heard[:n]], tmp_path / "other.png")) for n in range(3)]
    assert (seen[0] == picture).all() and (seen[1] != seen[0]).any() and (seen[2] != seen[1]).any()
    other = [entry | {"loss": 9.0 - entry["step"]} if "loss" in entry else entry for entry in log]
    assert (matplotlib.image.imread(plot_loss(other, tmp_path / "other.png")) != picture).any()
    assert plot_loss([{"step": 1, "train_runtime": 1.0}], tmp_path / "none.png") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "other.png"]


def test_the_loss_curve_takes_no_other_file_and_leaves_none(tmp_path, monkeypatch):
    log, notes = [{"step": 1, "loss": 1.0, "learning_rate": 0.1}], tmp_path / "curve.tmp"
    notes.write_text("mine")
    plot_loss(log, tmp_path / "curve.png")
    assert notes.read_text() == "mine"

    def full(self, file, **options):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OSError, match="no space left"):
        plot_loss(log, tmp_path / "other.png")
    assert {path.name for path in tmp_path.iterdir()} == {"curve.png", "curve.tmp"}


class Memory(TrainerCallback):
    """Records the size of live tensors and the memory of the process after certain steps."""

    def __init__(self, *steps):
        self.steps, self.tensors, self.resident = steps, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            gc.collect()
            # (By type: asking some modules' objects for their class imports things.)
            tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
            self.tensors.append(sum(tensor.numel() * tensor.element_size() for tensor in tensors))
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.resident.append(pages * 4096)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads Linux's account of the process")
def test_memory_does_not_grow_over_200_steps(start, tmp_path, monkeypatch):
    """
    A batch is two clips of 3 s: 190 KB for the features. If one were kept per step, the tensors and the process would
    grow by 38 MB from step 20 to step 220; 1 MB is allowed for the tensors and 16 MB for the process.
    """
    clips = write_clips(tmp_path / "clips", 4, seconds=3.0)
    rows = [{"messages": [user(heard(clip), TEXT), assistant("a dog")]} for clip in clips]
    memory = Memory(20, 220)
    original = AudioSFTTrainer.__init__

    def with_memory(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.add_callback(memory)

    monkeypatch.setattr(AudioSFTTrainer, "__init__", with_memory)
    start(
        *(
            "--train_data",
            str(write_jsonl(tmp_path / "rows.jsonl", rows)),
            "--max_steps",
            "220",
            "--max_length",
            "150",
        ),
        *("--logging_steps", "10", "--save_strategy", "no", "--global_batch_size", "2", "--lora_dropout", "0"),
        *("--activation_checkpointing", "false", "--lora_audio_tower", "qv", "--lora_language_model", "qv"),
    )
    (before, after), (process_before, process_after) = memory.tensors, memory.resident
    assert after - before < 2**20
    assert process_after - process_before < 16 * 2**20
