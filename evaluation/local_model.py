"""Answers from a transformers model on this machine: any model that `pipeline("audio-text-to-text")` takes.

Decoding is greedy. A batch is answered together; if that raises an error, its questions are asked one by one, so that
one clip costs only its own rows. Running out of memory, which is no fault of a question, stops the run. Audio tokens
are counted in every prompt, since processors have silently dropped audio; a prompt with a clip but none of them stops
the run.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from falcon3_audio import AudioTextToTextPipeline
from falcon3_audio.adapters import load_pipeline
from falcon3_audio.devices import DEVICE_ERRORS
from falcon3_audio.processing import SAMPLING_RATE, load_audio
from falcon3_audio.saved_json import readable_json

from .answerers import Item, NoAudio, Outcome, RunStopped, answered, by_clip, failed
from .questions import Clip, file_sha256


# The files that determine a model's answers; others in its folder (logs, cards, optimizer states) do not.
MODEL_FILES = (".safetensors", ".bin", ".json", ".jinja", ".model", ".py")


class CountingPipeline(AudioTextToTextPipeline):
    """
    Counts the audio tokens of each prompt of the last batch, and tells which replies have no end; raises `NoAudio` if a
    prompt with a clip has no audio token.
    """

    audio_tokens: list[int | None] = []
    cut: list[bool] = []

    @property
    def audio_token_id(self) -> int | None:
        """The placeholder that stands for audio in the input ids; `None` if neither config nor processor names it."""
        names = [(self.model.config, "audio_token_id"), (self.model.config, "audio_token_index")]
        found = (getattr(owner, name, None) for owner, name in [*names, (self.processor, "audio_token_id")])
        return next((number for number in found if number is not None), None)

    def preprocess(self, requests, processor_kwargs=None):
        prepared = super().preprocess(requests, processor_kwargs)
        if self.audio_token_id is None:
            self.audio_tokens = [None] * len(requests)
            return prepared
        counts = (prepared["inputs"]["input_ids"] == self.audio_token_id).sum(1).tolist()
        for request, count in zip(requests, counts):
            if count == 0 and any(item["type"] == "audio" for item in request.messages[-1]["content"]):
                raise NoAudio(
                    f"{type(self.processor).__name__} made a prompt without audio tokens (id {self.audio_token_id}) "
                    "for a question with a clip: the model would answer without hearing it. Does its chat template "
                    "take audio?"
                )
        self.audio_tokens = counts
        return prepared

    def postprocess(self, model_outputs, **options):
        ends = self.model.generation_config.eos_token_id
        tokens = model_outputs["tokens"]
        ended = torch.isin(tokens, torch.as_tensor([] if ends is None else ends, device=tokens.device)).any(-1)
        self.cut = (~ended).tolist()
        return super().postprocess(model_outputs, **options)


class LocalModel:
    """
    Any transformers model with audio input, through `pipeline("audio-text-to-text")`.

    Args:
        model: folder or Hub id; `revision`, `trust_remote_code`, `dtype` and `device` as for `pipeline`.
        batch_size: questions that are answered together.
        max_new_tokens: of each answer.

    Raises:
        `ValueError`, `OSError`, `ImportError`: as `pipeline` does, and for a model with another sampling rate than 16
            kHz.
    """

    workers = 1
    packages: tuple[str, ...] = ("accelerate", "numpy", "soundfile", "soxr", "tokenizers", "torch", "transformers")

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 256,
    ):
        self.name, self.batch_size = model, batch_size
        self._decoding = {"do_sample": False, "num_beams": 1, "max_new_tokens": max_new_tokens}
        with readable_json(model):
            self._pipe = _load(
                model, revision=revision, trust_remote_code=trust_remote_code, dtype=dtype, device=device
            )
        rate = getattr(getattr(self._pipe.processor, "feature_extractor", None), "sampling_rate", SAMPLING_RATE)
        if rate != SAMPLING_RATE:
            raise ValueError(f"{model} expects {rate} Hz audio; only models for {SAMPLING_RATE} Hz can be evaluated.")
        self._samples: dict[str, np.ndarray] = {}
        self._ahead: dict[str, np.ndarray | OSError | ValueError] = {}

    def describe(self) -> dict[str, Any]:
        model = self._pipe.model
        folder = Path(self.name).is_dir()
        commit = model_digest(Path(self.name)) if folder else getattr(model.config, "_commit_hash", None)
        defaults = model.generation_config.to_diff_dict()
        defaults.pop("transformers_version", None)
        return {
            "model": self.name,
            "model_commit": commit,
            "model_commit_is": f"sha256 of the names and sha256 of its {', '.join(MODEL_FILES)} files"
            if folder
            else "commit on the Hub",
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "device": self._pipe.device.type,  # without its number, which differs between processes
            "batch_size": self.batch_size,
            "decoding": self._decoding,
            "generation_config": defaults,  # its penalties and end tokens apply besides `decoding`
        }

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """
        Batches of at most `batch_size`, with all questions about a clip in the same batch.

        A clip with more questions than that gets batches of its own: its encoding is kept from one to the next, and
        must not depend on other clips in the first.
        """
        batches: list[list[Item]] = [[]]
        for group in by_clip(items):
            if len(batches[-1]) + len(group) <= self.batch_size:
                batches[-1] += group
            else:
                batches += [group[i : i + self.batch_size] for i in range(0, len(group), self.batch_size)]
                if len(group) > self.batch_size:
                    batches.append([])
        return [batch for batch in batches if batch]

    def check_audio(self) -> str:
        if self._pipe.audio_token_id is None:
            return "unknown: neither the model's config nor its processor names an audio token"
        return "audio tokens were counted in every prompt"

    def prepare(self, clips: Sequence[Clip]):
        for clip in clips:
            self._ahead[clip.name] = _decode(clip)

    def answer(self, items: list[Item]) -> Iterator[list[Outcome]]:
        clips = {clip.name: clip for item in items for clip in item.heard}
        if clips.keys() != self._samples.keys():
            self._pipe.forget_audio()  # cached encodings depend in their last digits on earlier batches
        self._samples = {name: samples for name, samples in self._samples.items() if name in clips}
        outcomes: dict[str, Outcome] = {}
        audible: list[Item] = []
        for item in items:
            try:
                for clip in item.heard:
                    if clip.name not in self._samples:
                        self._samples[clip.name] = self._decoded(clip)
                audible.append(item)
            except (OSError, ValueError) as error:
                outcomes[item.question.id] = failed(item, error)
        outcomes |= {outcome["id"]: outcome for outcome in self._ask(audible)}
        yield [outcomes[item.question.id] for item in items]

    def _decoded(self, clip: Clip) -> np.ndarray:
        found = self._ahead.pop(clip.name, None)
        found = _decode(clip) if found is None else found
        if isinstance(found, Exception):
            raise found
        return found

    def _ask(self, items: list[Item]) -> list[Outcome]:
        try:
            return self._generate(items) if items else []
        except RunStopped:
            raise
        except Exception as error:  # models can raise anything for a clip or a prompt
            self._stop_if_hopeless(error, items)
            if len(items) == 1:
                return [failed(items[0], error)]
        return [outcome for item in items for outcome in self._ask([item])]

    def _generate(self, items: list[Item]) -> list[Outcome]:
        rows: list[dict[str, Any]] = []
        for item in items:
            clips = [self._samples[name] for name in item.names]
            rows.append({"text": item.prompt} | ({"audio": clips, "sampling_rate": SAMPLING_RATE} if clips else {}))
        replies = self._pipe(rows, batch_size=len(rows), **self._decoding)
        return [
            answered(item, records[0]["generated_text"], audio_tokens=count, finish_reason="length" if cut else "stop")
            for item, records, count, cut in zip(items, replies, self._pipe.audio_tokens, self._pipe.cut)
        ]

    def _stop_if_hopeless(self, error: Exception, items: list[Item]):
        ids = ", ".join(item.question.id for item in items)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error):
            raise RunStopped(
                f"Out of memory on {self._pipe.device} with the questions {ids}: {error} If others use that device, free "
                "it and run the same command again to resume. Otherwise give a smaller --batch-size (it was "
                f"{self.batch_size}) or --dtype bfloat16, with another --output-dir."
            ) from error
        if isinstance(error, DEVICE_ERRORS):
            raise RunStopped(
                f"{self._pipe.device} failed on the questions {ids} and cannot be used again in this process: {error} "
                "Run the same command again to resume."
            ) from error


def _load(model: str, **options: Any) -> CountingPipeline:
    try:
        return load_pipeline(model, pipeline_class=CountingPipeline, **options)
    # A tokenizer but no processor; no such device, or too little memory on it; a device that this torch build lacks.
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"{model} cannot be loaded as a model with audio input: {error}") from error


def own_device() -> str | None:
    """The accelerator for this process's `LOCAL_RANK`, which can be shared; `None` without launcher or accelerator."""
    number = os.environ.get("LOCAL_RANK")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if number is None or accelerator is None:
        return None
    return f"{accelerator.type}:{int(number) % torch.accelerator.device_count()}"


def _decode(clip: Clip) -> np.ndarray | OSError | ValueError:
    """A clip as mono float32 at 16 kHz, shape `(samples,)`, or why it cannot be read."""
    try:
        return load_audio(clip.read(), name=clip.name)
    except (OSError, ValueError) as error:
        return error


def model_digest(folder: Path) -> str:
    """SHA-256 (hex) of the lines that `sha256sum` prints for the files that determine a model's answers."""
    files = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in MODEL_FILES and path.name != "trainer_state.json" and path.is_file()
    )
    lines = "".join(f"{file_sha256(path)}  {path.name}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()
