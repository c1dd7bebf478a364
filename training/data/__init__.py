"""Reads training data: files and folders in any known format become the examples of a run. Also: prepared shards."""

from .training_sets import load_training_data


__all__ = ["load_training_data"]
