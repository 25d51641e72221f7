"""A service: sessions, authentication, metrics, and the one place where requests are answered. No socket.

A frontend opens a session for each client and passes each request to :meth:`Service.answer` as an
:class:`Exchange`, which reads the request and writes its reply in the words of one wire. Authorisation comes
before reading, every failure becomes a typed error that is logged and counted once, and a service that drains
knows how many requests are in hand: a frontend can forget none of these.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from robowire.address import is_loopback
from robowire.chunking import ActionChunk
from robowire.errors import (
    InternalError,
    InvalidParams,
    RemoteProtocolError,
    RequestError,
    ShuttingDown,
    Unauthenticated,
)
from robowire.serving.log_buffer import LogBuffer
from robowire.serving.metrics import Metrics
from robowire.serving.process_memory import memory_of_tree
from robowire.serving.recorder import Recorder
from robowire.serving.sessions import Peer, Session
from robowire.serving.token_guard import TokenGuard
from robowire.tracing.spans import RequestSpan, active_tracing
from robowire.wire.auth import (
    check_nonce,
    check_proof,
    check_token,
    client_proof,
    new_nonce,
    server_proof,
)
from robowire.wire.messages import Request
from robowire.wire.text_safety import printable

__all__ = ["Deferred", "Exchange", "Service"]

logger = logging.getLogger(__name__)

# Memory is measured again for a dashboard after so many seconds: it takes 5 ms for each gigabyte.
_MEMORY_S = 10.0

S = TypeVar("S", bound=Session)
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Exchange(Protocol[R_co]):
    """One request and its reply on one wire."""

    @property
    def method(self) -> str:
        """Name of the request's method, known before the request is read; ``""`` where it has none."""
        ...

    def read(self) -> Request:
        """Return the request.

        Raises:
            RequestError: It is not a valid request.
        """
        ...

    def reply(self, value: Any) -> R_co:
        """Return the reply to a request that was executed, encoded."""
        ...

    def failure(self, error: RequestError) -> R_co:
        """Return the reply that reports an error, encoded."""
        ...


class Deferred:
    """The value of a request that another thread computes; a service has its own kind."""

    __slots__ = ()

    def is_done(self) -> bool:
        """Return whether :meth:`finish` can be called; the session's ``on_done`` is called when it can."""
        raise NotImplementedError

    def finish(self) -> Any:
        """Return the value, or raise the request's error. Does not wait."""
        raise NotImplementedError


