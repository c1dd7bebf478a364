"""Hearing: against direct forward passes on files of silence, for any batch, in runs that hear and in deaf runs."""

import io
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SAMPLING_RATE, make_processor, tone
from training_runs import (
    CLIP_FEATURES,
    TEXT,
    assistant,
    clip_row,
    farthest,
    heard,
    history_of,
    log_of,
    parse,
    user,
    weights_of,
    write_clips,
    write_jsonl,
    write_recipe,
)

from falcon3_audio.modeling_falcon3_audio_encoder import Falcon3AudioMultiModalProjector
from falcon3_audio.training import hearing, sft
from falcon3_audio.training import trainer as trainer_module
from falcon3_audio.training.collator import AudioChatCollator
from falcon3_audio.training.data.shards import write_shard
from falcon3_audio.training.data.sources import DataSource
from falcon3_audio.training.data.training_sets import load_training_data
from falcon3_audio.training.hearing import Scored, ask_training_questions, last_deafness, new_deafness, summarise


BACKBONES = Path(hearing.__file__).parent / "tiny_backbones"
ANSWERS = ("a", "a long answer that has many more tokens", "yes", "no it is not")


@pytest.fixture
def start(recipe, tmp_path):
    """Trains by the recipe with some options changed; returns the trainer."""

    def start(*options, eval_data=()):
        with_sets = recipe
        if eval_data:
            entries = [{"path": path, "sound": "some"} for path in eval_data]
            with_sets = write_recipe(tmp_path / "with_sets.yaml", extends=recipe, eval_data=entries)
        return sft.train(*parse("--config", with_sets, "--output_dir", str(tmp_path / "run"), *options))

    return start


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture(scope="module")
def hearing_run(recipe, tmp_path_factory):
    """
    The trainer of a run that learns to hear, and its log records: low clips are bells, high ones dogs. With random
    backbones it would take much longer. The held-out clips have other lengths.
    """
    folder = tmp_path_factory.mktemp("hearing")

    def write(name, count, seconds):
        clips = write_clips(folder / name, count, seconds)
        rows = [[user(heard(clip), TEXT), assistant(("a bell", "a dog")[n % 2])] for n, clip in enumerate(clips)]
        return str(write_jsonl(folder / f"{name}.jsonl", [{"messages": row} for row in rows]))

    options = {
        "audio_model": BACKBONES / "whisper",
        "text_model": BACKBONES / "llm",
        "train_data": write("learned", 16, 0.1),
        "eval_data": write("held_out", 8, 0.13),
        "output_dir": folder / "run",
        "report_to": "tensorboard",
        "eval_strategy": "steps",
        "eval_steps": 16,
        "save_strategy": "no",
        "max_steps": 20,
        "max_length": 200,
        "learning_rate": 3e-3,
        "lora_dropout": 0,
        "global_batch_size": 8,
        "per_device_train_batch_size": 8,
        "activation_checkpointing": "false",
    }
    records = Records()
    logging.getLogger().addHandler(records)
    try:
        given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        return sft.train(*parse("--config", recipe, *given)), records.records
    finally:
        logging.getLogger().removeHandler(records)


@pytest.fixture
def deaf(monkeypatch):
    """Models whose projector gives the same output for every clip."""
    monkeypatch.setattr(
        Falcon3AudioMultiModalProjector,
        "forward",
        lambda self, states: torch.zeros_like(self.norm_out.bias).expand(*states.shape[:-1], -1) + self.norm_out.bias,
    )


@pytest.fixture
def sets(tmp_path):
    """Chats with one, two or no clips, and answers of every length; and clips with several questions."""
    clips = write_clips(tmp_path / "clips", 8)
    rows = [[user(heard(clip), TEXT), assistant(ANSWERS[n % 4])] for n, clip in enumerate(clips)]
    rows.append([user(heard(clips[0]), heard(clips[1]), TEXT), assistant("a dog, then a bell")])
    rows += [[user("Hi"), assistant("ho")], [user("Who are you?"), assistant("nobody who hears anything")]]
    chats = write_jsonl(tmp_path / "chats.jsonl", [{"messages": row} for row in rows])
    write_shard(tmp_path / "clips.parquet", [clip_row(clip, 1 + n) for n, clip in enumerate(clips[:4])], CLIP_FEATURES)
    return [str(chats), str(tmp_path / "clips.parquet")]


