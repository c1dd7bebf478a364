"""Serving a checkpoint behind an OpenAI-compatible API."""

# The instruction with which both engines transcribe a clip.
TRANSCRIBE = "Transcribe the speech."
