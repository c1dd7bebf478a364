"""What every program that generates has to know of devices."""

import torch


# Errors after which a CUDA device answers nothing more (torch 2.8 and later).
DEVICE_ERRORS: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
# Below it the likeliest token is taken: dividing by less overflows.
LOWEST_TEMPERATURE = 1e-5


__all__ = ["DEVICE_ERRORS", "LOWEST_TEMPERATURE"]