def load(paths):
    return load_training_data([DataSource(path, sound="some") for path in paths])[0]


def with_silence(messages, folder):
    """The chat with its clips replaced by files of silence."""
    folder.mkdir(exist_ok=True)
    silent = []
    for message in messages:
        content = []
        for item in message["content"]:
            if item["type"] == "audio":
                samples = item["audio"]["bytes"] if item.get("audio") else Path(item["path"]).read_bytes()
                length = len(soundfile.read(io.BytesIO(samples))[0])
                item = {"type": "audio", "path": str(folder / f"{length}.wav")}
                soundfile.write(item["path"], np.zeros(length), SAMPLING_RATE)
            content.append(item)
        silent.append(message | {"content": content})
    return silent


def loss_of(trainer, messages):
    """The loss summed over the answer tokens of a chat, and their number, from the model's own loss."""
    row = AudioChatCollator(trainer.processing_class)([{"messages": messages}])
    tokens = int((row["labels"][:, 1:] != -100).sum())
    with torch.no_grad():
        mean = trainer.model.eval()(**{name: row[name] for name in row if not name.startswith("num_")}).loss
    return float(mean) * tokens, tokens


def evaluations(run):
    return [entry for entry in history_of(run) if any(name.endswith("_hearing") for name in entry)]


def said(records):
    return [record.message for record in records if "no hearing can be shown" in record.message]


def test_against_direct_forward_passes(hearing_run, sets, tmp_path):
    trainer, _ = hearing_run
    examples = load(sets)
    losses, silent, tokens, clips = [], [], [], []
    for number, example in enumerate(examples):
        loss, count = loss_of(trainer, example["messages"])
        losses.append(loss)
        tokens.append(count)
        silent.append(loss_of(trainer, with_silence(example["messages"], tmp_path / "silence"))[0])
        clips.append(example["clip"] or number)
    with_sound = [any(i["type"] == "audio" for i in example["messages"][0]["content"]) for example in examples]
    metrics = trainer.evaluate(eval_dataset=examples)
    assert len(examples) == 21 and with_sound.count(False) == 2 and metrics["eval_num_dropped"] == 0
    assert metrics["eval_loss"] == pytest.approx(sum(losses) / sum(tokens), rel=1e-5)
    kept = [number for number in range(len(examples)) if with_sound[number]]
    expected = sum(silent[n] - losses[n] for n in kept) / sum(tokens[n] for n in kept)
    assert abs(expected) > 0.01
    assert metrics["eval_hearing"] == pytest.approx(expected, rel=1e-3)
    assert [silent[n] for n in range(len(examples)) if not with_sound[n]] == [
        losses[n] for n in range(len(examples)) if not with_sound[n]
    ]
    # The interval by the jackknife, which leaves out one clip at a time.
    names = sorted({clips[n] for n in kept}, key=str)
    others = [[n for n in kept if clips[n] != name] for name in names]
    left = np.array([sum(silent[n] - losses[n] for n in o) / sum(tokens[n] for n in o) for o in others])
    count = len(names)
    error = math.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
    margin = metrics["eval_hearing_high"] - metrics["eval_hearing"]
    assert count == 13 and margin == pytest.approx(stats.t.ppf(0.975, count - 1) * error, rel=0.2)
    assert metrics["eval_hearing"] - metrics["eval_hearing_low"] == pytest.approx(margin)


