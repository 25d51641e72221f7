"""What the C library does with memory that was freed: kept for the next request, not given back each time."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of glibc's malloc.h. By default it gives the end of the heap back where twice the largest block freed so far
# is unused, about two observations: then every request of 2.8 MB costs some 1,300 page faults, 4 ms.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# What a request of seven 640x480 cameras needs, twice over; each thread that allocates may keep as much.
_KEEP = 32 << 20


def keep_freed_memory() -> bool:
    """Let this process keep up to 32 MB of what each heap has freed; return whether that could be set.

    For programs, which own the process. Nothing happens where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP) and mallopt(_M_TRIM_THRESHOLD, _KEEP))
