"""Options of a fleet; those about health checks and restarts are in ``lifecycle``."""

from __future__ import annotations

from dataclasses import dataclass

from robowire.errors import ConfigurationError
from robowire.fleet.engine import ENGINES
from robowire.fleet.lifecycle import LifecycleOptions
from robowire.registry import nearest

__all__ = ["MAX_SERVICES", "FleetOptions"]

# One machine has fewer cores, and a cluster that needs more should have a fleet for each part.
MAX_SERVICES = 1024


@dataclass(frozen=True)
class FleetOptions(LifecycleOptions):
    """Number of services, the machines they run on, and how they are watched.

    Attributes:
        num_services: Simulator servers to run; "fleet scale" changes it later.
        engine: local: processes of this machine; ray: actors of a Ray cluster.
        gpus: Numbers of the GPUs to distribute, such as 0,1; services render with EGL on them. None by
            default.
        cores_per_service: Cores that a service and its simulators are pinned to, by default an equal share; 0
            pins none. With Ray, CPUs that a service reserves, 1 by default.
        gpus_per_service: GPUs that Ray reserves for a service; may be a fraction, such as 0.25.
        ray_address: Ray cluster to join, or auto; by default one is started here.
        first_service_port: First port of the services; ports in use are skipped; 0 lets the kernel choose.
        advertise_host: Host under which clients reach the services, where it differs from the fleet's: behind
            NAT, or in a container.
        health_interval_s: Seconds between two health checks of a service.
        health_timeout_s: Seconds that a service has to answer one.
    """

    num_services: int = 2
    engine: str = "local"
    gpus: tuple[str, ...] | None = None
    cores_per_service: int | None = None
    gpus_per_service: float = 0.0
    ray_address: str | None = None
    first_service_port: int = 0
    advertise_host: str | None = None
    health_interval_s: float = 2.0
    health_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.num_services <= MAX_SERVICES:
            raise ConfigurationError(f"num_services is {self.num_services}, expected 0 to {MAX_SERVICES}")
        if self.engine not in ENGINES:
            raise ConfigurationError(
                f"no engine is called {self.engine!r}.{nearest(self.engine, ENGINES)} "
                f"Known: {', '.join(ENGINES)}"
            )
        for gpu in self.gpus or ():
            if not gpu.isdecimal():
                raise ConfigurationError(f"gpus names {gpu!r}, expected numbers, such as 0,1")
        for name in ("cores_per_service", "gpus_per_service"):
            if not (getattr(self, name) or 0) >= 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not 0 <= self.first_service_port <= 65535:
            raise ConfigurationError(f"first_service_port is {self.first_service_port}, expected 0 to 65535")
        for name in ("health_interval_s", "health_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
