"""The benchmarks: their counts are right, they compare equal computations, and each runs. Times are not checked."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode


# Benchmarks are run from a clone; they are not part of the package.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import (
    clips,
    encoder,
    encoder_operations,
    hostile_clients,
    measure,
    peak_memory,
    shapes,
    step_timeline,
    summary,
    training_step,
)
from benchmarks.batches import MASKS, PaddingCollator, Step, our_collator, prompts
from benchmarks.clips import Question
from benchmarks.encoder_operations import OperationCounter
from benchmarks.flops import StepFlops, visible_pairs
from benchmarks.models import FLAMINGO, KINDS, OURS, QWEN, build, with_lora


QUESTIONS = [Question(0, 200, 6, 5), Question(0, 200, 3, 4), Question(0, 200, 8, 2), Question(1, 48, 5, 7)]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Narrow models become tiny ones."""
    monkeypatch.setattr(shapes, "NARROW", shapes.TINY)


@pytest.fixture
def shape():
    return shapes.narrow_shape("1b")


def step_of(shape, questions=QUESTIONS):
    return Step(questions, shape)


@pytest.mark.parametrize("preset", shapes.NAMES)
def test_narrow_models_have_the_presets_proportions(preset):
    real, narrow = shapes.real_shape(preset).proportions, shapes.narrow_shape(preset).proportions
    assert narrow == pytest.approx(real, rel=0.03)


def test_proportions_by_hand():
    """Whisper-small has 12 x 12 x 768^2; Falcon3-1B 18 layers of 2048 x (3 x 2048 + 3 x 8192) and a head."""
    layers = 18 * 2048 * (2048 + 2 * 1024 + 2048 + 3 * 8192)
    whole = {"llm token / encoder position": layers, "head token / encoder position": 2048 * 131072}
    expected = {name: weights / (12 * 12 * 768**2) for name, weights in whole.items()}
    assert shapes.real_shape("1b").proportions == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_all_models_have_the_weights_of_the_shape(kind, shape):
    model = build(kind, shape)
    for part, weights in (("audio_tower", shape.encoder_weights), ("language_model", shape.text_weights)):
        layers = getattr(model.model, part).layers
        assert sum(weight.numel() for weight in layers.parameters() if weight.dim() == 2) == weights
    assert model.lm_head.weight.numel() == shape.head_weights


def test_the_mix_is_that_of_the_published_table():
    sets = {name: row for name, row in clips.SETS.items() if name != "voice instructions"}
    assert round(sum(row[1] for row in sets.values())) == 9642  # Open-ASQA v1: 9,641,740 rows
    seconds = [row[0] * (row[2] + row[3]) / 2 for row in sets.values()]
    assert sum(seconds) / sum(row[0] for row in sets.values()) == pytest.approx(9.2, abs=0.05)


@pytest.mark.parametrize("questions", (32, 256))
def test_a_step_is_like_the_mix(questions):
    step = clips.open_asqa_step(questions, seed=1)
    found = clips.describe(step)
    assert len(step) == found["questions"] == questions
    assert (found["questions per clip"], found["seconds per clip"]) == pytest.approx(clips.mean_of_mix(), rel=0.1)
    assert found["text tokens per question"] == pytest.approx(60, rel=0.1)
    assert np.mean([question.answer for question in step]) == pytest.approx(30, rel=0.2)
    assert step == clips.open_asqa_step(questions, seed=1) != clips.open_asqa_step(questions, seed=2)
    assert [question.clip for question in step] == sorted(question.clip for question in step)


def test_the_mean_of_many_draws_is_the_stated_one():
    draw = clips._draw(20_000, np.random.default_rng(0))
    found = clips.describe(draw)
    assert (found["questions per clip"], found["seconds per clip"]) == pytest.approx(clips.mean_of_mix(), rel=0.04)


def test_pairs_that_see_each_other_by_hand():
    """A prefix of 2 with branches of 2 and 1, another prefix of 1 with a branch of 1, and padding."""
    segments = torch.tensor([[1, 1, 2, 2, 3, 4, 5, 0]])
    prefixes = torch.tensor([[1, 1, 1, 1, 1, 4, 4, 0]])
    assert visible_pairs(segments, prefixes) == (1 + 2) + (3 + 4) + 3 + 1 + 2


@pytest.mark.parametrize("recompute", (False, True))
@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind, recompute, shape, tmp_path):
    two = {"num_hidden_layers": 2}  # the first layer differs
    shape = shapes.Shape("two layers", shape.audio | two, shape.text | two)
    model = build(kind, shape)
    model.set_attn_implementation("eager")  # here torch counts attention's matrix products
    step = step_of(shape)
    at_once = 1000 if kind == OURS else len(QUESTIONS)
    stepper = training_step.Stepper(kind, with_lora(model), step, at_once, str(tmp_path), recompute)
    in_place = {torch.ops.aten.addmm_: lambda _, a, b, **kwargs: 2 * a[0] * a[1] * b[1]}  # torch does not count it
    with FlopCounterMode(display=False, depth=None, custom_mapping=in_place) as counter:
        batches = stepper.batches()
    rotary = [counts for name, counts in counter.get_flop_counts().items() if name.endswith("rotary_emb")]
    counted = counter.get_total_flops() - sum(sum(counts.values()) for counts in rotary)
    scores_prompts = training_step.scores_prompts(kind)
    expected = StepFlops(kind, shape, recompute=recompute, all_positions=scores_prompts).count(batches, padded=True)
    assert sum(expected.values()) == counted


