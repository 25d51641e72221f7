"""Where the HTTP frontend listens. Needs no package of its extra."""

from __future__ import annotations

from dataclasses import dataclass

from robowire.errors import ConfigurationError

__all__ = ["HttpOptions"]


@dataclass(frozen=True)
class HttpOptions:
    """Where the HTTP frontend listens. Its limits and its TLS files are those of the simulator port.

    Attributes:
        host: Address to listen on.
        port: TCP port; 0 picks a free one.
        allowed_hosts: Names under which browsers may address this server, in addition to its IP addresses,
            localhost and the name of the machine. Only checked where there is no token.
        simulator: Simulator of requests that name no session; none by default.
        task: Task of that simulator.
    """

    host: str = "127.0.0.1"
    port: int = 0
    allowed_hosts: tuple[str, ...] = ()
    simulator: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"http_port is {self.port}, expected 0 to 65535")
