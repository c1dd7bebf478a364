"""Model cards: one template, facts per checkpoint, results with their provenance."""

from .card import render_card


__all__ = ["render_card"]
