"""What the C library does with memory that was freed: kept for the next request, not given back each time."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Any

__all__ = ["keep_freed_memory", "settle_memory"]

# Of glibc's malloc.h. By default it gives the end of the heap back where twice the largest block freed so far
# is unused, about two observations: then every request of 2.8 MB costs some 1,300 page faults, 4 ms.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

# What a request of seven 640x480 cameras needs, twice over; each thread that allocates may keep as much.
_KEEP = 32 << 20


def keep_freed_memory() -> bool:
    """Let this process keep up to 32 MB of what each heap has freed; return whether that could be set.

    For programs, which own the process. Nothing happens where the C library is not glibc.
    """
    mallopt = _function("mallopt")
    return mallopt is not None and bool(
        mallopt(_M_MMAP_THRESHOLD, _KEEP) and mallopt(_M_TRIM_THRESHOLD, _KEEP)
    )


def settle_memory() -> None:
    """Give back what loading needed and serving does not, and let the garbage collector skip what stays.

    With torch there are 170,000 objects, and to look at all of them holds a request up for 60 ms.
    """
    gc.collect()
    gc.freeze()
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any | None:
    """Return a function of glibc; ``None`` where the C library is another one."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError):  # musl
        return None
