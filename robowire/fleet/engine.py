"""Interface between a fleet and the engine that runs its services: local processes, or a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from robowire.errors import RobowireError
from robowire.registry import Entry

__all__ = ["ENGINES", "CannotStart", "Engine", "RunningService", "ServiceSpec"]

ENGINES: Mapping[str, Entry] = {
    "local": Entry("robowire.fleet.processes:LocalEngine", summary="processes of this machine"),
    "ray": Entry("robowire.fleet.cluster:ClusterEngine", extra="ray", summary="actors of a Ray cluster"),
}


class CannotStart(RobowireError):
    """A service could not be started, perhaps this time only; it is tried again."""


@dataclass(frozen=True)
class ServiceSpec:
    """A service to start.

    Attributes:
        name: For the log.
        command: A program that serves simulators, and its flags, but for ``--port``. It prints
            ``listening on HOST:PORT`` once it listens, finishes what it has when it gets SIGTERM, and ends.
        environ: Environment variables in addition to ours.
        share: Number of services that share the machine's cores.
    """

    name: str
    command: tuple[str, ...]
    environ: Mapping[str, str] = field(default_factory=dict)
    share: int = 1


class RunningService(Protocol):
    """One process that serves simulators. Any thread may call it."""

    pid: int
    """Its process, on the machine it runs on."""

    node: str | None
    """The machine it runs on, as clients reach it; ``None`` for the fleet's own."""

    gpu: str
    """Its GPU; empty for none."""

    cores: str
    """Its cores; empty for all."""

    def address(self) -> tuple[str, int] | None:
        """Return where the fleet reaches it; ``None`` until it listens."""
        ...

    def ended(self) -> str | None:
        """Return how it ended and its last output, in words; ``None`` while it runs."""
        ...

    def memory_mb(self) -> float:
        """Return the memory of it and its simulators, in megabytes."""
        ...

    def terminate(self) -> None:
        """Ask it to finish what it has and end."""
        ...

    def kill(self) -> None:
        """End it at once, and its simulators with it."""
        ...

    def close(self) -> None:
        """Free what is left here of a service that ended."""
        ...


class Engine(Protocol):
    """Starts services. One thread calls it, which lives until all of them have ended."""

    def start(self, spec: ServiceSpec) -> RunningService:
        """Return a service that was just started.

        Raises:
            CannotStart: Not now; says why.
        """
        ...

    def close(self) -> None:
        """Free what it holds. All its services have ended."""
        ...
