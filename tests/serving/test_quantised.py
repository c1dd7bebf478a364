"""Checkpoints in 8 and 4 bits: what is and is not quantised, saving and loading, and what the README shows."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import soundfile
import torch
from tiny import SAMPLING_RATE, make_llm, make_processor, make_whisper, question, tokenized, tone
from torch import nn
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

from falcon3_audio import Falcon3AudioForConditionalGeneration
from falcon3_audio.serving.chat_server import load as load_to_serve
from falcon3_audio.training.world.audio_world import build_prompt, generate_world


# Benchmarks are run from a clone; they are not part of the package.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from benchmarks import quantised


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "serving" / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LIBRARIES = {
    "bitsandbytes 8 bit": "bitsandbytes",
    "bitsandbytes 4 bit (NF4)": "bitsandbytes",
    "torchao int8": "torchao",
    "torchao int4": "torchao",
}
SAVED = [name for name in LIBRARIES if name != "torchao int4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint wide enough for groups of 32 and blocks of 64 weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    llm = make_llm(hidden_size=64, intermediate_size=128, head_dim=16)
    whisper = make_whisper(d_model=64)
    Falcon3AudioForConditionalGeneration.from_backbones(whisper, llm, audio_token_id=1).save_pretrained(folder)
    make_processor(vocab_size=300).save_pretrained(folder)
    return str(folder)


def load(folder, precision):
    pytest.importorskip(LIBRARIES.get(precision, "torch"))
    return quantised.load(folder, precision)


def tower(name: str) -> str:
    return name.removeprefix("model.").split(".")[0]


@pytest.mark.parametrize("precision", LIBRARIES)
def test_all_layers_of_the_language_model_are_quantised_and_nothing_else(folder, precision):
    whole, model = load(folder, "bfloat16"), load(folder, precision)
    layers = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    # Quantised weights are parameters of their own class.
    rough = {name for name in layers if type(model.get_submodule(name).weight) is not nn.Parameter}
    assert Counter(map(tower, layers)) == {
        "audio_tower": 2 * 6,
        "multi_modal_projector": 2,
        "language_model": 2 * 7,
        "lm_head": 1,
    }
    assert Counter(map(tower, rough)) == {"language_model": 2 * 7}
    kept = {name: weight for name, weight in whole.named_parameters() if name.rpartition(".")[0] not in rough}
    assert {"model.language_model.embed_tokens.weight", "model.audio_tower.conv1.weight"} < kept.keys()
    for name, weight in kept.items():
        assert model.get_parameter(name).dtype == torch.bfloat16
        assert torch.equal(model.get_parameter(name), weight), name


@pytest.mark.parametrize(
    ("precision", "at_least", "below"),
    [
        ("bitsandbytes 8 bit", 0.9995, 0.9999995),
        ("torchao int8", 0.9995, 0.9999995),
        ("bitsandbytes 4 bit (NF4)", 0.99, 0.9995),
        ("torchao int4", 0.99, 0.9995),
    ],
)
def test_fewer_bits_are_a_coarser_model(folder, precision, at_least, below):
    exact, rough = (logits(load(folder, name), folder).flatten() for name in ("float32", precision))
    assert at_least <= torch.cosine_similarity(exact, rough, dim=0) < below


def logits(model, folder):
    inputs = tokenized(AutoProcessor.from_pretrained(folder), question(tone(1)), return_tensors="pt")
    with torch.no_grad():
        return model(**inputs.to(model.dtype)).logits.float()


@pytest.mark.parametrize("precision", SAVED)
def test_what_is_saved_loads_as_it_was(folder, precision, tmp_path):
    """With the Auto classes, `pipeline` and the server; saved before first use (see the README)."""
    model = load(folder, precision)
    model.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert torch.equal(
        logits(AutoModelForMultimodalLM.from_pretrained(tmp_path).eval(), folder), logits(model, folder)
    )
    how = quantised.PRECISIONS[precision][1]()
    options = {"quantization_config": how, "dtype": torch.bfloat16}
    pipes = (pipeline("audio-text-to-text", model=folder, model_kwargs=options), load_to_serve(str(tmp_path)))
    (wanted, found) = (pipe(question(tone(1)), max_new_tokens=8)[0]["generated_text"] for pipe in pipes)
    assert wanted == found
    for pipe in pipes:
        weight = pipe.model.get_submodule("model.language_model.layers.1.mlp.down_proj").weight
        assert pipe.model.is_quantized and type(weight) is not nn.Parameter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    generate_world(folder, 3, 20, seed=0, workers=1)
    return folder


def test_the_benchmark_counts_answers_and_bytes(folder, world, tmp_path, capsys, monkeypatch):
    pytest.importorskip("bitsandbytes")
    rows = json.loads((world / "test.json").read_text())
    replies = [row["answer"].upper() + "." if index % 2 else "?" for index, row in enumerate(rows)]
    scripts = iter((replies, ["!", *replies[1:]]))
    monkeypatch.setattr(quantised, "pipeline", lambda *args, **options: Scripted(next(scripts)))
    output = tmp_path / "out" / "found.json"
    arguments = [folder, "--data", str(world / "test.json"), "--only", "bitsandbytes 8 bit", "--output", str(output)]
    assert quantised.main(arguments) == 0
    found = json.loads(output.read_text())["precisions"]
    assert list(found) == ["float32", "bitsandbytes 8 bit"]
    assert [result["right"] for result in found.values()] == [10, 10]
    assert [result["differ"] for result in found.values()] == [0, 1]
    whole = AutoModelForMultimodalLM.from_pretrained(folder)
    assert found["float32"]["bytes"] == {
        "audio_tower": 4 * sum(weight.numel() for weight in whole.model.audio_tower.parameters()),
        "multi_modal_projector": 4 * sum(weight.numel() for weight in whole.model.multi_modal_projector.parameters()),
        "language_model": 4 * sum(w.numel() for w in (*whole.model.language_model.parameters(), whole.lm_head.weight)),
        "together": 4 * whole.num_parameters(),
    }
    assert found["float32"]["loss"] == pytest.approx(loss_one_by_one(whole.eval(), folder, world, rows), rel=1e-4)
    assert "50.0%" in capsys.readouterr().out


class Scripted:
    """A pipeline that returns the given replies, in order."""

    def __init__(self, replies):
        self.replies = iter(replies)

    def __call__(self, chats, **options):
        return [[{"generated_text": next(self.replies)}] for _ in chats]


def loss_one_by_one(model, folder, world, rows) -> float:
    """The mean negative log-probability of the answers' tokens, without batches or padding."""
    processor = AutoProcessor.from_pretrained(folder)
    losses: list[float] = []
    for row in rows:
        clip, rate = soundfile.read(world / row["audio_id"], dtype="float32")
        chat = question(clip, text=build_prompt(row["question"], row["choices"]))
        asked = tokenized(processor, chat, add_generation_prompt=True, return_tensors="pt")["input_ids"].shape[1]
        chat.append({"role": "assistant", "content": row["answer"]})
        inputs = tokenized(processor, chat, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**inputs).logits.log_softmax(-1)[0, asked - 1 : -1]
        losses += predicted.gather(1, inputs["input_ids"][0, asked:, None]).neg().flatten().tolist()
    assert rate == SAMPLING_RATE
    return sum(losses) / len(losses)


def test_questions_without_answers_and_missing_libraries_are_errors(folder, world, tmp_path, capsys, monkeypatch):
    rows = json.loads((world / "test.json").read_text())
    (tmp_path / "test-audios").symlink_to(world / "test-audios")
    secret = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
    (tmp_path / "test.json").write_text(json.dumps(secret))
    assert quantised.main([folder, "--data", str(tmp_path / "test.json")]) == 1
    assert "without an answer" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ValueError, match=r'torchao int8 needs what `pip install -e "\.\[quantised\]"` installs'):
        quantised.load(folder, "torchao int8")


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_snippets(code, folder, tmp_path, monkeypatch):
    for library in re.findall(r"bitsandbytes|torchao", code.replace("BitsAndBytes", "bitsandbytes")):
        pytest.importorskip(library)
    clip = tmp_path / "clip.wav"
    soundfile.write(clip, tone(1), SAMPLING_RATE)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace("runs/demo/model", folder), "README.md", "exec"), {})
