"""Model cards: one template, facts per checkpoint, results with their provenance."""
