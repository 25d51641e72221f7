"""A frontend over HTTP: an application in uvicorn, which runs in a thread."""

from __future__ import annotations

import logging
import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from robowire.frontends.http_limits import limited_protocol
from robowire.serving.tcp.options import TcpOptions
from robowire.transport.tls import server_tls

__all__ = ["UvicornServer"]

logger = logging.getLogger(__name__)

# A client that keeps its connection sends its next request within seconds, or opens another connection.
_KEEP_ALIVE_S = 15

# Idle connections cost a file descriptor; requests are limited to max_connections themselves.
_CONNECTIONS_PER_REQUEST = 4

# After the service has been closed, what is left is to send replies.
_SENDING_S = 2.0

_POLL_S = 0.005


class UvicornServer:
    """What frontends over HTTP share: listening, limits of connections, TLS, and the end.

    Args:
        app: Application that answers requests.
        options: Limits and TLS files.
        listener: Listening socket; closed with the server.
        name: As the attribute.
        lifespan: Whether the application wants to know of its beginning and end.

    Attributes:
        name: Name of the wire, as in the flag of its port.
        address: Host and port it listens on; the port is never 0.

    Raises:
        ConfigurationError: A TLS file can't be used.
    """

    def __init__(
        self, app: ASGIApp, options: TcpOptions, listener: socket.socket, *, name: str, lifespan: bool
    ) -> None:
        self.name = name
        self._listener = listener
        try:
            tls = (
                None
                if options.tls_cert is None
                else server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
            )
        except BaseException:
            listener.close()
            raise
        self._scheme = "http" if tls is None else "https"
        self.address: tuple[str, int] = listener.getsockname()[:2]
        config = uvicorn.Config(
            app,
            http=limited_protocol(
                options.frame_timeout_s, options.max_connections * _CONNECTIONS_PER_REQUEST
            ),
            ws="none",
            loop="asyncio",
            lifespan="on" if lifespan else "off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # The service has been closed by then, and with it every request.
            timeout_graceful_shutdown=int(options.drain_s + _SENDING_S) + 1,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    @property
    def url(self) -> str:
        """Address for a program on this machine."""
        host, port = self.address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{host}:{port}/"

    def start(self) -> None:
        """Answer requests in a thread."""
        self._thread.start()
        while self._thread.is_alive() and not self._uvicorn.started:
            time.sleep(_POLL_S)

    def stop_listening(self) -> None:
        """Accept no further connection."""
        self._uvicorn.should_exit = True

    def drain(self, deadline: float) -> None:
        """Wait for the replies in hand, at most until the deadline."""
        if self._thread.ident is not None:
            self._thread.join(max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """End the thread and free the port."""
        self._uvicorn.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._listener])
        except Exception:
            logger.exception("the %s frontend ended by a bug", self.name)
