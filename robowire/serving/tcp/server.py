"""The TCP frontend: a ``socketserver.ThreadingTCPServer`` with limits, TLS and a drain.

One thread accepts, and each connection has a thread of its own, which runs a
:class:`~robowire.serving.tcp.handler.ConnectionHandler`. Where several clients of a policy ask quickly, their
threads lend their connections to one (:mod:`robowire.serving.tcp.poller`). A peer that breaks the framing,
stalls, or sends what can't be read loses its connection; no other peer waits for it.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from robowire.errors import Overloaded, RemoteProtocolError, TransportError
from robowire.serving.service import Service
from robowire.serving.tcp.foreign_greetings import GreetingLog
from robowire.serving.tcp.handler import ConnectionHandler
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.poller import Poller
from robowire.serving.text import http_response
from robowire.transport.connection import Connection
from robowire.transport.stream import Stream
from robowire.transport.tls import server_tls
from robowire.wire.codecs import Codec
from robowire.wire.messages import error_reply
from robowire.wire.pickle.writer import encode_frame

__all__ = ["TcpServer"]

logger = logging.getLogger(__name__)

# Peers that are being answered "overloaded" at one time. Past it they are closed at once: the answer must not
# cost us threads.
_MAX_REFUSALS = 16
_REFUSAL_S = 1.0

# Peers of other wires that are held so that they do not dial again at once. A held one has a thread, and no
# place of max_connections.
_MAX_HELD = 8

# How long the accepting thread rests when the process is out of file descriptors or memory.
_ACCEPT_RETRY_S = 0.1

# How often the accepting thread looks whether it should end. An idle wake-up costs some microseconds.
_POLL_S = 0.05

# How long a connection has to end after its socket was shut down.
_ENDING_S = 0.5


class TcpServer(socketserver.ThreadingTCPServer):
    """The native wire of a service. The port is bound when the object is made.

    Args:
        service: What answers the requests.
        options: Where to listen, limits, TLS.
        codec: Reads the payloads of this port; ``None`` for a handler that does not use it.
        listener: Listening socket to use, from :func:`listen`; by default one is opened.

    Attributes:
        name: ``"tcp"``.
        address: Host and port it listens on; the port is never 0.
        service: As given.
        options: As given.
        codec: As given.
        tls: Context of the TLS handshake; ``None`` for plain TCP.
        greetings: Peers of other wires that the log has named.
        poller: Serves connections whose clients ask quickly.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    name = "tcp"
    # What serves one connection; frontends of other wires have their own.
    handler_class: type[ConnectionHandler] = ConnectionHandler
    # The interpreter does not wait for a connection that hangs; the drain waits for all of them, bounded.
    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        service: Service[Any],
        options: TcpOptions,
        codec: Codec | None,
        listener: socket.socket | None = None,
    ) -> None:
        self.service = service
        self.options = options
        self.codec = codec
        listener = listener or listen(options.host, options.port)
        try:
            self.tls = (
                None
                if options.tls_cert is None
                else server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
            )
            super().__init__(listener.getsockname(), self.handler_class, bind_and_activate=False)
        except BaseException:
            listener.close()
            raise
        self.socket.close()  # one that the base class has made, bound to nothing
        self.socket = listener
        # A peer that leaves before accept must not make the accepting thread wait for the next one.
        listener.setblocking(False)
        self.address = self.address_of(listener)
        self._thread = threading.Thread(
            target=self.serve_forever, args=(_POLL_S,), name="accept", daemon=True
        )
        self.poller = Poller(self.name)
        self._accept_failed = False
        self._listening = True
        # Guards what follows.
        self._lock = threading.Lock()
        self._admitted: set[socket.socket] = set()  # connections that have one of max_connections places
        # Those that have not sent the token, oldest first. They have as many places of their own, so that
        # they can't keep a client with the token out; where all are taken the oldest is closed.
        self._unauthenticated: dict[socket.socket, None] = {}
        self._handlers: dict[socket.socket, ConnectionHandler] = {}  # connections whose handler has begun
        self._threads_of: dict[socket.socket, threading.Thread] = {}
        self._refusals: dict[socket.socket, threading.Thread] = {}
        self._held: set[socket.socket] = set()
        self.greetings = GreetingLog()

    @staticmethod
    def address_of(listener: socket.socket) -> tuple[str, int]:
        """Return the host and port of a listening socket."""
        host, port = listener.getsockname()[:2]
        return host, port

    # -- frontend ------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Return nothing: programs print the address of the native wire by themselves."""
        return ""

    def start(self) -> None:
        """Accept connections in a thread."""
        if Poller.available and self.service.defers:
            self.poller.open()
        self._thread.start()

    def stop_listening(self) -> None:
        """Accept no further connection."""
        if self._thread.ident is not None:
            self.shutdown()
        self._listening = False
        self.server_close()

    def drain(self, deadline: float) -> None:
        """Send the replies in hand and close every connection; give up at the deadline."""
        with self._lock:
            handlers = list(self._handlers.values())
            threads = [*self._threads_of.values(), *self._refusals.values()]
        for handler in handlers:
            handler.stop_reading()
        _join(threads, deadline)
        with self._lock:
            # Peers that do not read, and requests that did not finish.
            handlers = list(self._handlers.values())
        for handler in handlers:
            handler.shut_down()
        _join(threads, time.monotonic() + _ENDING_S)
        left = sum(thread.is_alive() for thread in threads)
        if left:
            logger.warning(
                "%d requests did not finish within %g s and were given up", left, self.options.drain_s
            )

    def close(self) -> None:
        """Free the port and end the accepting thread; connections that were given up end by themselves."""
        if self._listening:
            self.stop_listening()
        if self._thread.ident is not None:
            self._thread.join()
        self.poller.close()
        with self._lock:
            threads = [*self._threads_of.values(), *self._refusals.values()]
        _join(threads, time.monotonic() + _ENDING_S)

    # -- socketserver --------------------------------------------------------------------------------------

    def get_request(self) -> tuple[socket.socket, Any]:
        """Return a new connection; where the process has no file descriptor left, wait a moment."""
        try:
            request = super().get_request()
        except (BlockingIOError, ConnectionAbortedError):
            raise
        except OSError as exc:  # out of file descriptors, or of memory for buffers
            if not self._accept_failed:
                logger.warning("cannot take connections for now: %s", exc.strerror or exc)
            self._accept_failed = True
            time.sleep(_ACCEPT_RETRY_S)
            raise
        self._accept_failed = False
        return request

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Return whether a connection is served; one past ``max_connections`` is answered "overloaded"."""
        if self.service.needs_token:
            self._make_place_without_token()
            with self._lock:
                self._unauthenticated[request] = None
            return True
        if self.admit(request):
            return True
        self._refuse(request)
        return False

    def admit(self, request: socket.socket) -> bool:
        """Give a connection one of ``max_connections`` places, and return whether there was one."""
        with self._lock:
            if len(self._admitted) >= self.options.max_connections:
                return False
            self._unauthenticated.pop(request, None)
            self._admitted.add(request)
            return True

    def hold(self, request: socket.socket) -> bool:
        """Let a connection of another wire stay open without a place; return whether it may."""
        with self._lock:
            if len(self._held) >= _MAX_HELD:
                return False
            self._admitted.discard(request)
            self._unauthenticated.pop(request, None)
            self._held.add(request)
            return True

    def _make_place_without_token(self) -> None:
        with self._lock:
            if len(self._unauthenticated) < self.options.max_connections:
                return
            oldest = next(iter(self._unauthenticated))
            del self._unauthenticated[oldest]
            handler = self._handlers.get(oldest)
        self.service.metrics.session_refused()
        logger.debug("closed the oldest connection without a token: all their places are taken")
        if handler is not None:
            handler.shut_down()
        else:  # its thread has not begun, and will find the connection ended
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its thread."""
        with self._lock:
            self._threads_of[request] = threading.current_thread()
        super().process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection and free its place; one that is being refused is closed by its own thread."""
        with self._lock:
            if request in self._refusals:
                return
            self._admitted.discard(request)
            self._unauthenticated.pop(request, None)
            self._threads_of.pop(request, None)
            self._held.discard(request)
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection and was no fault of its peer."""
        error = sys.exc_info()[1]
        if isinstance(error, RuntimeError) and "thread" in str(error):
            logger.warning("cannot serve another connection: %s", error)
        else:
            logger.exception(
                "a connection from %s met a bug of this server",
                client_address[0] if client_address else self.address[0],
            )

    @property
    def polls(self) -> bool:
        """Whether the poller serves connections now: there are several, and the service defers."""
        return len(self._handlers) > 1 and Poller.available and self.service.defers

    def opened(self, handler: ConnectionHandler) -> None:
        """Remember a connection whose handler has begun, so that a drain ends it."""
        with self._lock:
            self._handlers[handler.request] = handler

    def closed(self, handler: ConnectionHandler) -> None:
        """Forget it."""
        with self._lock:
            self._handlers.pop(handler.request, None)

    def overloaded(self) -> Overloaded:
        """Return the error of a client past ``max_connections``."""
        return Overloaded(f"all {self.options.max_connections} connections are taken; try again later")

    # -- connections past the limit ------------------------------------------------------------------------

    def _refuse(self, sock: socket.socket) -> None:
        """Answer "overloaded" in a thread of its own: the peer may be slow to read."""
        self.service.metrics.session_refused()
        thread = threading.Thread(target=self._answer_refused, args=(sock,), name="refusal", daemon=True)
        with self._lock:
            if len(self._refusals) >= _MAX_REFUSALS:
                logger.debug("closed a connection without an answer: too many at once")
                return
            self._refusals[sock] = thread
        try:
            thread.start()
        except RuntimeError as exc:
            logger.warning("cannot answer another connection: %s", exc)
            with self._lock:
                del self._refusals[sock]

    def _answer_refused(self, sock: socket.socket) -> None:
        error = self.overloaded()
        stream = None
        try:
            stream = Stream(sock)
            logger.warning("refused a connection from %s: %s", stream.peer.rpartition(":")[0], error)
            if self.tls is not None:
                stream.accept_tls(self.tls, timeout_s=_REFUSAL_S)
            self.answer_refused(stream, error)
        except (OSError, TransportError, RemoteProtocolError) as exc:
            logger.debug("a peer did not wait for its refusal: %s", exc)
        finally:
            if stream is not None:
                stream.close()
            sock.close()
            with self._lock:
                self._refusals.pop(sock, None)

    def answer_refused(self, stream: Stream, error: Overloaded) -> None:
        """Answer a client past ``max_connections``."""
        first = stream.peek(4, _REFUSAL_S)
        if first == b"GET ":  # a probe asks whether we are alive, and we are
            line = Connection(stream, text=True).receive(wait_s=_REFUSAL_S, finish_s=_REFUSAL_S)
            reply = [http_response(str(line), self.service)]
        elif first[:1].isalpha():
            reply = [f"ERROR {error.error_type}: {error}\n".encode()]
        else:
            reply = [bytes(buffer) for buffer in encode_frame(error_reply(error))]
        stream.send([b"".join(reply)], timeout_s=_REFUSAL_S)
        stream.close_after_reading(_REFUSAL_S)


def _join(threads: Iterable[threading.Thread], deadline: float) -> None:
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
