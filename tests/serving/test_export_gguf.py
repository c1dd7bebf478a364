"""`falcon3-audio export-gguf`: llama.cpp would compute the same from the exported file as this package does.

`LLAMA_CPP=FOLDER pytest tests/serving/test_export_gguf.py` also runs llama.cpp itself: FOLDER has its patched sources,
and the server built from them in build/bin.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import soundfile
import torch
from layouts import LAYOUTS
from tiny import FALCON3_TEMPLATE, SAMPLING_RATE, make_llm, question, tokenized, tone
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer, ByT5Tokenizer

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.compose import compose
from falcon3_audio.processing.audio_inputs_falcon3_audio import POOLING_WINDOW
from falcon3_audio.serving import export_gguf


gguf = pytest.importorskip("gguf", reason="the package gguf writes the files")

# Replaces llama.cpp's converter: writes how it was called and which files it was given.
FAKE_CONVERTER = """
import json, pathlib, sys
folder, options = pathlib.Path(sys.argv[1]), dict(zip(sys.argv[2::2], sys.argv[3::2]))
files = sorted(path.name for path in folder.iterdir())
pathlib.Path(options["--outfile"]).write_text(json.dumps({"type": options["--outtype"], "files": files}))
"""

BACKBONES = Path(__file__).resolve().parents[2] / "training" / "tiny_backbones"
LLAMA_CPP = os.environ.get("LLAMA_CPP")
# The real converter, patched because it knows only published tokenizers; the tiny one splits text as GPT-2's does.
REAL_CONVERTER = f"""
import runpy, sys
sys.argv[0] = {str(Path(LLAMA_CPP or "") / export_gguf.CONVERTER)!r}
sys.path[:0] = [{LLAMA_CPP!r}, {str(Path(LLAMA_CPP or "") / "gguf-py")!r}]
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STEPS, TOP = 6, 5  # tokens compared per answer, and log-probabilities per token


def read(path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Keys and float32 tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.tensor(gguf.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


def llama_cpp_audio(keys: dict, tensors: dict[str, torch.Tensor], mel: torch.Tensor) -> torch.Tensor:
    """
    The output of the patched llama.cpp's audio graph for one window, `(mel bands, frames)`: the operations of its
    sources on the file's tensors.
    """
    eps, heads = keys["clip.audio.attention.layer_norm_epsilon"], keys["clip.audio.attention.head_count"]

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def linear(x, name):
        return functional.linear(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    positions = mel.shape[1] // 2
    x = functional.gelu(functional.conv1d(mel, tensors["a.conv1d.1.weight"], padding=1) + tensors["a.conv1d.1.bias"])
    x = functional.conv1d(x, tensors["a.conv1d.2.weight"], padding=1, stride=2) + tensors["a.conv1d.2.bias"]
    x = functional.gelu(x).T[:positions] + tensors["a.position_embd.weight"][:positions]
    for layer in range(keys["clip.audio.block_count"]):
        block = f"a.blk.{layer}"
        y = norm(x, f"{block}.ln1")
        q, k, v = (linear(y, f"{block}.attn_{name}").unflatten(-1, (heads, -1)).transpose(0, 1) for name in "qkv")
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear((weights @ v).transpose(0, 1).flatten(1), f"{block}.attn_out")
        x = x + linear(functional.gelu(linear(norm(x, f"{block}.ln2"), f"{block}.ffn_up")), f"{block}.ffn_down")
    x = norm(x, "a.post_ln")
    x = torch.stack([part.mean(0) for part in x.split(keys["clip.audio.projector.stack_factor"])])
    x = linear(norm(x, "mm.a.norm_pre"), "mm.a.mlp.1")
    if "mm.a.mlp.2.weight" in tensors:
        x = linear(functional.gelu(x), "mm.a.mlp.2")
    return norm(x, "mm.post_norm")


@pytest.fixture
def make_model(backbone_folders):
    """Models with no weight left at 0 or 1, so that no two can be confused."""

    def make(**options):
        model = Falcon3AudioForConditionalGeneration.from_backbones(*backbone_folders, **options).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"pad_to_window": True}, 30),
        ({"pad_to_window": True}, 1),
        ({}, 0.73),  # 37 positions: the last mean is over one position
        ({"pooling_window": 4}, 1.01),
        ({"pooling_window": 4}, 0.03),  # fewer positions than one mean covers
        ({"pooling_window": 1, "projector_type": "linear"}, 0.5),
        ({"trailing_silence": 0.5}, 0.73),
    ],
)
def test_llama_cpps_graph_on_the_file_gives_the_models_audio(make_model, backbone_folders, tmp_path, options, seconds):
    model = make_model(**options)
    options = {name: value for name, value in options.items() if name != "projector_type"}
    processor = Falcon3AudioProcessor.from_backbones(*backbone_folders, **options)
    inputs = tokenized(processor, question(tone(seconds)))
    with torch.no_grad():
        expected = model.model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    export_gguf.write_mmproj(model, tmp_path / "mmproj.gguf", "tiny", "f32")
    actual = llama_cpp_audio(*read(tmp_path / "mmproj.gguf"), inputs["input_features"][0])
    assert actual.shape == expected.pooler_output.shape
    assert float(expected.pooler_output.std()) > 0.1
    torch.testing.assert_close(actual, expected.pooler_output, rtol=0, atol=1e-4)


