"""Serving a checkpoint behind an OpenAI-compatible API."""

# The instruction with which both engines transcribe a clip, and transcripts are trained on.
TRANSCRIBE = "Transcribe the speech."
