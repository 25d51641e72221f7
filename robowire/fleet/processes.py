"""Local engine: services as processes of this machine, each with a port, a GPU and cores."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import IO

from robowire.errors import ConfigurationError
from robowire.fleet import launch
from robowire.fleet.engine import CannotStart, ServiceSpec
from robowire.fleet.options import FleetOptions
from robowire.fleet.placement import least_used
from robowire.serving.process_memory import memory_of_tree
from robowire.serving.worker_process import how_it_ended
from robowire.wire.text_safety import printable

__all__ = ["EVERY_ADDRESS", "LocalEngine", "LocalService"]

logger = logging.getLogger(__name__)

_LISTENING = re.compile(r"^listening on \S+:(\d+)")

# Enough lines to recognise why a service ended; all of them are in the log.
_LAST_LINES = 2
_MAX_LINE = 8192

EVERY_ADDRESS = ("0.0.0.0", "::", "")


class LocalEngine:
    """Start services on this machine, each on the port, GPU and cores that running services use least.

    Args:
        options: GPUs, cores and ports to distribute.
        host: Address that services listen on.

    Raises:
        ConfigurationError: An option is for another engine.
    """

    def __init__(self, options: FleetOptions, *, host: str) -> None:
        for name in ("ray_address", "gpus_per_service"):
            if getattr(options, name):
                raise ConfigurationError(f"{name} is for --engine ray; --gpus shares those of this machine")
        self._options = options
        self._host = host
        self._services: list[LocalService] = []

    def start(self, spec: ServiceSpec) -> LocalService:
        """Start a service, on the cores and the GPU that are used least."""
        self._services = [service for service in self._services if service.ended() is None]
        options, environ = self._options, dict(spec.environ)
        port = self._free_port()
        gpus = least_used(options.gpus or (), [service.gpu for service in self._services], 1)
        if gpus:
            environ["CUDA_VISIBLE_DEVICES"] = environ["MUJOCO_EGL_DEVICE_ID"] = gpus[0]
            # GPUs are named to render on them; a simulator's own default is the CPU.
            environ.setdefault("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
        ours = sorted(os.sched_getaffinity(0))
        wanted = options.cores_per_service
        wanted = max(len(ours) // max(spec.share, 1), 1) if wanted is None else wanted
        used = [core for service in self._services for core in service.pinned]
        pinned = tuple(sorted(least_used(ours, used, wanted)))
        service = LocalService(
            spec.name,
            (*spec.command, "--port", str(port)),
            environ,
            host="127.0.0.1" if self._host in EVERY_ADDRESS else self._host,
            wanted_port=port,
            gpu="".join(gpus),
            pinned=pinned if len(pinned) < len(ours) else (),
        )
        self._services.append(service)
        return service

    def close(self) -> None:
        """Do nothing: there is nothing to free."""

    def _free_port(self) -> int:
        """Return the port for the next service; 0 lets the kernel choose."""
        first = self._options.first_service_port
        if first == 0:
            return 0
        taken = {service.wanted_port for service in self._services}
        for port in range(first, 65536):
            if port not in taken and _is_free(self._host, port):
                return port
        raise CannotStart(f"no port from {first} on is free")


class LocalService:
    """One service as a process of this machine. It ends with the thread that makes this object."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environ: dict[str, str],
        *,
        host: str,
        wanted_port: int = 0,
        gpu: str = "",
        pinned: tuple[int, ...] = (),
    ) -> None:
        self.node: str | None = None
        self.gpu = gpu
        self.cores = ",".join(map(str, pinned))
        self.pinned = pinned
        self.wanted_port = wanted_port
        self._name = name
        self._host = host
        self._port: int | None = None
        self._output: deque[str] = deque(maxlen=_LAST_LINES)
        try:
            # Not subprocess.DEVNULL: Python 3.11.2 and older leave it open where a pipe cannot be made.
            with open(os.devnull, "rb") as nothing:
                self._popen = subprocess.Popen(
                    # Isolated: it needs nothing of ours, and starts in 20 ms.
                    [sys.executable, "-I", launch.__file__, str(os.getpid()), self.cores, *command],
                    stdin=nothing,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environ},
                    start_new_session=True,  # Ctrl-C is for the fleet, which lets its services finish
                )
        except OSError as exc:
            raise CannotStart(f"cannot start {name}: {exc.strerror or exc}") from exc
        self.pid = self._popen.pid
        assert self._popen.stdout is not None
        self._reader = threading.Thread(
            target=self._read_output, args=(self._popen.stdout,), name=f"output of {name}", daemon=True
        )
        self._reader.start()

    def address(self) -> tuple[str, int] | None:
        """Return where it listens, as it printed."""
        return None if self._port is None else (self._host, self._port)

    def ended(self) -> str | None:
        """Return how it ended, and its last output after an error."""
        code = self._popen.poll()
        if code is None:
            return None
        output = f": {' | '.join(self._output)}" if self._output and code > 0 else ""
        return how_it_ended(code) + output

    def memory_mb(self) -> float:
        """Return the memory of its process and of all descendants, in megabytes."""
        return memory_of_tree(self.pid) / 1e6

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL; Linux kills its simulators with it."""
        self._popen.kill()

    def close(self) -> None:
        """Wait until its output was read."""
        self._reader.join()

    def _read_output(self, stdout: IO[bytes]) -> None:
        with stdout:
            while line := stdout.readline(_MAX_LINE):
                text = printable(line.decode(errors="replace").expandtabs().rstrip(), _MAX_LINE)
                if listening := _LISTENING.match(text):
                    self._port = int(listening[1])
                if text:
                    self._output.append(text)
                    # The fleet's table repeats what a service prints at its start.
                    banner = self._port is None or text.startswith("try it: ") or listening
                    logger.log(logging.DEBUG if banner else logging.INFO, "%s: %s", self._name, text)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the service's own
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise CannotStart(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    return True