def test_keys(make_model, tmp_path):
    export_gguf.write_mmproj(make_model(pooling_window=3, pad_to_window=True), tmp_path / "mmproj.gguf", "tiny", "f16")
    keys, _ = read(tmp_path / "mmproj.gguf")
    assert keys["clip.audio.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    expected = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": "tiny",
        "clip.has_audio_encoder": True,
        "clip.projector_type": "falcon3_audio",
        "clip.audio.projection_dim": 48,
        "clip.audio.embedding_length": 32,
        "clip.audio.feed_forward_length": 64,
        "clip.audio.block_count": 2,
        "clip.audio.attention.head_count": 4,
        "clip.audio.num_mel_bins": 80,
        "clip.audio.projector.stack_factor": 3,
        "clip.audio.pad_to_window": True,
        "clip.audio.trailing_silence": 0,
    }
    assert {name: keys[name] for name in expected} == expected


@pytest.mark.parametrize(("kind", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_matrices_are_rounded_and_nothing_else(make_model, tmp_path, kind, dtype):
    model = make_model()
    export_gguf.write_mmproj(model, tmp_path / "mmproj.gguf", "tiny", kind)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "mmproj.gguf").tensors}
    rounded = {name for name, tensor in tensors.items() if tensor.tensor_type.name == kind.upper()}
    parts = ["attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"]
    matrices = [f"a.blk.{layer}.{part}.weight" for layer in range(2) for part in parts]
    assert rounded == {*matrices, "mm.a.mlp.1.weight", "mm.a.mlp.2.weight"}
    assert all(tensors[name].tensor_type.name == "F32" for name in tensors.keys() - rounded)
    _, values = read(tmp_path / "mmproj.gguf")
    linear = model.model.multi_modal_projector.linear_1.weight.detach()
    torch.testing.assert_close(values["mm.a.mlp.1.weight"], linear.to(dtype).float(), rtol=0, atol=0)
    positions = model.model.audio_tower.embed_positions.weight.detach()
    torch.testing.assert_close(values["a.position_embd.weight"], positions, rtol=0, atol=0)


def test_the_patch_reads_what_is_written():
    added = [line[1:] for line in export_gguf.PATCH.read_text().splitlines() if line.startswith("+")]
    assert any(f'"{export_gguf.PROJECTOR_TYPE}"' in line for line in added)
    for key in (export_gguf.PAD_TO_WINDOW, export_gguf.TRAILING_SILENCE):
        assert any(f'"{key}"' in line for line in added)


