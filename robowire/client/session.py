"""One client's connection to a server: dial, hello, exchange, close. Every client is built on it.

What is repeated after a failure is each client's own rule, and stands in its module.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any, Callable, Sequence, TypeVar

from robowire.address import is_loopback, join_address
from robowire.client.shared_replies import SharedReplies
from robowire.errors import (
    ConnectFailed,
    ConnectionLost,
    InvalidParams,
    LocalProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    Unauthenticated,
)
from robowire.tracing.spans import active_tracing
from robowire.transport.connection import Connection, require_seconds
from robowire.transport.shared_memory import SharedRegion
from robowire.transport.stream import Buffer
from robowire.wire.auth import check_nonce, check_proof, client_proof, new_nonce, server_proof
from robowire.wire.framing import frame_header
from robowire.wire.messages import hello, raise_for_status
from robowire.wire.packed import share_memory
from robowire.wire.pickle.templates import TemplateReader
from robowire.wire.pickle.writer import encode_frame
from robowire.wire.trace_context import trace_context_frame

if TYPE_CHECKING:
    import ssl

__all__ = ["ClientSession", "client_context"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Between attempts to reach a server that is awaited: short enough not to be felt once it is there, and no
# burden while it starts.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0

# A hello whose connection was cut off is said again so often: nothing was begun that could be done twice.
_HELLO_REPEATS = 2

# How often a client that waits says so.
_REPORT_S = 5.0


def client_context(
    tls: bool | ssl.SSLContext = False,
    ca: str | None = None,
    tls_cert: str | None = None,
    tls_key: str | None = None,
) -> ssl.SSLContext | None:
    """Return what a client's TLS arguments ask for; ``None`` for a connection without TLS.

    Args:
        tls: Whether to use TLS, or a context that is used as it is. Files given imply it.
        ca: PEM file of the certificates to trust, in the place of the system's.
        tls_cert: PEM file of the client's own certificate, where the server asks for one.
        tls_key: PEM file of its private key.

    Raises:
        ConfigurationError: A file can't be read or used.
        ValueError: A context is given, and files too.
    """
    files = ca is not None or tls_cert is not None or tls_key is not None
    if not isinstance(tls, bool):
        if files:
            raise ValueError(
                "tls is a context, which has its own certificates: leave ca, tls_cert, tls_key out"
            )
        return tls
    if not (tls or files):
        return None
    from robowire.transport.tls import client_tls  # here: importing ssl takes time

    return client_tls(ca, tls_cert, tls_key)


def _told_to_send_tokens() -> bool:
    """Return whether ``ROBOWIRE_PLAIN_TOKEN`` is set, the variable of the server's flag too."""
    return os.environ.get("ROBOWIRE_PLAIN_TOKEN", "").lower() in ("true", "yes")


