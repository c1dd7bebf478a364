"""A chat about clips, independent of the page: what can be asked, the prompt, the streamed answer.

Every user error is a `ConversationError`, whose text is meant for the user. A clip's length is read from its header
before it is decoded, since a small file can hold hours. The prompt is built outside `Assistant.stream`, the only part
that needs the accelerator. The state of an answer is local to one call, so any number can run at the same time.

    assistant = Assistant.load("runs/demo/model")
    prompt = assistant.prepare([Turn("What sound is heard?", ("dog.wav",))])
    print("".join(assistant.stream(prompt.inputs)))
"""

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from transformers import (
    AutoProcessor,
    BatchFeature,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from falcon3_audio.adapters import load_model
from falcon3_audio.devices import LOWEST_TEMPERATURE
from falcon3_audio.processing import SAMPLING_RATE, Falcon3AudioProcessor, load_audio
from falcon3_audio.processing.announced_length import announced_length
from falcon3_audio.processing.audio_files_falcon3_audio import UnknownFormatError
from falcon3_audio.saved_json import readable_json
from falcon3_audio.text_sizes import context_length


logger = logging.getLogger(__name__)


class ConversationError(ValueError):
    """A request that cannot be answered; the text tells the user why and what to do."""


@dataclass(frozen=True)
class Limits:
    """The limits for one user."""

    seconds: float = 120.0  # of a clip
    megabytes: float = 25.0  # of a file
    clips: int = 4  # in a conversation
    characters: int = 2_000  # of a question, and of the system prompt
    new_tokens: int = 512  # of an answer

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"The limit on {name.replace('_', ' ')} must be a number over 0, got {value}.")


class Clip(NamedTuple):
    """A decoded clip: `samples` are mono float32 at 16 kHz, `(samples,)`."""

    name: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLING_RATE


class Turn(NamedTuple):
    """A question with the files that came with it, and its answer; the last turn has none yet."""

    question: str
    files: tuple[str, ...] = ()
    answer: str | None = None


class Prompt(NamedTuple):
    """A conversation as model inputs, and the clips that were attached last."""

    inputs: BatchFeature
    clips: tuple[Clip, ...]


def read_clip(path: str, limits: Limits) -> Clip:
    """
    Decodes an uploaded file.

    Raises:
        `ConversationError`: for a file that is gone, too large, too long, damaged or not audio.
    """
    name = Path(path).name
    if not Path(path).is_file():
        raise ConversationError(f"{name} is no longer on the server. Please attach it again.")
    megabytes = Path(path).stat().st_size / 1e6
    if megabytes > limits.megabytes:
        raise ConversationError(f"{name} has {megabytes:.1f} MB; the limit is {limits.megabytes:g} MB.")
    announced = announced_length(path)
    if announced and announced[0]:
        _check_length(name, announced[0] / announced[1], limits)
    try:
        clip = Clip(name, load_audio(path, name="The clip", max_seconds=limits.seconds))
    except ValueError as error:
        if isinstance(error.__cause__, UnknownFormatError):
            logger.warning("%s was refused: %s", name, error)  # what to install does not concern visitors
            raise ConversationError(
                f"{name} cannot be read here: it is damaged, not audio, or in a format that this server does not "
                "support. Please attach it as wav, mp3, flac or ogg."
            ) from error
        raise ConversationError(str(error).replace(path, name)) from error
    _check_length(name, clip.seconds, limits)
    return clip


def _check_length(name: str, seconds: float, limits: Limits):
    if seconds > limits.seconds:
        raise ConversationError(f"{name} is {seconds:.1f} s long; the limit is {limits.seconds:g} s. Please cut it.")


