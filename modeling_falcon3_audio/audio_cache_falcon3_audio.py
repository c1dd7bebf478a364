# Copyright 2026 The falcon3-audio authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Encodes a clip once for all questions and chat turns about it.

The cache holds the projector's outputs, keyed by the digest of a clip's log-mel frames, so the same audio is also
found under another name. The least recently used clips are evicted when there are too many tokens. The embeddings
depend on the weights: the cache is cleared when weights or adapters change. Travels with every saved checkpoint.
"""

import hashlib
import threading
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch


class Lock:
    """A `threading.Lock` whose owner can still be copied and pickled: the copy gets its own lock."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *error):
        self._lock.release()

    def __reduce__(self):
        return Lock, ()


class AudioCache:
    """
    Projected audio of the most recently used clips. Threads can share it; two that need the same new clip at the same
    time both encode it.

    Args:
        model: must have `get_audio_features` and `count_audio_tokens`.
        max_tokens (`int`): Maximum number of audio tokens to keep, each of `hidden_size` numbers; 0 keeps none.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int):
        self.model = model
        self.max_tokens = max_tokens
        self._clips: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._state: Any = None
        self._lock = Lock()  # guards the kept clips; not held during encoding

    def embed(self, keys: list[str], input_features: torch.Tensor, input_features_mask: torch.Tensor) -> torch.Tensor:
        """
        The audio embeddings of some clips, `(audio tokens of all clips, text hidden_size)`, in order.

        Args:
            keys: the clips' digests, from `digests`.
            input_features (`torch.Tensor` of shape `(clips, num_mel_bins, frames)`)
            input_features_mask (`torch.Tensor` of shape `(clips, frames)`)
        """
        with self._lock:
            state = fingerprint(self.model)
            if state != self._state:
                self._clips.clear()
                self._state = state
            clips = {key: self._clips[key] for key in keys if key in self._clips}
        new = {key: row for row, key in enumerate(keys) if key not in clips}
        if new:
            rows = torch.tensor(list(new.values()), device=input_features.device)
            mask = input_features_mask[rows]
            encoded = self.model.get_audio_features(input_features[rows], mask, return_dict=True).pooler_output
            # Clone each part: a view would keep the whole tensor in memory.
            parts = [part.detach().clone() for part in encoded.split(self.model.count_audio_tokens(mask).tolist())]
            clips |= zip(new, parts)
        with self._lock:
            if state == self._state:  # otherwise another thread has seen other weights since
                self._keep(keys, clips)
        return torch.cat([clips[key] for key in keys])

    def _keep(self, keys: list[str], clips: dict[str, torch.Tensor]):
        for key in keys:
            self._clips[key] = clips[key]
            self._clips.move_to_end(key)
        while sum(map(len, self._clips.values())) > self.max_tokens:
            self._clips.popitem(last=False)

    def clear(self):
        with self._lock:
            self._clips.clear()


def fingerprint(model: torch.nn.Module) -> list[Any]:
    """
    Changes when weights are modified in place or replaced, and when adapters are added, merged, selected, scaled or
    disabled. A write through `weight.data` is detected if it changes one of the sampled values, as a merge does.
    """
    weights = list(model.parameters())
    # The count of in-place changes is not a public attribute; tensors created in inference mode have none.
    state: list[Any] = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
    for module in model.modules():
        # PEFT layers; in transformers' models these names are methods.
        if isinstance(getattr(module, "disable_adapters", None), bool):
            scales = getattr(module, "scaling", {})
            state.append((module.disable_adapters, tuple(module.active_adapters), tuple(map(str, scales.items()))))
    return [*state, _some_values(weights)]


def _some_values(tensors: list[torch.Tensor]) -> list[bytes]:
    """
    About 16 values of each tensor, since PEFT and others write through `weight.data`, which no counter records. The
    values are gathered first: reading them one by one would wait for the device each time.
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for part in chain.from_iterable(map(_parts, tensors)):
        if part.device.type != "meta":
            flat = part.detach().reshape(-1)
            # An odd step, since all values in a column of a matrix can be equal.
            kinds.setdefault((flat.device, flat.dtype), []).append(flat[:: len(flat) // 16 | 1])
    return [torch.cat(parts).view(torch.uint8).cpu().numpy().tobytes() for parts in kinds.values()]


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors inside a tensor: several if torchao quantised it or devices share it (`DTensor`)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in _parts(getattr(tensor, name))]


def digests(input_features: torch.Tensor, input_features_mask: torch.Tensor) -> list[str]:
    """
    The digest of each clip's content. It covers the real frames of features `(clips, num_mel_bins, frames)` and later
    frames that are encoded or read too, but not the zeros that pad a batch.
    """
    names = []
    for features, mask in zip(input_features, input_features_mask):
        frames = features.contiguous().cpu().float()
        filled = torch.nonzero(frames.any(0)).flatten()
        end = int(filled[-1]) + 1 if len(filled) else 0
        shape = (len(frames), end, int(mask.sum()))
        names.append(hashlib.sha256(str(shape).encode() + frames[:, :end].numpy().tobytes()).hexdigest())
    return names


__all__ = ["AudioCache", "Lock", "digests", "fingerprint"]
