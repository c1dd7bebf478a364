"""Facts about devices that every program that generates needs."""

import torch


# Errors after which a CUDA device no longer works (torch 2.8 and later).
DEVICE_ERRORS: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
# Below this the most likely token is taken: dividing by less overflows.
LOWEST_TEMPERATURE = 1e-5


__all__ = ["DEVICE_ERRORS", "LOWEST_TEMPERATURE"]