def test_what_is_needed_leaves_out_padding(shape):
    """Two rows of which one is padded need as much as the two rows separately."""
    counts = StepFlops(FLAMINGO, shape)
    batch, rows = (
        [PaddingCollator(FLAMINGO, step_of(shape))([{"question": n} for n in group]) for group in groups]
        for groups in ([[0, 3]], [[0], [3]])
    )
    assert counts.count(batch, padded=False) == counts.count(rows, padded=False)
    padded = counts.count(batch, padded=True)
    assert padded["language model"] > counts.count(rows, padded=True)["language model"]
    assert padded["encoder"] == counts.count(rows, padded=False)["encoder"]  # every window counts in full
    tokens, pairs = counts._tokens(batch[0], padded=False)
    lengths = [QUESTIONS[0].tokens, QUESTIONS[3].tokens]
    assert (tokens, pairs) == (sum(lengths), sum(n * (n + 1) // 2 for n in lengths))


def loss_of(model, batch):
    inputs = {name: value for name, value in batch.items() if not name.startswith("num_")}
    return model(**inputs).loss.item()


def test_shared_rows_and_padded_rows_have_the_same_loss(shape):
    """Both collators give the same questions: shown with our model, which also accepts a peer's rows and windows."""
    step, model = step_of(shape), build(OURS, shape)
    shared = our_collator(step)(list(step.dataset()))
    padded = PaddingCollator(FLAMINGO, step)([{"question": number} for number in range(len(QUESTIONS))])
    assert "segment_ids" in shared and shared["input_features"].shape[0] == 2
    assert padded["input_features"].shape == (4, 80, 3000)
    # A branch's first token is predicted by the prefix; questions diverge there, so it is not part of an answer.
    assert loss_of(model, shared) == pytest.approx(loss_of(model, padded), rel=1e-5)


@torch.no_grad()
def test_the_encoders_compute_the_same(shape):
    """On a full window ours equals Whisper; on a shorter clip AudioFlamingo3's layers equal ours."""
    made = encoder.encoders(shape, seed=0)
    features = torch.randn(1, 80, 3000)
    whole = made[encoder.WHISPER](features).last_hidden_state
    torch.testing.assert_close(made[OURS](features).last_hidden_state, whole)
    hidden = {}
    for kind in (OURS, FLAMINGO):
        made[kind].layers[-1].register_forward_hook(
            lambda module, args, output, kind=kind: hidden.update({kind: output})
        )
        encoder.runner(kind, made[kind], features, 500, backward=False)()
    assert hidden[OURS].shape[1] == 250
    torch.testing.assert_close(hidden[FLAMINGO][:, :249], hidden[OURS][:, :249], rtol=1e-4, atol=1e-5)


def test_prompts_end_where_the_answers_begin(shape):
    step = step_of(shape)
    for kind in KINDS:
        inputs = prompts(kind, step, range(4))
        lengths = [question.tokens - question.answer for question in QUESTIONS]
        assert inputs["attention_mask"].sum(-1).tolist() == lengths
        assert inputs["attention_mask"][:, -1].all()  # padded on the left
        assert inputs["input_features"].shape[-1] == (201 if kind == OURS else 3000)
        assert inputs[MASKS.get(kind, "input_features_mask")].sum(-1).tolist() == [200, 200, 200, 48]


def test_runs_take_turns_and_ratios_are_of_a_turn():
    order: list[str] = []
    times = {OURS: iter([9.0, 1.0, 4.0, 2.0]), QWEN: iter([9.0, 3.0, 8.0, 10.0])}  # the first is warm-up

    def run(kind):
        order.append(kind)
        return next(times[kind])

    found = measure.compare(measure.alternate({kind: lambda kind=kind: run(kind) for kind in times}, repeats=3))
    assert order == [OURS, QWEN, OURS, QWEN, QWEN, OURS, OURS, QWEN]
    assert found["median seconds"] == {OURS: 2.0, QWEN: 8.0}
    assert found["ratios"] == {QWEN: 3.0}  # the median of 3, 2 and 5


SCRIPTS = {
    "training_step": ["--questions", "4", "--micro-batches", "4", "--tokens", "128", "1024"],
    "encoder": ["--longest", "60"],
    "generation": ["--tokens", "3"],
    "questions_per_clip": ["--seconds", "1"],
    "data_loader": ["--questions", "6"],
    "peak_memory": ["--questions", "2", "--micro-batch", "2"],
    "step_timeline": ["--workers", "0"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_runs(name, tmp_path, monkeypatch, capsys):
    script = importlib.import_module(f"benchmarks.{name}")
    # In this process: another one would have the narrow models instead of the tiny ones.
    here = lambda kind, given: peak_memory.measure_one(peak_memory.parser().parse_args([*given, "--only", kind]))  # noqa: E731
    monkeypatch.setattr(peak_memory, "_in_a_process", here)
    output, plot = tmp_path / "new" / "out.json", tmp_path / "plot.png"
    plots = name in ("encoder", "step_timeline")
    more = ["--plot", str(plot)] if plots else []
    assert script.main([*SCRIPTS[name], *more, "--repeats", "1", "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert written["machine"]["cores"] >= 1 and written["versions"]["torch"] and written["options"]["repeats"] == 1
    if name not in ("data_loader", "step_timeline"):
        assert written["dtype"] == "float32" and written["shape"]["audio"]["hidden_size"] == 32
    assert "nan" not in output.read_text().lower()
    printed = capsys.readouterr().out
    assert str(output) in printed and (FLAMINGO in printed or name == "step_timeline")
    assert plot.exists() == plots
    assert [path.name for path in output.parent.iterdir()] == ["out.json"]


def test_64_lengths_take_at_most_twice_the_operations_of_one_clip(tmp_path, capsys):
    output = tmp_path / "out.json"
    assert encoder_operations.main(["--output", str(output)]) == 0
    counts = json.loads(output.read_text())["operations"]
    assert 24 * 30 < counts[OURS]["1"] < counts[OURS]["64"] <= 2 * counts[OURS]["1"]
    assert counts[FLAMINGO]["1"] == counts[FLAMINGO]["64"] and FLAMINGO in capsys.readouterr().out


def test_operations_are_counted():
    with OperationCounter() as counter:
        torch.ones(2).add(1).view(2, 1)
    assert counter.count == 3


def test_the_share_of_waiting_is_that_of_the_time_line(monkeypatch):
    """A loader that takes 3 s per batch, and devices that take 1 s or 4 s per step, by a fake clock."""
    clock = [0.0]

    def pass_by(seconds):
        clock[0] += seconds

    def batches():
        for _ in range(100):
            pass_by(3)
            yield None

    fake = SimpleNamespace(perf_counter=lambda: clock[0], sleep=pass_by)
    monkeypatch.setattr(step_timeline, "time", fake)
    assert step_timeline.run(batches(), steps=2, busy=1.0) == [(0, 2, 3), (3, 5, 6)]
    assert step_timeline.run(batches(), steps=2, busy=4.0) == [(0, 0, 4), (4, 4, 8)]
    # The 1B recipe's first line says 45 minutes on eight cards; a step has 256 questions.
    seconds, questions, tokens = step_timeline.device_seconds("1b", "h100")
    assert seconds == pytest.approx(45 * 60 / (10_764_230 / 256), rel=0.02)
    assert (questions, tokens) == (32, 8192)


def test_no_turns_are_an_error(capsys):
    with pytest.raises(SystemExit):
        encoder.main(["--repeats", "0"])
    assert "got '0'; expected a whole number of at least 1" in capsys.readouterr().err


def test_clips_of_30_seconds_share_nothing(shape):
    step = clips.long_clips_step(3)
    assert {question.frames for question in step} == {3000} and len({question.clip for question in step}) == 3
    batch = our_collator(Step(step, shape))(list(Step(step, shape).dataset()))
    assert batch["input_features"].shape == (3, 80, 3000) and "segment_ids" not in batch


def test_the_readme_shows_what_is_on_record():
    shown = (summary.RESULTS.parent / "README.md").read_text(encoding="utf-8")
    assert summary.as_markdown(summary.rows()) in shown


def test_hostile_clients_leave_the_answers_as_they_are(checkpoint, tmp_path, capsys):
    output = tmp_path / "results.json"
    options = ["--requests", "16", "--warm-up", "4", "--hostile", "0.25", "--clips", "2", "--clients", "4"]
    assert hostile_clients.main([checkpoint, *options, "--output", str(output)]) == 0
    results = json.loads(output.read_text())
    hostile = {
        f"{kind}: {400 if kind in ('bad JSON', 'wrong audio') else 'gone'}": 1 for kind in hostile_clients.HOSTILE
    }
    assert results["endings"] == hostile | {"same answer": 15} and results["same afterwards"]
    assert len(results["resident MiB"]) == 11 and min(results["resident MiB"]) > 50
    assert "afterwards are the same" in capsys.readouterr().out


def test_the_slope_of_memory_is_that_of_the_later_half():
    grown, flat = [100, 200, 300, 400, 450, *6 * [500]], [500] * 5 + [500, 501, 502, 503, 504, 505]
    assert hostile_clients.slope(grown, 10_000) == pytest.approx(0)
    assert hostile_clients.slope(flat, 10_000) == pytest.approx(1) and hostile_clients.slope(
        flat, 1000
    ) == pytest.approx(10)
