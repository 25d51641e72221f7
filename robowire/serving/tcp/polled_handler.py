"""The part of a connection's handler that the poller's thread runs, and the way there and back."""

from __future__ import annotations

import logging
import socket
import socketserver
import time
from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from robowire.errors import ConnectionLost
from robowire.serving.service import Deferred, Exchange
from robowire.serving.sessions import OnDone, Session
from robowire.transport.stream import Stream
from robowire.wire.payload_memory import PayloadMemory
from robowire.wire.pickle.writer import Buffer

if TYPE_CHECKING:
    from robowire.serving.tcp.server import TcpServer

__all__ = ["PolledHandler"]

logger = logging.getLogger(__name__)

# A client that sends its next request within this time of the last reply is quick: one in the closed loop of
# a simulator, or one of hundreds. A robot that asks once a second has a thread that waits for it.
_QUICK_S = 0.5
# So many quick requests in a row, and the connection is lent. One that came back after few requests must be
# quick for twice as long the next time, up to a bound; one that came back after many, only once.
_QUICK_REQUESTS = 4
_MOST_QUICK_REQUESTS = 256
# Requests after which lending has paid: it costs two switches of threads.
_WORTH = 16

# How long a frame that has begun may take, and a request that has not, before the connection's own thread
# waits for it: the thread knows the timeouts. To wait here costs nothing, and spares a hand-over afterwards.
_BEGUN_S = 0.25
_IDLE_S = 30.0

# Methods that take no longer than an observation does.
_METHODS = frozenset({"infer", "reset", "ping"})

# A larger payload is read by its own thread: others would wait for it, and two threads that copy at the same
# time get a tenth more of 6.4 MB through than one; of 2.8 MB one gets as much.
MAX_POLLED_PAYLOAD = 4 * 1024 * 1024


class Leave(Exception):
    """What came, or did not come, is for the connection's own thread."""


