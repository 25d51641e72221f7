"""A session with any server of this wire, for the requests that all of them answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Callable

from robowire.client.session import ClientSession, client_context
from robowire.transport.connection import Connection
from robowire.wire.messages import raise_for_status

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

__all__ = ["ServerClient"]


class ServerClient:
    """A session with any server of this wire, for what all of them answer. Needs numpy and nothing else.

    ::

        with ServerClient("localhost", 5000) as client:
            print(client.kind, client.ping(), client.get_info())

    It connects at the first request, or by :meth:`connect`, and repeats nothing but a hello whose
    connection was cut off. Not thread-safe.

    Args:
        host: Name or address of a policy server, a simulator server or a fleet; or ``unix:PATH``.
        port: Its port; not used with ``unix:PATH``.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete.
        token: Token shown to the server, where it wants one.
        tls: Whether the server speaks TLS, or a context to use.
        ca: PEM file of the certificates to trust, in the place of the system's; implies ``tls``.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        open_connection: Makes the connection; tests pass their own.

    Every method that asks the server raises:
        ConnectFailed: Nothing answers there.
        TlsFailed: A certificate is refused, or only one side speaks TLS.
        ConnectionLost: The connection ended before the reply.
        RequestTimeout: No reply in time.
        RequestError: The server's own error, as its class: ``Unauthenticated``, ...
        RemoteProtocolError: The reply can't be read, or is not of this wire.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        connect_timeout_s: float = 5.0,
        timeout_s: float = 30.0,
        token: str | None = None,
        tls: bool | ssl.SSLContext = False,
        ca: str | None = None,
        tls_cert: str | None = None,
        tls_key: str | None = None,
        wait_s: float = 0.0,
        open_connection: Callable[..., Connection] = Connection.connect,
    ) -> None:
        self.host = host
        self.port = port
        self._token = token
        self._session = ClientSession(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            tls=client_context(tls, ca, tls_cert, tls_key),
            wait_s=wait_s,
            open_connection=open_connection,
        )
        self._hello: dict[str, Any] = {}

    @property
    def hello(self) -> dict[str, Any]:
        """The server's reply to hello, without its status."""
        self.connect()
        return self._hello

    @property
    def kind(self) -> str:
        """What kind of server it is: ``"policy"``, ``"simulator"`` or ``"fleet"``."""
        return str(self.hello.get("server"))

    def connect(self) -> None:
        """Connect and say hello, unless connected already."""
        if self._session.connection is None:
            self._session.wait_for_server(self._greet)

    def disconnect(self) -> None:
        """End the session. May be called twice."""
        self._session.close()

    def __enter__(self) -> ServerClient:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.disconnect()

    def get_info(self) -> dict[str, Any]:
        """Return what the server says of itself."""
        return self.call("get_info")

    def stats(self) -> dict[str, Any]:
        """Return what the server counts: sessions, requests, errors, and how long they took."""
        return self.call("stats")

    def ping(self) -> float:
        """Return the seconds of one round trip, on a connection that is open before."""
        self.connect()
        begun = time.perf_counter()
        self._session.call("ping")
        return time.perf_counter() - begun

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return the fields of the reply to one request, without its status.

        Args:
            method: Name in the server's table of methods; see docs/protocol.md.
            **params: Its parameters.
        """
        self.connect()
        return self._session.call(method, params)

    def _greet(self) -> None:
        self._session.dial()
        try:
            reply = raise_for_status(self._session.hello(token=self._token))
        except BaseException:
            self._session.close()
            raise
        self._hello = {key: value for key, value in reply.items() if key != "status"}
