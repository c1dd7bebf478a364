"""Model cards: one template, facts per checkpoint, results with their provenance."""

from .card import card_for_run, render_card


__all__ = ["card_for_run", "render_card"]
