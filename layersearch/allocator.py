"""Memory that a process frees and soon wants again."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters, malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Tell the C allocator to keep freed memory rather than give it back to the system after every step.

    Tensors of megabytes are otherwise unmapped when freed and mapped anew, page by page, at the next step; on virtual
    machines those page faults can cost more than the arithmetic. Peak memory is unchanged.

    Returns:
        False where the C library has no such setting (anything but glibc); nothing changes there.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(M_TRIM_THRESHOLD, LARGEST)) and bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST))


def give_back_freed_memory() -> bool:
    """Hand the pages of freed memory back to the system once, so that resident memory is what is in use.

    Returns:
        False where the C library has no such call (anything but glibc); nothing changes there.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim = getattr(library, "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True