def test_for_any_evaluation_batch(hearing_run, sets, monkeypatch):
    """Answers have one to forty tokens, so means over batches would depend on the batch."""
    trainer, _ = hearing_run
    examples = load(sets)
    found = []
    for batch in (1, 4, 24):
        for together in (1, None):
            monkeypatch.setattr(trainer.args, "per_device_eval_batch_size", batch)
            monkeypatch.setattr(trainer.data_collator, "questions_per_row", together)
            found.append(trainer.evaluate(eval_dataset={"all": examples, "first": examples.select(range(9))}))
    names = [f"eval_{part}_{name}" for part in ("all", "first") for name in ("loss", "hearing", "hearing_low")]
    names += ["eval_all_mean_token_accuracy", "eval_all_entropy"]
    for metrics in found[1:]:
        assert [metrics[name] for name in names] == pytest.approx([found[0][name] for name in names], abs=1e-5)
    assert abs(found[0]["eval_all_hearing"] - found[0]["eval_first_hearing"]) > 1e-3


@pytest.mark.parametrize("options", [{}, {"pad_to_window": True}, {"mels": 128}])
@pytest.mark.parametrize("seconds", [0.01, 0.3, 29.995, 31.0])
def test_silence_is_what_the_processor_makes_of_it(options, seconds):
    processor = make_processor(**options)
    given, expected = (
        processor(audio=samples, sampling_rate=SAMPLING_RATE) for samples in (tone(seconds), 0 * tone(seconds))
    )
    silent = hearing.silenced(dict(given), processor)
    assert torch.equal(silent["input_features"], expected["input_features"])
    assert torch.equal(silent["input_features_mask"], expected["input_features_mask"])
    assert not torch.equal(given["input_features"], expected["input_features"])
    assert (expected["input_features"] != 0).all()


def test_a_run_that_hears(hearing_run):
    trainer, records = hearing_run
    run = Path(trainer.args.output_dir)
    entries = evaluations(run)
    assert [entry["step"] for entry in entries] == [16, 20]
    assert 0 < entries[-1]["eval_hearing_low"] < entries[-1]["eval_hearing"] < entries[-1]["eval_hearing_high"]
    assert not said(records)
    (folder,) = {path.parent for path in run.rglob("events.out.tfevents.*")}
    # Evaluations by other tests come later.
    scalars = EventAccumulator(str(folder)).Reload().Scalars("eval/hearing")[: len(entries)]
    assert [event.value for event in scalars] == pytest.approx([entry["eval_hearing"] for entry in entries])


def test_chats_about_a_clip_are_one_clip(processor, tmp_path):
    """By path or by bytes; chats with several clips or none count as separate clips."""
    dog, bell = write_clips(tmp_path, 2)
    stored = {"type": "audio", "audio": {"bytes": dog.read_bytes(), "path": "dog.wav"}}
    users = [[heard(dog)], [heard(bell)], [heard(dog)], [stored], [stored], [heard(dog), heard(dog)], [heard(dog)] * 2]
    users += [[{"type": "audio", "audio": tone(0.2)}]] * 2 + [[], []]
    chats = [[user(*items, TEXT), assistant("a dog")] for items in users]
    chats += [[user(heard(dog), TEXT), assistant("a dog"), user("And then?"), assistant("a cat")]]
    examples = [{"messages": chat, "origin": "?", "clip": None, "number": n} for n, chat in enumerate(chats)]
    for together in (1, None):
        asked = AudioChatCollator(processor, questions_per_row=together)(examples)["asked"].tolist()
        clips = {number: clip for number, clip, _ in asked}
        groups = [sorted(n for n in clips if clips[n] == clip) for clip in set(clips.values())]
        assert sorted(groups) == [[0, 2, 11], [1], [3, 4], [5], [6], [7], [8], [9], [10]]


