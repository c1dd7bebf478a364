"""Peak memory of this process."""

import sys

import torch


def peak_memory() -> int:
    """Peak bytes allocated on this process's GPU or, without one, the peak memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil  # from the extra `train`; other systems use the standard library

        return psutil.Process().memory_info().peak_wset
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_gib() -> float:
    """`peak_memory` in GiB, rounded to three decimals."""
    return round(peak_memory() / 2**30, 3)
