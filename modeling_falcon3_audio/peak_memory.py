"""Peak memory of this process."""

import sys
from pathlib import Path

import torch


STATUS = Path("/proc/self/status")  # only on Linux


def peak_memory() -> int:
    """Peak bytes allocated on this process's GPU or, without one, the peak memory of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil  # from the extra `train`; other systems use the standard library

        return psutil.Process().memory_info().peak_wset
    if (peak := _linux_peak()) is not None:
        return peak
    import resource  # not available on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _linux_peak() -> int | None:
    """`VmHWM`. `getrusage` would report at least the memory of the process that started this one: it survives exec."""
    if not STATUS.exists():
        return None
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def peak_memory_gib() -> float:
    """`peak_memory` in GiB, rounded to three decimals."""
    return round(peak_memory() / 2**30, 3)