@pytest.fixture(scope="module")
def frames_of_the_patch(tmp_path_factory):
    """Compiles only the patch's function: (frames of silence, whether padded, samples) -> frames of each window."""
    added = "\n".join(line[1:] for line in export_gguf.PATCH.read_text().splitlines() if line.startswith("+"))
    function = re.search(r"^bool mtmd_audio_preprocessor_falcon3_audio::preprocess.*?^}$", added, re.M | re.S)[0]
    around = Path(__file__).with_name("around_the_patch.cpp").read_text()
    folder = tmp_path_factory.mktemp("patch")
    (folder / "main.cpp").write_text(around.replace("// FUNCTION", function))
    subprocess.run(["g++", "-std=c++17", "-o", folder / "main", folder / "main.cpp"], check=True)

    def frames(*given: int) -> list[int]:
        run = subprocess.run([folder / "main", *map(str, given)], capture_output=True, text=True, check=True)
        return [int(line) for line in run.stdout.split()]

    return frames


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("seconds", [0.03, 0.735, 29.3, 29.99, 30, 31.01])
@pytest.mark.parametrize(
    "options", [{}, {"trailing_silence": 1.0}, {"trailing_silence": 0.25}, {"pad_to_window": True}]
)
def test_the_patch_encodes_as_many_frames_as_the_processor(frames_of_the_patch, backbone_folders, options, seconds):
    processor = Falcon3AudioProcessor.from_backbones(*backbone_folders, **options)
    samples = tone(seconds)
    ids = tokenized(processor, question(samples))["input_ids"][0]
    silence = round(options.get("trailing_silence", 0) * 100)
    windows = frames_of_the_patch(silence, int("pad_to_window" in options), len(samples))
    # Its encoder turns two frames into a position, and its projector two positions into a token.
    tokens = sum(-(-(frames // 2) // POOLING_WINDOW) for frames in windows)
    assert tokens == (ids == processor.audio_token_id).sum()


def test_the_language_model_is_a_checkpoint_of_its_family(checkpoint, model, tmp_path, capsys):
    output = tmp_path / "out"
    assert export_gguf.main([checkpoint, str(output), "--converter", make_converter(tmp_path, "")]) == 0
    assert not (output / "language_model").exists(), "converted, so not kept"
    export_gguf.save_language_model(model, AutoProcessor.from_pretrained(checkpoint), output / "language_model")
    causal = AutoModelForCausalLM.from_pretrained(output / "language_model")
    assert type(causal).__name__ == "LlamaForCausalLM"
    tokenizer = AutoTokenizer.from_pretrained(output / "language_model")
    assert tokenizer.chat_template == FALCON3_TEMPLATE
    ids = tokenizer("what do you hear", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(causal(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
    assert causal.generation_config.eos_token_id == model.generation_config.eos_token_id


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.beyond])
def test_a_placeholder_beyond_the_vocabulary_is_left_out(backbone_folders, tmp_path, name):
    """llama.cpp's converter refuses a tokenizer with more tokens than the embedding has rows."""
    text = LAYOUTS[name].save(tmp_path / "text")
    composed = compose(backbone_folders[0], text, tmp_path / "composed")
    model, processor = AutoModelForMultimodalLM.from_pretrained(composed), AutoProcessor.from_pretrained(composed)
    export_gguf.save_language_model(model, processor, tmp_path / "language_model")
    saved, own = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "language_model", text))
    rows = model.get_input_embeddings().num_embeddings
    assert max(saved.get_vocab().values()) == rows - 1
    assert saved.get_vocab() == {token: number for token, number in own.get_vocab().items() if number < rows}
    chat = [{"role": "user", "content": "what is a dog?"}, {"role": "assistant", "content": "é <x>"}]
    assert saved.apply_chat_template(chat) == own.apply_chat_template(chat)
    assert saved.all_special_tokens == [token for token in own.all_special_tokens if token in saved.get_vocab()]


def test_the_default_of_several_templates_is_exported(checkpoint, model, tmp_path):
    """Some checkpoints were saved with the other templates of their language model."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    processor.chat_template = {"default": processor.chat_template, "tool_use": "tools!"}
    export_gguf.save_language_model(model, processor, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == FALCON3_TEMPLATE


def test_a_placeholder_that_cannot_be_left_out_is_refused(backbone_folders, tmp_path, capsys):
    """A tokenizer without tokenizer.json has no list of its tokens to remove one from."""
    tokenizer = ByT5Tokenizer(extra_ids=0)
    make_llm(vocab_size=len(tokenizer), eos_token_id=1, pad_token_id=0).save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    composed = compose(backbone_folders[0], str(tmp_path / "text"), tmp_path / "composed")
    assert export_gguf.main([str(composed), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]  # after the loading progress
    assert "cannot be removed from a ByT5Tokenizer, which has no tokenizer.json. Serve the checkpoint with" in error
    assert {path.name for path in tmp_path.iterdir()} == {"text", "composed"}, "nothing is written"


def test_a_template_of_others_is_refused():
    with pytest.raises(ValueError, match="chat template was not created by Falcon3AudioProcessor"):
        export_gguf.language_model_template(FALCON3_TEMPLATE)


def make_converter(folder: Path, code: str = FAKE_CONVERTER) -> str:
    (folder / export_gguf.CONVERTER).write_text(code)
    return str(folder)


def test_the_converter_makes_the_second_file(checkpoint, tmp_path, capsys):
    output = tmp_path / "deep" / "out"
    converter = make_converter(tmp_path)
    assert export_gguf.main([checkpoint, str(output), "--llm-type", "q8_0", "--converter", converter]) == 0
    name = Path(checkpoint).name
    files = [output / f"{name}-q8_0.gguf", output / f"mmproj-{name}-f16.gguf"]
    assert sorted(output.iterdir()) == sorted(files)
    printed = capsys.readouterr().out
    assert all(str(file) in printed for file in files) and str(export_gguf.PATCH) in printed
    told = files[0].read_text()
    assert '"type": "q8_0"' in told and "model.safetensors" in told and "tokenizer.json" in told


def test_a_failing_converter_is_quoted_and_nothing_is_left(checkpoint, tmp_path, capsys):
    converter = make_converter(
        tmp_path, "import sys; print('Loading'); sys.exit('Model SingForCausalLM is not supported')"
    )
    assert export_gguf.main([checkpoint, str(tmp_path / "out"), "--converter", converter]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]  # after the loading progress
    assert error.startswith("falcon3-audio export-gguf: ")
    assert "failed with code 1" in error and "Model SingForCausalLM is not supported" in error
    assert [entry.name for entry in tmp_path.iterdir()] == [export_gguf.CONVERTER]


def test_without_a_converter_the_command_is_printed(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    output = tmp_path / "out"
    assert export_gguf.main([checkpoint, str(output)]) == 1
    message, command = capsys.readouterr().err.strip().splitlines()[-2:]
    assert "half done, since llama.cpp's convert_hf_to_gguf.py was not found" in message
    name = Path(checkpoint).name
    language_model, outfile = output / "language_model", output / f"{name}-f16.gguf"
    expected = f"{sys.executable} llama.cpp/convert_hf_to_gguf.py {language_model} --outfile {outfile} --outtype f16"
    assert command == f"{expected} --model-name {name}"
    assert (output / f"mmproj-{name}-f16.gguf").exists() and (language_model / "config.json").exists()
    assert export_gguf.main([checkpoint, str(output)]) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err


def test_where_the_converter_is_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert export_gguf.find_converter(None) is None
    tree = tmp_path / "llama.cpp"
    (tree / "build" / "bin").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    program = tree / "build" / "bin" / "llama-server"
    program.touch(mode=0o755)
    (tmp_path / "bin" / "llama-server").symlink_to(program)
    assert export_gguf.find_converter(None) is None, "built here, but its sources are gone"
    make_converter(tree)
    script = tree / export_gguf.CONVERTER
    assert export_gguf.find_converter(None) == script
    assert export_gguf.find_converter(str(tree)) == export_gguf.find_converter(str(script)) == script
    installed = tmp_path / "bin" / export_gguf.CONVERTER
    installed.touch(mode=0o755)
    assert export_gguf.find_converter(None) == installed
    with pytest.raises(ValueError, match="there is no .*nowhere; expected convert_hf_to_gguf.py or the folder"):
        export_gguf.find_converter(str(tmp_path / "nowhere"))


def test_what_cannot_be_exported(checkpoint, backbone_folders, make_model, tmp_path, capsys):
    def refused(model) -> str:
        capsys.readouterr()
        assert export_gguf.main([str(model), str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("falcon3-audio export-gguf: ") and "\n" not in error
        assert not (tmp_path / "out").exists()
        return error

    def changed(**fields) -> Path:
        config = make_model().config
        for name, value in fields.items():
            setattr(config.audio_config if hasattr(config.audio_config, name) else config, name, value)
        config.save_pretrained(tmp_path / "changed")
        return tmp_path / "changed"

    assert "is a model of type 'llama'; expected one of Falcon3-Audio" in refused(backbone_folders[1])
    assert "activation is 'relu'" in refused(changed(activation_function="relu"))
    assert "window has 750 positions; llama.cpp's has 1500" in refused(changed(max_source_positions=750))
    assert "is quantised" in refused(changed(quantization_config={"quant_method": "bitsandbytes"}))
    unread = refused(changed(trailing_silence=0.5, read_trailing_silence=False))
    assert "made with read_trailing_silence=False; the patched llama.cpp" in unread
    assert "made with use_weighted_layer_sum=True; llama.cpp's" in refused(changed(use_weighted_layer_sum=True))
    assert "nowhere" in refused(tmp_path / "nowhere")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    assert "falcon3-audio merge" in refused(tmp_path / "adapter")


def test_without_gguf(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert export_gguf.main([checkpoint, str(tmp_path / "out")]) == 1
    assert "pip install 'falcon3-audio[gguf]'" in capsys.readouterr().err


@contextmanager
def llama_server(output: Path, log: Path):
    """Runs the server and yields its URL. One thread, and float32 for everything that can be float32."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    llm, mmproj = sorted(output.glob("*.gguf"), key=lambda path: path.name.startswith("mmproj-"))
    command = [str(Path(LLAMA_CPP) / "build" / "bin" / "llama-server"), "-m", str(llm), "--mmproj", str(mmproj)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--threads", "1", "--ctx-size", "4096", "--parallel", "1"]
    command += ["--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32", "--no-warmup"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {process.returncode}: {log.read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask_llama_server(url: str, clips: list, text: str) -> list[dict[int, float]]:
    """The most likely tokens at each step of the answer, best first, with their log-probabilities."""
    content = []
    for clip in clips:
        file = io.BytesIO()
        soundfile.write(file, clip, SAMPLING_RATE, format="WAV", subtype="FLOAT")
        data = base64.b64encode(file.getvalue()).decode()
        content.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    body = {"messages": messages, "temperature": 0, "max_tokens": STEPS, "logprobs": True, "top_logprobs": TOP}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as answer:
        steps = json.load(answer)["choices"][0]["logprobs"]["content"]
    return [{token["id"]: token["logprob"] for token in step["top_logprobs"]} for step in steps]


def ask_transformers(model, processor, clips: list, text: str) -> list[dict[int, float]]:
    inputs = tokenized(processor, question(*clips, text=text), add_generation_prompt=True)
    options = dict(max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        steps = model.generate(**inputs, **options).logits
    best = [step[0].log_softmax(-1).topk(TOP) for step in steps]
    return [dict(zip(step.indices.tolist(), step.values.tolist())) for step in best]


@pytest.mark.skipif(not LLAMA_CPP, reason="asks llama.cpp itself: set LLAMA_CPP to its folder, patched and built")
@pytest.mark.parametrize("pad_to_window", [False, True])
def test_llama_cpp_answers_as_transformers_does(tmp_path, pad_to_window):
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    compose(str(BACKBONES / "whisper"), str(BACKBONES / "llm"), folder, pad_to_window=pad_to_window, dtype="float32")
    output = tmp_path / "out"
    converter = make_converter(tmp_path, REAL_CONVERTER)
    assert export_gguf.main([str(folder), str(output), "--llm-type", "f32", "--converter", converter]) == 0
    model = Falcon3AudioForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    clips = {"0.1 s": [tone(0.1)], "0.73 s": [tone(0.73, 300)], "5 s": [tone(5, 520)], "31 s": [tone(31, 700)]}
    clips["two"] = [tone(1.3, 400), tone(0.4, 900)]
    seen = []
    with llama_server(output, tmp_path / "log") as url:
        for name, sounds in clips.items():
            theirs = ask_llama_server(url, sounds, "What do you hear?")
            ours = ask_transformers(model, processor, sounds, "What do you hear?")
            assert [next(iter(step)) for step in theirs] == [next(iter(step)) for step in ours], name
            far = [
                abs(value - mine.get(token, -1e9)) for step, mine in zip(theirs, ours) for token, value in step.items()
            ]
            assert max(far) < 0.005, name
            seen.append(ours[0])
    assert len({tuple(step.values()) for step in seen}) == len(clips), "the audio is heard"
