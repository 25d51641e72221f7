"""What frontends over HTTP check before a request is read: token, host, origin, limits.

What a request is refused with is a typed error of the wire with an HTTP status. Nothing of a request without
the token is read, and it takes none of the ``max_connections`` places.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from robowire.errors import Overloaded, RequestError, Unauthenticated
from robowire.frontends.authorization import offered_token
from robowire.serving.service import Service
from robowire.serving.tcp.options import TcpOptions

__all__ = [
    "STATUS",
    "LimitsMiddleware",
    "error_response",
    "is_of_another_site",
    "is_own_host",
    "limited_protocol",
    "offered_token",
    "read_http_body",
]

STATUS: Mapping[str, int] = {
    "unknown_method": 404,
    "invalid_params": 422,
    "spec_mismatch": 422,
    "unauthenticated": 401,
    "no_simulator_selected": 409,
    "unknown_simulator": 404,
    "simulator_already_selected": 409,
    "task_not_found": 404,
    "no_task_loaded": 409,
    "not_reset": 409,
    "backend_error": 502,
    "snapshot_not_found": 404,
    "snapshot_mismatch": 409,
    "session_not_found": 404,
    "overloaded": 503,
    "shutting_down": 503,
    "internal_error": 500,
}

# They cost no thread, and are requested to know whether the server is overloaded.
_PROBES = ("/health", "/healthz", "/metrics")

# The connection whose bytes are being parsed; the tasks of its requests inherit it.
_connection: ContextVar[_LimitedConnection] = ContextVar("connection")


def error_response(
    error: RequestError | str, *, error_type: str | None = None, status: int | None = None
) -> Response:
    """Return the typed error of the wire, with the HTTP status of its type."""
    kind = error_type or (error.error_type if isinstance(error, RequestError) else "internal_error")
    status = status or STATUS.get(kind, 500)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status, {})
    content = {"status": "error", "error_type": kind, "message": str(error)}
    return JSONResponse(content, status_code=status, headers=headers)


class LimitsMiddleware:
    """Refuses requests without the token or past ``max_connections``, pages of other sites, and slow readers.

    Args:
        app: The application behind it.
        service: Checks tokens and counts errors.
        options: Whose limits hold.
        allowed_hosts: Names of this server, in addition to its addresses.
        public: Paths that need no token; they hold nothing of this server.
        basic: Whether the token may be the password of ``Authorization: Basic``: what a client sends whose
            user can only give it an address, ``http://user:TOKEN@host:port``.
        name: What the log calls this frontend.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service[Any],
        options: TcpOptions,
        *,
        allowed_hosts: tuple[str, ...] = (),
        public: tuple[str, ...] = (),
        basic: bool = False,
        name: str = "HTTP",
    ) -> None:
        self._app = app
        self._service = service
        self._options = options
        self._allowed_hosts = allowed_hosts
        self._public = public
        self._basic = basic
        self._name = name
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = _connection.get(None)
        if connection is not None:
            connection.request_began()
        try:
            await self._serve(scope, receive, send)
        finally:
            if connection is not None:
                connection.request_ended()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        options = self._options
        try:
            await self._authorise(scope)
            if self._in_hand >= options.max_connections:
                raise Overloaded(f"all {options.max_connections} calls are taken; try again later")
        except RequestError as refusal:
            self._service.count_error(refusal, f"a client of the {self._name} frontend")
            await error_response(refusal)(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            await asyncio.wait_for(send(message), options.send_timeout_s)

        self._in_hand += 1
        try:
            await self._app(scope, receive, send_in_time)
        except ClientDisconnect:  # in the middle of its body: no bug, and nobody reads a reply
            self._service.metrics.error("unreadable")
        finally:
            self._in_hand -= 1

    async def _authorise(self, scope: Scope) -> None:
        """Accept a request with the token, where there is one, that no page of another site sends."""
        headers, service = Headers(scope=scope), self._service
        if is_of_another_site(headers):
            raise Unauthenticated("pages of another site may not ask this server")
        if not service.needs_token:
            # A page of another site could have its own name lead here; it can't know a token.
            if not is_own_host(headers.get("host", ""), self._allowed_hosts):
                raise Unauthenticated(
                    "this server is addressed by an unknown name: use its IP address or localhost, or start "
                    "it with --http_allowed_hosts NAME"
                )
            return
        if scope["path"] in self._public:
            return
        host = str((scope.get("client") or ("", 0))[0])
        await asyncio.sleep(service.token_delay_s(host))
        kinds = ("bearer", "basic") if self._basic else ("bearer",)
        token = offered_token(headers.get("authorization", ""), *kinds)
        if token is None:
            address = ", or address it as http://user:TOKEN@host:port" if self._basic else ""
            raise Unauthenticated(f"this server wants a token: send 'Authorization: Bearer TOKEN'{address}")
        service.require_token(token, host)


async def read_http_body(request: Request, *, limit: int, timeout_s: float) -> bytes:
    """Return the body of a request.

    Args:
        request: The request; nothing of its body was read.
        limit: Most bytes.
        timeout_s: Seconds for the whole body.

    Raises:
        HTTPException: It is longer, or does not come in time.
    """
    too_large = HTTPException(413, f"the body exceeds the limit of {limit} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), timeout_s)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the body did not come within {timeout_s:g} s") from None


def is_of_another_site(headers: Headers) -> bool:
    """Return whether a browser says that a page of another site asks, with its visitor's access."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    except ValueError:  # "http://[" is the address of no page
        return True


def is_own_host(host: str, allowed: tuple[str, ...]) -> bool:
    """Return whether a Host header names this server: an address, localhost, this machine, or as allowed."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in ("localhost", socket.gethostname().lower(), *map(str.lower, allowed)):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _LimitedConnection(asyncio.Protocol):
    """A connection of uvicorn's, which ends where no request begins or goes on for too long.

    uvicorn limits how long an idle connection is kept, but neither the seconds that a head takes nor those of
    a body that was answered before it was complete; and it counts requests, not connections.

    Args:
        protocol: uvicorn's protocol of this connection.
        head_timeout_s: Seconds without a request in hand.
        max_connections: Connections at one time; with the next one the oldest idle one is closed.
        open_connections: Those that are open, of all protocols of one server, oldest first.
    """

    def __init__(
        self,
        protocol: asyncio.Protocol,
        *,
        head_timeout_s: float,
        max_connections: int,
        open_connections: dict[_LimitedConnection, None],
    ) -> None:
        self._protocol = protocol
        self._head_timeout_s = head_timeout_s
        self._max_connections = max_connections
        self._open = open_connections
        self._requests = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open[self] = None
        self._protocol.connection_made(transport)
        if len(self._open) > self._max_connections:
            # The one that has been idle longest makes place: idle connections can't keep a client out.
            idle = next((open_ for open_ in self._open if not open_.has_request), self)
            idle.abort()
        if self._transport is not None:
            self._start_timer()

    def data_received(self, data: bytes) -> None:
        token = _connection.set(self)
        try:
            self._protocol.data_received(data)
        finally:
            _connection.reset(token)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._open.pop(self, None)
        self._transport = None
        self._protocol.connection_lost(exc)

    @property
    def has_request(self) -> bool:
        """Whether a request is being answered."""
        return self._requests > 0

    def abort(self) -> None:
        """Close the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def request_began(self) -> None:
        """Note that a request's head is complete."""
        self._requests += 1
        self._stop_timer()

    def request_ended(self) -> None:
        """Note that a request was answered."""
        self._requests -= 1
        if not self._requests and self._transport is not None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._head_timeout_s, self._time_is_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_is_up(self) -> None:
        if self._transport is not None:
            self._transport.close()


def limited_protocol(head_timeout_s: float, max_connections: int) -> Any:
    """Return what makes the protocol of each connection, for uvicorn's ``http`` option.

    Args:
        head_timeout_s: Seconds for a request's head, and for the rest of a body that was answered already.
        max_connections: Connections at one time.
    """
    open_connections: dict[_LimitedConnection, None] = {}

    def make(**arguments: Any) -> asyncio.Protocol:
        return _LimitedConnection(
            H11Protocol(**arguments),
            head_timeout_s=head_timeout_s,
            max_connections=max_connections,
            open_connections=open_connections,
        )

    return make