def test_a_deaf_run_says_so_once(start, deaf, sets, tmp_path, monkeypatch, caplog, capsys):
    """The second evaluation is the first to judge; the third one agrees, and so does a run that resumes from there."""
    monkeypatch.setattr(hearing, "PATIENCE", 1)
    options = ("--eval_strategy", "steps", "--eval_steps", "1", "--max_length", "200")
    options += (
        "--warmup_steps",
        "1",
    )
    with caplog.at_level(logging.WARNING):
        start(*options, eval_data=sets)
    entries = evaluations(tmp_path / "run")
    assert len(entries) == 6
    for entry in entries:
        assert entry["eval_hearing"] == entry["eval_hearing_low"] == entry["eval_hearing_high"] == 0
    (line,) = said(caplog.records)
    assert line.startswith("After 2 steps no hearing can be shown: eval_hearing is 0.0000 nats per answer token")
    assert "--control silence" in line and "\n" not in line
    assert "no hearing can be shown" not in capsys.readouterr().out
    caplog.clear()
    start(*options, "--resume_from_checkpoint", str(tmp_path / "run" / "checkpoint-4"), eval_data=sets)
    assert not said(caplog.records)
    assert "NOTE                   After 4 steps no hearing can be shown" in capsys.readouterr().out


def test_a_run_without_eval_data_asks_training_questions(start, deaf, tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setattr(hearing, "SAMPLE", 10)
    with caplog.at_level(logging.WARNING):
        trainer = start("--max_steps", "3", "--save_strategy", "no", "--max_length", "200")
    (entry,) = evaluations(tmp_path / "run")
    assert entry["step"] == 3 and entry["eval_train_hearing"] == 0 and len(said(caplog.records)) == 1
    assert "every 512 steps and at the end, on 10 training questions" in capsys.readouterr().out
    origins = [example["origin"] for example in trainer.eval_dataset["train"]]
    assert len(set(origins)) == 10 and set(origins) < {example["origin"] for example in trainer.train_dataset}
    chosen = {
        example["origin"] for example in ask_training_questions(trainer.train_dataset, trainer.args, 256)["train"]
    }
    assert chosen == set(origins) and trainer.args.eval_steps == 50


def test_text_alone(recipe, tmp_path, caplog):
    """Hearing is neither reported nor computed."""
    rows = [{"messages": [user(f"Say {n}"), assistant(ANSWERS[n % 4])]} for n in range(12)]
    data = [{"path": str(write_jsonl(tmp_path / "text.jsonl", rows)), "sound": False}]
    options = {"max_steps": 2, "save_strategy": "no", "max_length": 200, "output_dir": str(tmp_path / "run")}
    text = write_recipe(Path(recipe).with_name("text.yaml"), extends=Path(recipe).name, train_data=data, **options)
    passes = []
    with caplog.at_level(logging.WARNING):
        trainer = sft.train(*parse("--config", text))
        hook = trainer.model.register_forward_hook(lambda *given: passes.append(1))
        metrics = trainer.evaluate()
        hook.remove()
    assert len(passes) == 2 and metrics["eval_train_loss"] > 0  # 12 questions, 8 at a time
    assert not evaluations(tmp_path / "run") and not said(caplog.records)


def test_evaluation_leaves_training_as_it_is(finished_run, start, sets, tmp_path):
    """Even dropout draws the same numbers."""
    start("--eval_strategy", "steps", "--eval_steps", "1", eval_data=sets)
    expected = Path(finished_run.args.output_dir)
    assert farthest(weights_of(tmp_path / "run"), weights_of(expected)) <= 1e-6
    assert [e["loss"] for e in log_of(tmp_path / "run")] == pytest.approx([e["loss"] for e in log_of(expected)])


def test_questions_that_do_not_fit_are_counted(start, tmp_path):
    trainer = start("--max_steps", "1", "--save_strategy", "no")
    (long,) = write_clips(tmp_path / "long", 1, seconds=4.0)
    (short,) = write_clips(tmp_path / "short", 1)
    rows = [{"messages": [user(heard(clip), TEXT), assistant("a dog")]} for clip in (long, short)]
    examples = load([str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    trainer.args.per_device_eval_batch_size = 1  # one batch has no question that fits
    metrics = trainer.evaluate(eval_dataset=examples)
    assert metrics["eval_num_dropped"] == 1
    expected, tokens = loss_of(trainer, rows[1]["messages"])
    assert metrics["eval_loss"] == pytest.approx(expected / tokens, rel=1e-5)
    assert "eval_hearing" in metrics and "eval_hearing_low" not in metrics  # one clip has no interval


def test_a_loss_that_is_not_finite_is_that_of_an_evaluation(hearing_run, sets, monkeypatch, caplog):
    """With silence, only hearing becomes unknown, with one warning; with the clips, the evaluation fails by name."""
    trainer, _ = hearing_run
    examples = {"odd": load(sets[:1])}
    kept = trainer.evaluate(eval_dataset=examples)
    broken = lambda inputs, *given: inputs | {"input_features": inputs["input_features"] * math.nan}  # noqa: E731
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(trainer_module, "silenced", broken)
        found = [trainer.evaluate(eval_dataset=examples) for _ in range(2)]
    for metrics in found:
        assert metrics["eval_odd_loss"] == kept["eval_odd_loss"]
        assert all(math.isnan(metrics[f"eval_odd_hearing{end}"]) for end in ("", "_low", "_high"))
    (line,) = [record.message for record in caplog.records if "silence" in record.message]
    assert line.startswith("In the evaluation 'eval_odd' the loss with silence in place of the clips is not finite")
    hook = trainer.model.register_forward_pre_hook(lambda _, args, given: (args, broken(given)), with_kwargs=True)
    try:
        for only_loss in (True, False):
            monkeypatch.setattr(trainer.args, "prediction_loss_only", only_loss)
            with pytest.raises(FloatingPointError, match="is nan in the evaluation 'eval_odd' after step 20"):
                trainer.evaluate(eval_dataset=examples)
    finally:
        hook.remove()


def scored(differences, tokens=2):
    return [Scored(n, n, True, tokens, 1.0, 0.5, 1.0, 1.0 + value) for n, value in enumerate(differences)]


def test_the_interval_is_students(monkeypatch):
    """For clips with equally many tokens the ratio is a mean, whose interval scipy computes."""
    differences = np.random.default_rng(0).normal(0.3, 1, 40)
    metrics = summarise(scored(differences))
    low, high = stats.ttest_1samp(differences / 2, 0).confidence_interval(0.95)
    found = (metrics["hearing"], metrics["hearing_low"], metrics["hearing_high"])
    assert found == pytest.approx((differences.mean() / 2, low, high))
    assert "hearing_low" not in summarise(scored(differences[:5])) and "hearing_low" in summarise(scored(range(6)))


def test_deaf_runs_are_seldom_taken_for_hearing():
    """Of 2000 measurements of a deaf model, 2.5 % are shown to be above 0 by chance, whatever the sizes of the clips."""
    generator = np.random.default_rng(0)
    shown = 0
    for _ in range(2000):
        sizes = generator.integers(1, 30, 64)
        values = generator.normal(0, np.sqrt(sizes))
        rows = [Scored(n, n, True, int(size), 0, 0, 0, value) for n, (size, value) in enumerate(zip(sizes, values))]
        shown += summarise(rows)["hearing_low"] > 0
    assert 25 <= shown <= 80


def test_what_is_said_of_a_log():
    def entry(step, name, low):
        return {"step": step, f"eval_{name}": 0.01, f"eval_{name}_low": low, f"eval_{name}_high": 0.1}

    log = [entry(10, "hearing", -1), {"step": 20, "loss": 1.0}, entry(60, "hearing", -0.1), entry(70, "hearing", 0.0)]
    assert not new_deafness(log[:1], 54) and not new_deafness(log[:2], 54)
    (line,) = new_deafness(log[:3], 54)
    assert line.startswith("After 60 steps") and "a 95 % interval from -0.1000 to 0.1000 that" in line
    assert not new_deafness(log, 54) and "After 70 steps" in last_deafness(log, 54)[0]
    assert not last_deafness([*log, entry(80, "hearing", 0.001)], 54)
    # Each set is judged separately.
    (line,) = new_deafness([*log, entry(80, "music_hearing", -0.1)], 54)
    assert "eval_music_hearing is 0.0100" in line
