"""A process that has a simulator imported and prepared, and forks others from it, which begin where it is.

``python -m robowire.worker.simulator_template`` is started by :mod:`robowire.serving.simulator.template`. A
request is one byte with descriptors (``SCM_RIGHTS``): a socket for the status, the pipe of the output, and
what :func:`robowire.worker.simulator_worker.run` takes. On the status socket goes the number of the forked
process, and when it has ended how, both as signed 64 bits; -1 where none could be forked. Its forks end with
this process, and this process with the server. Linux and Python's own C interpreter only.
"""

from __future__ import annotations

import array
import gc
import json
import logging
import os
import random
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from typing import Any, Sequence

import numpy as np

from robowire.errors import BackendError
from robowire.interfaces import Preparing, Simulator, TaskOptions
from robowire.registry import Entry, load_simulator
from robowire.transport.connection import Connection
from robowire.wire.messages import ok
from robowire.wire.pickle.writer import encode_frame
from robowire.worker.parent_process import end_with_parent
from robowire.worker.refused_start import SEND_TIMEOUT_S, refuse_start
from robowire.worker.simulator_worker import read_start, run

__all__ = ["NUMBER", "main"]

logger = logging.getLogger(__name__)

# What goes over a status socket.
NUMBER = struct.Struct("<q")

_MAX_DESCRIPTORS = 16

# Where memory runs out Linux ends a fork before this process, which all of them depend on.
_OOM_SCORE = "300"


def main(argv: Sequence[str]) -> None:
    """Import and prepare the simulator that ``argv`` describes, and fork until the server closes the socket.

    Args:
        argv: One JSON object, as that of :mod:`robowire.worker.simulator_worker`, with ``task``: task name
            and options to prepare.
    """
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    start = json.loads(argv[0])
    name, entry = read_start(start)
    connection = Connection(socket.socket(fileno=start["socket"]))
    try:
        simulator = load_simulator(name, {name: entry})
        if not isinstance(simulator, Preparing):
            raise BackendError(f"simulator {name!r} cannot be prepared for forks")
        task_name, options = start["task"]
        if options["camera_names"] is not None:
            options["camera_names"] = tuple(options["camera_names"])
        simulator.prepare(task_name, TaskOptions(**options))
    except Exception as exc:  # importing and building a simulator may raise anything
        refuse_start(connection, f"simulator {name!r}", exc)
        return
    connection.send(encode_frame(ok()), timeout_s=SEND_TIMEOUT_S)
    gc.collect()
    gc.freeze()  # else a collection in a fork would copy every page that has an object
    _Forks(connection.stream.sock, name, entry, simulator).serve()


class _Forks:
    """Forks processes and reports how they end.

    Args:
        control: To the server.
        name: Name of the simulator.
        entry: Its row of the table.
        simulator: Prepared.
    """

    def __init__(self, control: socket.socket, name: str, entry: Entry, simulator: Simulator) -> None:
        self._control, self._name, self._entry, self._simulator = control, name, entry, simulator
        self._running: dict[int, socket.socket] = {}  # where each process's end is reported
        self._woken, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)

    def serve(self) -> None:
        """Return when the server has closed the socket."""
        self._control.settimeout(None)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        while True:
            watched: list[Any] = [self._control, self._woken]
            ready, _, _ = select.select(watched, [], [])
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._report_ends()
            if self._control in ready:
                size = array.array("i").itemsize
                data, ancillary, _, _ = self._control.recvmsg(1, socket.CMSG_SPACE(_MAX_DESCRIPTORS * size))
                if not data:
                    return
                descriptors = array.array("i")
                for level, kind, passed in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        descriptors.frombytes(passed[: len(passed) // size * size])
                self._fork(*descriptors)

    def _fork(self, status: int, output: int, *passed: int) -> None:
        reports = socket.socket(fileno=status)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as exc:
            logger.error("cannot fork: %s", exc)
            pid = -1
        if not pid:
            reports.close()
            self._become_worker(parent, output, *passed)
        for descriptor in (output, *passed):
            os.close(descriptor)
        with suppress(OSError):  # the server gave up
            reports.sendall(NUMBER.pack(pid))
        if pid > 0:
            self._running[pid] = reports
        else:
            reports.close()

    def _become_worker(self, parent: int, output: int, descriptor: int, *memory: int) -> None:
        """Run the worker in the forked process, and end it."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()  # Ctrl-C is for the server; children are killed with it
            for number in (1, 2):
                os.dup2(output, number)
            for other in (output, self._woken, self._wakes):
                os.close(other)
            for other_socket in (self._control, *self._running.values()):
                other_socket.close()
            end_with_parent()
            if os.getppid() != parent:  # it ended before that
                os._exit(1)
            with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
                file.write(_OOM_SCORE)
            # An episode without a seed must not be the same one in every fork.
            random.seed()
            np.random.seed()
            run(self._name, self._entry, descriptor, memory, self._simulator)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # what else this process would do at its end belongs to the one it was forked from

    def _report_ends(self) -> None:
        for pid, reports in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                with suppress(OSError):  # the server does not wait for it
                    reports.sendall(NUMBER.pack(code))
                reports.close()
                del self._running[pid]


if __name__ == "__main__":
    main(sys.argv[1:])
