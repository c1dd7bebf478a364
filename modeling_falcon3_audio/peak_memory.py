"""The most memory that this process has held."""

import sys

import torch


def peak_memory() -> int:
    """Bytes: the most that was allocated on this process's GPU, or the most memory that the process held on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil  # of the extra `train`; the others have it from the standard library

        return psutil.Process().memory_info().peak_wset
    import resource  # which Windows has not

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_gib() -> float:
    """`peak_memory` in GiB, to three places."""
    return round(peak_memory() / 2**30, 3)
