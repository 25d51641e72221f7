"""Ray engine: one actor for each service, which runs it as a process of the machine that Ray chose.

Ray chooses by the CPUs and the fraction of a GPU that a service reserves. Every machine needs this checkout
and its environment under the same paths as here. The extra is ``ray``.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import ray

from robowire.errors import ConfigurationError
from robowire.fleet.engine import ServiceSpec
from robowire.fleet.options import FleetOptions
from robowire.fleet.processes import EVERY_ADDRESS, LocalService
from robowire.wire.text_safety import printable

__all__ = ["ClusterEngine", "ClusterService"]

# An actor answers in a millisecond; one whose machine is gone never does.
_ANSWER_S = 5.0


class ClusterEngine:
    """Start services as actors.

    Args:
        options: Cluster address, and what a service reserves.
        host: Address that services listen on.

    Raises:
        ConfigurationError: The cluster can't be joined, or an option is for another engine.
    """

    def __init__(self, options: FleetOptions, *, host: str) -> None:
        if options.gpus:
            raise ConfigurationError(
                "gpus names GPUs of one machine: with --engine ray say --gpus_per_service 1, or a part of one"
            )
        if options.first_service_port:
            raise ConfigurationError("first_service_port is for --engine local: here the kernel chooses")
        self._options = options
        self._host = host
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
        # An actor without a reserved GPU keeps the machine's own setting.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            ray.init(
                address=options.ray_address,
                include_dashboard=None if options.ray_address else False,
                configure_logging=False,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError, RuntimeError) as exc:
            raise ConfigurationError(
                f"cannot join the Ray cluster {options.ray_address!r}: {printable(exc)}"
            ) from exc

    def start(self, spec: ServiceSpec) -> ClusterService:
        """Ask the cluster to place a service, which runs once it has an address."""
        wanted = self._options.cores_per_service
        actor = ray.remote(_ServiceActor).options(
            num_cpus=1 if wanted is None else wanted, num_gpus=self._options.gpus_per_service
        )
        return ClusterService(actor.remote(spec, self._host), self._host)

    def close(self) -> None:
        """Leave the cluster, which ends if it was started here."""
        ray.shutdown()


class ClusterService:
    """Service of an actor. It keeps the actor's last report, so that no call waits for a lost machine."""

    def __init__(self, actor: Any, host: str) -> None:
        self.node: str | None = None
        self.gpu = ""
        self.cores = ""
        self.pid = 0
        self._actor = actor
        self._host = host
        self._port: int | None = None
        self._end: str | None = None
        self._lock = threading.Lock()
        self._looking = actor.look.remote()

    def address(self) -> tuple[str, int] | None:
        """Return where it listens, as it reported."""
        return None if self._port is None or self.node is None else (self.node, self._port)

    def ended(self) -> str | None:
        """Return how it ended, or that its actor was lost."""
        with self._lock:
            if self._end is None and ray.wait([self._looking], timeout=0)[0]:
                self._take()
        return self._end

    def memory_mb(self) -> float:
        """Return what its actor measures; 0 if it does not answer."""
        try:
            memory: float = ray.get(self._actor.memory_mb.remote(), timeout=_ANSWER_S)
        except ray.exceptions.RayError:  # ended() reports it
            return 0.0
        return memory

    def terminate(self) -> None:
        """Ask the actor to send SIGTERM."""
        self._actor.terminate.remote()

    def kill(self) -> None:
        """End the actor, and its service and simulators with it."""
        ray.kill(self._actor)

    def close(self) -> None:
        """Release what the actor had reserved."""
        ray.kill(self._actor)

    def _take(self) -> None:
        try:
            node, self.pid, self.gpu, self._port, self._end = ray.get(self._looking)
        except ray.exceptions.RayError as exc:
            self._end = f"lost its actor: {printable(str(exc).partition(chr(10))[0], 200)}"
            return
        self.node = node if self._host in EVERY_ADDRESS else self._host
        self._looking = self._actor.look.remote()


class _ServiceActor:
    """Actor that starts one service on its machine, and reports on it."""

    def __init__(self, spec: ServiceSpec, host: str) -> None:
        gpus = [str(gpu) for gpu in ray.get_gpu_ids()]
        environ = dict(spec.environ)
        if gpus:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
            environ["MUJOCO_EGL_DEVICE_ID"] = gpus[0]
            environ.setdefault("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
        self._node = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._service = LocalService(
            spec.name, (*spec.command, "--port", "0"), environ, host=host, gpu=",".join(gpus)
        )

    def look(self) -> tuple[str, int, str, int | None, str | None]:
        """Return its machine's address, process id, GPU and port, and how it ended."""
        service, address = self._service, self._service.address()
        port = None if address is None else address[1]
        return self._node, service.pid, service.gpu, port, service.ended()

    def memory_mb(self) -> float:
        return self._service.memory_mb()

    def terminate(self) -> None:
        self._service.terminate()