class ClientSession:
    """A connection to one server, made when it is asked for. One thread uses it, but for :meth:`interrupt`.

    After any failure of an exchange the connection is closed: it is never left half read.

    Args:
        host: Name or address of the server; ``unix:PATH`` of one on this machine.
        port: Its TCP port.
        connect_timeout_s: Seconds to make a connection.
        timeout_s: Seconds to wait until a reply begins, and again as many until it is complete.
        tls: Context, where the server speaks TLS; see :func:`client_context`.
        wait_s: Seconds that the first connection is tried for while the server does not answer.
        open_connection: Makes the connection; tests pass their own, as they do for the next two.
        sleep: Waits between attempts.
        clock: Seconds, monotonic.

    Attributes:
        address: ``host:port``, for messages.
        connection: The connection; ``None`` while there is none, and in a process that was forked from the
            one that made it: two processes on one connection would get each other's replies.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        connect_timeout_s: float,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        wait_s: float = 0.0,
        open_connection: Callable[..., Connection] = Connection.connect,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_seconds(connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        if not wait_s >= 0:
            raise ValueError(f"wait_s is {wait_s!r}, expected 0 or more seconds")
        self.address = join_address(host, port)
        self._connection: Connection | None = None
        self._reader = TemplateReader()
        self._shared: SharedReplies | None = None  # of a connection on which replies may lie in memory
        self._process = os.getpid()
        self._tracing = active_tracing()
        self._tells_trace = False  # the server of this connection takes trace contexts
        self.timeout_s = timeout_s
        self.connect_timeout_s = connect_timeout_s
        self._host, self._port = host, port
        self._tls = tls
        self._wait_s = wait_s
        self._open_connection = open_connection
        self._sleep = sleep
        self._clock = clock

    @property
    def connection(self) -> Connection | None:
        """As documented by the class."""
        if self._connection is not None and self._process != os.getpid():
            logger.info("a client that was connected before a fork connects again to %s", self.address)
            self._connection.abandon()
            self._connection = None
            if self._shared is not None:
                self._shared.close()  # this process's copies
                self._shared = None
        return self._connection

    @property
    def waits(self) -> bool:
        """Whether an attempt to connect may be repeated: ``wait_s`` was given, and nothing answered yet."""
        return self._wait_s > 0

    def dial(self, host: str | None = None, port: int | None = None) -> None:
        """Make a new connection, in the place of the one there is.

        Args:
            host: Another server's, where a fleet names one.
            port: Its port.

        Raises:
            ConnectFailed: Nothing answers there.
            TlsFailed: TLS is refused by one side, or only one side speaks it.
        """
        self.close()
        self._tells_trace = False
        self._process = os.getpid()
        self._connection = self._open_connection(
            host or self._host,
            port or self._port,
            timeout_s=self.connect_timeout_s,
            # Only where it is used: connections that tests play know no TLS.
            **({} if self._tls is None else {"tls": self._tls}),
        )

    def hello(self, *, token: str | None = None, timeout_s: float | None = None, **said: Any) -> Any:
        """Say hello, and return the reply as it came.

        A token is shown by the answer to a challenge (:mod:`robowire.wire.auth`), so that nobody reads it. An
        older server has no challenge; it is sent the token itself where nobody else can read the connection,
        or where the environment variable ``ROBOWIRE_PLAIN_TOKEN`` says so.

        Args:
            token: Token of the server, if it needs one.
            timeout_s: As for :meth:`exchange`.
            **said: What this client adds: what it asks for.

        Raises:
            Unauthenticated: The server wants the token in clear, which others could read; or it does not know
                the token itself.
        """
        if self._tracing is not None:
            said["trace_context"] = 1

        def say(**more: Any) -> Any:
            reply = self.exchange(encode_frame(hello(**said, **more)), timeout_s=timeout_s, method="hello")
            if self._tracing is not None and isinstance(reply, dict):
                self._tells_trace = reply.get("trace_context") == 1
            return reply

        if token is None:
            return say()
        ours = new_nonce()
        reply = say(challenge=ours)
        if not isinstance(reply, dict) or reply.get("status") != "challenge":
            if isinstance(reply, dict) and reply.get("error_type") == Unauthenticated.error_type:
                self._require_private()
                return say(token=token)
            return reply  # it needs no token, or does not know hello
        try:
            theirs = check_nonce(reply.get("challenge"))
        except InvalidParams as exc:
            raise RemoteProtocolError(f"the reply to hello is no challenge: {exc}") from None
        reply = say(response=client_proof(token, ours, theirs))
        if isinstance(reply, dict) and reply.get("status") == "ok":
            try:
                check_proof(reply.pop("proof", None), server_proof(token, ours, theirs))
            except Unauthenticated:
                raise Unauthenticated(
                    f"{self.address} does not know the token: it is another server"
                ) from None
        return reply

    def _require_private(self) -> None:
        """Accept a connection on which the token may be sent in clear."""
        connection = self.connection
        private = self._tls is not None or (connection is not None and is_loopback(connection.peer))
        if not private and not _told_to_send_tokens():
            raise Unauthenticated(
                f"{self.address} is an older server, which wants the token in clear, and others can read it: "
                "use TLS, or set ROBOWIRE_PLAIN_TOKEN=true to send it all the same"
            )

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the fields of the reply to one request by name, without its status.

        Raises:
            RequestError: The server's own error, as its class.
        """
        reply = raise_for_status(
            self.exchange(encode_frame({"method": method, **(params or {})}), method=method)
        )
        return {key: value for key, value in reply.items() if key != "status"}

    def accept_shared_replies(self) -> None:
        """Read replies of this connection that lie in memory which the server passes, as agreed in hello."""
        connection = self.connection
        if connection is None:
            raise LocalProtocolError(f"not connected to {self.address}: call connect first")
        connection.stream.takes_descriptors = True
        self._shared = SharedReplies(connection.decoder.max_payload)

    def share(self, region: SharedRegion) -> dict[str, Any]:
        """Pass memory to the server, over a Unix socket, and return the reply. One that fails is closed.

        Raises:
            RequestError: The server does not take it.
        """
        connection = self.connection
        if connection is None:
            raise LocalProtocolError(f"not connected to {self.address}: call connect first")
        payload = share_memory(region.size)
        frame = [frame_header(len(payload)), payload]
        try:
            connection.stream.send_descriptor(frame, region.descriptor, self.timeout_s)
            reply = connection.receive(wait_s=self.timeout_s, finish_s=self.timeout_s)
            if reply is None:
                raise ConnectionLost(f"{self.address} closed the connection on shared memory; see its log")
            assert isinstance(reply, bytearray)  # clients' decoders read no text
            return raise_for_status(self._reader.loads(reply))
        except RequestError:
            raise
        except BaseException:
            self.close()
            raise

    def exchange(
        self,
        buffers: Sequence[Buffer],
        *,
        timeout_s: float | None = None,
        what: str = "The request",
        read: Callable[[bytearray], Any] | None = None,
        method: str = "infer",
    ) -> Any:
        """Return the decoded reply to one frame. After a failure the connection is closed.

        Args:
            buffers: The request's frame.
            timeout_s: Seconds to wait until the reply begins; ``None`` means the session's.
            what: How a message names the request.
            method: How its span is called, where requests are traced.
            read: Decodes the reply's payload; ``None`` where it is a pickle.

        Raises:
            RequestTimeout: No reply in time.
            ConnectionLost: The connection ended before the reply was complete.
            RemoteProtocolError: The reply can't be read.
        """
        if self._tracing is None:
            return self._exchange(buffers, timeout_s, what, read)
        with self._tracing.client_span(method, self.address) as span:
            if self._tells_trace:
                buffers = [trace_context_frame(span.headers()), *buffers]
            reply = self._exchange(buffers, timeout_s, what, read)
            if isinstance(reply, dict) and reply.get("status") == "error":
                span.fail(str(reply.get("error_type")), str(reply.get("message")))
            return reply

    def _exchange(
        self,
        buffers: Sequence[Buffer],
        timeout_s: float | None,
        what: str,
        read: Callable[[bytearray], Any] | None,
    ) -> Any:
        connection = self.connection
        if connection is None:
            raise LocalProtocolError(f"not connected to {self.address}: call connect first")
        seconds = self.timeout_s if timeout_s is None else timeout_s
        try:
            payload = connection.exchange(buffers, timeout_s=seconds)
            if self._shared is not None:
                payload = self._shared.whole(payload, connection.stream.take_descriptor())
            size = len(payload)
            reply = (self._reader.loads if read is None else read)(payload)
        except RequestTimeout as exc:
            self.close()
            raise RequestTimeout(
                f"{exc}. {what} was not repeated: raise timeout_s, now {seconds:g}, "
                "if the server needs longer"
            ) from exc
        except BaseException:  # KeyboardInterrupt too
            self.close()
            raise
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug("%s < %d bytes > %d bytes", connection.peer, sum(map(len, buffers)), size)
        return reply

    def wait_for_server(self, attempt: Callable[[], T], *, hello_repeats: int = _HELLO_REPEATS) -> T:
        """Return ``attempt()``, repeated for ``wait_s`` while the server does not answer.

        Only the first success of a session is waited for: a server that leaves later is what ``retries`` and
        ``reconnect_s`` are for.

        Args:
            attempt: Connects and says hello.
            hello_repeats: How often it is repeated without ``wait_s`` where the connection was lost.

        Raises:
            ConnectFailed: Nothing answered for ``wait_s``.
            ConnectionLost: The last connection was cut off before the reply.
            RequestTimeout: Something listened, and did not answer: a server that is still loading, for
                example.
        """
        begun = reported = self._clock()
        pause_s = _FIRST_PAUSE_S
        lost = 0
        while True:
            try:
                result = attempt()
            except (ConnectFailed, ConnectionLost, RequestTimeout) as exc:
                waited_s = self._clock() - begun
                lost += isinstance(exc, ConnectionLost)
                repeated = isinstance(exc, ConnectionLost) and lost <= hello_repeats
                if waited_s + pause_s > self._wait_s and not repeated:
                    raise
                if self._wait_s and (waited_s == 0 or self._clock() - reported >= _REPORT_S):
                    reported = self._clock()
                    logger.warning("waiting up to %g s, %.0f s so far: %s", self._wait_s, waited_s, exc)
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self._wait_s = 0.0
            return result

    def interrupt(self) -> None:
        """End the exchange that another thread waits for, as if the connection was lost."""
        connection = self.connection
        if connection is not None:
            connection.stop_reading()

    def close(self) -> None:
        """Close the connection. May be called twice."""
        if self.connection is not None:
            self.connection.close()
            self._connection = None
        if self._shared is not None:
            self._shared.close()
            self._shared = None
