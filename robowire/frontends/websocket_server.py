"""A WebSocket server for frontends: limits, token, drain; what messages mean is the subclass's.

One thread runs an event loop that receives, sends and answers pings. A message is read and answered in a
worker thread, so that a long inference delays nobody's ping and many clients fill a batch; by the loop itself
where that delays nobody, and then without the library's queue and task
(:mod:`robowire.frontends.whole_messages`), and without asyncio's callbacks
(:mod:`robowire.frontends.direct_selector`). The token is looked at in the upgrade request, before anything
else of a client is read.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Event, State

from robowire.errors import Overloaded, RemoteProtocolError, RequestError, ShuttingDown, Unauthenticated
from robowire.frontends.daemon_workers import DaemonWorkers
from robowire.frontends.direct_selector import DirectSelector
from robowire.frontends.whole_messages import MessageBuffer, WholeMessages, message_frame
from robowire.serving.service import Service
from robowire.serving.sessions import Peer, Session
from robowire.serving.tcp.listener import listen
from robowire.serving.tcp.options import TcpOptions
from robowire.transport.tls import server_tls
from robowire.wire.text_safety import printable

__all__ = ["INTERNAL_ERROR", "HttpReply", "Reply", "WebSocketClient", "WebSocketServer"]

logger = logging.getLogger(__name__)

# The library logs every connection and the whole traceback of a peer's mistake; what matters is logged here.
# Not below CRITICAL: with DEBUG it describes each frame, which costs as much as everything else of a request.
_LIBRARY_LOGGER = logging.Logger("websockets", logging.CRITICAL)
_LIBRARY_LOGGER.addHandler(logging.NullHandler())

# Codes of RFC 6455, section 7.4.1.
GOING_AWAY, UNREADABLE, INTERNAL_ERROR = 1001, 1007, 1011

# An upgrade request is one packet; a slow link and the delay of wrong tokens fit in here.
_OPEN_TIMEOUT_S = 10.0
# For the peer's part of a closing handshake; afterwards the connection ends without it.
_CLOSE_TIMEOUT_S = 1.0
# RFC 6455 allows 123 bytes of reason in a close frame.
_MAX_REASON = 100
# A message is answered in the loop itself, without two thread switches, where that delays nobody: the only
# client, for as long as a ping may well wait; or any, while an inference takes less than the switches.
_ALONE_S, _INSTANT_S = 0.05, 0.001
# Three 640x480 cameras are 2.6 MiB, and are read in some milliseconds.
_SMALL = 4 << 20
# How long connections have to end after they were aborted.
_ENDING_S = 0.5
# What is received at a time where no message is expected; asyncio's own protocols take as much.
_SCRATCH = 256 * 1024

_STATUS = {Unauthenticated: 401, Overloaded: 503, ShuttingDown: 503}


class Reply(NamedTuple):
    """What is sent to a client.

    Attributes:
        messages: Binary (bytes) and text (str) messages, in their order.
        close: Code and reason with which the connection is closed afterwards; ``None`` leaves it open.
    """

    messages: Sequence[bytes | str] = ()
    close: tuple[int, str] | None = None


@dataclass(frozen=True)
class HttpReply:
    """The reply to a GET request.

    Attributes:
        body: Text.
        status: HTTP status.
        content_type: Of the body.
    """

    body: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


class WebSocketClient:
    """One connection, as a frontend sees it. One thread at a time works for it.

    Attributes:
        session: Session of the service.
        state: What the frontend remembers of this connection; ``None`` at first.
        headers: Of the request that upgraded the connection.
    """

    def __init__(self, session: Session, headers: Mapping[str, str]) -> None:
        self.session = session
        self.headers = headers
        self.state: Any = None


class WebSocketServer(ABC):
    """The WebSocket wire of a service. The port is bound when the object is made.

    Subclasses say what messages mean; their methods run in worker threads, for each client one after another.

    Args:
        service: What answers the requests.
        options: Address, limits, TLS.
        port: Port to listen on; 0 picks a free one.

    Attributes:
        name: Name of the wire, and of the flag of its port: ``<name>_port``.
        public_paths: GET paths that are answered without the token.
        token_words: How a client of this wire sends the token, for one that sent none.
        address: Host and port it listens on; the port is never 0.
        service: As given.
        options: As given.

    Raises:
        ConfigurationError: The address can't be listened on, or a TLS file can't be used.
    """

    name = ""
    public_paths: frozenset[str] = frozenset()
    token_words = "send 'Authorization: Api-Key TOKEN' with the upgrade"

    def __init__(self, service: Service[Any], options: TcpOptions, port: int) -> None:
        self.service = service
        self.options = options
        self._tls = (
            None
            if options.tls_cert is None
            else server_tls(options.tls_cert, options.tls_key, options.tls_client_ca)
        )
        self._listener = listen(options.host, port, flags=f"--{self.name}_")
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        # A client has one request in hand at most, so no request waits for a thread.
        self._workers = DaemonWorkers(self.name)
        self._selector = DirectSelector() if DirectSelector.available and self._tls is None else None
        self._loop = asyncio.new_event_loop() if self._selector is None else _event_loop(self._selector)
        self._thread = threading.Thread(target=self._run, name=f"{self.name} loop", daemon=True)
        self._started = threading.Event()
        self._server: Server | None = None
        self._draining = False
        # What follows is used by the loop's thread only.
        self.scratch = bytearray(_SCRATCH)
        self.message_buffers: list[MessageBuffer] = []  # one at most, that connections share
        self._idle: dict[_Connection, None] = {}  # upgraded, and waiting for the client's next message
        self._admitted: set[_Connection] = set()  # connections that have one of max_connections places
        # Those that have not sent their upgrade request, oldest first. They have as many places of their own,
        # so that they can't keep a client with the token out; where all are taken the oldest is closed.
        self._waiting: dict[_Connection, None] = {}

    # -- what a wire is --------------------------------------------------------------------------------------

    @abstractmethod
    def answer(self, client: WebSocketClient, message: bytes | memoryview | str) -> Reply:
        """Return the reply to one message, normally by ``self.service.answer(client.session, exchange)``.

        Args:
            client: Who sent it.
            message: Text or bytes. The memory of a view is used for the next message, once nobody refers to
                it.

        Raises:
            RemoteProtocolError: The message cannot be read; the connection is closed.
        """

    def greet(self, client: WebSocketClient) -> Reply:
        """Return what is sent to a client that has just connected."""
        return Reply()

    def inference_s(self) -> float:
        """Return how long an answer keeps its thread waiting, about: the time of the latest inference."""
        return float("inf")

    def left(self, client: WebSocketClient) -> None:  # noqa: B027 (most frontends have nothing to free)
        """Free what :attr:`WebSocketClient.state` holds; the session is closed afterwards."""

    def http_get(self, path: str, query: str) -> HttpReply | None:
        """Return the reply to a GET request that is no upgrade; ``None`` for an unknown path.

        Called by the loop's thread: it must not wait.
        """
        return None

    def token_of(self, headers: Headers) -> str | None:
        """Return the token that a client sends with its upgrade, ``None`` where it sends none."""
        kind, _, token = headers.get("Authorization", "").partition(" ")
        return token.strip() if kind.lower() in ("api-key", "bearer") and token.strip() else None

    # -- frontend --------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Address for a client on this machine."""
        host, port = self.address
        host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"{'ws' if self._tls is None else 'wss'}://{host}:{port}"

    def describe(self) -> str:
        """Return where it listens, for a person."""
        return f"{self.name} over WebSocket: {self.url}"

    def start(self) -> None:
        """Answer clients in threads."""
        self._thread.start()
        self._started.wait()

    def stop_listening(self) -> None:
        """Accept no further connection."""
        if self._server is not None:
            server = self._server
            self._loop.call_soon_threadsafe(lambda: server.close(close_connections=False))
        else:
            self._listener.close()

    def drain(self, deadline: float) -> None:
        """Send the replies in hand and close every connection; give up at the deadline."""
        if self._server is None:
            return
        drained = asyncio.run_coroutine_threadsafe(self._drain(self._server, deadline), self._loop)
        try:
            left = drained.result(max(deadline - time.monotonic(), 0) + 2 * _ENDING_S)
        except FutureTimeoutError:  # the loop itself waits for a policy that hangs
            left = 1
        if left:
            logger.warning(
                "%s: %d requests did not finish within %g s and were given up",
                self.name,
                left,
                self.options.drain_s,
            )

    def close(self) -> None:
        """End every thread and free the port."""
        if self._thread.ident is None:
            self._loop.close()
        elif self._server is not None:
            with suppress(
                RuntimeError, FutureTimeoutError
            ):  # it has ended; or it waits for a policy that hangs
                asyncio.run_coroutine_threadsafe(self._abort(self._server), self._loop).result(2 * _ENDING_S)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_ENDING_S)
            if self._thread.is_alive():
                logger.warning("%s: a policy that hangs holds the loop of this port", self.name)
        self._listener.close()
        if self._workers.end(_ENDING_S):
            logger.warning("%s: a policy that hangs holds threads of this port", self.name)

    # -- the loop's thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._server = self._loop.run_until_complete(self._open())
            self._started.set()
            self._loop.run_forever()
        except Exception:
            logger.exception("the %s frontend ended by a bug", self.name)
        finally:
            self._started.set()
            # Here, because a loop that a policy holds may go on when nobody waits for it any more.
            if tasks := asyncio.all_tasks(self._loop):
                for task in tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    async def _open(self) -> Server:
        options = self.options
        return await serve(
            self._serve,
            sock=self._listener,
            ssl=self._tls,
            compression=None,
            max_size=options.max_payload,
            # One message waits at most while another is answered; data_received has the rest of that rule.
            # With 0 the library would stop and start reading for every message: four system calls.
            max_queue=(1, 0),
            # A client that is busy for a minute does not answer pings; TCP keepalive finds those that are
            # gone.
            ping_interval=None,
            open_timeout=min(options.frame_timeout_s, _OPEN_TIMEOUT_S),
            close_timeout=_CLOSE_TIMEOUT_S,
            process_request=self._admit,
            server_header=None,
            logger=_LIBRARY_LOGGER,
            create_connection=cast(Any, lambda *args, **kwargs: _Connection(self, *args, **kwargs)),
        )

    async def _drain(self, server: Server, deadline: float) -> int:
        """End every connection after its reply, and return how many replies were given up."""
        self._draining = True
        for connection in list(self._idle):
            connection.end(GOING_AWAY, "the server shuts down")
        for connection in list(self._waiting):
            connection.transport.abort()
        tasks = set(server.handler_tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=max(deadline - time.monotonic(), 0))
        # Peers that do not read, and requests that did not finish.
        left = sum(connection.busy for connection in self._admitted)
        await self._abort(server)
        return left

    async def _abort(self, server: Server) -> None:
        server.close(close_connections=False)
        for connection in [*self._admitted, *self._waiting]:
            connection.transport.abort()
        if tasks := set(server.handler_tasks):
            await asyncio.wait(tasks, timeout=_ENDING_S)

    # -- before the upgrade ----------------------------------------------------------------------------------

    def opened(self, connection: _Connection) -> None:
        """Give a new connection one of the places of those without an upgrade; the oldest of them yields."""
        self._waiting[connection] = None
        if len(self._waiting) > self.options.max_connections:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self.service.metrics.session_refused()
            logger.debug("%s: closed the oldest connection without a request", self.name)
            oldest.transport.abort()

    def closed(self, connection: _Connection) -> None:
        """Free the place of a connection."""
        self._waiting.pop(connection, None)
        self._idle.pop(connection, None)
        self._admitted.discard(connection)

    async def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        """Return the reply to a request that is refused or no upgrade; ``None`` where it may upgrade."""
        assert isinstance(connection, _Connection)
        try:
            return await self._reply_to(connection, request)
        except RequestError as refusal:
            self.service.count_error(refusal, f"a client of the {self.name} frontend")
            if isinstance(refusal, Overloaded):
                self.service.metrics.session_refused()
            text = f"{refusal.error_type}: {printable(refusal)}\n"
            return _response(HttpReply(text, _STATUS.get(type(refusal), 500)))
        finally:
            connection.transport.resume_reading()

    async def _reply_to(self, connection: _Connection, request: Request) -> Response | None:
        path, _, query = request.path.partition("?")
        upgrades = "upgrade" in request.headers.get("Connection", "").lower()
        if not upgrades and path in self.public_paths:
            reply = self.http_get(path, query)
            return None if reply is None else _response(reply)
        if _is_of_another_site(request.headers):
            raise Unauthenticated("pages of another site may not ask this server")
        if self.service.needs_token:
            host = connection.peer_host
            await asyncio.sleep(self.service.token_delay_s(host))
            token = self.token_of(request.headers)
            if token is None:
                raise Unauthenticated(f"this server wants a token: {self.token_words}")
            self.service.require_token(token, host)
        if not upgrades:
            reply = self.http_get(path, query)
            return None if reply is None else _response(reply)  # the library answers 426
        if self.service.draining:
            raise ShuttingDown("the server shuts down and takes no new clients")
        if len(self._admitted) >= self.options.max_connections:
            raise Overloaded(f"all {self.options.max_connections} connections are taken; try again later")
        if connection in self._waiting:  # else it has yielded its place, and ends
            del self._waiting[connection]
            self._admitted.add(connection)
        return None

    # -- one client ------------------------------------------------------------------------------------------

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)
        if connection not in self._admitted:
            connection.transport.abort()
            return
        peer = Peer(connection.peer, connection.local_host, connection.has_left, wire=self.name)
        session = self.service.open_session(peer)
        session.authenticated = True  # or the upgrade would have been refused
        client, opened = WebSocketClient(session, _trace_headers(connection)), time.monotonic()
        ending = ""
        try:
            more = await self._answer(connection, client, None)
            connection.client = client
            while more:
                message = await self._next_message(connection)
                more = await self._answer(connection, client, message)
        except ConnectionClosed:
            ending = f": {connection.ending}" if connection.ending else ""
        except Exception as exc:
            await self._give_up(connection, session, exc)
        finally:
            connection.client = None
            try:
                self.left(client)
            finally:
                self.service.close_session(session)
            seconds = time.monotonic() - opened
            logger.info("%s closed (%d requests, %.0f s)%s", session, session.requests, seconds, ending)

    async def _give_up(self, connection: _Connection, session: Session, error: Exception) -> None:
        """Close a connection whose message could not be answered."""
        if isinstance(error, RemoteProtocolError):
            logger.warning("%s sent what cannot be read: %s", session, printable(error))
            self.service.metrics.error("unreadable")
            reason = printable(error, _MAX_REASON).encode()[:_MAX_REASON].decode("utf-8", "ignore")
            await connection.close(UNREADABLE, reason)
        else:
            logger.error("%s met a bug of the %s frontend", session, self.name, exc_info=error)
            await connection.close(INTERNAL_ERROR)

    async def _next_message(self, connection: _Connection) -> bytes | str:
        if self._draining:
            connection.end(GOING_AWAY, "the server shuts down")
        connection.heard_at = self._loop.time()
        timer = self._expect_request(connection)
        self._idle[connection] = None
        self._lend(connection)
        try:
            return await connection.recv()
        finally:
            connection.take_back()
            self._idle.pop(connection, None)
            timer.cancel()

    def _expect_request(self, connection: _Connection) -> _Timer:
        """Return the timer that ends a connection without a request; messages only note when they came."""
        timer = _Timer()

        def look() -> None:
            left_s = connection.heard_at + self.options.session_timeout_s - self._loop.time()
            if left_s > 0:
                timer.handle = self._loop.call_later(left_s, look)
            else:
                connection.end(GOING_AWAY, "no request for too long")

        timer.handle = self._loop.call_later(self.options.session_timeout_s, look)
        return timer

    def received(self, connection: _Connection, message: memoryview) -> bool:
        """Answer a whole message here and now where that delays nobody, else leave it to the task.

        Returns:
            Whether it was answered, and the connection stays as it was.
        """
        client = connection.client
        if (
            client is None
            or not (connection.lent or (connection in self._idle and not connection.recv_messages.frames))
            or self._draining
            or connection.paused  # it does not read its replies
            or not self._answers_at_once(len(message))
        ):
            connection.take_back()
            connection.recv_messages.put(Frame(Opcode.BINARY, bytes(message)))
            return False
        started = connection.heard_at = time.monotonic()
        if self.service.tracing is not None:
            self.service.begin_span(client.session, client.headers)
        logs = connection.logs
        if logs:
            logger.debug("< #%d %d bytes", client.session.id, len(message))
        try:
            reply = self.answer(client, message)
        except Exception as exc:
            connection.begin(self._give_up(connection, client.session, exc))
            return False
        sent, answered = 0, time.monotonic()
        for part in reply.messages:
            connection.transport.write(message_frame(part))
            sent += len(part)
        self._count(client, len(message), sent, time.monotonic() - answered)
        if logs:
            milliseconds = (time.monotonic() - started) * 1e3
            logger.debug("> #%d %d bytes %.1f ms", client.session.id, sent, milliseconds)
        if reply.close is not None:
            connection.begin(connection.close(*reply.close))
            return False
        if not connection.lent:  # it was taken back for a ping, for example
            self._lend(connection)
        return True

    def _lend(self, connection: _Connection) -> None:
        """Have the selector serve a connection where its messages are answered at once."""
        if self._selector is not None and self._answers_at_once(0):
            connection.lend(self._selector)

    def _answers_at_once(self, length: int) -> bool:
        """Return whether the loop itself may answer a message."""
        if length > _SMALL:  # it takes long to read
            return False
        inference_s = self.inference_s()
        if inference_s < _INSTANT_S:
            return True
        # It may have to wait for the batch of a request of another wire.
        return inference_s < _ALONE_S and len(self._admitted) == 1 and not self.service.requests_in_hand

    async def _answer(
        self, connection: _Connection, client: WebSocketClient, message: bytes | str | None
    ) -> bool:
        """Answer a message, or greet a client for ``None``, and return whether there may be another.

        A method of its own, so that a message is freed before the next one is received.
        """
        started, received = time.monotonic(), len(message or "")
        connection.busy = True
        try:
            if message is None:
                reply = await self._workers.run(self.greet, client)
            else:
                logger.debug("< #%d %d bytes", client.session.id, received)
                if self.service.tracing is not None:
                    self.service.begin_span(client.session, client.headers)
                if self._answers_at_once(received):
                    reply = self.answer(client, message)
                else:
                    reply = await self._workers.run(self.answer, client, message)
            sent, answered = 0, time.monotonic()
            for part in reply.messages:
                await self._send(connection, part)
                sent += len(part)
        finally:
            connection.busy = False
        if message is not None:
            self._count(client, received, sent, time.monotonic() - answered)
            milliseconds = (time.monotonic() - started) * 1e3
            logger.debug("> #%d %d bytes %.1f ms", client.session.id, sent, milliseconds)
        if reply.close is not None:
            code, reason = reply.close
            await connection.close(code, reason)
            return False
        return True

    def _count(self, client: WebSocketClient, received: int, sent: int, send_s: float) -> None:
        session = client.session
        self.service.metrics.request(
            bytes_received=received,
            bytes_sent=sent,
            frontend=self.name,
            method=session.method or "unknown",
            send_s=send_s,
        )
        if session.span is not None:
            self.service.end_span(session, send_s=send_s, bytes_received=received, bytes_sent=sent)

    async def _send(self, connection: _Connection, part: bytes | str) -> None:
        timer = self._loop.call_later(
            self.options.send_timeout_s, connection.abort, "it did not read its reply"
        )
        try:
            await connection.send(part)
        finally:
            timer.cancel()


