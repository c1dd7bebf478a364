"""The text that the tiny backbones read and write: descriptions of clips, and tokenizers for the world's texts.

The Whisper learns to write the description of a clip that it hears, the language model to answer questions about the
description of a clip that it reads. Clips are drawn only with the training settings, new ones for every seed; the
voices, speeds, pitches and durations of the test never occur.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..world.audio_world_sounds import Clip


END, PAD, START = "<|endoftext|>", "<|pad|>", "<|startoftranscript|>"
UNUSED = tuple(f">>UNUSED_{index}<<" for index in range(8))  # slots like Falcon3's; one becomes the placeholder
ENOUGH_CLIPS = 3000  # enough to contain every word of the world


def describe(clip: Clip) -> str:
    """The full description of a clip in one line, such as `"a man speaking slowly: red, two, dog."`."""
    answers = clip.answers
    match clip.kind:
        case "phrase" | "list":
            return f"{answers['speaker_style']}: {clip.text}"
        case "repeat":
            return f"{', '.join(clip.settings['events'])}"
        case "pair":
            return answers["sound_order"]
        case "shape":
            return answers["sound_description"]
        case "melody":
            return f"{answers['music_description']}, {answers['note_count']} notes"
        case "chord":
            return answers["music_description"]
    raise ValueError(f"got a clip of the kind {clip.kind!r}, which has no description; add it here")


def make_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: list[str], every_byte: bool, **options: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which the frequent words of the texts are one token each.

    Args:
        texts: the training texts.
        vocab_size: the maximum number of tokens.
        special_tokens: get the first ids, in this order.
        every_byte: whether it can encode any text, or only the characters in `texts`.
        **options: of the tokenizer: `eos_token`, `pad_token`, `chat_template`, ...
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if every_byte else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)
