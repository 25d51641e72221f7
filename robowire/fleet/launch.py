"""Become a service: ``python launch.py PARENT CORES COMMAND...`` replaces itself by the command.

A separate program, because its work must be done in the new process and before its first import: pinning
applies to threads that start later, and no service may start whose fleet has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> None:
    """Run the command in this process, which Linux is asked to kill with its parent.

    Args:
        argv: Process id of the parent; core numbers separated by commas, or an empty text; the command.
    """
    parent, cores, *command = argv
    if sys.platform == "linux":
        # We end with the parent's *thread*, that of the fleet's supervisor. The setting survives the exec.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit(f"process {parent} ended before its service began")
        if cores:
            os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
