"""Connections: an accept loop, one named thread a connection, and every limit a peer can run into.

What the bytes mean is a :class:`Handler`'s business. A peer that breaks the framing, stalls, or sends what
cannot be read loses its connection, and nobody else notices.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from robowire.errors import (
    ConfigurationError,
    InternalError,
    Overloaded,
    RemoteProtocolError,
    TransportError,
)
from robowire.serving.metrics import Metrics
from robowire.serving.sessions import Session
from robowire.serving.text import http_response
from robowire.transport.connection import Connection
from robowire.wire.framing import DEFAULT_MAX_PAYLOAD, MAX_MAX_PAYLOAD, TextLine
from robowire.wire.messages import error_reply
from robowire.wire.pickle.writer import Buffer, encode_frame

__all__ = ["Handler", "TcpOptions", "TcpServer", "listen"]

logger = logging.getLogger(__name__)

# Room for a hello with a token, and nothing that costs memory, until the token was shown.
UNAUTHENTICATED_MAX_PAYLOAD = 64 * 1024

# A browser sends about 20 header lines, and nobody needs 100.
_MAX_HEADER_LINES = 100

# Peers being told "overloaded" at one time. Past it they are closed at once: being told must not cost us
# threads.
_MAX_REFUSALS = 16
_REFUSAL_S = 1.0

# How long to let the accept loop rest when the process is out of file descriptors or memory.
_ACCEPT_RETRY_S = 0.1

# The end of the drain that is kept back for closing connections.
_CLOSING_S = 0.5


@dataclass(frozen=True)
class TcpOptions:
    """Where a server listens and what it bears.

    Attributes:
        host: Address to listen on; 0.0.0.0 is every IPv4 address, :: every address.
        port: TCP port; 0 picks a free one.
        max_payload: Largest request to accept, in bytes. Three 640x480 cameras are 2.6 MiB.
        max_connections: Clients at one time; the next one is told "overloaded". This times max_payload bounds
            the memory that hostile clients can take.
        session_timeout_s: Seconds without a request after which a client is closed.
        frame_timeout_s: Seconds from the first byte of a request to its last.
        send_timeout_s: Seconds a client may take to read a reply.
        drain_s: Seconds that requests in hand have to finish when the server is told to stop.
        auth_token: What clients must show in their hello; none by default. Prefer the environment variable:
            other users of this machine can read flags.
    """

    host: str = "0.0.0.0"
    port: int = 5000
    max_payload: int = DEFAULT_MAX_PAYLOAD
    # Each costs a thread (about 0.15 MB) and at worst one payload.
    max_connections: int = 64
    # Long enough for a person to set up the next trial; a client that reconnects by itself does not notice.
    session_timeout_s: float = 3600.0
    # 64 MiB in 30 s is 18 Mbit/s, slow Wi-Fi.
    frame_timeout_s: float = 30.0
    send_timeout_s: float = 30.0
    drain_s: float = 10.0
    auth_token: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port}, expected 0 to 65535")
        if not 0 < self.max_payload <= MAX_MAX_PAYLOAD:
            raise ConfigurationError(
                f"max_payload is {self.max_payload}, expected 1 to {MAX_MAX_PAYLOAD} bytes"
            )
        if self.max_connections < 1:
            raise ConfigurationError(f"max_connections is {self.max_connections}, expected at least 1")
        for name in ("session_timeout_s", "frame_timeout_s", "send_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
        if not self.drain_s >= 0:
            raise ConfigurationError(f"drain_s is {self.drain_s}, expected 0 or more seconds")
        if self.auth_token == "":
            raise ConfigurationError("auth_token is empty: leave it out, or give one")


class Handler(Protocol):
    """What answers one connection. Its methods are called by that connection's thread, one at a time."""

    def payload(self, payload: bytearray) -> Sequence[Buffer]:
        """Return the reply to one payload: frame buffers, from ``encode_frame``. The payload may be kept.

        Raises:
            RemoteProtocolError: The payload cannot be read; the connection is closed without a reply.
        """
        ...

    def line(self, line: str) -> bytes:
        """Return the reply to one line of text, with its line ending; see ``text.answer_line``."""
        ...

    def close(self) -> None:
        """Free what the connection held. Called once, whatever ended it."""
        ...


