"""Reads the weights of a Whisper in CTranslate2's format, without CTranslate2, under transformers' names.

Format: `ModelSpec._serialize` in https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py
"""

import struct
from collections.abc import Mapping

import numpy as np


VERSION, SPECIFICATION = 6, "WhisperSpec"
# CTranslate2's numbers for the types of its variables.
TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

# CTranslate2's names of the parts of a layer -> transformers'. Fused projections have several targets.
_ATTENTION = {"linear_0": ("q_proj", "k_proj", "v_proj"), "linear_1": ("out_proj",)}
_CROSS_ATTENTION = {"linear_0": ("q_proj",), "linear_1": ("k_proj", "v_proj"), "linear_2": ("out_proj",)}
LAYER_PARTS = {
    "self_attention/layer_norm": ("self_attn_layer_norm",),
    "attention/layer_norm": ("encoder_attn_layer_norm",),
    "ffn/layer_norm": ("final_layer_norm",),
    "ffn/linear_0": ("fc1",),
    "ffn/linear_1": ("fc2",),
    **{f"self_attention/{key}": tuple(f"self_attn.{n}" for n in names) for key, names in _ATTENTION.items()},
    **{f"attention/{key}": tuple(f"encoder_attn.{n}" for n in names) for key, names in _CROSS_ATTENTION.items()},
}
FIELDS = {"gamma": "weight", "beta": "bias", "weight": "weight", "bias": "bias"}
WHOLE_VARIABLES = {
    "embeddings/weight": "embed_tokens.weight",
    "position_encodings/encodings": "embed_positions.weight",
}
# For timestamps; not weights.
OTHER = ("alignment_heads", "alignment_layer")


class _Reader:
    """Reads the values of a file one after another."""

    def __init__(self, data: bytes):
        self.data, self.position = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack("<" + form, self.bytes(struct.calcsize(form)))
        return value

    def bytes(self, count: int) -> bytes:
        self.position += count
        if self.position > len(self.data):
            raise ValueError(f"model.bin is cut off after {len(self.data)} bytes; fetch it again.")
        return self.data[self.position - count : self.position]

    def text(self) -> str:
        return self.bytes(self.number("H")).rstrip(b"\0").decode()

    def array(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = TYPES[self.number("B")]
        return np.frombuffer(self.bytes(self.number("I")), dtype=dtype).reshape(shape)


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """
    The variables of a model.bin (version 6), scalars included; aliases are left out: transformers ties weights itself.

    Raises:
        `ValueError`: another version, too few bytes, or bytes that are left over.
    """
    reader = _Reader(data)
    found = reader.number("I"), reader.text()
    if found != (VERSION, SPECIFICATION):
        raise ValueError(
            f"Got a {found[1]!r} in CTranslate2's format {found[0]}, expected a {SPECIFICATION} in format {VERSION}."
        )
    reader.number("I")  # revision of the specification
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        variables[name] = reader.array()
    for _ in range(reader.number("I")):
        reader.text(), reader.text()  # alias, variable
    if left := len(data) - reader.position:
        raise ValueError(f"{left} bytes are left over after the last variable, expected none.")
    return variables


def to_whisper_names(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """
    Weights under the names of transformers' WhisperForConditionalGeneration, with fused projections split.

    Raises:
        `ValueError`: quantised weights, or a key bias, which Whisper does not have.
    """
    tensors: dict[str, np.ndarray] = {}
    for name, value in variables.items():
        if value.ndim == 0 or name.endswith(OTHER):
            continue
        if value.dtype not in (np.float16, np.float32):
            raise ValueError(f"{name} is quantised ({value.dtype}), expected float weights.")
        side, rest = name.split("/", 1)
        targets = _targets(rest)
        for target, part in zip(targets, np.split(value, len(targets))):
            if not target.endswith("k_proj.bias"):
                tensors[f"model.{side}.{target}"] = part
            elif np.any(part):
                raise ValueError(f"{name} has a key bias, which Whisper does not have.")
    return tensors


def _targets(name: str) -> list[str]:
    """Transformers' names below `encoder` or `decoder`."""
    if name in WHOLE_VARIABLES:
        return [WHOLE_VARIABLES[name]]
    path, field = name.rsplit("/", 1)
    if not path.startswith("layer_") or path == "layer_norm":  # conv1, conv2, layer_norm
        return [f"{path}.{FIELDS[field]}"]
    layer, part = path.split("/", 1)
    return [f"layers.{layer.removeprefix('layer_')}.{target}.{FIELDS[field]}" for target in LAYER_PARTS[part]]
