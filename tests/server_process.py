"""A server program in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]

PATIENCE_S = 20.0


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return ours without what would change a server's options, with ``extra``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROBOWIRE_")}
    return {**kept, "COLUMNS": "100", **(extra or {})}


def run_server(*flags: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Return how ``server.py`` with these flags ended, which it must do by itself."""
    command = [sys.executable, "server.py", *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment(environ), capture_output=True, text=True, timeout=PATIENCE_S
    )


def shown_python() -> str:
    """Return how a program started in the checkout names our Python to a person."""
    if shutil.which("python") == sys.executable:
        return "python"
    return min(sys.executable, os.path.relpath(sys.executable, ROOT), key=len)


class ServerProcess:
    """``server.py`` on a free port, ``policy --policy random`` if not told; killed if it still runs.

    Attributes:
        banner: The lines it printed up to the last that it prints when it listens.
        address: Where to reach it.
    """

    def __init__(
        self,
        log: Path,
        *flags: str,
        command: tuple[str, ...] = ("policy", "--policy", "random"),
        environ: Mapping[str, str] | None = None,
        max_files: int | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self._log = log
        limit = "" if max_files is None else f"ulimit -n {max_files};"
        program = [sys.executable, str(ROOT / "server.py"), *command, "--port", "0", *flags]
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                ["bash", "-c", f'{limit} exec "$@"', "bash", *program],
                cwd=cwd,
                env=environment(environ),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        self.banner: list[str] = []
        for line in self.process.stdout:
            self.banner.append(line.rstrip("\n"))
            if line.startswith("try it: "):
                break
        listening = re.search(r"^listening on \S+:(\d+)", "\n".join(self.banner), re.MULTILINE)
        assert listening, self.log
        self.address = ("127.0.0.1", int(listening[1]))

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(PATIENCE_S)

    def wait_for_log(self, text: str) -> None:
        """Return when it has written ``text`` to standard error."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.log:
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log}"
            time.sleep(0.01)

    def peak_memory(self) -> int:
        """Return the most resident memory it ever had, in bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024
