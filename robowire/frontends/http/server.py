"""The HTTP frontend: the simulator service for curl and browsers."""

from __future__ import annotations

import logging
import threading
import time

import uvicorn

from robowire.frontends.http.app import make_app
from robowire.frontends.http.limits import limited_protocol
from robowire.frontends.http.options import HttpOptions
from robowire.serving.simulator.service import SimulatorService
from robowire.serving.tcp.listener import listen
from robowire.transport.tls import server_tls

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

# A client that keeps its connection sends its next request within seconds, or opens another connection.
_KEEP_ALIVE_S = 15

# Idle connections cost a file descriptor; requests are limited to max_connections themselves.
_CONNECTIONS_PER_REQUEST = 4

# After the simulators have ended, what is left is to send replies.
_SENDING_S = 2.0

_POLL_S = 0.005


class HttpServer:
    """The HTTP wire of a simulator service. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Where to listen.

    Attributes:
        name: ``"http"``.
        address: Host and port it listens on; the port is never 0.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    name = "http"

    def __init__(self, service: SimulatorService, options: HttpOptions) -> None:
        limits = service.options
        tls = (
            None
            if limits.tls_cert is None
            else server_tls(limits.tls_cert, limits.tls_key, limits.tls_client_ca)
        )
        self._scheme = "http" if tls is None else "https"
        self._listener = listen(options.host, options.port, flags="--http_")
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        config = uvicorn.Config(
            make_app(service, options.allowed_hosts),
            http=limited_protocol(limits.frame_timeout_s, limits.max_connections * _CONNECTIONS_PER_REQUEST),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # The simulators have ended by then, and with them every request.
            timeout_graceful_shutdown=int(limits.drain_s + _SENDING_S) + 1,
            ssl_context_factory=None if tls is None else lambda config, default: tls,
        )
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    @property
    def url(self) -> str:
        """Address for a browser on this machine."""
        host, port = self.address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{self._scheme}://{host}:{port}/"

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"over HTTP, with a page to try it: {self.url}"

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
            logger.exception("the HTTP frontend ended by a bug")