class PolledHandler(socketserver.BaseRequestHandler):
    """A connection that its thread lends to the poller of its server while requests come quickly.

    Attributes:
        pending: Whether a request is in hand in the poller's thread, and its answer not there yet.
    """

    server: TcpServer
    request: socket.socket
    _session: Session | None
    _stream: Stream

    def setup(self) -> None:
        """Prepare the counters."""
        self.pending = False
        self._steps: Generator[Deferred, None, Any] | None = None  # of the request that is pending
        self._deferred: Deferred | None = None
        self._quick, self._needed = 0, _QUICK_REQUESTS
        self._polled = 0  # requests since it was lent
        self._logs_frames = False
        self._active = 0.0  # when the last reply was sent
        self._begun = 0.0  # when the first byte of a frame came; 0 where none has
        self._counted_received = self._counted_sent = 0
        # What is left to its own thread.
        self._waited_s = 0.0
        self._error: Exception | None = None
        self._unsent: Sequence[Buffer] = ()
        self._work: Callable[[], bool] | None = None

    # -- its own thread --------------------------------------------------------------------------------------

    def _note_request(self, waited_s: float) -> None:
        """Note how long its thread has waited for a request."""
        self._quick = self._quick + 1 if waited_s < _QUICK_S else 0

    def _lend(self) -> bool:
        """Lend the connection to the poller where that pays; return whether there may be more requests."""
        if self._quick < self._needed or not self.server.polls or not self._may_be_lent():
            return True
        session, poller = self._session, self.server.poller
        assert session is not None
        self._quick = self._polled = 0
        self._active, self._begun = time.monotonic(), 0.0
        self._logs_frames = logger.isEnabledFor(logging.DEBUG)
        session.on_done = OnDone(poller, self)
        self._memory.share(poller.memory)
        poller.serve(self)
        self._memory.share(None)
        session.on_done = None
        paid = self._polled >= _WORTH
        self._needed = 1 if paid else min(self._needed * 2, _MOST_QUICK_REQUESTS)
        self._stream.expect(1)
        if self._steps is not None:
            self._end_pending()
        if self._error is not None:
            raise self._error
        if self._unsent:
            started, left = time.monotonic(), self._unsent
            self._unsent = ()
            self._stream.send(left, self.server.options.send_timeout_s)
            self._count(send_s=time.monotonic() - started)
        work, self._work = self._work, None
        if work is not None:
            return work()
        self._waited_s = time.monotonic() - (self._begun or self._active)
        return True

    def _end_pending(self) -> None:
        """Send the reply to a request that is pending, or give it up where the server was stopped."""
        steps, deferred = self._steps, self._deferred
        assert steps is not None
        assert deferred is not None
        self._steps = self._deferred = None
        self.pending = False
        self._resume()
        if not deferred.is_done():
            steps.close()
            raise ConnectionLost("the server was stopped before the policy answered")
        try:
            next(steps)
        except StopIteration as stop:
            self._unsent = self._buffers(stop.value)

    def _may_be_lent(self) -> bool:
        session = self._session
        return session is not None and session.authenticated and not session.watches and self._stream.polls

    def _remaining(self, timeout_s: float) -> float:
        """Return what is left of a timeout of the request that is awaited."""
        return max(timeout_s - self._waited_s, 1e-3) if self._waited_s else timeout_s

    def _count(self, *, method: str = "", receive_s: float | None = None, send_s: float) -> tuple[int, int]:
        """Count a request that was answered, and return its bytes and those of its reply."""
        stream, session = self._stream, self._session
        received = stream.bytes_received - self._counted_received
        sent = stream.bytes_sent - self._counted_sent
        self.server.service.metrics.request(
            bytes_received=received,
            bytes_sent=sent,
            frontend=self.server.name,
            method=method or (session.method if session is not None else "") or "unknown",
            receive_s=receive_s,
            send_s=send_s,
        )
        self._counted_received, self._counted_sent = stream.bytes_received, stream.bytes_sent
        return received, sent

    # -- the poller's thread ---------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self.request.fileno()

    def is_slow(self, now: float) -> bool:
        """Return whether its own thread is to wait for what comes next."""
        if self._begun:
            return now - self._begun > _BEGUN_S
        return now - self._active > min(_IDLE_S, self.server.options.session_timeout_s / 2)

    def fail(self, error: Exception) -> None:
        """Note an error, for its own thread."""
        self._error = error
        self._steps = None

    def go_on(self) -> bool:
        """Receive, answer and send what is possible; return whether the connection stays with the poller."""
        if self._steps is None:
            try:
                event = self._receive_now()
            except Leave:
                return False
            if event is None:
                if not self._begun and self._mid_frame:
                    self._begun = time.monotonic()
                return True
            exchange = self._known_exchange(event)
            if exchange is None or exchange.method not in _METHODS:
                self._work = partial(self._serve, event)
                return False
            session = self._session
            assert session is not None
            self._steps = self.server.service.answering(session, exchange)
            del event, exchange  # their memory is used for the next ones
        elif self._deferred is not None:
            if not self._deferred.is_done():
                return True
            if not self._resume(wait=False):
                return False
        try:
            self._deferred = next(self._steps)
            self.pending = True
            self._suspended()
            return True
        except StopIteration as stop:
            reply = stop.value
        self._steps = self._deferred = None
        self.pending = False
        answered = time.monotonic()
        self._unsent = self._stream.send_now(self._buffers(reply))
        self._active = now = time.monotonic()
        receive_s = answered - self._begun if self._begun else 0.0
        self._begun = 0.0
        self._polled += 1
        if self._unsent:
            return False  # the rest waits in its thread for a client that is slow to read
        _, sent = self._count(receive_s=receive_s, send_s=now - answered)
        if self._logs_frames:
            logger.debug("> #%d %d bytes", self._session and self._session.id, sent)
        return not self._has_ahead

    @property
    @abstractmethod
    def _mid_frame(self) -> bool:
        """Whether a request has begun and is not complete."""

    @property
    def _has_ahead(self) -> bool:
        """Whether bytes of the next request have come, which no poll of the socket reports."""
        return False

    @property
    @abstractmethod
    def _memory(self) -> PayloadMemory:
        """Where its payloads get theirs: while it is lent, that of all connections of the poller."""

    @abstractmethod
    def _receive_now(self) -> Any:
        """Return the next request where it is complete, ``None`` where it is not.

        Raises:
            Leave: The peer has ended the stream, or what it sends needs the connection's own thread.
            TransportError: The connection broke.
            RemoteProtocolError: The peer broke the framing.
        """

    @abstractmethod
    def _known_exchange(self, event: Any) -> Exchange[Any] | None:
        """Return the exchange of a request that takes little time to read; ``None`` for another."""

    @abstractmethod
    def _buffers(self, reply: Any) -> Sequence[Buffer]:
        """Return what is sent for a reply to the request that was received last."""

    @abstractmethod
    def _serve(self, event: Any) -> bool:
        """Answer a request in its own thread, and return whether there may be another."""

    def _suspended(self) -> None:
        """Note that the request is pending."""

    def _resume(self, *, wait: bool = True) -> bool:
        """Note that it is answered; return whether that was possible in the wait that is allowed."""
        return True
