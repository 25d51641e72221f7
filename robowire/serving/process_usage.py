"""Memory, processor time and open files of this process, under the names that Prometheus' clients share."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path

__all__ = ["process_usage"]

_PROC = Path("/proc/self")


def process_usage() -> dict[str, float]:
    """Return what Linux says of this process; only processor time and threads on other systems.

    It reads two files and a folder of /proc, about 0.1 ms.
    """
    used = os.times()
    usage: dict[str, float] = {
        "cpu_seconds_total": round(used.user + used.system, 2),
        "threads": threading.active_count(),
    }
    try:
        # The name, in parentheses, may hold spaces. After it field n of proc(5) is fields[n - 3].
        stat = (_PROC / "stat").read_bytes()
        fields = stat[stat.rindex(b")") + 2 :].split()
        usage["virtual_memory_bytes"] = int(fields[20])
        usage["resident_memory_bytes"] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        since_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        usage["start_time_seconds"] = round(
            time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot_s, 2
        )
        usage["max_fds"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        usage["open_fds"] = len(os.listdir(_PROC / "fd")) - 1  # without the one that lists them
    except (OSError, AttributeError):  # no Linux
        pass
    return usage
