"""Serving a checkpoint behind an OpenAI-compatible API."""
