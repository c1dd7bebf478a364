"""Reading: from a file or a folder of any known form to the examples of a run, and the shards that prepared sets lie in."""

from .training_sets import load_training_data


__all__ = ["load_training_data"]
