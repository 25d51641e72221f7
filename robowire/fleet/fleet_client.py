"""One request to a running fleet: its services, their number, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from robowire.client.server_client import ServerClient
from robowire.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl

__all__ = ["ask_fleet"]


def ask_fleet(
    host: str,
    port: int,
    method: str,
    *,
    token: str | None = None,
    timeout_s: float = 5.0,
    tls: bool | ssl.SSLContext = False,
    ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
    **params: Any,
) -> dict[str, Any]:
    """Return the fleet's reply to one request: ``list_services``, ``scale``, ``stop``.

    Args:
        host: Name or address of the fleet.
        port: Its port.
        method: Name of the request.
        token: Token shown to the fleet, where it wants one.
        timeout_s: Seconds to connect, and to wait for the reply.
        tls: As for :class:`robowire.client.server_client.ServerClient`.
        ca: The same.
        tls_cert: The same.
        tls_key: The same.
        **params: Parameters of the request.

    Raises:
        ConfigurationError: Another server than a fleet answers there.
        RobowireError: What a client's request raises.
    """
    with ServerClient(
        host,
        port,
        connect_timeout_s=timeout_s,
        timeout_s=timeout_s,
        token=token,
        tls=tls,
        ca=ca,
        tls_cert=tls_cert,
        tls_key=tls_key,
    ) as client:
        if client.kind != "fleet":
            raise ConfigurationError(f"{host}:{port} is a {client.kind} server, not a fleet")
        return client.call(method, **params)