@dataclass(eq=False)
class _Client:
    """One connection that is being served."""

    session: Session
    sock: socket.socket
    connection: Connection
    thread: threading.Thread
    busy: bool = False  # it has a request in hand


class TcpServer:
    """Listen, and let a handler answer each connection.

    The port is bound when the object is made. Then either call :meth:`serve_forever`, or use the object as a
    context manager, which serves in a thread of its own and shuts down at the end.

    Args:
        options: Where to listen, and the limits.
        open_handler: Makes the handler of a new connection, in that connection's thread.
        metrics: Counts connections, requests and bytes.

    Raises:
        ConfigurationError: The address cannot be listened on.

    Attributes:
        address: Host and port it listens on; the port is never 0.
    """

    def __init__(
        self, options: TcpOptions, open_handler: Callable[[Session], Handler], metrics: Metrics
    ) -> None:
        self._options = options
        self._open_handler = open_handler
        self._metrics = metrics
        self._listener = listen(options.host, options.port)
        host, port = self._listener.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        # A byte in it ends the accept loop: closing a listener does not wake a thread that waits for it.
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._stopping = False
        self._closed = False
        self._serving = threading.Lock()  # held while serve_forever runs
        self._thread = threading.Thread(target=self.serve_forever, name="accept")  # for the context manager
        self._accept_failed = False
        self._next_id = 1
        # Guards what follows; notified when a request is answered and when a connection ends.
        self._changed = threading.Condition()
        self._clients: dict[int, _Client] = {}
        self._refusals: set[threading.Thread] = set()

    def __enter__(self) -> TcpServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()

    def serve_forever(self) -> None:
        """Take connections until :meth:`stop`; then drain, and return when none is left or time is up."""
        with self._serving:
            try:
                self._accept_until_stopped()
            finally:
                self._close()

    def stop(self) -> None:
        """Tell :meth:`serve_forever` to end. Returns at once; a signal handler may call it."""
        self._stopping = True  # no lock here: a signal handler runs on a thread that may hold it
        with contextlib.suppress(OSError):  # closed already
            self._wake_writer.send(b"\0", socket.MSG_DONTWAIT)

    def shutdown(self) -> None:
        """Finish requests in hand, refuse new ones, and return when that is done or time is up."""
        self.stop()
        with self._serving:
            self._close()

    def _accept_until_stopped(self) -> None:
        self._listener.setblocking(
            False
        )  # a peer that leaves before accept must not make us wait for the next one
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake_reader, selectors.EVENT_READ)
            while not self._stopping:
                selector.select()
                if not self._stopping:
                    self._accept()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as exc:  # out of file descriptors, or of memory for buffers
            if not self._accept_failed:
                logger.warning("cannot take connections for now: %s", exc.strerror or exc)
            self._accept_failed = True
            time.sleep(_ACCEPT_RETRY_S)
            return
        self._accept_failed = False
        with self._changed:
            full = len(self._clients) >= self._options.max_connections
        try:
            if full:
                self._refuse(sock)
            else:
                self._open(sock)
        except RuntimeError as exc:  # no thread can be started
            logger.warning("cannot serve another connection: %s", exc)
            sock.close()

    def _open(self, sock: socket.socket) -> None:
        try:
            connection = Connection(sock, max_payload=self._options.max_payload, text=True)
            # A robot that lost its power never closes: probe after a minute, and give up after two.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        except (TransportError, OSError) as exc:
            logger.debug("a connection ended before it was served: %s", exc)
            sock.close()
            return
        session = Session(
            self._next_id,
            connection.peer,
            host=sock.getsockname()[0],
            authenticated=self._options.auth_token is None,
            has_left=connection.ended,
        )
        self._next_id += 1
        thread = threading.Thread(
            target=self._serve, args=(session.id,), name=f"session-{session.id}", daemon=True
        )
        with self._changed:
            self._clients[session.id] = _Client(session, sock, connection, thread)
        try:
            thread.start()
        except RuntimeError:
            with self._changed:
                del self._clients[session.id]
            raise

    def _serve(self, session_id: int) -> None:
        """Be the thread of one connection."""
        with self._changed:
            client = self._clients[session_id]
        session, started, reason = client.session, time.monotonic(), ""
        logger.info("%s connected from %s", session, session.peer)
        self._metrics.session_opened()
        try:
            handler = self._open_handler(session)
            try:
                while self._exchange(client, handler):
                    pass
            finally:
                handler.close()
        except RemoteProtocolError as exc:
            logger.warning("%s sent what cannot be read: %s", session, exc)
            self._metrics.error("unreadable")
        except TransportError as exc:
            reason = f": {exc}"
        except Exception:
            logger.exception("%s met a bug of this server", session)
        finally:
            client.connection.close()
            with self._changed:
                del self._clients[session_id]
                self._changed.notify_all()
            self._metrics.session_closed()
            seconds = time.monotonic() - started
            logger.info("%s closed (%d requests, %.0f s)%s", session, session.requests, seconds, reason)

    def _exchange(self, client: _Client, handler: Handler) -> bool:
        """Serve one request, and return whether there may be another.

        A method of its own, so that a payload is freed before the next one is awaited.
        """
        session, connection, options = client.session, client.connection, self._options
        received_before, sent_before = connection.bytes_received, connection.bytes_sent
        # A stranger may neither make us set memory aside nor keep a place.
        stranger = not session.authenticated
        limit = min(UNAUTHENTICATED_MAX_PAYLOAD, options.max_payload) if stranger else options.max_payload
        connection.decoder.max_payload = limit
        event = connection.receive(
            wait_s=options.frame_timeout_s if stranger else options.session_timeout_s,
            finish_s=options.frame_timeout_s,
        )
        if event is None:
            return False
        started = time.monotonic()
        session.requests += 1
        self._set_busy(client, busy=True)
        try:
            more = True
            if not isinstance(event, TextLine):
                logger.debug("< #%d %d bytes", session.id, len(event))
                buffers = self._answer(session, handler, event)
            elif event.startswith("GET "):
                more = False
                self._read_http_headers(connection)
                buffers = [http_response(event, self._metrics, draining=self._stopping)]
            else:
                logger.debug("< #%d %s", session.id, event[:40])
                more = event.strip().upper() != "QUIT"
                buffers = [handler.line(event)]
            connection.send(buffers, timeout_s=options.send_timeout_s)
        finally:
            self._set_busy(client, busy=False)
        sent = connection.bytes_sent - sent_before
        self._metrics.request(bytes_received=connection.bytes_received - received_before, bytes_sent=sent)
        logger.debug("> #%d %d bytes %.1f ms", session.id, sent, (time.monotonic() - started) * 1e3)
        return more

    def _answer(self, session: Session, handler: Handler, payload: bytearray) -> Sequence[Buffer]:
        try:
            return handler.payload(payload)
        except RemoteProtocolError:
            raise
        except Exception:
            logger.exception("%s met a bug of this server", session)
            self._metrics.error(InternalError.error_type)
            return encode_frame(
                error_reply(InternalError("the server failed on this request; its log says why"))
            )

    def _read_http_headers(self, connection: Connection) -> None:
        deadline = time.monotonic() + self._options.frame_timeout_s
        for _ in range(_MAX_HEADER_LINES):
            left = max(deadline - time.monotonic(), 1e-3)
            if not connection.receive(wait_s=left, finish_s=left):  # the blank line, or the end
                return

    def _set_busy(self, client: _Client, *, busy: bool) -> None:
        with self._changed:
            client.busy = busy
            if not busy:
                self._changed.notify_all()

    def _refuse(self, sock: socket.socket) -> None:
        """Tell a peer that the server is full, in a thread of its own: it may be slow to listen."""
        self._metrics.session_refused()
        error = Overloaded(f"all {self._options.max_connections} connections are taken; try again later")
        with self._changed:
            if len(self._refusals) >= _MAX_REFUSALS:
                logger.debug("turned a connection away without a word: too many at once")
                sock.close()
                return
            thread = threading.Thread(
                target=self._tell_refused, args=(sock, error), name="refusal", daemon=True
            )
            thread.start()
            self._refusals.add(thread)

    def _tell_refused(self, sock: socket.socket, error: Overloaded) -> None:
        deadline = time.monotonic() + _REFUSAL_S
        try:
            logger.warning("turned away a connection from %s: %s", sock.getpeername()[0], error)
            sock.settimeout(_REFUSAL_S)
            first = sock.recv(4, socket.MSG_PEEK)
            if first == b"GET ":  # a probe asks whether we are alive, and we are
                line = Connection(sock, text=True).receive(wait_s=_REFUSAL_S, finish_s=_REFUSAL_S)
                reply = [http_response(str(line), self._metrics, draining=self._stopping)]
            elif first[:1].isalpha():
                reply = [f"ERROR {error.error_type}: {error}\n".encode()]
            else:
                reply = [bytes(buffer) for buffer in encode_frame(error_reply(error))]
            sock.sendall(b"".join(reply))
            # Closing with unread bytes resets the connection, and a peer still sending would never see the
            # reply.
            sock.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline and sock.recv(1 << 16):
                pass
        except (OSError, TransportError, RemoteProtocolError) as exc:
            logger.debug("a peer did not wait to be turned away: %s", exc)
        finally:
            sock.close()
            with self._changed:
                self._refusals.discard(threading.current_thread())

    def _close(self) -> None:
        """Drain, and close everything. Nothing is left to do the second time."""
        if self._closed:
            return
        self._closed = True
        end = time.monotonic() + self._options.drain_s
        with self._changed:
            clients = list(self._clients.values())
            for client in clients:
                client.session.draining = True
            self._listener.close()  # after the line above: who finds the port closed knows that we drain
            self._changed.wait_for(
                lambda: not any(client.busy for client in self._clients.values()),
                timeout=max(self._options.drain_s - _CLOSING_S, 0),
            )
            threads = [client.thread for client in clients] + list(self._refusals)
        for client in clients:
            client.connection.stop_reading()
        _join(threads, end - time.monotonic())
        for client in clients:  # peers that do not read, and requests that did not finish
            with contextlib.suppress(OSError):
                client.sock.shutdown(socket.SHUT_RDWR)
        _join(threads, _CLOSING_S)
        left = sum(thread.is_alive() for thread in threads)
        if left:
            logger.warning(
                "%d requests did not finish within %g s and were given up", left, self._options.drain_s
            )
        self._wake_writer.close()
        self._wake_reader.close()


def _join(threads: Sequence[threading.Thread], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))


def listen(host: str, port: int, *, flags: str = "--") -> socket.socket:
    """Return a socket that listens, and that a restart of the server need not wait for.

    Args:
        host: Address, or a name of one.
        port: TCP port; 0 picks a free one.
        flags: How the flags begin that a message names: ``"--"`` for ``--host`` and ``--port``.

    Raises:
        ConfigurationError: It can't; says what to do.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigurationError(f"cannot listen on {host!r}: {exc.strerror}: check {flags}host") from exc
    # "localhost" is two addresses, and old clients try IPv4 only.
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    # asyncio turns Nagle's algorithm off, which costs 40 ms a reply, only where it sees this number.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # a restart must not wait for TIME_WAIT
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" takes IPv4 clients too
        listener.bind(address)
        listener.listen(128)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            message = f"port {port} is in use: stop what listens there, or choose another with {flags}port"
        elif exc.errno == errno.EACCES:
            message = f"port {port} may not be opened by this user: choose one above 1023 with {flags}port"
        else:
            message = f"cannot listen on {host}:{port}: {exc.strerror or exc}: check {flags}host"
        raise ConfigurationError(message) from exc
    return listener
