"""A ZeroMQ server for frontends: what a ROUTER socket is to REQ and DEALER clients, with limits and a drain.

It is the TCP frontend with another framing (:mod:`robowire.frontends.zmtp`): each connection has a thread, a
session and a place of its own, so that a slow client delays nobody, and the next request of a client is read
when the one before it is answered. A client with ZeroMQ's heartbeats gets its answers while it waits.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from robowire.errors import (
    ConfigurationError,
    ConnectionLost,
    FrameTooLarge,
    InvalidParams,
    Overloaded,
    ProtocolError,
    RemoteProtocolError,
    RequestError,
    RequestTimeout,
    TransportError,
)
from robowire.frontends.zmtp import (
    Command,
    Greeting,
    Message,
    Signature,
    ZmtpDecoder,
    command,
    error_command,
    greeting,
    message,
    parse_ready,
    ready_command,
)
from robowire.serving.service import Exchange, Service
from robowire.serving.sessions import Peer, Session
from robowire.serving.tcp.handler import ConnectionHandler
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.serving.tcp.polled_handler import MAX_POLLED_PAYLOAD, Leave
from robowire.serving.tcp.server import TcpServer
from robowire.transport.stream import Stream
from robowire.wire.payload_memory import PayloadMemory
from robowire.wire.pickle.writer import Buffer
from robowire.wire.text_safety import printable, quoted

__all__ = ["ZmqRouter", "ZmtpConnection"]

logger = logging.getLogger(__name__)

# libzmq's own limit is 30 s; a handshake is two packets.
_HANDSHAKE_S = 10.0
# How long a client that is refused has to send its request, and to read the answer.
_REFUSAL_S = 1.0
# How often the connections whose requests are in hand are looked at for heartbeats. Heartbeats come once a
# second or less often, and must be answered within as long.
_HEARTBEAT_S = 0.2
# A request of a client that has not sent the token is large from so many bytes on, and so many large ones are
# received at one time: on some wires the token comes with the first observation, behind its images.
_LARGE = 1024 * 1024
_MAX_LARGE = 4
# What may surround a body: an empty frame, and where it came through other ROUTERs, their identities.
_ENVELOPE = 1024


class ZmtpConnection:
    """A stream of ZMTP's messages.

    One thread reads and writes; after :meth:`begin_busy` any other may :meth:`answer_pings`.

    Args:
        stream: Owned by this object from now on.
        max_payload: Largest message to accept, in bytes.

    Attributes:
        stream: As given.
        decoder: What cuts it into messages.
    """

    def __init__(self, stream: Stream, *, max_payload: int) -> None:
        self.stream = stream
        self.decoder = ZmtpDecoder(max_payload)
        self._using = threading.Lock()
        self._broken: ProtocolError | None = None  # found by answer_pings
        self._using.acquire()

    def shake_hands(self, *, timeout_s: float) -> None:
        """Do the server's side of the handshake.

        Raises:
            RemoteProtocolError: The peer does not speak ZMTP 3, or is no socket that a ROUTER answers.
            RequestTimeout: It did not finish in time.
            ConnectionLost: It left.
        """
        until = time.monotonic() + timeout_s
        while True:
            goes_on, event = self._read(until)
            if not goes_on:
                raise ConnectionLost("it left in the handshake")
            if event is None:
                continue
            if isinstance(event, Signature):
                self.stream.send([greeting()], timeout_s)
            elif isinstance(event, Greeting):
                if event.version[0] < 3 or event.mechanism != "NULL":
                    raise RemoteProtocolError(
                        f"it speaks ZMTP {event.version[0]}.{event.version[1]} with the mechanism "
                        f"{quoted(event.mechanism)}, expected ZMTP 3 with NULL"
                    )
                self.stream.send([ready_command("ROUTER")], timeout_s)
            elif isinstance(event, Command) and event.name == b"READY":
                socket_type = parse_ready(event.data).get("socket-type", b"")
                if socket_type in (b"REQ", b"DEALER"):
                    return
                reason = f"a {quoted(socket_type, 20)} socket connected to a ROUTER: use REQ or DEALER"
                self.stream.send([error_command(reason)], timeout_s)
                raise RemoteProtocolError(reason)
            else:
                raise RemoteProtocolError("it sent something else than READY in the handshake")

    def receive(
        self, *, wait_s: float, finish_s: float, on_large: Callable[[], None] | None = None
    ) -> Message | None:
        """Return the next message, or ``None`` where the peer ended the stream between two of them.

        Args:
            wait_s: Seconds to wait for its first byte; heartbeats do not count.
            finish_s: Seconds from the first byte to the last.
            on_large: Called once, when a megabyte has come and the message is not complete.

        Raises:
            RequestTimeout: Either time passed.
            ConnectionLost: The connection broke.
            RemoteProtocolError: The peer broke the framing.
        """
        idle_until = time.monotonic() + wait_s
        finish_until: float | None = None
        begun = self.stream.bytes_received
        while True:
            if self._broken is not None:
                raise self._broken
            if on_large is not None and self.stream.bytes_received - begun >= _LARGE:
                on_large()
                on_large = None
            if not self.decoder.mid_message:
                finish_until = None
            elif finish_until is None:
                finish_until = time.monotonic() + finish_s
            try:
                goes_on, event = self._read(idle_until if finish_until is None else finish_until)
            except RequestTimeout as exc:
                what = (
                    f"sent nothing for {wait_s:g} s"
                    if finish_until is None
                    else f"did not finish a message within {finish_s:g} s"
                )
                raise RequestTimeout(f"{self.stream.peer} {what}; the connection was closed") from exc
            if not goes_on:
                return None
            if isinstance(event, Message):
                return event
            if isinstance(event, Command):
                self.answer_command(event)

    def send(self, envelope: Sequence[Buffer], body: Sequence[Buffer], *, timeout_s: float) -> None:
        """Send a message.

        Raises:
            RequestTimeout: The peer did not take it in time.
            ConnectionLost: The connection ended.
        """
        self.stream.send(message(envelope, body), timeout_s)

    def begin_busy(self) -> None:
        """Let another thread answer heartbeats until :meth:`end_busy`."""
        self._using.release()

    def end_busy(self) -> None:
        """Use the connection again."""
        self._using.acquire()

    def try_end_busy(self) -> bool:
        """Do what :meth:`end_busy` does, and return whether nobody had to be waited for."""
        return self._using.acquire(blocking=False)

    def receive_now(self) -> Message | Command | None:
        """Return the next message or command where it is complete. Waits for nothing.

        Raises:
            Leave: The peer has ended the stream, or broken the framing while a request was in hand.
            ConnectionLost: The connection broke.
            RemoteProtocolError: The peer broke the framing.
        """
        if self._broken is not None:
            raise Leave
        decoder, stream = self.decoder, self.stream
        event: object
        while True:
            missing = 0
            if decoder.ahead:
                event = decoder.read_ahead()
            else:
                buffers = decoder.get_buffers()
                received = stream.recv_now(buffers)
                if received == 0:
                    raise Leave
                missing = sum(map(len, buffers)) - (received or 0)
                event = None if received is None else decoder.buffers_updated(received)
            if isinstance(event, (Message, Command)):
                stream.expect(1)
                return event
            if missing:
                if decoder.in_body:
                    stream.expect(len(decoder.get_buffer()))
                return None

    def answer_command(self, event: Command) -> None:
        """Answer a heartbeat; other commands are of other sockets, or answers to what is not sent here."""
        if event.name == b"PING":
            self.stream.send([command(b"PONG", event.data[2:18])], _REFUSAL_S)

    def answer_pings(self) -> None:
        """Answer the heartbeats that have come while the connection is busy; reads nothing of a message."""
        if not self._using.acquire(blocking=False):
            return
        try:
            while self._broken is None and not self.decoder.message_begun:
                event: object = None
                if self.decoder.ahead:
                    event = self.decoder.read_ahead()
                elif self.stream.wait_readable(0):
                    received = self.stream.recv_into((self.decoder.get_buffer(),), _HEARTBEAT_S)
                    if not received:
                        break
                    event = self.decoder.buffer_updated(received)
                else:
                    break
                if isinstance(event, Command):
                    self.answer_command(event)
        except ProtocolError as exc:
            self._broken = exc
        except TransportError:
            pass  # the connection's own thread will see it
        finally:
            self._using.release()

    def _read(self, until: float) -> tuple[bool, Signature | Greeting | Command | Message | None]:
        """Read once; return whether the stream goes on, and what is complete now."""
        decoder = self.decoder
        if decoder.ahead:
            return True, decoder.read_ahead()
        left_s = max(until - time.monotonic(), 1e-3)
        received = self.stream.recv_into(decoder.get_buffers(), left_s, whole=decoder.in_body)
        if not received:
            decoder.receive_eof()
            return False, None
        return True, decoder.buffers_updated(received)


def _buffers_of(reply: Sequence[Buffer] | bytes) -> Sequence[Buffer]:
    return [reply] if isinstance(reply, (bytes, bytearray)) else reply


class _Handler(ConnectionHandler):
    """Serve one connection of ZeroMQ, in a thread of its own."""

    server: ZmqRouter

    def handle(self) -> None:
        """Serve the connection until it ends."""
        server = self.server
        try:
            self._stream = Stream(self.request)
            self._peer = Peer(
                self._stream.peer, self._stream.local_host, self._stream.ended, wire=server.name
            )
        except TransportError as exc:
            logger.debug("a connection ended before it was served: %s", exc)
            return
        server.opened(self)
        try:
            self.zmtp = ZmtpConnection(self._stream, max_payload=server.options.max_payload)
            self.zmtp.shake_hands(timeout_s=min(server.options.frame_timeout_s, _HANDSHAKE_S))
            while self._exchange() and self._lend():
                pass
        except RemoteProtocolError as exc:
            server.service.metrics.error("unreadable")
            client = self._session or f"a client at {self._peer.address.rpartition(':')[0]}"
            logger.warning("%s: %s sent what cannot be read: %s", server.name, client, printable(exc))
        except TransportError as exc:
            self._ending = f": {exc}"
        finally:
            server.received_large(self)
            server.closed(self)

    def _exchange(self) -> bool:
        """Serve one request, and return whether there may be another."""
        server, session, options = self.server, self._session, self.server.options
        trusted = session.authenticated if session is not None else not server.service.needs_token
        limit = options.max_payload
        if not trusted and server.unauthenticated_max_payload is not None:
            limit = min(limit, server.unauthenticated_max_payload)
        self.zmtp.decoder.max_payload = limit + _ENVELOPE
        asked = time.monotonic()
        try:
            event = self.zmtp.receive(
                wait_s=self._remaining(options.session_timeout_s if trusted else options.frame_timeout_s),
                finish_s=self._remaining(options.frame_timeout_s),
                on_large=None if trusted else partial(server.receives_large, self),
            )
        except FrameTooLarge as exc:
            self._refuse_large(exc, limit)
            return False
        self._waited_s = 0.0
        if event is None:
            return False
        if trusted:
            self._note_request(time.monotonic() - asked)
        return self._serve(event, trusted=trusted)

    def _serve(self, event: Message | Command, *, trusted: bool = True) -> bool:  # type: ignore[override]
        if isinstance(event, Command):
            self.zmtp.answer_command(event)
            return True
        server, options, started = self.server, self.server.options, time.monotonic()
        session = self._open_session()
        envelope, bodies = event.split()
        logs = logger.isEnabledFor(logging.DEBUG)
        if logs:
            logger.debug("< #%d %d bytes", session.id, sum(map(len, bodies)))
        if server.service.tracing is not None:
            server.service.begin_span(session)
        if len(bodies) != 1 or not envelope:
            session.requests += 1
            reply, more = server.miscounted(session, len(envelope), len(bodies)), True
        else:
            reply, more = self._answer_request(session, bodies[0], trusted=trusted)
        del event, bodies  # a payload is freed before the reply is sent
        answered = time.monotonic()
        if reply is not None:
            self.zmtp.send(envelope, _buffers_of(reply), timeout_s=options.send_timeout_s)
        send_s = time.monotonic() - answered
        received, sent = self._count(send_s=send_s)
        if session.span is not None:
            server.service.end_span(session, send_s=send_s, bytes_received=received, bytes_sent=sent)
        if logs:
            logger.debug("> #%d %d bytes %.1f ms", session.id, sent, (time.monotonic() - started) * 1e3)
        return more

    # -- the poller's thread ---------------------------------------------------------------------------------

    @property
    def _mid_frame(self) -> bool:
        return self.zmtp.decoder.mid_message

    def _receive_now(self) -> Message | Command | None:  # type: ignore[override]
        return self.zmtp.receive_now()

    @property
    def _memory(self) -> PayloadMemory:
        return self.zmtp.decoder.memory

    @property
    def _has_ahead(self) -> bool:
        return bool(self.zmtp.decoder.ahead)

    def _known_exchange(self, event: Message | Command) -> Exchange[Any] | None:  # type: ignore[override]
        if isinstance(event, Command):
            return None
        self._envelope, bodies = event.split()
        if len(bodies) != 1 or not self._envelope or len(bodies[0]) > MAX_POLLED_PAYLOAD:
            return None
        assert self._session is not None
        return self.server.known_exchange(self._session, bodies[0])

    def _buffers(self, reply: Sequence[Buffer] | bytes) -> Sequence[Buffer]:
        return message(self._envelope, _buffers_of(reply))

    def _suspended(self) -> None:
        self.server.begin_busy(self)
        self.zmtp.begin_busy()

    def _resume(self, *, wait: bool = True) -> bool:
        if wait:
            self.zmtp.end_busy()
        elif not self.zmtp.try_end_busy():
            return False
        self.server.end_busy(self)
        return True

    # -- its own thread --------------------------------------------------------------------------------------

    def _answer_request(
        self, session: Session, body: bytearray, *, trusted: bool
    ) -> tuple[Sequence[Buffer] | bytes, bool]:
        """Return the reply to a request, and whether there may be another."""
        server = self.server
        server.begin_busy(self)
        self.zmtp.begin_busy()
        try:
            if not session.authenticated:
                try:
                    self._authorise(session, server.token_of(body))
                except RequestError as exc:
                    session.requests += 1
                    server.service.count_error(exc, str(session))
                    return server.failure(exc), True
                finally:
                    server.received_large(self)
            if not trusted and not server.admit(self.request):
                server.service.metrics.session_refused()
                return server.failure(server.overloaded()), False
            return server.answer(session, body), True
        finally:
            self.zmtp.end_busy()
            server.end_busy(self)

    def _authorise(self, session: Session, token: object) -> None:
        host = session.peer.address.rpartition(":")[0]
        time.sleep(self.server.service.token_delay_s(host))  # in this client's own thread
        self.server.service.require_token(token, host)
        session.authenticated = True

    def _refuse_large(self, exc: FrameTooLarge, limit: int) -> None:
        """Answer a request that is too large; its bytes are thrown away."""
        session = self._open_session()
        error = InvalidParams(f"the request has {exc.length} bytes, expected at most {limit}")
        self.server.service.count_error(error, str(session))
        if envelope := self.zmtp.decoder.envelope:
            buffers = _buffers_of(self.server.failure(error))
            self.zmtp.send(envelope, buffers, timeout_s=self.server.options.send_timeout_s)
            self._stream.close_after_reading(_REFUSAL_S)


class ZmqRouter(TcpServer, ABC):
    """The ZeroMQ wire of a service. The port is bound when the object is made.

    Subclasses say what bodies mean; their methods run in the thread of the connection.

    Args:
        service: What answers the requests.
        options: Address and limits.
        port: Port to listen on; 0 picks a free one.

    Attributes:
        name: Name of the wire, and of the flag of its port: ``<name>_port``.
        unauthenticated_max_payload: Largest request of a client that has not sent the token, in bytes;
            ``None`` for that of all others.

    Raises:
        ConfigurationError: The address can't be listened on; or TLS is asked for, which ZeroMQ has not.
    """

    name = "zmq"
    unauthenticated_max_payload: int | None = None
    handler_class = _Handler

    def __init__(self, service: Service[Any], options: TcpOptions, port: int) -> None:
        if options.tls_cert is not None:
            if not options.insecure and not _is_loopback(options.host):
                raise ConfigurationError(
                    f"--{self.name}_port is ZeroMQ's, which has no TLS: its requests, and the token, would "
                    "be read by others on the network. Listen on 127.0.0.1 and let clients use a tunnel, or "
                    "accept it with --insecure"
                )
            options = replace(options, tls_cert=None, tls_key=None, tls_client_ca=None)
        listener = listen(options.host, port, flags=f"--{self.name}_")
        super().__init__(service, options, None, listener)
        # Clients without the token whose large request is being received, oldest first.
        self._large: dict[_Handler, None] = {}
        self._busy: dict[_Handler, float] = {}  # since when; changed by each connection's own thread
        self._ended = threading.Event()
        self._heartbeats = threading.Thread(
            target=self._answer_heartbeats, name=f"{self.name} heartbeats", daemon=True
        )

    # -- what a wire is --------------------------------------------------------------------------------------

    @abstractmethod
    def answer(self, session: Any, body: bytearray) -> Sequence[Buffer] | bytes:
        """Return the reply to a request, normally by ``self.service.answer(session, exchange)``.

        Args:
            session: Session of the client, which has shown the token.
            body: The request's one frame; given away.

        Raises:
            RemoteProtocolError: It cannot be read; the connection is closed, and a REQ client waits for ever.
        """

    def known_exchange(self, session: Any, body: bytearray) -> Exchange[Any] | None:
        """Return the exchange of a request that takes little time to read; ``None`` for another.

        Args:
            session: Session of the client, which has shown the token.
            body: The request's one frame; as it was where ``None`` is returned.
        """
        return None

    @abstractmethod
    def failure(self, error: RequestError) -> Sequence[Buffer] | bytes:
        """Return the reply that reports an error of a request that was not read."""

    def token_of(self, body: bytearray) -> object:
        """Return the token in a request, ``None`` where there is none; called until one was right.

        Raises:
            RequestError: The request cannot be read.
        """
        return None

    def miscounted(self, session: Any, envelope: int, bodies: int) -> Sequence[Buffer] | bytes | None:
        """Return the reply to a message that is not an empty frame and one body; ``None`` to ignore it.

        Args:
            session: Session of the client.
            envelope: Frames up to and with the first empty one; 0 where there is none, as only a DEALER that
                does not imitate a REQ sends it, and whose reply comes without one then.
            bodies: Frames after them.
        """
        error = InvalidParams(
            f"a request has {envelope} frames of envelope and {bodies} after them, expected an empty frame "
            "and one"
        )
        self.service.count_error(error, str(session))
        return self.failure(error)

    # -- frontend --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Address for a client on this machine."""
        host, port = self.address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"tcp://{host}:{port}"

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"{self.name} over ZeroMQ: {self.url}"

    def start(self) -> None:
        """Accept connections in a thread."""
        self._heartbeats.start()
        super().start()

    def close(self) -> None:
        """Free the port and end the threads."""
        self._ended.set()
        super().close()
        if self._heartbeats.ident is not None:
            self._heartbeats.join()

    # -- connections -----------------------------------------------------------------------------------------

    def receives_large(self, handler: _Handler) -> None:
        """Receive a large request of a client without the token; of more than a few, the oldest is closed.

        So their memory is bounded, and a client that is about to show the token waits for none of them.
        """
        with self._lock:
            oldest = next(iter(self._large)) if len(self._large) >= _MAX_LARGE else None
            if oldest is not None:
                del self._large[oldest]
            self._large[handler] = None
        if oldest is not None:
            self.service.metrics.session_refused()
            logger.debug("closed the oldest connection that sends a large request without a token")
            oldest.shut_down()

    def received_large(self, handler: _Handler) -> None:
        """Count the request of a client no longer."""
        with self._lock:
            self._large.pop(handler, None)

    def begin_busy(self, handler: _Handler) -> None:
        """Have the heartbeats of a connection answered while its request is in hand."""
        self._busy[handler] = time.monotonic()

    def end_busy(self, handler: _Handler) -> None:
        """Leave the connection to its thread."""
        del self._busy[handler]

    def _answer_heartbeats(self) -> None:
        while not self._ended.wait(_HEARTBEAT_S):
            before = time.monotonic() - _HEARTBEAT_S
            for handler, since in list(self._busy.items()):
                if since < before:
                    handler.zmtp.answer_pings()

    def answer_refused(self, stream: Stream, error: Overloaded) -> None:
        """Answer the request of a client past ``max_connections``, if it sends one soon."""
        # Of a larger request the envelope is read, which is all that the answer needs.
        zmtp = ZmtpConnection(stream, max_payload=_ENVELOPE)
        zmtp.shake_hands(timeout_s=_REFUSAL_S)
        envelope: Sequence[Buffer] = []
        with suppress(FrameTooLarge):
            event = zmtp.receive(wait_s=_REFUSAL_S, finish_s=_REFUSAL_S)
            if event is None:
                return
            envelope = event.split()[0]
        buffers = _buffers_of(self.failure(error))
        zmtp.send(envelope or zmtp.decoder.envelope, buffers, timeout_s=_REFUSAL_S)
        stream.close_after_reading(_REFUSAL_S)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
