"""The client program in a process of its own, as a user starts it; with modules of the test in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
from server_process import ROOT


def start_client(
    *flags: str, modules: Path | None = None, environ: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Return ``client.py`` with these flags, in a session of its own: a signal to it reaches nobody else."""
    paths = [str(modules)] if modules else []
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    return subprocess.Popen(
        [sys.executable, str(ROOT / "client.py"), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environ or {})},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0, timeout_s: float = 80) -> tuple[str, str]:
    """Return what it wrote to standard output and error, once it ended with this code."""
    stdout, stderr = process.communicate(timeout=timeout_s)
    assert process.returncode == code, stderr
    return stdout, stderr


def kill_with_workers(process: subprocess.Popen[str]) -> None:
    """End it as kill -9 does, and wait until the processes that it started are gone too."""
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(workers, timeout=30)
