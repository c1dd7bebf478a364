"""Reading: from a file or a folder of any known form to the examples of a run, and the shards that prepared sets lie in."""

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .training_sets import load_training_data


def __getattr__(name: str) -> Any:
    """`load_training_data`, late: its options load TRL, which whoever makes a set does not need."""
    if name == "load_training_data":
        from .training_sets import load_training_data

        return load_training_data
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["load_training_data"]
