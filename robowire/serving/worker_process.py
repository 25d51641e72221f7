"""One process that runs a module of :mod:`robowire.worker`: start, output, memory and end. Knows no protocol.

It is a new process, or a fork of one, but no fork of the server: another Python may run it, and it has no
threads, GL contexts or locks of the server.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from robowire.errors import BackendError
from robowire.serving.process_memory import memory_of_group
from robowire.transport.connection import Connection
from robowire.wire.framing import MAX_MAX_PAYLOAD
from robowire.wire.text_safety import printable
from robowire.worker.shared_memory import SharedMemory

__all__ = ["WorkerProcess", "how_it_ended", "worker_environment"]

logger = logging.getLogger(__name__)

# A worker whose socket has ended closes what it runs and exits: a GL context takes some hundred milliseconds.
# One that does not is killed.
_GRACE_S = 2.0

# Enough of the last output of a process to recognise why it ended; all of it is in the log.
_LAST_LINES = 3
_MAX_QUOTE = 150
_MAX_LINE = 8192  # a longer one is logged in pieces: a simulator may write without end
# Clients send it to the server; simulators and policies, which may be anybody's code, do not need it.
_SECRETS = ("ROBOWIRE_TOKEN", "ROBOWIRE_AUTH_TOKEN", "ROBOWIRE_SIM_TOKEN", "ROBOWIRE_SIM_AUTH_TOKEN")
# Lines of tracebacks and of faulthandler that do not hold the reason.
_STACK = (" ", "Traceback", "Current thread", "Thread", "Extension modules")


class WorkerProcess:
    """A started process with a socket, regions of shared memory, and a thread that logs its output.

    The thread that starts it must outlive it: Linux ends a process with the thread that started it, so that a
    killed server leaves no workers behind.

    Args:
        module: Module to run; its ``main`` gets ``start`` with ``socket`` and ``memory``, which are inherited
            file descriptors, as one JSON object.
        start: What else it is told. It is in the command line, which every user of the machine can read.
        name: What it runs, for messages and the log.
        label: Whose it is, for the log: ``client #3``.
        python: Interpreter to run it with.
        regions: Number of regions of shared memory.
        region_size: Bytes that each has for ever; 0 for regions that are empty at first and grow.
        fork: Starts the process instead, with a socket and shared memory, and returns it as a ``Popen``; the
            first three arguments are those of the process that it is forked from.

    Attributes:
        pid: Number of the process, and of its group.
        label: As given; may be changed.
        connection: To the process.
        regions: The shared memory.

    Raises:
        BackendError: There is no such interpreter, or the system can't start another process.
    """

    def __init__(
        self,
        module: str,
        start: Mapping[str, Any],
        *,
        name: str,
        label: str,
        python: str,
        regions: int,
        region_size: int = 0,
        fork: Callable[[Sequence[int]], Any] | None = None,
    ) -> None:
        self.label = label
        self._name = name
        self._output: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            with ExitStack() as undo:  # frees what was made, if the rest fails
                self._make_regions(regions, region_size, undo)
                self._start(module, start, python, fork, undo)
                undo.pop_all()
        except (OSError, RuntimeError) as exc:  # out of files, processes or threads
            reason = getattr(exc, "strerror", None) or exc
            raise BackendError(f"cannot start {name!r} with {python}: {reason}") from exc

    def _make_regions(self, regions: int, size: int, undo: ExitStack) -> None:
        self.regions: list[SharedMemory] = []
        for _ in range(regions):
            region = SharedMemory.create(size=size)
            undo.callback(region.close)
            self.regions.append(region)

    def _start(
        self,
        module: str,
        start: Mapping[str, Any],
        python: str,
        fork: Callable[[Sequence[int]], Any] | None,
        undo: ExitStack,
    ) -> None:
        ours, theirs = socket.socketpair()
        undo.callback(ours.close)
        descriptors = [region.fd for region in self.regions]
        # Not subprocess.DEVNULL: Python 3.11.2 and older leave it open where a pipe cannot be made.
        with theirs, open(os.devnull, "rb") as nothing:
            told = json.dumps({**start, "socket": theirs.fileno(), "memory": descriptors})
            self._popen: Any = (
                subprocess.Popen(
                    # Unbuffered, so that the last output arrives; faulthandler, so that a crash has some.
                    [python, "-u", "-X", "faulthandler", "-m", module, told],
                    stdin=nothing,  # LIBERO's first import asks a question there
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), *descriptors),
                    env=worker_environment(),
                    start_new_session=True,  # Ctrl-C is for the server; children are killed with it
                )
                if fork is None
                else fork([theirs.fileno(), *descriptors])
            )
        undo.push(self._popen)  # waits for it
        undo.callback(self._popen.kill)
        self.connection = Connection(ours, max_payload=MAX_MAX_PAYLOAD)
        self.pid = self._popen.pid
        assert self._popen.stdout is not None
        self._reader = threading.Thread(
            target=self._read_output, args=(self._popen.stdout,), name=f"output of {self.pid}", daemon=True
        )
        self._reader.start()

    def forget_output(self) -> None:
        """Let :attr:`last_output` begin with the next line."""
        self._output.clear()

    @property
    def last_output(self) -> str:
        """Its last lines, to be appended to a message; empty where it printed none."""
        return f"; its last output: {' | '.join(self._output)}" if self._output else ""

    def wait_for_end(self, timeout_s: float) -> bool:
        """Return, at the latest after ``timeout_s``, whether it has ended. Any thread may call it."""
        self._reader.join(timeout_s)  # its output ends with it, at once; a child may hold the pipe open
        return self._popen.poll() is not None

    def memory(self) -> int:
        """Return the bytes of memory that it and its children hold."""
        return memory_of_group(self.pid)

    def kill(self) -> None:
        """End the process and its children at once. Not after :meth:`reap`: the number may be another's."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> None:
        """Wait until the process is gone, and kill it if it does not end by itself. Frees everything."""
        self.connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_GRACE_S)
        self.kill()  # it, or the children it left behind
        self._popen.wait()
        self._reader.join(_GRACE_S)  # its last output; a child that left the group may hold the pipe open
        for region in self.regions:
            region.close()

    def how_it_ended(self) -> str:
        """Return how a reaped process ended, in words."""
        return how_it_ended(self._popen.returncode)

    def _read_output(self, stdout: IO[bytes]) -> None:
        with stdout:
            while line := stdout.readline(_MAX_LINE):
                # A simulator may print what a client sent, and colours for a terminal.
                text = printable(line.decode(errors="replace").expandtabs().rstrip(), _MAX_LINE)
                if text:
                    logger.info("%s: %s: %s", self.label, self._name, text)
                if text and not text.startswith(_STACK):
                    self._output.append(text[:_MAX_QUOTE])


def how_it_ended(returncode: int) -> str:
    """Return the meaning of ``Popen.returncode`` in words."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-returncode}"


def worker_environment() -> dict[str, str]:
    """Return the environment of a worker: ours without secrets, and in a checkout the path of its modules.

    A checkout is found by any interpreter. An installed wheel is among the packages of our interpreter, which
    another one must not see: then robowire must be installed in the worker's environment too.
    """
    root = Path(__file__).resolve().parents[2]
    environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
    if (root / "pyproject.toml").exists():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(root), environment.get("PYTHONPATH")]))
    return environment