class StopWhen(StoppingCriteria):
    """Stops a generation after its next token, once `event` is set."""

    def __init__(self, event: threading.Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class Assistant:
    """A loaded checkpoint that answers."""

    def __init__(self, model: Any, processor: Falcon3AudioProcessor, limits: Limits):
        self.model, self.processor, self.limits = model, processor, limits

    @classmethod
    def load(cls, name: str, limits: Limits = Limits(), device: str | None = None) -> "Assistant":
        """
        Loads a checkpoint by folder or Hub id, in the dtype that it was saved in.

        Args:
            device (`str`, *optional*): A torch device; by default cuda if there is one, else cpu.

        Raises:
            `OSError`, `ValueError`: if there is no such checkpoint or device, or the checkpoint is another model or
                takes shorter clips than the limits allow.
        """
        place = _device(device)
        with readable_json(name):
            processor = AutoProcessor.from_pretrained(name)
        if not isinstance(processor, Falcon3AudioProcessor):
            raise ValueError(
                f"{name} is not a Falcon3-Audio checkpoint: its processor is a {type(processor).__name__}."
            )
        if limits.seconds > processor.max_audio_seconds:
            raise ValueError(
                f"The checkpoint hears at most {processor.max_audio_seconds:g} s of a clip (`max_audio_seconds` of its "
                f"processor), so the limit cannot be {limits.seconds:g} s; give a lower one (--max-seconds)."
            )
        with readable_json(name):
            model = load_model(name, dtype="auto").to(place).eval()
        return cls(model, processor, limits)

    def prepare(self, turns: Sequence[Turn], system_prompt: str = "", max_new_tokens: int | None = None) -> Prompt:
        """
        The prompt of a conversation whose last turn has no answer yet.

        Raises:
            `ConversationError`: for an empty question, no clip or too many of them, clips that cannot be used, text that
                is too long or that the processor refuses, and a conversation that leaves no room for `max_new_tokens`
                (by default the limit).
        """
        self._check(turns, system_prompt)
        clips = [tuple(read_clip(path, self.limits) for path in turn.files) for turn in turns]
        messages: list[dict[str, Any]] = (
            [{"role": "system", "content": system_prompt}] if system_prompt.strip() else []
        )
        for turn, heard in zip(turns, clips):
            audio = [{"type": "audio", "audio": clip.samples, "sampling_rate": SAMPLING_RATE} for clip in heard]
            messages.append({"role": "user", "content": [*audio, {"type": "text", "text": turn.question}]})
            if turn.answer is not None:
                messages.append({"role": "assistant", "content": turn.answer})
        try:
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True
            )
        except (ValueError, jinja2.TemplateError) as error:
            raise ConversationError(f"This cannot be turned into a prompt: {error}") from error
        self._check_room(inputs["input_ids"].shape[1], max_new_tokens or self.limits.new_tokens)
        return Prompt(inputs, [heard for heard in clips if heard][-1])

    def _check(self, turns: Sequence[Turn], system_prompt: str):
        question = turns[-1].question
        if not question.strip():
            raise ConversationError("The question is empty. Please write what you want to know about the clip.")
        files = sum(len(turn.files) for turn in turns)
        if files == 0:
            raise ConversationError("There is no clip yet. Please attach a sound or record one, then ask about it.")
        if files > self.limits.clips:
            raise ConversationError(
                f"This conversation has {files} clips; the limit is {self.limits.clips}. Please start a new one."
            )
        for what, text in (("question", question), ("system prompt", system_prompt)):
            if len(text) > self.limits.characters:
                raise ConversationError(
                    f"The {what} has {len(text)} characters; the limit is {self.limits.characters}. Please shorten it."
                )

    def _check_room(self, tokens: int, new_tokens: int):
        room = context_length(self.model.config.get_text_config())
        if room is not None and tokens + new_tokens > room:
            raise ConversationError(
                f"This conversation takes {tokens} tokens, and the answer up to {new_tokens}; the model holds {room}. "
                "Please start a new conversation, use shorter clips or allow fewer tokens."
            )

    def stream(
        self, inputs: BatchFeature, max_new_tokens: int | None = None, temperature: float = 0.0
    ) -> Iterator[str]:
        """
        The answer, piece by piece as it is generated; closing the iterator stops the generation.

        Args:
            inputs (`BatchFeature`): The inputs of the prompt from `prepare`.
            max_new_tokens (`int`, *optional*): By default the limit.
            temperature (`float`): Below 1e-5, such as 0, decoding is greedy.

        Raises any error of the model, after the pieces that came before it.
        """
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stopped = threading.Event()
        draws = temperature >= LOWEST_TEMPERATURE
        sampling = {"do_sample": True, "temperature": temperature} if draws else {"do_sample": False}

        def generate():
            try:
                self.model.generate(
                    **inputs.to(self.model.device, dtype=self.model.dtype),
                    **sampling,
                    max_new_tokens=max_new_tokens or self.limits.new_tokens,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([StopWhen(stopped)]),
                )
            finally:
                streamer.end()  # otherwise the reader would wait forever after an error

        with ThreadPoolExecutor(1, "generate") as executor:
            generation = executor.submit(generate)
            try:
                yield from (piece for piece in streamer if piece)
            finally:
                stopped.set()
            generation.result()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"There is no device {name!r}: {str(error).splitlines()[0]}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"The device {name!r} was requested, but torch sees no GPU here; try --device cpu.")
    return device
