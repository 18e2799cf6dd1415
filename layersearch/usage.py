"""What a trial uses of its device: its name and the most memory that was taken."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from layersearch.allocator import give_back_freed_memory


def device_name(device: str) -> str:
    """Return a device as records name it."""
    return device if device == "cpu" else f"{device}: {torch.cuda.get_device_name(device)}"


def reset_peak_memory(device: str) -> None:
    """Begin to count anew, as far as the system allows it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()  # else an earlier trial's freed pages would count as this one's
    with contextlib.suppress(OSError):  # elsewhere the mark is that of the process's life, see peak_memory
        Path("/proc/self/clear_refs").write_text("5")  # Linux: restart the high-water mark of resident memory


def peak_memory(device: str) -> int:
    """Return the largest resident bytes since the trial began (Linux), or since the process began (elsewhere)."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
