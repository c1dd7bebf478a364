"""Converts audio and text to model inputs, and tokens back to text."""

from .audio_inputs_falcon3_audio import SAMPLING_RATE, TOKENS_PER_SECOND, UnreadableAudioError, load_audio
from .processing_falcon3_audio import AudioTooLongError, Falcon3AudioProcessor
from .tokenizer_falcon3_audio import choose_audio_token, load_tokenizer, make_chat_template


# The instruction for a transcript, in training and in serving.
TRANSCRIBE = "Transcribe the speech."

__all__ = [
    "SAMPLING_RATE",
    "TOKENS_PER_SECOND",
    "TRANSCRIBE",
    "AudioTooLongError",
    "Falcon3AudioProcessor",
    "UnreadableAudioError",
    "choose_audio_token",
    "load_audio",
    "load_tokenizer",
    "make_chat_template",
]