class Service(ABC, Generic[S]):
    """What every service does, whatever it serves.

    Args:
        token: Token that clients must send; ``None`` for none.
        metrics: Where sessions, requests and errors are counted.

    Attributes:
        kind: ``"policy"``, ``"simulator"`` or ``"fleet"``: the ``server`` of the reply to ``hello``.
        methods: Names of its methods, under which requests are counted; any other counts as ``"unknown"``.
        metrics: As given.
        recorder: Records the sessions; ``None`` for nothing. Set before the service starts.
        log: Latest log lines, for a dashboard; ``None`` for none. Set before the service starts.
        control: Whether a dashboard may end sessions. Set before the service starts.
        listening: Name and address of each frontend; set by the runner.
        tracing: Makes spans of requests; ``None`` for none. That of the process.
    """

    kind = ""
    methods: frozenset[str] = frozenset()

    # Level of the log line of a typed error: a policy's are for the person who operates a robot.
    error_level = logging.DEBUG

    def __init__(self, *, token: str | None = None, metrics: Metrics | None = None) -> None:
        self.metrics = metrics or Metrics()
        self.metrics.server = self.kind
        self.metrics.gauge(
            "requests_in_progress", "Requests that are being answered.", lambda: self.requests_in_hand
        )
        self.tracing = active_tracing()
        self.recorder: Recorder | None = None
        self.log: LogBuffer | None = None
        self.control = False
        self.listening: tuple[tuple[str, str], ...] = ()
        self._sessions: dict[int, S] = {}  # connected clients; one operation at a time changes or copies it
        self._measured_memory = -_MEMORY_S, 0  # when it was measured, in seconds, and bytes
        self._token = token
        self._guard = TokenGuard()
        self._lock = threading.Lock()  # guards the next four
        self._idle = threading.Condition(self._lock)
        self._idle_awaited = False
        self._next_id = 1
        self._in_hand = 0
        self._draining = False

    # -- sessions ------------------------------------------------------------------------------------------

    def open_session(self, peer: Peer) -> S:
        """Return the session of a client that has just connected."""
        with self._lock:
            number, self._next_id = self._next_id, self._next_id + 1
        session = self._make_session(number, peer, authenticated=self._token is None)
        self._sessions[number] = session
        self.metrics.session_opened(peer.wire)
        logger.info("%s connected from %s", session, peer.address)
        return session

    def close_session(self, session: S) -> None:
        """Free what a session holds. Called once, whatever ended the connection."""
        self._sessions.pop(session.id, None)
        self.metrics.session_closed(session.peer.wire)
        if session.span is not None:
            session.span.fail("connection_lost", "the connection ended before the reply was sent")
            self.end_span(session)

    @abstractmethod
    def _make_session(self, number: int, peer: Peer, *, authenticated: bool) -> S:
        """Return a new session."""

    def token_delay_s(self, host: str) -> float:
        """Return the seconds to wait before :meth:`require_token`: they grow with a host's wrong tokens."""
        return self._guard.delay_s(host) if self.needs_token else 0.0

    def require_token(self, token: object, host: str) -> None:
        """Accept a client that sends the token, on wires that send it with every request.

        Args:
            token: What it sends; ``None`` where it sends none.
            host: Its address, without the port.

        Raises:
            Unauthenticated: The token is missing or wrong.
        """
        with self._counted(host, guessed=token is not None):  # a client without one does not guess
            check_token(token, self._token)

    @contextmanager
    def _counted(self, host: str, *, guessed: bool = True) -> Iterator[None]:
        """Count a wrong guess of the token, and forget a host's earlier ones after a right one."""
        try:
            yield
        except Unauthenticated:
            if guessed:
                self._guard.failed(host)
            raise
        self._guard.succeeded(host)

    @property
    def needs_token(self) -> bool:
        """Whether clients must send a token."""
        return self._token is not None

    # -- requests ------------------------------------------------------------------------------------------

    def answer(self, session: S, exchange: Exchange[R]) -> R:
        """Return the encoded reply to one request, or the encoded error.

        Raises:
            RemoteProtocolError: The request cannot be read; the frontend closes the connection.
        """
        if self.tracing is not None and session.span is None:
            self.begin_span(session)
            try:
                return self.answer(session, exchange)
            finally:
                self.end_span(session)
        try:
            next(self.answering(session, exchange))
        except StopIteration as stop:
            reply: R = stop.value
            return reply
        raise AssertionError("a request was deferred though its session does not defer")

    def answering(self, session: S, exchange: Exchange[R]) -> Generator[Deferred, None, R]:
        """Answer one request in steps: yield what has to be done before the next step, return the reply.

        Nothing is yielded for a session whose ``on_done`` is ``None``.

        Raises:
            RemoteProtocolError: As :meth:`answer` does.
        """
        session.requests += 1
        method, began = exchange.method, time.monotonic()
        span = session.span
        try:
            self._begin_request(session, greets=method == "hello")
            try:
                request = exchange.read()
                method, read = request.method, time.monotonic()
                if method == "hello":
                    value = self._challenge(session, request.params) or self._hello(session, request.params)
                elif span is None:
                    value = self._execute(session, request)
                else:
                    span.phase("decode", span.received, read)
                    with span.current() if method == "infer" else span.child("execute"):
                        value = self._execute(session, request)
                if isinstance(value, Deferred):
                    yield value
                    value = value.finish()
                executed = time.monotonic()
                reply = exchange.reply(value)
            finally:
                self._end_request()
        except RequestError as exc:
            self.count_error(exc, str(session))
            self._count_failure(session, method, exc, began)
            return exchange.failure(exc)
        except RemoteProtocolError:
            raise
        except Exception:
            logger.exception("%s met a bug of this server", session)
            error = InternalError("the server failed on this request; its log says why")
            self.metrics.error(error.error_type)
            self._count_failure(session, method, error, began)
            return exchange.failure(error)
        ended = time.monotonic()
        encode_s = ended - executed
        if span is not None:
            span.phase("encode", executed, ended)
        if isinstance(value, ActionChunk) and value.infer_ms is not None:
            infer_s = value.infer_ms / 1e3
            wait_s = max(executed - read - infer_s, 0.0)
            phases: tuple[float, ...] = (read - began, wait_s, infer_s, encode_s)
        else:
            phases = read - began, executed - read, encode_s
        session.method = method if method in self.methods else "unknown"
        if span is not None:
            span.span.update_name("hello" if method == "hello" else session.method)
        self.metrics.answered(session.peer.wire, session.method, "ok", phases)
        return reply

    def _count_failure(self, session: S, method: str, error: RequestError, began: float) -> None:
        session.method = method if method in self.methods else "unknown"
        seconds = time.monotonic() - began
        self.metrics.answered(session.peer.wire, session.method, error.error_type, (seconds,))
        if session.span is not None:
            session.span.span.update_name(session.method)
            session.span.fail(error.error_type, printable(error))

    def begin_span(
        self, session: S, headers: Mapping[str, str] | None = None, *, receive_s: float = 0.0
    ) -> None:
        """Begin the span of a request that was received just now, where requests are traced.

        Frontends call it before they read the request, and :meth:`end_span` when the reply was sent. For
        those that do not, :meth:`answer` does.

        Args:
            session: Who sent it.
            headers: ``traceparent`` and ``tracestate`` of the request, on wires that have such headers.
            receive_s: Seconds from its first byte to its last.
        """
        if self.tracing is None:
            return
        if headers is None:
            headers, session.trace_headers = session.trace_headers, {}
        session.span = self.tracing.request(
            "request",
            headers,
            receive_s=receive_s,
            **{
                "robowire.server": self.kind,
                "robowire.frontend": session.peer.wire,
                "robowire.session": session.id,
                "client.address": session.peer.address.rpartition(":")[0],
            },
        )

    def end_span(
        self, session: S, span: RequestSpan | None = None, *, send_s: float = 0.0, **attributes: int
    ) -> None:
        """End the span of a request, whose reply was sent just now.

        Args:
            session: Who sent it.
            span: By default the session's, which has none from then on.
            send_s: Seconds that sending took.
            **attributes: Of the span, such as ``bytes_sent``.
        """
        if span is None:
            span, session.span = session.span, None
        if span is None:
            return
        ended = time.monotonic()
        if send_s:
            span.phase("send", ended - send_s, ended)
        span.end(ended, **{f"robowire.{name}": value for name, value in attributes.items()})

    @contextmanager
    def request_in_hand(self, session: S | None = None, *, greets: bool = False) -> Iterator[None]:
        """Count a request as in hand, so that a drain waits for it.

        Args:
            session: Who sent it; ``None`` where the frontend has authorised it by :meth:`require_token`.
            greets: It is a ``hello``, which needs no authorisation and is answered during a drain.

        Raises:
            Unauthenticated: The session has not sent the token.
            ShuttingDown: The service accepts no new requests.
        """
        self._begin_request(session, greets=greets)
        try:
            yield
        finally:
            self._end_request()

    def _begin_request(self, session: S | None, *, greets: bool) -> None:
        if not greets and session is not None and not session.authenticated:
            session.require_authenticated()
        with self._lock:
            if self._draining and not greets:
                raise ShuttingDown("the server shuts down and takes no new requests")
            self._in_hand += 1

    def _end_request(self) -> None:
        with self._lock:
            self._in_hand -= 1
            if self._idle_awaited:
                self._idle.notify_all()

    def count_error(self, error: RequestError, client: str) -> None:
        """Count and log a typed error that a client receives."""
        self.metrics.error(error.error_type)
        logger.log(self.error_level, "%s got an error, %s: %s", client, error.error_type, printable(error))

    def _hello(self, session: S, params: Mapping[str, Any]) -> dict[str, Any]:
        session.said_hello = True  # even if it is refused: it understands typed errors
        host = session.peer.address.rpartition(":")[0]
        token, response = params.get("token"), params.get("response")
        # Before the token is looked at: the refusal does not tell whether it was right.
        if token is not None and self._token is not None and not session.peer.may_send_token:
            raise Unauthenticated(
                "this server takes no token in clear over a network: use a client that answers challenges, "
                "or TLS, or start the server with --plain_token"
            )
        time.sleep(self.token_delay_s(host))  # in this client's own thread
        if response is None or self._token is None:
            self.require_token(token, host)
            return {**session.hello(params, server=self.kind), **self._agree_on_trace(session, params)}
        nonces, session.nonces = session.nonces, None  # for one attempt
        if nonces is None:
            raise InvalidParams("a response needs a challenge: say hello with 'challenge' first")
        with self._counted(host):
            check_proof(response, client_proof(self._token, *nonces))
        return {
            **session.hello(params, server=self.kind),
            **self._agree_on_trace(session, params),
            "proof": server_proof(self._token, *nonces),
        }

    def _agree_on_trace(self, session: S, params: Mapping[str, Any]) -> dict[str, Any]:
        # Of a client that has shown the token only: its frames are not answered, so nothing else ends them.
        session.tells_trace = self.tracing is not None and params.get("trace_context") == 1
        return {"trace_context": 1} if session.tells_trace else {}

    def _challenge(self, session: S, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the reply to a hello that asks for a challenge, where there is a token to know."""
        if self._token is None or "challenge" not in params or {"token", "response"} & {*params}:
            return None
        session.said_hello = True
        session.nonces = check_nonce(params["challenge"]), new_nonce()
        return {"status": "challenge", "challenge": session.nonces[1]}

    @property
    def defers(self) -> bool:
        """Whether an inference waits for nothing in the thread of a session that has an ``on_done``."""
        return False

    @abstractmethod
    def _execute(self, session: S, request: Request) -> Any:
        """Return the reply to an authorised request, or a :class:`Deferred` one.

        Raises:
            RequestError: The request's own error.
        """

    # -- what it says of itself ----------------------------------------------------------------------------

    @abstractmethod
    def describe(self) -> str:
        """Return one line for a person."""

    @abstractmethod
    def info(self, session: S | None = None) -> dict[str, Any]:
        """Return what ``get_info`` and ``INFO`` report, of the service and of a session."""

    def stats(self) -> dict[str, Any]:
        """Return what ``stats`` reports."""
        return self.metrics.snapshot()

    def status(
        self, session: S, *, images: Sequence[str] = (), log_lines: int = 0, log_level: str = "debug"
    ) -> dict[str, Any]:
        """Return what a dashboard shows, for clients that may see everybody's sessions.

        Args:
            session: Who asks.
            images: Ids of the sessions whose images are wanted, now and for some seconds.
            log_lines: Most log lines.
            log_level: Least important of them.

        Raises:
            Unauthenticated: There is no token, and the client is on another machine.
        """
        self._require_operator(session)
        session.watches = True
        return {
            "kind": self.kind,
            "info": self.info(),
            "stats": self.stats(),
            "listening": [list(entry) for entry in self.listening],
            "draining": self._draining,
            "requests_in_hand": self._in_hand,
            "control": self.control,
            "pid": os.getpid(),
            "memory_bytes": self._memory_bytes(),
            "load": self.load(),
            "sessions": self.session_rows(),
            "images": {name: shown for name in images if (shown := self.session_images(name)) is not None},
            "log": [] if self.log is None else self.log.lines(log_lines, log_level),
        }

    def load(self) -> dict[str, int]:
        """Return what waits and how much may, by name."""
        return {}

    def session_rows(self) -> list[dict[str, Any]]:
        """Return a row for each session, for a dashboard."""
        return [self._client_row(session) for session in self._clients()]

    def session_images(self, name: str) -> dict[str, Any] | None:
        """Return the latest images and values of a session, see :meth:`status`; ``None`` where it is none."""
        return None

    def _memory_bytes(self) -> int:
        measured, size = self._measured_memory
        now = time.monotonic()
        if now - measured > _MEMORY_S:
            size = memory_of_tree(os.getpid())
            self._measured_memory = now, size
        return size

    def _clients(self) -> list[S]:
        return [session for session in list(self._sessions.values()) if not session.watches]

    def _client_row(self, session: S) -> dict[str, Any]:
        return {
            "session": f"client {session.id}",
            "client": session.peer.address,
            "frontend": session.peer.wire,
            "state": "running" if session.activity.steps else "idle",
            "requests": session.requests,
            **session.activity.summary(),
        }

    def _require_operator(self, session: S) -> None:
        """Accept clients on this machine, and those that sent the token."""
        if not self.needs_token and not is_loopback(session.peer.address):
            raise Unauthenticated(
                "without a token what clients do is shown on the server's own machine only, under the "
                "address localhost: start the server with --token"
            )

    # -- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start what runs without a request. Called once, before the first request."""

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    def begin_drain(self) -> None:
        """Refuse new requests from now on; those in hand go on. A signal handler may call it."""
        self._draining = True  # no lock: a signal handler runs on a thread that may hold it

    @property
    def requests_in_hand(self) -> int:
        """Number of requests that are being answered."""
        return self._in_hand

    def wait_until_idle(self, deadline: float) -> bool:
        """Return whether no request is in hand, at the latest at the deadline."""
        with self._lock:
            self._idle_awaited = True
            return self._idle.wait_for(lambda: not self._in_hand, timeout=max(deadline - time.monotonic(), 0))

    def close(self) -> None:
        """Free everything; requests that are still in hand fail. May be called twice."""
        if self.recorder is not None:
            self.recorder.close()
