"""Builds a Falcon3-Audio checkpoint from a pretrained Whisper and a pretrained causal language model.

Only the projector is new; the folder holds model, processor and code, and loads with the Auto classes.

    falcon3-audio compose --audio openai/whisper-medium.en --text tiiuae/Falcon3-3B-Instruct OUT
    falcon3-audio compose --preset falcon3-audio-3b OUT
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import logging

from .backbones_falcon3_audio import config_of
from .configuration_falcon3_audio import PRESETS, get_preset
from .modeling_falcon3_audio import Falcon3AudioForConditionalGeneration
from .processing import Falcon3AudioProcessor
from .user_errors import user_errors
from .whole_files import check_new_folder, whole_folder


logger = logging.get_logger(__name__)


@contextmanager
def _template_errors() -> Iterator[None]:
    """Raises a `ValueError` for a chat template that fails."""
    try:
        yield
    except TemplateError as error:
        raise ValueError(
            f"The chat template cannot render a question and its answer ({error}). Choose another text backbone, or set "
            "another `chat_template` in its tokenizer."
        ) from error


@_template_errors()
def compose(
    audio: str,
    text: str,
    output: str | Path,
    audio_token: str | None = None,
    pooling_window: int = 2,
    projector_type: str = "mlp",
    use_weighted_layer_sum: bool = False,
    pad_to_window: bool = False,
    trailing_silence: float = 0.0,
    read_trailing_silence: bool = True,
    dtype: str = "auto",
) -> Path:
    """
    Saves the composed checkpoint in `output` and returns its path. Arguments are those of `from_backbones` of model
    and processor.

    The folder appears complete or not at all: files are written to a folder next to it, which is then renamed. Raises
    a `FileExistsError` if `output` already contains anything, the errors of `from_backbones`, and a `ValueError` if
    the chat template cannot render a question about audio and its answer.
    """
    output = Path(output)
    check_new_folder(output)
    shared: dict[str, Any] = {
        "pooling_window": pooling_window,
        "pad_to_window": pad_to_window,
        "trailing_silence": trailing_silence,
        "read_trailing_silence": read_trailing_silence,
    }
    config_of(audio)  # first: it says best what is wrong with a folder
    vocab_size = config_of(text).get_text_config().vocab_size
    processor = Falcon3AudioProcessor.from_backbones(audio, text, audio_token, vocab_size, **shared)
    _check_audio_is_asked_about(processor)
    model = Falcon3AudioForConditionalGeneration.from_backbones(
        audio,
        text,
        audio_token_id=processor.audio_token_id,
        projector_type=projector_type,
        use_weighted_layer_sum=use_weighted_layer_sum,
        dtype=dtype,
        **shared,
    )
    frames = 2 * model.model.audio_tower.config.max_source_positions
    if processor.feature_extractor.nb_max_frames != frames:
        raise ValueError(
            f"{audio}: the feature extractor creates windows of {processor.feature_extractor.nb_max_frames} frames, "
            f"but the encoder takes {frames}. Use the feature extractor that was saved with this Whisper."
        )
    _end_answers(model, processor)
    try:
        check_answers_can_be_learned(processor)
    except ValueError as error:
        logger.warning(f"This model can be asked and trained with GRPO, but not on given answers: {error}")
    with whole_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    _report(model, processor, output)
    return output


def _check_audio_is_asked_about(processor: Falcon3AudioProcessor):
    """Raises a `ValueError` unless the placeholder is in a prompt exactly once for a clip."""
    content = [{"type": "audio", "path": "clip.wav"}, {"type": "text", "text": "A question?"}]
    answer = {"role": "assistant", "content": "An answer."}
    prompt = processor.apply_chat_template([{"role": "user", "content": content}, answer])
    found = prompt.count(processor.audio_token)
    if found == 0:
        raise ValueError(
            "The chat template leaves out what the user says if that is a string, not a list, or rewrites it, so prompts would "
            "hold no audio. Choose another text backbone, or set another `chat_template` in its tokenizer."
        )
    if found > 1:
        raise ValueError(
            f"`audio_token` must be a token that no prompt contains, got {processor.audio_token!r}, which the chat "
            "template writes. Choose another one."
        )


def _end_answers(model: Falcon3AudioForConditionalGeneration, processor: Falcon3AudioProcessor):
    """
    Makes generation stop at the tokens that end an answer in training: the one that the chat template puts after an
    answer, which not all language models declare (Gemma's turns end with another token than its texts), and the
    tokenizer's own.
    """
    answer = "An answer."
    chat = [{"role": "user", "content": "A question?"}, {"role": "assistant", "content": answer}]
    _, found, rest = processor.apply_chat_template(chat).rpartition(answer)
    special = {number for number, token in processor.tokenizer.added_tokens_decoder.items() if token.special}
    ids = processor.tokenizer(rest, add_special_tokens=False)["input_ids"] if found else []
    behind = [number for number in ids if number in special][:1]
    if not behind:
        logger.warning(
            "The chat template puts no end token after an answer, so training does not teach where an answer ends."
        )
    given = model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    ends = list(dict.fromkeys([*ends, processor.tokenizer.eos_token_id, *behind]))
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


@_template_errors()
def check_answers_can_be_learned(processor: Falcon3AudioProcessor):
    """Raises a `ValueError` if training could not tell the answer from the rest of a rendered chat."""
    if not processor.tokenizer.is_fast:
        raise ValueError(
            f"a {type(processor.tokenizer).__name__} does not tell which tokens are an answer's; training needs a fast "
            "tokenizer. Choose another text backbone, or convert its tokenizer."
        )
    question = [{"role": "user", "content": "A question?"}]
    answered = [*question, {"role": "assistant", "content": "An answer."}]
    try:
        inputs = processor.apply_chat_template(
            answered, tokenize=True, return_dict=True, processor_kwargs={"return_labels": True}
        )
    except ValueError as error:
        prompt = processor.apply_chat_template(question, add_generation_prompt=True)
        raise ValueError(
            f"the chat template asks for an answer with {prompt[-20:]!r}, but renders answers without that, as "
            "templates of reasoning models do, so an answer to learn cannot be found. Choose another text backbone, "
            "or set another `chat_template` in its tokenizer."
        ) from error
    learned = processor.decode(inputs["labels"][inputs["labels"] >= 0], skip_special_tokens=True)
    if learned.strip() != "An answer.":
        raise ValueError(
            f"the chat template puts more into an answer than its text: {learned!r} would be learned and said for 'An "
            "answer.' (as with gpt-oss, whose answers begin with the name of a channel). Choose another text backbone, or set "
            "another `chat_template` in its tokenizer."
        )


def _report(model: Falcon3AudioForConditionalGeneration, processor: Falcon3AudioProcessor, output: Path):
    parts = {
        "audio_tower": model.model.audio_tower,
        "multi_modal_projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
    }
    for name, module in parts.items():
        print(f"{name:<22} {sum(p.numel() for p in module.parameters()) / 1e6:10.1f} M parameters")
    rate = 50 / model.config.pooling_window
    print(f"{'dtype':<22} {model.dtype}")
    place = "" if model.config.audio_token_is_embedded else ", beyond the vocabulary"
    token = f"{processor.audio_token} (id {processor.audio_token_id}{place})"
    print(f"{'audio token':<22} {token}, {rate:g} per second of audio")
    print(f"{'saved in':<22} {output}")


def _as_typed(error: Exception, options: argparse.Namespace) -> str:
    """An error's message, with options spelled as on the command line."""
    message = str(error)
    for name in vars(options):
        message = message.replace(f"`{name}`", "--" + name.replace("_", "-"))
    return message


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="falcon3-audio compose", description=__doc__.split("\n\n")[0])
    parser.add_argument("output", metavar="OUT", help="folder to create")
    parser.add_argument("--preset", choices=PRESETS, help="backbones of one of the published sizes")
    parser.add_argument("--audio", help="Whisper: Hub id or local folder")
    parser.add_argument("--text", help="instruction-tuned causal language model: Hub id or local folder")
    parser.add_argument("--audio-token", help="placeholder token (default: an unused or a new one)")
    parser.add_argument(
        "--pooling-window", type=int, default=2, help="encoder positions per audio token (1: no pooling)"
    )
    parser.add_argument("--projector-type", choices=("mlp", "linear"), default="mlp")
    parser.add_argument(
        "--use-weighted-layer-sum", action="store_true", help="use a learned mean over the encoder's layers"
    )
    parser.add_argument("--pad-to-window", action="store_true", help="always encode 30 s, as stock Whisper does")
    parser.add_argument(
        "--trailing-silence", type=float, default=0.0, help="seconds of silence encoded after each clip"
    )
    parser.add_argument(
        "--read-trailing-silence",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the language model reads that silence too, or only the clip",
    )
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto (the language model's)")
    options = parser.parse_args(arguments)
    preset = get_preset(options.preset) if options.preset else {}
    audio, text = options.audio or preset.get("audio"), options.text or preset.get("text")
    if not (audio and text):
        parser.error("give --audio and --text, or --preset")
    others = {name: value for name, value in vars(options).items() if name not in ("preset", "audio", "text")}
    with user_errors(parser.prog, explain=lambda error: _as_typed(error, options)) as end:
        compose(audio, text, **others)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
