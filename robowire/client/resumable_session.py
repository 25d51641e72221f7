"""A session with a simulator server that outlives its connections, by way of a fleet where there is one.

A request whose reply was lost is sent again over a new connection, under the same number: the server
executes it once and repeats its reply. Where there is no such session, on an older server or without a
simulator, nothing is repeated: a step that got no reply may have been executed.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Callable, Sequence

from robowire.address import split_address, unix_path
from robowire.client.session import ClientSession
from robowire.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    SessionNotFound,
    SimulatorAlreadySelected,
    TransportError,
)
from robowire.transport.connection import Connection
from robowire.transport.shared_memory import shared_memory_works
from robowire.wire.messages import raise_for_status
from robowire.wire.methods import NUMBERED
from robowire.wire.packed import PACKED_VERSION
from robowire.wire.packed_simulator import STEP_REPLY, StepReplies, step_request_frame
from robowire.wire.pickle.reader import loads
from robowire.wire.pickle.writer import Buffer, encode_frame

if TYPE_CHECKING:
    import ssl

__all__ = ["ResumableSession"]

logger = logging.getLogger(__name__)

# A disconnect request lets the server free the simulator before we return; it does so by itself if there is
# no time for a reply.
_DISCONNECT_S = 5.0

# Between attempts to come back: short enough not to be felt, and not to be a burden for a server that starts.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


_STEP_REPLY = bytes((STEP_REPLY,))


class ResumableSession:
    """The session of one client: its connection, its token, its number of requests. Not thread-safe.

    Args:
        host: Name or address of the server, or of a fleet; ``unix:PATH`` of one on this machine.
        port: Its simulator port.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete.
        token: Token shown to the server, where it wants one.
        reconnect_s: Seconds to try to come back to the session when the connection drops. 0 asks for a
            session that ends with its connection.
        tls: Context, where the server speaks TLS.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        open_connection: Makes the connection; tests pass their own.

    Attributes:
        token: What a connection shows to go on with the session; ``None`` where there is no simulator.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_timeout_s: float,
        timeout_s: float,
        token: str | None,
        reconnect_s: float,
        tls: ssl.SSLContext | None = None,
        wait_s: float = 0.0,
        open_connection: Callable[..., Connection] = Connection.connect,
    ) -> None:
        if not reconnect_s >= 0:
            raise ValueError(f"reconnect_s is {reconnect_s!r}, expected 0 or more seconds")
        self.token: str | None = None
        self._session = ClientSession(
            host,
            port,
            connect_timeout_s=connect_timeout_s,
            timeout_s=timeout_s,
            tls=tls,
            wait_s=wait_s,
            open_connection=open_connection,
        )
        self._host = host
        self._server_token = token
        self._reconnect_s = reconnect_s
        self._over: str | None = None  # why the session ended; None before the first and while it lasts
        self._service: str | None = None  # which of a fleet's servers has the session
        self._number = 0  # of the last request that the server may have executed
        self._packed = False  # whether the server of this connection knows packed steps
        self._replies = StepReplies()

    @property
    def connection(self) -> Connection | None:
        """The connection; ``None`` while there is none."""
        return self._session.connection

    def connect(self) -> None:
        """Begin a session, unless there is one already."""
        if self.connection is not None:
            return
        self._begin(None)

    def resume(self, session_token: str) -> dict[str, Any]:
        """Go on with a session that another connection left, and return the reply to ``resume``.

        Raises:
            SessionNotFound: It ended, or never was.
            SimulatorAlreadySelected: This session has a simulator.
        """
        token, _, service = session_token.partition("@")
        if service and (self.connection is None or service != self._service):
            self._move(service)
        self.connect()
        return self._resume(token)

    def with_service(self, token: str) -> str:
        """Return a token that leads other clients to the fleet's server that has the session, too."""
        return token if self._service is None else f"{token}@{self._service}"

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one request; over a new connection where the first is lost.

        Raises:
            ConnectionLost: The session is over for this client; says why, and what can be done.
            RequestTimeout: No reply in time.
            RequestError: The server's own error, as its class.
            RemoteProtocolError: The reply can't be read.
        """
        self.require()
        if method in NUMBERED and self.token is not None:
            self._number += 1
            params = {**params, "number": self._number}
        try:
            return self._exchange(method, params)
        except ConnectionLost as exc:
            if self.token is None or self._reconnect_s == 0:
                raise
            return self._go_on(method, params, exc)

    def require(self) -> None:
        """Connect where no session was begun yet.

        Raises:
            ConnectionLost: The session is over.
        """
        if self._over is not None:
            kept = self.token is not None
            raise ConnectionLost(
                f"the session with {self._session.address} is over"
                + (" for this client" if kept else ", and its simulator gone")
                + f", because {self._over}: "
                + ("resume(session_token) goes on with it, and " if kept else "")
                + "connect() begins a new one, with select_simulator and load_task"
            )
        self.connect()

    def disconnect(self) -> None:
        """End the session; its simulator is freed. May be called twice."""
        if self.connection is None:
            return
        try:
            self._exchange("disconnect", {}, timeout_s=min(_DISCONNECT_S, self._session.timeout_s))
        except (TransportError, RequestError, RemoteProtocolError) as exc:
            logger.debug("%s did not answer the disconnect request: %s", self._session.address, exc)
        self.end("it was disconnected")
        self.token = None

    def end(self, reason: str) -> None:
        """Close the connection; the session is over for this client.

        Args:
            reason: What later messages say after "because".
        """
        self._session.close()
        self._over = reason

    def field(self, reply: dict[str, Any], name: str) -> Any:
        """Return a field of a reply.

        Raises:
            RemoteProtocolError: It is missing; the session is over.
        """
        if name not in reply:
            self.end("a reply was incomplete")
            raise RemoteProtocolError(f"the reply has no {name!r}, only {', '.join(map(repr, reply))}")
        return reply[name]

    def _begin(self, service: str | None) -> None:
        def attempt() -> None:
            self.token, self._service, self._number = None, service, 0
            self._greet()

        self._session.wait_for_server(attempt)
        self._over = None

    def _move(self, service: str) -> None:
        """Connect to that service of the fleet, in the place of another one where nothing was begun."""
        if self.connection is not None:
            if self.token is not None:
                raise SimulatorAlreadySelected(
                    "this session runs a simulator already: resume with another client, or disconnect first"
                )
            self.disconnect()
        self._begin(service)

    def _greet(self) -> None:
        """Connect to a simulator server, of the session's service where it has one."""
        try:
            reply = self._find_server()
            if reply.get("server") != "simulator":
                raise ConfigurationError(
                    f"{self._session.address} is a {reply.get('server')} server, not a simulator server: "
                    "use its simulator port, or PolicyClient"
                )
        except BaseException:
            self._session.close()
            raise
        assert self.connection is not None
        self._packed = reply.get("packed") == PACKED_VERSION
        if reply.get("shared_memory") == 1:
            self._session.accept_shared_replies()
        logger.info("connected to %s, session %s", self.connection.peer, reply.get("session"))

    def _find_server(self) -> dict[str, Any]:
        kept, pause = self._service, _FIRST_PAUSE_S
        while True:
            reply = self._say_hello(redirect=True, service=kept)
            if reply.get("server") != "fleet":
                return reply
            address, self._service = str(self.field(reply, "redirect")), self.field(reply, "service")
            try:
                host, port = split_address(address)
            except ValueError:
                raise RemoteProtocolError(
                    f"the fleet sends to {address[:100]!r}, expected host:port"
                ) from None
            try:
                return self._say_hello(host, port)
            except (ConnectFailed, ConnectionLost):
                # It is about to end, and the fleet does not know yet. The next request may name another one.
                if kept is not None or pause > _LONGEST_PAUSE_S:
                    raise
            time.sleep(pause)
            pause *= 2

    def _say_hello(self, host: str | None = None, port: int | None = None, **said: Any) -> dict[str, Any]:
        session = self._session
        session.dial(host, port)
        on_one_host = shared_memory_works() and unix_path(self._host if host is None else host) is not None
        return raise_for_status(
            session.hello(
                timeout_s=session.connect_timeout_s,
                resumable=self._reconnect_s > 0,
                packed=PACKED_VERSION,
                token=self._server_token,
                **({"shared_memory": 1} if on_one_host else {}),
                **said,
            )
        )

    def _resume(self, token: str) -> dict[str, Any]:
        reply = self._exchange("resume", {"token": token})
        for name in ("simulator", "token", "number", "spec", "last"):
            self.field(reply, name)
        self.token = token
        self._number = max(self._number, reply["number"])
        return reply

    def _go_on(self, method: str, params: dict[str, Any], lost: ConnectionLost) -> dict[str, Any]:
        """Come back to the session, and send again what got no reply."""
        assert self.token is not None
        deadline, pause = time.monotonic() + self._reconnect_s, _FIRST_PAUSE_S
        while True:
            try:
                self._greet()
                self._over = None
                self._resume(self.token)
                logger.warning("came back to the session with %s: %s", self._session.address, lost)
                return self._exchange(method, params)
            except (ConnectFailed, ConnectionLost) as exc:
                if time.monotonic() + pause > deadline:
                    self.end("the connection was lost")
                    raise ConnectionLost(
                        f"{lost}; coming back failed for {self._reconnect_s:g} s: {exc}"
                    ) from exc
            except SessionNotFound as exc:
                self.end("it ended while the connection was lost")
                raise ConnectionLost(f"{lost}; meanwhile the session ended: {exc}") from exc
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _exchange(
        self, method: str, params: dict[str, Any], *, timeout_s: float | None = None
    ) -> dict[str, Any]:
        # First: what can't be encoded leaves the session as it is.
        buffers: Sequence[Buffer]
        read: Callable[[bytearray], Any] | None = None
        if self._packed and method in ("step", "step_chunk"):
            buffers, read = step_request_frame(method, params, self._replies.known), self._read_step
        else:
            buffers = encode_frame({"method": method, **params})
        try:
            reply = self._session.exchange(
                buffers, timeout_s=timeout_s, what=repr(method), read=read, method=method
            )
        except ConnectionLost as exc:
            self.end("the connection was lost")
            raise ConnectionLost(f"{exc}. {method!r} may have been executed, so it was not repeated") from exc
        except RequestTimeout:
            self.end("a reply did not come in time")
            raise
        except BaseException:
            self.end("a request failed")
            raise
        return raise_for_status(reply)

    def _read_step(self, payload: bytearray) -> Any:
        """Return the reply to a packed step: errors, and what cannot be packed, are pickled."""
        return self._replies.read(payload) if payload[:1] == _STEP_REPLY else loads(payload)
