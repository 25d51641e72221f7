"""Ask a running fleet what it is to do, and how it is."""

from __future__ import annotations

from typing import Any

from robowire.errors import ConfigurationError
from robowire.transport.connection import Connection
from robowire.wire.messages import hello, raise_for_status
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import encode_frame

__all__ = ["ask_fleet"]


def ask_fleet(
    host: str, port: int, method: str, *, token: str | None = None, timeout_s: float = 5.0, **params: Any
) -> dict[str, Any]:
    """Return the fleet's reply to one request: ``list_services``, ``scale``, ``stop``.

    Raises:
        ConfigurationError: There is a server, but no fleet.
        RobowireError: What a client's request raises.
    """
    connection = Connection.connect(host, port, timeout_s=timeout_s)
    try:
        greeting = encode_frame(hello(token=token))
        server = raise_for_status(loads(connection.exchange(greeting, timeout_s=timeout_s)))
        if server.get("server") != "fleet":
            raise ConfigurationError(f"{host}:{port} is a {server.get('server')} server, and no fleet")
        request = encode_frame({"method": method, **params})
        return raise_for_status(loads(connection.exchange(request, timeout_s=timeout_s)))
    finally:
        connection.close()
