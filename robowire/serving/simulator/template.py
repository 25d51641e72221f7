"""The server's side of a process that others are forked from: start, fork, and the forks as processes."""

from __future__ import annotations

import array
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from types import TracebackType
from typing import IO, Any

from robowire.errors import BackendError, TransportError
from robowire.interfaces import TaskOptions
from robowire.registry import Entry
from robowire.serving.simulator.process import worker_start
from robowire.serving.worker_process import WorkerProcess
from robowire.wire.messages import raise_for_status
from robowire.wire.pickle.reader import loads
from robowire.worker.simulator_template import NUMBER

__all__ = ["ForkedProcess", "SimulatorTemplate"]

_TEMPLATE = "robowire.worker.simulator_template"

# A fork of a process with a gigabyte takes some ten milliseconds.
_FORK_S = 10.0


class SimulatorTemplate:
    """A process that has imported a simulator and prepared a task. The thread that makes it must outlive it.

    Args:
        name: Name of the simulator in the server's table.
        entry: Its row.
        params: Of a ``load_task``: what is prepared.
        python: Interpreter to run it with.

    Raises:
        BackendError: It cannot be started.
    """

    def __init__(self, name: str, entry: Entry, params: Mapping[str, Any], *, python: str) -> None:
        options = {option.name: params.get(option.name) for option in fields(TaskOptions)}
        start = {**worker_start(name, entry), "task": [params.get("task_name"), options]}
        self._lock = threading.Lock()
        self._worker = WorkerProcess(_TEMPLATE, start, name=name, label="template", python=python, regions=0)

    def wait_until_ready(self, *, timeout_s: float) -> None:
        """Wait until it is prepared; comes before :meth:`fork`. After an error it is gone.

        Raises:
            BackendError: The simulator cannot be imported or prepared, or not in time.
        """
        try:
            payload = self._worker.connection.receive(wait_s=timeout_s, finish_s=timeout_s)
            if not isinstance(payload, bytearray):
                raise BackendError(f"it ended{self._worker.last_output}")
            raise_for_status(loads(payload))
        except TransportError as exc:
            self.kill()
            self.close()
            raise BackendError(str(exc)) from exc
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._worker.pid

    def ended(self) -> bool:
        """Return whether the process has ended."""
        return self._worker.connection.ended()

    def fork(self, descriptors: Sequence[int]) -> ForkedProcess:
        """Return a process that is forked from it.

        Args:
            descriptors: What it gets: a socket and regions of shared memory; still the caller's.

        Raises:
            OSError: It cannot fork, or has ended.
        """
        ours, theirs = socket.socketpair()
        reads, writes = os.pipe()
        try:
            with theirs:
                ours.settimeout(_FORK_S)
                passed = array.array("i", [theirs.fileno(), writes, *descriptors])
                with self._lock:
                    self._worker.connection.stream.sock.sendmsg(
                        [b"F"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]
                    )
            os.close(writes)
            writes = -1
            data = ours.recv(NUMBER.size, socket.MSG_WAITALL)
            pid = NUMBER.unpack(data)[0] if len(data) == NUMBER.size else -1
            if pid < 0:
                raise OSError("the process to fork from cannot, or has ended")
            return ForkedProcess(pid, ours, os.fdopen(reads, "rb"))
        except BaseException:
            ours.close()
            for descriptor in (reads, writes):
                if descriptor >= 0:
                    os.close(descriptor)
            raise

    def kill(self) -> None:
        """End it at once, as :meth:`close` does."""
        self._worker.kill()

    def close(self) -> None:
        """End it, and with it every process that was forked from it and still runs."""
        self._worker.reap()


class ForkedProcess:
    """A process forked by another one, with as much of ``subprocess.Popen`` as a worker process uses.

    Args:
        pid: Its number, and that of its group.
        reports: Says how it has ended.
        stdout: Its output.

    Attributes:
        pid: As given.
        stdout: As given.
        returncode: How it ended, as ``Popen`` has it; ``None`` while it runs.
    """

    def __init__(self, pid: int, reports: socket.socket, stdout: IO[bytes]) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._reports = reports
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return how it ended; ``None`` while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return how it ended.

        Raises:
            subprocess.TimeoutExpired: It runs, after ``timeout`` seconds.
        """
        with self._lock:
            if self.returncode is None:
                self._reports.settimeout(timeout)
                try:
                    data = self._reports.recv(NUMBER.size, socket.MSG_WAITALL)
                except (socket.timeout, BlockingIOError):
                    raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0) from None
                # Without a report the process that it was forked from has ended, and it was killed with that.
                self.returncode = NUMBER.unpack(data)[0] if len(data) == NUMBER.size else -signal.SIGKILL
                self._reports.close()
            return self.returncode

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def __enter__(self) -> ForkedProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stdout.close()
        self.wait()
