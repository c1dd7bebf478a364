"""`falcon3-audio export-gguf`: a checkpoint as two GGUF files for llama.cpp, to run on laptops and without Python.

    falcon3-audio export-gguf runs/mine/model OUT [--llm-type q8_0] [--converter llama.cpp/convert_hf_to_gguf.py]
    llama-server -m OUT/model-q8_0.gguf --mmproj OUT/mmproj-model-f16.gguf

Encoder and projector are written here, with PyPI's `gguf`. The language model is saved as a plain causal language
model, and converted by llama.cpp's own script. llama.cpp has no projector with a norm after its last layer, and stock
llama.cpp encodes 30 s for any clip, which ruins the answers of checkpoints that were trained only on real frames. So
llama.cpp must be built with llama_cpp.patch (next to this file; for 0.5 and 0.6, `git apply` in llama.cpp's folder),
which adds the projector, 30 s windows only for checkpoints made with `pad_to_window`, and the silence of
`trailing_silence`. Without it llama.cpp refuses the file. Checkpoints made with `read_trailing_silence=False` or
`use_weighted_layer_sum` are refused here. The audio placeholder, which `generate` never picks, is not suppressed in
llama.cpp; use llama-server's `logit_bias` if it appears. A placeholder beyond the language model's vocabulary is left
out: llama.cpp places audio without it.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, PreTrainedModel

from falcon3_audio import Falcon3AudioForConditionalGeneration, Falcon3AudioProcessor
from falcon3_audio.adapters import whole_model_config
from falcon3_audio.processing.audio_inputs_falcon3_audio import FRAMES_PER_SECOND
from falcon3_audio.saved_json import readable_json
from falcon3_audio.user_errors import user_errors
from falcon3_audio.whole_files import check_new_folder, whole_folder


CONVERTER = "convert_hf_to_gguf.py"
PATCH = Path(__file__).with_name("llama_cpp.patch")
LLM_TYPES = ("f32", "f16", "bf16", "q8_0")
# The patch's name for the projector, and its keys for which `gguf` has no method.
PROJECTOR_TYPE = "falcon3_audio"
PAD_TO_WINDOW = "clip.audio.pad_to_window"
TRAILING_SILENCE = "clip.audio.trailing_silence"  # in mel frames
# llama.cpp's Whisper graph has windows of 30 s.
WINDOW_POSITIONS = 1500

# Our names -> those that llama.cpp reads, without `.weight` and `.bias`.
TENSORS = {
    "audio_tower.conv1": "a.conv1d.1",
    "audio_tower.conv2": "a.conv1d.2",
    "audio_tower.embed_positions": "a.position_embd",
    "audio_tower.layer_norm": "a.post_ln",
    "multi_modal_projector.norm_in": "mm.a.norm_pre",
    "multi_modal_projector.linear_1": "mm.a.mlp.1",
    "multi_modal_projector.linear_2": "mm.a.mlp.2",
    "multi_modal_projector.norm_out": "mm.post_norm",
}
LAYER_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "self_attn_layer_norm": "ln1",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
    "final_layer_norm": "ln2",
}
# Around the language model's own chat template, in processing/chat_template.jinja.
TEMPLATE_BEGINS = "{%- macro language_model_prompt(messages, add_generation_prompt) %}\n"
TEMPLATE_ENDS = "{{ '' }}{% endmacro %}"


def export_gguf(model: str, output: str | Path, llm_type: str = "f16", converter: Path | None = None) -> list[str]:
    """
    Writes `mmproj-NAME-TYPE.gguf` and `NAME-TYPE.gguf` into the new folder `output`; NAME is the checkpoint's name.

    Without `converter` the language model is left in `output`/language_model as a checkpoint to convert.

    Args:
        model: Folder or Hub id of a checkpoint of this package, not quantised, adapters merged.
        llm_type: One of `LLM_TYPES`, the type of the language model's matrices. Encoder and projector matrices have it
            too, but float16 instead of `q8_0`. Norms, biases, positions and convolutions are float32.
        converter: llama.cpp's convert_hf_to_gguf.py.

    Returns:
        The command that converts the language model, if that is left to do; otherwise an empty list.

    Raises:
        `FileExistsError`: if `output` holds anything already.
        `ValueError`: for other models, for features that llama.cpp's encoder lacks, and with the last lines of the
            converter's output if it fails (such as for an unknown model family).
        `ImportError`: if `gguf` is not installed.
        `OSError`: if there is no checkpoint at `model`, or the result cannot be written.
    """
    _import_gguf()
    output = Path(output)
    check_new_folder(output)
    _check(model)
    with readable_json(model):
        loaded: Falcon3AudioForConditionalGeneration = AutoModelForMultimodalLM.from_pretrained(model, dtype="auto")
        processor: Falcon3AudioProcessor = AutoProcessor.from_pretrained(model)
    _check_placeholder(loaded, processor)
    name = Path(os.path.abspath(model)).name
    matrix_type = "f16" if llm_type == "q8_0" else llm_type
    with whole_folder(output) as folder:
        write_mmproj(loaded, folder / f"mmproj-{name}-{matrix_type}.gguf", name, matrix_type)
        save_language_model(loaded, processor, folder / "language_model")
        if converter is not None:
            _run(_command(converter, folder, name, llm_type))
            shutil.rmtree(folder / "language_model")
    return [] if converter else _command(Path("llama.cpp") / CONVERTER, output, name, llm_type)


def write_mmproj(model: Falcon3AudioForConditionalGeneration, path: Path, name: str, matrix_type: str) -> None:
    """Writes encoder and projector to `path`; the caller's folder appears only when complete."""
    gguf = _import_gguf()
    config, encoder = model.config, model.config.audio_config
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name(name)
    writer.add_clip_has_audio_encoder(True)
    writer.add_clip_projector_type(PROJECTOR_TYPE)
    writer.add_audio_projection_dim(config.text_config.hidden_size)
    writer.add_audio_embedding_length(encoder.hidden_size)
    writer.add_audio_feed_forward_length(encoder.intermediate_size)
    writer.add_audio_block_count(encoder.num_hidden_layers)
    writer.add_audio_head_count(encoder.num_attention_heads)
    writer.add_audio_attention_layernorm_eps(model.model.audio_tower.layer_norm.eps)
    writer.add_audio_num_mel_bins(encoder.num_mel_bins)
    writer.add_audio_stack_factor(config.pooling_window)
    writer.add_bool(PAD_TO_WINDOW, config.pad_to_window)
    writer.add_uint32(TRAILING_SILENCE, round(config.trailing_silence * FRAMES_PER_SECOND))
    kinds = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
    kind = (kinds | {"bf16": gguf.GGMLQuantizationType.BF16})[matrix_type]
    for ours, tensor in model.model.state_dict().items():
        if ours.startswith("language_model."):
            continue
        theirs = tensor_name(ours)
        values = tensor.float().cpu().numpy()
        if ours.startswith("audio_tower.conv") and ours.endswith(".bias"):
            values = values[:, None]  # added to (channels, frames)
        is_matrix = values.ndim == 2 and ours.endswith(".weight") and "embed_positions" not in ours
        used = kind if is_matrix else gguf.GGMLQuantizationType.F32
        writer.add_tensor(theirs, gguf.quantize(values, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_name(ours: str) -> str:
    """llama.cpp's name of a weight of encoder or projector; raises a `KeyError` for any other."""
    module, _, kind = ours.rpartition(".")
    if module.startswith("audio_tower.layers."):
        layer, _, part = module.removeprefix("audio_tower.layers.").partition(".")
        return f"a.blk.{layer}.{LAYER_TENSORS[part]}.{kind}"
    return f"{TENSORS[module]}.{kind}"


def save_language_model(
    model: Falcon3AudioForConditionalGeneration, processor: Falcon3AudioProcessor, folder: Path
) -> None:
    """Saves the language model with its head, its tokenizer and its own chat template, as a checkpoint of its family."""
    with torch.device("meta"):
        causal: PreTrainedModel = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.dtype)
    setattr(causal, causal.base_model_prefix, model.model.language_model)
    causal.set_output_embeddings(model.lm_head)
    causal.generation_config = model.generation_config
    causal.save_pretrained(folder)
    tokenizer = processor.tokenizer
    template = processor.chat_template
    # In a dictionary if the checkpoint was saved with the language model's other templates.
    tokenizer.chat_template = language_model_template(template["default"] if isinstance(template, dict) else template)
    tokenizer.save_pretrained(folder)
    if not model.config.audio_token_is_embedded:  # llama.cpp expects as many tokens as embedding rows
        _forget_token(folder, processor.audio_token)


def _forget_token(folder: Path, token: str) -> None:
    """Removes an added token from a saved tokenizer, for which tokenizers have no method."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        saved = _without(json.loads(path.read_text(encoding="utf-8")), token)
        path.write_text(json.dumps(saved, indent=2, ensure_ascii=False), encoding="utf-8")


def _without(saved: Any, token: str) -> Any:
    """A tokenizer's JSON without entries for a token, such as the name that the tokenizer gives it."""

    def is_kept(entry: Any) -> bool:
        return token not in (entry, isinstance(entry, dict) and entry.get("content"))

    if isinstance(saved, dict):
        return {key: _without(entry, token) for key, entry in saved.items() if is_kept(entry)}
    return [_without(entry, token) for entry in saved if is_kept(entry)] if isinstance(saved, list) else saved


def language_model_template(template: str) -> str:
    """
    The language model's part of a processor's chat template: llama.cpp places audio itself.

    Raises a `ValueError` for a template that was not created by this package.
    """
    _, begins, rest = template.partition(TEMPLATE_BEGINS)
    inner, ends, _ = rest.partition(TEMPLATE_ENDS)
    if not (begins and ends):
        raise ValueError(
            "The processor's chat template was not created by Falcon3AudioProcessor.from_backbones, so the language "
            "model's own, which llama.cpp needs, cannot be found in it. Restore the original (chat_template.jinja)."
        )
    return inner


def find_converter(given: str | None) -> Path | None:
    """
    llama.cpp's converter: `given` (the script, or llama.cpp's folder), else on the PATH, else in the source tree that
    llama-server or llama-mtmd-cli on the PATH was built in (build/bin). `None` if there is none.

    Raises a `ValueError` if `given` is neither.
    """
    if given is not None:
        path = Path(given) / CONVERTER if Path(given).is_dir() else Path(given)
        if not path.is_file():
            raise ValueError(f"--converter: there is no {path}; expected {CONVERTER} or the folder of llama.cpp.")
        return path
    on_path = shutil.which(CONVERTER)
    programs = [shutil.which(program) for program in ("llama-server", "llama-mtmd-cli")]
    trees = [Path(program).resolve().parents[2] for program in programs if program]
    places = [Path(on_path)] if on_path else [tree / CONVERTER for tree in trees]
    return next((place for place in places if place.is_file()), None)


def _check(model: str) -> None:
    config = whole_model_config(model)
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{model} is quantised; export the checkpoint that it was made from.")
    if not config.read_trailing_silence:
        raise ValueError(
            f"{model} was made with read_trailing_silence=False; the patched llama.cpp reads everything that it "
            "encodes, and would give other answers. Serve it with `falcon3-audio serve`."
        )
    if config.use_weighted_layer_sum:
        raise ValueError(
            f"{model} was made with use_weighted_layer_sum=True; llama.cpp's Whisper gives only the last layer. Serve "
            "it with `falcon3-audio serve`."
        )
    encoder = config.audio_config
    if encoder.activation_function != "gelu":
        raise ValueError(
            f"The encoder's activation is {encoder.activation_function!r}; llama.cpp's Whisper supports only 'gelu'."
        )
    if encoder.max_source_positions != WINDOW_POSITIONS:
        raise ValueError(
            f"The encoder's window has {encoder.max_source_positions} positions; llama.cpp's has {WINDOW_POSITIONS}."
        )


def _check_placeholder(model: Falcon3AudioForConditionalGeneration, processor: Falcon3AudioProcessor) -> None:
    if model.config.audio_token_is_embedded or processor.tokenizer.is_fast:
        return
    raise ValueError(
        f"The placeholder {processor.audio_token!r} has no row in the embedding, and llama.cpp needs a tokenizer without it. "
        f"It cannot be removed from a {type(processor.tokenizer).__name__}, which has no tokenizer.json. Serve the "
        "checkpoint with `falcon3-audio serve`."
    )


def _command(converter: Path, folder: Path, name: str, llm_type: str) -> list[str]:
    outfile = folder / f"{name}-{llm_type}.gguf"
    options = ["--outfile", str(outfile), "--outtype", llm_type, "--model-name", name]
    return [sys.executable, str(converter), str(folder / "language_model"), *options]


def _run(command: list[str]) -> None:
    print(f"{command[1]} converts the language model", flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        last = " / ".join(line.strip() for line in done.stdout.splitlines()[-3:])
        raise ValueError(f"{shlex.join(command)} failed with code {done.returncode}: {last}")


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("GGUF files are written with the package gguf: pip install 'falcon3-audio[gguf]'") from error
    return gguf


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio export-gguf", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a checkpoint (for adapters, see merge)")
    parser.add_argument("output", metavar="OUT", help="folder to create")
    parser.add_argument("--llm-type", choices=LLM_TYPES, default="f16", help="language model's type (default: f16)")
    parser.add_argument("--converter", metavar="PATH", help=f"llama.cpp's folder or {CONVERTER} (default: search)")
    options = parser.parse_args(arguments)
    with user_errors(parser.prog) as end:
        left = export_gguf(options.model, options.output, options.llm_type, find_converter(options.converter))
        return _report(Path(options.output), left)
    return end.status


def _report(folder: Path, left: list[str] | None) -> int:
    """Prints what was written, and the command that is `left` to run; returns the exit status."""
    for file in sorted(folder.glob("*.gguf")):
        print(file)
    print(f"to run them, build llama.cpp with {PATCH}")
    if left:
        print(
            f"falcon3-audio export-gguf: half done, since llama.cpp's {CONVERTER} was not found (see --converter). The "
            f"language model must still be converted:\n{shlex.join(left)}",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
