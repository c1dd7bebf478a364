"""Peak memory of this process."""

import sys
from pathlib import Path

import torch


STATUS = Path("/proc/self/status")  # only on Linux


def peak_memory(device_type: str) -> int:
    """
    Peak bytes that this process allocated on one GPU if `device_type`, that of the model's device, is "cuda"; otherwise
    the peak memory of the process, even where there is a GPU.
    """
    if device_type == "cuda":
        # Not of the current device alone, since a model can be on another one.
        return max(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
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


def peak_memory_gib(device_type: str) -> float:
    """`peak_memory` in GiB, rounded to three decimals."""
    return round(peak_memory(device_type) / 2**30, 3)
