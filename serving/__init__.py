"""Serving a checkpoint behind an OpenAI-compatible API."""

# What both engines ask about a clip that is to be transcribed.
TRANSCRIBE = "Transcribe the speech."
