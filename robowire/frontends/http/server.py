"""The HTTP front as a server: it listens beside the simulator port, and starts, drains and ends with it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from robowire.frontends.http.app import make_app
from robowire.serving.simulator.service import SimulatorServer
from robowire.serving.tcp.frontend import listen

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

# A client that keeps its connection asks again within seconds, or opens another one.
_KEEP_ALIVE_S = 15

# Connections that ask nothing cost a file descriptor; calls are limited to max_connections themselves.
_CONNECTIONS_PER_CALL = 4

# After the simulators have ended, what is left is to send replies.
_SENDING_S = 2.0


class HttpServer:
    """A simulator server and its HTTP front, to be served as one. The port is bound when the object is made.

    Then use it as a context manager, which serves in threads, or call :meth:`serve_forever`.

    Args:
        simulators: What the calls are put to; served by this object.
        host: Address to listen on.
        port: TCP port; 0 picks a free one.

    Raises:
        ConfigurationError: The address can't be listened on.

    Attributes:
        simulators: As given.
        http_address: Host and port of the HTTP front.
    """

    def __init__(self, simulators: SimulatorServer, *, host: str, port: int) -> None:
        self.simulators = simulators
        self._listener = listen(host, port, flags="--http_")
        self.http_address: tuple[str, int] = self._listener.getsockname()[:2]
        options = simulators.options
        config = uvicorn.Config(
            make_app(simulators),
            http=_limited(options.frame_timeout_s, options.max_connections * _CONNECTIONS_PER_CALL),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            # The simulators have ended by then, and with them every call.
            timeout_graceful_shutdown=int(options.drain_s + _SENDING_S) + 1,
        )
        self._uvicorn = _Uvicorn(config)
        self._thread = threading.Thread(target=self._serve_http, name="http", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the simulator port."""
        return self.simulators.address

    def __enter__(self) -> HttpServer:
        self._thread.start()
        self.simulators.__enter__()
        self._uvicorn.ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self.simulators.__exit__(kind, error, traceback)
        finally:
            self._thread.join()

    def describe(self) -> str:
        """Return one line for a person."""
        host, port = self.http_address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{self.simulators.describe()}; over HTTP, with a page to try it: http://{host}:{port}/"

    def serve_forever(self) -> None:
        """Serve until :meth:`stop`; then drain. No simulator process is left when it returns."""
        self._thread.start()
        try:
            self.simulators.serve_forever()
        finally:
            self._uvicorn.should_exit = True
            self._thread.join()

    def stop(self) -> None:
        """Tell :meth:`serve_forever` to end. May be called in a signal handler."""
        self._uvicorn.should_exit = True
        self.simulators.stop()

    def _serve_http(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._listener])
        except Exception:
            logger.exception("the HTTP front ended by a bug")
        finally:
            self._uvicorn.ready.set()
            self._listener.close()


class _Uvicorn(uvicorn.Server):
    """Says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


def _limited(head_timeout_s: float, max_connections: int) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol with limits that it lacks: connections, and the seconds a head takes."""

    class Limited(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(cast(asyncio.Transport, transport))
            if len(self.connections) > max_connections:
                self.transport.abort()
            else:
                self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._watch()

        def _watch(self) -> None:
            """Give a client some time for a head, or for the rest of a body that was answered already."""
            rest = self.conn.their_state is h11.SEND_BODY and self.cycle.response_complete
            waiting = (rest or self.conn.their_state is h11.IDLE) and not self.transport.is_closing()
            if waiting and self._head is None:
                self._head = self.loop.call_later(head_timeout_s, self._end)
            elif not waiting and self._head is not None:
                self._head.cancel()
                self._head = None

        def _end(self) -> None:
            self._head = None
            with suppress(h11.LocalProtocolError):
                self.timeout_keep_alive_handler()

    return Limited
