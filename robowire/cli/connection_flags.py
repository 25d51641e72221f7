"""Flags of commands that connect to a server, and the clients opened with them. Runs on Python 3.8."""

from __future__ import annotations

from dataclasses import dataclass

from robowire.address import parse_address
from robowire.client.policy_client import PolicyClient
from robowire.errors import ConfigurationError

__all__ = ["ConnectionFlags", "at_least", "open_policy_client"]

# A person at a terminal does not wait longer to read that nothing listens there.
_CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ConnectionFlags:
    """Server to connect to.

    Attributes:
        address: Server as host:port, instead of --host and --port.
        host: Name or address of the server.
        port: TCP port of the server.
        timeout_s: Seconds to wait for a reply.
        token: Token of the server, where it needs one.
    """

    address: str | None = None
    host: str = "localhost"
    port: int = 5000
    timeout_s: float = 30.0
    token: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None:
            host, port = parse_address(
                "address", self.address, example="localhost:5000", default_port=self.port
            )
            # Of a frozen dataclass, before anybody else has it.
            object.__setattr__(self, "host", host)
            object.__setattr__(self, "port", port)
        if self.timeout_s <= 0:
            raise ConfigurationError(
                f"timeout_s is {self.timeout_s:g}, expected a positive number of seconds"
            )


def open_policy_client(flags: ConnectionFlags) -> PolicyClient:
    """Return a client that fails at the first failure: a person is watching, and measures that."""
    return PolicyClient(
        flags.host,
        flags.port,
        timeout_s=flags.timeout_s,
        connect_timeout_s=min(_CONNECT_TIMEOUT_S, flags.timeout_s),
        retries=0,
        token=flags.token,
    )


def at_least(lowest: int, **values: float) -> None:
    """Raise ``ConfigurationError`` for a value below ``lowest``; names it."""
    for name, value in values.items():
        if value < lowest:
            raise ConfigurationError(f"{name} is {value:g}, expected at least {lowest}")
