"""One connection of the TCP frontend: receive, pass to the service, send; until either side ends it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from robowire.address import is_loopback
from robowire.errors import (
    InvalidParams,
    RemoteProtocolError,
    RequestTimeout,
    TlsFailed,
    TransportError,
    UnsafePayload,
)
from robowire.serving.sessions import Peer, Session
from robowire.serving.tcp.foreign_greetings import (
    ZMTP_START,
    foreign_answer,
    foreign_line,
    foreign_sentence,
)
from robowire.serving.tcp.polled_handler import MAX_POLLED_PAYLOAD, Leave, PolledHandler
from robowire.serving.tcp.shared_payloads import SharedPayloads
from robowire.serving.text import HTTP_PATHS, answer_line, http_response
from robowire.transport.connection import Connection
from robowire.transport.stream import Stream
from robowire.wire.codecs import AnyExchange
from robowire.wire.framing import TextLine
from robowire.wire.messages import error_reply
from robowire.wire.payload_memory import PayloadMemory
from robowire.wire.pickle.writer import Buffer, encode_frame
from robowire.wire.text_safety import printable, quoted
from robowire.wire.trace_context import is_trace_context, read_trace_context

__all__ = ["ConnectionHandler"]

logger = logging.getLogger(__name__)

# Enough for a hello with a token. The worst payload of this size costs 0.7 MB and some milliseconds to read.
UNAUTHENTICATED_MAX_PAYLOAD = 4 * 1024

# A browser sends about 20 header lines; no client needs 100.
_MAX_HEADER_LINES = 100

# How long the peer of another wire has to read its refusal, and how long one that has none is held.
_FOREIGN_S = 1.0
_HOLD_S = 60.0


class ConnectionHandler(PolledHandler):
    """Serve one connection, in a thread of its own.

    The session opens with the first request: a health check, which closes after one line of HTTP, is none.
    """

    def setup(self) -> None:
        """Prepare the socket."""
        super().setup()
        self._session: Session | None = None
        self._ending = ""
        self._shared = SharedPayloads(self.server.options.max_payload)
        self._opened = time.monotonic()
        if self.request.family not in (socket.AF_INET, socket.AF_INET6):
            return
        # A robot that lost power never closes its connection: probe after a minute, give up after two.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                self.request.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def handle(self) -> None:
        """Serve the connection until it ends."""
        try:
            self._stream = Stream(self.request)
            # Asked now, because a connection that fails is closed before it is logged.
            private = self.server.tls is not None or is_loopback(self._stream.peer)
            self._peer = Peer(
                self._stream.peer,
                self._stream.local_host,
                self._has_left,
                may_send_token=private or self.server.options.plain_token,
                wire=self.server.name,
            )
        except TransportError as exc:
            logger.debug("a connection ended before it was served: %s", exc)
            return
        self.server.opened(self)
        try:
            if self.server.tls is not None:
                self._stream.accept_tls(self.server.tls, timeout_s=self.server.options.frame_timeout_s)
            self._connection = Connection(
                self._stream, max_payload=self.server.options.max_payload, text=True
            )
            if self._speaks_zmtp():
                self._refuse_foreign("zmtp")
                return
            while self._exchange() and self._lend():
                pass
        except TlsFailed as exc:
            logger.warning("%s", exc)
        except RemoteProtocolError as exc:
            self._count_unreadable(exc)
        except TransportError as exc:
            self._ending = f": {exc}"
            if isinstance(exc, RequestTimeout):  # one who connects and stays silent is a client too
                self._open_session()
        finally:
            self.server.closed(self)

    def finish(self) -> None:
        """Close the connection and its session."""
        if hasattr(self, "_stream"):
            self._stream.close()
        self._shared.close()
        session = self._session
        if session is None:
            return
        if (descriptor := session.take_descriptor()) is not None:
            os.close(descriptor)
        self.server.service.close_session(session)
        seconds = time.monotonic() - self._opened
        logger.info("%s closed (%d requests, %.0f s)%s", session, session.requests, seconds, self._ending)

    def stop_reading(self) -> None:
        """End the connection after the reply in hand; any thread may call it."""
        self._stream.shutdown_read()

    def shut_down(self) -> None:
        """End the connection at once; any thread may call it."""
        self._stream.shutdown()

    def _has_left(self) -> bool:
        return self._stream.ended() and not self._has_ahead

    def _open_session(self) -> Session:
        if self._session is None:
            self._session = self.server.service.open_session(self._peer)
            threading.current_thread().name = f"session-{self._session.id}"
        return self._session

    def _exchange(self) -> bool:
        """Serve one request, and return whether there may be another.

        A method of its own, so that nothing holds a payload when the next one is received.
        """
        session, connection, options = self._session, self._connection, self.server.options
        # A client without the token may neither make us allocate memory nor keep its place.
        trusted = session.authenticated if session is not None else not self.server.service.needs_token
        limit = options.max_payload if trusted else min(UNAUTHENTICATED_MAX_PAYLOAD, options.max_payload)
        connection.decoder.max_payload = limit
        asked = time.monotonic()
        event = connection.receive(
            wait_s=self._remaining(options.session_timeout_s if trusted else options.frame_timeout_s),
            finish_s=self._remaining(options.frame_timeout_s),
        )
        self._waited_s = 0.0
        if event is None:
            return False
        if trusted:
            self._note_request(time.monotonic() - asked)
        return self._serve(event, trusted=trusted)

    def _serve(self, event: bytearray | TextLine, *, trusted: bool = True) -> bool:
        started, connection, stream = time.monotonic(), self._connection, self._stream
        if isinstance(event, TextLine) and (
            event.startswith("GET ") or (self._session is None and foreign_line(event) is not None)
        ):
            self._answer_http(event)
            return False
        session, more = self._session or self._open_session(), True
        logs = logger.isEnabledFor(logging.DEBUG)
        descriptor = stream.take_descriptor() if stream.takes_descriptors else None
        if descriptor is not None and (isinstance(event, TextLine) or not self._shared.is_share(event)):
            os.close(descriptor)
            descriptor = None
        if session.tells_trace and not isinstance(event, TextLine) and is_trace_context(event):
            session.trace_headers = read_trace_context(event)
            return True
        if isinstance(event, TextLine):
            logger.debug("< #%d %s", session.id, quoted(event, 40))
            more = event.strip().upper() != "QUIT"
            buffers: Sequence[Buffer] = [answer_line(event, session, self.server.service)]
        else:
            if logs:
                logger.debug("< #%d %d bytes", session.id, len(event))
            if self.server.service.tracing is not None:
                self.server.service.begin_span(session, receive_s=connection.receive_s)
            try:
                buffers = (
                    self._answer_shared(session, event, descriptor)
                    if session.shares
                    else self._answer(session, event)
                )
                stream.takes_descriptors = session.shares
            except UnsafePayload as exc:
                # Its frame is complete, so that the peer can be told why it is closed.
                self._count_unreadable(exc)
                buffers, more = encode_frame(error_reply(_refusal(exc))), False
            if session.authenticated and not trusted and not self.server.admit(self.request):
                self.server.service.metrics.session_refused()
                buffers, more = encode_frame(error_reply(self.server.overloaded())), False
        answered = time.monotonic()
        if session.descriptor is None:
            connection.send(buffers, timeout_s=self.server.options.send_timeout_s)
        else:
            self._send_descriptor(session, buffers)
        send_s = time.monotonic() - answered
        received, sent = self._count(
            method="text" if isinstance(event, TextLine) else session.method,
            receive_s=connection.receive_s,
            send_s=send_s,
        )
        if session.span is not None:
            self.server.service.end_span(session, send_s=send_s, bytes_received=received, bytes_sent=sent)
        if logs:
            logger.debug("> #%d %d bytes %.1f ms", session.id, sent, (time.monotonic() - started) * 1e3)
        return more

    @property
    def _mid_frame(self) -> bool:
        return self._connection.decoder.mid_frame

    @property
    def _has_ahead(self) -> bool:
        return bool(self._connection.decoder.ahead)

    def _may_be_lent(self) -> bool:
        return super()._may_be_lent() and not self._has_ahead

    @property
    def _memory(self) -> PayloadMemory:
        return self._connection.decoder.memory

    def _receive_now(self) -> bytearray | TextLine | None:
        stream, decoder = self._stream, self._connection.decoder
        while True:
            buffers = decoder.get_buffers()
            received = stream.recv_now(buffers)
            if received == 0:
                raise Leave
            event = None if received is None else decoder.buffers_updated(received)
            if event is not None:
                stream.expect(1)
                return event
            if received is None or received < sum(map(len, buffers)):
                if decoder.in_payload:
                    stream.expect(len(decoder.get_buffer()))
                return None

    def _known_exchange(self, event: bytearray | TextLine) -> AnyExchange | None:
        if not isinstance(event, bytearray) or len(event) > MAX_POLLED_PAYLOAD:
            return None
        session, codec = self._session, self.server.codec
        assert session is not None
        assert codec is not None
        if self._stream.has_descriptor:
            return None
        exchange = codec.known_exchange(event, session)
        if exchange is None or not session.shares or not self._shared.is_shared(event):
            return exchange
        try:
            return codec.known_exchange(self._shared.whole(event, session.layouts), session)
        except InvalidParams:  # its own thread finds it again, and answers
            return None

    def _buffers(self, reply: Sequence[Buffer]) -> Sequence[Buffer]:
        assert self._session is not None
        return self._shared.answered(reply) if self._session.shares else reply

    def _send_descriptor(self, session: Session, buffers: Sequence[Buffer]) -> None:
        """Send a reply and the descriptor that goes with it."""
        descriptor = session.take_descriptor()
        assert descriptor is not None
        try:
            self._stream.send_descriptor(buffers, descriptor, self.server.options.send_timeout_s)
        finally:
            os.close(descriptor)

    def _count_unreadable(self, error: RemoteProtocolError) -> None:
        session = self._open_session()
        logger.warning("%s sent what cannot be read: %s", session, printable(error))
        self.server.service.metrics.error("unreadable")
        if session.span is not None:
            session.span.fail("unreadable", printable(error))

    def _answer(self, session: Session, payload: bytearray) -> Sequence[Buffer]:
        assert self.server.codec is not None
        exchange = self.server.codec.exchange(payload, session)
        answer: Sequence[Buffer] = self.server.service.answer(session, exchange)
        return answer

    def _answer_shared(
        self, session: Session, payload: bytearray, descriptor: int | None
    ) -> Sequence[Buffer]:
        """Answer a client that may use shared memory."""
        try:
            if self._shared.is_share(payload):
                return encode_frame(self._shared.share(payload, descriptor))
            if self._shared.is_shared(payload):
                payload = self._shared.whole(payload, session.layouts)
        except InvalidParams as exc:
            self.server.service.count_error(exc, str(session))
            return encode_frame(error_reply(exc))
        buffers = self._answer(session, payload)
        del payload
        return self._shared.answered(buffers)

    def _answer_http(self, line: str) -> None:
        """Answer a health check; name the other wires that begin with a line, and refuse them."""
        headers = self._read_http_headers()
        wire = foreign_line(line, headers)
        path = [*line.split(), "", ""][1].partition("?")[0]
        if wire is None or (wire == "http" and line.startswith("GET ") and path in HTTP_PATHS):
            response = http_response(line, self.server.service)
            self._connection.send([response], timeout_s=self.server.options.send_timeout_s)
        else:
            self._refuse_foreign(wire, line)

    def _read_http_headers(self) -> list[str]:
        deadline = time.monotonic() + self.server.options.frame_timeout_s
        headers: list[str] = []
        for _ in range(_MAX_HEADER_LINES):
            left: Any = max(deadline - time.monotonic(), 1e-3)
            line = self._connection.receive(wait_s=left, finish_s=left)
            if not line:  # the blank line, or the end
                break
            headers.append(str(line))
        return headers

    def _speaks_zmtp(self) -> bool:
        options = self.server.options
        trusted = not self.server.service.needs_token
        wait_s = options.session_timeout_s if trusted else options.frame_timeout_s
        return self._stream.peek(2, wait_s) == ZMTP_START

    def _refuse_foreign(self, wire: str, line: str = "") -> None:
        """Name the wire of a peer in the log, once for each host, and tell the peer in that wire's words."""
        server = self.server
        host = self._peer.address.rpartition(":")[0]
        sentence = foreign_sentence(wire, server.service.kind, server.address[1] or server.address[0])
        if server.greetings.first(host, wire):
            logger.warning("%s connected with another wire: %s", printable(host), sentence)
        server.service.metrics.error("unreadable")
        answer = foreign_answer(wire, sentence, line)
        if answer:
            self._connection.send([answer], timeout_s=server.options.send_timeout_s)
            self._stream.close_after_reading(_FOREIGN_S)
        elif server.hold(self.request):
            # A server of ZeroMQ that closes is dialled again ten times a second. One that is silent is given
            # up after libzmq's ZMQ_HANDSHAKE_IVL of 30 s.
            with suppress(TransportError):
                self._stream.discard(_HOLD_S)


def _refusal(error: UnsafePayload) -> InvalidParams:
    """Return what a peer is told whose payload is not read."""
    return InvalidParams(
        f"the request cannot be read: {printable(error, 300)}; send numpy arrays (of a tensor, its .numpy()) "
        "and plain Python values"
    )