def _event_loop(selector: DirectSelector) -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selector)


def _trace_headers(connection: ServerConnection) -> dict[str, str]:
    """Return the headers of the upgrade that say of which trace a connection's requests are."""
    headers = {} if connection.request is None else connection.request.headers
    return {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}


class _Timer:
    """A timer that begins again by itself."""

    handle: asyncio.TimerHandle

    def cancel(self) -> None:
        self.handle.cancel()


class _Connection(ServerConnection, asyncio.BufferedProtocol):
    """A connection of the library, with the limits of ours, and a short way for whole binary messages.

    Attributes:
        client: Who is at its other end, after the greeting.
        busy: Whether a message of it is being answered.
        heard_at: When the latest message came.
        lent: Whether the selector serves it, and asyncio does not: it waits for the client's next message,
            and nothing of one is anywhere else.
        logs: Whether each message is logged.
        ending: Why we ended it; empty where its peer did.
    """

    def __init__(self, frontend: WebSocketServer, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frontend = frontend
        self._unfinished: asyncio.TimerHandle | None = None
        self._in_fragments = False
        self._frames = 0
        self._messages = WholeMessages(frontend.message_buffers)
        self._fills_messages = False  # the buffer that is filled is that of the messages
        self._selector: DirectSelector | None = None  # that serves it
        self.lent = False
        self._number = -1  # of its socket
        self.logs = logger.isEnabledFor(logging.DEBUG)
        self.client: WebSocketClient | None = None
        self.busy = False
        self.heard_at = 0.0
        self.ending = ""
        self.peer = self.peer_host = self.local_host = ""

    def has_left(self) -> bool:
        """Return whether the client ended the connection; any thread may ask."""
        return self.protocol.state is not State.OPEN

    def end(self, code: int, reason: str) -> None:
        """Begin to close the connection."""
        self.ending = reason
        self.begin(self.close(code, reason))

    def begin(self, closing: Coroutine[Any, Any, None]) -> None:
        """Run what closes the connection as a task."""
        self.take_back()
        # The loop holds tasks by weak references only.
        self._closing = self.loop.create_task(closing)

    def abort(self, reason: str) -> None:
        """End the connection at once."""
        self.ending = reason
        self.transport.abort()

    # -- without asyncio -------------------------------------------------------------------------------------

    def lend(self, selector: DirectSelector) -> None:
        """Have the next messages received by :meth:`go_on`, where nothing of one has come yet."""
        if self._selector is None and self._expects_message() and not self.transport.is_closing():
            self.transport.pause_reading()
            selector.lend(self._number, self)
            self._selector, self.lent = selector, True

    def take_back(self) -> None:
        """Have asyncio receive again."""
        if self._selector is not None:
            self._selector.take_back(self._number)
            self._selector, self.lent = None, False
            self.transport.resume_reading()

    def go_on(self) -> bool:
        """Receive what has come and answer it; return whether nothing was scheduled."""
        try:
            received = os.readv(self._number, (self._messages.get_buffer(),))
        except BlockingIOError:
            return True
        except OSError as exc:
            self.abort(exc.strerror or "the connection broke")
            return False
        if not received:  # asyncio will see it, too
            self.take_back()
            return False
        try:
            return self._messages_updated(received)
        except Exception:  # the top of what a connection does in this loop
            logger.exception("a connection of the %s frontend met a bug", self._frontend.name)
            self.abort("a bug of this server")
            return False

    def _expects_message(self) -> bool:
        """Return whether what comes next may be received into the buffer of messages."""
        return self._messages.begun or (
            self._messages.ready
            and self.protocol.state is State.OPEN
            and not self._in_fragments
            and not self.protocol.reader.buffer
            and not len(self.recv_messages.frames)
        )

    def _messages_updated(self, nbytes: int) -> bool:
        """Process bytes that were received into the buffer of messages; return whether one was answered."""
        messages = self._messages
        if not self.lent and self.protocol.state is not State.OPEN:  # nobody waits for this message any more
            self.take_back()
            self.data_received(messages.take(nbytes))
            return False
        message, rest = messages.buffer_updated(nbytes)
        answered = False
        if message is not None:
            if self._unfinished is not None:
                self._finished()
            answered = self._frontend.received(self, message)
            message = None
        elif not rest:
            self._begun()
        if rest:
            self.take_back()
            self.data_received(rest)
            return False
        return answered

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        self._number = sock.fileno()
        with suppress(OSError, TypeError):  # a connection that has ended already has no addresses
            address = transport.get_extra_info("peername")
            self.peer_host, self.peer = address[0], f"{address[0]}:{address[1]}"
            self.local_host = transport.get_extra_info("sockname")[0]
            # A robot that lost power never closes its connection: probe after a minute, give up after two.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        super().connection_made(transport)
        self._frontend.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._fills_messages = self._expects_message()
        return self._messages.get_buffer() if self._fills_messages else memoryview(self._frontend.scratch)

    def buffer_updated(self, nbytes: int) -> None:
        if self._fills_messages:
            self._messages_updated(nbytes)
        else:
            self.data_received(bytes(memoryview(self._frontend.scratch)[:nbytes]))

    def _begun(self) -> None:
        """Limit the time until a message that has begun is complete."""
        if self._unfinished is None and self.protocol.state is State.OPEN:
            self._unfinished = self.loop.call_later(
                self._frontend.options.frame_timeout_s, self.abort, "it did not finish a message"
            )

    def _finished(self) -> None:
        if self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None

    def data_received(self, data: bytes) -> None:
        self._frames = 0
        super().data_received(data)
        waiting = self.recv_messages
        if waiting.frames and self.protocol.reader.buffer and not waiting.paused:
            # A message waits and the next one has begun: read on when the one that waits was taken.
            waiting.paused = True
            self.transport.pause_reading()
        # What is left in the buffer is the beginning of a frame. The timer runs from the first byte of a
        # message to its last one: neither pings nor single bytes gain time.
        if self._in_fragments or self.protocol.reader.buffer or not self._frames:
            self._begun()
        else:
            self._finished()

    def process_event(self, event: Event) -> None:
        self._frames += 1
        upgrade = self.request is None
        super().process_event(event)
        if upgrade:
            # Nothing is received, let alone kept, before the token was looked at.
            self.transport.pause_reading()
        else:
            opcode, fin = getattr(event, "opcode", 8), getattr(event, "fin", True)
            if opcode < 8:  # not a ping, pong or close, which may come between fragments
                self._in_fragments = not fin
                if fin:
                    self._finished()
                    self._messages.expect(len(cast(Frame, event).data))

    def connection_lost(self, exc: Exception | None) -> None:
        self.take_back()  # while its socket is open
        self._finished()
        self._frontend.closed(self)
        super().connection_lost(exc)


def _response(reply: HttpReply) -> Response:
    body = reply.body.encode()
    headers = Headers(
        {
            "Content-Type": reply.content_type,
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
    )
    if reply.status == 401:
        headers["WWW-Authenticate"] = "Api-Key"
    reasons = {200: "OK", 401: "Unauthorized", 422: "Unprocessable Entity", 503: "Service Unavailable"}
    return Response(reply.status, reasons.get(reply.status, "Error"), headers, body)


def _is_of_another_site(headers: Headers) -> bool:
    """Return whether a browser asks for a page that is not of this server, with its visitor's access.

    Only browsers send an origin. One that has a name could have that name lead here (DNS rebinding).
    """
    origin = headers.get("Origin")
    if origin is None:
        return False
    try:
        page, host = urlsplit(origin), headers.get("Host", "").lower()
        if page.netloc.lower() != host:
            return True
        name = (page.hostname or "").rstrip(".")
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:  # "http://[" is the address of no page, and a name is no address
        return True
    return False
