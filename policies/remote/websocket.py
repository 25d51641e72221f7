"""A WebSocket to a server, with this project's errors: what openpi's and vla-eval's wires have in common."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Mapping

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from policies.remote.options import RemoteOptions
from robowire.address import join_address
from robowire.errors import (
    ConnectFailed,
    ConnectionLost,
    Overloaded,
    RemoteProtocolError,
    RequestTimeout,
    TlsFailed,
    Unauthenticated,
)
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD
from robowire.wire.text_safety import printable

__all__ = ["WebSocket"]

# A server that does not answer the closing handshake is gone; nobody waits for it.
_CLOSE_S = 1.0


class WebSocket:
    """A connection, made here. One thread uses it, but for :meth:`interrupt`.

    Args:
        options: Address, deadlines, TLS.
        headers: Further headers of the upgrade.
        pings: Whether the connection is kept alive by pings; some servers do not answer them while they work.

    Raises:
        ConnectFailed: Nothing answers there.
        TlsFailed: One side refuses the other's certificate, or does not speak TLS.
        Unauthenticated: The server wants another token.
        Overloaded: It has no place.
        RemoteProtocolError: Something else listens there.
    """

    def __init__(
        self, options: RemoteOptions, *, headers: Mapping[str, str] | None = None, pings: bool = True
    ) -> None:
        self._options = options
        url = f"{'ws' if options.tls is None else 'wss'}://{join_address(options.host, options.port)}/"
        try:
            # Entered, because newer versions of the library expect to be; close() is the exit.
            self._socket: ClientConnection = connect(
                url,
                ssl=options.tls,
                compression=None,
                additional_headers=dict(headers or {}),
                open_timeout=options.connect_timeout_s,
                close_timeout=_CLOSE_S,
                ping_interval=20.0 if pings else None,
                max_size=DEFAULT_MAX_PAYLOAD,
            ).__enter__()
        except ssl.SSLError as exc:
            raise TlsFailed(f"{options.url} cannot be reached with TLS: {printable(exc)}") from exc
        except InvalidStatus as exc:
            status = exc.response.status_code
            said = printable(exc.response.body.decode("utf-8", "replace") if exc.response.body else "")
            text = f"{options.url} refuses the connection with HTTP {status}: {said}"
            if status in (401, 403):
                raise Unauthenticated(text) from exc
            if status == 503:
                raise Overloaded(text) from exc
            raise RemoteProtocolError(text) from exc
        except TimeoutError as exc:
            raise ConnectFailed(
                f"no connection to {options.url} within {options.connect_timeout_s:g} s"
            ) from exc
        except (OSError, ConnectionClosed) as exc:  # the latter where the server ends during the upgrade
            raise ConnectFailed(f"no connection to {options.url}: {printable(exc)}") from exc
        except (InvalidHandshake, EOFError) as exc:
            if isinstance(exc.__cause__, (EOFError, OSError)):  # it ended during the upgrade
                raise ConnectFailed(f"no connection to {options.url}: it closed at once") from exc
            raise RemoteProtocolError(f"{options.url} speaks no WebSocket: {printable(exc)}") from exc

    def send(self, message: bytes) -> None:
        """Send one binary message.

        Raises:
            ConnectionLost: The connection ended.
        """
        try:
            self._socket.send(message)
        except (ConnectionClosed, OSError) as exc:
            raise self._lost(exc) from exc

    def receive(self, what: str) -> bytes | str:
        """Return the next message.

        Args:
            what: What is awaited, for messages.

        Raises:
            RequestTimeout: It did not come in time.
            ConnectionLost: The connection ended before it.
        """
        try:
            return self._socket.recv(self._options.timeout_s)
        except TimeoutError as exc:
            raise RequestTimeout(
                f"{self._options.url} sent no {what} within {self._options.timeout_s:g} s. The request was "
                "not repeated: raise timeout_s if the server needs longer"
            ) from exc
        except (ConnectionClosed, OSError) as exc:
            raise self._lost(exc) from exc
        except WebSocketException as exc:
            raise RemoteProtocolError(f"{self._options.url} sent no WebSocket message: {exc}") from exc

    def interrupt(self) -> None:
        """End what another thread waits for, as if the connection was lost."""
        with contextlib.suppress(OSError):
            self._socket.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it. May be called twice."""
        self._socket.close()

    def _lost(self, exc: Exception) -> ConnectionLost:
        return ConnectionLost(f"{self._options.url} was lost before it answered: {printable(exc)}")
