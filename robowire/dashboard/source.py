"""One server as the dashboard sees it: asked again and again, however often it goes and comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robowire.client.server_client import ServerClient
from robowire.dashboard.options import WatchedServer
from robowire.errors import RobowireError, Unauthenticated, UnknownMethod
from robowire.transport.tls import client_tls

__all__ = ["Source"]

# A page that waits longer shows old numbers; the next attempt is two seconds away.
_TIMEOUT_S = 5.0


class Source:
    """Asks one server. For one thread.

    Args:
        server: Where it is.

    Attributes:
        name: Its address, for a person.
    """

    def __init__(self, server: WatchedServer) -> None:
        self.name = server.host if server.host.startswith("unix:") else f"{server.host}:{server.port}"
        self._client = ServerClient(
            server.host,
            server.port,
            timeout_s=_TIMEOUT_S,
            token=server.token,
            tls=_context(server),
        )

    def poll(self, images: Sequence[str], *, log_lines: int) -> dict[str, Any]:
        """Return what ``get_status`` replies, or of it what the server tells.

        Args:
            images: Ids of sessions.
            log_lines: Most log lines.

        Returns:
            ``error`` in words where there is no reply; ``restricted`` where the server tells everybody no
            more than ``info`` and ``stats``.
        """
        try:
            try:
                return self._client.call("get_status", images=list(images), log_lines=log_lines)
            except (Unauthenticated, UnknownMethod) as exc:
                # Refused, or a server older than this method: what it tells every client.
                return {
                    "kind": self._client.kind,
                    "info": self._client.get_info(),
                    "stats": self._client.stats(),
                    "restricted": str(exc),
                }
        except RobowireError as exc:
            self._client.disconnect()
            return {"error": str(exc)}

    def call(self, method: str, **params: Any) -> str:
        """Ask for a change, and return what went wrong in words, or nothing."""
        try:
            self._client.call(method, **params)
        except RobowireError as exc:
            self._client.disconnect()
            return str(exc)
        return ""

    def close(self) -> None:
        """End the connection."""
        self._client.disconnect()


def _context(server: WatchedServer) -> Any:
    files = {name: server.tls.get(name) for name in ("ca", "cert", "key")}
    if not server.tls.get("tls") and not any(files.values()):
        return False
    return client_tls(files["ca"], files["cert"], files["key"])
